"""Training dynamics from `metrics.jsonl`: one line a method, a band over its seeds (the paper's figures 6 and 7)."""

import io
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

from sysdpo.reporting.tables import Table

# Okabe and Ito's colours, which stay apart for colour-blind readers, without the two that vanish on white or black
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v", "P")
INK = "#3c4043"

MARGINS = {
    "validation/rewards/margins": ("validation_margin", "Reward margin on validation pairs"),
    "rewards/margins": ("training_margin", "Reward margin on training batches"),
}
EVALUATION = "evaluation/"

Curve = list[tuple[float, float, float, float]]  # (update, mean, lowest, highest) over the seeds


@dataclass(frozen=True)
class Figure:
    """One plot: its file name without suffix, what it shows, and its SVG text."""

    name: str
    caption: str
    svg: str


def draw_figures(table: Table, folder: Path) -> list[Figure]:
    """Write `<name>.svg` and `<name>.png` for every quantity that a run has logged; nothing for one that none has."""
    plots = {
        f"{EVALUATION}{m}": (f"evaluation_{m}", f"{heading} over training") for m, heading in table.metrics.items()
    }
    drawn = []
    for key, (name, caption) in {**plots, **MARGINS}.items():
        lines = curves(table, key)
        if lines:
            drawn.append(_draw(lines, table, key, name, caption, folder))
    return drawn


def curves(table: Table, key: str) -> dict[tuple[str, str | None], Curve]:
    """(method, component) -> curve; the component is None unless the method trained one after the other."""
    found: dict[tuple[str, str | None], Curve] = {}
    for row in table.rows:
        values: dict[str | None, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
        for run in row.runs.values():
            for record in run.history:
                if key in record:
                    values[record.get("component")][record["step"]].append(record[key])
        for component, by_step in values.items():
            found[row.method, component] = [(s, sum(v) / len(v), min(v), max(v)) for s, v in sorted(by_step.items())]
    return found


def _draw(
    lines: dict[tuple[str, str | None], Curve], table: Table, key: str, name: str, caption: str, folder: Path
) -> Figure:
    order = [row.method for row in table.rows]  # a method keeps its colour whether or not others are there
    titles = {row.method: row.title for row in table.rows}
    ylabel = table.metrics.get(key.removeprefix(EVALUATION), "reward margin")
    style: Any = {
        "svg.fonttype": "none",  # text stays text: small, searchable, and in the reader's colour
        "svg.hashsalt": name,
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
    }
    with matplotlib.rc_context(style):
        canvas = Canvas(figsize=(5.2, 3.9), layout="constrained")
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
        axes.set_ylabel(ylabel)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        canvas.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
        text = io.StringIO()
        canvas.savefig(text, format="svg", transparent=True, metadata={"Date": None})
        folder.mkdir(parents=True, exist_ok=True)
        canvas.savefig(folder / f"{name}.png", dpi=160, facecolor="white")
    svg = text.getvalue()
    (folder / f"{name}.svg").write_text(svg, encoding="utf-8")
    return Figure(name, f"{caption}; {_seeds(table, lines)}", svg)


def _seeds(table: Table, drawn: Iterable[tuple[str, str | None]]) -> str:
    methods = {method for method, _ in drawn}
    counts = sorted({len(row.runs) for row in table.rows if row.method in methods})
    if counts == [1]:
        return "one seed"
    return f"mean over {_range(counts)} seeds, band from the lowest to the highest"


def _range(counts: Sequence[int]) -> str:
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
