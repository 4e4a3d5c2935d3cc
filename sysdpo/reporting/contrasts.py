"""Differences between two rows of a table, prompt by prompt: what both rows' prompts have in common cancels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sysdpo.reporting.pooling import Cell, Numbers, averages_by_row, standard_error
from sysdpo.runs.folder import RunFolder


@dataclass(frozen=True)
class Contrast:
    """`minuend` minus `subtrahend` in one metric; the standard error is clustered by evaluation row."""

    minuend: str
    subtrahend: str
    metric: str
    cell: Cell

    @property
    def standard_errors(self) -> float | None:
        """The difference in units of its standard error; None where there is no error to divide by."""
        return self.cell.value / self.cell.se if self.cell.se else None

    def as_json(self) -> dict[str, Any]:
        return {
            "minuend": self.minuend,
            "subtrahend": self.subtrahend,
            "metric": self.metric,
            **vars(self.cell),
            "standard_errors": self.standard_errors,
        }


def contrast(one: Sequence[RunFolder], other: Sequence[RunFolder], metric: str) -> Cell | None:
    """Mean difference over evaluation rows, each averaged over the seeds first.

    Args:
        one, other: the runs of two methods, under the same seeds in the same order.

    Returns:
        None where the runs' samples cannot be matched row by row.
    """
    numbers: list[Numbers] = []
    for runs in (one, other):
        averages = averages_by_row(runs, metric)
        if averages is None:
            return None
        numbers.append(averages)
    if numbers[0].shape != numbers[1].shape:
        return None
    difference = numbers[0] - numbers[1]
    known = difference[~np.isnan(difference)]
    return Cell(float(known.mean()), standard_error(known), len(known)) if len(known) else None


def make_contrasts(
    asked: Mapping[str, Sequence[Sequence[str]]], runs: Mapping[str, Mapping[int, RunFolder]]
) -> list[Contrast]:
    """The contrasts that an experiment names (`{metric: [[minuend, subtrahend], …]}`), as far as there are runs.

    Two methods are compared over the seeds that both have.
    """
    found = []
    for metric, pairs in asked.items():
        for minuend, subtrahend in pairs:
            one, other = runs.get(minuend, {}), runs.get(subtrahend, {})
            seeds = [seed for seed in one if seed in other]
            cell = contrast([one[s] for s in seeds], [other[s] for s in seeds], metric) if seeds else None
            if cell is not None:
                found.append(Contrast(minuend, subtrahend, metric, cell))
    return found
