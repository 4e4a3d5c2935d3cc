"""What a row has cost, in `budget.json` of the run: answers to train on, drafts, judge calls, CPU seconds, memory."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sysdpo import processes
from sysdpo.runs.files import write_json
from sysdpo.runs.folder import RunFolder
from sysdpo.runs.resident import fullest

BUDGET, MEMORY = "budget.json", "memory_mb"


@contextmanager
def timed(folder: Path) -> Iterator[None]:
    """Adds the CPU seconds of this process to those that earlier, interrupted ones have spent on the run's training.

    Several processes that share the work count as the first one each.
    """
    if not processes.is_first():
        yield
        return
    before = float((RunFolder(folder).budget or {}).get("cpu_seconds", 0.0))
    began = time.process_time()
    try:
        yield
    finally:
        spent = processes.count() * (time.process_time() - began)
        write_json(folder / BUDGET, {"cpu_seconds": round(before + spent, 2), **_memory(folder)})


def write_budget(
    folder: Path,
    data: Mapping[str, float],
    trained: Mapping[str, float],
    history: Sequence[Mapping[str, Any]],
    draws: int,
) -> None:
    """The whole budget of a run.

    Args:
        data: what making the training pairs took, if they were made: `answers`, `judge_calls`.
        trained: what a trainer says that it took beyond them.
        history: the lines of `metrics.jsonl`, which say what was redrawn and how many drafts were summed over.
        draws: answers drawn for each prompt when the system is used.
    """
    totals = {"answers": 0.0, "drafts": 0.0, "judge_calls": 0.0}
    for name in totals:
        totals[name] += data.get(name, 0.0) + trained.get(name, 0.0)
        totals[name] += sum(float(line.get(f"redraw/{name}", 0.0)) for line in history)
    totals["drafts"] += sum(float(line.get("count/samples", 0.0)) for line in history)
    spent = (RunFolder(folder).budget or {}).get("cpu_seconds", 0.0)
    write_json(
        folder / BUDGET,
        {
            **{name: int(total) for name, total in totals.items()},
            "answers_a_prompt": draws,
            "cpu_seconds": spent,
            **_memory(folder),
        },
    )


def _memory(folder: Path) -> dict[str, int]:
    """The run's resident set at its fullest, in MB, whoever went on with it (of several processes, the first one's)."""
    before = (RunFolder(folder).budget or {}).get(MEMORY, 0)
    known = fullest()
    return {} if known is None else {MEMORY: max(before, round(known / 1e6))}
