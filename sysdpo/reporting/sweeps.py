"""A sweep, from its `sweep.json` and its run folders, and its figures, one a metric.

A heat map where two numeric settings vary, a line plot for one, points with error bars for none.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import NullFormatter, NullLocator

from sysdpo.reporting.figures import COLOURS, INK, MARKERS, save, style
from sysdpo.reporting.pooling import Cell, pool, run_cell
from sysdpo.runs.folder import RunFolder

MAX_FACETS = 9
"""More heat maps than this are one: the mean over the settings that would tell them apart."""

ABSENT = "–"
"""In the place of a setting's value, of a job that does not vary it."""

Point = tuple[str, ...]  # values of some axes


@dataclass(frozen=True)
class SweepJob:
    """One job: its values of the swept settings as text, its run, and why it failed, if it did."""

    name: str
    values: Mapping[str, str]
    run: RunFolder
    error: str | None

    @property
    def status(self) -> str:
        return "failed" if self.error else "finished" if self.run.metrics is not None else "missing"

    def at(self, axes: Iterable[str]) -> Point:
        """Its values of some axes."""
        return tuple(self.values.get(axis, ABSENT) for axis in axes)

    @cached_property
    def cells(self) -> dict[str, Cell]:
        """metric -> figure, of a finished job."""
        if self.status != "finished":
            return {}
        return {name: cell for name in self.run.metrics or {} if (cell := run_cell(self.run, name)) is not None}


@dataclass(frozen=True)
class Sweep:
    """`metrics`: name -> heading; `axes`: setting -> short name, in the order in which they were given."""

    name: str
    experiment: str
    scale: str
    metrics: dict[str, str]
    axes: dict[str, str]
    jobs: list[SweepJob]


def read_sweep(folder: Path) -> Sweep:
    content = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
    jobs = [SweepJob(j["name"], j["values"], RunFolder(Path(j["folder"])), j["error"]) for j in content.pop("jobs")]
    return Sweep(jobs=jobs, **content)


# ---- figures -----------------------------------------------------------------------------------------------------


def draw(sweep: Sweep, metric: str, folder: Path) -> Path | None:
    """`<metric>.svg` and `.png`, over the finished jobs; returns the PNG's path, None where no job has the metric."""
    jobs = [job for job in sweep.jobs if metric in job.cells]
    axes = [axis for axis in sweep.axes if len({job.values.get(axis) for job in jobs}) > 1]
    if not jobs:
        return None
    numeric = [axis for axis in axes if all(_is_number(job.values.get(axis, "")) for job in jobs)]
    with matplotlib.rc_context(style(metric)):
        if len(numeric) >= 2:
            canvas = heat_maps(sweep, metric, jobs, numeric[:2], [a for a in axes if a not in numeric[:2]])
        else:
            canvas = lines_or_points(sweep, metric, jobs, numeric, [axis for axis in axes if axis not in numeric])
        save(canvas, folder, metric)
    return folder / f"{metric}.png"


Jobs = Sequence[SweepJob]  # finished


def heat_maps(sweep: Sweep, metric: str, jobs: Jobs, pair: Sequence[str], others: Sequence[str]) -> Canvas:
    """One map for each combination of the other settings, all with one scale of colours."""
    across, down = pair
    facets = _combinations(jobs, others)
    note = ""
    if len(facets) > MAX_FACETS:
        note, others, facets = f", mean over {', '.join(sweep.axes[a] for a in others)}", [], [()]
    xs, ys = _sorted(jobs, across), _sorted(jobs, down)
    maps = [np.full((len(ys), len(xs)), math.nan) for _ in facets]
    for grid, facet in zip(maps, facets, strict=True):
        for row, column in np.ndindex(grid.shape):
            wanted = dict(zip((across, down, *others), (xs[column], ys[row], *facet), strict=True))
            found = [j.cells[metric].value for j in jobs if all(j.values.get(k) == v for k, v in wanted.items())]
            grid[row, column] = np.mean(found) if found else math.nan
    columns = min(len(facets), 3)
    rows = math.ceil(len(facets) / columns)
    size = (1.6 + columns * (0.9 + 0.75 * len(xs)), 0.9 + rows * (0.9 + 0.55 * len(ys)))
    canvas = Canvas(figsize=(max(size[0], 4.2), size[1]), layout="constrained")
    panels = canvas.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    scale = Normalize(*_limits([value for grid in maps for value in grid.ravel()]))
    places = 1 if scale.vmax is not None and abs(scale.vmax) >= 10 else 3
    image = None
    for panel, grid, facet in zip(panels, maps, facets, strict=False):
        panel.spines[:].set_visible(False)
        panel.tick_params(which="both", length=0)
        panel.set_facecolor("#e8eaed")  # no finished job
        image = panel.imshow(grid, norm=scale, cmap="cividis", aspect="auto", origin="lower")
        panel.set_xticks(range(len(xs)), xs)
        panel.set_yticks(range(len(ys)), ys)
        panel.set_xticks(np.arange(1, len(xs)) - 0.5, minor=True)
        panel.set_yticks(np.arange(1, len(ys)) - 0.5, minor=True)
        panel.grid(which="minor", color="white", linewidth=1.5)
        if facet:
            panel.set_title(", ".join(f"{sweep.axes[a]} = {v}" for a, v in zip(others, facet, strict=True)), fontsize=9)
        for row, column in np.ndindex(grid.shape):
            value = grid[row, column]
            colour = INK if math.isnan(value) or scale(value) > 0.5 else "white"
            text = "–" if math.isnan(value) else f"{value:z.{places}f}"
            panel.text(column, row, text, ha="center", va="center", color=colour)
    for panel in panels[len(facets) :]:
        panel.set_visible(False)
    canvas.supxlabel(sweep.axes[across], fontsize=9)
    canvas.supylabel(sweep.axes[down], fontsize=9)
    if image is not None:
        bar = canvas.colorbar(image, ax=panels.tolist(), label=sweep.metrics[metric])
        bar.outline.set_visible(False)
    canvas.suptitle(_title(sweep, metric, note), fontsize=9)
    return canvas


def lines_or_points(sweep: Sweep, metric: str, jobs: Jobs, numeric: Sequence[str], others: Sequence[str]) -> Canvas:
    """Seeds pooled, against the numeric setting, a line for each combination of the others; without one, points."""
    canvas = Canvas(figsize=(5.2, 3.9), layout="constrained")
    panel = canvas.add_subplot()
    lines = _combinations(jobs, others) if numeric else [()]
    along = list(numeric) or list(others)
    positions = _sorted(jobs, along[0]) if numeric else [", ".join(point) for point in _combinations(jobs, others)]
    for number, line in enumerate(lines):
        xs: list[float] = []
        cells: list[Cell] = []
        for place, position in enumerate(positions):
            runs = [
                job.run
                for job in jobs
                if (not numeric or job.at(others) == line) and ", ".join(job.at(along)) == position
            ]
            cell, _ = pool(runs, metric)
            if cell is not None:
                xs.append(float(position) if numeric else place)
                cells.append(cell)
        panel.errorbar(
            xs,
            [cell.value for cell in cells],
            [cell.se or 0.0 for cell in cells],
            label=", ".join(line),
            color=COLOURS[number % len(COLOURS)],
            marker=MARKERS[number % len(MARKERS)],
            linestyle="-" if numeric else "none",
            markersize=5,
            capsize=3,
        )
    if numeric:
        _value_axis(panel, [float(text) for text in positions], positions)
    else:
        panel.set_xticks(range(len(positions)), positions)
        panel.margins(x=0.2)
    panel.set_xlabel(", ".join(sweep.axes[a] for a in along))
    panel.set_ylabel(sweep.metrics[metric])
    if len(lines) > 1:
        heading = ", ".join(sweep.axes[a] for a in others)
        canvas.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8, title=heading)
    canvas.suptitle(_title(sweep, metric, "\n± standard error over evaluation rows"), fontsize=9)
    return canvas


def _value_axis(panel: Axes, values: Sequence[float], texts: Sequence[str]) -> None:
    """Ticks at the values that were tried, on a log scale where they span a factor of eight."""
    if min(values) > 0 and max(values) >= 8 * min(values):
        panel.set_xscale("log")
        panel.xaxis.set_minor_locator(NullLocator())
        panel.xaxis.set_minor_formatter(NullFormatter())
    panel.set_xticks(values, texts)


def _title(sweep: Sweep, metric: str, note: str) -> str:
    seeds = {job.run.metrics["seed"] for job in sweep.jobs if metric in job.cells and job.run.metrics}
    over = f"mean over {len(seeds)} seeds" if len(seeds) > 1 else "one seed"
    return f"{sweep.metrics[metric]}, {sweep.experiment} at {sweep.scale}, {over}{note}"


def _combinations(jobs: Jobs, axes: Sequence[str]) -> list[Point]:
    """The distinct values of some settings together, in the order in which jobs come."""
    return list(dict.fromkeys(job.at(axes) for job in jobs))


def _sorted(jobs: Jobs, axis: str) -> list[str]:
    return sorted({job.values[axis] for job in jobs}, key=float)


def _limits(values: Sequence[float]) -> tuple[float, float]:
    finite = [value for value in values if not math.isnan(value)]
    low, high = min(finite), max(finite)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
