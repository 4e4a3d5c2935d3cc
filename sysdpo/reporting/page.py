"""`index.html` of an experiment: one page that needs no network and no other file, for a desktop and a phone."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from sysdpo.paths import ASSETS
from sysdpo.reporting.credit import Lines, budgets, earners
from sysdpo.reporting.figures import INK, Drawn, Figure, draw_figures
from sysdpo.reporting.gallery import gallery, text
from sysdpo.reporting.tables import (
    CONTRAST_HEADINGS,
    MethodRow,
    Table,
    aligned,
    as_markdown,
    comparable,
    contrast_lines,
    decimals,
    differences,
    make_table,
    show_paper,
    write_table,
)
from sysdpo.runs.files import write_text

STYLE = ASSETS / "report.css"


def write_report(config: Mapping[str, Any], method_folder: Path, overrides: Sequence[str] = ()) -> str:
    """Write `<table_folder>/report/`: `table.json/.csv/.md`, `figures/*.svg/.png`, `index.html`.

    Args: as for `make_table`.

    Returns:
        What a command prints: the table as Markdown, the figures' files and what those lack, where the page is.
    """
    table = make_table(config, method_folder, overrides)
    folder = Path(config["table_folder"]) / "report"
    write_table(table, folder)
    others = [make_table({**config, **sheet}, method_folder, overrides) for sheet in config.get("sheets") or ()]
    drawn = draw_figures(table, config, folder / "figures")
    write_text(folder / "index.html", render(table, drawn, others))
    costs = aligned(sheet) if (sheet := budgets(table)) else ""
    write_text(folder / "sheets.md", "\n\n".join([*map(as_markdown, others), costs, *map(_earned, earners(table))]))
    lines = [f"{folder / 'figures' / figure.name}.svg  {figure.caption}" for figure in drawn.figures]
    lines += [f"not drawn: {line}" for line in drawn.missing]
    shown = [as_markdown(each) for each in (table, *others)]
    return "\n".join([*shown, *([costs, ""] if costs else []), *lines, str(folder / "index.html")])


def _earned(found: tuple[str, Lines]) -> str:
    return f"**Who earned it: {found[0]}** (nats a training pair)\n\n{aligned(found[1])}"


def render(table: Table, drawn: Drawn, others: Sequence[Table] = ()) -> str:
    """The whole page; `others`: sheets beside the table, of other rows of the same experiment."""
    sections = [
        f"<header><h1>{text(table.title)}</h1><p class='muted'>{text(table.caption)}</p></header>",
        _results(table),
        *(_section(other.title, _results(other)) for other in others),
        _section("What each row has cost", _sheet(budgets(table))),
        _section("Who earned it", _earners(table)),
        _section("By group", _breakdowns(table)),
        _section("Figures", _figures(drawn)),
        _section("Samples", gallery(table)),
        _section("Repeat a row", _commands(table)),
        _section("Configuration", _configs(table)),
        _section("Environment of the runs", _environments(table)),
    ]
    return (
        "<!DOCTYPE html>\n<html lang='en'>\n<head>\n<meta charset='utf-8'>\n"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>\n"
        f"<title>{text(table.title)}</title>\n<style>\n{STYLE.read_text(encoding='utf-8')}</style>\n</head>\n<body>\n"
        + "\n".join(sections)
        + "\n</body>\n</html>\n"
    )


def _section(heading: str, content: str, kind: str = "") -> str:
    if not content:
        return ""
    body = f"<div class='{kind}'>{content}</div>" if kind else content
    return f"<section>\n<h2>{text(heading)}</h2>\n{body}\n</section>"


def _results(table: Table) -> str:
    first = second = ""
    for metric, heading in table.metrics.items():
        if table.in_paper(metric):
            first += f"<th colspan='2' scope='colgroup'>{text(heading)}</th>"
            second += "<th scope='col'>ours</th><th scope='col'>paper</th>"
        else:
            first += f"<th rowspan='2' scope='col'>{text(heading)}</th>"
    lines = []
    for row in table.rows:
        cells = "".join(_cells(table, row, metric) for metric in table.metrics)
        lines.append(f"<tr><th scope='row'>{text(row.title)}</th>{cells}</tr>")
    body = "\n".join(lines)
    notes = "".join(f"<li>{text(note)}</li>" for note in table.notes)
    below = _contrasts(table) + (f"<ul class='notes'>{notes}</ul>\n" if notes else "")
    return (
        "<section>\n<table class='results'>\n<thead>"
        f"<tr><th scope='col' rowspan='2'>Method</th>{first}</tr><tr>{second}</tr></thead>\n"
        f"<tbody>\n{body}\n</tbody>\n</table>\n" + below + "</section>"
    )


def _sheet(lines: Lines) -> str:
    if not lines:
        return ""
    head = "".join(f"<th scope='col'>{text(heading)}</th>" for heading in lines[0])
    body = "\n".join(
        f"<tr><th scope='row'>{text(first)}</th>{''.join(f'<td>{text(each)}</td>' for each in rest)}</tr>"
        for first, *rest in lines[1:]
    )
    return f"<div class='wide'><table class='results'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _earners(table: Table) -> str:
    note = "Mean share of the margin of training pairs, in nats, by component and prompt family, after training."
    blocks = "".join(
        f"<details><summary>{text(title)}</summary>{_sheet(lines)}</details>" for title, lines in earners(table)
    )
    return f"<p class='muted'>{note}</p>{blocks}" if blocks else ""


def _contrasts(table: Table) -> str:
    if not table.contrasts:
        return ""
    head = "".join(f"<th scope='col'>{text(heading)}</th>" for heading in CONTRAST_HEADINGS)
    rows = "\n".join(
        f"<tr><th scope='row'>{text(first)}</th>{''.join(f'<td>{text(each)}</td>' for each in rest)}</tr>"
        for first, *rest in contrast_lines(table)
    )
    return f"<table class='results'>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>\n"


def _cells(table: Table, row: MethodRow, metric: str) -> str:
    paper = f"<td class='paper'>{show_paper(table, row, metric)}</td>" if table.in_paper(metric) else ""
    if metric not in row.cells:
        return f"<td class='gap'>{row.gap}</td>{paper}"
    cell, places = row.cells[metric], decimals(table, metric)
    error = "" if cell.se is None else f" <span class='se'>± {cell.se:.{places}f}</span>"
    return f"<td>{cell.value:z.{places}f}{error}</td>{paper}"


def _breakdowns(table: Table) -> str:
    """Metrics that runs report by group (an attribute, say): `{kind: {group: {metric: figure}}}` in `metrics.json`."""
    finished = [row for row in table.rows if row.runs]
    found: dict[tuple[str, str], dict[str, dict[str, list[float]]]] = {}  # kind, metric -> group -> method -> seeds
    for row in finished:
        for run in row.runs.values():
            for kind, groups in (run.metrics or {}).items():
                for group, metrics in groups.items() if isinstance(groups, dict) else ():
                    for metric in table.metrics:
                        if isinstance(metrics, dict) and metric in metrics:
                            by_method = found.setdefault((kind, metric), {}).setdefault(group, {})
                            by_method.setdefault(row.method, []).append(metrics[metric]["value"])
    blocks = []
    for (kind, metric), groups in found.items():
        head = "".join(f"<th scope='col'>{text(row.title)}</th>" for row in finished)
        body = ""
        for group, by_method in groups.items():
            seeds = [by_method.get(row.method, []) for row in finished]
            shown = [f"{sum(v) / len(v):z.{decimals(table, metric)}f}" if v else "–" for v in seeds]
            body += f"<tr><th scope='row'>{text(group)}</th>{''.join(f'<td>{value}</td>' for value in shown)}</tr>"
        heading = f"{table.metrics[metric]} by {kind}, mean over seeds"
        rows = f"<thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody>"
        blocks.append(
            f"<details><summary>{text(heading)}</summary>"
            f"<div class='wide'><table class='results'>{rows}</table></div></details>"
        )
    return "".join(blocks)


def _figures(drawn: Drawn) -> str:
    shown = "".join(_figure(figure, figure.svg) for figure in drawn.figures if figure.svg is not None)
    missing = "".join(f"<li>{text(line)}</li>" for line in drawn.missing)
    folded = f"<details><summary>Figures that lack their input</summary><ul class='notes'>{missing}</ul></details>"
    return (f"<div class='figures'>{shown}</div>" if shown else "") + (folded if missing else "")


def _figure(figure: Figure, drawing: str) -> str:
    svg = drawing[drawing.index("<svg") :]
    # several drawings in one page: their ids must differ; and text takes the page's colour, light or dark
    svg = re.sub(r'\bid="', f'id="{figure.name}-', svg)
    svg = svg.replace("url(#", f"url(#{figure.name}-").replace('href="#', f'href="#{figure.name}-')
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL).replace(INK, "currentColor")
    return f"<figure>{svg}<figcaption>{text(figure.caption)}</figcaption></figure>"


def _commands(table: Table) -> str:
    seeds = sorted({seed for row in table.rows for seed in row.runs}) or [0]
    note = "A finished run is read, not repeated; with another outputs=… every row is made anew."
    return f"<p class='muted'>{note}</p>" + "".join(
        f"<h3>{text(row.title)}</h3><pre>{text(table.command([row.method], list(row.runs) or seeds))}</pre>"
        for row in table.rows
    )


def _configs(table: Table) -> str:
    """The first run's config in full; of each other row what is different in it."""
    finished = [(row, run) for row in table.rows for run in list(row.runs.values())[:1] if run.config]
    if not finished:
        return ""
    (first, run), *others = finished
    base = comparable(run.config or {})
    blocks = [_folded(f"{first.title}: all settings", OmegaConf.to_yaml(OmegaConf.create(run.config)))]
    for row, other in others:
        changed = differences(base, comparable(other.config or {}))
        lines = "\n".join(f"{key}: {one} → {two}" for key, (one, two) in changed.items())
        blocks.append(_folded(f"{row.title}: what differs from {first.title}", lines or "nothing"))
    return "".join(blocks)


def _folded(heading: str, content: str) -> str:
    return f"<details><summary>{text(heading)}</summary><pre>{text(content)}</pre></details>"


def _environments(table: Table) -> str:
    """What the runs wrote when they were opened, once for all that agree."""
    found: dict[tuple[tuple[str, str], ...], list[tuple[str, str]]] = {}
    for row in table.rows:
        for seed, run in row.runs.items():
            facts = dict(run.environment)
            opened = facts.pop("opened", "")
            if facts:
                found.setdefault(tuple(facts.items()), []).append((f"{row.method}, seed {seed}", opened))
    blocks = []
    for facts_of_all, runs in found.items():
        times = sorted({opened for _, opened in runs})
        spent = times[0] if len(times) == 1 else f"{times[0]} to {times[-1]}"
        made = {"runs": "; ".join(name for name, _ in runs), "opened": spent}
        pairs = "".join(f"<dt>{text(k)}</dt><dd>{text(v)}</dd>" for k, v in {**made, **dict(facts_of_all)}.items())
        blocks.append(f"<dl class='pairs'>{pairs}</dl>")
    return "".join(blocks)
