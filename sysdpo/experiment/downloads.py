"""What a run fetches from the model hub: known, and refused where it cannot be had, before anything is loaded."""

from collections.abc import Mapping
from typing import Any

from huggingface_hub import constants
from omegaconf import DictConfig, OmegaConf

from sysdpo.components.hub import check_available, download, is_hub_id
from sysdpo.data.files import fetch_rows

EVALUATORS = {
    "judge": (".RewardModelJudge", "model"),
    "scorer": (".build_clip_antonym", "pretrained"),
    "dataset.judge": (".RewardModelJudge", "model"),
}
"""Judges and scorers that are models, and the key that names theirs; a judge of the data too."""


def check_downloads(config: DictConfig) -> None:
    """Refuse a run whose models or data cannot be had, before the first model is loaded."""
    check_models(config)
    for setting, repository in evaluation_models(config).items():
        check_available(repository, setting)
    if hub := hub_data(config):
        fetch_rows(
            hub, config.dataset.get("config"), config.dataset.get("split")
        )  # kept on this machine, for `prepare`


def fetch(config: DictConfig) -> str:
    """Download every model and data set that a run of this config would, and say what came; for a machine without a
    network, onto which the cache is copied or which shares it."""
    lines, total = [], 0
    named = dict.fromkeys(hub_models(config), "model.pretrained")
    named |= {repository: setting for setting, repository in evaluation_models(config).items()}
    for repository, setting in named.items():
        files, size = download(repository, setting)
        total += size
        lines.append(f"model {repository}: {files} files, {size / 1e9:.1f} GB")
    if hub := hub_data(config):
        rows = fetch_rows(hub, config.dataset.get("config"), config.dataset.get("split"))
        lines.append(f"data set {hub}: {len(rows)} rows")
    if not lines:
        return f"experiment={config.experiment} scale={config.scale} needs nothing of the model hub"
    return "\n".join(
        [*lines, f"in {constants.HF_HOME}, {total / 1e9:.1f} GB of models: HF_HUB_OFFLINE=1 runs without a network"]
    )


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
    """The hub ids of the models that judge and score, loaded long after the start, by setting."""
    asked = {**(config.evaluation or {}), "dataset.judge": config.dataset.get("judge")}
    found = {}
    for group, (target, key) in EVALUATORS.items():
        part = asked.get(group) or {}
        if str(part.get("_target_")).endswith(target) and is_hub_id(part[key]):
            found[f"{group}.{key}"] = str(part[key])
    return found
