"""Table 1 through its command: every row, its pictures and its curve, and nothing done twice."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image

from sysdpo.errors import SettingError
from sysdpo.experiment.headroom import headroom
from sysdpo.paths import CONF
from sysdpo.reporting.page import write_report
from tests.integration.commands import start, train_in_process

ROWS = {
    "sysdpo_direct": {"captioner", "diffusion"},
    "before": set(),
    "best_of_n": set(),
    "only_llm": {"captioner"},
    "only_diffusion": {"diffusion"},
}


def metrics_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    outputs = tmp_path_factory.mktemp("table1") / "outputs"
    process = start("train.py", "-m", "experiment=table1", "scale=smoke", f"outputs={outputs}")
    _, errors = process.communicate(timeout=500)
    assert process.returncode == 0, errors
    return outputs / "table1" / "smoke"


def test_every_row_has_its_figures_and_files(table: Path) -> None:
    assert len(list((table / "data").iterdir())) == 1
    for row, trained in ROWS.items():
        folder = table / row / "seed=0"
        metrics = metrics_of(folder)
        assert metrics["method"] == row
        assert -1.5 <= metrics["preference_score"]["value"] <= 1
        assert 0 <= metrics["order_consistency"]["value"] <= 100
        assert len(metrics["attributes"]) == metrics["preference_score"]["n"] == 12
        samples = [json.loads(line) for line in (folder / "samples" / "evaluation.jsonl").read_text().splitlines()]
        for sample in samples:
            if not sample["parse_failures"]:
                assert len(sample["captions"]) == len(sample["levels"]) == 3
                assert Image.open(folder / "samples" / sample["picture"]).size == (3 * (3 * 32 + 4), 3 * 32)
            else:
                assert (sample["preference_score"], sample["picture"], sample["captions"]) == (-1, None, [])
        adapters = folder / "adapters"
        assert ({p.name for p in adapters.iterdir()} if adapters.exists() else set()) == trained
    best, one = (metrics_of(table / row / "seed=0")["preference_score"]["value"] for row in ("best_of_n", "before"))
    assert best > one


def test_the_curve_starts_before_training_and_losses_at_ln_2(table: Path) -> None:
    for row in ("sysdpo_direct", "only_llm", "only_diffusion"):
        lines = (table / row / "seed=0" / "metrics.jsonl").read_text().splitlines()
        history = {line["step"]: line for line in map(json.loads, lines)}
        assert history[1]["loss"] == pytest.approx(0.693147, abs=1e-5)
        assert [step for step, line in history.items() if "evaluation/order_consistency" in line] == [0, 2, 3]
        frozen = {"only_llm": "diffusion", "only_diffusion": "captioner"}.get(row)
        assert frozen is None or history[3][f"components/{frozen}/margin"] == 0
        assert "components/diffusion/chosen" in history[3]
        assert all(history[3][f"grad_norm/{name}"] > 0 for name in ROWS[row])


def test_a_run_that_finds_the_data_equals_the_one_that_made_them_to_the_bit(table: Path, tmp_path: Path) -> None:
    """Captions are encoded by themselves: who else was drawn at the same time leaves no trace in any digit."""
    made = ("experiment=table1", "scale=smoke", f"outputs={tmp_path}", f"data_folder={table / 'data'}")
    _, errors = (process := start("train.py", *made)).communicate(timeout=500)
    assert process.returncode == 0, errors
    maker, finder = table / "sysdpo_direct" / "seed=0", tmp_path / "table1" / "smoke" / "sysdpo_direct" / "seed=0"
    lines = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (maker, finder)]
    for line in (line for run in lines for line in run):
        line.pop("seconds", None)
    assert lines[0] == lines[1]
    assert metrics_of(maker) == metrics_of(finder)
    weights = ("captioner/adapter_model.safetensors", "diffusion/unet/diffusion_pytorch_model.safetensors")
    for name in (f"adapters/{name}" for name in weights):
        assert (maker / name).read_bytes() == (finder / name).read_bytes()


def test_the_experiment_s_figures_are_drawn_from_its_runs(table: Path) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", ["experiment=table1", "scale=smoke", f"outputs={table.parent.parent}"])
    printed = write_report(OmegaConf.to_container(config, resolve=True), CONF / "method")
    assert "not drawn" not in printed
    said = r"figure_6\.svg  Figure 6 of the paper: order consistency over training; one seed.*; 12 evaluation rows"
    assert re.search(said, printed)
    for name in ("figure_6", "appendix_g"):
        for kind in ("svg", "png"):
            assert (table / "report" / "figures" / f"{name}.{kind}").stat().st_size > 1000


def test_a_finished_row_is_read(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = table / "before" / "seed=0" / "metrics.json"
    changed = metrics.stat().st_mtime_ns
    outputs = f"outputs={table.parent.parent}"
    assert train_in_process(["experiment=table1", "scale=smoke", "method=before", outputs], monkeypatch) == 0
    assert metrics.stat().st_mtime_ns == changed


def test_sampling_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["experiment=table1", "scale=smoke", "method=sysdpo_sampling", f"outputs={tmp_path}"]
    assert train_in_process(arguments, monkeypatch) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "'diffusion' has no exact likelihood" in error
    assert "objective=direct" in error


def ask(**settings: Any) -> str:
    return headroom(OmegaConf.merge(OmegaConf.load(CONF / "headroom.yaml"), settings))


def test_pictures_are_redrawn_while_captions_stay(table: Path) -> None:
    first, *lines = ask(run=str(table / "before" / "seed=0"), draws=2).splitlines()
    assert first.startswith("z of")
    assert "12 rows, 2 draws each" in first
    found = {line.split(":")[0].strip(): line for line in lines}
    assert set(found) == {"preference_score", "order_consistency", "parse_failures", "place_named"}
    captions_alone = metrics_of(table / "before" / "seed=0")["place_named"]["value"]
    assert f"mean {captions_alone:.3f}, best of 2 {captions_alone:.3f}" in found["place_named"]


@pytest.mark.parametrize(
    ("row", "settings", "parts"),
    [
        ("nowhere", {}, ["nowhere", "no finished run"]),
        ("before", {"draws": 1}, ["draws=1", "at least 2"]),
        ("before", {"variable": "q"}, ["variable", "unknown 'q'"]),
        ("best_of_n", {}, ["best_of_n", "name a run that draws one a row"]),
    ],
)
def test_a_headroom_that_cannot_be_measured_is_refused(table: Path, row: str, settings: Any, parts: list[str]) -> None:
    with pytest.raises(SettingError) as error:
        ask(run=str(table / row / "seed=0"), **settings)
    for part in parts:
        assert part in str(error.value)
