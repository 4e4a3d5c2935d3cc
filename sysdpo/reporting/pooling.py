"""One figure of a table from several runs of the same row: the mean over seeds and its standard error."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sysdpo.runs.folder import RunFolder

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Cell:
    """A figure, its standard error in the same unit (None: not known), and the evaluation rows it rests on."""

    value: float
    se: float | None
    n: int


def run_cell(run: RunFolder, metric: str) -> Cell | None:
    """What a run's own `metrics.json` says of a metric."""
    found = (run.metrics or {}).get(metric)
    if not isinstance(found, Mapping) or found.get("value") is None:
        return None
    return Cell(float(found["value"]), _finite(found.get("se")), int(found["n"]))


def row_numbers(run: RunFolder, metric: str) -> Numbers | None:
    """Each evaluation row's number in the unit of the table: [n], NaN where a row has none.

    Returns:
        None where the samples do not carry the metric, or the run has no figure of it.
    """
    records = run.samples
    if run_cell(run, metric) is None or not records or any(metric not in record for record in records):
        return None
    return np.array([math.nan if record[metric] is None else float(record[metric]) for record in records])


def standard_error(numbers: Numbers) -> float | None:
    """sd(ddof=1) / sqrt(n) of the numbers that are not NaN; None where there is but one."""
    kept = numbers[~np.isnan(numbers)]
    return float(np.std(kept, ddof=1) / math.sqrt(len(kept))) if len(kept) > 1 else None


def pool(runs: Sequence[RunFolder], metric: str) -> tuple[Cell | None, str | None]:
    """The figure of a row over its seeds, and a remark where the standard error is not the clustered one.

    All seeds answer the same evaluation rows, and their numbers on one row go together: a hard prompt is hard
    under every seed. k seeds times n rows are therefore not k * n independent numbers. The numbers of a row are
    averaged over the seeds first, and the n averages are the sample: the standard error is clustered by row. It
    speaks of other prompts under these seeds, not of other seeds.

    Where rows cannot be matched, the mean of the seeds' own standard errors is given: it is never too small,
    whatever the seeds have in common (triangle inequality).
    """
    cells = [cell for run in runs if (cell := run_cell(run, metric)) is not None]
    if not cells:
        return None, None
    value = float(np.mean([cell.value for cell in cells]))
    if len(cells) == 1:
        return cells[0], None
    averages = averages_by_row(runs, metric)
    if averages is not None:
        return Cell(value, standard_error(averages), int((~np.isnan(averages)).sum())), None
    errors = [cell.se for cell in cells if cell.se is not None]
    bound = float(np.mean(errors)) if len(errors) == len(cells) else None
    remark = "the seeds' samples cannot be matched row by row; the standard error is the mean of the seeds' own"
    return Cell(value, bound, min(cell.n for cell in cells)), remark


def averages_by_row(runs: Sequence[RunFolder], metric: str) -> Numbers | None:
    """Each evaluation row's number averaged over the runs that have one: [n], NaN where none has.

    Returns:
        None where the runs did not answer the same rows, or one lacks the metric.
    """
    numbers = [row_numbers(run, metric) for run in runs]
    aligned = [row for row in numbers if row is not None]
    if not runs or len(aligned) < len(runs) or not _same_rows(runs):
        return None
    stacked = np.stack(aligned)  # [seeds, rows]
    known = (~np.isnan(stacked)).sum(axis=0)
    totals = np.nansum(stacked, axis=0)
    return np.divide(totals, known, out=np.full(totals.shape, np.nan), where=known > 0)


def _same_rows(runs: Sequence[RunFolder]) -> bool:
    first, *others = map(_asked, runs)
    return all(asked == first for asked in others)


def _asked(run: RunFolder) -> list[list[Any]]:
    names = variables(run.config or {}, "input")
    return [[record.get(name) for name in names] for record in run.samples]


def variables(config: Mapping[str, Any], role: str) -> list[str]:
    """The variables of a run's graph that have this role: input, intermediate or final."""
    found = config.get("system", {}).get("variables", {})
    return [name for name, variable in found.items() if variable.get("role") == role]


def _finite(value: Any) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None
