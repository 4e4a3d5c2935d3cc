"""Two sheets of a report beside its table: what each row has cost, and which component earned the margin."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import mean
from typing import Any

from sysdpo.reporting.tables import MethodRow, Table, show_mean

BUDGET = {
    "answers": "answers sampled to train on",
    "drafts": "drafts summed over",
    "judge_calls": "judge or scorer calls",
    "answers_a_prompt": "answers a prompt in use",
    "cpu_seconds": "CPU s of training",
    "memory_mb": "memory at its fullest, MB",
}

Lines = list[list[str]]
"""A heading, then one line a row of a sheet."""


def budgets(table: Table) -> Lines:
    """What each row has cost, the mean over its seeds; [] where no run says it."""
    lines: Lines = []
    for row in table.rows:
        known = [budget for run in row.runs.values() if (budget := run.budget) is not None]
        if known:
            lines.append([row.title, *(show_mean([budget.get(name) for budget in known], ",.0f") for name in BUDGET)])
    return [["Method", *BUDGET.values()], *lines] if lines else []


def earners(table: Table) -> Iterator[tuple[str, Lines]]:
    """For each trained row: every component's mean share of the margin in nats, by prompt family; last, of all pairs.

    The share in percent is that of the sum of all components' shares over all pairs.
    """
    for row in table.rows:
        if lines := _of_row(row):
            yield row.title, lines


def _of_row(row: MethodRow) -> Lines:
    records = [record for run in row.runs.values() for record in run.credit]
    names = list(dict.fromkeys(name for record in records for name in record["components"]))
    if not records or not names:
        return []
    families = sorted({str(record["family"]) for record in records})
    shown = families if len(families) > 1 else []
    lines = [["Prompts", "pairs", "margin", *names]]
    for family in shown:
        lines.append(_line(family, [r for r in records if str(r["family"]) == family], names))
    lines.append(_line("all", records, names))
    totals = [mean(record["components"].get(name, 0.0) for record in records) for name in names]
    if sum(totals):
        lines.append(["share (%)", "", "", *(f"{100 * total / sum(totals):.0f}" for total in totals)])
    return lines


def _line(family: str, records: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[str]:
    shares = [mean(record["components"].get(name, 0.0) for record in records) for name in names]
    return [family, str(len(records)), f"{mean(r['margin'] for r in records):z.2f}", *(f"{s:z.2f}" for s in shares)]
