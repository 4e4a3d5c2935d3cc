"""The system's own code run on shapes: an update of the trainer's objective, and each stage of drawing."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

import sysdpo.system as walk
from sysdpo.components.base import Component
from sysdpo.losses import preference_loss
from sysdpo.planning.meter import Meter, as_shapes, shapes
from sysdpo.planning.workload import Workload
from sysdpo.system import CompoundSystem, Pair
from sysdpo.training.objectives import Objective, Sampling


@dataclass(frozen=True)
class Update:
    """A micro-batch, forward and backward; bytes beyond weights and optimizer.

    saved: what each component's own forward pass keeps; peak: the most at any moment, gradients included; tokens: in
    forward passes with gradients.
    """

    saved: dict[str, int]
    peak: int
    meter: Meter
    tokens: int


def rehearse_update(
    system: CompoundSystem, preference: Objective, workload: Workload, pairs: int, repeats: int = 2
) -> Update:
    """`preference` compares `pairs` pairs and goes back; the second time gradients are in place, and no text is known.

    Args:
        system: on the meta device, and told to rehearse (`Component.rehearse`).
        workload: of the pairs, and of the samples that SysDPO-Sampling would have drawn.
    """
    meter = Meter()
    with shapes(), ExitStack() as stack:
        for name in system.components:
            _as_shapes(system.component(name))
        tokens = stack.enter_context(counted_tokens(system))
        if isinstance(preference, Sampling):
            k = preference.strategy.k
            stack.enter_context(patch.object(preference, "draw", lambda _, given, __: workload.samples(given, k)))
        for repeat in range(repeats):
            some = workload.pairs(pairs, start=repeat * pairs)
            tokens.clear()
            meter.kernels.clear()
            meter.reset_peak()
            with meter, _saved(system, meter) as saved:
                _back(system, preference, some)
    return Update(saved, meter.peak, meter, sum(tokens))


def _back(system: CompoundSystem, preference: Objective, pairs: Sequence[Pair]) -> None:
    preference_loss(preference.compare(system, pairs, [p.index for p in pairs]).margin, 0.1).sum().backward()


@contextmanager
def _saved(system: CompoundSystem, meter: Meter) -> Iterator[dict[str, int]]:
    """Inside, by component, the bytes by which its evaluations have added to what is alive."""
    names = {id(system.component(name)): name for name in system.components}
    saved: dict[str, int] = {}
    evaluate = walk.evaluate

    def watched(component: Component, *more: Any) -> Tensor:
        before = meter.live
        terms = evaluate(component, *more)
        name = names[id(component)]
        saved[name] = saved.get(name, 0) + meter.live - before
        return terms

    with patch.object(walk, "evaluate", watched):
        yield saved


@contextmanager
def counted_tokens(system: CompoundSystem) -> Iterator[list[int]]:
    """Inside, each pass with gradients through a language model adds the number of its tokens to the list."""
    counts: list[int] = []

    def count_ids(_: Any, given: tuple[Any, ...]) -> None:
        if torch.is_grad_enabled():
            counts.append(given[0].numel())

    embeddings = [system.component(name).token_embedding() for name in system.components]
    hooks = [module.register_forward_pre_hook(count_ids) for module in embeddings if module is not None]
    try:
        yield counts
    finally:
        for hook in hooks:
            hook.remove()


@dataclass(frozen=True)
class Drawing:
    """Values drawn side by side: (how often, what it takes) for each stage; bytes of the cache, and at the fullest."""

    stages: list[tuple[int, Meter]]
    cache: int
    peak: int

    def seconds(self, *speeds: float) -> float:
        return sum(times * meter.seconds(*speeds) for times, meter in self.stages)

    @property
    def flops(self) -> int:
        return sum(times * meter.flops for times, meter in self.stages)

    @property
    def steps(self) -> int:
        """Of the stage that is repeated: tokens of a text, denoising steps of an image."""
        return max(times for times, _ in self.stages)


@torch.no_grad()
def rehearse_drawing(component: Component, n: int, prompt: int = 0) -> Drawing:
    """`n` values at a time, behind prompts of that many tokens."""
    stages: list[tuple[int, Meter]] = []
    cache = peak = held = 0
    left: Any = None
    with shapes():
        _as_shapes(component)
        for times, work in component.drawing(n, prompt):
            meter = Meter()
            with meter:
                left = work(left)
            if times:
                peak = max(peak, held + meter.peak)
            held = meter.live if left is not None else 0
            cache = max(cache, held)
            stages.append((times, meter))
    return Drawing(stages, cache, peak)


def _as_shapes(component: Component) -> None:
    for network in (*component.networks().values(), *component.frozen_copies()):
        as_shapes(network)
