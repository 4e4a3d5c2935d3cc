"""A sweep through its command: killed half-way and repeated, W&B, and the launchers' worker processes."""

import csv
import json
import os
import signal
import time
from itertools import product
from pathlib import Path

import pytest
from PIL import Image

from tests.integration.commands import start, train_in_process
from tests.unit.test_wandb_log import stored

GRID = set(product(("0.05", "0.1"), ("2", "4"), ("0", "10")))
TINY = ("scale=smoke", "training.steps=1", "training.validate_every=0")


def summary(folder: Path) -> list[dict[str, str]]:
    with (folder / "summary.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_killed_grid_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`make sweep-table2 SCALE=smoke SWEEP=grid`: eight runs in one W&B group, eight rows, a heat map."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    arguments = (*TINY, f"outputs={tmp_path}", "sweep=grid", "seed=0")
    table = tmp_path / "table2" / "smoke"
    folder = table / "sweeps" / "grid"
    process = start("train.py", *arguments)
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None and len(list(folder.glob("*/metrics.json"))) < 4:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert "grid/beta=0.05,k=2,diversity_penalty=0,seed=0: train:" in errors  # a bar says whose it is
    files = [p / name for p in folder.glob("*/metrics.json") for name in ("../metrics.json", "../metrics.jsonl")]
    before = {file.resolve(): file.resolve().stat().st_mtime_ns for file in files}
    assert 8 <= len(before) < 16
    data = [*(table / "data").glob("*/card.json"), *(table / "data").glob("untrained-*.jsonl")]
    assert len(data) == 2  # made once, in the folder that the main table uses too
    before |= {file: file.stat().st_mtime_ns for file in data}

    assert train_in_process(list(arguments), monkeypatch) == 0
    assert {file: file.stat().st_mtime_ns for file in before} == before
    kept = sorted(
        path.name.split("-")[0] for path in (table / "data").iterdir() if path.suffix not in (".lock", ".sha256")
    )
    assert kept == ["untrained", "verifiable"]

    rows = summary(folder)
    assert {(r["beta"], r["sampler.k"], r["sampler.draw.diversity_penalty"]) for r in rows} == GRID
    assert len(rows) == 8
    for row in rows:
        run = folder / row["job"]
        config = (run / "config.yaml").read_text()
        assert f"beta: {row['beta']}\n" in config
        measured = json.loads((run / "metrics.json").read_text())
        for metric in ("wr_chosen", "wr_prompted"):
            assert float(row[metric]) == measured[metric]["value"]
        assert (row["status"], row["method"], row["seed"]) == ("finished", "sysdpo_sampling", "0")
    for metric in ("wr_chosen", "wr_prompted"):
        with Image.open(folder / "figures" / f"{metric}.png") as picture:
            assert min(picture.size) > 200
        assert (folder / "figures" / f"{metric}.svg").exists()

    runs = stored(tmp_path)
    ids = {path.name.split("-")[3] for path in tmp_path.glob("wandb/offline-run-*")}
    assert set(runs) == {f"grid/{row['job']}" for row in rows}
    assert ids == {(folder / row["job"] / "run_id").read_text().strip() for row in rows}
    assert len(ids) == 8
    assert {run["group"] for run in runs.values()} == {"table2/smoke/sweeps/grid"}
    assert {tuple(run["tags"]) for run in runs.values()} == {("sysdpo_sampling", "smoke")}
    for run in runs.values():  # also that of the job that was killed while it told W&B of its results
        assert {"model", "dataset", "run_table"} <= {kind for kind, _ in run["artifacts"]}
        assert run["exit"] == 0
    logged = [line for line in runs[f"grid/{rows[0]['job']}"]["history"] if "components/psi1/margin" in line]
    assert [line["step"] for line in logged] == [1]


FOREVER = """
import os, time
from pathlib import Path
from sysdpo.cli.command import command

@command
def main(config):
    while True:
        with (Path(config.outputs) / f"{os.getpid()}.alive").open("a") as file:
            file.write(".")
        time.sleep(0.02)

main()
"""


def test_terminated_the_workers_end_too(tmp_path: Path) -> None:
    """SIGTERM, as a scheduler or `timeout` sends it, to the command alone: nobody goes on behind its back."""
    script = tmp_path / "forever.py"
    script.write_text(FOREVER)
    arguments = ["-m", "scale=smoke", f"outputs={tmp_path}", "method=prompted,sysdpo_direct"]
    process = start(str(script), *arguments, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline and process.poll() is None and len(list(tmp_path.glob("*.alive"))) < 2:
        time.sleep(0.02)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert errors.splitlines() == ["interrupted; the same command goes on from the last checkpoint"]
    written = [path.stat().st_size for path in sorted(tmp_path.glob("*.alive"))]
    time.sleep(0.5)
    assert [path.stat().st_size for path in sorted(tmp_path.glob("*.alive"))] == written
    assert len(written) == 2


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_jobs_in_worker_processes(launcher: str, tmp_path: Path) -> None:
    """Two workers at once: one set of data, two runs, and a job that fails stops nobody."""
    arguments = [*TINY, "logger=none", f"outputs={tmp_path}", "beta=0.1,-1,0.2", f"hydra/launcher={launcher}"]
    arguments += ["hydra.launcher.n_jobs=2"] if launcher == "joblib" else []
    process = start("train.py", "-m", *arguments)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 2, errors
    folder = tmp_path / "table2" / "smoke" / "sweeps" / "beta"
    log = folder / "logs" / "beta=-1,seed=0.log"
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: training.beta=-1")
    assert f"(1 of 3 jobs; log: {log})" in line
    assert "SettingError" in log.read_text()
    statuses = {row["beta"]: row["status"] for row in summary(folder)}
    assert statuses == {"0.1": "finished", "-1": "failed", "0.2": "finished"}
    assert len(list(folder.glob("*/metrics.json"))) == 2
    data = folder.parents[1] / "data"
    assert len(list(data.glob("*/card.json"))) == len(list(data.glob("untrained-*.jsonl"))) == 1
