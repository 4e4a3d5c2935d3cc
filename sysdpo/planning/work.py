"""The units of a run's work, and what one of them takes: a prediction derives it for a GPU, a measurement reads it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from sysdpo.components.base import Component
from sysdpo.graph import Variable
from sysdpo.sampling.strategies import Sampler
from sysdpo.system import CompoundSystem


@dataclass(frozen=True)
class Taken:
    """What one unit took; `note` says how it was done."""

    peak: int | None
    """Bytes at the fullest moment; None where the system hides it."""
    seconds: float
    flops: float = 0.0
    tokens: float = 0.0
    note: str = ""
    saved: Mapping[str, int] = field(default_factory=dict)
    """By component, bytes that its forward pass keeps for the backward pass."""
    largest: int = 0
    """Bytes of the largest tensor."""


class Work(Protocol):
    """Does one unit of each kind of work; `prompt` names the length of prompts: `prompt` or `longest_prompt`."""

    system: CompoundSystem
    objective: Any
    holds_weights: bool
    """Whether `Taken.peak` counts weights and optimizer too."""

    def generator(self) -> Component | None:
        """What draws the images of the data in place of the system's own model; None without one."""
        ...

    def update(self, pairs: int, prompt: str) -> Taken:
        """A micro-batch of `pairs` pairs, forward and backward."""
        ...

    def draw(self, component: Component, variable: Variable, n: int, prompt: str, strategy: Sampler | None) -> Taken:
        """`n` values of a variable side by side; `strategy`: those that SysDPO-Sampling sums over."""
        ...
