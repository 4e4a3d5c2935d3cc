"""A table's own setting on this machine, each figure beside the one that `make plan` predicts for the same config."""

import logging
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from sysdpo.benchmark.beside import Measured, both
from sysdpo.benchmark.readings import Memory, timed
from sysdpo.components.base import Component, TokenSampler, Value
from sysdpo.errors import SettingError
from sysdpo.experiment.build import build_trainable, device_name, training_settings
from sysdpo.experiment.downloads import check_models
from sysdpo.graph import Variable
from sysdpo.planning.cost import checkpoint_bytes
from sysdpo.planning.plan import GENERATOR, Phase, Plan, count
from sysdpo.planning.rehearsal import counted_tokens
from sysdpo.planning.workload import Workload
from sysdpo.runs.folder import environment, read_jsonl
from sysdpo.system import CompoundSystem, Row
from sysdpo.tasks.progression.source import with_images_from
from sysdpo.training.checkpoints import load_trainable, trainable_state
from sysdpo.training.loop import Trainer, check_training
from sysdpo.training.objectives import Sampling

log = logging.getLogger(__name__)


def benchmark(config: DictConfig) -> Measured:
    """Load, train, checkpoint, resume and sample as `config` (`conf/benchmark.yaml`) says, on made-up rows.

    Times are planned for a GPU, so on a CPU they stand alone; its memory is compared.

    Raises:
        SettingError: a wrong setting, a method that trains nothing or each component by itself, a model out of reach.
    """
    if config.trainer != "joint":
        raise SettingError(f"trainer={config.trainer}: only updates of the whole system are measured; set method=….")
    check_models(config)  # no judge, no scorer: nothing is evaluated
    memory = Memory()
    log.info("load")
    system, seconds = timed(lambda: build_trainable(config))
    memory.of(system)
    bench = Benchmark(config, system, memory)
    loaded = {"seconds": seconds, "peak_bytes": memory.peak()}
    held = memory.now()
    pairs = int(config.benchmark.pairs)
    plan = bench.plan("prompt", pairs)
    weights = [part.weight_bytes + part.reference_bytes for part in plan.parts.values()]
    with tempfile.TemporaryDirectory() as folder:
        usual, trainer = bench.updates(Path(folder) / "usual", plan, "prompt", pairs, 1 + config.benchmark.updates)
        kept = bench.checkpoint(trainer, plan)
        fewer = min(pairs, trainer.settings.micro_batch_size)
        fullest = bench.plan("longest_prompt", fewer)
        longest, _ = bench.updates(Path(folder) / "longest", fullest, "longest_prompt", fewer, 1)
    return {
        "experiment": config.experiment,
        "scale": config.scale,
        "method": config.method.name,
        "device": device_name(system) if memory.on_gpu else "cpu",
        "smaller_than_published": changed_architectures(plan.content),
        "machine": {**environment(), "threads": torch.get_num_threads()},
        "planned_for": config.plan.gpu,
        "lengths": bench.lengths,
        "components": bench.components(plan),
        "load": {**loaded, "bytes": both(held, max(weights) if config.plan.one_gpu_each else sum(weights))},
        "updates": {"usual": usual, "longest": longest},
        "checkpoint": kept,
        "sampling": bench.sampling(plan),
    }


@dataclass(frozen=True)
class Draw:
    """A variable drawn by one component of a system, at `rows` inputs, `each` values for each; the component stands in
    the plan as `owner`."""

    system: CompoundSystem
    variable: Variable
    name: str
    owner: str
    rows: int
    each: int = 1
    sampler: TokenSampler | None = None
    when: str = ""

    def __call__(self, rows: Sequence[Row]) -> list[Value]:
        repeated = [row for row in rows for _ in range(self.each)]
        owners = [i for i in range(len(rows)) for _ in range(self.each)]
        drawn = self.system.generate(repeated, range(len(repeated)), self.sampler, [self.variable.name], owners)
        values = [row[self.variable.name] for row in drawn]
        return [each for value in values for each in (value if isinstance(value, list) else [value])]


class Benchmark:
    """The measurements of one system; `made` holds rows of each length of prompt."""

    def __init__(self, config: DictConfig, system: CompoundSystem, memory: Memory) -> None:
        self.config, self.system, self.memory, self.objective = config, system, memory, instantiate(config.objective)
        self.settings = training_settings(config)
        self.objective.check(system)
        check_training(system, self.settings)
        self.untrained = trainable_state(system)
        self.elements = int(config.system.get("captions_per_prompt", 1))
        self.lengths = {name: int(config.benchmark[name]) for name in ("prompt", "longest_prompt", "text")}
        self.made = {name: self._made(name) for name in ("prompt", "longest_prompt")}
        self.lengths["frame"] = self.made["prompt"].frame()

    def _made(self, prompt: str) -> Workload:
        """Rows that every component can read, or the setting is refused before anything is measured."""
        made = Workload(self.system, self.lengths[prompt], self.lengths["text"], self.elements)
        try:
            self.system.check_rows([made.row(0)])
        except SettingError as error:
            raise SettingError(f"benchmark.{prompt}={self.lengths[prompt]}: {error}") from error
        return made

    def plan(self, prompt: str, pairs: int) -> Plan:
        """What `make plan` is told: one update of `pairs` pairs, all texts as long as those that are measured."""
        config = self.config.copy()
        OmegaConf.set_struct(config, False)
        length, text = self.lengths[prompt], self.lengths["text"]
        config.plan.tokens = {"prompt": length, "longest_prompt": length, "text": text}
        config.plan.frame = self.lengths["frame"]
        config.training.update({"steps": 1, "batch_size": pairs})
        return Plan(config)

    def components(self, plan: Plan) -> Measured:
        found: Measured = {}
        for name in self.system.components:
            component = self.system.component(name)
            real, part = count(component), plan.parts[name]
            if real.parameters:
                fields = ("parameters", "trainable", "weight_bytes")
                found[name] = {field: both(getattr(real, field), getattr(part, field)) for field in fields}
                if component.tokenizer:
                    found[name]["tokenizer"] = component.tokenizer
        return found

    # ---- training ------------------------------------------------------------------------------------------------

    def updates(self, folder: Path, plan: Plan, prompt: str, pairs: int, steps: int) -> tuple[Measured, Trainer]:
        """`steps` updates of `pairs` pairs, no pair twice; the first only warms up if there are more."""
        log.info("train with prompts of %d tokens", self.lengths[prompt])
        plan.train()
        once: dict[str, Any] = {"validate_every": 0, "evaluate_every": 0, "patience": None, "checkpoint_every": steps}
        settings = replace(self.settings, steps=steps, batch_size=pairs, **once)
        folder.mkdir()
        load_trainable(self.system, self.untrained)  # each measurement is a training of its own
        rows = self.made[prompt].pairs(pairs * steps)
        trainer = Trainer(self.system, self.objective, rows, [], settings, folder)
        self.memory.reset()
        with counted_tokens(self.system) as tokens:
            trainer.run()
        history = read_jsonl(folder / "metrics.jsonl")
        seconds = [row["seconds"] for row in history][1 if steps > 1 else 0 :]
        scored = sum(phase.tokens for phase in plan.phases if not phase.name.startswith("train: draw"))
        figures = {
            "pairs": pairs,
            "pairs_at_a_time": min(pairs, settings.micro_batch_size),
            "prompt": self.lengths[prompt],
            "all_seconds": [round(s, 4) for s in seconds],
            "tokens": both(sum(tokens) / steps, scored),
            **self._beside(plan, plan.phases, statistics.median(seconds), "tokens", sum(tokens) / steps, scored),
        }
        if any(self.system.component(name).unit == "images" for name in self.system.trainable):
            figures["images"] = 2 * self.elements * pairs
        if "count/samples_missing" in history[-1]:
            figures["samples_missing"] = history[-1]["count/samples_missing"]
        return figures, trainer

    def checkpoint(self, trainer: Trainer, plan: Plan) -> Measured:
        """The checkpoint of a run written once more and read back, and the adapters beside it."""
        log.info("checkpoint")
        _, writing = timed(trainer.checkpoint)
        _, reading = timed(trainer.resume)
        self.system.save(trainer.folder / "adapters")
        files = [f for part in ("checkpoints", "adapters") for f in (trainer.folder / part).rglob("*") if f.is_file()]
        written = sum(f.stat().st_size for f in files)
        return {"write_seconds": writing, "read_seconds": reading, "bytes": both(written, checkpoint_bytes(plan))}

    # ---- sampling ------------------------------------------------------------------------------------------------

    def sampling(self, plan: Plan) -> Measured:
        """A batch of each variable by each model that draws it, the samples that training draws of it, and the images
        that the data are made with."""
        graph, rows = self.system.graph, int(self.config.benchmark.rows)
        draws = [Draw(self.system, v, name, name, rows) for v in graph.generated for name in v.components]
        planned = {name: plan.system.component(name) for name in plan.system.components}
        if isinstance(self.objective, Sampling):
            strategy, rows = self.objective.strategy, min(self.config.benchmark.pairs, self.settings.micro_batch_size)
            again: dict[str, Any] = {"rows": rows, "each": strategy.num_draws, "sampler": strategy.draw}
            intermediate = [draw for draw in draws if draw.variable in graph.intermediates]
            draws += [replace(draw, **again, when=" while training") for draw in intermediate]
        if (planned_generator := plan.generator()) is not None:
            planned[GENERATOR] = planned_generator
            system = with_images_from(self.system, instantiate(self.config.dataset.generator))
            images = [draw for draw in draws if draw.variable in graph.finals]
            draws += [replace(draw, system=system, owner=GENERATOR) for draw in images]
        found = {f"{d.variable.name} by {d.owner}{d.when}": self._sampled(plan, d, planned[d.owner]) for d in draws}
        return {name: figures for name, figures in found.items() if figures}

    def _sampled(self, plan: Plan, draw: Draw, planned: Component) -> Measured:
        """All rows drawn at once, after a single one to warm up; nothing for a tool, or for a model that chooses."""
        component, variable = draw.system.component(draw.name), draw.variable
        if component.unit is None or component.domain is not None:
            return {}
        elements = self.elements if variable.plate and component.unit == "images" else 1
        rows = min(draw.rows, max(1, (component.most_at_once or draw.rows * elements) // elements))
        candidates = map(self.made["prompt"].row, range(rows * len(variable.components)))
        given = [row for row in candidates if variable.may_draw(row) == (draw.name,)][:rows]
        if not given:
            return {}
        values = len(given) * draw.each * elements
        phase = plan.draw_by(planned, draw.owner, "sample", values, values, variable)
        log.info("%s by %s%s", variable.name, draw.owner, draw.when)
        draw(given[:1])
        self.memory.reset()
        drawn, seconds = timed(lambda: draw(given))
        amount = sum(map(component.amount, drawn))
        beside = self._beside(plan, [phase], seconds, component.unit, amount, phase.tokens or amount)
        return {"rows": len(given) * draw.each, component.unit: amount, **beside}

    def _beside(
        self, plan: Plan, phases: Sequence[Phase], seconds: float, unit: str, amount: float, planned: float
    ) -> Measured:
        """Time, speed and the fullest moment, each beside that of the phases; a CPU's time is not planned."""
        expected = sum(phase.seconds for phase in phases) if self.memory.on_gpu else None
        return {
            "seconds": both(seconds, expected),
            f"{unit}_per_second": both(amount / seconds, expected and planned / expected),
            "peak_bytes": both(self.memory.peak(), max(map(plan.total, phases))),
        }


def changed_architectures(content: Mapping[str, Any]) -> dict[str, Any]:
    """By model, what `architecture` replaces of the published one: depth or width; empty at full size."""
    models = {name: part.get("model") or {} for name, part in content["system"]["components"].items()}
    models[GENERATOR] = content["dataset"].get("generator") or {}
    random = {n: m for n, m in models.items() if m.get("weights") == "random" and m.get("pretrained")}
    changes = {name: _set(model.get("architecture") or {}) for name, model in random.items()}
    return {name: change for name, change in changes.items() if change}


def _set(content: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is null."""
    plain = {k: _set(v) if isinstance(v, Mapping) else v for k, v in content.items()}
    return {k: v for k, v in plain.items() if v is not None and v != {}}
