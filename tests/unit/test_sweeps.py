"""Sweeps without models: which jobs an override asks for, what a failed one leaves, what the summary says of each."""

import csv
import errno
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from PIL import Image

from sysdpo.cli.command import command
from sysdpo.cli.failures import explain
from sysdpo.cli.multirun import Multirun, multirun
from sysdpo.data.storage import made_once
from sysdpo.errors import SettingError
from sysdpo.paths import CONF
from sysdpo.reporting.sweep_summary import summarise
from sysdpo.reporting.sweeps import heat_maps, lines_or_points, read_sweep
from sysdpo.runs.files import write_json, write_jsonl
from sysdpo.runs.folder import RunFolder
from sysdpo.runs.identity import identity
from sysdpo.runs.json_log import JsonLogger
from tests.unit.test_reporting import FIGURES, NUMBERS, POOLED, write_run

ROWS = ("method=prompted,sysdpo_sampling",)


def planned(*given: str, grids: tuple[tuple[str, ...], ...] = (), name: str | None = None) -> Multirun:
    parse = OverridesParser.create().parse_overrides
    return multirun(parse(list(given)), [parse(list(g)) for g in grids], parse(list(ROWS)), name, "wandb")


def names(found: Multirun) -> list[str]:
    return [job.name for job in found.jobs]


def test_rows_and_seeds_alone_are_no_sweep() -> None:
    for given in ((), ("beta=0.3",), ("method=prompted,sysdpo_sampling",)):
        found = planned(*given, "seed=0,1", "scale=smoke")
        assert found.sweep is None
        assert names(found) == [f"method={m},seed={s}" for m in ("prompted", "sysdpo_sampling") for s in (0, 1)]
        for job in found.jobs:
            assert not [o for o in job.overrides if o.startswith(("run_folder", "study", "logger"))]
    assert names(planned("method=prompted")) == ["seed=0"]


def test_what_else_is_swept_is_crossed_and_leaves_the_rows_aside() -> None:
    found = planned("beta=0.05,0.1", "sampler.k=2,4", "sampler.draw.diversity_penalty=0,10", "scale=smoke")
    assert found.sweep == "beta+k+diversity_penalty"
    assert found.axes == ("beta", "sampler.k", "sampler.draw.diversity_penalty")
    expected = [f"beta={b},k={k},diversity_penalty={d},seed=0" for b in (0.05, 0.1) for k in (2, 4) for d in (0, 10)]
    assert names(found) == expected
    first = found.jobs[0]
    assert dict(first.values) == {"beta": "0.05", "sampler.k": "2", "sampler.draw.diversity_penalty": "0"}
    assert [o for o in first.overrides if "=" in o][:4] == [
        "beta=0.05",
        "sampler.k=2",
        "sampler.draw.diversity_penalty=0",
        "scale=smoke",
    ]
    assert "logger=wandb" in first.overrides
    assert f"run_folder='${{table_folder}}/sweeps/{found.sweep}/{first.name}'" in first.overrides
    assert not [o for o in first.overrides if o.startswith("method=")]
    assert "logger=wandb" not in planned("beta=1,2", "logger=none").jobs[0].overrides


def test_grids_are_joined_and_the_command_line_replaces_their_values() -> None:
    grids = (("sampler=diverse_beam", "sampler.k=2,4"), ("sampler=monte_carlo", "sampler.k=2,4,16"))
    found = planned("seed=3", grids=grids, name="samples")
    assert found.sweep == "samples"
    beams = [f"sampler=diverse_beam,k={k},seed=3" for k in (2, 4)]
    assert names(found) == beams + [f"sampler=monte_carlo,k={k},seed=3" for k in (2, 4, 16)]
    fewer = planned("sampler.k=2", "beta=0.1,0.2", grids=grids, name="samples")
    assert fewer.sweep == "samples+beta"
    assert fewer.axes == ("sampler", "beta")
    assert len(fewer.jobs) == 4


def test_a_job_is_listed_once_and_its_folder_is_a_file_name() -> None:
    assert names(planned(grids=(("beta=1,2",), ("beta=2,3",)), name="beta")) == [f"beta={b},seed=0" for b in (1, 2, 3)]
    one, other = names(planned("dataset.path='/a/b c','/a/b/c'"))
    assert one != other
    assert "/" not in one + other
    assert all(o.startswith("path=_a_b_c,seed=0-") for o in (one, other))
    long = names(planned(f"dataset.path='{'ж' * 150}','{'ш' * 150}'"))
    assert len(set(long)) == 2
    assert all(len(f".{name}.log.partial".encode()) <= 255 for name in long)
    with pytest.raises(SettingError, match="one ready-made sweep"):
        planned("sweep=beta,samples")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """`train.py` with another task than training: `task(config)` decides what a job does."""

    def call(task: Callable[[Any], Any], *arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments, f"outputs={tmp_path}", "scale=smoke"])
        GlobalHydra.instance().clear()
        try:
            command(task)()
        except SystemExit as stop:
            return int(stop.code or 0)
        return 0

    return call


def finish(config: Any, value: float) -> None:
    cell = {"value": value, "se": 2.0, "n": 14}
    metrics = {"method": config.method.name, "seed": config.seed, "wr_chosen": cell, "wr_prompted": cell}
    write_json(Path(config.run_folder) / "metrics.json", metrics)


def test_failed_jobs_are_reported_in_the_end_and_stop_nobody(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A mistake is status 2, a bug 1; a setting that does not compose, a job that raises, a job that is well."""

    def task(config: Any) -> None:
        if config.beta == 2:
            raise SettingError("beta=2: too strong.")
        if config.beta == 3:
            raise RuntimeError("boom")
        finish(config, 50 + config.beta)

    folder = tmp_path / "table2" / "smoke" / "sweeps" / "sampler+beta"
    arguments = ("-m", "sampler=diverse_beam,no_such", "logger=none")
    assert run(task, *arguments, "beta=1,2") == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 2
    assert any(line.startswith("error: sampler: unknown 'no_such'") and "(2 of 4 jobs; log: " in line for line in lines)
    log = folder / "logs" / "sampler=diverse_beam,beta=2,seed=0.log"
    assert f"error: beta=2: too strong. (1 of 4 jobs; log: {log})" in lines
    assert "Traceback" in log.read_text()

    assert run(task, *arguments, "beta=1,3,4") == 1
    assert "error: RuntimeError: boom (1 of 6 jobs; log: " in capsys.readouterr().err
    with (folder / "summary.csv").open() as file:
        rows = {(row["sampler"], row["beta"]): row for row in csv.DictReader(file)}
    assert len(rows) == 6
    assert rows["diverse_beam", "4"]["wr_chosen"] == "54.0"
    assert rows["diverse_beam", "3"]["status"] == "failed"
    assert rows["diverse_beam", "3"]["wr_chosen"] == ""
    assert "unknown 'no_such'" in rows["no_such", "1"]["error"]


def test_an_interruption_leaves_a_summary_of_what_is_there(run: Callable[..., int], tmp_path: Path) -> None:
    def task(config: Any) -> None:
        if config.beta == 2:
            raise KeyboardInterrupt
        finish(config, 50.0)

    assert run(task, "sweep=beta", "beta=1,2,3", "logger=none") == 130
    with (tmp_path / "table2" / "smoke" / "sweeps" / "beta" / "summary.csv").open() as file:
        assert [row["status"] for row in csv.DictReader(file)] == ["finished", "missing", "missing"]


def test_ready_made_sweeps_are_the_paper_s(run: Callable[..., int]) -> None:
    seen: list[Any] = []
    expected = {
        "samples": 12,
        "diversity_penalty": 4,
        "strategies": 3,
        "estimators": 12,
    }
    for name, count in expected.items():
        seen.clear()
        assert run(seen.append, f"sweep={name}") == 0
        assert len({config.run_folder for config in seen}) == count == len(seen)
        assert {(config.study, config.logger.group) for config in seen} == {(f"table2/smoke/sweeps/{name}",) * 2}
        assert len({config.data_folder for config in seen}) == 1
        values = [(c.sampler.draw._target_.split(".")[-1], c.sampler.k, c.sampler.get("candidates")) for c in seen]
        if name == "samples":
            assert [(*value[:2], c.objective.estimator) for value, c in zip(values, seen, strict=True)] == [
                *(("DiverseBeam", k, "sum") for k in (2, 4, 8)),
                *(("MonteCarlo", k, "sum") for k in (1, 2, 4, 8, 16)),
                *(("MonteCarlo", k, "importance") for k in (2, 4, 8, 16)),
            ]
        if name == "diversity_penalty":
            assert [c.sampler.draw.diversity_penalty for c in seen] == [0, 1, 10, 20]
        if name == "strategies":
            assert values == [("DiverseBeam", 2, None), ("MonteCarlo", 2, 4), ("MonteCarlo", 2, None)]
        if name == "estimators":
            assert {(c.method.name, c.objective.estimator, c.sampler.k) for c in seen} == set(
                itertools.product(("sysdpo_sampling", "sysdpo_psi1"), ("sum", "importance"), (2, 4, 8))
            )
    seen.clear()
    assert run(seen.append, "-m", "experiment=table1", "sweep=beta", "beta=0.1,0.2") == 0
    assert {config.method.name for config in seen} == {"sysdpo_direct"}


def a_sweep(folder: Path, axes: dict[str, str], values: dict[tuple[str, ...], float], seeds: int = 1) -> None:
    jobs = []
    for point, value in values.items():
        for seed in range(seeds):
            name = f"{'-'.join(point)}-{seed}"
            cell = {"value": value + seed, "se": 1.5, "n": 10}
            write_json(folder / name / "metrics.json", {"method": "m", "seed": seed, "wr": cell})
            found = dict(zip(axes, point, strict=True))
            jobs.append({"name": name, "values": found, "folder": str(folder / name), "error": None})
    content = {"name": "s", "experiment": "e", "scale": "t", "metrics": {"wr": "Win rate"}, "axes": axes, "jobs": jobs}
    write_json(folder / "sweep.json", content)


def test_the_summary_has_what_the_runs_say_of_their_samples(tmp_path: Path) -> None:
    a_sweep(tmp_path, {"k": "k"}, {("2",): 50, ("4",): 51})
    told = {"sampling/effective_samples": 1.5, "grad_norm/psi1": 0.25}
    write_json(tmp_path / "4-0" / "metrics.json", {"method": "m", "seed": 0, **told})
    summarise(tmp_path)
    with (tmp_path / "summary.csv").open() as file:
        rows = {row["k"]: row for row in csv.DictReader(file)}
    assert (rows["4"]["sampling/effective_samples"], rows["4"]["grad_norm/psi1"]) == ("1.5", "0.25")
    assert (rows["2"]["sampling/effective_samples"], rows["2"]["grad_norm/psi1"]) == ("", "")


def test_the_table_has_a_line_a_point_with_its_seeds_pooled(tmp_path: Path) -> None:
    axes = {"sampler.k": "k", "b": "b"}  # names of one letter
    a_sweep(tmp_path, axes, {("2", "0.1"): 50, ("4", "0.1"): 61, ("8", "1"): 0}, seeds=2)
    for seed, effective in enumerate((1.5, 2.0)):
        cell = {"value": 50.0 + seed, "se": 1.5, "n": 10}
        told = {"method": "m", "seed": seed, "wr": cell, "sampling/effective_samples": effective}
        write_json(tmp_path / f"2-0.1-{seed}" / "metrics.json", told)
        write_json(tmp_path / f"2-0.1-{seed}" / "budget.json", {"cpu_seconds": 10.0 + 4 * seed})
        (tmp_path / f"8-1-{seed}" / "metrics.json").unlink()
    (tmp_path / "4-0.1-1" / "metrics.json").unlink()
    assert summarise(tmp_path).startswith((tmp_path / "summary.md").read_text())
    header, rule, *lines = (
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (tmp_path / "summary.md").read_text().splitlines()
    )
    assert all(re.fullmatch("-+:?", cell) for cell in rule)
    assert header == ["k", "b", "seeds", "Win rate", "effective samples", "distinct bigrams", "CPU s of training"]
    assert lines == [
        ["2", "0.1", "2", "50.5 ± 1.5", "1.75", "–", "12"],
        ["4", "0.1", "1", "61.0 ± 1.5", "–", "–", "–"],
        ["8", "1", "0", "–", "–", "–", "–"],
    ]


def test_points_are_compared_prompt_by_prompt(tmp_path: Path) -> None:
    a_sweep(tmp_path, {"sampler.k": "k", "b": "b"}, {("2", "1"): 50, ("4", "5"): 60, ("4", "1"): 70}, seeds=2)
    scored = {"2-1": [[40, 60, 50, 50]] * 2, "4-5": [[50, 60, 60, 70]] * 2, "4-1": [[60, 80, 50, 70], [80, 80, 70, 70]]}
    for point, seeds in scored.items():
        for seed, numbers in enumerate(seeds):
            write_jsonl(tmp_path / f"{point}-{seed}" / "samples" / "evaluation.jsonl", [{"wr": n} for n in numbers])
    summarise(tmp_path)
    _, below = (tmp_path / "summary.md").read_text().split("\n\n")
    header, _, *lines = ([cell.strip() for cell in line.strip("|").split("|")] for line in below.splitlines())
    assert header == ["Difference, prompt by prompt (k, b)", "in", "value", "standard errors"]
    # 4, 1 over its seeds: 70 80 60 70. Less 2, 1: 30 20 10 20, squares 200. Less 4, 5: 20 20 0 0, squares 400.
    # 4, 5 less 2, 1, which is the first point: 10 0 10 20, squares 200
    assert lines == [
        ["4, 5 − 2, 1", "Win rate", "+10.0 ± 4.1", "+2.4"],
        ["4, 1 − 2, 1", "Win rate", "+20.0 ± 4.1", "+4.9"],
        ["4, 1 − 4, 5", "Win rate", "+10.0 ± 5.8", "+1.7"],
    ]


def texts(folder: Path) -> list[str]:
    svg = (folder / "figures" / "wr.svg").read_text()
    return [part.split("</text>")[0].rsplit(">", 1)[-1] for part in svg.split("<text")[1:]]


def test_two_numeric_settings_make_a_heat_map_a_third_its_panels(tmp_path: Path) -> None:
    points = {(b, k, d): 40.0 + i for i, (b, k, d) in enumerate((b, k, d) for b in "12" for k in "24" for d in "01")}
    del points["2", "4", "1"]  # a job that is not there yet
    a_sweep(tmp_path, {"beta": "beta", "sampler.k": "k", "d": "penalty"}, points, seeds=2)
    summarise(tmp_path)
    shown = texts(tmp_path)
    for value in points.values():
        assert f"{value + 0.5:.1f}" in shown  # the mean over the two seeds
    assert shown.count("–") == 1
    assert {"penalty = 0", "penalty = 1", "beta", "k", "Win rate"} <= set(shown)
    assert "Win rate, e at t, mean over 2 seeds" in shown
    with Image.open(tmp_path / "figures" / "wr.png") as picture:
        assert picture.width > picture.height
    sweep = read_sweep(tmp_path)
    assert len(sweep.jobs) == 14
    canvas = heat_maps(sweep, "wr", sweep.jobs, ["beta", "sampler.k"], ["d"])
    first, second = (panel.images[0].get_array() for panel in canvas.axes if panel.get_title())
    assert first is not None
    assert second is not None
    # row: k, column: beta; number i of 2 x 2 x 2 is beta's bit, k's, the penalty's
    assert first.tolist() == [[40.5, 44.5], [42.5, 46.5]]
    assert second[0].tolist() == [41.5, 45.5]
    assert second[1, 0] == 43.5


def test_too_many_panels_are_averaged_and_the_title_says_so(tmp_path: Path) -> None:
    points = {(b, k, str(d)): 10.0 * d for b in "12" for k in "24" for d in range(10)}
    a_sweep(tmp_path, {"beta": "beta", "sampler.k": "k", "d": "penalty"}, points)
    summarise(tmp_path)
    assert texts(tmp_path).count("45.0") >= 4
    assert "Win rate, e at t, one seed, mean over penalty" in texts(tmp_path)


def test_one_numeric_setting_makes_lines_and_none_makes_points(tmp_path: Path) -> None:
    a_sweep(tmp_path, {"sampler": "sampler", "k": "k"}, {("beam", "2"): 50, ("beam", "16"): 51, ("mc", "2"): 52})
    summarise(tmp_path)
    assert {"beam", "mc", "sampler", "k", "2", "16", "Win rate"} <= set(texts(tmp_path))
    other = tmp_path / "other"
    a_sweep(other, {"sampler": "sampler"}, {("beam",): 50, ("mc",): 52})
    summarise(other)
    assert {"beam", "mc", "sampler"} <= set(texts(other))


def test_error_bars_are_the_table_s(tmp_path: Path) -> None:
    """Two seeds on the same four rows: clustered by row, as `test_reporting.py` derives it."""
    jobs = []
    for k in ("2", "4"):
        for seed in (0, 1):
            run = write_run(tmp_path / k, "ours", seed, NUMBERS[seed], FIGURES[seed])
            jobs.append({"name": f"{k}-{seed}", "values": {"k": k}, "folder": str(run), "error": None})
    content = {"name": "s", "experiment": "e", "scale": "t", "metrics": {"rate": "Rate"}, "axes": {"k": "k"}}
    write_json(tmp_path / "sweep.json", {**content, "jobs": jobs})
    sweep = read_sweep(tmp_path)
    canvas = lines_or_points(sweep, "rate", sweep.jobs, ["k"], [])
    _, _, (bars,) = canvas.axes[0].containers[0]
    low, high = POOLED.value - POOLED.se, POOLED.value + POOLED.se
    np.testing.assert_allclose(bars.get_segments(), [[[k, low], [k, high]] for k in (2, 4)])


def test_a_study_s_runs_share_one_file_of_lines(tmp_path: Path) -> None:
    loggers = []
    for name in ("a", "b"):
        write_json(tmp_path / name / "metrics.json", {"wr": {"value": 1.0}})
        loggers.append(JsonLogger(tmp_path / "log.jsonl", tmp_path / name, {}, run_id="x", data=None))
    loggers[0].log({"step": 1, "loss": 0.5})
    loggers[1].log({"step": 1, "loss": 0.25})
    loggers[0].finish()
    loggers[1].finish(succeeded=False)
    assert [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [
        {"run": "a", "step": 1, "loss": 0.5},
        {"run": "b", "step": 1, "loss": 0.25},
        {"run": "a", "finished": True, "wr": {"value": 1.0}},
        {"run": "b", "finished": False},
    ]


def test_a_run_keeps_its_name_as_long_as_its_training(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    one, two = identity({"beta": 1}), identity({"beta": 2})
    first = folder.run_id(one)
    folder.open({"beta": 1}, one, first)
    assert folder.run_id(one) == first
    second = folder.run_id(two)
    folder.open({"beta": 2}, two, second)
    assert first != second == folder.run_id(two)
    assert (tmp_path / ".run.superseded-1" / "run_id").read_text().strip() == first


def test_what_jobs_share_is_made_by_one_of_them(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    target, made = tmp_path / "data" / "set", []

    def make(number: int) -> None:
        with made_once(target, target) as missing:
            if missing:
                made.append(number)
                target.write_text("whole")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(make, range(32)))
    assert len(made) == 1
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["set"]


@pytest.mark.parametrize("target", ["reproduce-table1", "sweep-table2"])
@pytest.mark.parametrize(
    ("arguments", "launcher", "setting"),
    [
        (["SCALE=smoke"], "JoblibLauncher", ("n_jobs", 2)),
        (["SCALE=smoke", "JOBS=1"], "BasicLauncher", None),
        (["SCALE=paper"], "BasicLauncher", None),  # a large model wants the machine to itself
        (["ARGS=hydra/launcher=submitit_local hydra.launcher.timeout_min=9"], "LocalLauncher", ("timeout_min", 9)),
        (["ARGS=hydra.launcher.n_jobs=3"], "JoblibLauncher", ("n_jobs", 3)),
    ],
)
def test_make_runs_jobs_side_by_side_unless_args_name_a_launcher(
    target: str, arguments: list[str], launcher: str, setting: tuple[str, int] | None
) -> None:
    asked = ["make", "-n", target, *arguments]
    path = {"PATH": os.environ["PATH"]}  # nothing of a make that runs the tests
    printed = subprocess.run(asked, cwd=CONF.parent, env=path, capture_output=True, text=True, check=True).stdout
    (line,) = [line for line in printed.splitlines() if "scripts/train.py" in line]
    _, _, flag, *overrides = shlex.split(line)
    assert flag == "-m"
    with initialize_config_dir(str(CONF), version_base="1.3"):
        found = compose("config", overrides, return_hydra_config=True).hydra.launcher
    assert found._target_.endswith(f".{launcher}")
    assert setting is None or found[setting[0]] == setting[1]


# ---- two processes, no place ---------------------------------------------------------------------------------------


def test_a_run_belongs_to_one_process(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "sysdpo_direct" / "seed=0")
    hold = "import sys; from sysdpo.runs.folder import RunFolder; from pathlib import Path\n"
    hold += "with RunFolder(Path(sys.argv[1])).held(): print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(folder.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(SettingError, match=r"seed=0: another process is at this run; wait for it"), folder.held():
            raise AssertionError("both have it")
        other.kill()
    with folder.held():  # the killed one's hold is gone
        pass


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_no_place_for_a_file_is_one_line(number: int) -> None:
    line = explain(OSError(number, os.strerror(number), "/results/metrics.json"))
    assert line is not None
    assert line.startswith(f"/results/metrics.json: {os.strerror(number)}; ")
    assert "outputs=" in line
    assert explain(FileNotFoundError(errno.ENOENT, "No such file", "x")) is None  # that is a bug
