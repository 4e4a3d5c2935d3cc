"""What a run would ask for that this machine does not have; found without a network."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import constants, get_token
from omegaconf import DictConfig

from sysdpo.components.hub import is_cached
from sysdpo.experiment.downloads import evaluation_models, hub_data, hub_models
from sysdpo.planning.cost import judge_of


def missing(config: DictConfig, content: Mapping[str, Any]) -> list[str]:
    """Models, data, credentials and scorers, each with what to do about it; `content` is the resolved config."""
    lacks = []
    for name in (*hub_models(config), *evaluation_models(config).values()):
        if not is_cached(name):
            lacks.append(f"model {name}: accept https://huggingface.co/{name}, then `hf download {name}`")
    if lacks and get_token() is None:
        lacks.append("a token of the model hub: `hf auth login` (gated models need one)")
    if hub := hub_data(config):
        folder = Path(constants.HF_HUB_CACHE) / f"datasets--{hub.replace('/', '--')}"
        if not folder.is_dir():
            lacks.append(f"data set {hub}: fetched on first use, or set dataset.path")
    variable = (judge_of(content).get("endpoint") or {}).get("api_key_env")
    if variable and not os.environ.get(variable):
        lacks.append(f"the judge's key: `export {variable}=…`")
    scorer = content.get("scorer") or {}
    for key in ("folder", "checkpoint"):
        value = scorer.get(key)
        if isinstance(value, str) and (value == "???" or not Path(value).expanduser().exists()):
            lacks.append(
                f"scorer.{key}: train it with scripts/assets/train_transient.py, or choose scorer=clip_antonym"
            )
    return lacks
