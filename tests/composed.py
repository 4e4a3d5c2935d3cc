"""Every system under `conf/system/`, composed by Hydra and built of tiny models."""

from collections.abc import Sequence

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from sysdpo.experiment.build import build_system
from sysdpo.paths import CONF
from sysdpo.system import CompoundSystem

SYSTEMS = sorted(path.stem for path in (CONF / "system").glob("*.yaml"))
PICTURES = {"llm_diffusion": [], "picture_critic": ["model@critic=tiny_vlm"]}
"""Systems with pictures, and what they need beside their experiment."""
TEXT_SYSTEMS = [name for name in SYSTEMS if name not in PICTURES]


def compose_system(name: str, overrides: Sequence[str] = ()) -> DictConfig:
    """The whole config with this system at scale=smoke; those with images come with their experiment."""
    first, then = (["experiment=table1"], PICTURES[name]) if name in PICTURES else ([], [])
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", ["scale=smoke", "device=cpu", *first, f"system={name}", *then, *overrides])


def build(name: str, overrides: Sequence[str] = ()) -> CompoundSystem:
    return build_system(compose_system(name, overrides))


def compose_mini(experiment: str, overrides: Sequence[str] = ()) -> DictConfig:
    """An experiment at scale=mini, on the CPU."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", [f"experiment={experiment}", "scale=mini", "device=cpu", *overrides])
