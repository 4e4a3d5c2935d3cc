"""The summary of a sweep: `summary.csv`, a line a job; `summary.md`, a line a point, its seeds pooled; figures."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sysdpo.reporting.credit import BUDGET
from sysdpo.reporting.pooling import Cell, pool
from sysdpo.reporting.sweeps import Point, Sweep, SweepJob, draw, read_sweep
from sysdpo.reporting.tables import aligned, places_of, show_cell, show_mean
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
    write_text(folder / "summary.md", f"{table}\n")
    drawn = [path for metric in sweep.metrics if (path := draw(sweep, metric, folder / "figures"))]
    finished = sum(job.status == "finished" for job in sweep.jobs)
    files = ", ".join(str(path) for path in (folder / "summary.csv", folder / "summary.md", *drawn))
    return f"{table}\n\nsweep {sweep.name}: {finished} of {len(sweep.jobs)} jobs finished; {files}"


def as_markdown(sweep: Sweep) -> str:
    """One line a point: each metric's mean over seeds with its error (`reporting.pooling.pool`), and means over the
    seeds of what the runs say of their samples and of the CPU seconds of their training."""
    points: dict[Point, list[SweepJob]] = {}
    for job in sweep.jobs:
        points.setdefault(tuple(job.values.get(axis, "–") for axis in sweep.axes), []).append(job)
    lines = [[*sweep.axes.values(), "seeds", *sweep.metrics.values(), *SHOWN.values(), BUDGET["cpu_seconds"]]]
    runs = {point: [job.run for job in jobs if job.status == "finished"] for point, jobs in points.items()}
    figures = [
        _column([pool(own, metric)[0] for own in runs.values()], sweep.metrics[metric]) for metric in sweep.metrics
    ]
    for (point, own), *cells in zip(runs.items(), *figures, strict=True):
        samples = [show_mean([(run.metrics or {}).get(name) for run in own], ".2f") for name in SHOWN]
        took = show_mean([(run.budget or {}).get("cpu_seconds") for run in own], ".0f")
        lines.append([*point, str(len(own)), *cells, *samples, took])
    return aligned(lines)


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
