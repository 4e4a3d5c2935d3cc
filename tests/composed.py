"""Every system under `conf/system/`, composed by Hydra and built of tiny models."""

from collections.abc import Sequence

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from sysdpo.experiment.build import build_system
from sysdpo.paths import CONF
from sysdpo.system import CompoundSystem

SYSTEMS = sorted(path.stem for path in (CONF / "system").glob("*.yaml"))
TEXT_SYSTEMS = [name for name in SYSTEMS if name != "llm_diffusion"]


def compose_system(name: str, overrides: Sequence[str] = ()) -> DictConfig:
    """The whole config with this system at scale=smoke; the one with images comes with its experiment."""
    extra = ["experiment=table1"] if name == "llm_diffusion" else []
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", ["scale=smoke", "device=cpu", *extra, f"system={name}", *overrides])


def build(name: str, overrides: Sequence[str] = ()) -> CompoundSystem:
    return build_system(compose_system(name, overrides))


def compose_mini(experiment: str, overrides: Sequence[str] = ()) -> DictConfig:
    """An experiment at scale=mini, on the CPU."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", [f"experiment={experiment}", "scale=mini", "device=cpu", *overrides])
