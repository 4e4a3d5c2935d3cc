"""`make plan`: memory and time of one row of a table, from its config alone. Nothing is downloaded, no weight is made.

Weights stay. Each kind of work is rehearsed once, on tensors without memory, and counted as often as the run does it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from sysdpo.components.base import Component
from sysdpo.experiment.build import build_trainable, training_settings
from sysdpo.graph import Variable
from sysdpo.planning.hardware import gpu
from sysdpo.planning.rehearsal import Update, rehearse_drawing, rehearse_update
from sysdpo.planning.sizes import evaluation_rows, training_prompts
from sysdpo.planning.workload import Workload
from sysdpo.training.objectives import Sampling

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
    """A kind of work: its bytes beyond what stays, and how long all of it takes; `owners`: whose weights lie there."""

    name: str
    bytes: int
    owners: tuple[str, ...]
    note: str = ""
    flops: float = 0.0
    seconds: float = 0.0
    tokens: float = 0.0


class Plan:
    """A system without weights, and the phases of a run as they are added, in order.

    Args:
        config: `method`, `experiment` and `scale` as for a run, assumptions under `plan`.
    """

    def __init__(self, config: DictConfig) -> None:
        self.content: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
        self.assumed = assumed = self.content["plan"]
        self.gpu = gpu(assumed["gpu"])
        self.usable = self.gpu.memory_gib * 2**30 * (1 - assumed["reserve"])
        self.speeds = (
            self.gpu.flops_per_s * assumed["compute_utilisation"],
            self.gpu.bytes_per_s * assumed["bandwidth_utilisation"],
            assumed["launch_us"] * 1e-6,
        )
        self.shaped = OmegaConf.create(on_meta(self.content))
        self.system = build_trainable(self.shaped)
        self.objective = instantiate(self.shaped.objective)
        self.elements = int(self.content["system"].get("captions_per_prompt", 1))
        self.parts = {name: count(self.system.component(name)) for name in self.system.components}
        self.phases: list[Phase] = []
        self.fullest: Update | None = None
        self._rehearse(None)

    def total(self, phase: Phase) -> int:
        """Bytes at the phase's fullest moment, with all that stays on its GPU."""
        return phase.bytes + sum(self.parts[name].bytes for name in phase.owners)

    @property
    def needed(self) -> int:
        """The fullest moment on one GPU."""
        return max(map(self.total, self.phases))

    @property
    def fits(self) -> bool:
        return self.needed <= self.usable

    @property
    def hours(self) -> float:
        return sum(phase.seconds for phase in self.phases) / 3600

    # ---- training ------------------------------------------------------------------------------------------------

    def train(self) -> None:
        settings, trained = training_settings(OmegaConf.create(self.content)), self.system.trainable
        pairs = min(settings.micro_batch_size, settings.batch_size)
        updates = settings.steps * math.ceil(settings.batch_size / pairs)
        usual = self._update("prompt", self.assumed["tokens"]["text"], pairs, repeats=1)
        apart = self.assumed["one_gpu_each"] and len(trained) > 1
        for name in trained if apart else ():
            self.system.train_only([name])
            alone = self._update("longest_prompt", None, pairs)
            self.phases.append(Phase(f"train: {name} on its own GPU", alone.meter.peak, (name,)))
        self.system.train_only(trained)
        self.fullest = self._update("longest_prompt", None, pairs)
        total = Phase(
            "train: score, back",
            0 if apart else self.fullest.meter.peak,  # the lines above have it, GPU by GPU
            () if apart else tuple(self.system.components),
            f"{settings.steps} updates of {settings.batch_size} pairs, {pairs} at a time",
            usual.meter.flops * updates,
            usual.meter.seconds(*self.speeds) * updates,
            usual.tokens / pairs * settings.steps * settings.batch_size,
        )
        self.phases.append(total)
        if isinstance(self.objective, Sampling):
            rows = pairs * self.objective.strategy.num_draws
            for variable in self.system.graph.intermediates:
                self.draw(variable, "train: draw ", rows * updates, rows)

    def _rehearse(self, text: int | None) -> None:
        for name in self.system.components:
            self.system.component(name).rehearse(int(self.assumed["frame"]), text)

    def _update(self, prompt: str, text: int | None, pairs: int, repeats: int = 2) -> Update:
        """One repeat gives the time, the second the peak; `text`: tokens of scored texts, None as many as allowed."""
        self._rehearse(text)
        tokens = self.assumed["tokens"]
        workload = Workload(self.system, tokens[prompt], tokens["text"], self.elements)
        return rehearse_update(self.system, self.objective, workload, pairs, repeats)

    # ---- drawing -------------------------------------------------------------------------------------------------

    def evaluate(self) -> None:
        rows = evaluation_rows(self.content["dataset"]) * int(self.content["best_of"])
        if rows:
            self._generate("evaluate: ", rows, int(self.content["evaluation_batch_size"]))

    def make_data(self) -> None:
        """Training pairs that are samples of the untrained system, with another image model where one is named."""
        dataset = self.content["dataset"]
        rows = training_prompts(dataset) * int(dataset["samples"])
        self._generate("make data: ", rows, int(dataset["batch_size"]), self.generator())

    def generator(self) -> Component | None:
        """The image model that draws the data in place of the system's own, its weights counted; None without one."""
        if self.shaped.dataset.get("generator") is None:
            return None
        drawer: Component = instantiate(self.shaped.dataset.generator)()
        drawer.trainable(False)
        drawer.rehearse(int(self.assumed["frame"]), None)
        self.parts[GENERATOR] = count(drawer)
        return drawer

    def _generate(self, phase: str, rows: int, batch: int, drawer: Component | None = None) -> None:
        """`rows` runs of the whole system, `batch` at a time; `drawer` in place of the component of the same unit."""
        for variable in self.system.graph.generated:
            elements = self.elements if variable.plate and not self.system.graph.opens_plate(variable.name) else 1
            self.draw(variable, phase, rows * elements, batch, drawer)

    def draw(self, variable: Variable, phase: str, amount: int, at_once: int, drawer: Component | None = None) -> None:
        """All `amount` values of a variable, planned as if each component that may draw it drew all of them."""
        for name in variable.components:
            component, owner = self.system.component(name), name
            if drawer is not None and drawer.unit == component.unit:
                component, owner = drawer, GENERATOR
            by = f" by {name}" if len(variable.components) > 1 else ""
            if component.unit is not None:  # what is no model takes nothing
                self.draw_by(component, owner, f"{phase}{variable.name}{by}", amount, at_once, variable)

    def draw_by(
        self, component: Component, owner: str, phase: str, amount: int, at_once: int, variable: Variable
    ) -> Phase:
        """`component` stands in the plan as `owner`."""
        n, is_text = component.most_at_once or min(at_once, amount), component.unit == "tokens"
        lengths = [self._prompt(variable, key) if is_text else 0 for key in ("longest_prompt", "prompt")]
        drawn = {length: rehearse_drawing(component, n, length) for length in dict.fromkeys(lengths)}
        longest, usual = (drawn[length] for length in lengths)
        of = f"KV cache {longest.cache / 2**30:.1f} GiB at the longest" if is_text else f"{longest.steps} steps"
        found = Phase(
            phase,
            longest.meter.peak,
            self._beside(owner),
            f"{amount:,} {'texts' if is_text else 'images'}, {n} at a time, {of}",
            usual.meter.flops * amount / n,
            usual.meter.seconds(*self.speeds) * amount / n,
            amount * usual.steps if is_text else 0.0,
        )
        self.phases.append(found)
        return found

    def _beside(self, owner: str) -> tuple[str, ...]:
        """Whose weights lie on the GPU on which `owner` draws."""
        if owner == GENERATOR:
            return tuple(self.parts)
        return (owner,) if self.assumed["one_gpu_each"] else tuple(self.system.components)

    def _prompt(self, variable: Variable, prompt: str) -> int:
        """Tokens of a variable's prompt: the frame, the input, and what earlier components wrote."""
        tokens, parents = self.assumed["tokens"], [self.system.graph[name].role for _, name in variable.parents]
        return int(self.assumed["frame"]) + sum(tokens[prompt if role == "input" else "text"] for role in parents)


def make_plan(config: DictConfig) -> Plan:
    """The plan of all that a row does."""
    plan = Plan(config)
    if plan.system.trainable:
        plan.train()
    plan.evaluate()
    if plan.content["dataset"].get("samples"):
        plan.make_data()
    return plan


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
