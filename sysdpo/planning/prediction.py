"""The system's own code run on shapes: an update of the trainer's objective, and the drawing of values."""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

import sysdpo.system as walk
from sysdpo.components.base import Component
from sysdpo.experiment.build import build_trainable
from sysdpo.graph import Variable
from sysdpo.losses import preference_loss
from sysdpo.planning.hardware import gpu
from sysdpo.planning.meter import Meter, shapes
from sysdpo.planning.work import Taken
from sysdpo.planning.workload import Workload
from sysdpo.sampling.strategies import Sampler
from sysdpo.system import CompoundSystem
from sysdpo.training.objectives import Objective, Sampling


class Prediction:
    """Units of work on tensors without memory, and the time that a GPU would take: assumptions are under `plan`."""

    holds_weights = False

    def __init__(self, config: DictConfig) -> None:
        content: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
        self.assumed = assumed = content["plan"]
        device = gpu(assumed["gpu"])
        self.speeds = (
            device.flops_per_s * assumed["compute_utilisation"],
            device.bytes_per_s * assumed["bandwidth_utilisation"],
            assumed["launch_us"] * 1e-6,
        )
        self.shaped = OmegaConf.create(on_meta(content))
        self.system, self.objective = build_trainable(self.shaped), instantiate(self.shaped.objective)
        self.elements = int(content["system"].get("captions_per_prompt", 1))
        self._tell(None)

    def _tell(self, text: int | None) -> None:
        for name in self.system.components:
            self.system.component(name).take_lengths(int(self.assumed["frame"]), text)

    def generator(self) -> Component | None:
        if self.shaped.dataset.get("generator") is None:
            return None
        drawer: Component = instantiate(self.shaped.dataset.generator)()
        drawer.trainable(False)
        drawer.take_lengths(int(self.assumed["frame"]), None)
        return drawer

    def update(self, pairs: int, prompt: str) -> Taken:
        """With the longest prompts, scored texts are as long as allowed, and the second update is the one that counts:
        gradients are in place, and no text is known."""
        tokens, longest = self.assumed["tokens"], prompt == "longest_prompt"
        self._tell(None if longest else tokens["text"])
        workload = Workload(self.system, tokens[prompt], tokens["text"], self.elements)
        done = predict_update(self.system, self.objective, workload, pairs, repeats=2 if longest else 1)
        meter = done.meter
        seconds = meter.seconds(*self.speeds)
        return Taken(meter.peak, seconds, meter.flops, done.tokens, saved=done.saved, largest=meter.largest)

    def draw(self, component: Component, variable: Variable, n: int, prompt: str, strategy: Sampler | None) -> Taken:
        tokens, roles = self.assumed["tokens"], [self.system.graph[name].role for _, name in variable.parents]
        length = int(self.assumed["frame"]) + sum(tokens[prompt if role == "input" else "text"] for role in roles)
        done, is_text = predict_drawing(component, n, length), component.unit == "tokens"
        note = f"KV cache {done.cache / 2**30:.1f} GiB at the longest" if is_text else f"{done.steps} steps"
        seconds, meter = done.meter.seconds(*self.speeds), done.meter
        return Taken(meter.peak, seconds, meter.flops, n * done.steps if is_text else 0, note)


class Update(NamedTuple):
    """A micro-batch, forward and backward: its bytes beyond weights and optimizer, gradients included, its kernels,
    what each component's own forward pass keeps, and the tokens in forward passes with gradients."""

    meter: Meter
    saved: dict[str, int]
    tokens: int


def predict_update(
    system: CompoundSystem, objective: Objective, workload: Workload, pairs: int, repeats: int = 2
) -> Update:
    """`objective` compares `pairs` pairs and goes back; what is counted is the last time.

    Args:
        system: on the meta device, after `Component.take_lengths` of every component.
        workload: of the pairs, and of the samples that SysDPO-Sampling would have drawn.
    """
    meter, saved = Meter(), Counter[str]()
    networks = [network for name in system.components for network in _networks(system.component(name))]
    with shapes(*networks), drawn(objective, workload), counted_tokens(system) as tokens, _saved(system, meter, saved):
        for repeat in range(repeats):
            some = workload.pairs(pairs, start=repeat * pairs)
            saved.clear()
            tokens.clear()
            meter.restart()
            with meter:
                preference_loss(objective.compare(system, some, range(pairs)).margin, 0.1).sum().backward()
    return Update(meter, dict(saved), sum(tokens))


def drawn(objective: Objective, workload: Workload) -> Any:
    """Inside, SysDPO-Sampling finds made-up samples in place of drawing its own, which is another phase."""
    if not isinstance(objective, Sampling):
        return nullcontext()
    k = objective.strategy.k
    return patch.object(objective, "draw", lambda _, given, __: workload.samples(given, k))


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
def predict_drawing(component: Component, n: int, prompt: int = 0) -> Drawing:
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
