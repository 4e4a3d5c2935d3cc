"""The one exception a user is meant to read: a setting is wrong, and this line says how to mend it."""

import difflib
import re
import unicodedata
from collections.abc import Iterable
from typing import Any


def printable(text: str) -> str:
    """Without what a terminal or a file would act on: escape sequences, control characters, half characters."""
    text = re.sub(r"\x1b\][^\x07\x1b]*(\x07|\x1b\\)?|[\x1b\x9b]\[?[0-?]*[ -/]*[@-~]", "", text)
    text = re.sub("[\u200e\u200f\u202a-\u202e\u2066-\u2069]", "", text)  # the direction of writing
    return "".join(c for c in text if c in "\t\n" or unicodedata.category(c) not in ("Cc", "Cs", "Zl", "Zp"))


class SettingError(ValueError):
    """A mistake in a config, a data set or a file. One line: the setting, its value, the remedy.

    Commands print it without a traceback and exit with status 2.
    """


class TooLong(SettingError):
    """A prompt that does not fit into a model's context."""


def check_count(name: str, value: Any, least: int) -> None:
    """Refuse a setting that is no whole number, or one below `least`."""
    if not isinstance(value, int) or value < least:
        raise SettingError(f"{name}={value}: must be a whole number, at least {least}.")


def nearest(name: str, known: Iterable[str]) -> str:
    """`unknown 'psi3'; did you mean 'psi1'? Known: psi1, psi2` — the tail of an error about a name."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    return f"unknown {name!r}{hint} Known: {', '.join(known) or 'none'}"
