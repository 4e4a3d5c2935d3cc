"""What a benchmark measured, beside what was planned."""

from collections.abc import Mapping
from typing import Any

Figures = dict[str, Any]
"""By name `{"measured": …, "planned": …}`: None where it is not known."""


def beside(measured: Mapping[str, float | None], planned: Mapping[str, float | None]) -> Figures:
    """Each measured figure with the planned one of its name."""
    return {name: {"measured": value, "planned": planned.get(name)} for name, value in measured.items()}


def render(result: Mapping[str, Any]) -> str:
    """All figures as a table."""
    smaller = result["smaller_than_published"]
    size = f"NOT at full size: {smaller}" if smaller else "no architecture reduced"
    lines = [
        f"{result['experiment']}, scale {result['scale']}, method {result['method']}, on {result['device']}, {size}",
        f"{'':<52}{'measured':>18}{'plan (' + result['planned_for'] + ')':>18}",
    ]
    for name, figures in result["measured"].items():
        for figure, values in figures.items():
            cells = "".join(f"{_cell(figure, values[kind]):>18}" for kind in ("measured", "planned"))
            lines.append(f"{name + ': ' + figure:<52}{cells}")
    return "\n".join(lines)


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    if name.endswith("bytes"):
        return f"{value / 2**30:.2f} GiB"
    if name.endswith("seconds"):
        return f"{value:.2f} s"
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.2f}"
