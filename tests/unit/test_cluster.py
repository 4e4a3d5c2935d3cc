"""Who the processes of a Slurm step are to torch, values by hand; and who is requeued when told to stop."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from sysdpo.errors import SettingError
from sysdpo.runs.cluster import first_host, rendezvous, requeued

STEP = {
    "SLURM_JOB_ID": "15007",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_PROCID": "11",
    "SLURM_LOCALID": "3",
}


def test_a_task_of_a_step_is_a_rank_of_torch() -> None:
    assert rendezvous(STEP) == {
        "RANK": "11",
        "LOCAL_RANK": "3",
        "WORLD_SIZE": "16",
        "LOCAL_WORLD_SIZE": "8",
        "MASTER_ADDR": "gpu07",
        "MASTER_PORT": "15007",  # 15000 + 15007 % 15000
    }


def test_side_by_side_steps_and_jobs_meet_at_ports_of_their_own() -> None:
    ports = {
        rendezvous({**STEP, "SLURM_JOB_ID": job, "SLURM_STEP_ID": step})["MASTER_PORT"]
        for job, step in (("15007", "0"), ("15007", "1"), ("15009", "0"))
    }
    assert ports == {"15007", "15008", "15009"}


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {**STEP, "SLURM_STEP_NUM_TASKS": "1"},
        {**STEP, "RANK": "0", "WORLD_SIZE": "2"},  # torchrun, started once a node by srun
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"},  # a shell in an allocation: no step of eight
    ],
)
def test_a_process_alone_or_under_torchrun_is_left_as_it_is(environment: dict[str, str]) -> None:
    assert rendezvous(environment) == {}


def test_tasks_of_the_local_executor_meet_on_this_machine() -> None:
    environment = {
        "SUBMITIT_EXECUTOR": "local",
        "SUBMITIT_LOCAL_NTASKS": "2",
        "SUBMITIT_LOCAL_GLOBALID": "1",
        "SUBMITIT_LOCAL_LOCALID": "1",
        "SUBMITIT_LOCAL_JOB_ID": "31000",
    }
    found = rendezvous({**environment, **STEP})  # itself started in a step
    assert found == {
        "RANK": "1",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "16000",
    }


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu07", "gpu07"),
        ("gpu[07-09,12],login1", "gpu07"),
        ("login1,gpu[07-09]", "login1"),
        ("rack[2-3]-node[1,4].site", "rack2-node1.site"),
    ],
)
def test_the_first_host_of_a_node_list(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


# ---- told to stop --------------------------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Signals with which submitit's own handler, which requeues, was called; inside a job of its local executor."""
    local = {"LOCAL_JOB_ID": "7", "LOCAL_NTASKS": "2", "LOCAL_GLOBALID": "0", "EXECUTOR": "local"}
    for name, value in local.items():
        monkeypatch.setenv(f"SUBMITIT_{name}", value)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    calls: list[int] = []

    def requeue(number: int, _: object) -> None:
        calls.append(number)
        raise SystemExit(144)

    before = signal.signal(signal.SIGUSR2, requeue)
    yield calls
    signal.signal(signal.SIGUSR2, before)


def status(number: signal.Signals) -> object:
    """The exit status of a job that gets the signal."""
    with pytest.raises(SystemExit) as ended, requeued():
        os.kill(os.getpid(), number)
    return ended.value.code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_a_job_told_to_stop_is_requeued_by_submitit(asked: list[int], number: signal.Signals) -> None:
    assert status(number) == 144
    assert asked == [number]


def test_an_interrupted_job_ends_for_good(asked: list[int]) -> None:
    assert status(signal.SIGINT) == 130
    assert asked == []


def test_the_first_rank_requeues_for_all(asked: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUBMITIT_LOCAL_GLOBALID", "1")
    assert status(signal.SIGUSR2) == 128 + signal.SIGUSR2
    assert asked == []


@pytest.mark.parametrize(("state", "requeues"), [("RUNNING", 1), ("CANCELLED", 0), ("TIMEOUT", 0)])
def test_a_job_that_slurm_has_given_up_stays_so(
    asked: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, requeues: int
) -> None:
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f'#!/bin/sh\n[ "$*" = "show job 12" ] && echo "   JobState={state} Reason=None"\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    assert status(signal.SIGTERM) == (144 if requeues else 143)
    assert len(asked) == requeues


def test_a_job_whose_time_was_up_too_often_says_so(asked: list[int]) -> None:
    def refuse(number: int, _: object) -> None:
        raise RuntimeError("timed-out too many times")

    signal.signal(signal.SIGUSR2, refuse)
    with pytest.raises(SettingError, match=r"too many times.*max_num_timeout"), requeued():
        os.kill(os.getpid(), signal.SIGUSR2)
