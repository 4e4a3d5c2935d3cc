"""A run as a list of phases: each kind of work, how often the run does it, and from one unit of it memory and time."""

import math
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sysdpo.components.base import Component
from sysdpo.experiment.build import training_settings
from sysdpo.graph import Variable
from sysdpo.planning.prediction import Prediction
from sysdpo.planning.sizes import curve_rows, evaluation_rows, training_prompts
from sysdpo.planning.work import Taken, Work
from sysdpo.sampling.strategies import Sampler
from sysdpo.training.objectives import Sampling
from sysdpo.training.reach import Reach, reaches

ADAM_BYTES = 8  # two fp32 moments a trainable weight
GENERATOR = "dataset.generator"
"""The component that only draws training data; on the GPU while it does."""


@dataclass(frozen=True)
class Part:
    """A component's weights: counts, and bytes in their own precision; `reference` where a frozen copy is kept."""

    parameters: int
    trainable: int
    weight_bytes: int
    reference_bytes: int

    @property
    def optimizer_bytes(self) -> int:
        return ADAM_BYTES * self.trainable

    @property
    def bytes(self) -> int:
        """All that stays."""
        return self.weight_bytes + self.reference_bytes + self.optimizer_bytes


def count(component: Component) -> Part:
    """Exact, of the real classes with their adapters; tied weights once."""
    networks = list(component.networks().values())
    weights = [p for network in networks for p in network.parameters()]
    buffers = [b for network in networks for b in network.buffers()]
    copies = [p for network in component.frozen_copies() for p in network.parameters()]
    return Part(
        sum(p.numel() for p in weights),
        sum(p.numel() for p in weights if p.requires_grad),
        sum(t.nbytes for t in (*weights, *buffers)),
        sum(p.nbytes for p in copies),
    )


@dataclass(frozen=True)
class Phase:
    """A kind of work: `times` units of what was taken for one; `peak` is that with the longest prompts, in bytes."""

    name: str
    peak: int | None
    unit: Taken
    times: float
    owners: tuple[str, ...] = ()
    """Whose weights lie beside it."""
    note: str = ""

    @property
    def seconds(self) -> float:
        return self.unit.seconds * self.times


class Plan:
    """What a row of a table takes.

    Args:
        config: `method`, `experiment` and `scale` as for a run.
        work: does a unit of each kind.
    """

    def __init__(self, config: DictConfig, work: Work) -> None:
        self.content: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
        self.work, self.system = work, work.system
        self.parts = {name: count(self.system.component(name)) for name in self.system.components}
        self.phases: list[Phase] = []
        self.fullest: Taken | None = None
        """The update with the longest prompts."""
        self.reaches: dict[str, Reach] = {}
        """How far training can move each component at most."""
        if self.system.trainable:
            self.reaches = reaches(self.system, training_settings(OmegaConf.create(self.content)))
            self._train()
        dataset = self.content["dataset"]
        rows = evaluation_rows(dataset) + curve_rows(self.content)
        if rows := rows * int(self.content["best_of"]):
            self._generate("evaluate: ", rows, int(self.content["evaluation_batch_size"]))
        if dataset.get("samples"):  # training pairs are samples of the untrained system
            generator = work.generator()
            if generator is not None:
                self.parts[GENERATOR] = count(generator)
            rows = training_prompts(dataset) * int(dataset["samples"])
            self._generate("make data: ", rows, int(dataset["batch_size"]), generator)

    def total(self, phase: Phase) -> int:
        """Bytes at the phase's fullest moment, with all that stays on its GPU."""
        return (phase.peak or 0) + sum(self.parts[name].bytes for name in phase.owners)

    @property
    def needed(self) -> int:
        """The fullest moment on one GPU."""
        return max(map(self.total, self.phases))

    @property
    def hours(self) -> float:
        return sum(phase.seconds for phase in self.phases) / 3600

    def _train(self) -> None:
        settings, trained = training_settings(OmegaConf.create(self.content)), self.system.trainable
        pairs = min(settings.micro_batch_size, settings.batch_size)
        updates = settings.steps * math.ceil(settings.batch_size / pairs)
        usual = self.work.update(pairs, "prompt")
        apart = self._one_gpu_each and len(trained) > 1
        for name in trained if apart else ():
            self.system.train_only([name])
            alone = self.work.update(pairs, "longest_prompt")
            self.phases.append(Phase(f"train: {name} on its own GPU", alone.peak, alone, 0, (name,)))
        self.system.train_only(trained)
        self.fullest = self.work.update(pairs, "longest_prompt")
        peak = 0 if apart else self.fullest.peak  # the lines above have it, GPU by GPU
        note = f"{settings.steps} updates of {settings.batch_size} pairs, {pairs} at a time"
        self.phases.append(Phase("train: score, back", peak, usual, updates, () if apart else self._beside(""), note))
        if isinstance(self.work.objective, Sampling):
            strategy = self.work.objective.strategy
            at_once = min(settings.draw_batch_size or pairs, settings.batch_size) * strategy.num_draws
            drawn = settings.steps * settings.batch_size * strategy.num_draws
            for variable in self.system.graph.intermediates:
                self._draw(variable, "train: draw ", drawn, at_once, strategy=strategy)

    def _generate(self, phase: str, rows: int, batch: int, drawer: Component | None = None) -> None:
        """`rows` runs of the whole system, `batch` at a time; `drawer` in place of the component of the same unit."""
        elements = int(self.content["system"].get("captions_per_prompt", 1))
        for variable in self.system.graph.generated:
            each = elements if variable.plate and not self.system.graph.opens_plate(variable.name) else 1
            self._draw(variable, phase, rows * each, batch, drawer)

    def _draw(
        self,
        variable: Variable,
        phase: str,
        amount: int,
        at_once: int,
        drawer: Component | None = None,
        strategy: Sampler | None = None,
    ) -> None:
        """All `amount` values of a variable, as if each component that may draw it drew all of them."""
        for name in variable.components:
            component, owner = self.system.component(name), name
            if drawer is not None and drawer.unit == component.unit:
                component, owner = drawer, GENERATOR
            if component.unit is None:  # what is no model takes nothing
                continue
            n, kind = component.most_at_once or min(at_once, amount), component.unit.replace("tokens", "texts")
            usual = longest = self.work.draw(component, variable, n, "prompt", strategy)
            if component.unit == "tokens":
                longest = self.work.draw(component, variable, n, "longest_prompt", strategy)
            by = f" by {name}" if len(variable.components) > 1 else ""
            note = f"{amount:,} {kind}, {n} at a time, {longest.note}"
            whole = f"{phase}{variable.name}{by}"
            self.phases.append(Phase(whole, longest.peak, usual, amount / n, self._beside(owner), note))

    @property
    def _one_gpu_each(self) -> bool:
        return bool(self.content["plan"]["one_gpu_each"]) and not self.work.holds_weights

    def _beside(self, owner: str) -> tuple[str, ...]:
        """Whose weights lie on the GPU on which `owner` works; "": all components together."""
        if self.work.holds_weights:
            return ()
        if owner == GENERATOR:
            return tuple(self.parts)
        return (owner,) if owner and self._one_gpu_each else tuple(self.system.components)


def make_plan(config: DictConfig) -> Plan:
    """Of a row of a table, from its config alone: nothing is downloaded, no weight is made."""
    return Plan(config, Prediction(config))
