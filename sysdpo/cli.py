"""What every command shares: Hydra's composition, one clear line for a user's mistake, exit status 2."""

import os
import sys
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
        "HYDRA_FULL_ERROR": "1",  # errors reach `command` instead of being printed by Hydra
    }.items():
        os.environ.setdefault(name, value)


def command(task: Callable[[Any], Any]) -> Callable[[], None]:
    """Wrap a task of one composed config as a command-line program."""

    def main() -> None:
        prepare_environment()
        import hydra

        try:
            hydra.main(version_base="1.3", config_path=str(CONFIG), config_name="config")(task)()
        except KeyboardInterrupt:
            print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
            raise SystemExit(130) from None
        except Exception as error:
            line = explain(error)
            if line is None:
                raise
            print(f"error: {line}", file=sys.stderr)
            raise SystemExit(2) from None

    return main


def explain(error: BaseException) -> str | None:
    """One line for a mistake in the config, a data set or a file; None for anything else, which is a bug."""
    from hydra.errors import HydraException, InstantiationException
    from omegaconf.errors import OmegaConfBaseException

    from sysdpo.errors import SettingError
    from sysdpo.graph import GraphError

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, SettingError | GraphError):
            return one_line(cause)
        cause = cause.__cause__
    if isinstance(error, HydraException | OmegaConfBaseException) and not isinstance(error, InstantiationException):
        return one_line(error)
    return None


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
