"""Jobs of submitit: its local executor, and a real Slurm of two nodes where one can be had."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.integration.commands import ROOT, start
from tests.integration.slurm import NODES, Slurm, missing
from tests.integration.test_faults import waiting_for as wait

pytestmark = pytest.mark.timeout(3000)

SMALL = ("scale=smoke", "training.validate_every=0", "training.checkpoint_every=1000", "training.steps=100")
ROW = ("method=sysdpo_psi1", "logger=none")


waiting_for = partial(wait, seconds=900)  # on a machine that others use


def train(outputs: Path, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
    return start("train.py", "-m", *SMALL, *ROW, f"outputs={outputs}", *arguments, OMP_NUM_THREADS="1", **environment)


def row(outputs: Path) -> Path:
    return outputs / "table2" / "smoke" / "sysdpo_psi1" / "seed=0"


def updates(outputs: Path) -> list[dict[str, Any]]:
    """The history without the clock."""
    file = row(outputs) / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def begun(outputs: Path) -> Any:
    return (row(outputs) / "metrics.jsonl").exists() and len(updates(outputs)) >= 2


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    outputs = tmp_path_factory.mktemp("undisturbed")
    process = train(outputs)
    _, errors = process.communicate(timeout=1500)
    assert process.returncode == 0, errors
    return updates(outputs)


def tasks(outputs: Path) -> list[int]:
    """The processes that carry out submitit's jobs of this folder."""
    found = []
    for entry in Path("/proc").iterdir():
        command = entry / "cmdline"
        try:
            if entry.name.isdigit() and (words := command.read_bytes().split(b"\0"))[1:]:
                is_task = b"submitit.core._submit" in words and str(outputs).encode() in command.read_bytes()
                found += [int(entry.name)] if is_task and words[0].split(b"/")[-1].startswith(b"python") else []
        except OSError:
            continue
    return found


LOCAL = "hydra/launcher=submitit_local"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_a_job_told_to_stop_keeps_a_checkpoint_is_started_anew_and_goes_on(
    tmp_path: Path, undisturbed: list[dict[str, Any]], number: signal.Signals
) -> None:
    process = train(tmp_path, LOCAL)
    waiting_for(lambda: begun(tmp_path))
    (task,) = tasks(tmp_path)
    os.kill(task, number)
    (kept,) = waiting_for(lambda: list((row(tmp_path) / "checkpoints").glob("step=*.pt")))
    assert 0 < int(kept.stem.removeprefix("step=")) < 100  # none was due before the last update
    _, errors = process.communicate(timeout=1500)
    assert process.returncode == 0, errors
    assert not Path(f"/proc/{task}").exists()
    assert (row(tmp_path) / "metrics.json").exists()
    assert updates(tmp_path) == undisturbed


@pytest.mark.slow
def test_terminated_a_command_ends_its_local_jobs_which_keep_a_checkpoint(tmp_path: Path) -> None:
    process = train(tmp_path, LOCAL)
    waiting_for(lambda: begun(tmp_path))
    (task,) = tasks(tmp_path)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in errors
    assert not Path(f"/proc/{task}").exists()
    assert not tasks(tmp_path)
    assert len(list((row(tmp_path) / "checkpoints").glob("step=*.pt"))) == 1


@pytest.mark.slow
def test_a_job_that_was_killed_is_one_line_and_hides_no_other(tmp_path: Path) -> None:
    arguments = ["method=sysdpo_psi1,prompted", "logger=none", f"outputs={tmp_path}", LOCAL]
    process = start("train.py", "-m", *SMALL, *arguments, OMP_NUM_THREADS="1")
    waiting_for(lambda: begun(tmp_path))
    table = tmp_path / "table2" / "smoke"
    waiting_for(lambda: (table / "prompted" / "seed=0" / "metrics.json").exists())
    (task,) = waiting_for(lambda: len(found := tasks(tmp_path)) == 1 and found)
    os.kill(task, signal.SIGKILL)
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 2
    assert "Traceback" not in errors
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert "ended without a result" in line
    assert "1 of 2 jobs" in line


def assert_close(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """Another number of processes adds up in another order, and AdamW carries the rounding through 100 updates."""
    assert len(found) == len(expected)
    for line, other in zip(found, expected, strict=True):
        assert line == pytest.approx(other, abs=1e-4, rel=1e-4)


@pytest.mark.slow
def test_tasks_of_one_job_train_one_row_and_stop_and_go_on_together(
    tmp_path: Path, undisturbed: list[dict[str, Any]]
) -> None:
    process = train(tmp_path, LOCAL, "hydra.launcher.tasks_per_node=2", "distributed=ddp")
    waiting_for(lambda: begun(tmp_path))
    first, second = tasks(tmp_path)
    os.kill(second, signal.SIGUSR1)  # one of them: the other stops after the same update
    waiting_for(lambda: list((row(tmp_path) / "checkpoints").glob("step=*.pt")))
    _, errors = process.communicate(timeout=1500)
    assert process.returncode == 0, errors
    assert not any(Path(f"/proc/{task}").exists() for task in (first, second))
    assert (row(tmp_path) / "metrics.json").exists()
    assert_close(updates(tmp_path), undisturbed)


# ---- a real Slurm --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    if (reason := missing()) is not None:
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder:
        cluster = Slurm(Path(folder))
        try:
            yield cluster
        finally:
            cluster.stop()


QUEUE = ("hydra/launcher=slurm", "hydra.launcher.timeout_min=20")


def submitted(slurm: Slurm) -> str:
    """The number of the job that runs and was not there before."""

    def newer() -> list[int]:
        running = slurm.run("squeue", "-h", "-t", "RUNNING", "-o", "%A").split()
        return [number for number in map(int, running) if number > slurm.newest]

    (slurm.newest,) = waiting_for(newer)
    return str(slurm.newest)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["TERM", "USR1", "USR2"])
def test_slurm_requeues_a_job_that_was_told_to_stop_and_it_goes_on(
    slurm: Slurm, tmp_path: Path, undisturbed: list[dict[str, Any]], name: str
) -> None:
    process = train(tmp_path, *QUEUE, **slurm.environment)
    number = submitted(slurm)
    waiting_for(lambda: begun(tmp_path))
    slurm.run("scancel", f"--signal={name}", number)
    waiting_for(lambda: list((row(tmp_path) / "checkpoints").glob("step=*.pt")))
    waiting_for(lambda: slurm.job(number)["Restarts"] == "1")
    _, errors = process.communicate(timeout=1500)
    assert process.returncode == 0, errors
    assert updates(tmp_path) == undisturbed


@pytest.mark.slow
def test_a_job_that_was_cancelled_stays_so_and_the_command_says_it(slurm: Slurm, tmp_path: Path) -> None:
    process = train(tmp_path, *QUEUE, **slurm.environment)
    number = submitted(slurm)
    waiting_for(lambda: begun(tmp_path))
    slurm.run("scancel", number)
    waiting_for(lambda: slurm.job(number)["JobState"] == "CANCELLED")
    waiting_for(lambda: not tasks(tmp_path))
    assert slurm.job(number)["Restarts"] == "0"
    assert list((row(tmp_path) / "checkpoints").glob("step=*.pt"))
    process.send_signal(signal.SIGTERM)  # without accounting, nobody tells submitit of the end
    _, errors = process.communicate(timeout=60)
    assert "Traceback" not in errors


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["ddp", "fsdp"])
def test_a_job_of_two_nodes_trains_one_row_is_requeued_and_goes_on(
    slurm: Slurm, tmp_path: Path, undisturbed: list[dict[str, Any]], layout: str
) -> None:
    process = train(tmp_path, *QUEUE, "hydra.launcher.nodes=2", f"distributed={layout}", **slurm.environment)
    number = submitted(slurm)
    waiting_for(lambda: begun(tmp_path))
    assert slurm.job(number)["NumNodes"] == "2"
    slurm.run("scancel", "--signal=USR1", number)
    waiting_for(lambda: slurm.job(number)["Restarts"] == "1")
    _, errors = process.communicate(timeout=1500)
    assert process.returncode == 0, errors
    assert_close(updates(tmp_path), undisturbed)


GATHER = """
import os
from sysdpo.cli.command import prepare_environment
prepare_environment()
import torch.distributed as dist
dist.init_process_group("gloo")
found = [None] * dist.get_world_size()
dist.all_gather_object(found, (dist.get_rank(), int(os.environ["LOCAL_RANK"]), os.environ["SLURMD_NODENAME"]))
if dist.get_rank() == 0:
    print(sorted(found))
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_the_tasks_of_several_nodes_find_each_other(slurm: Slurm, tmp_path: Path) -> None:
    script = tmp_path / "gather.py"
    script.write_text(GATHER)
    environment = {**os.environ, **slurm.environment, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["srun", "--nodes=2", "--ntasks-per-node=2", sys.executable, str(script)],
        env=environment, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, second = NODES
    expected = [(0, 0, first), (1, 1, first), (2, 0, second), (3, 1, second)]
    assert done.stdout.strip() == str(expected)
