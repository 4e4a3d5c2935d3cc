"""Before the first update: policy and reference are one model, and what will be trained can be saved."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from sysdpo.errors import SettingError
from sysdpo.sharding import is_split
from sysdpo.system import CompoundSystem
from sysdpo.training.objectives import Comparison

TOLERANCE = 1e-4
HALF_TOLERANCE = 1e-2
"""Largest margin before training, relative to the log-probabilities it is a difference of: rounding, in fp32 and in
16 bits."""


def check_saving(system: CompoundSystem) -> None:
    """Refuse settings whose trained weights could not be saved: at the start, not after hours of training."""
    for name in system.trainable:
        if not is_split(system.component(name)):  # in parts, it has been tried before
            system.component(name).rehearse_saving()


def check_margin(system: CompoundSystem, compared: Comparison) -> None:
    """Refuse to train where the margin (eq. 4, 9) is not 0 although no weight has moved.

    Raises:
        SettingError: naming the component whose policy is not its reference.
    """
    scale = max([1.0, *(float(value.abs().max()) for value in compared.logps.values())])
    tolerance = _relative(system) * scale
    margin = float(compared.margin.detach().abs().max())
    if not math.isfinite(margin):  # broken numbers are another fault, and have their own line
        return
    sides = {name: float(value.abs().max()) for (name, _), value in compared.sides.items()}
    terms = {name: float(value.abs().max()) for name, value in compared.terms.items()}
    apart = {name: max(terms.get(name, 0.0), sides.get(name, 0.0)) for name in {*terms, *sides}}
    if margin > tolerance or any(value > tolerance for value in apart.values()):
        raise SettingError(_line(apart, margin))


def check_log_ratios(name: str, log_ratios: Tensor, log_probs: Tensor) -> None:
    """The same for one component alone: [B] each, in nats."""
    half = log_probs.dtype in (torch.bfloat16, torch.float16)
    ratio = float(log_ratios.abs().max())
    if not math.isfinite(ratio):  # broken numbers are another fault, and have their own line
        return
    if ratio > (HALF_TOLERANCE if half else TOLERANCE) * max(1.0, float(log_probs.abs().max())):
        raise SettingError(_line({name: ratio}, ratio))


def _relative(system: CompoundSystem) -> float:
    own = {getattr(system.component(name), "dtype", None) for name in system.components}
    dtypes = own | {p.dtype for p in system.parameters()}
    return HALF_TOLERANCE if dtypes & {torch.bfloat16, torch.float16} else TOLERANCE


def _line(apart: Mapping[str, float], margin: float) -> str:
    worst = max(apart, key=lambda name: apart[name], default="?")
    return (
        f"the margin before training is {margin:.3g} nats, not 0: the policy of component {worst!r} differs from its "
        "reference (adapters that do not start at zero, or weights that were trained before and given back); begin "
        "with untrained weights, and name trained ones as model.adapter, so that they are the reference too."
    )
