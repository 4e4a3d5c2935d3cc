"""What a user can run: each command composes a configuration of `conf/` and hands it to the package.

`scripts/*.py` and the command `sysdpo` call these; what they need is imported only once they are run.
"""

import sys
from functools import partial
from typing import Any

from sysdpo.cli.command import command
from sysdpo.cli.overrides import as_text


@partial(command, each_setting_counts=True, together=True)
def train(config: Any) -> None:
    """one row of a table, or with -m several rows or a sweep"""
    from sysdpo.experiment.run import run

    run(config)


@command
def report(config: Any) -> None:
    """the table, the figures and the page of the runs that exist"""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    from sysdpo.paths import CONF
    from sysdpo.reporting.page import write_report

    resolved: Any = OmegaConf.to_container(config, resolve=True)
    print(write_report(resolved, CONF / "method", tuple(HydraConfig.get().overrides.task)))


@partial(command, config_name="plan")
def plan(config: Any) -> None:
    """memory, hours and cost of a run before anything is downloaded"""
    from sysdpo.planning.plan import make_plan
    from sysdpo.planning.text import render

    print(render(make_plan(config), config))


@partial(command, config_name="rehearse")
def rehearse(config: Any) -> None:
    """the paper scale from end to end on this machine, with everything small"""
    from sysdpo.rehearsal.run import rehearse as carry_out

    print(carry_out(config))


@command
def fetch(config: Any) -> None:
    """download the models and the data set of a run, for a machine without a network"""
    from sysdpo.experiment.downloads import fetch as download

    print(download(config))


@command
def _check_data(config: Any) -> None:
    from sysdpo.experiment.check_data import check_data as check

    print(check(config))


def check_data() -> None:
    """what is understood of a data set: format, rows, lengths, dropped rows, three examples as the model sees them"""
    _check_data()


@partial(command, config_name="theory")
def theory(config: Any) -> None:
    """section 3 and equation 6 of the paper, checked exactly on systems of tables"""
    from pathlib import Path

    from omegaconf import OmegaConf

    from sysdpo.tasks.theory.report import run_theory
    from sysdpo.tasks.theory.settings import TheorySettings

    settings: Any = OmegaConf.to_container(config, resolve=True)
    folder = Path(settings.pop("outputs")) / "theory" / "report"
    print(run_theory(TheorySettings(**settings), folder).read_text(encoding="utf-8"))


@partial(command, config_name="evaluate")
def evaluate(config: Any) -> None:
    """judge a checkpoint that a run has kept: step=55"""
    from sysdpo.experiment.kept import evaluate_kept

    print(evaluate_kept(config))


@partial(command, config_name="generate")
def _demo(config: Any) -> None:
    from sysdpo.experiment.demo import demonstrate

    print(demonstrate(config))


def demo() -> None:
    """an aligned run on a prompt of your own, before and after"""
    sys.argv = as_text(sys.argv, ("ask",))
    _demo()


@partial(command, config_name="headroom")
def _headroom(config: Any) -> None:
    from sysdpo.experiment.headroom import headroom as measure

    print(measure(config))


def headroom() -> None:
    """what a component could still gain: its variable drawn again with all others held"""
    _headroom()


@command
def workspace(config: Any) -> None:
    """save a ready W&B workspace for an experiment's runs"""
    import os

    from sysdpo.runs.wandb_workspace import save_workspace

    titles = config.get("metric_titles") or {}
    metrics = {name: titles.get(name, name) for name in config.metrics}
    project = config.logger.get("project") or "sysdpo"
    name = f"{config.experiment}: results and training"
    print(save_workspace(os.environ.get("WANDB_ENTITY"), project, name, metrics, list(config.system.components)))
