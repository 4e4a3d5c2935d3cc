"""The report on section 3 and equation 6: `table.json` as a table in words and as one figure."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib.figure import Figure

from sysdpo.runs.files import replacing, write_text

METHODS = {
    "dpo": "DPO, x → z",
    "sysdpo_direct": "SysDPO-Direct, every (y, z) in the data",
    "sysdpo_sampling_all_y": "SysDPO-Sampling, summed over all y",
    "sysdpo_direct_without_assumption_1": "SysDPO-Direct, each z seen with one y only",
}
ESTIMATORS = {
    "diverse_beam": ("K most probable (diverse beam)", "#0072B2", "o"),
    "monte_carlo": ("K draws, repeats dropped (Monte Carlo)", "#D55E00", "s"),
    "importance_weighted": ("K draws, importance-weighted", "#009E73", "^"),
    "importance_weighted_corrected": ("… and bias-corrected", "#CC79A7", "D"),
}
PANELS = {
    "rmse": "RMSE of log p(z | x), nats",
    "bias": "|bias| of log p(z | x), nats",
    "margin_rmse": "RMSE of the margin, nats",
}
FLOOR = 1e-3
"""Where the logarithmic axes end: enumeration has no error at all."""


def write_theory_report(folder: Path) -> Path:
    """Write `table.md` and `figures/approximation.png` from `table.json` in the same folder; returns the table."""
    content = json.loads((folder / "table.json").read_text(encoding="utf-8"))
    with replacing(folder / "figures" / "approximation.png") as fresh:
        _draw(content["approximation"], fresh)
    path = folder / "table.md"
    write_text(path, "\n".join(_lines(content)) + "\n")
    return path


def _lines(content: Mapping[str, Any]) -> list[str]:
    alignment = content["perfect_alignment"]
    betas = list(dict.fromkeys(row["beta"] for row in alignment))
    error = {(row["method"], row["beta"]): row for row in alignment}
    separate = content["joint_against_separate"]
    return [
        "## β-perfect alignment (definition 1)",
        "",
        "Largest error of log p(z|x)/p(z'|x) over all x, z, z', in nats, at the minimum of the exact loss from a",
        "uniform reference; in brackets what the loss has left above its least possible value.",
        "",
        "| | " + " | ".join(f"β = {beta}" for beta in betas) + " |",
        "|---|" + "---|" * len(betas),
        *(
            f"| {title} | "
            + " | ".join(
                f"{error[method, beta]['log_ratio_error']:.1e} ({abs(error[method, beta]['excess_loss']):.0e})"
                for beta in betas
            )
            + " |"
            for method, title in METHODS.items()
        ),
        "",
        "## Preferences that do not decompose",
        "",
        "Share of preferred answers where the second stage sees nothing but the first one's value (chance: 0.5).",
        "",
        "| seed | untrained | each stage by itself | joint |",
        "|---|---|---|---|",
        *(f"| {r['seed']} | {r['untrained']:.3f} | {r['separate']:.3f} | {r['joint']:.3f} |" for r in separate),
        "",
        f"## The sum over K samples (equation 6), {content['settings']['drafts']} intermediate values",
        "",
        "Bias and RMSE of log p(z|x), and RMSE of the margin of eq. 9, in nats.",
        "",
        "| K | " + " | ".join(title for title, _, _ in ESTIMATORS.values()) + " |",
        "|---|" + "---|" * len(ESTIMATORS),
        *_approximation_lines(content["approximation"]),
        "",
        "![error against K](figures/approximation.png)",
    ]


def _approximation_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    by_k = {(row["k"], row["method"]): row for row in rows}
    lines = []
    for k in dict.fromkeys(row["k"] for row in rows):
        cells = (by_k[k, method] for method in ESTIMATORS)
        lines.append(
            f"| {k} | " + " | ".join(f"{c['bias']:+.3f}, {c['rmse']:.3f}; {c['margin_rmse']:.3f}" for c in cells) + " |"
        )
    return lines


def _draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    figure = Figure(figsize=(13, 4), layout="constrained")
    for axis, (quantity, label) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        for method, (title, colour, marker) in ESTIMATORS.items():
            own = [row for row in rows if row["method"] == method]
            values = [max(FLOOR, abs(row[quantity])) for row in own]
            axis.plot([row["k"] for row in own], values, color=colour, marker=marker, label=title)
        axis.set_xscale("log", base=2)
        axis.set_xticks(sorted({row["k"] for row in rows}), labels=sorted({str(row["k"]) for row in rows}, key=int))
        axis.set_yscale("log")
        axis.set_ylim(bottom=FLOOR)
        axis.set_xlabel("K samples of the intermediate")
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, format="png", dpi=150)
