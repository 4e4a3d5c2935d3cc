"""System-level DPO: align compound AI systems, written as a graph of models, end to end.

The public names below are loaded when they are first used, so that `import sysdpo` takes no time.
"""

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sysdpo.components.base import Component
    from sysdpo.components.image.diffusion import Diffusion
    from sysdpo.components.tabular import Tabular
    from sysdpo.components.text.language_model import LanguageModel
    from sysdpo.components.tools.tool import Tool
    from sysdpo.data.sources import read_pairs
    from sysdpo.errors import SettingError
    from sysdpo.evaluation.win_rate import win_rate
    from sysdpo.graph import GraphError, SystemGraph
    from sysdpo.losses import denoising_log_ratio, direct_margin, preference_loss, sampling_margin
    from sysdpo.sampling.diverse_beam import diverse_beam_search
    from sysdpo.sampling.monte_carlo import MonteCarlo
    from sysdpo.sampling.strategies import DiverseBeam
    from sysdpo.system import CompoundSystem, Pair
    from sysdpo.tasks.progression.preference_score import order_consistency, preference_score
    from sysdpo.training.loop import Trainer, TrainingSettings
    from sysdpo.training.objectives import Direct, Sampling

_HOME = {
    "Component": "sysdpo.components.base",
    "CompoundSystem": "sysdpo.system",
    "Diffusion": "sysdpo.components.image.diffusion",
    "Direct": "sysdpo.training.objectives",
    "DiverseBeam": "sysdpo.sampling.strategies",
    "GraphError": "sysdpo.graph",
    "LanguageModel": "sysdpo.components.text.language_model",
    "MonteCarlo": "sysdpo.sampling.monte_carlo",
    "Pair": "sysdpo.system",
    "Sampling": "sysdpo.training.objectives",
    "SettingError": "sysdpo.errors",
    "SystemGraph": "sysdpo.graph",
    "Tabular": "sysdpo.components.tabular",
    "Tool": "sysdpo.components.tools.tool",
    "Trainer": "sysdpo.training.loop",
    "TrainingSettings": "sysdpo.training.loop",
    "denoising_log_ratio": "sysdpo.losses",
    "direct_margin": "sysdpo.losses",
    "diverse_beam_search": "sysdpo.sampling.diverse_beam",
    "order_consistency": "sysdpo.tasks.progression.preference_score",
    "preference_loss": "sysdpo.losses",
    "preference_score": "sysdpo.tasks.progression.preference_score",
    "read_pairs": "sysdpo.data.sources",
    "sampling_margin": "sysdpo.losses",
    "win_rate": "sysdpo.evaluation.win_rate",
}

__all__ = [
    "Component",
    "CompoundSystem",
    "Diffusion",
    "Direct",
    "DiverseBeam",
    "GraphError",
    "LanguageModel",
    "MonteCarlo",
    "Pair",
    "Sampling",
    "SettingError",
    "SystemGraph",
    "Tabular",
    "Tool",
    "Trainer",
    "TrainingSettings",
    "__version__",
    "denoising_log_ratio",
    "direct_margin",
    "diverse_beam_search",
    "order_consistency",
    "preference_loss",
    "preference_score",
    "read_pairs",
    "sampling_margin",
    "win_rate",
]

try:
    __version__ = version("sysdpo")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "0+unknown"


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'sysdpo' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return __all__
