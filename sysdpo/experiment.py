"""The composition root: one row of a table under one seed, from its config to `metrics.json`."""

import hashlib
import json
import logging
import random
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from sysdpo.data.records import PreferenceData
from sysdpo.errors import SettingError, nearest
from sysdpo.graph import SystemGraph
from sysdpo.progress import progress
from sysdpo.reporting.runs import RunFolder, read_jsonl, write_json, write_jsonl
from sysdpo.system import CompoundSystem
from sysdpo.training.checkpoints import save_components
from sysdpo.training.loop import Trainer, TrainingSettings
from sysdpo.training.separate import train_separately

log = logging.getLogger(__name__)


def run(config: DictConfig) -> dict[str, Any]:
    """Carry out one row: prepare the data, align the system, judge it. A finished row is read, not repeated."""
    resolved: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    folder = RunFolder(Path(config.run_folder))
    if folder.is_finished(resolved):
        log.info("%s is finished: nothing to do", folder.path)
        return folder.metrics or {}
    random.seed(config.seed)
    np.random.seed(config.seed)
    torch.manual_seed(config.seed)

    objective = instantiate(config.objective)
    measure = instantiate(config.evaluation)
    system = build_system(config)
    objective.check(system)
    settings = training_settings(config)
    names = list(system.components) if config.train is None else list(config.train)
    system.train_only(names)
    data = prepare_data(config, system, objective.needs_intermediates)

    folder.open(resolved)
    metrics: dict[str, Any] = {"method": config.method.name, "seed": config.seed}
    if names:
        metrics |= align(config, system, objective, data, settings, folder.path)
    metrics |= evaluate(config, system, data, measure, folder.path)
    write_json(folder.path / "metrics.json", metrics)
    return metrics


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
    return TrainingSettings(**values, beta=config.beta, seed=config.seed)


def prepare_data(config: DictConfig, system: CompoundSystem, needs_intermediates: bool) -> PreferenceData:
    """The run's data; what has to be made is kept under a name that is the hash of all it was made from."""
    content = OmegaConf.to_container(config.dataset, resolve=True)
    made_by = _without_seed(OmegaConf.to_container(config.system, resolve=True))
    folder = Path(config.data_folder) / f"{config.dataset.name}-{_digest(content, made_by)}"
    source = instantiate({k: v for k, v in config.dataset.items() if k != "name"})
    with untrained(system):
        data = source.prepare(system, folder, needs_intermediates)
    system.check_rows([pair.inputs for pair in (*data.train, *data.validation)])
    system.check_rows(data.evaluation)
    return data


def untrained(system: CompoundSystem) -> Any:
    """The system that data and baselines come from; at the start of a run it is also the current one."""
    return system.reference()


def align(
    config: DictConfig,
    system: CompoundSystem,
    objective: Any,
    data: PreferenceData,
    settings: TrainingSettings,
    folder: Path,
) -> dict[str, Any]:
    if config.trainer == "separate":
        train_separately(system, data.train, settings, folder)
        metrics: dict[str, Any] = {"best_step": settings.steps}
    elif config.trainer == "joint":
        best = Trainer(system, objective, data.train, data.validation, settings, folder).run()
        metrics = {"best_step": best.step, "validation_margin": best.margin}
    else:
        raise SettingError(f"trainer: {nearest(config.trainer, ['joint', 'separate'])}")
    save_components(system, system.trainable, folder / "adapters")
    return metrics


def evaluate(
    config: DictConfig, system: CompoundSystem, data: PreferenceData, measure: Any, folder: Path
) -> dict[str, Any]:
    """Run the system on the evaluation rows and measure what comes out."""
    if measure is None or not data.evaluation:
        return {}
    rows = data.evaluation
    outputs = generate(system, rows, config.seed, config.evaluation_batch_size, "evaluate")
    baseline = _untrained_outputs(config, system, rows) if measure.needs_baseline else None
    metrics, judged = measure.measure(rows, outputs, baseline)
    write_jsonl(folder / "samples" / "evaluation.jsonl", judged)
    return metrics


def _untrained_outputs(config: DictConfig, system: CompoundSystem, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The untrained system's answers under this seed, made once for all rows of a table."""
    made_by = [
        _without_seed(OmegaConf.to_container(config.system, resolve=True)),
        config.seed,
        [r["x"] for r in rows],
    ]
    path = Path(config.data_folder) / f"untrained-{_digest(*made_by)}.jsonl"
    if not path.exists():
        with untrained(system):
            outputs = generate(system, rows, config.seed, config.evaluation_batch_size, "evaluate the untrained system")
        write_jsonl(path, [{v.name: row[v.name] for v in system.graph} for row in outputs])
    return read_jsonl(path)


def generate(
    system: CompoundSystem, rows: list[dict[str, Any]], seed: int, batch_size: int, description: str
) -> list[dict[str, Any]]:
    """One run of the system for each row; row i is drawn from the i-th stream of `seed`."""
    inputs = [v.name for v in system.graph.inputs]
    starts = range(0, len(rows), batch_size)
    outputs: list[dict[str, Any]] = []
    for start in progress(starts, description, total=len(starts)):
        part = rows[start : start + batch_size]
        seeds = [seed * 1_000_003 + start + i for i in range(len(part))]
        outputs += system.generate([{name: row[name] for name in inputs} for row in part], seeds)
    return outputs


def _digest(*content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _without_seed(content: Any) -> Any:
    """Configs that differ only in the seed of fresh adapters describe the same untrained system."""
    if isinstance(content, Mapping):
        return {k: _without_seed(v) for k, v in content.items() if k not in ("seed", "lora")}
    return [_without_seed(v) for v in content] if isinstance(content, list) else content
