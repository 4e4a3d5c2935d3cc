"""How far training can move a model's outputs at most, and whether that is more than rounding.

AdamW's step does not grow with the gradient: it is the learning rate times m / sqrt(v), two running means of the
gradients g with the decay rates b1 and b2. By Cauchy and Schwarz, at update t,

    |m_t| = (1 - b1) |sum_i b1^(t-i) g_i| <= (1 - b1) sqrt(sum_i (b1^2 / b2)^(t-i)) sqrt(sum_i b2^(t-i) g_i^2),

and the last root is sqrt(v_t / (1 - b2)). With the corrections of both means for their start from 0, an update moves an
entry by no more than its rate times

    k_t = (1 - b1) / (1 - b1^t)  sqrt((1 - b2^t) / (1 - b2))  sqrt(sum_{j < t} (b1^2 / b2)^j),

which is 1 at t = 1 and reaches 2.2 at t = 100; gradients of one size and sign move it by 1. Over a run, an entry moves
by D = sum_t rate_t k_t at most.

LoRA (s B A, where B begins at 0): every entry of B is within D, and of A within D of its start A0. The output s B A x
of an input whose n entries are of one size and independent, E x x^T = p^2 I, is then in every place at most

    s D E|A x|_1 <= s D sqrt(r) p (|A0|_F + D sqrt(r n)),

while the frozen layer's own output has the root mean square p |W|_F / sqrt(m), m being the number of its outputs. The
ratio is the largest share by which the layer's output can move. It is added to an output that is rounded to u of its
size (half of the last place: 2^-8 in bfloat16): a share below u is mostly lost.

Weights that are trained themselves move by D, and are rounded to u of their own size before they are used.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from sysdpo.components.base import Component
from sysdpo.sharding import assembled
from sysdpo.system import CompoundSystem
from sysdpo.training.loop import TrainingSettings, rate_of

BETAS = (0.9, 0.999)
"""Decay rates of torch's AdamW, which this project and TRL leave as they are."""


@dataclass(frozen=True)
class Reach:
    """Of a component: how far an entry moves at most, the largest share of a layer's output (or of a weight) that this
    makes, and the unit roundoff that it is held against."""

    entry: float
    share: float
    roundoff: float
    dtype: str
    lora: tuple[int, float] | None
    """Rank and alpha of the layer that moves most; None where weights are trained themselves."""
    is_assumed: bool
    """Whether there are no weights yet, and layers are taken to keep the size of what they read."""

    @property
    def is_lost(self) -> bool:
        return self.share < self.roundoff


def adam_reach(rates: list[float], betas: tuple[float, float] = BETAS) -> float:
    """D: how far updates with these learning rates move an entry at most."""
    b1, b2 = betas
    total, tail = 0.0, 0.0
    for t, rate in enumerate(rates, 1):
        tail += (b1 * b1 / b2) ** (t - 1)
        total += rate * (1 - b1) / (1 - b1**t) * math.sqrt((1 - b2**t) / (1 - b2) * tail)
    return total


def reach(component: Component, entry: float) -> Reach | None:
    """The reach of the layer that moves most, relative to its own output; None of a component that is not trained."""
    found = [each for network in component.networks().values() for each in _layers(network, entry)]
    return max(found, key=lambda each: each.share, default=None)


def _layers(network: nn.Module, entry: float) -> Iterator[Reach]:
    adapted: set[int] = set()
    for module in network.modules():
        if isinstance(module, LoraLayer):
            own = [p for name, p in module.named_parameters() if "lora_" in name]
            adapted |= set(map(id, own))
            for name, a in module.lora_A.items():
                weight = getattr(a, "weight", None)
                if isinstance(weight, Tensor) and any(p.requires_grad for p in own):
                    yield _of_lora(module, name, weight, entry)
    for parameter in network.parameters():
        if parameter.requires_grad and id(parameter) not in adapted and parameter.dim() > 1:
            yield _of_weight(parameter, entry)


def _of_lora(module: Any, name: str, a: Tensor, entry: float) -> Reach:
    weight = module.get_base_layer().weight
    rank, n = a.shape[0], a[0].numel()
    m = weight.numel() / n
    scale = float(module.scaling[name])
    is_shape = weight.is_meta or not weight.is_floating_point()  # quantised numbers are no weights
    # PEFT draws A uniformly within 1 / sqrt(n)
    start = math.sqrt(rank / 3) if is_shape else float(a.detach().float().norm())
    gain = 1.0 if is_shape else float(weight.detach().float().norm()) / math.sqrt(m)
    moved = scale * entry * math.sqrt(rank) * (start + entry * math.sqrt(rank * n))
    return Reach(entry, moved / gain if gain else math.inf, *_roundoff(weight), (rank, scale * rank), is_shape)


def _of_weight(parameter: Tensor, entry: float) -> Reach:
    n = parameter[0].numel()
    size = 1 / math.sqrt(n) if parameter.is_meta else float(parameter.detach().float().square().mean().sqrt())
    return Reach(entry, entry / size if size else math.inf, *_roundoff(parameter), None, parameter.is_meta)


def _roundoff(weight: Tensor) -> tuple[float, str]:
    dtype = weight.dtype if weight.dtype.is_floating_point else torch.float32
    return torch.finfo(dtype).eps / 2, str(dtype).removeprefix("torch.")


def reaches(system: CompoundSystem, settings: TrainingSettings) -> dict[str, Reach]:
    """Of each component that is trained, under the run's learning rates."""
    found = {}
    for name in system.trainable:
        rate = rate_of(settings, system, name)
        warm = [min(1.0, (step + 1) / max(1, settings.warmup_steps)) for step in range(settings.steps)]
        with assembled(system.component(name)) as component:
            own = reach(component, adam_reach([rate * share for share in warm]))
        if own is not None:
            found[name] = own
    return found


def in_words(name: str, found: Reach) -> str:
    """One line: how far at most, of what, and whether rounding hides it."""
    what = "of its own size, a weight" if found.lora is None else "of its size, the output of an adapted layer"
    line = (
        f"{name}: training moves an entry by at most {found.entry:.2g}, and by at most {found.share:.2g} {what}"
        f"{' that keeps the size of its input' if found.is_assumed and found.lora else ''}"
    )
    if found.lora is not None:
        line += f" (LoRA r={found.lora[0]}, alpha={found.lora[1]:g}; the paper states neither)"
    if found.is_lost:
        line += (
            f"; BELOW ROUNDING: {found.dtype} keeps {found.roundoff:.2g}, so most of what is learned will not show; "
            "raise training.learning_rate, training.steps or lora.lora_alpha, or compute in dtype=float32"
        )
    return line
