"""The command line before Hydra reads it: paths as people write them, and one line for what Hydra cannot read."""

import re
from collections.abc import Collection, Sequence
from pathlib import Path

from sysdpo.cli.schema.kinds import SURROGATE
from sysdpo.errors import SettingError

PATHS = (
    *("outputs", "table_folder", "run_folder", "data_folder", "run", "folder", "path", "prompts", "results"),
    *("pretrained", "adapter", "checkpoint", "cache_dir", "model", "study"),
)
"""The last words of settings that take a path: their values may hold =, brackets, spaces and any letters."""

TAKE_A_VALUE = ("--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn", "--package", "-p")
"""Hydra's flags that are followed by a value."""

KEY = re.compile(r"(\+\+?|~)?[\w./@$-]+")


def prepared(arguments: Sequence[str]) -> list[str]:
    """The arguments, with `~` of paths expanded and paths quoted where Hydra would not read them as they are.

    Raises:
        SettingError: an argument that Hydra cannot read, with the quoting that works.
    """
    several = any(a in ("-m", "--multirun") for a in arguments)
    found = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        if SURROGATE.search(argument):
            shown = argument.encode("utf-8", "replace").decode()
            raise SettingError(f"{shown}: is not UTF-8; write it in UTF-8 (a terminal does so with LANG=C.UTF-8).")
        key, equals, value = argument.partition("=")
        is_setting = equals and KEY.fullmatch(key) and before not in TAKE_A_VALUE and not argument.startswith("-")
        found.append(_prepared(key, value, several) if is_setting else argument)
    return found


def _prepared(key: str, value: str, several: bool) -> str:
    is_path = re.split(r"[./@]", key.lstrip("+~"))[-1] in PATHS
    if is_path and value.startswith("~"):
        value = _home(value)
    argument = f"{key}={value}"
    if _is_read(argument, several, is_path):
        return argument
    quoted = as_text([argument], (key,))[0]
    if is_path:
        return quoted
    if not _is_read(argument, True, False):
        in_shell = "'" + quoted.replace("'", "'\\''") + "'"
        raise SettingError(f"{argument}: Hydra cannot read this value; if it is one text, quote it twice: {in_shell}")
    return argument


def _home(path: str) -> str:
    try:
        return str(Path(path).expanduser())
    except RuntimeError:
        return path  # no such user: then it is a name that begins with ~


def _is_read(argument: str, several: bool, is_path: bool) -> bool:
    """Whether Hydra reads it: a path as one text or nothing but plain data, anything else as anything."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        override = OverridesParser.create().parse_override(argument)
    except HydraException:
        return False
    if not is_path:
        return True
    if override.is_sweep_override():
        return several
    return not isinstance(override.value(), list | dict)


def as_text(arguments: Sequence[str], names: Collection[str]) -> list[str]:
    """Quote the values of these keys for Hydra, so that a sentence with commas or braces stays one text."""
    quoted = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if equals and key in names and value and value[0] not in "'\"":
            escaped = re.sub(r"(\\*)'", r"\1\1\'", value)  # a backslash counts before a quote only
            escaped += "\\" * (len(escaped) - len(escaped.rstrip("\\")))
            value = f"'{escaped}'"
        quoted.append(f"{key}{equals}{value}")
    return quoted
