"""A cluster: who the processes of a Slurm step are, and what a job does that is about to lose its place.

A task of `srun`, or of submitit (`hydra/launcher=slurm`), finds in torch's own variables what torchrun would have put
there. A job of submitit that is told to stop keeps its checkpoint, goes back into the queue and goes on from there.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sysdpo.errors import SettingError
from sysdpo.runs.stopping import Terminated, stoppable

PORTS = range(15_000, 30_000)
"""Below those that systems hand out by themselves."""
PATIENCE = 60.0
"""Seconds in which rank 0 requeues a job before its other ranks end."""


def rendezvous(environment: Mapping[str, str]) -> dict[str, str]:
    """Torch's variables for this task of a step; {} where torchrun has set them, or the task is alone.

    The step's own variables count, not the job's: a shell in an allocation of eight tasks is one process.
    """
    if "RANK" in environment:
        return {}
    if "SUBMITIT_LOCAL_NTASKS" in environment and environment.get("SUBMITIT_EXECUTOR") == "local":
        tasks, nodes, host = environment["SUBMITIT_LOCAL_NTASKS"], "1", "127.0.0.1"
        rank, local = environment["SUBMITIT_LOCAL_GLOBALID"], environment["SUBMITIT_LOCAL_LOCALID"]
        key = int(environment["SUBMITIT_LOCAL_JOB_ID"])
    elif "SLURM_STEP_NUM_TASKS" in environment:
        tasks, nodes = environment["SLURM_STEP_NUM_TASKS"], environment["SLURM_STEP_NUM_NODES"]
        rank, local = environment["SLURM_PROCID"], environment["SLURM_LOCALID"]
        host = first_host(environment["SLURM_STEP_NODELIST"])
        key = int(environment["SLURM_JOB_ID"]) + int(environment["SLURM_STEP_ID"])
    else:
        return {}
    if int(tasks) == 1:
        return {}
    return {
        "RANK": rank,
        "LOCAL_RANK": local,
        "WORLD_SIZE": tasks,
        "LOCAL_WORLD_SIZE": str(int(tasks) // int(nodes)),
        "MASTER_ADDR": host,
        "MASTER_PORT": str(PORTS[key % len(PORTS)]),
    }


def first_host(nodes: str) -> str:
    """`gpu[07-09,12],login1` -> `gpu07`: where rank 0 runs."""
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", nodes).split(",")[0]


def is_queued() -> bool:
    """Whether this process is a task of a job that submitit started."""
    return "SUBMITIT_EXECUTOR" in os.environ


@contextmanager
def requeued(environment: Mapping[str, str] = os.environ) -> Iterator[None]:
    """A job of submitit's: SIGTERM, SIGUSR1 and submitit's own signal let it stop where it can go on, and requeue it.

    SIGINT, and a signal that Slurm sends because somebody cancelled the job, end it for good.

    Raises:
        SettingError: it may not be requeued again.
    """
    import submitit

    job = submitit.JobEnvironment()
    requeue: Any = signal.getsignal(signal.Signals[f"SIG{job.USR_SIG}"])
    try:
        with stoppable():
            yield
    except Terminated as stop:
        sys.stdout.flush()
        sys.stderr.flush()
        if stop.number == signal.SIGINT or _is_ending(environment):
            sys.exit(stop.status)
        if job.global_rank:  # rank 0 does it for all; to go before it has would end the step on some clusters
            time.sleep(PATIENCE if environment["SUBMITIT_EXECUTOR"] == "slurm" else 0.0)
            sys.exit(stop.status)
        try:
            requeue(stop.number, None)  # submitit's handler: it writes the submission anew, requeues and exits
        except Exception as error:
            raise SettingError(
                f"the job was told to stop and not put back into the queue ({error}); hydra.launcher.max_num_timeout "
                "says how often it may run out of time. The same command goes on from its checkpoint."
            ) from error


def _is_ending(environment: Mapping[str, str]) -> bool:
    """Whether Slurm has this job down as anything but running: cancelled, out of time, failed."""
    job = environment.get("SLURM_JOB_ID")
    if job is None or shutil.which("scontrol") is None:
        return False
    asked = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True, timeout=60, check=False)
    state = re.search(r"JobState=(\w+)", asked.stdout)
    return state is not None and state[1] not in ("RUNNING", "PREEMPTED", "SUSPENDED")
