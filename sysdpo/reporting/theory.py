"""The report on section 3 and equations 6 and 9: `table.json` as tables in words and as figures."""

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
MARGINS = {
    "diverse_beam": ("eq. 9, K most probable", "#0072B2", "o"),
    "monte_carlo": ("eq. 9, K draws, repeats dropped", "#D55E00", "s"),
    "importance": ("K draws, importance-weighted", "#009E73", "^"),
}
"""Estimators of the margin and of the first component's gradient."""
MARGIN_PANELS = {
    "margin_bias": "|bias| of the margin, nats",
    "margin_sd": "standard deviation of the margin, nats",
    "gradient_bias": "|bias| of ψ1's gradient / its length",
    "gradient_sd": "scatter of ψ1's gradient / its length",
}
LENGTH_PANELS = {
    "effective_samples": "effective number of the K = 4 samples",
    "total_variation": "total variation of the two posteriors",
    "gradient_share": "share of ψ1's exact gradient that arrives",
}
RLHF = {"single": "one model", "two_stages": "two stages"}
FLOOR = 1e-3
"""Where the logarithmic axes end: enumeration has no error at all."""


def write_theory_report(folder: Path) -> Path:
    """Write `table.md` and `figures/*.png` from `table.json` in the same folder; returns the table."""
    content = json.loads((folder / "table.json").read_text(encoding="utf-8"))
    by_samples = ("k", "K samples of the intermediate")
    by_length = ("length", "words of the draft that do not matter")
    lengths = [row for row in content["draft_length"] if row["length"]]
    with replacing(folder / "figures" / "approximation.png") as fresh:
        _draw(content["approximation"], ESTIMATORS, PANELS, by_samples, fresh)
    with replacing(folder / "figures" / "estimators.png") as fresh:
        _draw(content["estimators"], MARGINS, MARGIN_PANELS, by_samples, fresh)
    with replacing(folder / "figures" / "draft_length.png") as fresh:
        _draw(lengths, MARGINS, LENGTH_PANELS, by_length, fresh, logarithmic=False)
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
        *_rlhf_lines(content["rlhf"], betas),
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
        "",
        *_estimator_lines(content["estimators"]),
        "",
        *_length_lines(content["draft_length"]),
    ]


def _rlhf_lines(rows: Sequence[Mapping[str, Any]], betas: Sequence[float]) -> list[str]:
    by_case = {(row["system"], row["reference"], row["beta"]): row for row in rows}
    cases = dict.fromkeys((row["system"], row["reference"]) for row in rows)
    return [
        "## The maximum of RLHF (proposition 1)",
        "",
        "Equation 7 maximised exactly: the same error of definition 1, in nats; in brackets the error of equation 10.",
        "A reference that is not uniform keeps its own ratios: equation 10 holds, definition 1 does not.",
        "",
        "| | " + " | ".join(f"β = {beta}" for beta in betas) + " |",
        "|---|" + "---|" * len(betas),
        *(
            f"| RLHF (equation 7), {RLHF[system]}, {'uniform' if reference == 'uniform' else 'another'} reference | "
            + " | ".join(
                f"{row['log_ratio_error']:.1e} ({row['equation_10_error']:.0e})"
                for row in (by_case[system, reference, beta] for beta in betas)
            )
            + " |"
            for system, reference in cases
        ),
    ]


def _estimator_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    by_k = {(row["k"], row["method"]): row for row in rows}
    lines = [
        "## Two estimators of the margin: equation 9 and importance weighting",
        "",
        "Margin: |bias| ± standard deviation, in nats. Gradient of the first component, as shares of the exact one's",
        "length: what arrives of it on average (1: all), |bias| ± scatter.",
        "",
        "| K | " + " | ".join(title for title, _, _ in MARGINS.values()) + " |",
        "|---|" + "---|" * len(MARGINS),
    ]
    for k in dict.fromkeys(row["k"] for row in rows):
        cells = (by_k[k, method] for method in MARGINS)
        lines.append(
            f"| {k} | "
            + " | ".join(
                f"{c['margin_bias']:.3f} ± {c['margin_sd']:.3f}; "
                f"{c['gradient_share']:.2f}, {c['gradient_bias']:.2f} ± {c['gradient_sd']:.2f}"
                for c in cells
            )
            + " |"
        )
    return [*lines, "", "![bias and scatter against K](figures/estimators.png)"]


def _length_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    methods = list(dict.fromkeys(row["method"] for row in rows))
    by_length = {(row["length"], row["method"]): row for row in rows}
    lines = [
        "## What the length of a draft does to the first component's gradient",
        "",
        "Drafts with words on which the answer does not depend, K = 4 draws, start of training. Spread: between the",
        "two most probable drafts of a pair, in nats. Then: effective number of samples, total variation between the",
        "two sides' posteriors, share of the exact gradient that arrives.",
        "",
        "| words | spread | " + " | ".join(MARGINS[method][0] for method in methods) + " |",
        "|---|---|" + "---|" * len(methods),
    ]
    for length in dict.fromkeys(row["length"] for row in rows):
        cells = [by_length[length, method] for method in methods]
        lines.append(
            f"| {length} | {cells[0]['spread']:.1f} | "
            + " | ".join(
                f"{c['effective_samples']:.2f}; {c['total_variation']:.2f}; {c['gradient_share']:.2f}" for c in cells
            )
            + " |"
        )
    return [*lines, "", "![signal against length](figures/draft_length.png)"]


def _approximation_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    by_k = {(row["k"], row["method"]): row for row in rows}
    lines = []
    for k in dict.fromkeys(row["k"] for row in rows):
        cells = (by_k[k, method] for method in ESTIMATORS)
        lines.append(
            f"| {k} | " + " | ".join(f"{c['bias']:+.3f}, {c['rmse']:.3f}; {c['margin_rmse']:.3f}" for c in cells) + " |"
        )
    return lines


def _draw(
    rows: Sequence[Mapping[str, Any]],
    methods: Mapping[str, tuple[str, str, str]],
    panels: Mapping[str, str],
    across: tuple[str, str],
    path: Path,
    logarithmic: bool = True,
) -> None:
    """One panel a quantity, one line a method; `across`: the key of the horizontal axis and its label."""
    key, label = across
    figure = Figure(figsize=(4.4 * len(panels), 4), layout="constrained")
    for axis, (quantity, title) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        for method, (name, colour, marker) in methods.items():
            own = [row for row in rows if row["method"] == method]
            values = [max(FLOOR, abs(row[quantity])) if logarithmic else row[quantity] for row in own]
            if own:
                axis.plot([row[key] for row in own], values, color=colour, marker=marker, label=name)
        ticks = sorted({row[key] for row in rows})
        axis.set_xscale("log", base=2)
        axis.set_xticks(ticks, labels=[str(tick) for tick in ticks])
        if logarithmic:
            axis.set_yscale("log")
        axis.set_ylim(bottom=FLOOR if logarithmic else 0.0)
        axis.set_xlabel(label)
        axis.set_ylabel(title)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, format="png", dpi=150)
