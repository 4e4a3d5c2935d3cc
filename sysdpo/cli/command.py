"""What every command shares: Hydra's composition, one clear line for a user's mistake, exit status 2."""

import functools
import logging
import os
import sys
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from sysdpo import launched
from sysdpo.cli.failures import explain, failed
from sysdpo.cli.overrides import prepared
from sysdpo.errors import SettingError
from sysdpo.paths import CONF
from sysdpo.runs.cluster import is_queued, rendezvous, requeued
from sysdpo.runs.stopping import Terminated, as_worker, end_workers, is_worker, stoppable


def prepare_environment() -> None:
    """Before torch is loaded: threads that wait instead of spinning, and who this process is in a Slurm step."""
    for name, value in {
        "OMP_WAIT_POLICY": "passive",  # spin-waiting makes two threads up to 30 times slower on a shared CPU
        "KMP_BLOCKTIME": "0",
        "TOKENIZERS_PARALLELISM": "false",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "DIFFUSERS_VERBOSITY": "error",
        "TRANSFORMERS_VERBOSITY": "error",
        "HYDRA_FULL_ERROR": "1",  # errors reach `command` instead of being printed by Hydra
    }.items():
        os.environ.setdefault(name, value)
    os.environ.update(rendezvous(os.environ))
    # what libraries remark about their own insides: no setting of ours would change it
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(diffusers|peft|transformers|trl)\.")
    for name in ("diffusers.models.modeling_utils", "transformers.utils.import_utils"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each request


def say(line: str) -> None:
    """One line to the user, from one of the processes that may meet what it says."""
    if launched.count() > 1:
        from sysdpo import processes

        if not processes.unsaid(line):
            return
    print(line, file=sys.stderr, flush=True)


def part() -> None:
    """At the end of a command that went well: from the others, if there are any."""
    if launched.count() > 1:
        from sysdpo import processes

        processes.leave()


def command(
    task: Callable[[Any], Any], config_name: str = "config", each_setting_counts: bool = False, together: bool = False
) -> Callable[[], None]:
    """Wrap a task of one composed config as a command-line program; one job's mistake does not stop the others.

    `each_setting_counts`: an override that the task would not use is refused. `together`: several processes may share
    the task's work (torchrun); other tasks are one process's.
    """
    mistakes: list[str] = []

    def report(error: Exception) -> None:
        line = explain(error)
        if line is None:
            raise error
        if line not in mistakes:
            mistakes.append(line)
            say(f"error: {line}")

    @functools.wraps(task)
    def job(config: Any) -> Any:
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        from sysdpo.cli.multirun import is_collected
        from sysdpo.cli.schema.check import check_config
        from sysdpo.cli.schema.effect import check_effect

        prepare_environment()  # a launcher's worker did not come through `main`
        try:
            if launched.count() > 1 and not together:
                raise SettingError(
                    f"{launched.count()} processes have been started, but this command works in one; start it "
                    "without torchrun, and with one task of Slurm."
                )
            if not is_collected(HydraConfig.get()):  # the sweeper has checked its jobs, all of them before the first
                check_config(config)
                if each_setting_counts and HydraConfig.get().mode == RunMode.RUN:
                    check_effect(HydraConfig.get().overrides.task, [config])
            with requeued() if is_queued() else as_worker() if is_worker() else nullcontext():
                done = task(config)
            if is_queued():
                part()
            return done
        except Exception as error:
            # torchrun's others may be in the middle of this row: nothing goes on without them
            if launched.count() > 1 and not is_queued() and not failed(error).is_unserved:
                report(error)
                raise SystemExit(2) from None
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
            sys.argv = [sys.argv[0], *prepared(sys.argv[1:])]
            with stoppable(first=end_workers):
                hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(job)()
        except KeyboardInterrupt as interrupt:
            say("interrupted; the same command goes on from the last checkpoint")
            raise SystemExit(interrupt.status if isinstance(interrupt, Terminated) else 130) from None
        except MultirunFailed as failure:
            for line in failure.lines:
                say(f"error: {line}")
            raise SystemExit(failure.status) from None
        except Exception as error:
            report(error)
        if mistakes:
            raise SystemExit(2)
        part()

    main.__doc__ = task.__doc__
    return main
