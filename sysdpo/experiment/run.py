"""The composition root: one row of a table under one seed, from its config to `metrics.json`."""

import logging
import random
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from sysdpo.data.records import PreferenceData
from sysdpo.errors import SettingError, check_file_name, nearest
from sysdpo.evaluation.measures import Measure
from sysdpo.experiment.build import (
    build_system,
    built,
    data_content,
    device_name,
    made_data,
    prepare_data,
    training_settings,
)
from sysdpo.experiment.downloads import check_downloads
from sysdpo.experiment.evaluate import curve_point, evaluate
from sysdpo.progress import named
from sysdpo.runs.folder import RunFolder
from sysdpo.runs.identity import Identity, identity
from sysdpo.runs.wandb_log import Logger, Silent
from sysdpo.system import CompoundSystem
from sysdpo.training.loop import Trainer, TrainingSettings, check_pairs, check_training
from sysdpo.training.objectives import Objective
from sysdpo.training.reach import in_words, reaches
from sysdpo.training.separate import train_separately

log = logging.getLogger(__name__)

NOT_OF_THE_RUN = (
    *("logger", "study", "manner", "evaluation_batch_size"),
    *("title", "metric_titles", "paper", "figures", "contrasts"),
)
"""Who listens, how much at a time, how a report looks: not kept in `config.yaml`."""

TAKEN = ("chosen", "rejected", "row", "levels", "picture")
"""Columns of data and of samples beside the variables."""

TRAINERS = ("joint", "separate")


def run(config: DictConfig) -> dict[str, Any]:
    """Carry out one row: prepare the data, align the system, judge it. A finished row is read, not repeated."""
    with named("/".join(Path(config.run_folder).parts[-2:])):
        return _run(config)


def _run(config: DictConfig) -> dict[str, Any]:
    check_names(config)
    resolved: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    for name in NOT_OF_THE_RUN:
        resolved.pop(name, None)
    folder = RunFolder(Path(config.run_folder))
    own = identity(resolved, data_content(config))
    if folder.is_finished(own):
        log.info("%s is finished: nothing to do", folder.path)
        if (mark := _heard(config, folder)) and not mark.exists():  # killed while it was told, or a logger set since
            logger = _logger(config, resolved, folder.run_id(own))
            told = False
            try:
                for line in folder.history:
                    logger.log(line)
                told = True
            finally:
                logger.finish(told)
            mark.touch()
        return folder.metrics or {}
    random.seed(config.seed)
    np.random.seed(config.seed)
    torch.manual_seed(config.seed)

    check_downloads(config)
    objective: Objective = built(config, "objective", Objective)
    measure: Measure | None = built(config, "evaluation", Measure) if config.evaluation is not None else None
    system = build_system(config)
    objective.check(system)
    settings = training_settings(config)
    names = list(system.components) if config.train is None else list(config.train)
    system.train_only(names)
    if config.trainer not in TRAINERS:
        raise SettingError(f"trainer: {nearest(config.trainer, TRAINERS)}")
    if names:
        check_training(system, settings)
    data = prepare_data(config, system, objective.needs_intermediates)
    if names:
        check_pairs(data.train, data.validation, settings)
        if settings.evaluate_every and (measure is None or not data.evaluation):
            raise SettingError(
                f"training.evaluate_every={settings.evaluate_every} needs a measure and evaluation rows; set it to 0."
            )
    for key, name in measure.variables.items() if measure is not None and data.evaluation else ():
        if name not in system.graph.variables:
            raise SettingError(f"evaluation.{key}: {nearest(name, [v.name for v in system.graph.generated])}")
    if measure is not None and data.evaluation:
        measure.check(data.evaluation)

    with folder.held():
        run_id = folder.run_id(own)
        logger = _logger(config, resolved, run_id)
        succeeded = False
        try:
            folder.open(resolved, own, run_id, device_name(system))
            metrics: dict[str, Any] = {"method": config.method.name, "seed": config.seed}
            if names:
                metrics |= align(config, system, objective, data, measure, settings, folder.path, logger, own)
            metrics |= evaluate(config, system, data, measure, folder.path)
            folder.finish(metrics)
            succeeded = True
        finally:
            logger.finish(succeeded)
        if mark := _heard(config, folder):
            mark.touch()
    return metrics


def check_names(config: DictConfig) -> None:
    """Refuse names that would put results elsewhere than their place, before anything is read or written."""
    for key in ("experiment", "scale", "method.name", "dataset.name"):
        check_file_name(key, OmegaConf.select(config, key))
    for name in map(str, config.system.get("variables") or {}):
        if not name.strip() or name in (*TAKEN, *(config.get("metrics") or ())) or name.startswith("reference_"):
            raise SettingError(
                f"system.variables: {name!r} cannot name a variable, because rows of data or results have such a "
                "column; choose another name."
            )


def _heard(config: DictConfig, folder: RunFolder) -> Path | None:
    """The file that says that the run's logger, if it has one, knows all of it."""
    return folder.path / f".heard-{config.logger._target_.rsplit('.')[-1]}" if config.get("logger") else None


def _logger(config: DictConfig, resolved: dict[str, Any], run_id: str) -> Logger:
    if not config.get("logger"):
        return Silent()
    made = made_data(config)
    data = made if made.exists() else config.dataset.get("path")
    # partial: the resolved config is content here, its `_target_`s are not to be built
    return instantiate(config.logger, _partial_=True)(config=resolved, run_id=run_id, data=data)


def align(
    config: DictConfig,
    system: CompoundSystem,
    objective: Objective,
    data: PreferenceData,
    measure: Measure | None,
    settings: TrainingSettings,
    folder: Path,
    logger: Logger,
    own: Identity,
) -> dict[str, Any]:
    for name in system.trainable:
        if text := system.component(name).describe():
            log.info("%s: %s", name, text)
    for name, found in reaches(system, settings).items():
        log.log(logging.WARNING if found.is_lost else logging.INFO, in_words(name, found))
    if config.trainer == "separate":
        train_separately(system, data.train, settings, folder)
        for line in RunFolder(folder).history:
            logger.log(line)
        metrics: dict[str, Any] = {"best_step": settings.steps}
    else:
        rows = data.evaluation[:: max(1, len(data.evaluation) // (config.curve_rows or len(data.evaluation) or 1))]
        best = Trainer(
            system,
            objective,
            data.train,
            data.validation,
            settings,
            folder,
            logger.log,
            None if measure is None else partial(curve_point, config, system, rows, measure),
            own.evaluation,
        ).run()
        metrics = {"best_step": best.step}
        if settings.validate_every:
            metrics["validation_margin"] = best.margin
        metrics |= sampling_means(RunFolder(folder).history)
    system.save(folder / "adapters")
    return metrics


def sampling_means(history: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Means over the updates of what they logged of their samples, and of each component's gradient norm."""
    found: dict[str, list[float]] = {}
    for line in history:
        if any(name.startswith("sampling/") for name in line):
            for name, value in line.items():
                if name.startswith(("sampling/", "grad_norm/")):
                    found.setdefault(name, []).append(float(value))
    return {name: sum(values) / len(values) for name, values in found.items()}
