"""Memory and time of a run: the weights that stay, and each kind of work from one probe and how often it happens."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from hydra.utils import instantiate
from omegaconf import OmegaConf

from sysdpo.components.base import Component
from sysdpo.components.image.diffusion import Diffusion
from sysdpo.components.text.language_model import HEAD_CHUNK, LanguageModel
from sysdpo.experiment.build import training_settings
from sysdpo.graph import Variable
from sysdpo.planning.plan import GENERATOR, Part, Phase, Plan
from sysdpo.planning.probes import Step, Texts, decoding, drawing, frozen_copies, parts, training_step
from sysdpo.planning.sizes import evaluation_rows, training_prompts
from sysdpo.system import CompoundSystem


def count(component: Component) -> Part:
    """Exact, of the real classes with their adapters; tied weights once."""
    part = Part()
    for network in parts(component).values():
        for parameter in network.parameters():
            part.parameters += parameter.numel()
            part.weight_bytes += parameter.numel() * parameter.element_size()
            part.trainable += parameter.numel() if parameter.requires_grad else 0
        part.weight_bytes += sum(b.numel() * b.element_size() for b in network.buffers())
    for network in frozen_copies(component):
        part.reference_bytes += sum(p.numel() * p.element_size() for p in network.parameters())
    return part


class Phases:
    """Appends to `plan.phases` what a run of the system does, in order.

    Args:
        content: the resolved config.
        shaped: the same with every model on the meta device, of which `system` was built.
        speeds: floating-point operations and bytes a second, and seconds to launch a kernel.

    A variable that one of several components draws is planned as if each of them drew it.
    """

    def __init__(
        self, content: dict[str, Any], shaped: Any, system: CompoundSystem, plan: Plan, speeds: tuple[float, ...]
    ) -> None:
        self.content, self.shaped, self.system, self.plan, self.speeds = content, shaped, system, plan, speeds
        self.trained = system.trainable
        self.tokens = content["plan"]["tokens"]
        self.frame = int(content["plan"]["frame"])
        objective = content["objective"]
        self.k = int(objective["strategy"]["k"]) if "strategy" in objective else 0
        self.images = int(content["system"].get("captions_per_prompt", 1))

    # ---- training ------------------------------------------------------------------------------------------------

    def train(self) -> None:
        settings = training_settings(OmegaConf.create(self.content))
        pairs = min(settings.micro_batch_size, settings.batch_size)
        micro_batches = math.ceil(settings.batch_size / pairs)
        longest = self._asked(int(self.tokens["longest_prompt"]), True)
        asked = self._asked(int(self.tokens["prompt"]), False)
        fullest = self._step(longest, pairs, self.trained, repeats=2)
        usual = fullest if asked == longest else self._step(asked, pairs, self.trained)
        per_pair = float(sum(work.tokens for work in asked.values() if isinstance(work, Texts)))
        self.plan.saved = dict(fullest.saved)
        self.plan.logits_bytes = self._logits()
        updates = settings.steps * micro_batches
        total = Phase(
            "train: score, back",
            fullest.peak,
            f"{settings.steps} updates of {settings.batch_size} pairs, {pairs} at a time",
            usual.meter.flops * updates,
            usual.meter.seconds(*self.speeds) * updates,
            per_pair * settings.steps * settings.batch_size,
        )
        if self.plan.one_gpu_each and len(self.trained) > 1:
            for name in self.trained:
                alone = self._step(longest, pairs, [name], repeats=2)
                self.plan.phases.append(Phase(f"train: {name} on its own GPU", alone.peak, "", components=(name,)))
            total.bytes, total.components = 0, ()  # the lines above have it, GPU by GPU
        self.plan.phases.append(total)
        if self.k:
            draws = int(self.content["objective"]["strategy"].get("candidates") or self.k)
            for variable, name in self._drawn():
                if variable.role == "intermediate" and isinstance(self.system.component(name), LanguageModel):
                    self.draw_texts(variable, name, "train: draw", pairs * draws, updates)

    def _step(
        self, asked: Mapping[tuple[str, str], Texts | int], pairs: int, only: list[str], repeats: int = 1
    ) -> Step:
        """One repeat gives the time, the second the peak."""
        return training_step(self.system, asked, only, pairs=pairs, joint_samples=self.k, repeats=repeats)

    def _asked(self, prompt: int, longest: bool) -> dict[tuple[str, str], Texts | int]:
        asked: dict[tuple[str, str], Texts | int] = {}
        for variable, name in self._drawn():
            component = self.system.component(name)
            if isinstance(component, Diffusion):
                asked[variable.name, name] = 2 * self.images
            elif isinstance(component, LanguageModel):
                given = [n for _, n in variable.parents if self.system.graph[n].role != "input"]
                limit = component.codec.max_new_tokens
                length = limit if longest else min(limit, int(self.tokens["text"]))
                drawn = self.k > 0 and variable.role == "intermediate"
                if self.k:
                    prompts, texts = (self.k if given else 1), (1 if given else self.k) if drawn else 2
                else:
                    prompts, texts = (2, 1) if given else (1, 2)
                asked[variable.name, name] = Texts(prompts, self._prompt(variable, prompt), texts, length)
        return asked

    def _drawn(self) -> Iterator[tuple[Variable, str]]:
        """Every generated variable with each component that may draw it."""
        return ((variable, name) for variable in self.system.graph.generated for name in variable.components)

    def _prompt(self, variable: Variable, prompt: int) -> int:
        """Tokens of a variable's prompt: the frame, the input, and what earlier components wrote."""
        roles = [self.system.graph[name].role for _, name in variable.parents]
        return self.frame + sum(prompt if role == "input" else int(self.tokens["text"]) for role in roles)

    def _logits(self) -> int:
        models = [c for n in self.trained if isinstance(c := self.system.component(n), LanguageModel)]
        return max((HEAD_CHUNK * int(m.causal_lm.config.vocab_size) * 4 for m in models), default=0)

    # ---- drawing -------------------------------------------------------------------------------------------------

    def evaluate(self) -> None:
        rows = float(evaluation_rows(self.content["dataset"])) * int(self.content["best_of"])
        if rows:
            self._generate("evaluate", rows, int(self.content["evaluation_batch_size"]))

    def make_data(self) -> None:
        """Training pairs that are samples of the untrained system, with another image model where one is named."""
        dataset = self.content["dataset"]
        rows = float(training_prompts(dataset) * int(dataset["samples"]))
        self._generate("make data", rows, int(dataset["batch_size"]), self.generator())

    def generator(self) -> Diffusion | None:
        """The image model that draws the data in place of the system's own, its weights counted; None without one."""
        if self.shaped.dataset.get("generator") is None:
            return None
        drawer: Diffusion = instantiate(self.shaped.dataset.generator)()
        drawer.trainable(False)
        self.plan.parts[GENERATOR] = count(drawer)
        return drawer

    def _generate(self, phase: str, rows: float, batch: int, drawer: Diffusion | None = None) -> None:
        """`rows` runs of the whole system, `batch` at a time; `drawer` in place of the system's own image model."""
        for variable, name in self._drawn():
            component = self.system.component(name)
            if isinstance(component, LanguageModel):
                size = int(min(batch, rows))
                self.draw_texts(variable, name, phase, size, rows / size)
            elif isinstance(component, Diffusion):
                owner = name if drawer is None else GENERATOR
                self.draw_images(
                    component if drawer is None else drawer, owner, f"{phase}: {variable.name}", rows * self.images
                )

    def draw_texts(self, variable: Variable, name: str, phase: str, side_by_side: int, times: float) -> None:
        """`times` batches of texts of one variable by the component `name`."""
        component = self.system.component(name)
        assert isinstance(component, LanguageModel)
        new = component.codec.max_new_tokens
        longest, usual = (
            decoding(
                component,
                texts=side_by_side,
                prompt_tokens=self._prompt(variable, int(self.tokens[key])),
                new_tokens=new,
            )
            for key in ("longest_prompt", "prompt")
        )
        separator = " " if phase == "train: draw" else ": "
        by = f" by {name}" if len(variable.components) > 1 else ""
        self._add(
            Phase(
                f"{phase}{separator}{variable.name}{by}",
                longest.peak,
                f"{side_by_side} texts at a time, KV cache {longest.cache / 2**30:.1f} GiB at the longest",
                usual.flops * times,
                usual.seconds(*self.speeds) * times,
                side_by_side * new * times,
            ),
            name,
        )

    def draw_images(self, component: Diffusion, owner: str, name: str, images: float) -> None:
        """`images` images by `component`, which stands in the plan as `owner`; `name` is the phase's."""
        drawn = drawing(component)
        times = images / drawn.images
        note = f"{images:,.0f} images, {drawn.images} at a time, {drawn.steps} steps"
        self._add(Phase(name, drawn.peak, note, drawn.flops * times, drawn.seconds(*self.speeds) * times), owner)

    def _add(self, phase: Phase, component: str) -> None:
        if component == GENERATOR:  # drawn with beside everything else
            phase.components = tuple(self.plan.parts)
        elif self.plan.one_gpu_each:
            phase.components = (component,)
        self.plan.phases.append(phase)
