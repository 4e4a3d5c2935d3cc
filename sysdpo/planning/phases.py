"""Memory and time of a run: the weights that stay, and each kind of work: one rehearsal, times how often it is done."""

import math
from typing import Any

from hydra.utils import instantiate
from omegaconf import OmegaConf

from sysdpo.components.base import Component
from sysdpo.experiment.build import training_settings
from sysdpo.graph import Variable
from sysdpo.planning.plan import GENERATOR, Part, Phase, Plan
from sysdpo.planning.rehearsal import Update, rehearse_drawing, rehearse_update
from sysdpo.planning.sizes import evaluation_rows, training_prompts
from sysdpo.planning.workload import Workload
from sysdpo.system import CompoundSystem
from sysdpo.training.objectives import Sampling


def count(component: Component) -> Part:
    """Exact, of the real classes with their adapters; tied weights once."""
    part = Part()
    for network in component.networks().values():
        for parameter in network.parameters():
            part.parameters += parameter.numel()
            part.weight_bytes += parameter.numel() * parameter.element_size()
            part.trainable += parameter.numel() if parameter.requires_grad else 0
        part.weight_bytes += sum(b.numel() * b.element_size() for b in network.buffers())
    for network in component.frozen_copies():
        part.reference_bytes += sum(p.numel() * p.element_size() for p in network.parameters())
    return part


class Phases:
    """Appends to `plan.phases` what a run of the system does, in order.

    Args:
        content: the resolved config.
        shaped: the same with every model on the meta device, of which `system` was built.
        speeds: floating-point operations and bytes a second, and seconds to launch a kernel.
    """

    def __init__(
        self, content: dict[str, Any], shaped: Any, system: CompoundSystem, plan: Plan, speeds: tuple[float, ...]
    ) -> None:
        self.content, self.shaped, self.system, self.plan, self.speeds = content, shaped, system, plan, speeds
        self.tokens: dict[str, int] = content["plan"]["tokens"]
        self.frame = int(content["plan"]["frame"])
        self.preference = instantiate(shaped.objective)
        self.elements = int(content["system"].get("captions_per_prompt", 1))

    # ---- training ------------------------------------------------------------------------------------------------

    def train(self) -> None:
        settings, trained = training_settings(OmegaConf.create(self.content)), self.system.trainable
        pairs = min(settings.micro_batch_size, settings.batch_size)
        updates = settings.steps * math.ceil(settings.batch_size / pairs)
        usual = self._update("prompt", self.tokens["text"], pairs, repeats=1)
        if self.plan.one_gpu_each and len(trained) > 1:
            for name in trained:
                self.system.train_only([name])
                alone = self._update("longest_prompt", None, pairs)
                self.plan.phases.append(Phase(f"train: {name} on its own GPU", alone.peak, "", components=(name,)))
            self.system.train_only(trained)
        fullest = self._update("longest_prompt", None, pairs)
        self.plan.saved, self.plan.largest_bytes = fullest.saved, fullest.meter.largest
        total = Phase(
            "train: score, back",
            fullest.peak,
            f"{settings.steps} updates of {settings.batch_size} pairs, {pairs} at a time",
            usual.meter.flops * updates,
            usual.meter.seconds(*self.speeds) * updates,
            usual.tokens / pairs * settings.steps * settings.batch_size,
        )
        if self.plan.one_gpu_each and len(trained) > 1:
            total.bytes, total.components = 0, ()  # the lines above have it, GPU by GPU
        self.plan.phases.append(total)
        if isinstance(self.preference, Sampling):
            at_once = min(settings.draw_batch_size or pairs, settings.batch_size)
            drawn, draws = settings.steps * settings.batch_size, self.preference.strategy.num_draws
            for variable in self.system.graph.intermediates:
                self.draw(variable, "train: draw ", drawn * draws, at_once * draws)

    def _update(self, prompt: str, text: int | None, pairs: int, repeats: int = 2) -> Update:
        """One repeat gives the time, the second the peak; `text`: tokens of scored texts, None as many as allowed."""
        for name in self.system.components:
            self.system.component(name).rehearse(self.frame, text)
        workload = Workload(self.system, self.tokens[prompt], self.tokens["text"], self.elements)
        return rehearse_update(self.system, self.preference, workload, pairs, repeats)

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
        drawer.rehearse(self.frame, None)
        self.plan.parts[GENERATOR] = count(drawer)
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
            self.draw_by(component, owner, f"{phase}{variable.name}{by}", amount, at_once, variable)

    def draw_by(
        self, component: Component, owner: str, phase: str, amount: int, at_once: int, variable: Variable | None = None
    ) -> None:
        """`component` stands in the plan as `owner`; one that is no model takes nothing."""
        if component.unit is None:
            return
        n = component.most_at_once or min(at_once, amount)
        lengths = [self._prompt(variable, self.tokens[key]) for key in ("longest_prompt", "prompt")]
        if component.unit == "images":
            lengths = [0, 0]
        drawn = {length: rehearse_drawing(component, n, length) for length in lengths}
        longest, usual, times = drawn[lengths[0]], drawn[lengths[1]], amount / n
        is_text = component.unit == "tokens"
        of = f"KV cache {longest.cache / 2**30:.1f} GiB at the longest" if is_text else f"{longest.steps} steps"
        found = Phase(
            phase,
            longest.peak,
            f"{amount:,} {'texts' if is_text else 'images'}, {n} at a time, {of}",
            usual.flops * times,
            usual.seconds(*self.speeds) * times,
            amount * usual.steps if is_text else 0.0,
        )
        if owner == GENERATOR:  # drawn with beside everything else
            found.components = tuple(self.plan.parts)
        elif self.plan.one_gpu_each:
            found.components = (owner,)
        self.plan.phases.append(found)

    def _prompt(self, variable: Variable | None, prompt: int) -> int:
        """Tokens of a variable's prompt: the frame, the input, and what earlier components wrote."""
        parents = [self.system.graph[name].role for _, name in variable.parents] if variable is not None else []
        return self.frame + sum(prompt if role == "input" else self.tokens["text"] for role in parents)
