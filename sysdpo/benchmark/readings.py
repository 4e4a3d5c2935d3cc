"""Seconds and bytes of real work, on GPUs and on a CPU."""

import ctypes
import gc
import time
from collections.abc import Callable
from typing import Any

import torch

from sysdpo.runs.resident import forget_fullest, fullest, resident


class Memory:
    """Bytes in use: on GPUs what PyTorch's allocator has given out, on the fullest of them; on a CPU the process's
    resident set beyond that at the start, in which the allocator's gaps count too. None where the system hides it."""

    def __init__(self, on_gpu: bool) -> None:
        self.gpus = range(torch.cuda.device_count() if on_gpu else 0)
        self.start = resident() or 0
        self.reset()

    def now(self) -> int | None:
        return self._bytes(torch.cuda.memory_allocated, resident)

    def peak(self) -> int | None:
        """At the fullest moment since the last reset."""
        return self._bytes(torch.cuda.max_memory_allocated, fullest)

    def reset(self) -> None:
        """Forget the fullest moment, and give back what is free."""
        gc.collect()
        for device in self.gpus:
            torch.cuda.synchronize(device)  # CUDA has no statistics before its first use
            torch.cuda.reset_peak_memory_stats(device)
        if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # glibc keeps freed memory, as we set it to
            trim(0)
        forget_fullest()

    def timed(self, work: Callable[[], Any]) -> tuple[Any, float]:
        """What `work` returns, and its seconds; the fullest moment is that of the work."""
        self.reset()
        started = time.perf_counter()
        result = work()
        for device in self.gpus:
            torch.cuda.synchronize(device)
        return result, time.perf_counter() - started

    def _bytes(self, allocated: Callable[[int], int], held: Callable[[], int | None]) -> int | None:
        if self.gpus:
            return max(map(allocated, self.gpus))
        known = held()
        return None if known is None else known - self.start
