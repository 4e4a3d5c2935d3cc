"""What every command shares: Hydra's composition, one clear line for a user's mistake, exit status 2."""

import functools
import logging
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

CONFIG = Path(__file__).resolve().parent.parent / "conf"


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


def command(task: Callable[[Any], Any], config_name: str = "config") -> Callable[[], None]:
    """Wrap a task of one composed config as a command-line program; one job's mistake does not stop the others."""
    process = os.getpid()
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
        try:
            return task(config)
        except Exception as error:
            if os.getpid() != process:  # a launcher's worker: its failure is the launcher's to know
                raise
            report(error)

    def main() -> None:
        prepare_environment()
        import hydra

        mistakes.clear()
        try:
            hydra.main(version_base="1.3", config_path=str(CONFIG), config_name=config_name)(job)()
        except KeyboardInterrupt:
            print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
            raise SystemExit(130) from None
        except Exception as error:
            report(error)
        if mistakes:
            raise SystemExit(2)

    return main


def explain(error: BaseException) -> str | None:
    """One line for a mistake in the config, a data set or a file; None for anything else, which is a bug."""
    from hydra.errors import HydraException, InstantiationException, MissingConfigException
    from omegaconf.errors import OmegaConfBaseException

    from sysdpo.errors import SettingError, nearest
    from sysdpo.graph import GraphError

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, SettingError | GraphError):
            return one_line(cause)
        cause = cause.__cause__
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, name = error.missing_cfg_file.rpartition("/")
        return f"{group}: {nearest(name, error.options)}"
    if isinstance(error, HydraException | OmegaConfBaseException) and not isinstance(error, InstantiationException):
        return one_line(error)
    return None


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
