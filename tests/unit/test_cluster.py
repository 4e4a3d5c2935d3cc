"""Who the processes of a Slurm step are to torch: values by hand."""

import pytest

from sysdpo.runs.cluster import first_host, rendezvous

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
