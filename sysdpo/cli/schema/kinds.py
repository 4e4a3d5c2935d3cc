"""What a setting may be: its form (whole number, number, text, …), its choices and its limits."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from sysdpo.errors import nearest
from sysdpo.limits import NO_LIMITS, Limits

Form = Literal["whole", "number", "text", "flag", "null", "list", "mapping"]

WORDS: dict[Form, str] = {
    "whole": "a whole number",
    "number": "a number",
    "text": "text",
    "flag": "true or false",
    "null": "null",
    "list": "a list [a, b]",
    "mapping": "a mapping {key: value}",
}

SURROGATE = re.compile("[\ud800-\udfff]")
"""Half a character: what is left of bytes that are not UTF-8. No file, tokenizer or log can hold it."""


@dataclass(frozen=True)
class Kind:
    """The forms that a value may have; none: any. `item`: of a list's items or a mapping's values.

    `is_part`: a mapping that describes an object has to name its class.
    """

    forms: frozenset[Form] = frozenset()
    choices: tuple[Any, ...] = ()
    item: "Kind | None" = None
    limits: Limits = NO_LIMITS
    item_limits: Limits = NO_LIMITS
    is_part: bool = False

    def __or__(self, other: "Kind") -> "Kind":
        if not self.forms or not other.forms:
            return ANY
        return replace(
            self,
            forms=self.forms | other.forms,
            choices=self.choices + other.choices,
            item=self.item or other.item,
            is_part=self.is_part or other.is_part,
        )


def kind(*forms: Form, item: Kind | None = None, limits: Limits | None = None) -> Kind:
    return Kind(frozenset(forms), item=item, limits=limits or NO_LIMITS)


ANY = Kind()


def form_of(value: Any) -> Form | None:
    """The form of a value of a composed config; None: nothing that YAML can write."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "flag"
    if isinstance(value, int):
        return "whole"
    if isinstance(value, float):
        return "number"
    if isinstance(value, str):
        return "text"
    if isinstance(value, Mapping):
        return "mapping"
    return "list" if isinstance(value, list | tuple) else None


def refusal(kind: Kind, value: Any) -> tuple[str, str] | None:
    """Where inside the value (`.key`, `[2]`, empty) and why a value is not of this kind; None: it is."""
    form = form_of(value)
    if form == "number" and not math.isfinite(value):
        return "", "must be a finite number"
    if form == "text" and SURROGATE.search(value):
        return "", "holds half a character (not UTF-8); write the whole one"
    if form == "mapping" and any(isinstance(key, str) and SURROGATE.search(key) for key in value):
        return "", "has a key that holds half a character (not UTF-8); write the whole one"
    if not kind.forms:
        return _inside(ANY, value) if form in ("list", "mapping") else None
    fits = form in kind.forms or (form == "whole" and "number" in kind.forms)
    if not fits:
        return "", _form_wanted(kind, value)
    if kind.choices and form == "text" and value not in kind.choices:
        return "", nearest(value, map(str, kind.choices))
    if form in ("whole", "number", "text") and (why := kind.limits.refusal(value)):
        return "", why
    if kind.is_part and form == "mapping" and "_target_" not in value and not (value == {} and "null" in kind.forms):
        return "", "must name a class by its _target_"
    if form in ("list", "mapping"):
        item = kind.item or ANY
        return _inside(item if kind.item_limits == NO_LIMITS else replace(item, limits=kind.item_limits), value)
    return None


def _inside(item: Kind, value: Any) -> tuple[str, str] | None:
    entries = value.items() if isinstance(value, Mapping) else enumerate(value)
    for key, each in entries:
        if each == "???":
            continue
        if (found := refusal(item, each)) is not None:
            return (f".{key}" if isinstance(value, Mapping) else f"[{key}]") + found[0], found[1]
    return None


def _form_wanted(kind: Kind, value: Any) -> str:
    wanted = [form for form in WORDS if form in kind.forms and not (form == "whole" and "number" in kind.forms)]
    words = " or ".join(
        " or ".join(map(str, kind.choices)) if form == "text" and kind.choices else WORDS[form] for form in wanted
    )
    if math.isfinite(kind.limits.least) and {"whole", "number"} & kind.forms:
        words += f", at least {kind.limits.least:g}"
    quoted = form_of(value) in ("whole", "number", "flag") and "text" in kind.forms and not kind.choices
    return f"must be {words}" + (f"; as text it is written '\"{value}\"'" if quoted else "")
