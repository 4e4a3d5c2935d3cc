"""A real Slurm of two nodes on one machine: munged, slurmctld and two slurmd, from Debian's slurm-wlm and munge."""

import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")

NODES = ("127.0.0.1", "127.0.0.2")
"""Names that are addresses: torch's processes can reach each other by them."""

CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/controller.pid
SlurmdPidFile={folder}/daemon-%n.pid
SlurmctldLogFile={folder}/controller.log
SlurmdLogFile={folder}/daemon-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SchedulerType=sched/builtin
SchedulerParameters=batch_sched_delay=0,sched_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
KillWait=5
NodeName=127.0.0.[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{last}] CPUs=2 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:4
"""


def missing() -> str | None:
    """Why there can be no Slurm here; None if there can."""
    search = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    absent = [name for name in PROGRAMS if shutil.which(name, path=search) is None]
    if absent:
        return f"no {', '.join(absent)}: apt-get install slurm-wlm munge"
    return None if os.getuid() == 0 else "slurmd wants root"


class Slurm:
    """Started in `folder`, whose path must be short enough for a socket; `environment` is what its users need."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.newest = folder, 0  # the number of the last job that somebody asked for
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
        (folder / "munge").mkdir(mode=0o700)
        (folder / "state").mkdir()
        key = folder / "munge" / "key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        first = free_ports(3)
        ports = {"first": first, "last": first + 1, "port": first + 2}
        text = CONF.format(folder=folder, host=socket.gethostname().split(".")[0], user=getpass.getuser(), **ports)
        (folder / "slurm.conf").write_text(text)
        options = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        self._daemons = [
            self._start("munged", "-F", "--force", *(f"--{k}={folder}/munge/{v}" for k, v in options.items()))
        ]
        self._until(lambda: (folder / "munge" / "socket").exists(), "munged")
        self._daemons.append(self._start("slurmctld", "-D"))
        self._daemons += [self._start("slurmd", "-D", "-N", name) for name in NODES]
        self._until(lambda: self.run("sinfo", "-h", "-o", "%D %t").split() == ["2", "idle"], "two idle nodes")

    def run(self, *command: str) -> str:
        """A command's standard output."""
        done = subprocess.run(
            command, env={**os.environ, **self.environment}, capture_output=True, text=True, timeout=120, check=False
        )
        return done.stdout

    def job(self, number: str) -> dict[str, str]:
        """What `scontrol show job` says of it, of the fields that are single words."""
        words = self.run("scontrol", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def stop(self) -> None:
        self.run("scancel", "--user", getpass.getuser(), "--signal=KILL")
        self.run("scontrol", "shutdown")
        time.sleep(1)
        for daemon in reversed(self._daemons):
            daemon.send_signal(signal.SIGKILL)
            daemon.wait()

    def _start(self, *command: str) -> "subprocess.Popen[bytes]":
        environment = {**os.environ, **self.environment}
        program = shutil.which(command[0], path=environment["PATH"])
        assert program is not None
        with (self.folder / f"{command[0]}.out").open("ab") as log:
            return subprocess.Popen([program, *command[1:]], env=environment, stdout=log, stderr=log)

    def _until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + 30
        while not condition():
            if time.monotonic() > deadline:
                logs = [path.read_text()[-500:] for path in self.folder.glob("*.out")]
                raise AssertionError(f"Slurm: no {what} after 30 s: {logs}")
            time.sleep(0.1)


def free_ports(count: int) -> int:
    """The first of that many neighbouring ports that nobody listens at."""
    for first in range(20_000, 30_000, count):
        if all(is_free(port) for port in range(first, first + count)):
            return first
    raise AssertionError("no free ports")


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
