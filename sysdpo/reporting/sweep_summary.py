"""The summary of a sweep: `summary.csv`, a line a job; `summary.md`, a line a point, its seeds pooled, and
the points' differences; figures."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sysdpo.reporting.contrasts import make_contrasts
from sysdpo.reporting.credit import BUDGET
from sysdpo.reporting.pooling import Cell, pool
from sysdpo.reporting.sweeps import Point, Sweep, draw, read_sweep
from sysdpo.reporting.tables import CONTRAST_HEADINGS, aligned, places_of, show_cell, show_contrast, show_mean
from sysdpo.runs.files import write_text
from sysdpo.runs.folder import RunFolder

OF_SAMPLES = ("sampling/", "grad_norm/")
"""What a run says of its intermediate samples: how many count, how far the two sides disagree, who has a gradient."""

SHOWN = {"sampling/effective_samples": "effective samples", "sampling/distinct_bigrams": "distinct bigrams"}
"""Those of a point's line in `summary.md`."""


def summarise(folder: Path) -> str:
    """Write `summary.csv`, `summary.md` and `figures/`; returns what a command prints."""
    sweep = read_sweep(folder)
    write_text(folder / "summary.csv", as_csv(sweep))
    table = as_markdown(sweep)
    write_text(folder / "summary.md", "\n\n".join(filter(None, [table, differences(sweep)])) + "\n")
    drawn = [path for metric in sweep.metrics if (path := draw(sweep, metric, folder / "figures"))]
    finished = sum(job.status == "finished" for job in sweep.jobs)
    files = ", ".join(str(path) for path in (folder / "summary.csv", folder / "summary.md", *drawn))
    return f"{table}\n\nsweep {sweep.name}: {finished} of {len(sweep.jobs)} jobs finished; {files}"


def as_markdown(sweep: Sweep) -> str:
    """One line a point: each metric's mean over seeds with its error (`reporting.pooling.pool`), and means over the
    seeds of what the runs say of their samples and of the CPU seconds of their training."""
    lines = [[*sweep.axes.values(), "seeds", *sweep.metrics.values(), *SHOWN.values(), BUDGET["cpu_seconds"]]]
    runs = {point: list(own.values()) for point, own in _runs(sweep).items()}
    figures = [
        _column([pool(own, metric)[0] for own in runs.values()], sweep.metrics[metric]) for metric in sweep.metrics
    ]
    for (point, own), *cells in zip(runs.items(), *figures, strict=True):
        samples = [show_mean([(run.metrics or {}).get(name) for run in own], ".2f") for name in SHOWN]
        took = show_mean([(run.budget or {}).get("cpu_seconds") for run in own], ".0f")
        lines.append([*point, str(len(own)), *cells, *samples, took])
    return aligned(lines)


def differences(sweep: Sweep) -> str:
    """Every point against the first one, and against each one before it that differs in a single setting: the mean
    difference with its error over prompts, each averaged over the seeds first, and their ratio. Empty where no two
    points have answered the same prompts under the same seed."""
    runs = _runs(sweep)
    points = list(runs)
    pairs = [
        (later, earlier)
        for j, later in enumerate(points)
        for i, earlier in enumerate(points[:j])
        if i == 0 or sum(a != b for a, b in zip(later, earlier, strict=True)) == 1
    ]
    names = {point: ", ".join(point) for point in points}
    asked = {metric: [(names[one], names[other]) for one, other in pairs] for metric in sweep.metrics}
    found = make_contrasts(asked, {names[point]: own for point, own in runs.items()})
    heading, *others = CONTRAST_HEADINGS
    lines = [[f"{heading} ({', '.join(sweep.axes.values())})", *others]]
    for metric, title in sweep.metrics.items():
        own = [contrast for contrast in found if contrast.metric == metric]
        places = places_of(title, [abs(job.cells[metric].value) for job in sweep.jobs if metric in job.cells])
        lines += [[f"{each.minuend} − {each.subtrahend}", title, *show_contrast(each, places)] for each in own]
    return aligned(lines) if len(lines) > 1 else ""


def _runs(sweep: Sweep) -> dict[Point, dict[int, RunFolder]]:
    """The finished runs of each point, by seed."""
    points: dict[Point, dict[int, RunFolder]] = {}
    for job in sweep.jobs:
        own = points.setdefault(job.at(sweep.axes), {})
        if job.status == "finished":
            own[int((job.run.metrics or {}).get("seed", 0))] = job.run
    return points


def _column(cells: Sequence[Cell | None], heading: str) -> list[str]:
    places = places_of(heading, [abs(cell.value) for cell in cells if cell is not None])
    return ["–" if cell is None else show_cell(cell, places) for cell in cells]


def as_csv(sweep: Sweep) -> str:
    """One line a job: its settings, its status, each metric with standard error and number of rows, its samples, and
    what it took: seconds of its updates by the clock, CPU seconds of its whole training."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    figures = [f"{metric}{suffix}" for metric in sweep.metrics for suffix in ("", "_se", "_n")]
    sampling = sorted({name for job in sweep.jobs for name in job.run.metrics or {} if name.startswith(OF_SAMPLES)})
    own = ["best_step", "validation_margin", *sampling]
    took = ["seconds", "cpu_seconds"]
    writer.writerow(["job", *sweep.axes, "method", "seed", "status", *figures, *own, *took, "error"])
    for job in sweep.jobs:
        metrics = (job.run.metrics or {}) if job.status == "finished" else {}
        fields: list[Any] = [job.name, *(job.values.get(axis) for axis in sweep.axes)]
        fields += [metrics.get("method"), metrics.get("seed"), job.status]
        for metric in sweep.metrics:
            cell = job.cells.get(metric)
            fields += [cell.value, cell.se, cell.n] if cell else [None, None, None]
        spent = _took(job.run) if metrics else [None, None]
        writer.writerow([*fields, *(metrics.get(name) for name in own), *spent, job.error])
    return text.getvalue()


def _took(run: RunFolder) -> list[float | None]:
    """Seconds of a run's updates as it logged them, and its CPU seconds; None where it trained nothing."""
    seconds = [float(line["seconds"]) for line in run.history if "seconds" in line]
    spent = (run.budget or {}).get("cpu_seconds")
    return [round(sum(seconds), 2) if seconds else None, spent]
