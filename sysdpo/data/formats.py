"""One row of anybody's preference data as a prompt, a chosen and a rejected answer; docs/data.md lists the formats.

The prompt is a text or a `Conversation`. A row that could be read in two ways is refused, and so is a value that is no
text: nothing is turned into one.
"""

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from trl.data_utils import extract_prompt

from sysdpo.components.text.conversation import Turn
from sysdpo.data.messages import (
    conversation,
    dialogue,
    is_dialogue,
    is_messages,
    is_parts,
    kind,
    text_of,
    turns_of,
)
from sysdpo.errors import SettingError

ANSWERS = (
    ("chosen", "rejected"),  # TRL and most others
    ("preferred_output", "non_preferred_output"),  # OpenAI
    ("response_j", "response_k"),  # stack-exchange-paired
    ("chosen_response", "rejected_response"),
)
PROMPTS = ("prompt", "question", "instruction", "query", "conversations", "conversation")
SYSTEMS = ("system", "system_prompt")
SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen-rating", "rejected-rating"),
    ("chosen_rating", "rejected_rating"),
    ("rating_chosen", "rating_rejected"),
)
VERDICTS = ("status", "label", "winner", "preference", "verdict", "outcome")
TIES = ("tie", "tied", "draw", "equal", "tie (bothbad)", "both")
UNSEEN = ("tools", "images", "image", "videos", "audio", "chat_template_kwargs")
"""Columns of TRL's that change what its models are given; the models here would not see them."""
EMPTY: tuple[Any, ...] = (None, "", [], {}, "[]", "{}", "null")
REMARKS = re.compile(r".*(id|source|dataset|model|category|status|split|origin|subset|language|lang|license|url|type)$")
"""Columns beside two answers that can hold no prompt."""


@dataclass(frozen=True)
class Reading:
    """A row as it was understood. A `prompt` of None stands in columns of its own; `tie` says why a row is no pair.

    `doubts`: what the row itself says against this reading.
    """

    format: str
    prompt: Any
    chosen: Any
    rejected: Any
    tie: str | None = None
    doubts: tuple[str, ...] = ()


def read_row(
    row: Mapping[str, Any],
    *,
    input_name: str | None,
    variables: Collection[str],
    prompt_given: bool = False,
    columns: Mapping[str, str] | None = None,
) -> Reading:
    """What a row says.

    Args:
        input_name: the system's one input; None where it has several, which stand in columns of their names.
        variables: of the system: a mapping of them is a side in this project's own format.
        prompt_given: the prompt is made by `dataset.inputs`, so none is looked for.
        columns: `{chosen: column, rejected: column}`, where the answers have other names.
    """
    for column in UNSEEN:
        if row.get(column) not in EMPTY and column not in variables and not prompt_given:
            remedy = f"; to leave it out: 'dataset.inputs={{{input_name}:\"{{prompt}}\"}}'" if input_name else ""
            raise SettingError(f"has {column!r}, which a model here would not see{remedy}")
    reading = _read(row, input_name, variables, prompt_given, columns or {})
    return replace(reading, doubts=tuple(_doubts(row, reading)))


def _doubts(row: Mapping[str, Any], reading: Reading) -> Iterator[str]:
    for better, worse in SCORES:
        scores = _number(row.get(better)), _number(row.get(worse))
        if scores[0] is not None and scores[1] is not None and scores[0] < scores[1]:
            yield f"have a lower {better} than {worse}"
    asked = reading.prompt.strip() if isinstance(reading.prompt, str) else ""
    answers = (reading.chosen, reading.rejected)
    if asked and all(isinstance(answer, str) and answer.lstrip().startswith(asked) for answer in answers):
        yield "have two answers that repeat the prompt"


def _number(value: Any) -> float | None:
    """A score, which a CSV file holds as a text."""
    try:
        return None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _read(
    row: Mapping[str, Any],
    input_name: str | None,
    variables: Collection[str],
    prompt_given: bool,
    columns: Mapping[str, str],
) -> Reading:
    better, worse = _answer_columns(row, columns)
    chosen, rejected = _structure(row[better]), _structure(row[worse])
    tie = _tie(row)
    for column, value in ((better, chosen), (worse, rejected)):
        if value is None:
            raise SettingError(f"lacks {column!r}")
    wanted = input_name is not None and not prompt_given
    used = {better, worse}
    if any(isinstance(v, Mapping) and not is_messages(v) for v in (chosen, rejected)):
        better_side = _own_side("chosen", chosen, variables)
        worse_side = _own_side("rejected", rejected, variables)
        prompt = _finish(_prompt(row, str(input_name), used), row, input_name) if wanted else None
        return Reading("sysdpo", prompt, better_side, worse_side, tie)
    if is_messages(chosen) != is_messages(rejected):
        raise SettingError(
            f"has {kind(chosen)} as {better!r} and {kind(rejected)} as {worse!r}; both must be of one kind"
        )
    given = _prompt(row, str(input_name), used) if wanted else None
    if is_messages(chosen):
        return _of_turns(row, input_name, given, chosen, rejected, tie, wanted)
    chosen, rejected = (text_of(v, f"{c!r}") if is_parts(v) else v for c, v in ((better, chosen), (worse, rejected)))
    if not wanted:
        return Reading("texts", None, chosen, rejected, tie)
    if is_dialogue(chosen) and is_dialogue(rejected):
        shared, chosen, rejected = _shared(dialogue(chosen), dialogue(rejected))
        turns = shared if given is None else _same_prompt(given[1], shared, str(input_name))
        return Reading("HH-RLHF", _finish(turns, row, input_name), chosen, rejected, tie)
    if given is None:
        text, chosen, rejected = _implicit(row, chosen, rejected, str(input_name), used)
        return Reading("TRL, implicit prompt", _finish([Turn("user", text)], row, input_name), chosen, rejected, tie)
    name = given[0]
    if name == "HH-RLHF":
        chosen, rejected = (v.strip() if isinstance(v, str) else v for v in (chosen, rejected))
    return Reading(name, _finish(given, row, input_name), chosen, rejected, tie)


# ---- the two answers -----------------------------------------------------------------------------------------------


def _answer_columns(row: Mapping[str, Any], columns: Mapping[str, str]) -> tuple[str, str]:
    for side, column in columns.items():
        if column not in row:
            raise SettingError(f"lacks the column {column!r} of dataset.{side} (its columns: {', '.join(row)})")
    if len(columns) == 2:
        return columns["chosen"], columns["rejected"]
    found = [pair for pair in ANSWERS if all(name in row for name in pair)]
    if len(found) == 1:
        return found[0]
    if found:
        raise SettingError(
            f"has several pairs of answers ({'; '.join(' and '.join(p) for p in found)}); say which: "
            f"dataset.chosen={found[0][0]} dataset.rejected={found[0][1]}"
        )
    if not {"chosen", "rejected"} & set(row) and {"label", "kto_tag"} & set(row) and len(row) > 1:
        raise SettingError(
            "lacks 'chosen' and 'rejected': single answers with a label (KTO) are no pairs; put a good and a bad "
            "answer to each prompt into one row, as 'chosen' and 'rejected'"
        )
    missing = " and ".join(repr(name) for name in ("chosen", "rejected") if name not in row)
    raise SettingError(
        f"lacks {missing} (its columns: {', '.join(map(str, row))}); "
        "name the columns of the answers: dataset.chosen=COLUMN dataset.rejected=COLUMN"
    )


def _structure(value: Any) -> Any:
    """Turns that a CSV or a Parquet file holds as JSON; other texts as they are."""
    if not isinstance(value, str) or not re.match(r"\s*\[?\s*\{\s*['\"](role|content|from|value)['\"]\s*:", value):
        return value
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError):
        parsed = None
    if not is_messages(parsed):
        if not re.search(r"['\"](content|value)['\"]\s*:", value) or (
            parsed is not None and not isinstance(parsed, list)
        ):
            return value  # a text that happens to be JSON
        raise SettingError(
            "holds a list of turns written as a text, and not as JSON; store the turns themselves, as "
            "JSON lines or Parquet"
        )
    return parsed


def _own_side(side: str, value: Any, variables: Collection[str]) -> Any:
    if not isinstance(value, Mapping):
        return value
    return {k: (_only_answer(turns_of(v), side) if k in variables and is_messages(v) else v) for k, v in value.items()}


def _only_answer(turns: Sequence[Turn], side: str) -> str:
    if [turn.role for turn in turns] != ["assistant"]:
        raise SettingError(f"{side!r} must end in one turn of the assistant after what both sides share")
    return turns[0].content


def _tie(row: Mapping[str, Any]) -> str | None:
    for column in VERDICTS:
        if isinstance(row.get(column), str) and row[column].strip().lower() in TIES:
            return f"{column}: {row[column].strip().lower()}"
    for better, worse in SCORES:
        score = _number(row.get(better))
        if score is not None and score == _number(row.get(worse)):
            return f"equal {better} and {worse}"
    return None


# ---- the prompt ----------------------------------------------------------------------------------------------------

Given = tuple[str, list[Turn]]
"""The name of a format, and the turns of its prompt."""


def _prompt(row: Mapping[str, Any], input_name: str, used: Collection[str]) -> Given | None:
    """The prompt in its own columns, if there is one; several that differ are refused."""
    found: dict[str, Given] = {}
    for column in dict.fromkeys((input_name, *PROMPTS)):
        value = _structure(row.get(column))
        if column.startswith("conversation") and column != input_name and not is_messages(value):
            continue  # rounds in some other notation, beside a prompt or answers that hold the turns
        if value is not None and column not in used:
            found[column] = _prompt_of(column, value, row)
    value = row.get("input")
    if isinstance(value, Mapping) and "messages" in value and "input" not in found:
        if value.get("tools"):
            raise SettingError("has 'tools', which a model here would not see; leave such rows out")
        found["input"] = ("OpenAI preference", turns_of(value["messages"]))
    elif value not in (None, "", []) and "instruction" not in found and "input" not in found:
        found["input"] = _prompt_of("input", value, row)
    if not found and is_messages(row.get("messages")) and turns_of(row["messages"])[-1].role == "user":
        found["messages"] = _prompt_of("messages", row["messages"], row)
    if len({_key(turns) for _, turns in found.values()}) > 1:
        names = list(found)
        raise SettingError(
            f"has {' and '.join(map(repr, names))}, which differ; say which is the prompt: "
            f"'dataset.inputs={{{input_name}:\"{{{names[-1]}}}\"}}'"
        )
    return next(iter(found.values()), None)


def _key(turns: Sequence[Turn]) -> tuple[tuple[str, str], ...]:
    return tuple((turn.role, turn.content.strip()) for turn in turns)


def _prompt_of(column: str, value: Any, row: Mapping[str, Any]) -> Given:
    if is_messages(value):
        shape = "ShareGPT" if column.startswith("conversation") else "TRL, conversational"
        return shape, turns_of(value)
    if is_dialogue(value):
        turns = dialogue(value)
        if turns and turns[-1] == Turn("assistant", ""):
            return "HH-RLHF", turns[:-1]
    text = text_of(value, repr(column))
    if column == "instruction":
        more = row.get("input")
        if more is not None and not isinstance(more, Mapping):
            text = "\n".join(part for part in (text, text_of(more, "'input'")) if part)
        return "alpaca", [*_history(row.get("history")), Turn("user", text)]
    names = {"question": "question", "input": "distilabel"}
    return names.get(column, "TRL, standard"), [Turn("user", text)]


def _history(value: Any) -> list[Turn]:
    """LLaMA-Factory's earlier rounds, `[[question, answer], …]`, or a list of turns."""
    if value in (None, "", [], ()):
        return []
    if is_messages(value):
        return turns_of(value)
    rounds = value if isinstance(value, list | tuple) else [value]
    if not all(isinstance(each, list | tuple) and len(each) == 2 for each in rounds):
        raise SettingError("has a 'history' that is no list of [question, answer] and no list of turns")
    return [
        Turn(role, text_of(text, "'history'"))
        for each in rounds
        for role, text in zip(("user", "assistant"), each, strict=True)
    ]


def _finish(given: Given | Sequence[Turn] | None, row: Mapping[str, Any], input_name: str | None) -> str:
    """The prompt as a value, with the system text of a column of its own."""
    if given is None:
        raise SettingError(_no_prompt(row, str(input_name)))
    found: Any = given[1] if isinstance(given, tuple) and isinstance(given[0], str) else given
    turns: list[Turn] = list(found)
    for column in SYSTEMS:
        value = row.get(column)
        if column == input_name or value is None or value == "":
            continue
        text = text_of(value, repr(column))
        own = [turn.content for turn in turns if turn.role == "system"]
        if not own:
            turns.insert(0, Turn("system", text))
        elif text.strip() not in [o.strip() for o in own]:
            raise SettingError(f"has the column {column!r} and another system text in its turns; remove one of them")
    return conversation(turns)


def _no_prompt(row: Mapping[str, Any], input_name: str) -> str:
    return (
        f"lacks {input_name!r} (its columns: {', '.join(map(str, row))}); "
        f"set 'dataset.inputs={{{input_name}:\"{{column}}\"}}'"
    )


# ---- prompts that stand in the answers -----------------------------------------------------------------------------


def _of_turns(
    row: Mapping[str, Any],
    input_name: str | None,
    given: Given | None,
    chosen: Any,
    rejected: Any,
    tie: str | None,
    wanted: bool,
) -> Reading:
    shared, better, worse = _shared(turns_of(chosen), turns_of(rejected))
    if not wanted:
        return Reading("turns", None, better, worse, tie)
    if not shared:
        name = (
            f"{given[0]}, answers as turns"
            if given and given[0] in ("TRL, standard", "question")
            else given and given[0]
        )
        return Reading(str(name), _finish(given, row, input_name), better, worse, tie)
    if given is None:
        return Reading("TRL, conversational, implicit prompt", _finish(shared, row, input_name), better, worse, tie)
    longer = _same_prompt(given[1], shared, str(input_name))
    return Reading("UltraFeedback", _finish(longer, row, input_name), better, worse, tie)


def _same_prompt(turns: list[Turn], shared: list[Turn], input_name: str) -> list[Turn]:
    """A prompt in a column of its own and the one that answers begin with, which must agree: the longer of both."""
    told = {turn.content.strip() for turn in shared if turn.role == "user"}
    without_system = [turn for turn in _key(turns) if turn[0] != "system"]
    if shared and shared[0].role == "assistant":
        shared = [*turns, *shared]
    elif not (
        _key(turns) == _key(shared)
        or without_system == [turn for turn in _key(shared) if turn[0] != "system"]
        or (len(turns) == 1 and turns[0].content.strip() in told)
    ):
        raise SettingError(
            "has a prompt that is not the one its answers begin with; remove that column, or say which counts: "
            f"'dataset.inputs={{{input_name}:\"{{prompt}}\"}}'"
        )
    return turns if len(turns) > len(shared) else shared


def _shared(chosen: list[Turn], rejected: list[Turn]) -> tuple[list[Turn], str, str]:
    """(turns that both sides begin with, the answer of each): TRL's rule, on turns."""
    parts = extract_prompt({"chosen": chosen, "rejected": rejected})
    return (
        list(parts["prompt"]),
        _only_answer(parts["chosen"], "chosen"),
        _only_answer(parts["rejected"], "rejected"),
    )


def _implicit(
    row: Mapping[str, Any], chosen: Any, rejected: Any, input_name: str, used: Collection[str]
) -> tuple[str, str, str]:
    """(what two texts share, the rest of each): TRL's rule, without cutting a word and without blanks before a rest."""
    others = [k for k, v in row.items() if k not in used and v not in (None, "", []) and not _is_remark(k, v)]
    if others or not (isinstance(chosen, str) and isinstance(rejected, str) and chosen and rejected):
        raise SettingError(_no_prompt(row, input_name))
    prompt = str(extract_prompt({"chosen": chosen, "rejected": rejected})["prompt"])
    following = {side[len(prompt) : len(prompt) + 1] for side in (chosen, rejected)}
    if not all(c.isspace() for c in following if c) and not prompt[-1:].isspace():
        prompt = re.sub(r"\S+\Z", "", prompt)
    if not prompt.strip():
        raise SettingError(_no_prompt(row, input_name))
    return prompt.rstrip(), chosen[len(prompt) :].lstrip(), rejected[len(prompt) :].lstrip()


def _is_remark(column: str, value: Any) -> bool:
    if REMARKS.fullmatch(str(column).lower()) or column in SYSTEMS or column in VERDICTS:
        return True
    return isinstance(value, bool | int | float)
