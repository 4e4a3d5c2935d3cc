"""The composition root: one row of a table under one seed, from its config to `metrics.json`."""

import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from sysdpo import processes
from sysdpo.data.records import PreferenceData
from sysdpo.data.redraw import JudgedPairs
from sysdpo.errors import SettingError, check_file_name, nearest
from sysdpo.evaluation.measures import Labels, Measure
from sysdpo.experiment.budget import timed, write_budget
from sysdpo.experiment.build import (
    as_evaluated,
    build_system,
    built,
    data_content,
    device_name,
    made_data,
    prepare_data,
    training_settings,
)
from sysdpo.experiment.credit import credit
from sysdpo.experiment.downloads import check_downloads
from sysdpo.experiment.evaluate import curve_point, evaluate, untrained_outputs
from sysdpo.peers.task import Peer, Task
from sysdpo.progress import named
from sysdpo.runs.equal import find_equal, take_over
from sysdpo.runs.files import write_jsonl
from sysdpo.runs.folder import RunFolder
from sysdpo.runs.identity import Identity, identity
from sysdpo.runs.resident import forget_fullest
from sysdpo.runs.wandb_log import Logger, Silent
from sysdpo.system import CompoundSystem
from sysdpo.training.loop import Trainer, TrainingSettings, check_pairs, check_training
from sysdpo.training.objectives import Objective
from sysdpo.training.reach import in_words, reaches

log = logging.getLogger(__name__)

NOT_OF_THE_RUN = (
    *("distributed", "logger", "study", "manner", "evaluation_batch_size"),
    *("title", "metric_titles", "paper", "figures", "contrasts", "sheets"),
)
"""Who listens, how much at a time, how a report looks: not kept in `config.yaml`."""

TAKEN = ("chosen", "rejected", "row", "levels", "picture")
"""Columns of data and of samples beside the variables."""

TRAINERS = ("joint", "separate")


def run(config: DictConfig) -> dict[str, Any]:
    """Carry out one row: prepare the data, align the system, judge it. A finished row is read, not repeated."""
    processes.join(**(config.get("distributed") or {}))
    with named("/".join(Path(config.run_folder).parts[-2:])):
        return _run(config)


def _run(config: DictConfig) -> dict[str, Any]:
    check_names(config)
    resolved: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    for name in NOT_OF_THE_RUN:
        resolved.pop(name, None)
    folder = RunFolder(Path(config.run_folder))
    own = identity(resolved, data_content(config))
    if processes.by_first(lambda: folder.is_finished(own) or _taken_over(config, resolved, folder, own)):
        log.info("%s is finished: nothing to do", folder.path)
        if (mark := _logged(config, folder)) and not mark.exists():  # killed before its logger ended, or one set since
            _log_history(config, resolved, folder, own)
            mark.touch()
        return processes.by_first(lambda: folder.metrics or {})
    random.seed(config.seed)
    np.random.seed(config.seed)
    torch.manual_seed(config.seed)

    forget_fullest()
    processes.by_first(lambda: check_downloads(config))
    objective: Objective = built(config, "objective", Objective)
    measure: Measure | None = built(config, "evaluation", Measure) if config.evaluation is not None else None
    system = build_system(config)
    objective.check(system)
    settings = training_settings(config)
    names = list(system.components) if config.train is None else list(config.train)
    system.train_only(names)
    peer: Peer | None = built(config, "trainer", Peer) if isinstance(config.trainer, DictConfig) else None
    if peer is None and config.trainer not in TRAINERS:
        raise SettingError(f"trainer: {nearest(config.trainer, TRAINERS)}")
    if names:
        check_training(system, settings)
    if peer is not None and processes.count() > 1:
        raise SettingError(
            f"method={config.method.name}: its trainer is another library's, in one process; set distributed=none "
            "(PROCESSES=1)."
        )
    labels = _labels(config, peer) if names and (settings.redraw_every or peer is not None) else None
    wanted = objective.needs_intermediates or (peer is not None and peer.learns_from_pairs)
    if config.trainer == "joint":
        system.share_out()
    data = prepare_data(config, system, wanted)
    shown = as_evaluated(config, system)
    if names:
        check_pairs(data.train, data.validation, settings)
        if settings.evaluate_every and (measure is None or not data.evaluation):
            raise SettingError(
                f"training.evaluate_every={settings.evaluate_every} needs a measure and evaluation rows; set it to 0."
            )
    for key, name in measure.variables.items() if measure is not None and data.evaluation else ():
        if name not in shown.graph.variables:
            raise SettingError(f"evaluation.{key}: {nearest(name, [v.name for v in shown.graph.generated])}")
    if measure is not None and data.evaluation:
        measure.check(data.evaluation)

    parts = Parts(system, shown, objective, data, measure, labels, peer, settings)
    with processes.held_by_first(folder.held()):
        run_id = processes.by_first(lambda: folder.run_id(own))
        logger = _logger(config, resolved, run_id)
        succeeded = False
        try:
            processes.by_first(lambda: folder.open(resolved, own, run_id, device_name(system)))
            metrics: dict[str, Any] = {"method": config.method.name, "seed": config.seed}
            spent: dict[str, float] = {}
            if names:
                if peer is not None and measure is not None and measure.needs_baseline and data.evaluation:
                    untrained_outputs(config, shown, data.evaluation)  # before a peer changes what is asked
                with timed(folder.path):
                    found, spent = align(config, parts, folder.path, logger, own)
                metrics |= found
            made = data.spent if names and (peer is None or peer.learns_from_pairs) else {}
            draws = measure.draws if measure else 1
            metrics |= evaluate(config, shown, data, measure, folder.path)
            processes.by_first(lambda: write_budget(folder.path, made, spent, folder.history if names else [], draws))
            processes.by_first(lambda: folder.finish(metrics))
            succeeded = True
        finally:
            logger.finish(succeeded)
        if mark := _logged(config, folder):
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


def _taken_over(config: DictConfig, resolved: dict[str, Any], folder: RunFolder, own: Identity) -> bool:
    """Take over what an equal run of another table or sweep has found; True if nothing is left to do."""
    if folder.identity is not None:
        return False
    # a peer's training cannot be gone on with, a curve belongs to the judge that drew it
    only_alike = config.trainer not in TRAINERS or bool(config.training.evaluate_every)
    if (source := find_equal(Path(config.outputs), own, only_alike)) is None:
        return False
    with folder.held():
        take_over(folder, source, resolved, own)
    log.info("%s: has been trained as %s; taken over", folder.path, source.path)
    return folder.is_finished(own)


def _logged(config: DictConfig, folder: RunFolder) -> Path | None:
    """The file that says that the run's logger, if it has one, has all of it."""
    if not config.get("logger") or not processes.is_first():
        return None
    return folder.path / f".logged-{config.logger._target_.rsplit('.')[-1]}"


def _log_history(config: DictConfig, resolved: dict[str, Any], folder: RunFolder, own: Identity) -> None:
    """Give a finished run's history to its logger."""
    logger = _logger(config, resolved, folder.run_id(own))
    succeeded = False
    try:
        for line in folder.history:
            logger.log(line)
        succeeded = True
    finally:
        logger.finish(succeeded)


def _logger(config: DictConfig, resolved: dict[str, Any], run_id: str) -> Logger:
    if not config.get("logger") or not processes.is_first():
        return Silent()
    made = made_data(config)
    data = made if made.exists() else config.dataset.get("path")
    # partial: the resolved config is content here, its `_target_`s are not to be built
    return instantiate(config.logger, _partial_=True)(config=resolved, run_id=run_id, data=data)


@dataclass(frozen=True)
class Parts:
    """What a config describes. `shown` is the system as it is evaluated, of the same models; `labels` prefers where a
    training makes pairs itself; `peer` trains in place of the joint loop."""

    system: CompoundSystem
    shown: CompoundSystem
    objective: Objective
    data: PreferenceData
    measure: Measure | None
    labels: Labels | None
    peer: Peer | None
    settings: TrainingSettings


def align(
    config: DictConfig, parts: Parts, folder: Path, logger: Logger, own: Identity
) -> tuple[dict[str, Any], dict[str, float]]:
    """Train and keep the weights; returns the row's figures and what a peer's training took beyond the data."""
    system, objective, data, settings = parts.system, parts.objective, parts.data, parts.settings
    for name in system.trainable:
        if text := system.component(name).describe():
            log.info("%s: %s", name, text)
    for name, found in reaches(system, settings).items():
        log.log(logging.WARNING if found.is_lost else logging.INFO, in_words(name, found))
    spent: dict[str, float] = {}
    if parts.peer is not None or config.trainer == "separate":
        if parts.peer is not None and parts.labels is not None:
            drawn = config.evaluation_batch_size
            spent = parts.peer.train(Task(system, data.train, parts.labels, settings, folder, drawn))
        else:
            from sysdpo.training.separate import train_separately  # TRL's trainer takes a second to import

            train_separately(system, data.train, settings, folder)
        for line in processes.by_first(lambda: RunFolder(folder).history):
            logger.log(line)
        metrics: dict[str, Any] = {"best_step": settings.steps}
    else:
        best = _trainer(config, parts, folder, logger, own).run()
        metrics = {"best_step": best.step}
        if settings.validate_every:
            metrics["validation_margin"] = best.margin
        metrics |= sampling_means(processes.by_first(lambda: RunFolder(folder).history))
    system.save(folder / "adapters")
    shares = credit(system, objective, data.train, settings)
    processes.by_first(lambda: write_jsonl(folder / "samples" / "credit.jsonl", shares))
    return metrics, spent


def _trainer(config: DictConfig, parts: Parts, folder: Path, logger: Logger, own: Identity) -> Trainer:
    data, settings, measure = parts.data, parts.settings, parts.measure
    rows = data.evaluation[:: max(1, len(data.evaluation) // (config.curve_rows or len(data.evaluation) or 1))]
    redraw = (
        None
        if parts.labels is None
        else JudgedPairs(
            parts.system,
            data.train,
            parts.labels,
            folder / "redrawn",
            settings.redraw_samples,
            config.evaluation_batch_size,
            settings.seed,
        )
    )
    return Trainer(
        parts.system,
        parts.objective,
        data.train,
        data.validation,
        settings,
        folder,
        logger.log,
        None if measure is None else partial(curve_point, config, parts.shown, rows, measure),
        own.evaluation,
        redraw,
    )


def _labels(config: DictConfig, peer: Peer | None) -> Labels:
    """Who prefers, where a training makes pairs or asks for rewards itself."""
    every = config.training.redraw_every
    if every and config.trainer != "joint":
        raise SettingError(f"training.redraw_every={every}: only trainer=joint draws fresh pairs; set it to 0.")
    asking = "this trainer" if peer is not None else f"training.redraw_every={every}"
    if config.labels is None:
        raise SettingError(f"{asking} needs someone who prefers one of two outputs; set labels.")
    labels: Labels = built(config, "labels", Labels)
    return labels


def sampling_means(history: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Means over the updates of what they logged of their samples, and of each component's gradient norm."""
    found: dict[str, list[float]] = {}
    for line in history:
        if any(name.startswith("sampling/") for name in line):
            for name, value in line.items():
                if name.startswith(("sampling/", "grad_norm/")):
                    found.setdefault(name, []).append(float(value))
    return {name: sum(values) / len(values) for name, values in found.items()}
