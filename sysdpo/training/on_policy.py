"""On-policy training: every n updates, pairs of the current system join the given ones, and the reference may follow.

A fixed data set tells of the system as it was before training. Fresh pairs tell of its own present mistakes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor

from sysdpo.components.base import Component, identity
from sysdpo.errors import SettingError
from sysdpo.seeds import stream
from sysdpo.sharding import full, whole
from sysdpo.system import CompoundSystem, Pair

Reference = Literal["fixed", "previous", "ema"]
"""What the policy is compared with: the untrained system, the policy at the last redraw, or its moving average."""

T = TypeVar("T")

Weights = dict[str, dict[str, Tensor]]
"""Of each component, its trainable weights by name."""


class Redraw(Protocol):
    """Makes pairs of the current system and keeps them, so that an interrupted run reads those that it had."""

    def draw(self, step: int, prompts: Sequence[int]) -> tuple[list[Pair], dict[str, float]]:
        """New pairs for the training pairs at these positions, and what they took: `answers`, `judge_calls`."""
        ...

    def read(self, step: int) -> list[Pair]:
        """The pairs that `draw` made before this update."""
        ...


@dataclass(frozen=True)
class OnPolicySettings:
    """The part of the training settings that says when pairs are redrawn; commented in `conf/training/default.yaml`."""

    redraw_every: int = 0
    redraw_samples: int = 4
    replay: float = 0.0
    reference: Reference = "fixed"
    reference_decay: float = 0.99

    def check_on_policy(self, steps: int) -> None:
        """Refuse settings that contradict each other, or a run of so few updates that no pair would be drawn anew."""
        if not self.redraw_every and (self.replay or self.reference == "previous"):
            named = "reference=previous" if self.reference == "previous" else f"replay={self.replay}"
            raise SettingError(f"training.{named} needs fresh pairs; set training.redraw_every.")
        if self.redraw_every >= steps:
            raise SettingError(
                f"training.redraw_every={self.redraw_every}: no pair would be drawn anew in training.steps={steps} "
                "updates; draw more often, or train longer."
            )


@dataclass
class OnPolicy:
    """What changes of a training while it goes on: the fresh pairs, and the reference.

    Args:
        given: the pairs of the data set.
        batch_size: pairs an update, of which `replay` come from `given` once there are fresh ones.
    """

    system: CompoundSystem
    settings: OnPolicySettings
    given: Sequence[Pair]
    batch_size: int
    seed: int
    redraw: Redraw | None = None
    fresh: list[Pair] = field(default_factory=list)
    drawn_at: int = 0
    reference: Weights | None = None

    def __post_init__(self) -> None:
        if self.settings.redraw_every and self.redraw is None:
            raise SettingError(
                f"training.redraw_every={self.settings.redraw_every} needs someone who prefers one of two fresh "
                "samples; give the trainer a redraw, or set labels."
            )

    def begin(self, step: int) -> dict[str, float]:
        """Before an update: redraw if it is time; returns what that took, for the log."""
        if self.reference is None and self.settings.reference != "fixed":
            self._follow(self._policy())
        every = self.settings.redraw_every
        if not every or not step or step % every or self.drawn_at == step:
            return {}
        assert self.redraw is not None
        if self.settings.reference == "previous":
            self._follow(self._policy())
        prompts = self._prompts(step // every - 1)
        self.fresh, took = self.redraw.draw(step, prompts)
        self.drawn_at = step
        took = {**took, "prompts": float(len(prompts)), "pairs": float(len(self.fresh))}
        return {f"redraw/{name}": value for name, value in took.items()}

    def _prompts(self, round_: int) -> list[int]:
        """As many prompts as there are fresh pairs to come, round after round through all of them."""
        first: dict[object, int] = {}
        for i, pair in enumerate(self.given):
            first.setdefault(identity(pair.inputs), i)
        positions = list(first.values())
        n = min(self.settings.redraw_every * self._fresh_size, len(positions))
        return taken(positions, stream(self.seed, len(self.given)), round_ * n, (round_ + 1) * n)

    @property
    def _fresh_size(self) -> int:
        return max(1, self.batch_size - round(self.settings.replay * self.batch_size))

    def batch(self, step: int) -> list[Pair]:
        """The pairs of an update: a function of the seed, the step and the fresh pairs, so that it can be repeated."""
        size = self.batch_size - self._fresh_size if self.fresh else self.batch_size
        pairs = taken(self.given, self.seed, step * size, (step + 1) * size) if size else []
        if not self.fresh:
            return pairs
        start, n = step - self.drawn_at, self._fresh_size
        return pairs + taken(self.fresh, stream(self.seed, self.drawn_at), start * n, (start + 1) * n)

    # ---- the reference -------------------------------------------------------------------------------------------

    def updated(self) -> None:
        """After an update: a moving average moves."""
        if self.settings.reference != "ema" or self.reference is None:
            return
        decay, now = self.settings.reference_decay, self._policy()
        self._follow(
            {
                c: {n: decay * old + (1 - decay) * now[c][n] for n, old in own.items()}
                for c, own in self.reference.items()
            }
        )

    def _policy(self) -> Weights:
        return {
            name: {
                n: full(p.detach()).clone()
                for n, p in self.system.component(name).named_parameters()
                if p.requires_grad
            }
            for name in self.system.trainable
        }

    def _follow(self, weights: Weights | None) -> None:
        self.reference = weights
        for name in self.system.trainable:
            component = self.system.component(name)
            component.follow(None if weights is None else weights[name])
            if weights is not None and not _follows(component, weights[name]):
                raise SettingError(
                    f"training.reference={self.settings.reference}: component {name!r} ({type(component).__name__}) "
                    "keeps a reference of its own; let its reference() honour follow(), or take reference=fixed."
                )

    def close(self) -> None:
        """The reference is the untrained system again, which evaluations compare with."""
        self._follow(None)

    # ---- checkpoints ---------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        on_cpu = self.reference and {c: {n: w.cpu() for n, w in own.items()} for c, own in self.reference.items()}
        return {"drawn_at": self.drawn_at, "reference": on_cpu}

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Go back to what `state` gave; None: to the beginning."""
        if state is None:
            return
        self.drawn_at = state["drawn_at"]
        self.fresh = self.redraw.read(self.drawn_at) if self.redraw is not None and self.drawn_at else []
        if (weights := state["reference"]) is not None:
            device = self.system.device
            self._follow({c: {n: w.to(device) for n, w in own.items()} for c, own in weights.items()})


def _follows(component: Component, weights: Mapping[str, Tensor]) -> bool:
    with whole(component), component.reference():
        return all(p.data_ptr() == weights[n].data_ptr() for n, p in component.named_parameters() if n in weights)


def taken(things: Sequence[T], seed: int, start: int, stop: int) -> list[T]:
    """Positions `start` to `stop` of an endless sequence: all things in one order, then in another, and so on."""
    n = len(things)
    orders = {epoch: _order(n, seed, epoch) for epoch in range(start // n, math.ceil(stop / n))}
    return [things[orders[position // n][position % n]] for position in range(start, stop)]


def _order(n: int, seed: int, epoch: int) -> list[int]:
    generator = torch.Generator().manual_seed(stream(seed, epoch))
    return torch.randperm(n, generator=generator).tolist()
