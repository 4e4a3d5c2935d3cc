"""The oracle of Table 2 at `laptop` scale: how well an answer does what a verifiable instruction asks.

An oracle is a JSON text `{"task": [check, ...], "gate": [check, ...]}`. One check is
`{"check": name, **arguments}` with a name of `sysdpo.tasks.verifiable.checks.CHECKS`.

    score = mean(task checks) * product(gate checks), in [0, 1]

The task checks say how much of the instruction was carried out; each gives partial credit, and their mean lets
an answer that meets one of two wishes rank above one that meets neither. The gate checks ask what makes it an
answer at all: that it is about its subject, is not the prompt again, does not repeat itself, reads as language
and stops in time. They multiply, because an answer that fails one of them is worth little whatever its format.
An answer without a letter or a digit scores 0.
"""

import inspect
import json
import math
from functools import lru_cache
from typing import Any, Literal, get_args, get_origin

from sysdpo.errors import SettingError, nearest
from sysdpo.tasks.verifiable.checks import CHECKS


def score(oracle: str, answer: str) -> float:
    """How well `answer` does what the oracle's instruction asks: 0 (not at all) to 1 (entirely).

    Raises:
        SettingError: the oracle is not JSON of the form above, or names an unknown check or argument.
    """
    task, gate = _parse(oracle)
    if not any(letter.isalnum() for letter in answer):
        return 0.0
    met = math.fsum(_run(check, answer) for check in task) / len(task)
    return met * math.prod(_run(check, answer) for check in gate)


def explain(oracle: str, answer: str) -> dict[str, float]:
    """Each check's own value in [0, 1] by name, task before gate, for reports and for reading a score."""
    task, gate = _parse(oracle)
    return {str(check["check"]): _run(check, answer) for check in task + gate}


@lru_cache(maxsize=4096)
def _parse(oracle: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    try:
        parsed = json.loads(oracle)
    except (TypeError, ValueError, RecursionError):
        raise SettingError(f"oracle={_short(oracle)} is not JSON; write {{'task': [...], 'gate': [...]}}") from None
    if not isinstance(parsed, dict) or set(parsed) != {"task", "gate"}:
        raise SettingError(f"oracle={_short(oracle)}: give exactly the two lists 'task' and 'gate'")
    for group in parsed.values():
        if not isinstance(group, list) or not all(isinstance(check, dict) and "check" in check for check in group):
            raise SettingError(f"oracle={_short(oracle)}: every check is an object with its name under 'check'")
    if not parsed["task"]:
        raise SettingError(f"oracle={_short(oracle)}: 'task' is empty; give at least one check")
    for check in parsed["task"] + parsed["gate"]:
        _validate(check)
    names = [check["check"] for check in parsed["task"] + parsed["gate"]]
    if len(set(names)) < len(names):
        raise SettingError(f"oracle={_short(oracle)}: a check is given twice; merge the two")
    return parsed["task"], parsed["gate"]


def _validate(check: dict[str, Any]) -> None:
    name, given = str(check["check"]), {key: value for key, value in check.items() if key != "check"}
    if name not in CHECKS:
        raise SettingError(f"oracle.check: {nearest(name, CHECKS)}")
    parameters = inspect.signature(CHECKS[name]).parameters
    wanted = {key: parameter.annotation for key, parameter in parameters.items() if key != "answer"}
    if set(given) != set(wanted):
        raise SettingError(f"oracle.check={name} takes {sorted(wanted)}, was given {sorted(given)}")
    for key, kind in wanted.items():
        value = given[key]
        if kind is int:
            fits, remedy = type(value) is int and value >= 1, "a whole number from 1"
        elif get_origin(kind) is Literal:
            fits, remedy = value in get_args(kind), " or ".join(map(repr, get_args(kind)))
        elif kind is str:
            fits, remedy = isinstance(value, str) and bool(value.strip()), "a text"
        else:
            fits = isinstance(value, list) and all(isinstance(word, str) and word for word in value)
            fits, remedy = fits and (bool(value) or key == "others"), "a list of texts"
        if not fits:
            raise SettingError(f"oracle.check={name}: {key}={value!r}; give {remedy}")


def _run(check: dict[str, Any], answer: str) -> float:
    return CHECKS[check["check"]](answer, **{key: value for key, value in check.items() if key != "check"})


def _short(oracle: object) -> str:
    text = repr(oracle)
    return text if len(text) <= 80 else text[:77] + "..."
