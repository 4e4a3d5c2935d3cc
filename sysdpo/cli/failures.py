"""What a user reads of an exception: one line for a mistake, and for a bug where its traceback lies."""

import re
import traceback
from collections.abc import Callable, Iterator

from sysdpo.errors import SettingError, Unserved, nearest, one_line
from sysdpo.paths import CONF
from sysdpo.runs.files import no_place

OTHERS = re.compile(r"gloo/|ProcessGroup|Connection (closed|reset) by peer|NCCL (error|operation)")
"""In what torch says where a process no longer finds the others."""


class JobFailed(Exception):
    """A job's exception in a form that passes from a worker process to its launcher.

    Args:
        line: what the user should read; `is_mistake`: a setting is wrong (exit status 2), not a bug (1).
        details: the traceback.
        is_unserved: the data lack what this one job asks of them (`Unserved`).
    """

    def __init__(self, line: str, is_mistake: bool, details: str, is_unserved: bool = False) -> None:
        super().__init__(line, is_mistake, details, is_unserved)
        self.line, self.is_mistake, self.details, self.is_unserved = line, is_mistake, details, is_unserved


def failed(error: Exception) -> JobFailed:
    """What is passed on of a job's exception."""
    line = explain(error)
    details = "".join(traceback.format_exception(error))
    line_or_name = line or f"{type(error).__name__}: {one_line(error)}"
    return JobFailed(line_or_name, line is not None, details, any(isinstance(e, Unserved) for e in _causes(error)))


def explain(error: BaseException) -> str | None:
    """One line for a mistake in the config, a data set or a file; None for anything else, which is a bug."""
    from hydra.errors import HydraException, InstantiationException, MissingConfigException
    from omegaconf import DictConfig
    from omegaconf.errors import (
        ConfigAttributeError,
        ConfigKeyError,
        InterpolationKeyError,
        OmegaConfBaseException,
    )

    from sysdpo.graph import GraphError

    for cause in _causes(error):
        if isinstance(cause, SettingError | GraphError):
            return one_line(cause)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, name = error.missing_cfg_file.rpartition("/")
        extra = "; pip install 'sysdpo[launchers]' adds joblib and submitit" if group == "hydra/launcher" else ""
        return f"{group}: {nearest(name, error.options)}{extra}"
    lacking = error.__cause__
    if isinstance(lacking, ConfigAttributeError | ConfigKeyError) and isinstance(lacking.parent_node, DictConfig):
        known = [key for key in map(str, lacking.parent_node) if not key.startswith("_")]
        remedy = str(error).splitlines()[-1]  # Hydra's: how to add a key
        return f"{lacking.full_key}: {nearest(str(lacking.key), known)}. {remedy}"
    if isinstance(error, InterpolationKeyError):
        return _nobody_chose(error)
    if (why := no_place(error)) is not None:
        return one_line(
            f"{why[1] or 'a file of this run'}: {why[0]}; make room or get the right to write, or set outputs=… "
            "elsewhere. What was saved is intact: the same command goes on."
        )
    if OTHERS.search(str(error)):
        return "another process of this run has ended; its own line says why."
    if isinstance(error, InstantiationException):
        return _wrong_part(error)
    return one_line(error) if isinstance(error, HydraException | OmegaConfBaseException) else None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The exception and those it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__


def _nobody_chose(error: Exception) -> str:
    """A part refers to what nothing has chosen, as a system of one experiment does under another."""
    found = re.search(r"key '([^']+)'", str(error))
    if found is None:
        return one_line(error)
    name, _, key = found[1].partition(".")
    if name == "system":
        remedy = _choices("system", rf"^{key}:", lambda stem: f"system={stem}")
    else:
        chosen = rf"^  - (?:override )?/(?:\w+@)?{re.escape(name)}: "
        remedy = _choices("setting", chosen, lambda stem: f"experiment={stem.rpartition('_')[0]}")
    where = re.search(r"full_key: (\S+)", str(error))
    return f"{where[1] if where else 'config'}: nothing here is named {found[1]!r}; {remedy or f'choose +{name}=…'}."


def _choices(group: str, pattern: str, option: Callable[[str], str]) -> str:
    """`add a=b or a=c`: the options of a group whose files match; empty if none does."""
    files = (CONF / group).glob("*.yaml")
    matching = sorted({option(f.stem) for f in files if re.search(pattern, f.read_text("utf-8"), re.MULTILINE)})
    return f"add {' or '.join(matching)}, which has it" if matching else ""


def _wrong_part(error: Exception) -> str | None:
    """A `_target_` that is not there, or a setting that it does not take; what happened inside it is a bug."""
    cause = error.__cause__
    refused = isinstance(cause, TypeError) and cause.__traceback__ is not None and cause.__traceback__.tb_next is None
    if cause is None or not (refused or isinstance(cause, ImportError)):
        return None
    where = re.search(r"full_key: (\S+)", str(error))
    return f"{where[1]}: {one_line(cause)}" if where else one_line(cause)
