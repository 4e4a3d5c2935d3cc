"""`make plan`: what one row of a table would take, from its config alone. Nothing is downloaded, no weight is made."""

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sysdpo.errors import SettingError
from sysdpo.experiment.build import build_system
from sysdpo.planning import cost
from sysdpo.planning.hardware import gpu
from sysdpo.planning.missing import missing
from sysdpo.planning.phases import Phases, count
from sysdpo.planning.plan import Plan, render
from sysdpo.system import CompoundSystem

__all__ = ["begin_plan", "build_trainable", "check_plan", "make_plan", "on_meta", "render"]


def check_plan(config: DictConfig) -> None:
    """Refuse assumptions that are no numbers of their kind."""
    for name in ("compute_utilisation", "bandwidth_utilisation"):
        if not 0 < float(config.plan[name]) <= 1:
            raise SettingError(f"plan.{name}={config.plan[name]}: must lie in (0, 1].")


def make_plan(config: DictConfig) -> Plan:
    """The plan of one row: `method`, `experiment` and `scale` as for a run, assumptions under `plan`."""
    phases = begin_plan(config)
    plan, content = phases.plan, phases.content
    if phases.system.trainable:
        phases.train()
    phases.evaluate()
    if content["dataset"].get("samples"):
        phases.make_data()
    plan.disk = cost.disk(plan, content, phases.system)
    plan.judge = cost.judge(content)
    plan.missing = missing(config, content)
    return plan


def begin_plan(config: DictConfig) -> Phases:
    """A plan that knows the system's weights, and of no phase yet."""
    content: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    assumed = content["plan"]
    device = gpu(assumed["gpu"])
    plan = Plan(
        f"{content['experiment']}, scale {content['scale']}, method {content['method']['name']}",
        assumed["gpu"],
        device,
        f"{assumed['compute_utilisation']:.0%} of {device.flops_per_s / 1e12:.0f} TFLOP/s (bf16), "
        f"{assumed['bandwidth_utilisation']:.0%} of {device.bytes_per_s / 1e12:.2f} TB/s, "
        f"{assumed['launch_us']} us a kernel",
        usable=device.memory_gib * 2**30 * (1 - assumed["reserve"]),
        one_gpu_each=bool(assumed["one_gpu_each"]),
    )
    speeds = (
        device.flops_per_s * assumed["compute_utilisation"],
        device.bytes_per_s * assumed["bandwidth_utilisation"],
        assumed["launch_us"] * 1e-6,
    )
    shaped = OmegaConf.create(on_meta(content))
    system = build_trainable(shaped)
    plan.parts = {name: count(system.component(name)) for name in system.components}
    for name in system.components:
        system.component(name).rehearse(int(assumed["frame"]), None)
    return Phases(content, shaped, system, plan, speeds)


def build_trainable(config: DictConfig) -> CompoundSystem:
    """The system with the components trainable that the config names; without any named, all."""
    system = build_system(config)
    system.train_only(list(system.components) if config.train is None else list(config.train))
    return system


def on_meta(content: Mapping[str, Any]) -> dict[str, Any]:
    """The same config with every model at random on the meta device, in the precision of GPUs."""

    def walk(value: Any) -> Any:
        if isinstance(value, Mapping):
            changed = {k: walk(v) for k, v in value.items()}
            if "pretrained" in changed and "weights" in changed:
                dtype = "bfloat16" if changed.get("dtype") == "auto" else changed.get("dtype")
                changed |= {"weights": "random", "device": "meta", "dtype": dtype}
            return changed
        return [walk(v) for v in value] if isinstance(value, list) else value

    return {key: walk(value) for key, value in content.items() if key != "hydra"}
