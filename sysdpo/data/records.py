"""Preference records: rows of any known format as pairs of assignments to a graph's variables, checked one by one."""

import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sysdpo.components.text.conversation import Conversation
from sysdpo.data.files import Record
from sysdpo.data.formats import Reading, read_row
from sysdpo.data.messages import conversation, is_messages, is_parts, kind, text_of, turns_of
from sysdpo.errors import SettingError, Unserved, nearest
from sysdpo.graph import SystemGraph
from sysdpo.system import Pair


@dataclass(frozen=True)
class PreferenceData:
    """What a run needs: pairs to train on, pairs to stop by, rows to be judged on.

    An evaluation row holds the inputs, `chosen` (the data set's preferred outcome) and the columns a judge needs.
    `spent` says what making the training pairs took, where they were made: `answers`, `judge_calls`.
    """

    train: list[Pair]
    validation: list[Pair]
    evaluation: list[Record]
    spent: Mapping[str, float] = field(default_factory=dict)


DEPTH = 64
"""Lists and mappings within one another that a row may hold; what is deeper is no data set's row."""


@dataclass
class Understood:
    """Pairs, and what became of the rows that are none."""

    pairs: list[Pair]
    formats: Counter[str] = field(default_factory=Counter)
    dropped: dict[str, list[int]] = field(default_factory=dict)
    """By reason, the numbers of the rows, counted from 1."""
    remarks: list[str] = field(default_factory=list)

    def drop(self, reason: str, number: int) -> None:
        self.dropped.setdefault(reason, []).append(number)


def understand(
    rows: Sequence[Mapping[str, Any]],
    graph: SystemGraph,
    *,
    needs_intermediates: bool,
    inputs: Mapping[str, str] | None = None,
    columns: Mapping[str, str] | None = None,
    drop_bad: bool = False,
) -> Understood:
    """Check rows against a graph, naming the first that lacks something.

    Args:
        rows: in any format of `formats`.
        needs_intermediates: SysDPO-Direct scores every generated variable; SysDPO-Sampling the final ones only.
        inputs: `{input variable: template over the row's columns}`, for data whose columns have other names.
        columns: `{chosen: column, rejected: column}`, where the answers have other names.
        drop_bad: leave out and count what would be refused.
    """
    if not rows:
        raise SettingError("the data set is empty.")
    templates = dict(inputs or {})
    for name in templates:
        if name not in [v.name for v in graph.inputs]:
            raise SettingError(f"dataset.inputs: {nearest(name, [v.name for v in graph.inputs])}")
    wanted = [v.name for v in (graph.generated if needs_intermediates else graph.finals)]
    result = Understood([])
    doubts: dict[str, list[int]] = {}
    bad: list[tuple[int, SettingError]] = []
    for number, row in enumerate(rows, 1):
        try:
            _check_texts(row)
            reading, values = _read(row, graph, templates, columns)
            if reading.tie is not None:
                result.drop(f"a tie by the data ({reading.tie})", number)
                continue
            sides = {s: _side(v, s, graph, wanted, values) for s, v in _sides(reading)}
        except SettingError as error:
            bad.append((number, error))
            continue
        result.formats[reading.format] += 1
        for doubt in reading.doubts:
            doubts.setdefault(doubt, []).append(number)
        extra = {k: v for k, v in row.items() if k not in ("chosen", "rejected")}
        result.pairs.append(Pair(number - 1, values, sides["chosen"], sides["rejected"], extra))
    unserved = len(bad) == len(rows) and all(isinstance(error, Unserved) for _, error in bad)
    refuse(bad, drop_bad and not unserved, result, total=len(rows))
    result.remarks = [
        f"{len(found)} pairs {doubt}: all are taken ({_listed(found)})" for doubt, found in doubts.items()
    ]
    return result


def make_pairs(
    rows: Sequence[Mapping[str, Any]],
    graph: SystemGraph,
    *,
    needs_intermediates: bool,
    inputs: Mapping[str, str] | None = None,
) -> list[Pair]:
    """The pairs of `understand`; ties by the data's own word are left out."""
    return understand(rows, graph, needs_intermediates=needs_intermediates, inputs=inputs).pairs


def refuse(
    bad: Sequence[tuple[int, SettingError]],
    drop: bool,
    result: Understood,
    setting: str = "bad_rows",
    *,
    total: int,
) -> None:
    """Refuse rows with the first one's reason and the numbers of the next, or drop and count them all.

    Where all `total` rows are bad, dropping them is no remedy.
    """
    if not bad:
        return
    if drop:
        for number, error in bad:
            result.drop(_reason(error), number)
        return
    number, error = bad[0]
    others = f"; so are {len(bad) - 1} more: {_listed([n for n, _ in bad[1:]])}" if len(bad) > 1 else ""
    said = str(error).rstrip(".")
    glue = "" if said.startswith((":", ",")) else ": " if said.startswith(("'", "a ", "the ")) else " "
    choice = (
        "cut" if setting == "overlong" and len(bad) == total else "drop or cut" if setting == "overlong" else "drop"
    )
    remedy = f"; mend {'them' if others else 'it'}, or set dataset.{setting}={choice}"
    if len(bad) == total and setting != "overlong":
        others, remedy = f"; so are all {total} rows" if total > 1 else "", ""
    raise type(error)(f"row {number}{glue}{said}{others}{remedy}.") from error


def _reason(error: SettingError) -> str:
    """What rows that are refused for one reason share: the line without the values it quotes."""
    return str(error).lstrip(":, ").split(";")[0].split(" (its columns")[0].rstrip(".")[:100]


def _listed(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:3]))
    return f"rows {shown} …" if len(numbers) > 3 else f"row{'s' if len(numbers) > 1 else ''} {shown}"


def _sides(reading: Reading) -> tuple[tuple[str, Any], tuple[str, Any]]:
    return ("chosen", reading.chosen), ("rejected", reading.rejected)


def _check_texts(row: Mapping[str, Any]) -> None:
    """Refuse half characters, which no tokenizer and no file takes, and nesting that no walk survives."""
    stack: list[tuple[str, Any, int]] = [(str(key), value, 0) for key, value in row.items()]
    stack += [("a column's name", key, 0) for key in row]
    while stack:
        column, value, depth = stack.pop()
        if depth > DEPTH:
            raise SettingError(f": {column!r} is nested more than {DEPTH} deep")
        if isinstance(value, Mapping):
            stack += [(column, v, depth + 1) for v in value.values()] + [(column, k, depth + 1) for k in value]
        elif isinstance(value, list | tuple):
            stack += [(column, v, depth + 1) for v in value]
        elif isinstance(value, str) and not value.isascii() and (half := half_character(value)) is not None:
            raise SettingError(
                f": {column!r} holds half a character (\\u{ord(value[half]):04x}, at position {half}), as of an emoji "
                "cut in two"
            )


def half_character(text: str) -> int | None:
    """Where a text holds a lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return error.start
    return None


def _read(
    row: Mapping[str, Any], graph: SystemGraph, templates: Mapping[str, str], columns: Mapping[str, str] | None
) -> tuple[Reading, Record]:
    names = [v.name for v in graph.inputs]
    reading = read_row(
        row,
        input_name=names[0] if len(names) == 1 else None,
        variables=list(graph.variables),
        prompt_given=all(name in templates for name in names),
        columns=columns,
    )
    values: Record = {}
    for name in names:
        if name in templates:
            values[name] = _fill(templates[name], row, name)
        elif len(names) == 1:
            values[name] = reading.prompt
        elif row.get(name) is None:
            raise SettingError(
                f"lacks {name!r} (its columns: {', '.join(map(str, row))}); "
                f"set 'dataset.inputs={{{name}:\"{{column}}\"}}'"
            )
        else:
            values[name] = _value(row[name], name)
    for side, value in _sides(reading):
        for name in names if isinstance(value, Mapping) else ():
            if name in value and value[name] != values[name]:
                raise SettingError(
                    f": {side!r} has another value for the input {name!r} than the row; remove it from {side!r}"
                )
    return reading, values


def _value(value: Any, name: str) -> Any:
    if is_messages(value):
        return conversation(turns_of(value))
    return text_of(value, repr(name)) if is_parts(value) else value


def _fill(template: str, row: Mapping[str, Any], variable: str) -> Any:
    where = f"dataset.inputs.{variable}"
    try:
        parts = list(string.Formatter().parse(template))
        fields = [(text, f and string.Formatter().get_field(f, (), row)[0]) for text, f, _, _ in parts]
    except KeyError as error:
        raise SettingError(f"lacks the column {error} of {where}") from error
    except (ValueError, IndexError, AttributeError, TypeError) as error:
        raise SettingError(f": {where}={template!r}: {error}; write {{column}}") from error
    if len(parts) == 1 and parts[0][1] and not parts[0][0]:
        value = _value(fields[0][1], variable)
        if value is None:
            raise SettingError(f"lacks {variable!r}")
        return value
    for (_, name, _, _), (_, value) in zip(parts, fields, strict=True):
        if name and value is not None and (isinstance(value, bool) or not isinstance(value, str | int | float)):
            raise SettingError(f": {where} puts {kind(value)} ({name!r}) into a text; name columns of texts")
    # an empty column leaves no blank lines
    return "".join(text + ("" if value is None else str(value)) for text, value in fields).strip()


def _side(value: Any, side: str, graph: SystemGraph, wanted: Sequence[str], inputs: Record) -> Record:
    if not isinstance(value, Mapping):
        if len(graph.finals) != 1:
            names = ", ".join(v.name for v in graph.finals)
            raise SettingError(f": {side!r} must map each of {names} to its value")
        value = {graph.finals[0].name: value}
    for name in wanted:
        if graph[name].is_closed({**inputs, **value}):
            if value.get(name) is not None:
                gates = " and ".join(f"{gate} is {' or '.join(map(str, v))}" for gate, v in graph[name].gates)
                raise SettingError(f": {side!r} has a value for {name!r}, which is drawn only where {gates}")
            value = {**value, name: None}
        elif value.get(name) is None:
            if graph[name].role == "final":
                raise SettingError(f": {side!r} lacks the variable {name!r}")
            raise Unserved(
                f": {side!r} lacks the variable {name!r}; SysDPO-Direct needs it, objective=sampling does not; "
                "dataset=own_samples draws such pairs from the system itself"
            )
    # a column of Parquet gives every row every key: what is null was not said, or not drawn
    given = {k: v for k, v in value.items() if k in graph.variables and v is not None}
    return {**given, **{name: None for name in wanted if name not in given}}


def prompt_key(pair: Pair) -> object:
    """What pairs of one prompt share, whatever the blanks and capitals."""
    return tuple(sorted((name, _plain_key(value)) for name, value in pair.inputs.items()))


def _plain_key(value: Any) -> object:
    if isinstance(value, Conversation):
        return repr([(turn.role, _folded(turn.content)) for turn in value.turns])
    return _folded(value) if isinstance(value, str) else repr(value)


def _folded(text: str) -> str:
    return " ".join(text.split()).casefold()
