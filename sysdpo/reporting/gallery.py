"""Before and after, side by side: what the untrained system and the aligned ones made of the same inputs."""

import base64
import io
import math
import re
from collections.abc import Mapping
from html import escape
from typing import Any

from sysdpo.reporting.pooling import row_numbers, variables
from sysdpo.reporting.tables import MethodRow, Table, decimals
from sysdpo.runs.folder import RunFolder, read_picture

SHOWN = 8  # evaluation rows
LARGEST = 512  # pixels of a shown image's longer side
SMALL = 128  # below it, pixels are drawn as squares instead of being blurred


def gallery(table: Table) -> str:
    """Evaluation rows at equal distances, so that none is picked for its looks; "" without samples.

    Before is the first row that trains nothing, after the first that does; the others are folded away.
    """
    sides = _sides(table)
    if not sides:
        return ""
    count = min(len(side.records) for side in sides)
    shown = min(SHOWN, count)
    indices = [i * count // shown for i in range(shown)]
    note = (
        f"{shown} of {count} evaluation rows, at equal distances; seed {' / '.join(sorted({s.seed for s in sides}))}. "
        "Numbers are a row's own, in the table's unit; intermediate values are folded."
    )
    return f"<p class='muted'>{note}</p>\n" + "\n".join(_sample(sides, table, index) for index in indices)


class _Side:
    """One method's outputs under one seed."""

    def __init__(self, row: MethodRow, seed: int, table: Table) -> None:
        run = row.runs[seed]
        self.row, self.seed, self.run = row, str(seed), run
        self.records = run.samples
        config = run.config or {}
        self.trained = config.get("train") != []
        self.names = {role: variables(config, role) for role in ("input", "intermediate", "final")}
        self.numbers = {metric: row_numbers(run, metric) for metric in table.metrics}

    def values(self, role: str, index: int, kind: str = "text") -> str:
        record = self.records[index]
        names = [name for name in self.names[role] if name in record]
        if role == "final" and not names:  # images are kept as one picture beside the record, under a name of its own
            names = [name for name, value in record.items() if self.run.image(value, name)]
        shown = "".join(_value(record[name], self.run, kind, name) for name in names)
        if role == "final" and shown:
            shown += self.legend(index)
        return shown or f"<div class='{kind}'>–</div>"

    def aligned(self, index: int) -> list[str]:
        """The record's lists of one length, beside a picture: they say one thing of each image in it."""
        record = self.records[index]
        lists = {name: value for name, value in record.items() if isinstance(value, list) and len(value) > 1}
        lists = {n: value for n, value in lists.items() if not any(self.run.image(item, n) for item in value)}
        pictured = any(self.run.image(value, name) for name, value in record.items())
        return list(lists) if pictured and len({len(value) for value in lists.values()}) == 1 else []

    def legend(self, index: int) -> str:
        """Under a picture of several images, what is known of each: numbers first, then texts."""
        lists = [self.records[index][name] for name in self.aligned(index)]
        lists.sort(key=lambda values: isinstance(values[0], str))
        cells = "".join(
            f"<div>{''.join(f'<p>{text(_short(item))}</p>' for item in items)}</div>"
            for items in zip(*lists, strict=True)
        )
        return f"<div class='legend'>{cells}</div>" if cells else ""

    def facts(self, table: Table, index: int) -> dict[str, str]:
        """What else the record says, beside variables, pictures, metrics and what those compare with."""
        known = {name for names in self.names.values() for name in names} | set(table.metrics)
        known |= set(self.aligned(index))
        facts = {}
        for key, value in self.records[index].items():
            if key not in known and not key.startswith("reference_") and self.run.image(value, key) is None:
                values = value if isinstance(value, list) else [value]
                facts[key] = ", ".join(map(_short, values))
        return facts


def _sides(table: Table) -> list[_Side]:
    """Before first, if there is such a row, then the others in the table's order; one seed for all where possible."""
    seeds = [set(row.runs) for row in table.rows if row.runs]
    shared = set.intersection(*seeds) if seeds else set()
    sides = [_Side(row, min(shared or row.runs), table) for row in table.rows if row.runs]
    sides = [side for side in sides if side.records]
    before = next((side for side in sides if not side.trained), None)
    return [*([before] if before else []), *(side for side in sides if side is not before)]


def _sample(sides: list[_Side], table: Table, index: int) -> str:
    first = sides[0]
    after = next((side for side in sides if side.trained), None)
    front = [first] if after in (None, first) else [first, after]
    rest = [side for side in sides if side not in front]
    shown = "".join(_column(side, table, index, side is after) for side in front if side is not None)
    more = "".join(_column(side, table, index, False) for side in rest)
    folded = f"<details><summary>Other rows</summary><div class='sides'>{more}</div></details>" if more else ""
    compared = _references(front, table, index)
    return (
        f"<article class='sample'>{first.values('input', index, 'question')}"
        f"<div class='sides'>{shown}</div>{folded}{compared}</article>"
    )


def _column(side: _Side, table: Table, index: int, after: bool) -> str:
    names = side.names["intermediate"]
    intermediate = side.values("intermediate", index, "text minor")
    facts = "".join(f"<dt>{text(key)}</dt><dd>{text(value)}</dd>" for key, value in side.facts(table, index).items())
    intermediate += f"<dl class='pairs'>{facts}</dl>" if facts else ""
    folded = (
        f"<details><summary>intermediate {text(', '.join(names))}</summary>{intermediate}</details>" if names else ""
    )
    numbers = [
        f"{text(heading)} <b>{side_numbers[index]:z.{decimals(table, metric)}f}</b>"
        for metric, heading in table.metrics.items()
        if (side_numbers := side.numbers[metric]) is not None and not math.isnan(side_numbers[index])
    ]
    return (
        f"<div class='{'after' if after else 'before'}'><h3>{text(side.row.title)}</h3>"
        f"{side.values('final', index)}<div class='numbers'>{' · '.join(numbers)}</div>{folded}</div>"
    )


def _references(front: list[_Side], table: Table, index: int) -> str:
    """What a judge compared the answers with: the records' `reference_<metric>`, unless it is shown already."""
    already = {str(side.records[index].get(name)) for side in front for name in side.names["final"]}
    record, run = front[-1].records[index], front[-1].run
    found = [
        f"<div><h3>{text(heading)}: compared with</h3>{_value(record[key], run, 'text minor', key)}</div>"
        for metric, heading in table.metrics.items()
        if (key := f"reference_{metric}") in record and str(record[key]) not in already
    ]
    if not found:
        return ""
    opened = " open" if len(front) == 1 else ""  # no row before alignment beside it: this is the other side
    return f"<details{opened}><summary>Compared with</summary><div class='sides'>{''.join(found)}</div></details>"


# ---- values ------------------------------------------------------------------------------------------------------


def _value(value: Any, run: RunFolder, kind: str, name: str) -> str:
    """Text as it is, a file name of an image as the image, a list as a strip of images or line by line."""
    if isinstance(value, Mapping):
        value = [f"{key}: {item}" for key, item in value.items()]
    values = value if isinstance(value, list) else [value]
    pictures = [_picture(item, run, name) for item in values]
    if values and all(pictures):
        return f"<div class='strip'>{''.join(p for p in pictures if p)}</div>"
    return f"<div class='{kind}'>{text(chr(10).join(map(str, values)))}</div>"


def _short(item: Any) -> str:
    return f"{item:.3f}" if isinstance(item, float) else str(item)


def _picture(value: Any, run: RunFolder, name: str) -> str | None:
    """An `<img>` that carries its own data, if the value of a sample's field names an image."""
    file = run.image(value, name)
    if file is None:
        return None
    if (image := read_picture(file)) is None:
        return f"<p class='muted'>{text(file.name)}: the picture is broken</p>"
    image.thumbnail((LARGEST, LARGEST))
    small = " class='small'" if max(image.size) <= SMALL else ""
    content = io.BytesIO()
    image.save(content, "PNG", optimize=True)
    data = base64.b64encode(content.getvalue()).decode()
    return f"<img{small} alt='{escape(file.stem)}' src='data:image/png;base64,{data}'>"


def text(value: Any) -> str:
    """Escaped, and without the control characters that HTML does not allow."""
    return escape(re.sub(r"[^\t\n\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", str(value)))
