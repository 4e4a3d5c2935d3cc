"""The commands under torchrun: the tables of one process, stopping, going on, and mistakes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sysdpo.cli import commands
from sysdpo.runs.folder import read_jsonl
from tests.integration.commands import ROOT, start, train_in_process
from tests.several import history

ROWS = {
    "table2": ["prompted", "sysdpo_sampling", "separate_dpo"],
    "table1": ["sysdpo_direct", "best_of_n"],
}
SMOKE = ("scale=smoke", "training.evaluate_every=0")


def together(number: int, *arguments: str) -> "subprocess.Popen[str]":
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={number}"]
    return subprocess.Popen(
        [*torchrun, str(ROOT / "scripts" / "train.py"), *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: "subprocess.Popen[str]") -> str:
    output, errors = process.communicate(timeout=560)
    assert process.returncode == 0, errors[-3000:]
    return output + errors


def rows_of(outputs: Path, experiment: str) -> dict[str, Path]:
    return {row: outputs / experiment / "smoke" / row / "seed=0" for row in ROWS[experiment]}


def asked(experiment: str, outputs: Path) -> list[str]:
    return ["-m", f"experiment={experiment}", *SMOKE, f"outputs={outputs}", f"method={','.join(ROWS[experiment])}"]


def numbers(value: Any, name: str = "") -> dict[str, Any]:
    """Every leaf of nested results by its path."""
    if isinstance(value, dict):
        return {k: v for key, each in value.items() for k, v in numbers(each, f"{name}/{key}").items()}
    if isinstance(value, list):
        return {k: v for i, each in enumerate(value) for k, v in numbers(each, f"{name}/{i}").items()}
    return {name: value}


def assert_close(found: Any, expected: Any, tolerance: float) -> None:
    ours, theirs = numbers(expected), numbers(found)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        is_number = isinstance(value, int | float)
        assert theirs[name] == (pytest.approx(value, abs=tolerance, rel=tolerance) if is_number else value), name


def assert_same(one: Path, several: Path) -> None:
    figures = [json.loads((folder / "metrics.json").read_text()) for folder in (one, several)]
    if "table1" in several.parts:  # an image's margin is its last bit times T
        margins = [each.pop("validation_margin", 0.0) for each in figures]
        assert margins[1] == pytest.approx(margins[0], abs=1e-4)
    answers = [read_jsonl(folder / "samples" / "evaluation.jsonl") for folder in (one, several)]
    assert_close(figures[1], figures[0], 1e-5)
    assert_close(answers[1], answers[0], 1e-5)
    histories = [history(folder) for folder in (one, several)]
    for line in [line for lines in histories for line in lines]:
        for name in ("train_runtime", "step_time"):
            line.pop(name, None)
    assert_close(histories[1], histories[0], 1e-4)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("alone")


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ROWS)
@pytest.mark.parametrize(("number", "layout"), [(2, "ddp"), (2, "fsdp"), (4, "ddp"), (4, "fsdp")])
def test_tables_do_not_depend_on_the_number_of_processes(
    number: int, layout: str, experiment: str, alone: Path, tmp_path: Path
) -> None:
    """Data, training, drawn answers and pictures, figures; every row of each process from its own data."""
    if not (alone / experiment).exists():
        finish(start("train.py", *asked(experiment, alone)))
    finish(together(number, *asked(experiment, tmp_path), f"distributed={layout}"))
    for row, folder in rows_of(tmp_path, experiment).items():
        assert_same(rows_of(alone, experiment)[row], folder)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["ddp", "fsdp"])
def test_a_signal_ends_all_processes_after_one_update_and_one_process_goes_on(layout: str, tmp_path: Path) -> None:
    quiet = ("training.validate_every=0", "training.learning_rate=1e-5")  # 40 updates carry rounding on, times the rate
    long = (*SMOKE, *quiet, "training.checkpoint_every=1000", "training.steps=40")
    folder = tmp_path / "table2" / "smoke" / "sysdpo_sampling" / "seed=0"
    process = together(2, *long, f"outputs={tmp_path}", f"distributed={layout}")
    lines = folder / "metrics.jsonl"
    while process.poll() is None and not (lines.exists() and lines.read_text().count("\n") >= 3):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=300)
    assert process.returncode != 0
    assert (output + errors).count("interrupted; the same command goes on from the last checkpoint") == 1
    (checkpoint,) = (folder / "checkpoints").glob("step=*.pt")
    stopped = int(re.findall(r"\d+", checkpoint.name)[0])
    assert stopped == lines.read_text().count("\n") < 40
    finish(start("train.py", *long, f"outputs={tmp_path}"))
    whole = tmp_path / "whole"
    finish(start("train.py", *long, f"outputs={whole}"))
    assert_same(whole / "table2" / "smoke" / "sysdpo_sampling" / "seed=0", folder)


def test_a_mistake_that_all_processes_meet_is_said_once(tmp_path: Path) -> None:
    process = together(2, *SMOKE, f"outputs={tmp_path}")
    output, errors = process.communicate(timeout=300)
    assert process.returncode != 0
    said = [line for line in (output + errors).splitlines() if line.startswith("error: ")]
    assert said == [
        "error: distributed=none: 2 processes have been started for this run, and each would do all of the work; set "
        "distributed=ddp or distributed=fsdp."
    ]
    assert not list(tmp_path.rglob("metrics*"))


def test_jobs_are_handed_out_by_one_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    arguments = ["-m", *SMOKE, f"outputs={tmp_path}", "distributed=ddp", "hydra/launcher=joblib"]
    assert train_in_process(arguments, monkeypatch) == 2
    assert "hydra/launcher: one process hands out the jobs, but 2 have been started" in capsys.readouterr().err
    assert not list(tmp_path.rglob("metrics*"))


def test_other_commands_are_one_process_s(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setattr(sys, "argv", ["report.py", f"outputs={tmp_path}"])
    with pytest.raises(SystemExit, match="2"):
        commands.report()
    assert "error: 8 processes have been started, but this command works in one" in capsys.readouterr().err
