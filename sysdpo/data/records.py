"""Preference records, `{"x": …, "chosen": {variable: value}, "rejected": {…}}`, checked against a graph."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import load_dataset

from sysdpo.data.storage import load_rows
from sysdpo.errors import SettingError, nearest
from sysdpo.graph import SystemGraph
from sysdpo.system import CompoundSystem, Pair

Row = dict[str, Any]

INPUT_COLUMNS = ("x", "prompt", "question", "instruction")
"""Where the one input of a system is looked for in foreign data, if no column has its name."""


@dataclass(frozen=True)
class PreferenceData:
    """What a run needs: pairs to train on, pairs to stop by, rows to be judged on.

    An evaluation row holds the inputs, `chosen` (the data set's preferred outcome) and the columns a judge needs.
    """

    train: list[Pair]
    validation: list[Pair]
    evaluation: list[Row]


def read_rows(path: str | Path, setting: str = "dataset.path") -> list[Row]:
    """The rows of a JSONL file or of a `datasets` directory; `setting` is what an error calls the path."""
    path = Path(path).expanduser()
    if path.is_dir():
        rows = load_rows(path)
    elif path.is_file():
        rows = list(_parse_lines(path))
    else:
        raise SettingError(f"{setting}={path}: there is no such file or folder.")
    if not rows:
        raise SettingError(f"{setting}={path}: the data set is empty.")
    return rows


def fetch_rows(repository: str) -> list[Row]:
    """The split `train` of a data set on the hub, from this machine's cache where it was fetched before."""
    try:
        return [dict(row) for row in load_dataset(repository, split="train")]
    except Exception as error:  # not found, no network, no such split: of whatever client lies below
        raise SettingError(
            f"dataset.hub={repository!r}: cannot be fetched ({type(error).__name__}); connect to the hub once, or "
            "download it and set dataset.path to a JSONL file with the same columns."
        ) from error


def _parse_lines(path: Path) -> Iterable[Row]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8"))
            except UnicodeDecodeError as error:
                raise SettingError(f"{path.name}, line {number}: not UTF-8.") from error
            except json.JSONDecodeError as error:
                raise SettingError(f"{path.name}, line {number}: not valid JSON ({error.msg}).") from error
            if not isinstance(row, dict):
                raise SettingError(f"{path.name}, line {number}: a row must be a JSON object.")
            yield row


def make_pairs(
    rows: Sequence[Mapping[str, Any]],
    graph: SystemGraph,
    *,
    needs_intermediates: bool,
    inputs: Mapping[str, str] | None = None,
) -> list[Pair]:
    """Check rows against a graph, naming the first that lacks something.

    Args:
        rows: columns for the inputs, and `chosen` and `rejected`: a mapping of variables, or the value itself where
            the graph has one final variable.
        needs_intermediates: SysDPO-Direct scores every generated variable; SysDPO-Sampling the final ones only.
        inputs: `{input variable: template over the row's columns}`, for data whose columns have other names.
    """
    if not rows:
        raise SettingError("the data set is empty.")
    columns = _input_templates(rows[0], graph, inputs)
    wanted = [v.name for v in (graph.generated if needs_intermediates else graph.finals)]
    pairs = []
    for number, row in enumerate(rows, 1):
        values = {name: _fill(template, row, number, name) for name, template in columns.items()}
        sides = {side: _side(row, side, number, graph, wanted, values) for side in ("chosen", "rejected")}
        extra = {k: v for k, v in row.items() if k not in ("chosen", "rejected")}
        pairs.append(Pair(number - 1, values, sides["chosen"], sides["rejected"], extra))
    return pairs


def read_pairs(path: str | Path, system: CompoundSystem, inputs: Mapping[str, str] | None = None) -> list[Pair]:
    """The preference pairs of a file or folder, checked against a system.

    Each row needs the final variables of both sides; SysDPO-Direct needs the intermediate ones too, and says so.

    Args:
        inputs: `{input variable: template over the row's columns}`, for data whose columns have other names.

    Raises:
        SettingError: a row lacks something or cannot be scored, by its number.
    """
    pairs = make_pairs(read_rows(path, "path"), system.graph, needs_intermediates=False, inputs=inputs)
    for side in ("chosen", "rejected"):
        system.check_rows([pair.row(side) for pair in pairs], [pair.index + 1 for pair in pairs])
    return pairs


def _input_templates(row: Mapping[str, Any], graph: SystemGraph, inputs: Mapping[str, str] | None) -> dict[str, str]:
    templates = dict(inputs or {})
    known = [v.name for v in graph.inputs]
    for name in templates:
        if name not in known:
            raise SettingError(f"dataset.inputs: {nearest(name, known)}")
    for variable in graph.inputs:
        if variable.name in templates:
            continue
        names = (variable.name, *(INPUT_COLUMNS if len(graph.inputs) == 1 else ()))
        column = next((name for name in names if name in row), None)
        if column is None:
            raise SettingError(
                f"row 1 lacks {variable.name!r} (its columns: {', '.join(row)}); "
                f"set 'dataset.inputs={{{variable.name}:\"{{column}}\"}}'."
            )
        templates[variable.name] = f"{{{column}}}"
    return templates


def _fill(template: str, row: Mapping[str, Any], number: int, variable: str) -> Any:
    column = template[1:-1]
    if template == f"{{{column}}}" and column in row:
        value = row[column]
    else:
        try:
            value = template.format(**row).strip()  # an empty column leaves no blank lines
        except KeyError as error:
            raise SettingError(f"row {number} lacks the column {error} of dataset.inputs.{variable}.") from error
        except (ValueError, IndexError, AttributeError) as error:
            raise SettingError(f"dataset.inputs.{variable}={template!r}: {error}; write {{column}}.") from error
    if value is None:
        raise SettingError(f"row {number} lacks {variable!r}.")
    return value


def _side(
    row: Mapping[str, Any], side: str, number: int, graph: SystemGraph, wanted: Sequence[str], inputs: Row
) -> Row:
    value = row.get(side)
    if value is None:
        raise SettingError(f"row {number} lacks {side!r}.")
    if not isinstance(value, Mapping):
        if len(graph.finals) != 1:
            names = ", ".join(v.name for v in graph.finals)
            raise SettingError(f"row {number}: {side!r} must map each of {names} to its value.")
        value = {graph.finals[0].name: value}
    for name in wanted:
        if graph[name].is_closed({**inputs, **value}):
            if value.get(name) is not None:
                gates = " and ".join(f"{gate} is {' or '.join(map(str, v))}" for gate, v in graph[name].gates)
                raise SettingError(
                    f"row {number}: {side!r} has a value for {name!r}, which is drawn only where {gates}."
                )
            value = {**value, name: None}
        elif value.get(name) is None:
            hint = "" if graph[name].role == "final" else "; SysDPO-Direct needs it, objective=sampling does not"
            raise SettingError(f"row {number}: {side!r} lacks the variable {name!r}{hint}.")
    return {k: v for k, v in value.items() if k in graph.variables}
