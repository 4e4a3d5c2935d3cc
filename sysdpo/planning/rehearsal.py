"""The system's own code run on shapes: an update of the trainer's objective, and the drawing of values."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, nn

import sysdpo.system as walk
from sysdpo.components.base import Component
from sysdpo.losses import preference_loss
from sysdpo.planning.meter import Meter, shapes
from sysdpo.planning.workload import Workload
from sysdpo.system import CompoundSystem
from sysdpo.training.objectives import Objective, Sampling


class Update(NamedTuple):
    """A micro-batch, forward and backward: its bytes beyond weights and optimizer, gradients included, its kernels,
    what each component's own forward pass keeps, and the tokens in forward passes with gradients."""

    meter: Meter
    saved: dict[str, int]
    tokens: int


def rehearse_update(
    system: CompoundSystem, objective: Objective, workload: Workload, pairs: int, repeats: int = 2
) -> Update:
    """`objective` compares `pairs` pairs and goes back; the second time gradients are in place, and no text is known.

    Args:
        system: on the meta device, and told to rehearse (`Component.rehearse`).
        workload: of the pairs, and of the samples that SysDPO-Sampling would have drawn.
    """
    meter, saved = Meter(), Counter[str]()
    sampled: Any = nullcontext()
    if isinstance(objective, Sampling):
        k = objective.strategy.k
        sampled = patch.object(objective, "draw", lambda _, given, __: workload.samples(given, k))
    networks = [network for name in system.components for network in _networks(system.component(name))]
    with shapes(*networks), sampled, counted_tokens(system) as tokens, _saved(system, meter, saved):
        for repeat in range(repeats):
            some = workload.pairs(pairs, start=repeat * pairs)
            saved.clear()
            tokens.clear()
            meter.restart()
            with meter:
                preference_loss(objective.compare(system, some, range(pairs)).margin, 0.1).sum().backward()
    return Update(meter, dict(saved), sum(tokens))


@contextmanager
def _saved(system: CompoundSystem, meter: Meter, saved: Counter[str]) -> Iterator[None]:
    """Inside, adds to `saved`, by component, the bytes by which its evaluations add to what is alive."""
    names = {system.component(name): name for name in system.components}
    evaluate = walk.evaluate

    def watched(component: Component, *more: Any) -> Tensor:
        before = meter.live
        terms = evaluate(component, *more)
        saved[names[component]] += meter.live - before
        return terms

    with patch.object(walk, "evaluate", watched):
        yield


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


class Drawing(NamedTuple):
    """Values drawn side by side: all kernels and the fullest moment, bytes of the cache, and steps that are repeated
    (tokens of a text, denoising steps of an image)."""

    meter: Meter
    cache: int
    steps: int


@torch.no_grad()
def rehearse_drawing(component: Component, n: int, prompt: int = 0) -> Drawing:
    """`n` values at a time, behind prompts of that many tokens."""
    meter, kernels = Meter(), Counter[tuple[int, int]]()
    peak = cache = steps = 0
    with shapes(*_networks(component)), meter:
        for times in component.drawing(n, prompt):
            kernels.update({kernel: times * count for kernel, count in meter.kernels.items()})
            peak = max(peak, meter.peak if times else 0)
            cache, steps = max(cache, meter.live), max(steps, times)
            meter.restart()
    meter.kernels, meter.peak = kernels, peak
    return Drawing(meter, cache, steps)


def _networks(component: Component) -> list[nn.Module]:
    return [*component.networks().values(), *component.frozen_copies()]
