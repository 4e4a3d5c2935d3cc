"""Being asked to stop: Ctrl-C, SIGTERM (a scheduler, `kill`), SIGUSR1 and SIGUSR2 (Slurm, before a job's time is up).

Between two updates a run can be left as it is and gone on with exactly; in the middle of one it cannot. Training
therefore notes the signal, ends its update, keeps a checkpoint and only then stops. Everything else stops at once: what
takes long outside training keeps its state as it goes.
"""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class Terminated(KeyboardInterrupt):
    """A signal that ends a command; `number` is the signal's, the exit status 128 more."""

    def __init__(self, number: int = signal.SIGTERM) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = int(number)

    @property
    def status(self) -> int:
        return 128 + self.number


@contextmanager
def _handling(handler: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    """The signals go to `handler`; nothing changes in a thread, which Python gives no signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, signal.SIG_DFL if old is None else old)


@contextmanager
def stoppable(first: Callable[[], None] | None = None) -> Iterator[None]:
    """Inside, each of the signals raises `Terminated`, once `first` has been done."""
    stopping = False

    def stop(number: int, _: FrameType | None) -> None:
        nonlocal stopping
        if stopping:  # a scheduler may send its signal more than once
            return
        stopping = True
        if first is not None:
            first()
        raise Terminated(number)

    with _handling(stop):
        yield


class Request:
    """Whether a signal has come."""

    def __init__(self) -> None:
        self.number: int | None = None

    def obey(self) -> None:
        """Raise `Terminated` if one has."""
        if self.number is not None:
            raise Terminated(self.number)


@contextmanager
def between_updates() -> Iterator[Request]:
    """Inside, the first signal is noted, to be obeyed where the state is whole; a second one stops at once."""
    request = Request()

    def note(number: int, _: FrameType | None) -> None:
        if request.number is not None and "TORCHELASTIC_RUN_ID" not in os.environ:  # torchrun repeats what it is sent
            raise Terminated(number)
        request.number = number

    with _handling(note):
        yield request


# ---- workers -----------------------------------------------------------------------------------------------------


def is_worker() -> bool:
    """Whether this is one of joblib's processes."""
    return multiprocessing.current_process().name.startswith("LokyProcess")


@contextmanager
def as_worker() -> Iterator[None]:
    """A job in one of joblib's processes: signals stop it, the end of the process that started it does, and a worker
    that was stopped takes no further job."""
    parent, done = os.getppid(), threading.Event()

    def watch() -> None:
        while not done.wait(1.0):
            if os.getppid() != parent:
                os.kill(os.getpid(), signal.SIGTERM)
                return

    threading.Thread(target=watch, daemon=True).start()
    try:
        with stoppable():
            yield
    except Terminated as stop:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(stop.status)
    finally:
        done.set()


def end_workers(patience: float = 25.0) -> None:
    """Ask the processes that this command started (joblib's, submitit's local ones) to stop, which lets them keep a
    checkpoint, and end those that do not in time (seconds). Jobs in a cluster's queue stay there."""
    loky = sys.modules.get("joblib.externals.loky.reusable_executor")
    executor = getattr(loky, "_executor", None)
    workers = list((getattr(executor, "_processes", None) or {}).values())
    if (manager := getattr(executor, "_executor_manager_thread", None)) is not None:
        manager.processes = {}  # at the first worker's end it would kill the others, before they have their checkpoint
    asked = {worker.pid: signal.SIGTERM for worker in workers}
    asked |= dict.fromkeys(_local_tasks(os.getpid()), signal.SIGINT)  # which submitit's executor does not start anew
    for process, number in asked.items():
        _send(process, number)
    deadline = time.monotonic() + patience

    def left() -> list[int]:
        ended = {worker.pid for worker in workers if not worker.is_alive()}  # asking takes note of those that ended
        return [process for process in asked if process not in ended and _send(process, 0)]

    while time.monotonic() < deadline and left():
        time.sleep(0.05)
    for process in left():
        _send(process, signal.SIGKILL)


def _local_tasks(process: int) -> list[int]:
    """The tasks that submitit's local executor runs for a process, where Linux tells them."""
    return [
        task
        for controller in _children(process)
        if b"submitit.local._local" in _command(controller)
        for task in _children(controller)
    ]


def _children(process: int) -> list[int]:
    file = Path(f"/proc/{process}/task/{process}/children")
    return [int(number) for number in file.read_text().split()] if file.exists() else []


def _command(process: int) -> bytes:
    file = Path(f"/proc/{process}/cmdline")
    return file.read_bytes() if file.exists() else b""


def _send(process: int, number: int) -> bool:
    """Whether there was such a process."""
    try:
        os.kill(process, number)
    except OSError:
        return False
    return True
