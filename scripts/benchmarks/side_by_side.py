"""Ways to do one thing, turn by turn, each in a process of its own: CPU seconds, peak memory, and their ratios.

A part of the benchmark is a script that names its `VARIANTS`: each is made ready once, and then does the same work
whenever it is asked. `measure` starts one process a variant (in another environment where the variant needs one) and
lets them work in turns, so that what else the machine does falls on all of them. On a CPU the cost is the process's own
CPU time, on a GPU the time until it is done; memory is what a process holds at its fullest beyond what it held when it
was ready.
"""

import ctypes
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

Work = Callable[[], Mapping[str, Any]]
"""One turn: does the work, and returns what its result is compared by (a loss, tokens)."""
Options = Mapping[str, Any]
FORGET = Path("/proc/self/clear_refs")
"""Where Linux is told to forget the largest resident set so far, by writing 5."""
STATUS = Path("/proc/self/status")


# ---- the process of one variant --------------------------------------------------------------------------------------


def serve(variants: Mapping[str, Callable[[Options], Work]]) -> None:
    """Be the process that `measure` asks for: `script.py VARIANT OPTIONS`, then a line on standard input a turn."""
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever a library prints is no answer
    options = json.loads(sys.argv[2])
    work = variants[sys.argv[1]](options)
    on_gpu = str(options.get("device")).startswith("cuda")
    ready = {"bytes": _forget(on_gpu)}
    print(json.dumps(ready), file=answers, flush=True)
    for _ in sys.stdin:
        before = time.perf_counter() if on_gpu else time.process_time()
        result = dict(work())
        if on_gpu:
            _torch().cuda.synchronize()
        seconds = (time.perf_counter() if on_gpu else time.process_time()) - before
        told = {"seconds": seconds, "peak": _peak(on_gpu) - ready["bytes"], **result}
        print(json.dumps(told), file=answers, flush=True)


def _torch() -> Any:
    import torch

    return torch


def _forget(on_gpu: bool) -> int:
    """Bytes held now; the fullest moment is counted from here."""
    gc.collect()
    if on_gpu:
        _torch().cuda.reset_peak_memory_stats()
        return int(_torch().cuda.memory_allocated())
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
    if os.access(FORGET, os.W_OK):
        FORGET.write_text("5")
    return _resident("VmRSS")


def _peak(on_gpu: bool) -> int:
    return int(_torch().cuda.max_memory_allocated()) if on_gpu else _resident("VmHWM")


def _resident(field: str) -> int:
    lines = STATUS.read_text(encoding="utf-8").splitlines() if STATUS.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field)), 0)


# ---- the process that compares ---------------------------------------------------------------------------------------


class _Process:
    def __init__(self, script: Path, variant: str, options: Options, path: Path | None) -> None:
        environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
        if path is not None:  # another version of a library, before the usual one
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(path), os.environ.get("PYTHONPATH")]))
        self.variant = variant
        self.process = subprocess.Popen(
            [sys.executable, str(script), variant, json.dumps(dict(options))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.ready = self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.variant}: stopped with status {self.process.wait()}; its error is above")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def turn(self) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def measure(
    script: str, variants: Sequence[str], options: Options, rounds: int, paths: Mapping[str, Path] | None = None
) -> dict[str, list[dict[str, Any]]]:
    """`rounds` turns of each variant after one that warms up: {variant: [first turn, …, last turn]}."""
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in variants}
    with ExitStack() as stack:
        processes = []
        for name in variants:
            processes.append(_Process(Path(script), name, options, (paths or {}).get(name)))
            stack.callback(processes[-1].close)
        for round_ in range(rounds + 1):
            for process in processes:
                told = process.turn()
                turns[process.variant].append({**told, "held": process.ready["bytes"]})
                figures = f"{told['seconds']:.2f} s, {told['peak'] / 2**20:.0f} MiB"
                print(f"round {round_}: {process.variant}: {figures}", file=sys.stderr, flush=True)
    return turns


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Of pairs that were measured one after the other: the median, the smallest and the largest ratio."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return {"ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}


def seconds_ratio(turns: Mapping[str, Sequence[Mapping[str, Any]]], ours: str, theirs: str) -> dict[str, float]:
    """Of the turns after the first, which warms up."""
    return ratio([t["seconds"] for t in turns[ours][1:]], [t["seconds"] for t in turns[theirs][1:]])


def memory_ratio(turns: Mapping[str, Sequence[Mapping[str, Any]]], ours: str, theirs: str) -> dict[str, float]:
    """Of the fullest moments of all turns; there is one a process, so there is no spread."""
    value = turns[ours][-1]["peak"] / turns[theirs][-1]["peak"]
    return {"ratio": value, "low": value, "high": value}


def check_equal(turns: Mapping[str, Sequence[Mapping[str, Any]]], key: str, tolerance: float) -> None:
    """Refuse to compare ways whose results differ.

    Raises:
        RuntimeError: by more than `tolerance` in some turn (numbers), or at all (anything else).
    """
    (first, expected), *others = turns.items()
    for name, those in others:
        for round_, (a, b) in enumerate(zip(expected, those, strict=True)):
            same = abs(a[key] - b[key]) <= tolerance if isinstance(a[key], float) else a[key] == b[key]
            if not same:
                raise RuntimeError(f"round {round_}: {key} of {name!r} is {b[key]}, of {first!r} {a[key]}")


def machine(device: str, dtype: str) -> str:
    """What a figure depends on, without a name or a path."""
    torch = _torch()
    if device.startswith("cuda"):
        place = torch.cuda.get_device_name(0)
    else:
        place = f"{_cpu()}, {torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"
    return f"{place}, {dtype}, torch {torch.__version__}"


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
