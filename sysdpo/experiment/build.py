"""From a config to what it describes: the system, its training settings, its data."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from sysdpo.data.records import PreferenceData
from sysdpo.data.sources import Recorded
from sysdpo.errors import SettingError, nearest
from sysdpo.graph import SystemGraph
from sysdpo.runs.identity import by_content
from sysdpo.system import CompoundSystem
from sysdpo.training.loop import TrainingSettings


def built(config: DictConfig, key: str, protocol: Any) -> Any:
    """The part that a group of the config describes, refused where it lacks what the project will ask of it."""
    part = instantiate(config[key])
    asked = [name for name in (*vars(protocol), *protocol.__annotations__) if not name.startswith("_")]
    lacking = [name for name in asked if not hasattr(part, name)]
    if lacking:
        raise SettingError(
            f"{key}: {type(part).__name__} lacks {', '.join(sorted(set(lacking)))}; see {protocol.__name__} in "
            f"{protocol.__module__}."
        )
    return part


def build_system(config: DictConfig) -> CompoundSystem:
    """The graph and its components, as `conf/system/` and `conf/model/` describe them."""
    components: dict[str, Any] = OmegaConf.to_container(config.system.components, resolve=True)  # type: ignore[assignment]
    graph = _graph(config.system, components)
    built = {}
    for offset, name in enumerate(graph.components):
        settings = dict(components[name])
        model = settings.pop("model", {})
        if "seed" in model:
            model = {**model, "seed": config.seed * 1_009 + offset}
        built[name] = instantiate({**model, **settings})
    return CompoundSystem(graph, built)


def build_trainable(config: DictConfig) -> CompoundSystem:
    """The system with the components trainable that the config names; without any named, all."""
    system = build_system(config)
    system.train_only(list(system.components) if config.train is None else list(config.train))
    return system


def _graph(description: DictConfig, components: Mapping[str, Any]) -> SystemGraph:
    graph = SystemGraph(OmegaConf.to_container(description.variables, resolve=True), components)  # type: ignore[arg-type]
    if description.get("unroll"):
        graph = graph.unroll(dict(description.unroll.loop), description.unroll.steps)
    return graph


def as_evaluated(config: DictConfig, system: CompoundSystem) -> CompoundSystem:
    """The system as `evaluation_system` changes it: the same models, other settings of tools, another graph.

    Raises:
        SettingError: a component with weights would become another one.
    """
    if config.get("evaluation_system") is None:
        return system
    description: Any = OmegaConf.merge(config.system, config.evaluation_system)
    before: Any = OmegaConf.to_container(config.system.components, resolve=True)
    components: Any = OmegaConf.to_container(description.components, resolve=True)
    built = {name: system.component(name) for name in system.components}
    for name, settings in components.items():
        if settings == before.get(name):
            continue
        if name in built and any(True for _ in built[name].parameters()):
            raise SettingError(
                f"evaluation_system.components.{name}: has weights; only tools can be others in evaluation."
            )
        built[name] = instantiate(settings)
    return CompoundSystem(_graph(description, components), built)


def training_settings(config: DictConfig) -> TrainingSettings:
    values: dict[str, Any] = OmegaConf.to_container(config.training, resolve=True)  # type: ignore[assignment]
    known = [f.name for f in fields(TrainingSettings)]
    for name in values:
        if name not in known:
            raise SettingError(f"training: {nearest(name, known)}")
    return TrainingSettings(**values, beta=config.beta, seed=config.seed)


def prepare_data(config: DictConfig, system: CompoundSystem, needs_intermediates: bool) -> PreferenceData:
    """The run's data; what has to be made is made once."""
    for name in sorted(OmegaConf.missing_keys(config.dataset)):
        raise SettingError(f"dataset.{name} is not set; give it on the command line: dataset.{name}=…")
    content: dict[str, Any] = OmegaConf.to_container(config.dataset, resolve=True)  # type: ignore[assignment]
    source = instantiate({k: v for k, v in content.items() if k != "name"})
    with untrained(system):
        data = source.prepare(system, made_data(config), needs_intermediates)
    for name in system.components:
        system.component(name).forget()  # a run that finds its data never knew it
    pairs = [*data.train, *data.validation]
    for side in ("chosen", "rejected"):
        system.check_rows([pair.row(side) for pair in pairs], [pair.index + 1 for pair in pairs])
    system.check_rows(data.evaluation)
    return data


def made_data(config: DictConfig) -> Path:
    """Where data are kept that have to be made: under a name that is the hash of all they are made from."""
    content: dict[str, Any] = by_content(OmegaConf.to_container(config.dataset, resolve=True))
    if content.get("generator") is not None:  # the run's seed and beta, which it is given as well, draw nothing
        content["generator"] = without_seed(content["generator"])
    made_by = untrained_system(config)
    return Path(config.data_folder) / f"{config.dataset.name}-{digest(content, made_by)}"


def untrained_system(config: DictConfig) -> Any:
    """What describes the untrained system, wherever its models lie."""
    return without_seed(by_content(OmegaConf.to_container(config.system, resolve=True)))


def data_content(config: DictConfig) -> str | None:
    """What identifies the rows of a data set that is read from files; None of one that is made, or of the hub."""
    content: dict[str, Any] = OmegaConf.to_container(config.dataset, resolve=True)  # type: ignore[assignment]
    if content.get("path") is None or not str(content.get("_target_")).endswith(".Recorded"):
        return None
    source: Recorded = instantiate({k: v for k, v in content.items() if k != "name"})
    return source.fingerprint()


def untrained(system: CompoundSystem) -> Any:
    """The system that data and baselines come from; at the start of a run it is also the current one."""
    return system.untrained()


def device_name(system: CompoundSystem) -> str:
    """What the system computes on, in words."""
    if system.device.type == "cuda":
        return torch.cuda.get_device_name(system.device)
    return f"{system.device.type}, {torch.get_num_threads()} threads"


def digest(*content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:12]


def without_seed(content: Any) -> Any:
    """Configs that differ only in how fresh weights are trained describe the same untrained system."""
    if isinstance(content, Mapping):
        return {k: without_seed(v) for k, v in content.items() if k not in ("seed", "lora", "bound")}
    return [without_seed(v) for v in content] if isinstance(content, list) else content
