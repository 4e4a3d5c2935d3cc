"""Tables, figures and the page, from run folders written by hand; every expected number is derived by hand."""

import csv
import json
import math
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from importlib.metadata import version
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from PIL import Image

from sysdpo.errors import SettingError
from sysdpo.reporting.figures import Drawn, curves, sweep_rows
from sysdpo.reporting.gallery import text
from sysdpo.reporting.page import render, write_report
from sysdpo.reporting.pooling import Cell, row_numbers
from sysdpo.reporting.tables import Table, as_json, as_markdown, make_table, write_table
from sysdpo.runs.folder import RunFolder, find_runs, read_jsonl
from sysdpo.runs.identity import identity

GRAPH = {
    "question": {"role": "input"},
    "draft": {"role": "intermediate", "component": "a", "parents": ["question"]},
    "answer": {"role": "final", "component": "b", "parents": ["question", "draft"]},
}
# Win rates of four evaluation rows, in percent:
#   seed 0:  0  50 100  50   mean 50, squares 5000, sd sqrt(5000 / 3), standard error sqrt(5000 / 12)
#   seed 1: 50  50 100 100   mean 75, squares 2500, sd sqrt(2500 / 3), standard error sqrt(2500 / 12)
#   rows:   25  50 100  75   mean 62.5, squares 3125, standard error sqrt(3125 / 12)
NUMBERS = {0: [0.0, 50.0, 100.0, 50.0], 1: [50.0, 50.0, 100.0, 100.0]}
FIGURES = {0: (50.0, math.sqrt(5000 / 12)), 1: (75.0, math.sqrt(2500 / 12))}
POOLED = Cell(62.5, math.sqrt(3125 / 12), 4)


def settings(root: Path) -> dict[str, Any]:
    return {
        "experiment": "pairs",
        "scale": "tiny",
        "seed": 0,
        "table_folder": str(root),
        "title": "Table X. <Pairs>",
        "rows": ["ours", "plain", "absent"],
        "metrics": ["rate"],
        "paper": {"ours": {"rate": 66.4}, "absent": {"rate": 12.0}},
        "dataset": {"name": "riddles", "prompts": 4},
        "system": {"variables": GRAPH},
    }


def write_run(
    root: Path,
    method: str,
    seed: int,
    numbers: Sequence[float | None] = (),
    figure: tuple[float, float | None] = (50.0, 0.0),
    history: Sequence[dict[str, Any]] = (),
    **changes: Any,
) -> Path:
    run = root / method / f"seed={seed}"
    (run / "samples").mkdir(parents=True)
    config = {**settings(root), "seed": seed, "run_folder": str(run), "train": [] if method == "plain" else None}
    (run / "config.yaml").write_text(yaml.safe_dump({**config, **changes}))
    cell = {"value": figure[0], "se": figure[1], "n": len(numbers) or 4}
    (run / "metrics.json").write_text(json.dumps({"method": method, "seed": seed, "judge": "oracle", "rate": cell}))
    records = [
        {"question": f"Q{i} & why?", "draft": f"D{i}", "answer": f"{method} says <b>{i}</b>", "rate": number}
        for i, number in enumerate(numbers)
    ]
    (run / "samples" / "evaluation.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in history))
    return run


@pytest.fixture
def methods(tmp_path: Path) -> Path:
    folder = tmp_path / "conf"
    folder.mkdir()
    for name, title in {"ours": "Ours-ψ", "plain": "Plain", "absent": "Absent"}.items():
        (folder / f"{name}.yaml").write_text(f"# @package _global_\nmethod: {{name: {name}, title: {title}}}\n")
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "pairs" / "tiny"
    for seed in (0, 1):
        margins = [{"step": 1, "rewards/margins": 0.0}, {"step": 2, "rewards/margins": 0.5 + seed}]
        write_run(root, "ours", seed, NUMBERS[seed], FIGURES[seed], margins)
        write_run(root, "plain", seed, [50.0] * 4)
    return root


def table_of(root: Path, methods: Path, **changes: Any) -> Table:
    return make_table({**settings(root), **changes}, methods)


def approximately(cell: Cell) -> dict[str, Any]:
    return {"value": pytest.approx(cell.value), "se": pytest.approx(cell.se), "n": cell.n}


# ---- figures over seeds ------------------------------------------------------------------------------------------


def test_a_single_seed_is_reported_as_its_run_says(tmp_path: Path, methods: Path) -> None:
    write_run(tmp_path, "ours", 3, NUMBERS[0], FIGURES[0])
    row = table_of(tmp_path, methods).rows[0]
    assert list(row.runs) == [3]
    assert row.cells == {"rate": Cell(50.0, FIGURES[0][1], 4)}


def test_seeds_are_pooled_with_errors_clustered_by_row(root: Path, methods: Path) -> None:
    cell = table_of(root, methods).rows[0].cells["rate"]
    assert vars(cell) == approximately(POOLED)


def test_rows_are_shown_in_the_unit_of_the_table(root: Path) -> None:
    numbers = row_numbers(RunFolder(root / "ours" / "seed=0"), "rate")
    np.testing.assert_allclose(numbers, [0, 50, 100, 50], atol=1e-9)


def test_numbers_that_are_in_the_unit_of_the_table_stay_as_they_are(tmp_path: Path, methods: Path) -> None:
    # seed 0: 0 100 100 0, mean 50, squares 10000; seed 1: 100 100 100 0, mean 75, squares 7500;
    # rows: 50 100 100 0, mean 62.5, squares 12.5^2 + 2 * 37.5^2 + 62.5^2 = 6875
    write_run(tmp_path, "ours", 0, [0.0, 100.0, 100.0, 0.0], (50.0, math.sqrt(10000 / 12)))
    write_run(tmp_path, "ours", 1, [100.0, 100.0, 100.0, 0.0], (75.0, math.sqrt(7500 / 12)))
    table = table_of(tmp_path, methods)
    assert vars(table.rows[0].cells["rate"]) == approximately(Cell(62.5, math.sqrt(6875 / 12), 4))
    assert not any("cannot be matched" in note for note in table.notes)


def test_differences_are_taken_prompt_by_prompt(root: Path, methods: Path) -> None:
    # averages over seeds: ours 25 50 100 75, plain 50 each: differences -25 0 50 25, mean 12.5, squares 3125
    table = table_of(root, methods, contrasts={"rate": [["ours", "plain"], ["ours", "absent"]]})
    (contrast,) = table.contrasts
    assert vars(contrast.cell) == approximately(Cell(12.5, math.sqrt(3125 / 12), 4))
    assert contrast.standard_errors == pytest.approx(12.5 / math.sqrt(3125 / 12))
    assert as_json(table)["contrasts"][0]["subtrahend"] == "plain"
    assert "| Ours-ψ − Plain" in as_markdown(table)


def test_a_difference_that_rounds_to_nothing_has_no_minus(tmp_path: Path, methods: Path) -> None:
    write_run(tmp_path, "ours", 0, [50.0, 49.9, 50.0, 50.0], (49.975, 0.025))
    write_run(tmp_path, "plain", 0, [50.0] * 4)
    markdown = as_markdown(table_of(tmp_path, methods, contrasts={"rate": [["ours", "plain"]]}))
    assert "| +0.0 ± 0.0" in markdown
    assert "-0.0" not in markdown


def test_a_difference_of_rows_that_answered_other_prompts_is_left_out(root: Path, methods: Path) -> None:
    file = root / "ours" / "seed=1" / "samples" / "evaluation.jsonl"
    file.write_text(file.read_text().replace("Q2", "another question"))
    assert table_of(root, methods, contrasts={"rate": [["ours", "plain"]]}).contrasts == []


def test_a_row_without_a_preference_counts_where_it_has_one(tmp_path: Path, methods: Path) -> None:
    # seed 0 has no preference on row 3: 0 50 100, mean 50, sd 50; the average of row 3 is seed 1's 100.
    write_run(tmp_path, "ours", 0, [0.0, 50.0, 100.0, None], (50.0, 50 / math.sqrt(3)))
    write_run(tmp_path, "ours", 1, NUMBERS[1], FIGURES[1])
    # row averages 25 50 100 100, mean 68.75, squares 43.75^2 + 18.75^2 + 2 * 31.25^2 = 4218.75
    cell = table_of(tmp_path, methods).rows[0].cells["rate"]
    assert vars(cell) == approximately(Cell(62.5, math.sqrt(4218.75 / 3 / 4), 4))


def test_the_same_numbers_under_every_seed_are_no_more_rows(tmp_path: Path, methods: Path) -> None:
    for seed in (0, 1, 2):
        write_run(tmp_path, "ours", seed, NUMBERS[0], FIGURES[0])
    cell = table_of(tmp_path, methods).rows[0].cells["rate"]
    assert vars(cell) == approximately(Cell(50.0, FIGURES[0][1], 4))


def test_without_samples_the_error_is_the_mean_of_the_seeds_own_and_it_is_said(tmp_path: Path, methods: Path) -> None:
    write_run(tmp_path, "ours", 0, figure=(50.0, 2.0))
    write_run(tmp_path, "ours", 1, figure=(60.0, 4.0))
    table = table_of(tmp_path, methods)
    assert table.rows[0].cells["rate"] == Cell(55.0, 3.0, 4)
    assert any("cannot be matched" in note for note in table.notes)


def test_seeds_that_answered_other_prompts_are_not_matched(root: Path, methods: Path) -> None:
    file = root / "ours" / "seed=1" / "samples" / "evaluation.jsonl"
    file.write_text(file.read_text().replace("Q2", "another question"))
    table = table_of(root, methods)
    assert table.rows[0].cells["rate"].se == pytest.approx((FIGURES[0][1] + FIGURES[1][1]) / 2)
    assert any("cannot be matched" in note for note in table.notes)


def test_seeds_are_ordered_as_numbers(tmp_path: Path) -> None:
    for seed in (10, 2):
        write_run(tmp_path, "ours", seed)
    assert [seed for seed, _ in find_runs(tmp_path, "ours")] == [2, 10]


# ---- what is said ------------------------------------------------------------------------------------------------


def test_a_row_without_a_run_is_shown_as_missing_with_the_command_that_fills_it(root: Path, methods: Path) -> None:
    table = make_table(settings(root), methods, ["scale=tiny", "outputs=my runs", "seed=5", "+method.x=1"])
    assert [row.method for row in table.rows] == ["ours", "plain", "absent"]
    note = next(note for note in table.notes if "No finished run of absent" in note)
    command = (
        "python scripts/train.py -m experiment=pairs scale=tiny 'outputs=my runs' +method.x=1 method=absent seed=0,1"
    )
    assert note.endswith(command)
    assert re.search(r"\| Absent +\| +missing \| +12\.0 \|", as_markdown(table))


def test_an_unfinished_run_does_not_count(root: Path, methods: Path) -> None:
    (root / "ours" / "seed=1" / "metrics.json").unlink()
    table = table_of(root, methods)
    assert table.rows[0].cells["rate"].value == 50.0
    assert any("ours lacks seed 1." in note and note.endswith("method=ours seed=1") for note in table.notes)


def test_the_caption_names_scale_judge_seeds_data_and_rows(root: Path, methods: Path) -> None:
    caption = table_of(root, methods).caption
    for part in ("Scale: tiny", "judge: oracle", "seeds: 0, 1", "data: riddles", "n = 4 evaluation rows"):
        assert part in caption


def test_seeds_of_different_configs_are_named(root: Path, methods: Path) -> None:
    assert not [n for n in table_of(root, methods).notes if "another config" in n]  # seeds and paths may differ
    write_run(root, "ours", 2, NUMBERS[0], FIGURES[0], beta=0.5)
    notes = table_of(root, methods).notes
    assert "ours: seed 2 was run with another config than seed 0: beta None / 0.5." in notes


@pytest.mark.parametrize(("key", "change"), [("prompts", "9 / 4"), ("seed", "9 / None")])
def test_a_run_on_other_data_is_named(root: Path, methods: Path, key: str, change: str) -> None:
    notes = table_of(root, methods, dataset={"name": "riddles", "prompts": 4, key: 9}).notes
    assert f"plain, seeds 0, 1: not the data set of this report's config: dataset.{key} {change}." in notes


def test_a_row_whose_training_was_thrown_away_is_named(root: Path, methods: Path) -> None:
    for seed, best in ((0, 0), (1, 40)):
        file = root / "ours" / f"seed={seed}" / "metrics.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "best_step": best}))
    notes = [note for note in table_of(root, methods).notes if "in validation" in note]
    assert len(notes) == 1
    assert notes[0].startswith("ours, seed 0: no weights beat the untrained ones in validation")


def test_two_judges_in_one_table_are_named(root: Path, methods: Path) -> None:
    file = root / "plain" / "seed=1" / "metrics.json"
    file.write_text(file.read_text().replace("oracle", "coin"))
    assert "The runs do not agree on the judge: oracle / coin." in table_of(root, methods).notes


@pytest.mark.parametrize("key", ["rows", "metrics", "title"])
def test_an_experiment_without_a_table_is_refused(root: Path, methods: Path, key: str) -> None:
    with pytest.raises(SettingError, match=f"^{key}: experiment 'pairs'"):
        table_of(root, methods, **{key: None})


def test_a_row_without_a_config_is_refused(root: Path, methods: Path) -> None:
    with pytest.raises(SettingError, match="'ourz' has no config"):
        table_of(root, methods, rows=["ourz"])


# ---- files -------------------------------------------------------------------------------------------------------


def test_json_csv_and_markdown_say_the_same(root: Path, methods: Path, tmp_path: Path) -> None:
    write_table(table_of(root, methods), tmp_path / "report")
    content = json.loads((tmp_path / "report" / "table.json").read_text())
    assert (content["experiment"], content["scale"]) == ("pairs", "tiny")
    first, second, third = content["rows"]
    assert first["method"] == "ours"
    assert first["seeds"] == [0, 1]
    assert first["rate"] == approximately(POOLED)
    assert first["paper"] == {"rate": 66.4}
    assert second["rate"] == {"value": 50.0, "se": 0.0, "n": 4}
    assert second["paper"] == {}
    assert third["rate"] is None
    assert third["seeds"] == []

    with (tmp_path / "report" / "table.csv").open() as file:
        lines = list(csv.DictReader(file))
    for row, line in zip(content["rows"], lines, strict=True):
        assert line["method"] == row["method"]
        assert line["seeds"] == " ".join(map(str, row["seeds"]))
        for key, column in (("value", "rate"), ("se", "rate_se"), ("n", "rate_n")):
            assert line[column] == ("" if row["rate"] is None else str(row["rate"][key]))
        assert line["rate_paper"] == str(row["paper"].get("rate", ""))

    markdown = (tmp_path / "report" / "table.md").read_text()
    assert re.search(r"\| Ours-ψ +\| +62\.5 ± 16\.1 \| +66\.4 \|", markdown)
    assert re.search(r"\| Plain +\| +50\.0 ± 0\.0 \| +– \|", markdown)


def test_figures_around_one_have_three_decimals(tmp_path: Path, methods: Path) -> None:
    write_run(tmp_path, "ours", 0, figure=(0.1844, 0.0411))
    markdown = as_markdown(table_of(tmp_path, methods, paper={"ours": {"rate": 0.25}}))
    assert re.search(r"\| 0\.184 ± 0\.041 \| +0\.25 \|", markdown)


def test_only_metrics_of_the_paper_have_a_column_for_it(root: Path, methods: Path) -> None:
    alone = table_of(root, methods, paper={})
    assert "paper" not in as_markdown(alone).splitlines()[2]
    assert ">paper<" not in render(alone, Drawn([], []))
    assert as_markdown(table_of(root, methods)).splitlines()[2].count("paper") == 1


def test_an_unknown_error_is_null_and_not_nan(tmp_path: Path, methods: Path) -> None:
    write_run(tmp_path, "ours", 0, [1.5], (50.0, math.nan))
    write_table(table_of(tmp_path, methods), tmp_path / "report")
    text = (tmp_path / "report" / "table.json").read_text()
    assert "NaN" not in text
    assert json.loads(text)["rows"][0]["rate"] == {"value": 50.0, "se": None, "n": 1}


# ---- figures -----------------------------------------------------------------------------------------------------


def test_curves_are_means_over_seeds_one_a_component(root: Path, methods: Path) -> None:
    lines = [{"component": "a", "step": 1, "rewards/margins": 3}, {"component": "b", "step": 1, "rewards/margins": 4}]
    write_run(root, "absent", 0, history=lines)
    assert curves(table_of(root, methods), "rewards/margins") == {
        ("ours", None): [(1, 0.0, 0.0, 0.0), (2, 1.0, 0.5, 1.5)],
        ("absent", "a"): [(1, 3.0, 3, 3)],
        ("absent", "b"): [(1, 4.0, 4, 4)],
    }


def test_a_single_seed_s_band_is_its_standard_error(tmp_path: Path, methods: Path) -> None:
    """Two seeds: from the lowest to the highest, whatever the errors of each."""
    key = "evaluation/rate"
    for method, rates in {"ours": (50.0,), "absent": (48.0, 54.0)}.items():
        for seed, rate in enumerate(rates):
            points = [{"step": 0, key: 50.0, f"{key}/se": 0.0}, {"step": 4, key: rate, f"{key}/se": 2.5}]
            write_run(tmp_path, method, seed, history=points)
    assert curves(table_of(tmp_path, methods), key) == {
        ("ours", None): [(0, 50.0, 50.0, 50.0), (4, 50.0, 47.5, 52.5)],
        ("absent", None): [(0, 50.0, 50.0, 50.0), (4, 51.0, 48.0, 54.0)],
    }
    spec = {"curve": "rate", "rows": ["ours"], "caption": "Nine"}
    assert "Nine; one seed, band of one standard error to either side" in specified(tmp_path, methods, nine=spec)


def test_evaluations_during_training_are_drawn_where_there_are_some(root: Path, methods: Path) -> None:
    write_run(root, "absent", 0, history=[{"step": s, "evaluation/rate": 50.0 + s} for s in (5, 10)])
    write_report(settings(root), methods)
    drawn = {file.name for file in (root / "report" / "figures").iterdir()}
    assert drawn == {f"{name}.{kind}" for name in ("evaluation_rate", "training_margin") for kind in ("svg", "png")}


def specified(root: Path, methods: Path, **figures: Any) -> str:
    return write_report({**settings(root), "figures": figures}, methods, ["scale=tiny"])


def test_a_figure_of_the_experiment_replaces_the_metric_s_own(root: Path, methods: Path) -> None:
    write_run(root, "absent", 0, [50.0] * 4, history=[{"step": s, "evaluation/rate": 50.0 + s} for s in (0, 5)])
    printed = specified(root, methods, figure_9={"curve": "rate", "caption": "Nine"})
    drawn = {file.name for file in (root / "report" / "figures").iterdir()}
    assert drawn == {f"{name}.{kind}" for name in ("figure_9", "training_margin") for kind in ("svg", "png")}
    assert "Nine; one seed" in printed
    assert "not drawn" not in printed


def test_rows_that_were_not_measured_during_training_are_named_with_their_command(root: Path, methods: Path) -> None:
    write_run(root, "absent", 0, history=[{"step": 0, "evaluation/rate": 50.0}])
    printed = specified(root, methods, figure_9={"curve": "rate", "rows": ["ours", "absent"], "caption": "Nine"})
    note = next(line for line in printed.splitlines() if line.startswith("not drawn"))
    assert "rate over training of ours." in note
    assert note.endswith("experiment=pairs scale=tiny training.evaluate_every=1 method=ours seed=0,1")
    assert (root / "report" / "figures" / "figure_9.png").exists()  # what there is, is drawn


def test_a_curve_says_how_many_rows_a_point_rests_on(root: Path, methods: Path) -> None:
    # 4 evaluation rows with curve_rows=2: every second row
    write_run(root, "absent", 0, [50.0] * 4, history=[{"step": 0, "evaluation/rate": 50.0}], curve_rows=2)
    write_run(root, "absent", 1, [50.0] * 4)  # a seed that was not measured during training
    printed = specified(root, methods, nine={"curve": "rate", "caption": "Nine"})
    assert "Nine; one seed; 2 evaluation rows a point" in printed


def test_jobs_of_a_sweep_that_differ_in_the_seed_alone_are_one_row(root: Path, methods: Path) -> None:
    sweep = root / "sweeps" / "pure"
    sweep.mkdir(parents=True)
    for seed in (0, 1):
        write_run(root / "jobs", "ours", seed, NUMBERS[seed], FIGURES[seed]).rename(sweep / f"k=2,seed={seed}")
    (sweep / "k=4,seed=0").mkdir()  # not finished
    (row,) = sweep_rows(sweep, "rate")
    assert (row.title, list(row.runs)) == ("k=2", [0, 1])
    assert vars(row.cells["rate"]) == approximately(POOLED)
    spec = {"metric": "rate", "caption": "Eight", "command": "make it"}
    printed = specified(root, methods, a={"sweep": "pure", **spec}, b={"sweep": "other", **spec})
    assert (root / "report" / "figures" / "a_end.svg").exists()
    assert "not drawn: b: the sweep 'other'. To fill in: make it SCALE=tiny" in printed
    assert "not drawn: a: rate over training. To fill in: make it SCALE=tiny ARGS=training.evaluate_every=1" in printed


def test_image_sequences_stand_beside_each_other_with_captions_and_levels(root: Path, methods: Path) -> None:
    for method in ("ours", "plain"):
        folder = root / method / "seed=0" / "samples"
        Image.new("RGB", (64, 32), "orange").save(folder / "0.png")
        captions = [f"{method} <low>\x08", f"{method} $high$"]
        drawn = {"question": "More & more", "captions": captions, "levels": [0.25, 0.75], "picture": "0.png"}
        nothing = {"question": "Less", "captions": [], "levels": [], "picture": None}
        records = [{**drawn, "rate": 1.0}, {**nothing, "rate": 1.0}]
        (folder / "evaluation.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    spec = {"before": "plain", "after": "ours", "captions": "captions", "levels": "levels", "metric": "rate"}
    specified(root, methods, g={"sequences": spec, "caption": "G"})
    assert Image.open(root / "report" / "figures" / "g.png").width > 500
    drawing = ElementTree.parse(root / "report" / "figures" / "g.svg").getroot()
    words = " ".join("".join(node.itertext()) for node in drawing.iter() if node.tag.endswith("text"))
    for part in ("More & more", "Less", "plain <low>", "ours $high$", "0.25", "0.75", "nothing was drawn"):
        assert part in words, part
    assert words.index("plain <low>") < words.index("ours <low>")
    assert sum(node.tag.endswith("image") for node in drawing.iter()) == 2


def test_a_figure_of_a_row_that_the_table_leaves_out_is_named_as_missing(root: Path, methods: Path) -> None:
    spec = {"before": "gone", "after": "ours", "captions": "c", "levels": "l", "metric": "rate"}
    printed = specified(root, methods, g={"sequences": spec, "caption": "G"})
    assert "not drawn: g: pictures of gone and ours." in printed


def test_a_figure_of_no_known_kind_is_refused(root: Path, methods: Path) -> None:
    with pytest.raises(SettingError, match=r"figures\.g: it needs one of curve, sweep, sequences"):
        specified(root, methods, g={"caption": "G"})


# ---- the page ----------------------------------------------------------------------------------------------------

VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Checks the nesting of tags; collects text and attributes."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.feed(content)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def page_of(root: Path, methods: Path) -> Page:
    printed = write_report(settings(root), methods, ["scale=tiny"])
    assert printed.startswith("**Table X. <Pairs>**")
    return Page((root / "report" / "index.html").read_text())


def test_the_page_is_well_formed_and_needs_no_other_file(root: Path, methods: Path) -> None:
    page = page_of(root, methods)
    for tag, name, value in page.attributes:
        if name in ("src", "href", "xlink:href", "srcset", "data", "poster"):
            assert value.startswith(("data:", "#")), (tag, name, value)
        assert "@import" not in value
    tags = {tag for tag, _, _ in page.attributes}
    assert not tags & {"script", "link", "iframe"}
    style = next(words for words in page.words if "prefers-color-scheme" in words)
    assert "url(" not in style
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_the_page_holds_table_samples_config_environment_and_commands(root: Path, methods: Path) -> None:
    words = "".join(page_of(root, methods).words)
    assert "62.5" in words
    assert "± 16.1" in words
    assert "Q0 & why?" in words
    assert "plain says <b>0</b>" in words  # shown as text, not as markup
    assert "ours says <b>0</b>" in words
    assert "D0" in words
    assert "python scripts/train.py -m experiment=pairs scale=tiny method=ours seed=0,1" in words
    assert "riddles" in words


def test_the_page_shows_the_machine_of_the_runs_and_not_of_the_report(root: Path, methods: Path) -> None:
    for seed, cores in ((0, "64"), (1, "2")):
        facts = {"opened": f"2020-01-0{seed + 1} 10:00 UTC", "platform": "Plan 9", "cpu cores": cores}
        (root / "ours" / f"seed={seed}" / "environment.json").write_text(json.dumps(facts))
    words = page_of(root, methods).words
    assert words.count("Plan 9") == 2
    assert {"64", "ours, seed 0", "2020-01-02 10:00 UTC"} <= set(words)
    assert "torch" not in words  # the runs did not say it


def test_a_run_says_where_it_is_made_when_it_is_opened(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "seed=0")
    assert run.environment == {}
    run.open({"beta": 0.1}, identity({"beta": 0.1}), device="an accelerator")
    assert run.environment["device"] == "an accelerator"
    assert run.environment["torch"] == version("torch")
    assert run.config == {"beta": 0.1}


def test_a_torn_last_line_does_not_count_and_no_file_has_no_lines(tmp_path: Path) -> None:
    assert read_jsonl(tmp_path / "none.jsonl") == []
    file = tmp_path / "lines.jsonl"
    for torn in ("", '{"a"', '{"a": 3}'):  # nothing that was not ended was wholly written
        file.write_text('{"a": "one\u2028"}\n{"a": 2}\n' + torn, encoding="utf-8")
        assert read_jsonl(file) == [{"a": "one\u2028"}, {"a": 2}]


def test_images_of_samples_are_part_of_the_page(root: Path, methods: Path) -> None:
    for method in ("ours", "plain"):
        folder = root / method / "seed=0" / "samples"
        Image.new("RGB", (32, 32), "orange").save(folder / "drawn.png")
        records = [json.loads(line) for line in (folder / "evaluation.jsonl").read_text().splitlines()]
        records = [{**record, "answer": ["drawn.png", "drawn.png"]} for record in records]
        (folder / "evaluation.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    sources = [value for tag, name, value in page_of(root, methods).attributes if (tag, name) == ("img", "src")]
    assert len(sources) == 4 * 2 * 2  # rows, methods, images an answer
    assert all(source.startswith("data:image/png;base64,") for source in sources)


def test_an_answer_that_ends_like_a_picture_is_a_text(root: Path, methods: Path) -> None:
    long = f"{'a river ' * 100}river.png"
    file = root / "ours" / "seed=0" / "samples" / "evaluation.jsonl"
    file.write_text(file.read_text().replace("ours says <b>0</b>", long))
    assert long in page_of(root, methods).words


def test_a_picture_stands_in_for_an_answer_that_the_record_does_not_hold(root: Path, methods: Path) -> None:
    folder = root / "ours" / "seed=0" / "samples"
    Image.new("RGB", (96, 32), "orange").save(folder / "0.png")
    record = {"question": "Q0", "draft": ["one", "two"], "levels": [0.25, 1.0], "picture": "0.png", "rate": 1.0}
    (folder / "evaluation.jsonl").write_text(json.dumps(record) + "\n")
    page = page_of(root, methods)
    assert [value[:10] for tag, name, value in page.attributes if (tag, name) == ("img", "src")] == ["data:image"]
    assert "one\ntwo" in page.words
    assert {"0.250", "1.000", "one", "two"} <= set(page.words)  # under the picture they belong to


def test_figures_by_group_are_means_over_seeds(root: Path, methods: Path) -> None:
    for seed, value in ((0, 20.0), (1, 50.0)):
        file = root / "ours" / f"seed={seed}" / "metrics.json"
        groups = {"fog": {"rate": {"value": value, "se": 1.0, "n": 2}}}
        file.write_text(json.dumps({**json.loads(file.read_text()), "attributes": groups}))
    words = page_of(root, methods).words
    assert words[words.index("fog") : words.index("fog") + 3] == ["fog", "35.0", "–"]


def test_drawings_are_valid_xml(root: Path, methods: Path) -> None:
    write_report(settings(root), methods)
    assert ElementTree.parse(root / "report" / "figures" / "training_margin.svg").getroot().tag.endswith("svg")


def test_a_page_without_any_run_still_says_what_to_do(tmp_path: Path, methods: Path) -> None:
    words = "".join(page_of(tmp_path / "nothing", methods).words)
    assert "method=ours,plain,absent seed=0" in words


def test_control_characters_never_reach_the_page() -> None:
    assert text("a\x00b\x1b<c>\n\ud800") == "a\ufffdb\ufffd&lt;c&gt;\n\ufffd"
