"""Image sequences before and after, with their captions and attribute levels (the paper's appendix G)."""

import io
import math
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from PIL import Image

from sysdpo.reporting.tables import MethodRow
from sysdpo.runs.files import replacing, write_text
from sysdpo.runs.folder import RunFolder, read_picture

STYLE: Any = {"svg.fonttype": "none", "svg.hashsalt": "sheet", "font.size": 8}
CELL = 4.6  # inches
LINE = 0.145  # inches of one line of small text
WRAP, SMALLEST = 78, 14  # characters across a cell; of the narrowest caption


@dataclass(frozen=True)
class Strip:
    """A picture of a sequence's images side by side (None: nothing was drawn), a text and a level for each."""

    title: str
    picture: Image.Image | None
    captions: Sequence[str] = ()
    levels: Sequence[float] = ()
    note: str = ""


@dataclass(frozen=True)
class Line:
    """One line of a sheet: what was asked, and the strips to compare from left to right."""

    heading: str
    strips: Sequence[Strip] = field(default_factory=list)


def draw_sheet(lines: Sequence[Line], stem: Path) -> list[Path]:
    """Write `<stem>.png` and `<stem>.svg`; returns their paths."""
    columns = max(len(line.strips) for line in lines)
    heights = [_height(line) for line in lines]
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a script that the font lacks is shown as boxes
        canvas = Canvas(figsize=(CELL * columns, sum(heights)))
        top = sum(heights)
        for line, height in zip(lines, heights, strict=True):
            start = top / sum(heights)
            heading = _wrapped(line.heading, int(WRAP * columns / 1.15))
            canvas.text(0.02, start - 0.08 / sum(heights), heading, fontsize=9, fontweight="bold", va="top")
            head = 0.2 + LINE * 1.15 * (heading.count("\n") + 1)
            for column, strip in enumerate(line.strips):
                left, tall = (column + 0.03) / columns, _picture_height(strip)
                bottom = (top - head - 0.2 - tall) / sum(heights)
                _draw_strip(canvas.add_axes((left, bottom, 0.94 / columns, tall / sum(heights))), strip)
            top -= height
        files = [stem.with_suffix(".png"), stem.with_suffix(".svg")]
        with replacing(files[0]) as fresh:
            canvas.savefig(fresh, format="png", dpi=160, facecolor="white")
        drawing = io.StringIO()
        canvas.savefig(drawing, format="svg", facecolor="white", metadata={"Date": None})
        write_text(files[1], drawing.getvalue())
    return files


def _draw_strip(axes: Axes, strip: Strip) -> None:
    axes.set_title(f"{strip.title}   {strip.note}".rstrip(), fontsize=8, loc="left", pad=3)
    axes.set_axis_off()
    if strip.picture is None:
        axes.text(0, 0.9, _wrapped(" ".join(strip.captions) or "nothing was drawn", WRAP), va="top", fontsize=7.5)
        return
    axes.imshow(strip.picture, aspect="auto", interpolation="nearest")
    width, height = strip.picture.size
    count = max(len(strip.captions), len(strip.levels), 1)
    for i in range(count):
        level = f"{strip.levels[i]:.2f}" if i < len(strip.levels) else ""
        caption = _wrapped(strip.captions[i], _columns(count)) if i < len(strip.captions) else ""
        below = "\n".join(part for part in (level, caption) if part)
        axes.text((i + 0.5) * width / count, height * 1.03, below, ha="center", va="top", fontsize=7.5, clip_on=False)


def _picture_height(strip: Strip) -> float:
    if strip.picture is None:
        return LINE * (2 + _wrapped(" ".join(strip.captions), WRAP).count("\n"))
    return CELL * 0.94 * strip.picture.height / strip.picture.width


def _height(line: Line) -> float:
    """Inches of one line of the sheet: heading, title, pictures, levels and the longest caption."""
    heading = _wrapped(line.heading, int(WRAP * max(1, len(line.strips)) / 1.15)).count("\n") + 1
    tallest = 0.0
    for strip in line.strips:
        lines = max((_wrapped(c, _columns(len(strip.captions))).count("\n") + 1 for c in strip.captions), default=0)
        below = 0.0 if strip.picture is None else LINE * (lines + bool(strip.levels))
        tallest = max(tallest, _picture_height(strip) + below)
    return 0.2 + LINE * 1.15 * heading + 0.2 + tallest + 0.25


def _columns(count: int) -> int:
    return max(SMALLEST, WRAP // max(1, count) - 2)


def _wrapped(value: str, width: int) -> str:
    plain = "".join(c if c.isprintable() else "\ufffd" for c in " ".join(str(value).split()))
    return textwrap.fill(plain, width).replace("$", r"\$")  # no formulas


def sequence_lines(
    before: MethodRow, after: MethodRow, inputs: Sequence[str], captions: str, levels: str, metric: str, shown: int
) -> list[Line]:
    """`shown` evaluation rows at equal distances, under a seed that both rows of the table have; [] without pictures.

    Args:
        inputs: the fields of a record that hold what was asked.
        captions, levels, metric: the fields that hold a text and a level an image, and the sequence's own number.
    """
    seeds = sorted(set(before.runs) & set(after.runs))
    if not seeds:
        return []
    sides = [(row.title, row.runs[seeds[0]]) for row in (before, after)]
    records = [(title, run, run.samples) for title, run in sides]
    count = min(len(samples) for _, _, samples in records)
    if not any(run.image(value, name) for _, run, rows in records for row in rows for name, value in row.items()):
        return []
    lines = []
    for index in (i * count // min(shown, count) for i in range(min(shown, count))):
        heading = " ".join(str(records[0][2][index].get(name, "")) for name in inputs)
        strips = [_strip(title, run, samples[index], captions, levels, metric) for title, run, samples in records]
        lines.append(Line(heading, strips))
    return lines


def _strip(title: str, run: RunFolder, record: Mapping[str, Any], captions: str, levels: str, metric: str) -> Strip:
    file = next((found for name, value in record.items() if (found := run.image(value, name))), None)
    picture = read_picture(file) if file else None
    number = record.get(metric)
    note = f"{metric.replace('_', ' ')} {number:.2f}" if isinstance(number, float) and math.isfinite(number) else ""
    return Strip(title, picture, record.get(captions) or (), record.get(levels) or (), note)
