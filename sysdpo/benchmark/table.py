"""A table's own setting on this machine, beside what `make plan` predicts for it."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from sysdpo.benchmark.measurement import Measurement
from sysdpo.errors import SettingError
from sysdpo.experiment.build import device_name
from sysdpo.experiment.downloads import check_models
from sysdpo.planning.cost import checkpoint_bytes
from sysdpo.planning.plan import Phase, Plan, make_plan
from sysdpo.runs.folder import environment

Figures = dict[str, dict[str, Any]]
"""By name `{"measured": …, "planned": …}`: None where it is not known."""


def benchmark(config: DictConfig) -> dict[str, Any]:
    """Load, train, checkpoint, resume and sample as `config` (`conf/benchmark.yaml`) says, on made-up rows.

    The plan takes the real length of a prompt's frame. Its times are those of `plan.gpu`, whatever this machine is.

    Raises:
        SettingError: a wrong setting, a method that trains nothing or each component by itself, a model out of reach.
    """
    if config.trainer != "joint":
        raise SettingError(f"trainer={config.trainer}: only updates of the whole system are measured; set method=….")
    check_models(config)  # no judge, no scorer: nothing is evaluated
    config = config.copy()
    OmegaConf.set_struct(config, False)
    work = Measurement(config)
    config.plan.frame = work.made("prompt").frame()
    planned, measured = make_plan(config), Plan(config, work)
    figures = {
        name: beside(asdict(part), asdict(planned.parts[name]))
        for name, part in measured.parts.items()
        if part.parameters
    }
    weights = [part.weight_bytes + part.reference_bytes for part in planned.parts.values()]
    held = max(weights) if config.plan.one_gpu_each else sum(weights)
    figures["load"] = beside({"seconds": work.load_seconds, "bytes": work.loaded}, {"bytes": held})
    if work.checkpoint:
        figures["checkpoint"] = beside(work.checkpoint, {"bytes": checkpoint_bytes(planned)})
    expected = {phase.name: phase for phase in planned.phases}
    for phase in measured.phases:
        figures[phase.name] = beside(_of_phase(measured, phase), _of_phase(planned, expected[phase.name]))
    return {
        "experiment": config.experiment,
        "scale": config.scale,
        "method": config.method.name,
        "device": device_name(work.system) if work.memory.gpus else "cpu",
        "machine": {**environment(), "threads": torch.get_num_threads()},
        "planned_for": config.plan.gpu,
        "lengths": {**planned.content["plan"]["tokens"], "frame": config.plan.frame},
        "tokenizers": {name: work.system.component(name).tokenizer for name in work.system.components},
        "figures": figures,
    }


def _of_phase(plan: Plan, phase: Phase) -> dict[str, Any]:
    """Of one unit; hours are those of the whole run."""
    unit = phase.unit
    found = {"seconds": unit.seconds, "hours": phase.seconds / 3600, "peak_bytes": phase.peak and plan.total(phase)}
    return {
        **found,
        **({"tokens": unit.tokens, "tokens_per_second": unit.tokens / unit.seconds} if unit.tokens else {}),
    }


def beside(measured: Mapping[str, Any], planned: Mapping[str, Any]) -> Figures:
    """Each measured figure with the planned one of its name."""
    return {name: {"measured": value, "planned": planned.get(name)} for name, value in measured.items()}


def render(result: Mapping[str, Any]) -> str:
    """All figures as a table; overrides may have made models smaller than the published ones."""
    lines = [
        f"{result['experiment']}, scale {result['scale']}, method {result['method']}, on {result['device']}",
        f"overrides: {' '.join(result.get('overrides', ()))}",
        f"{'':<52}{'measured':>18}{'plan (' + result['planned_for'] + ')':>18}",
    ]
    for name, figures in result["figures"].items():
        for figure, values in figures.items():
            cells = "".join(f"{_cell(figure, values[kind]):>18}" for kind in ("measured", "planned"))
            lines.append(f"{name + ': ' + figure:<52}{cells}")
    return "\n".join(lines)


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    if name.endswith("bytes"):
        return f"{value / 2**30:.2f} GiB"
    unit = " s" if name.endswith("seconds") else ""
    return f"{value:,.0f}" if not unit and value == math.floor(value) else f"{value:,.2f}{unit}"
