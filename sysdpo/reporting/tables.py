"""The table of an experiment, from its run folders: every row of the config, the paper's figures beside ours."""

import csv
import io
import os
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from omegaconf import OmegaConf

from sysdpo.errors import SettingError
from sysdpo.reporting.contrasts import Contrast, make_contrasts
from sysdpo.reporting.pooling import Cell, pool
from sysdpo.runs.files import write_json, write_text
from sysdpo.runs.folder import RunFolder, survey
from sysdpo.runs.identity import NEITHER, PATHS, changes_nothing


@dataclass(frozen=True)
class MethodRow:
    """One method; `runs` maps a seed to its finished run and is empty where there is none.

    `unserved`: why there is none, where the data set cannot serve the method.
    """

    method: str
    title: str
    runs: dict[int, RunFolder]
    cells: dict[str, Cell]
    paper: dict[str, float]
    unserved: str = ""

    @property
    def gap(self) -> str:
        """What stands in place of a figure."""
        return "–" if self.runs else "not served" if self.unserved else "missing"


@dataclass(frozen=True)
class Table:
    """`caption` names scale, judge or scorer, seeds and data set; `notes` say what a reader must know of gaps."""

    experiment: str
    scale: str
    title: str
    metrics: dict[str, str]  # name -> heading
    rows: list[MethodRow]
    caption: str
    contrasts: list[Contrast]
    notes: list[str]
    overrides: tuple[str, ...]

    def in_paper(self, metric: str) -> bool:
        """Whether the paper has a figure of it, for any row: a column beside ours."""
        return any(metric in row.paper for row in self.rows)

    def command(self, methods: Sequence[str], seeds: Sequence[int], settings: Sequence[str] = ()) -> str:
        """The command that trains and judges these rows under these seeds, with further settings."""
        values = [f"method={','.join(methods)}", f"seed={','.join(map(str, seeds))}"]
        several = ["-m"] if len(methods) * len(seeds) > 1 else []
        return shlex.join(["python", "scripts/train.py", *several, *self.overrides, *settings, *values])


def make_table(config: Mapping[str, Any], method_folder: Path, overrides: Sequence[str] = ()) -> Table:
    """Read the runs of an experiment.

    Args:
        config: resolved; `experiment, scale, table_folder, rows, metrics, title`, and where there are any `paper`
            (method -> metric -> figure), `metric_titles` (metric -> heading) and `contrasts` (metric -> pairs of
            methods whose difference is shown).
        method_folder: `conf/method`, where the rows' titles are.
        overrides: what was set on the command line, repeated in the commands that fill a gap.

    Raises:
        SettingError: the experiment names no rows or metrics, or a row that has no config.
    """
    for key in ("rows", "metrics", "title"):
        if not config.get(key):
            raise SettingError(f"{key}: experiment {config.get('experiment')!r} names none, so it has no table.")
    paper = config.get("paper") or {}
    rows, notes = [], []
    for method in config["rows"]:
        runs, left_out = survey(Path(config["table_folder"]), method)
        notes += left_out
        cells = {}
        for metric in config["metrics"]:
            cell, remark = pool(list(runs.values()), metric)
            if cell is not None:
                cells[metric] = cell
            if remark is not None:
                notes.append(f"{method}, {metric}: {remark}.")
        title, unserved = _title(method_folder, method), ""
        if not runs and (found := _unserved(Path(config["table_folder"]) / method)) is not None:
            unserved = f"{method}: the data set {found[0]} cannot serve it: {found[1]}"
            notes.append(unserved)
        rows.append(MethodRow(method, title, runs, cells, dict(paper.get(method) or {}), unserved))
    titles = config.get("metric_titles") or {}
    kept = [o for o in overrides if o.split("=")[0].lstrip("+~") not in ("method", "seed")]
    if not any(o.startswith("experiment=") for o in kept):
        kept = [f"experiment={config['experiment']}", *kept]
    table = Table(
        experiment=config["experiment"],
        scale=config["scale"],
        title=config["title"],
        metrics={metric: titles.get(metric, metric) for metric in config["metrics"]},
        rows=rows,
        caption=_caption(config, rows),
        contrasts=make_contrasts(config.get("contrasts") or {}, {row.method: row.runs for row in rows}),
        notes=notes,
        overrides=tuple(kept),
    )
    notes += _gaps(table, int(config.get("seed", 0)))
    notes += _mismatches(config, rows)
    notes += _untrained(rows)
    return table


def _unserved(folder: Path) -> tuple[str, str] | None:
    """(data set, reason) of the first seed's run that the data could not serve."""
    found = (RunFolder(path).unserved for path in sorted(folder.glob("seed=*")))
    return next((each for each in found if each is not None), None)


def _title(folder: Path, method: str) -> str:
    file = folder / f"{method}.yaml"
    if not file.exists():
        raise SettingError(f"rows: {method!r} has no config; write {file}, or take it out of the experiment's rows.")
    return str(OmegaConf.load(file).method.title)


# ---- what is said about the runs ---------------------------------------------------------------------------------


def _caption(config: Mapping[str, Any], rows: Sequence[MethodRow]) -> str:
    parts = [f"Scale: {config['scale']}"]
    for name, values in _remarks(rows).items():
        parts.append(f"{name}: {' / '.join(values)}")
    seeds = sorted({seed for row in rows for seed in row.runs})
    parts.append(f"seeds: {', '.join(map(str, seeds)) or 'none yet'}")
    parts.append(f"data: {config['dataset']['name']}")
    counts = sorted({cell.n for row in rows for cell in row.cells.values()})
    if counts:
        parts.append(f"n = {' to '.join(map(str, {counts[0]: 0, counts[-1]: 0}))} evaluation rows")
    paper = " The paper's figures are from its own models, data and judge." if any(row.paper for row in rows) else ""
    return f"{'; '.join(parts)}. Mean over seeds ± standard error over evaluation rows.{paper}"


def _remarks(rows: Sequence[MethodRow]) -> dict[str, list[str]]:
    """What the runs say in words beside their figures, such as the judge's name."""
    found: dict[str, dict[str, None]] = {}
    for run in (run for row in rows for run in row.runs.values()):
        for name, value in (run.metrics or {}).items():
            if isinstance(value, str) and name != "method":
                found.setdefault(name, {})[value] = None
    return {name: list(values) for name, values in found.items()}


def _gaps(table: Table, seed: int) -> Iterator[str]:
    seeds = sorted({seed for row in table.rows for seed in row.runs})
    missing = [row.method for row in table.rows if not row.runs and not row.unserved]
    if missing:
        yield f"No finished run of {', '.join(missing)}. To fill in: {table.command(missing, seeds or [seed])}"
    for row in table.rows:
        lacking = [s for s in seeds if s not in row.runs]
        if row.runs and lacking:
            yield (
                f"{row.method} lacks seed {', '.join(map(str, lacking))}. "
                f"To fill in: {table.command([row.method], lacking)}"
            )


def _mismatches(config: Mapping[str, Any], rows: Sequence[MethodRow]) -> Iterator[str]:
    for name, values in _remarks(rows).items():
        if len(values) > 1:
            yield f"The runs do not agree on the {name}: {' / '.join(values)}."
    for row in rows:
        configs = [(seed, comparable(run.config or {})) for seed, run in row.runs.items()]
        for seed, other in configs[1:]:
            keys = differences(configs[0][1], other)
            if keys:
                yield f"{row.method}: seed {seed} was run with another config than seed {configs[0][0]}: {_list(keys)}."
        mine = _dataset(comparable(config))
        others: dict[str, list[int]] = {}
        for seed, other in configs:
            if keys := differences(mine, _dataset(other)):
                others.setdefault(_list(keys), []).append(seed)
        for listed, seeds in others.items():
            yield f"{row.method}, {_which(seeds)}: not the data set of this report's config: {listed}."


def _untrained(rows: Sequence[MethodRow]) -> Iterator[str]:
    for row in rows:
        if seeds := [seed for seed, run in row.runs.items() if run.kept_untrained]:
            yield (
                f"{row.method}, {_which(seeds)}: no weights beat the untrained ones in validation, so the figures are "
                "the untrained system's. training.validate_every=0 keeps the last weights."
            )


def _which(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def _dataset(flat: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in flat.items() if key.startswith("dataset.")}


def comparable(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value of what decides numbers, paths in full; not the run's seed (`dataset.seed` is the data's)."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if (key == "seed" and prefix != "dataset.") or (not prefix and key in NEITHER):
            continue
        if isinstance(value, Mapping) and value:
            flat |= comparable(value, f"{prefix}{key}.")
        elif not changes_nothing(prefix.rstrip(".").rpartition(".")[2], str(key)):
            is_path = key in PATHS and isinstance(value, str) and os.path.exists(value)
            flat[f"{prefix}{key}"] = os.path.abspath(value) if is_path else value
    return flat


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The keys of two flat configs that do not agree; a key that only one has stands beside None."""
    keys = [*one, *(key for key in other if key not in one)]
    return {key: (one.get(key), other.get(key)) for key in keys if one.get(key) != other.get(key)}


def _list(keys: Mapping[str, tuple[Any, Any]]) -> str:
    shown = [f"{key} {one} / {other}" for key, (one, other) in list(keys.items())[:5]]
    return ", ".join(shown) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")


# ---- the three files ---------------------------------------------------------------------------------------------


def write_table(table: Table, folder: Path) -> None:
    """`table.json`, `table.csv`, `table.md`: the same figures, the first two unrounded."""
    write_json(folder / "table.json", as_json(table))
    write_text(folder / "table.csv", as_csv(table))
    write_text(folder / "table.md", as_markdown(table))


def as_json(table: Table) -> dict[str, Any]:
    rows = []
    for row in table.rows:
        # a metric that has not been measured is there as null: a reader need not guess what is missing
        cells = {metric: vars(row.cells[metric]) if metric in row.cells else None for metric in table.metrics}
        rows.append({"method": row.method, "title": row.title, "seeds": list(row.runs), **cells, "paper": row.paper})
    return {
        "experiment": table.experiment,
        "scale": table.scale,
        "title": table.title,
        "caption": table.caption,
        "notes": table.notes,
        "rows": rows,
        "contrasts": [contrast.as_json() for contrast in table.contrasts],
    }


def as_csv(table: Table) -> str:
    """One line a method; an empty field is a figure that does not exist."""
    text = io.StringIO()
    columns = [f"{metric}{suffix}" for metric in table.metrics for suffix in ("", "_se", "_n", "_paper")]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["method", "title", "seeds", *columns])
    for row in table.rows:
        fields: list[Any] = [row.method, row.title, " ".join(map(str, row.runs))]
        for metric in table.metrics:
            cell = row.cells.get(metric)
            fields += [cell.value, cell.se, cell.n] if cell else [None, None, None]
            fields.append(row.paper.get(metric))
        writer.writerow(fields)
    return text.getvalue()


def as_markdown(table: Table) -> str:
    header = ["Method"]
    for metric, heading in table.metrics.items():
        header += [heading, "paper"] if table.in_paper(metric) else [heading]
    lines = [header]
    for row in table.rows:
        line = [row.title]
        for metric in table.metrics:
            paper = [show_paper(table, row, metric)] if table.in_paper(metric) else []
            line += [show(table, row, metric), *paper]
        lines.append(line)
    body = aligned(lines)
    if table.contrasts:
        body += f"\n\n{aligned([list(CONTRAST_HEADINGS), *map(list, contrast_lines(table))])}"
    notes = "".join(f"- {note}\n" for note in table.notes)
    return f"**{table.title}**\n\n{body}\n\n{table.caption}\n" + (f"\n{notes}" if notes else "")


CONTRAST_HEADINGS = ("Difference, prompt by prompt", "in", "value", "standard errors")


def contrast_lines(table: Table) -> Iterator[tuple[str, str, str, str]]:
    """What is compared, the metric's heading, the difference with its error, and their ratio."""
    titles = {row.method: row.title for row in table.rows}
    for contrast in table.contrasts:
        yield (
            " − ".join(titles.get(method, method) for method in (contrast.minuend, contrast.subtrahend)),
            table.metrics.get(contrast.metric, contrast.metric),
            *show_contrast(contrast, decimals(table, contrast.metric)),
        )


def show_contrast(contrast: Contrast, places: int) -> tuple[str, str]:
    """`+2.4 ± 0.6` and its ratio, `+4.1`."""
    ratio = contrast.standard_errors
    return show_cell(contrast.cell, places, "+"), "–" if ratio is None else f"{ratio:+z.1f}"


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns line up; the first is to the left, the others to the right."""
    widths = [max(2, *map(len, column)) for column in zip(*lines, strict=True)]  # a rule is a dash and a colon
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    first, *rest = [
        f"| {line[0]:<{widths[0]}} | {' | '.join(f'{t:>{w}}' for t, w in zip(line[1:], widths[1:], strict=True))} |"
        for line in lines
    ]
    return "\n".join([first, f"| {' | '.join(rule)} |", *rest])


def show(table: Table, row: MethodRow, metric: str) -> str:
    """`66.4 ± 2.1`; all figures of a column have the same number of decimals."""
    if metric not in row.cells:
        return row.gap
    return show_cell(row.cells[metric], decimals(table, metric))


def show_cell(cell: Cell, places: int, sign: str = "") -> str:
    error = "" if cell.se is None else f" ± {cell.se:.{places}f}"
    return f"{cell.value:{sign}z.{places}f}{error}"


def show_paper(table: Table, row: MethodRow, metric: str) -> str:
    if metric not in row.paper:
        return "–"
    return f"{row.paper[metric]:.1f}" if decimals(table, metric) == 1 else f"{row.paper[metric]:.2f}"


def decimals(table: Table, metric: str) -> int:
    """One decimal for percentages, three for figures around one."""
    ours = [abs(row.cells[metric].value) for row in table.rows if metric in row.cells]
    papers = [abs(row.paper[metric]) for row in table.rows if metric in row.paper]
    return places_of(table.metrics[metric], ours + papers)


def places_of(heading: str, sizes: Sequence[float]) -> int:
    """Decimals of a column, from its heading and the sizes of its figures."""
    return 1 if "%" in heading or max(sizes, default=0.0) >= 10 else 3


def show_mean(values: Iterable[float | None], form: str) -> str:
    """The mean of the values that are known, in a format of Python's; – of none."""
    known = [float(value) for value in values if value is not None]
    return f"{mean(known):{form}}" if known else "–"
