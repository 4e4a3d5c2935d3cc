"""What a benchmark measured, beside what was planned, as text."""

import math
from collections.abc import Iterator
from typing import Any

Measured = dict[str, Any]
"""By name; what a plan predicts too is `{"measured": …, "planned": …}`, None where it is not known."""


def both(measured: float | None, planned: float | None) -> Measured:
    return {"measured": measured, "planned": planned}


def render(result: Measured) -> str:
    """Every figure that a plan predicts too, and the seconds of the rest."""
    smaller = result["smaller_than_published"]
    size = f"NOT at full size: {smaller}" if smaller else "no architecture reduced"
    lines = [
        f"{result['experiment']}, scale {result['scale']}, method {result['method']}, on {result['device']}, {size}",
        f"{'':<52}{'measured':>18}{'plan (' + result['planned_for'] + ')':>18}",
    ]
    for path, value in _leaves(result):
        figures = value if isinstance(value, dict) else both(value, None)
        cells = (_cell(path[-1], figures[key]) for key in ("measured", "planned"))
        lines.append(f"{': '.join(path):<52}" + "".join(f"{cell:>18}" for cell in cells))
    return "\n".join(lines)


def _leaves(content: Measured, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in content.items():
        if isinstance(value, dict) and value.keys() != {"measured", "planned"}:
            yield from _leaves(value, (*path, key))
        elif isinstance(value, dict) or (key.endswith("seconds") and not isinstance(value, list)):
            yield (*path, key), value


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    if name.endswith("bytes"):
        return f"{value / 2**30:.2f} GiB"
    if name.endswith("seconds"):
        return f"{value:.2f} s"
    return f"{value:,.0f}" if math.fabs(value) >= 100 or value == int(value) else f"{value:.2f}"
