"""Seconds and bytes of real work, on GPUs and on a CPU."""

import ctypes
import gc
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from sysdpo.system import CompoundSystem

T = TypeVar("T")

FORGET = Path("/proc/self/clear_refs")
"""Where Linux is told to forget the largest resident set so far, by writing 5."""


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """What `work` returns, and its seconds."""
    _wait()
    started = time.perf_counter()
    result = work()
    _wait()
    return result, time.perf_counter() - started


def _gpus() -> range:
    return range(torch.cuda.device_count() if torch.cuda.is_available() else 0)


def _wait() -> None:
    for device in _gpus():
        torch.cuda.synchronize(device)


class Memory:
    """Bytes in use: on GPUs what PyTorch's allocator has given out, on the fullest of them; on a CPU the process's
    resident set beyond that at the start, in which the allocator's gaps count too. None where the system hides it."""

    def __init__(self) -> None:
        self.on_gpu = False
        self.start = _resident("VmRSS") or 0
        self.reset()

    def of(self, system: CompoundSystem) -> None:
        """Look where the system is."""
        self.on_gpu = system.device.type == "cuda"

    def now(self) -> int | None:
        return max(map(torch.cuda.memory_allocated, _gpus())) if self.on_gpu else self._beyond("VmRSS")

    def peak(self) -> int | None:
        """At the fullest moment since the last reset."""
        if self.on_gpu:
            return max(map(torch.cuda.max_memory_allocated, _gpus()))
        return self._beyond("VmHWM") if os.access(FORGET, os.W_OK) else None

    def reset(self) -> None:
        """Forget the fullest moment, and give back what is free."""
        gc.collect()
        _wait()  # CUDA has no statistics before its first use
        for device in _gpus():
            torch.cuda.reset_peak_memory_stats(device)
        if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # glibc keeps freed memory, as we set it to
            trim(0)
        if os.access(FORGET, os.W_OK):
            FORGET.write_text("5")

    def _beyond(self, field: str) -> int | None:
        resident = _resident(field)
        return None if resident is None else resident - self.start


def _resident(field: str) -> int | None:
    """Bytes: VmRSS is the resident set, VmHWM the largest it has been."""
    path = Path("/proc/self/status")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field)), None)
