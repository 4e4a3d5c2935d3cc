"""What every command shares: Hydra's composition, one clear line for a user's mistake, exit status 2."""

import functools
import logging
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sysdpo.cli.failures import explain, failed
from sysdpo.paths import CONF


def prepare_environment() -> None:
    """Before torch is loaded: threads that wait instead of spinning, and no model hub unless asked for."""
    for name, value in {
        "OMP_WAIT_POLICY": "passive",  # spin-waiting makes two threads up to 30 times slower on a shared CPU
        "KMP_BLOCKTIME": "0",
        "TOKENIZERS_PARALLELISM": "false",
        "DIFFUSERS_VERBOSITY": "error",
        "TRANSFORMERS_VERBOSITY": "error",
        "HYDRA_FULL_ERROR": "1",  # errors reach `command` instead of being printed by Hydra
    }.items():
        os.environ.setdefault(name, value)
    # what libraries remark about their own insides: no setting of ours would change it
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(diffusers|peft|transformers|trl)\.")
    for name in ("diffusers.models.modeling_utils", "transformers.utils.import_utils"):
        logging.getLogger(name).setLevel(logging.ERROR)


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command as Ctrl-C does: workers end with it, and what is open is closed."""


@contextmanager
def _terminable() -> Iterator[None]:
    def terminate(*_: Any) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def command(task: Callable[[Any], Any], config_name: str = "config") -> Callable[[], None]:
    """Wrap a task of one composed config as a command-line program; one job's mistake does not stop the others."""
    mistakes: list[str] = []

    def report(error: Exception) -> None:
        line = explain(error)
        if line is None:
            raise error
        if line not in mistakes:
            mistakes.append(line)
            print(f"error: {line}", file=sys.stderr)

    @functools.wraps(task)
    def job(config: Any) -> Any:
        from hydra.core.hydra_config import HydraConfig

        from sysdpo.cli.multirun import is_collected

        prepare_environment()  # a launcher's worker did not come through `main`
        try:
            return task(config)
        except Exception as error:
            if is_collected(HydraConfig.get()):
                raise failed(error) from None
            report(error)

    def main() -> None:
        prepare_environment()
        import hydra

        from sysdpo.cli.multirun import MultirunFailed, StudySweeper

        mistakes.clear()
        StudySweeper.register()
        try:
            with _terminable():
                hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(job)()
        except KeyboardInterrupt as interrupt:
            print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
            raise SystemExit(143 if isinstance(interrupt, Terminated) else 130) from None
        except MultirunFailed as failure:
            for line in failure.lines:
                print(f"error: {line}", file=sys.stderr)
            raise SystemExit(failure.status) from None
        except Exception as error:
            report(error)
        if mistakes:
            raise SystemExit(2)

    main.__doc__ = task.__doc__
    return main


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
