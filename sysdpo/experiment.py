"""The composition root: one row of a table under one seed, from its config to `metrics.json`."""

import hashlib
import json
import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from sysdpo.components.hub import check_available, is_hub_id
from sysdpo.data.records import PreferenceData, fetch_rows
from sysdpo.data.storage import made_once
from sysdpo.errors import SettingError, check_count, nearest
from sysdpo.graph import SystemGraph
from sysdpo.progress import named, progress
from sysdpo.reporting.runs import RunFolder, read_jsonl, write_json, write_jsonl
from sysdpo.reporting.wandb_log import Logger, Silent
from sysdpo.system import CompoundSystem
from sysdpo.training.checkpoints import save_components
from sysdpo.training.loop import Trainer, TrainingSettings, check_pairs, check_training
from sysdpo.training.separate import train_separately

log = logging.getLogger(__name__)

NOT_OF_THE_RUN = ("logger", "study", "evaluation_batch_size", "title", "metric_titles", "paper", "figures")
"""Who listens, how much at a time, how a report looks: no reason to run a row again."""

TRAINERS = ("joint", "separate")
COUNTS = {"seed": 0, "curve_rows": 1, "evaluation_batch_size": 1}
"""Whole numbers of the config, and the least that each may be."""

EVALUATORS = {"judge": (".RewardModelJudge", "model"), "scorer": (".build_clip_antonym", "pretrained")}
"""Judges and scorers that are models, and the key that names theirs."""


def run(config: DictConfig) -> dict[str, Any]:
    """Carry out one row: prepare the data, align the system, judge it. A finished row is read, not repeated."""
    with named("/".join(Path(config.run_folder).parts[-2:])):
        return _run(config)


def _run(config: DictConfig) -> dict[str, Any]:
    resolved: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    for name in NOT_OF_THE_RUN:
        resolved.pop(name, None)
    folder = RunFolder(Path(config.run_folder))
    if folder.is_finished(resolved):
        log.info("%s is finished: nothing to do", folder.path)
        if (mark := _heard(config, folder)) and not mark.exists():  # killed while it was told, or a logger set since
            logger = _logger(config, resolved, folder.run_id(resolved))
            told = False
            try:
                for line in folder.history:
                    logger.log(line)
                told = True
            finally:
                logger.finish(told)
            mark.touch()
        return folder.metrics or {}
    for name, least in COUNTS.items():
        check_count(name, config[name], least)
    random.seed(config.seed)
    np.random.seed(config.seed)
    torch.manual_seed(config.seed)

    check_downloads(config)
    objective = instantiate(config.objective)
    measure = instantiate(config.evaluation)
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

    with folder.held():
        run_id = folder.run_id(resolved)
        logger = _logger(config, resolved, run_id)
        succeeded = False
        try:
            folder.open(resolved, run_id, device_name(system))
            metrics: dict[str, Any] = {"method": config.method.name, "seed": config.seed}
            if names:
                metrics |= align(config, system, objective, data, measure, settings, folder.path, logger)
            metrics |= evaluate(config, system, data, measure, folder.path)
            write_json(folder.path / "metrics.json", metrics)
            succeeded = True
        finally:
            logger.finish(succeeded)
        if mark := _heard(config, folder):
            mark.touch()
    return metrics


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


def device_name(system: CompoundSystem) -> str:
    """What the system computes on, in words."""
    if system.device.type == "cuda":
        return torch.cuda.get_device_name(system.device)
    return f"{system.device.type}, {torch.get_num_threads()} threads"


def check_downloads(config: DictConfig) -> None:
    """Refuse a run whose models or data cannot be had, before the first model is loaded."""
    check_models(config)
    for setting, repository in evaluation_models(config).items():
        check_available(repository, setting)
    if hub := hub_data(config):
        fetch_rows(hub)  # kept on this machine, for `prepare`


def check_models(config: DictConfig) -> None:
    """Refuse a system, or a maker of its data, whose models cannot be had."""
    for repository in hub_models(config):
        check_available(repository)


def hub_models(config: DictConfig) -> list[str]:
    """The hub ids of all pretrained models that the system and its data need."""
    found: dict[str, None] = {}

    def walk(content: Any) -> None:
        if isinstance(content, Mapping):
            name = content.get("pretrained")
            if isinstance(name, str) and content.get("weights") == "pretrained" and "/" in name and is_hub_id(name):
                found[name] = None
            content = list(content.values())
        if isinstance(content, list):
            for value in content:
                walk(value)

    for part in (config.system.components, config.dataset):
        walk(OmegaConf.to_container(part, resolve=True))
    return list(found)


def hub_data(config: DictConfig) -> str | None:
    """The hub id of the data set that the run would fetch; None where it reads a file or makes its data."""
    hub = config.dataset.get("hub")
    return hub if hub and not config.dataset.get("path") else None


def evaluation_models(config: DictConfig) -> dict[str, str]:
    """The hub ids of the models that the evaluation would load once training is over, by setting."""
    asked = config.evaluation or {}
    found = {}
    for group, (target, key) in EVALUATORS.items():
        part = asked.get(group) or {}
        if str(part.get("_target_")).endswith(target) and is_hub_id(part[key]):
            found[f"{group}.{key}"] = str(part[key])
    return found


def build_system(config: DictConfig) -> CompoundSystem:
    """The graph and its components, as `conf/system/` and `conf/model/` describe them."""
    description = config.system
    components: dict[str, Any] = OmegaConf.to_container(description.components, resolve=True)  # type: ignore[assignment]
    graph = SystemGraph(OmegaConf.to_container(description.variables, resolve=True), components)  # type: ignore[arg-type]
    if description.get("unroll"):
        graph = graph.unroll(dict(description.unroll.loop), description.unroll.steps)
    built = {}
    for offset, name in enumerate(graph.components):
        settings = dict(components[name])
        model = settings.pop("model", {})
        settings.pop("learning_rate", None)  # of the training, not of the component
        if "seed" in model:
            model = {**model, "seed": config.seed * 1_009 + offset}
        built[name] = instantiate({**model, **settings})
    return CompoundSystem(graph, built)


def training_settings(config: DictConfig) -> TrainingSettings:
    values: dict[str, Any] = OmegaConf.to_container(config.training, resolve=True)  # type: ignore[assignment]
    known = [f.name for f in fields(TrainingSettings)]
    for name in values:
        if name not in known:
            raise SettingError(f"training: {nearest(name, known)}")
    described: dict[str, Any] = OmegaConf.to_container(config.system.components, resolve=True)  # type: ignore[assignment]
    own = {name: part["learning_rate"] for name, part in described.items() if part.get("learning_rate") is not None}
    values["learning_rates"] = {**own, **values.get("learning_rates", {})}
    return TrainingSettings(**values, beta=config.beta, seed=config.seed)


def prepare_data(config: DictConfig, system: CompoundSystem, needs_intermediates: bool) -> PreferenceData:
    """The run's data; what has to be made is made once."""
    for name in sorted(OmegaConf.missing_keys(config.dataset)):
        raise SettingError(f"dataset.{name} is not set; give it on the command line: dataset.{name}=…")
    content: dict[str, Any] = OmegaConf.to_container(config.dataset, resolve=True)  # type: ignore[assignment]
    source = instantiate({k: v for k, v in content.items() if k != "name"})
    with untrained(system):
        data = source.prepare(system, made_data(config), needs_intermediates)
    pairs = [*data.train, *data.validation]
    for side in ("chosen", "rejected"):
        system.check_rows([pair.row(side) for pair in pairs], [pair.index + 1 for pair in pairs])
    system.check_rows(data.evaluation)
    return data


def made_data(config: DictConfig) -> Path:
    """Where data are kept that have to be made: under a name that is the hash of all they are made from."""
    content = OmegaConf.to_container(config.dataset, resolve=True)
    made_by = _without_seed(OmegaConf.to_container(config.system, resolve=True))
    return Path(config.data_folder) / f"{config.dataset.name}-{_digest(content, made_by)}"


def untrained(system: CompoundSystem) -> Any:
    """The system that data and baselines come from; at the start of a run it is also the current one."""
    return system.reference()


def align(
    config: DictConfig,
    system: CompoundSystem,
    objective: Any,
    data: PreferenceData,
    measure: Any,
    settings: TrainingSettings,
    folder: Path,
    logger: Logger,
) -> dict[str, Any]:
    for name in system.trainable:
        if text := system.component(name).describe():
            log.info("%s: %s", name, text)
    if config.trainer == "separate":
        train_separately(system, data.train, settings, folder)
        for line in RunFolder(folder).history:
            logger.log(line)
        metrics: dict[str, Any] = {"best_step": settings.steps}
    else:
        rows = data.evaluation[:: max(1, len(data.evaluation) // config.curve_rows)]
        best = Trainer(
            system,
            objective,
            data.train,
            data.validation,
            settings,
            folder,
            logger.log,
            lambda: curve_point(config, system, rows, measure),
        ).run()
        metrics = {"best_step": best.step}
        if settings.validate_every:
            metrics["validation_margin"] = best.margin
    save_components(system, system.trainable, folder / "adapters")
    return metrics


def curve_point(
    config: DictConfig, system: CompoundSystem, rows: list[dict[str, Any]], measure: Any
) -> dict[str, float]:
    """The experiment's metrics on some evaluation rows, and as `<metric>/se` their standard errors over these rows.

    A baseline is the untrained system's output on the same rows. Every point draws from the same seeds, so at step 0
    the system's outputs are the baseline's.
    """
    repeated = [row for row in rows for _ in range(measure.draws)]
    baseline = _untrained_outputs(config, system, repeated) if measure.needs_baseline else None
    outputs = generate(system, repeated, config.seed, config.evaluation_batch_size, "curve")
    metrics, _ = measure.measure(repeated, outputs, baseline)
    found = {name: metrics[name] for name in config.metrics if name in metrics}
    errors = {f"{name}/se": float(each["se"]) for name, each in found.items() if each.get("se") is not None}
    return {name: float(each["value"]) for name, each in found.items()} | errors


def evaluate(
    config: DictConfig, system: CompoundSystem, data: PreferenceData, measure: Any, folder: Path
) -> dict[str, Any]:
    """Run the system on the evaluation rows and measure what comes out."""
    if measure is None or not data.evaluation:
        return {}
    rows = [row for row in data.evaluation for _ in range(measure.draws)]
    baseline = _untrained_outputs(config, system, rows) if measure.needs_baseline else None
    if baseline is not None and not system.trainable:
        outputs = baseline
    else:
        outputs = generate(system, rows, config.seed, config.evaluation_batch_size, "evaluate")
    metrics, judged = measure.measure(rows, outputs, baseline)
    write_jsonl(folder / "samples" / "evaluation.jsonl", [_with_pictures(r, folder / "samples") for r in judged])
    return metrics


def _with_pictures(record: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A record whose pictures are files beside it, by name."""
    plain = dict(record)
    for key, picture in record.items():
        if isinstance(picture, Image.Image):
            folder.mkdir(parents=True, exist_ok=True)
            plain[key] = f"{record['row']:04d}.png"
            picture.save(folder / plain[key])
    return plain


def _untrained_outputs(config: DictConfig, system: CompoundSystem, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The untrained system's answers under this seed, made once for all rows of a table."""
    made_by = [
        _without_seed(OmegaConf.to_container(config.system, resolve=True)),
        config.seed,
        [[row[v.name] for v in system.graph.inputs] for row in rows],
    ]
    path = Path(config.data_folder) / f"untrained-{_digest(*made_by)}.jsonl"
    with made_once(path, path) as missing:
        if missing:
            what = "evaluate the untrained system"
            with untrained(system):
                outputs = generate(system, rows, config.seed, config.evaluation_batch_size, what)
            write_jsonl(path, [{v.name: row[v.name] for v in system.graph} for row in outputs])
    return read_jsonl(path)


def generate(
    system: CompoundSystem,
    rows: Sequence[dict[str, Any]],
    seed: int,
    batch_size: int,
    description: str,
    only: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """One run of the system for each row; row i is drawn from the i-th stream of `seed`.

    `only`: the variables to draw, all others being in the rows; None: all that are generated.
    """
    given = [v.name for v in (system.graph.inputs if only is None else system.graph) if v.name not in (only or ())]
    starts = range(0, len(rows), batch_size)
    outputs: list[dict[str, Any]] = []
    for start in progress(starts, description, total=len(starts)):
        part = rows[start : start + batch_size]
        seeds = [seed * 1_000_003 + start + i for i in range(len(part))]
        outputs += system.generate([{name: row[name] for name in given} for row in part], seeds, only=only)
    return outputs


def _digest(*content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _without_seed(content: Any) -> Any:
    """Configs that differ only in how fresh weights are trained describe the same untrained system."""
    if isinstance(content, Mapping):
        return {k: _without_seed(v) for k, v in content.items() if k not in ("seed", "lora", "bound", "learning_rate")}
    return [_without_seed(v) for v in content] if isinstance(content, list) else content
