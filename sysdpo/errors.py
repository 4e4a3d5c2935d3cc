"""The one exception a user is meant to read: a setting is wrong, and this line says how to mend it."""

import difflib
import re
from collections.abc import Iterable
from typing import Any

UNSHOWN = re.compile(r"[^\t\n\x20-\x7e\xa0-\u200d\u2010-\u2029\u202f-\u2065\u206a-\ud7ff\ue000-\U0010ffff]")
"""Control characters, marks that change the direction of text, lone surrogates."""

MOST_NAMES = 24
"""That an error lists."""


class SettingError(ValueError):
    """A mistake in a config, a data set or a file. One line: the setting, its value, the remedy.

    Commands print it without a traceback and exit with status 2.
    """


class Unserved(SettingError):
    """Data that hold too little for what was asked of them, such as SysDPO-Direct without intermediates.

    Of the rows of a table, one that its data cannot serve is named in the report, and the others go on.
    """


class TooLong(SettingError):
    """A prompt that does not fit into a model's context."""


def check_file_name(setting: str, name: Any) -> str:
    """The name itself, refused unless it names one file or folder inside another: names decide where results go."""
    text = str(name)
    unfit = re.search(r"[/\\\x00-\x1f\x7f\ud800-\udfff]", text)
    if not text.strip() or text in (".", "..") or unfit or len(text.encode()) > 200:
        raise SettingError(
            f"{setting}={plain(text)[:80]!r}: names a folder of the results, so it must be 1 to 200 bytes long, "
            "without /, \\ and characters that no file system takes, and neither . nor .. (to write elsewhere, set "
            "outputs=…)."
        )
    return text


def plain(text: Any) -> str:
    """Text that a terminal can show and that cannot command it: no control or direction marks, no lone surrogates."""
    return UNSHOWN.sub("\ufffd", str(text))


def one_line(text: Any, longest: int | None = None) -> str:
    """An exception or other foreign text as one plain line of at most that many characters, never empty."""
    return plain(" ".join(str(text).split()))[:longest] or type(text).__name__


def closest(name: str, known: Iterable[str]) -> str:
    """`unknown 'psi3'; did you mean 'psi1'?` — the tail of an error about a name among very many."""
    close = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.0)
    return f"unknown {name!r}" + (f"; did you mean {close[0]!r}?" if close else ".")


def nearest(name: str, known: Iterable[str]) -> str:
    """`unknown 'psi3'; did you mean 'psi1'? Known: psi1, psi2` — the tail of an error about a name."""
    known = sorted(known)
    shown = known[:MOST_NAMES]
    more = f" and {len(known) - len(shown)} more" if len(known) > len(shown) else ""
    return f"{closest(name, known)} Known: {', '.join(shown) or 'none'}{more}"
