"""An experiment's figures from its files: one line a method, a band over its seeds (the paper's figures 6 to 8)."""

import io
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

from sysdpo.errors import SettingError
from sysdpo.reporting.pooling import pool, variables
from sysdpo.reporting.sheets import draw_sheet, sequence_lines
from sysdpo.reporting.tables import MethodRow, Table
from sysdpo.runs.files import replacing, write_text
from sysdpo.runs.folder import RunFolder

# Okabe and Ito's colours, which stay apart for colour-blind readers, without the two that vanish on white or black
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")  # one more than colours: 42 lines are told apart
INK = "#3c4043"

MARGINS = {
    "validation/rewards/margins": ("validation_margin", "Reward margin on validation pairs"),
    "rewards/margins": ("training_margin", "Reward margin on training batches"),
}
EVALUATION = "evaluation/"
SEQUENCES = 6  # evaluation rows of a figure of image sequences

Point = tuple[float, float | None]  # of one seed: a metric and its standard error
Curve = list[tuple[float, float, float, float]]  # (update, mean, lowest, highest) over the seeds


@dataclass(frozen=True)
class Figure:
    """One plot: its file name without suffix, what it shows, and its SVG text (None: too large for a page)."""

    name: str
    caption: str
    svg: str | None


@dataclass(frozen=True)
class Drawn:
    """Figures, and one line for each that lacks its input: what it needs, and the command that makes it."""

    figures: list[Figure]
    missing: list[str]


def draw_figures(table: Table, config: Mapping[str, Any], folder: Path) -> Drawn:
    """Write `<name>.svg` and `<name>.png` of the experiment's `figures`, of every other metric and of the margins.

    Quantities that no run has logged are left out; the experiment's own figures are then named as missing.
    """
    figures: list[Figure] = []
    missing: list[str] = []
    specified: dict[str, Any] = dict(config.get("figures") or {})
    for name, wanted in specified.items():
        draw = {"curve": _curve_figure, "sweep": _sweep_figures, "sequences": _sequence_figure}
        kind = next((kind for kind in draw if kind in wanted), None)
        if kind is None:
            raise SettingError(f"figures.{name}: it needs one of {', '.join(draw)}.")
        found = draw[kind](table, config, name, wanted, folder)
        figures += found.figures
        missing += found.missing
    drawn_already = {wanted.get("curve") for wanted in specified.values()}
    plots = {
        f"{EVALUATION}{m}": (f"evaluation_{m}", f"{heading} over training")
        for m, heading in table.metrics.items()
        if m not in drawn_already
    }
    for key, (name, caption) in {**plots, **MARGINS}.items():
        if lines := curves(table, key):
            figures.append(_draw(lines, table, key, name, caption, folder))
    return Drawn(figures, missing)


# ---- the figures that an experiment names ------------------------------------------------------------------------


def _curve_figure(table: Table, config: Mapping[str, Any], name: str, wanted: Mapping[str, Any], folder: Path) -> Drawn:
    """A metric over training: `curve` names it, `rows` the methods (all that have it, if not given)."""
    rows = [row for row in table.rows if row.method in (wanted.get("rows") or [row.method])]
    metric = wanted["curve"]
    key = f"{EVALUATION}{metric}"
    lines = curves(replace(table, rows=rows), key)
    without = [row.method for row in rows if (row.method, None) not in lines]
    missing = []
    if not lines or (wanted.get("rows") and without):
        seeds = sorted({seed for row in table.rows for seed in row.runs}) or [int(config.get("seed", 0))]
        command = table.command(
            without or [row.method for row in rows], seeds, [f"training.evaluate_every={_every(config)}"]
        )
        missing = [f"{name}: {metric} over training of {', '.join(without)}. To fill in: {command}"]
    return Drawn([_draw(lines, table, key, name, wanted["caption"], folder)] if lines else [], missing)


def _sweep_figures(
    table: Table, config: Mapping[str, Any], name: str, wanted: Mapping[str, Any], folder: Path
) -> Drawn:
    """A metric by job of a sweep: at the end with its standard error, and over training if that was logged."""
    metric, root = wanted["metric"], Path(config["table_folder"]) / "sweeps" / wanted["sweep"]
    rows = sweep_rows(root, metric)
    outputs = [f"OUTPUTS={config['outputs']}"] if config.get("outputs", "outputs") != "outputs" else []
    command = " ".join([wanted["command"], f"SCALE={table.scale}", *outputs])
    if not rows:
        return Drawn([], [f"{name}: the sweep {wanted['sweep']!r}. To fill in: {command}"])
    swept = replace(table, rows=rows)
    figures = [_draw_ends(swept, metric, f"{name}_end", f"{wanted['caption']}, at the end", folder)]
    key = f"{EVALUATION}{metric}"
    if lines := curves(swept, key):
        return Drawn([_draw(lines, swept, key, name, wanted["caption"], folder), *figures], [])
    command += f" ARGS=training.evaluate_every={_every(config)}"
    return Drawn(figures, [f"{name}: {metric} over training. To fill in: {command}"])


def _every(config: Mapping[str, Any]) -> int:
    """Updates between points, so that a curve has about five."""
    return max(1, int((config.get("training") or {}).get("steps", 4)) // 4)


def sweep_rows(root: Path, metric: str) -> list[MethodRow]:
    """The finished jobs `root/*/`, those that differ in the seed alone as one row, named by their folder."""
    groups: dict[str, dict[int, RunFolder]] = defaultdict(dict)
    for path in sorted(root.glob("*/")):
        run = RunFolder(path)
        if run.metrics is not None:
            label = re.sub(r"(^|[,; _-]+)seed=\d+", "", path.name).strip(",; _-") or path.name
            groups[label][int((run.config or {}).get("seed", len(groups[label])))] = run
    rows = []
    for label, runs in groups.items():
        cell, _ = pool(list(runs.values()), metric)
        rows.append(MethodRow(label, label, runs, {} if cell is None else {metric: cell}, {}))
    return rows


def _sequence_figure(
    table: Table, config: Mapping[str, Any], name: str, wanted: Mapping[str, Any], folder: Path
) -> Drawn:
    """Image sequences of two rows of the table, with the fields of their records that hold captions and levels."""
    spec = wanted["sequences"]
    by_method = {row.method: row for row in table.rows}
    before, after = by_method.get(spec["before"]), by_method.get(spec["after"])
    fields = (spec["captions"], spec["levels"], spec["metric"])
    lines = sequence_lines(before, after, variables(config, "input"), *fields, SEQUENCES) if before and after else []
    if not lines:
        methods = [spec["before"], spec["after"]]
        command = table.command(methods, [int(config.get("seed", 0))])
        return Drawn([], [f"{name}: pictures of {' and '.join(methods)}. To fill in: {command}"])
    draw_sheet(lines, folder / name)
    return Drawn([Figure(name, wanted["caption"], None)], [])


# ---- curves ------------------------------------------------------------------------------------------------------


def curves(table: Table, key: str) -> dict[tuple[str, str | None], Curve]:
    """(method, component) -> curve; the component is None unless the method trained one after the other."""
    found: dict[tuple[str, str | None], Curve] = {}
    for row in table.rows:
        points: dict[str | None, dict[float, list[Point]]] = defaultdict(lambda: defaultdict(list))
        for run in row.runs.values():
            for record in _records(run, key):
                points[record.get("component")][record["step"]].append((record[key], record.get(f"{key}/se")))
        for component, by_step in points.items():
            found[row.method, component] = [(step, *_band(seeds)) for step, seeds in sorted(by_step.items())]
    return found


def _records(run: RunFolder, key: str) -> list[Mapping[str, Any]]:
    """The lines that hold a quantity: logged in training, or measured of a kept checkpoint since."""
    logged = [line for line in run.history if key in line]
    steps = {line["step"] for line in logged}
    return [*logged, *(line for line in run.judged_steps if key in line and line["step"] not in steps)]


def _band(seeds: Sequence[Point]) -> tuple[float, float, float]:
    """Mean, lowest and highest seed; of a single one its standard error to either side, where it is known."""
    values = [value for value, _ in seeds]
    mean, (_, error) = sum(values) / len(values), seeds[0]
    if len(seeds) > 1 or error is None:
        return mean, min(values), max(values)
    return mean, mean - error, mean + error


def _draw(
    lines: dict[tuple[str, str | None], Curve], table: Table, key: str, name: str, caption: str, folder: Path
) -> Figure:
    order = [row.method for row in table.rows]  # a method keeps its colour whether or not others are there
    titles = {row.method: row.title for row in table.rows}
    with _canvas(name) as canvas:
        axes = canvas.add_subplot()
        if key in MARGINS:
            axes.axhline(0, color=INK, linewidth=0.6, alpha=0.5)
        components: dict[str, list[str | None]] = defaultdict(list)
        for (method, component), curve in lines.items():
            components[method].append(component)
            colour = COLOURS[order.index(method) % len(COLOURS)]
            steps, means, lowest, highest = zip(*curve, strict=True)
            axes.fill_between(steps, lowest, highest, color=colour, alpha=0.15, linewidth=0)
            axes.plot(
                steps,
                means,
                color=colour,
                linewidth=3.0 if method == order[0] else 1.5,  # shows beneath a line that hides it
                linestyle=DASHES[(len(components[method]) - 1) % len(DASHES)],
                marker=MARKERS[order.index(method) % len(MARKERS)],
                markersize=3.5,
                markevery=max(1, len(steps) // 8),
                label=titles[method] if component is None else f"{titles[method]}, {component}",
            )
        axes.set_xlabel("update")
        axes.set_ylabel(table.metrics.get(key.removeprefix(EVALUATION), "reward margin"))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        canvas.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
        svg = save(canvas, folder, name)
    drawn = [row for row in table.rows if row.method in components]
    measured = [[run for run in row.runs.values() if _records(run, key)] for row in drawn]
    has_band = any(lowest < highest for curve in lines.values() for _, _, lowest, highest in curve)
    remarks = [_seeds(measured, has_band)]
    if key.startswith(EVALUATION) and (rows := _rows_a_point(measured)):
        remarks.append(f"{rows} evaluation rows a point")
    return Figure(name, "; ".join([caption, *remarks]), svg)


def _draw_ends(table: Table, metric: str, name: str, caption: str, folder: Path) -> Figure:
    """One point a row with its standard error."""
    rows = [row for row in reversed(table.rows) if metric in row.cells]
    with _canvas(name, 1.2 + 0.32 * len(rows)) as canvas:
        axes = canvas.add_subplot()
        for position, row in enumerate(rows):
            cell = row.cells[metric]
            colour = COLOURS[table.rows.index(row) % len(COLOURS)]
            axes.errorbar(cell.value, position, xerr=cell.se, fmt="o", color=colour, capsize=3, markersize=5)
        axes.set_yticks(range(len(rows)), [row.title for row in rows])
        axes.margins(y=0.15)
        axes.set_xlabel(table.metrics.get(metric, metric))
        svg = save(canvas, folder, name)
    return Figure(name, f"{caption}; bars are standard errors over evaluation rows", svg)


@contextmanager
def _canvas(name: str, height: float = 3.7) -> Iterator[Canvas]:
    with matplotlib.rc_context(style(name)):
        yield Canvas(figsize=(4.7, height), layout="constrained")


def style(name: str) -> Any:
    """What a drawing of this name is made with: one ink and one size of letters, the same file for the same data."""
    return {
        "svg.fonttype": "none",  # text stays text: small, searchable, and in the reader's colour
        "svg.hashsalt": name,
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
    }


def save(canvas: Canvas, folder: Path, name: str) -> str:
    """Write `<name>.svg` and `<name>.png`; returns the SVG text."""
    text = io.StringIO()
    canvas.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    with replacing(folder / f"{name}.png") as fresh:
        canvas.savefig(fresh, format="png", dpi=160, facecolor="white")
    write_text(folder / f"{name}.svg", text.getvalue())
    return text.getvalue()


def _seeds(rows: Sequence[Sequence[RunFolder]], has_band: bool) -> str:
    """How many runs each of the drawn rows rests on, and what its band means."""
    counts = sorted({len(runs) for runs in rows})
    if counts == [1]:
        return "one seed" + (", band of one standard error to either side" if has_band else "")
    return f"mean over {_range(counts)} seeds, band from the lowest to the highest"


def _range(counts: Sequence[int]) -> str:
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def _rows_a_point(rows: Sequence[Sequence[RunFolder]]) -> str:
    """How many of a run's evaluation rows, every n-th of them, were answered for each point of a curve."""
    counts = set()
    for run in (run for runs in rows for run in runs):
        there, wanted = len(run.samples), (run.config or {}).get("curve_rows")
        if there:
            counts.add(len(range(0, there, max(1, there // int(wanted or there)))))
    return _range(sorted(counts)) if counts else ""
