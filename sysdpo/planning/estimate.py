"""`make plan`: what one row of a table would take, from its config alone. Nothing is downloaded, no weight is made."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import constants, get_token
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from sysdpo.components.diffusion import Diffusion
from sysdpo.components.hub import is_cached
from sysdpo.components.language_model import LanguageModel
from sysdpo.errors import SettingError
from sysdpo.experiment import build_system, hub_models, training_settings
from sysdpo.planning.hardware import Gpu, gpu
from sysdpo.planning.probes import Drawing, Step, Texts, decoding, drawing, frozen_copies, parts, training_step
from sysdpo.system import CompoundSystem

ADAM_BYTES = 8  # two fp32 moments a trainable weight
ORCA_ROWS = 12_859  # of Intel/orca_dpo_pairs, of which a share is held out
JUDGE_FRAME = 170  # tokens of the judge's own prompt
GENERATOR = "dataset.generator"
PNG_BYTES = 420_000  # a photograph of 512 x 512


@dataclass
class Part:
    """A component's weights: counts, and bytes in their own precision; `reference` where a frozen copy is kept."""

    parameters: int = 0
    trainable: int = 0
    weight_bytes: int = 0
    reference_bytes: int = 0

    @property
    def optimizer_bytes(self) -> int:
        return ADAM_BYTES * self.trainable


@dataclass
class Phase:
    """A kind of work: its bytes beyond weights and optimizer, and how long all of it takes."""

    name: str
    bytes: int
    note: str
    flops: float = 0.0
    seconds: float = 0.0
    tokens: float = 0.0
    components: tuple[str, ...] | None = None
    """Whose weights lie on the GPU; None: those of the whole system."""


@dataclass
class Plan:
    title: str
    gpu_name: str
    gpu: Gpu
    assumptions: str
    parts: dict[str, Part] = field(default_factory=dict)
    saved: dict[str, int] = field(default_factory=dict)
    logits_bytes: int = 0
    phases: list[Phase] = field(default_factory=list)
    usable: float = 0.0
    one_gpu_each: bool = False
    disk: dict[str, float] = field(default_factory=dict)
    judge: str = ""
    missing: list[str] = field(default_factory=list)

    def resident(self, names: tuple[str, ...] | None = None) -> int:
        """Bytes that stay: weights, frozen copies, optimizer."""
        chosen = [p for n, p in self.parts.items() if (n in names if names is not None else n != GENERATOR)]
        return sum(p.weight_bytes + p.reference_bytes + p.optimizer_bytes for p in chosen)

    def total(self, phase: Phase) -> int:
        return phase.bytes + self.resident(phase.components)

    @property
    def needed(self) -> int:
        """The fullest moment on one GPU."""
        return max(map(self.total, self.phases))

    @property
    def fits(self) -> bool:
        return self.needed <= self.usable

    @property
    def hours(self) -> float:
        return sum(p.seconds for p in self.phases) / 3600


def make_plan(config: DictConfig) -> Plan:
    """The plan of one row: `method`, `experiment` and `scale` as for a run, assumptions under `plan`."""
    content: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    assumed = content["plan"]
    device = gpu(assumed["gpu"])
    plan = Plan(
        f"{content['experiment']}, scale {content['scale']}, method {content['method']['name']}",
        assumed["gpu"],
        device,
        f"{assumed['compute_utilisation']:.0%} of {device.flops_per_s / 1e12:.0f} TFLOP/s (bf16), "
        f"{assumed['bandwidth_utilisation']:.0%} of {device.bytes_per_s / 1e12:.2f} TB/s, "
        f"{assumed['launch_us']} us a kernel",
        usable=device.memory_gib * 2**30 * (1 - assumed["reserve"]),
        one_gpu_each=bool(assumed["one_gpu_each"]),
    )
    speeds = (
        device.flops_per_s * assumed["compute_utilisation"],
        device.bytes_per_s * assumed["bandwidth_utilisation"],
        assumed["launch_us"] * 1e-6,
    )
    shaped = OmegaConf.create(_on_meta(content))
    system = build_system(shaped)
    trained = list(system.components) if content["train"] is None else list(content["train"])
    system.train_only(trained)
    trained = system.trainable
    plan.parts = {name: count(system, name) for name in system.components}
    work = _Work(content, system, trained, plan, speeds)
    if trained:
        work.train()
    work.evaluate()
    if content["dataset"].get("samples"):
        work.make_data(shaped)
    _disk(plan, content, system)
    _judge(plan, content)
    plan.missing = missing(config, content)
    return plan


def _on_meta(content: Mapping[str, Any]) -> dict[str, Any]:
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


def count(system: CompoundSystem, name: str) -> Part:
    """Exact, of the real classes with their adapters; tied weights once."""
    part = Part()
    for network in parts(system, name).values():
        for parameter in network.parameters():
            part.parameters += parameter.numel()
            part.weight_bytes += parameter.numel() * parameter.element_size()
            part.trainable += parameter.numel() if parameter.requires_grad else 0
        part.weight_bytes += sum(b.numel() * b.element_size() for b in network.buffers())
    for network in frozen_copies(system, name):
        part.reference_bytes += sum(p.numel() * p.element_size() for p in network.parameters())
    return part


class _Work:
    """The phases of a run, each from one probe and how often it happens."""

    def __init__(
        self, content: dict[str, Any], system: CompoundSystem, trained: list[str], plan: Plan, speeds: tuple[float, ...]
    ) -> None:
        self.content, self.system, self.trained, self.plan, self.speeds = content, system, trained, plan, speeds
        self.tokens = content["plan"]["tokens"]
        self.frame = int(content["plan"]["frame"])
        objective = content["objective"]
        self.k = int(objective["strategy"]["k"]) if "strategy" in objective else 0
        self.images = int(content["system"].get("captions_per_prompt", 1))

    def _prompt(self, variable: Any, prompt: int) -> int:
        """Tokens of a variable's prompt: the frame, the input, and what earlier components wrote."""
        graph = self.system.graph
        roles = [graph[name].role for _, name in variable.parents]
        return self.frame + sum(prompt if role == "input" else int(self.tokens["text"]) for role in roles)

    def _asked(self, prompt: int, longest: bool) -> dict[str, Texts | int]:
        asked: dict[str, Texts | int] = {}
        for variable in self.system.graph.generated:
            component = self.system.component(str(variable.component))
            if isinstance(component, Diffusion):
                asked[variable.name] = 2 * self.images
            elif isinstance(component, LanguageModel):
                given = [n for _, n in variable.parents if self.system.graph[n].role != "input"]
                limit = component.codec.max_new_tokens
                length = limit if longest else min(limit, int(self.tokens["text"]))
                drawn = self.k > 0 and variable.role == "intermediate"
                if self.k:
                    prompts, texts = (self.k if given else 1), (1 if given else self.k) if drawn else 2
                else:
                    prompts, texts = (2, 1) if given else (1, 2)
                asked[variable.name] = Texts(prompts, self._prompt(variable, prompt), texts, length)
        return asked

    def _step(self, longest: bool, pairs: int, only: list[str]) -> tuple[Step, float]:
        asked = self._asked(int(self.tokens["longest_prompt" if longest else "prompt"]), longest)
        repeats = 2 if longest else 1  # one for the time, two for the peak
        step = training_step(self.system, asked, only, pairs=pairs, joint_samples=self.k, repeats=repeats)
        per_pair = sum(w.tokens for w in asked.values() if isinstance(w, Texts))
        return step, float(per_pair)

    def train(self) -> None:
        settings = training_settings(OmegaConf.create(self.content))
        pairs = min(settings.micro_batch_size, settings.batch_size)
        micro_batches = math.ceil(settings.batch_size / pairs)
        fullest, _ = self._step(True, pairs, self.trained)
        usual, per_pair = self._step(False, pairs, self.trained)
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
                alone, _ = self._step(True, pairs, [name])
                self.plan.phases.append(Phase(f"train: {name} on its own GPU", alone.peak, "", components=(name,)))
            total.bytes, total.components = 0, ()  # the lines above have it, GPU by GPU
        self.plan.phases.append(total)
        if self.k:
            draws = int(self.content["objective"]["strategy"].get("candidates") or self.k)
            for variable in self.system.graph.intermediates:
                self._texts(variable, f"train: draw {variable.name}", pairs * draws, updates)

    def _logits(self) -> int:
        from sysdpo.components.language_model import HEAD_CHUNK

        models = [c for n in self.trained if isinstance(c := self.system.component(n), LanguageModel)]
        return max((HEAD_CHUNK * int(m.causal_lm.config.vocab_size) * 4 for m in models), default=0)

    def _texts(self, variable: Any, name: str, side_by_side: int, times: float) -> None:
        """`times` batches of texts of one variable."""
        component = self.system.component(str(variable.component))
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
        note = f"{side_by_side} texts at a time, KV cache {longest.cache / 2**30:.1f} GiB at the longest"
        phase = Phase(name, longest.peak, note, usual.flops * times, usual.seconds(*self.speeds) * times)
        phase.tokens = side_by_side * new * times
        self._add(phase, str(variable.component))

    def _images(self, component: Diffusion, owner: str, name: str, images: float) -> None:
        drawn: Drawing = drawing(component)
        times = images / drawn.images
        note = f"{images:,.0f} images, {drawn.images} at a time, {drawn.steps} steps"
        self._add(Phase(name, drawn.peak, note, drawn.flops * times, drawn.seconds(*self.speeds) * times), owner)

    def _add(self, phase: Phase, component: str) -> None:
        if component == GENERATOR:  # drawn with beside everything else
            phase.components = tuple(self.plan.parts)
        elif self.plan.one_gpu_each:
            phase.components = (component,)
        self.plan.phases.append(phase)

    def _generate(self, name: str, rows: float, batch: int) -> None:
        """`rows` runs of the whole system, `batch` at a time."""
        for variable in self.system.graph.generated:
            component = self.system.component(str(variable.component))
            if isinstance(component, LanguageModel):
                size = int(min(batch, rows))
                self._texts(variable, f"{name}: {variable.name}", size, rows / size)
            elif isinstance(component, Diffusion):
                self._images(component, str(variable.component), f"{name}: {variable.name}", rows * self.images)

    def evaluate(self) -> None:
        rows = float(self._evaluation_rows()) * int(self.content["best_of"])
        if rows:
            self._generate("evaluate", rows, int(self.content["evaluation_batch_size"]))

    def _evaluation_rows(self) -> int:
        dataset = self.content["dataset"]
        if "evaluation_prompts_per_attribute" in dataset:
            return int(dataset["evaluation_prompts_per_attribute"]) * self._attributes()
        if "evaluation_prompts" in dataset:
            return int(dataset["evaluation_prompts"])
        held = float(dataset.get("evaluation", 0))
        return int(held) if held >= 1 else math.ceil(held * ORCA_ROWS)

    def _attributes(self) -> int:
        return len(self.content["dataset"].get("attributes") or range(40))

    def make_data(self, shaped: Any) -> None:
        """Training pairs that are samples of the untrained system, with another image model where one is named."""
        dataset = self.content["dataset"]
        per_attribute = dataset.get("prompts_per_attribute")
        prompts = int(dataset["prompts"]) if per_attribute is None else int(per_attribute) * self._attributes()
        rows = float(prompts * int(dataset["samples"]))
        generator = shaped.dataset.get("generator")
        if generator is None:
            self._generate("make data", rows, int(dataset["batch_size"]))
            return
        [final] = self.system.graph.finals
        for variable in self.system.graph.generated:
            if isinstance(self.system.component(str(variable.component)), LanguageModel):
                size = int(min(dataset["batch_size"], rows))
                self._texts(variable, f"make data: {variable.name}", size, rows / size)
        drawer = instantiate(generator)()
        replaced = CompoundSystem(
            self.system.graph,
            {n: self.system.component(n) for n in self.system.components} | {str(final.component): drawer},
        )
        drawer.trainable(False)
        self.plan.parts[GENERATOR] = count(replaced, str(final.component))
        self._images(drawer, GENERATOR, f"make data: {final.name}", rows * self.images)


def _disk(plan: Plan, content: Mapping[str, Any], system: CompoundSystem) -> None:
    """Bytes: downloads as the hub stores them (language models bf16, pipelines fp32), and what a run writes."""
    downloads: dict[str, int] = {}
    described = {n: c.get("model", {}) for n, c in content["system"]["components"].items()}
    described[GENERATOR] = content["dataset"].get("generator") or {}
    for name, part in plan.parts.items():
        source = described.get(name, {}).get("pretrained")
        is_text = name in system.components and isinstance(system.component(name), LanguageModel)
        if source:
            downloads[source] = (part.parameters - part.trainable) * (2 if is_text else 4)
    trainable = sum(p.trainable for p in plan.parts.values())
    plan.disk = {f"download {name}": float(size) for name, size in downloads.items()}
    plan.disk["checkpoint and adapters"] = trainable * (4 + ADAM_BYTES + 4 + 4)  # weights, Adam, best, adapters
    dataset = content["dataset"]
    if dataset.get("prompts_per_attribute"):
        pairs = int(dataset["prompts_per_attribute"]) * len(dataset.get("attributes") or range(40)) * 6
        plan.disk["image pairs"] = float(pairs * 2 * 3 * PNG_BYTES)


def _judge(plan: Plan, content: Mapping[str, Any]) -> None:
    judge = content.get("judge") or {}
    if "dollars_per_million_prompt_tokens" not in judge or not content["evaluation"]["_target_"].endswith("WinRates"):
        plan.judge = "no paid judge"
        return
    tokens, held = content["plan"]["tokens"], float(content["dataset"].get("evaluation", 0))
    rows = int(held) if held >= 1 else math.ceil(held * ORCA_ROWS)
    methods = list(content.get("rows", [1]))
    comparisons = 1 if content["train"] == [] else 2  # the untrained system does not meet itself
    calls = comparisons * rows
    prompt = calls * (JUDGE_FRAME + int(tokens["prompt"]) + 2 * int(tokens["text"]))
    dollars = (
        prompt * judge["dollars_per_million_prompt_tokens"] + calls * judge["dollars_per_million_completion_tokens"]
    ) / 1e6
    all_calls = (2 * len(methods) - 1) * rows
    plan.judge = (
        f"{judge['model']}: {calls:,} calls, {prompt:,} prompt tokens, about ${dollars:.2f} for this row; "
        f"{all_calls:,} calls, about ${dollars * all_calls / calls:.2f} for all {len(methods)} rows"
    )


def missing(config: DictConfig, content: Mapping[str, Any]) -> list[str]:
    """What the run would ask for that this machine does not have; found without a network."""
    lacks = []
    for name in hub_models(config):
        if not is_cached(name):
            lacks.append(f"model {name}: accept https://huggingface.co/{name}, then `hf download {name}`")
    if lacks and get_token() is None:
        lacks.append("a token of the model hub: `hf auth login` (gated models need one)")
    dataset, judge = content["dataset"], content.get("judge") or {}
    hub = dataset.get("hub")
    if hub and not dataset.get("path"):
        folder = Path(constants.HF_HUB_CACHE) / f"datasets--{hub.replace('/', '--')}"
        if not folder.is_dir():
            lacks.append(f"data set {hub}: fetched on first use, or set dataset.path")
    variable = (judge.get("endpoint") or {}).get("api_key_env")
    if variable and content["evaluation"]["_target_"].endswith("WinRates") and not os.environ.get(variable):
        lacks.append(f"the judge's key: `export {variable}=…`")
    scorer = content.get("scorer") or {}
    for key in ("folder", "checkpoint"):
        value = scorer.get(key)
        if isinstance(value, str) and (value == "???" or not Path(value).expanduser().exists()):
            lacks.append(f"scorer.{key}: train it with scripts/train_transient.py, or choose scorer=clip_antonym")
    return lacks


def render(plan: Plan) -> str:
    """The plan as text, GiB = 2^30 bytes."""
    gib = 2**30
    lines = [f"Plan: {plan.title}", f"GPU: {plan.gpu_name}, assuming {plan.assumptions}", ""]
    lines += [f"{'component':<20}{'parameters':>16}{'trainable':>13}{'weights':>9}{'reference':>11}{'Adam':>7}  GiB"]
    for name, part in plan.parts.items():
        if part.parameters:
            lines.append(
                f"{name:<20}{part.parameters:>16,}{part.trainable:>13,}{part.weight_bytes / gib:>9.2f}"
                f"{part.reference_bytes / gib:>11.2f}{part.optimizer_bytes / gib:>7.2f}"
            )
    total = sum(p.parameters for p in plan.parts.values())
    trainable = sum(p.trainable for p in plan.parts.values())
    lines += [f"{'total':<20}{total:>16,}{trainable:>13,}", ""]
    saved = ", ".join(f"{name} {size / gib:.1f}" for name, size in plan.saved.items() if size)
    if saved:
        lines += [
            f"kept for the backward pass, longest prompts: {saved} GiB; "
            f"logits of one chunk {plan.logits_bytes / gib:.2f} GiB",
            "",
        ]
    lines += [f"{'phase':<28}{'memory':>8}{'in all':>8} GiB {'PFLOP':>10}{'tokens':>14}{'hours':>8}  "]
    for phase in plan.phases:
        lines.append(
            f"{phase.name:<28}{phase.bytes / gib:>8.1f}{plan.total(phase) / gib:>8.1f}     {phase.flops / 1e15:>10,.0f}"
            f"{phase.tokens:>14,.0f}{phase.seconds / 3600:>8.2f}  {phase.note}"
        )
    where = "each GPU" if plan.one_gpu_each else "one GPU"
    verdict = "fits" if plan.fits else "does NOT fit"
    lines += [
        "",
        f"{verdict}: {plan.needed / gib:.1f} GiB at the fullest, of {plan.usable / gib:.1f} GiB usable on {where} "
        f"({plan.gpu_name})",
        f"hours expected: {plan.hours:.1f} (an estimate: peaks, assumed utilisation and launch times as named above)",
        "disk: " + ", ".join(f"{name} {size / 1e9:.1f} GB" for name, size in plan.disk.items()),
        f"judge: {plan.judge}",
        "missing here: " + ("; ".join(plan.missing) or "nothing"),
    ]
    return "\n".join(lines)


def check_plan(config: DictConfig) -> None:
    """Refuse assumptions that are no numbers of their kind."""
    for name in ("compute_utilisation", "bandwidth_utilisation"):
        if not 0 < float(config.plan[name]) <= 1:
            raise SettingError(f"plan.{name}={config.plan[name]}: must lie in (0, 1].")
