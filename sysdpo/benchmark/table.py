"""A table's own setting on this machine, each figure beside the one that `make plan` predicts for the same config."""

import logging
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from sysdpo.benchmark.beside import Figures, beside
from sysdpo.benchmark.readings import Memory
from sysdpo.components.base import Component, TokenSampler, Value
from sysdpo.devices import resolve_device
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


def benchmark(config: DictConfig) -> dict[str, Any]:
    """Load, train, checkpoint, resume and sample as `config` (`conf/benchmark.yaml`) says, on made-up rows.

    Times are planned for a GPU, so on a CPU they stand alone; its memory is compared.

    Raises:
        SettingError: a wrong setting, a method that trains nothing or each component by itself, a model out of reach.
    """
    if config.trainer != "joint":
        raise SettingError(f"trainer={config.trainer}: only updates of the whole system are measured; set method=….")
    check_models(config)  # no judge, no scorer: nothing is evaluated
    content: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    bench = Benchmark(config)
    return {
        "experiment": config.experiment,
        "scale": config.scale,
        "method": config.method.name,
        "device": device_name(bench.system) if bench.memory.gpus else "cpu",
        "smaller_than_published": changed_architectures(content),
        "machine": {**environment(), "threads": torch.get_num_threads()},
        "planned_for": config.plan.gpu,
        "lengths": bench.lengths,
        "tokenizers": {name: bench.system.component(name).tokenizer for name in bench.system.components},
        "measured": bench.figures(),
    }


class Benchmark:
    """The measurements of one system; `made` holds rows of each length of prompt."""

    def __init__(self, config: DictConfig) -> None:
        self.config, self.objective = config, instantiate(config.objective)
        self.settings = training_settings(config)
        self.memory = Memory(on_gpu=resolve_device(config.device).type == "cuda")
        log.info("load")
        self.system, self.load_seconds = self.memory.timed(lambda: build_trainable(config))
        self.load_bytes = self.memory.now()
        self.objective.check(self.system)
        check_training(self.system, self.settings)
        self.untrained = trainable_state(self.system)
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

    def figures(self) -> dict[str, Figures]:
        """By what was measured: weights, loading, updates, a checkpoint, the drawing of each variable."""
        pairs = int(self.config.benchmark.pairs)
        plan, fewer = self.plan("prompt", pairs), min(pairs, self.settings.micro_batch_size)
        real = {name: asdict(count(self.system.component(name))) for name in self.system.components}
        found = {name: beside(part, asdict(plan.parts[name])) for name, part in real.items() if part["parameters"]}
        weights = [part.weight_bytes + part.reference_bytes for part in plan.parts.values()]
        held = max(weights) if self.config.plan.one_gpu_each else sum(weights)
        found["load"] = beside({"seconds": self.load_seconds, "bytes": self.load_bytes}, {"bytes": held})
        with tempfile.TemporaryDirectory() as folder:
            place, steps = Path(folder), 1 + int(self.config.benchmark.updates)
            found["update"], trainer = self._update(place / "usual", plan, "prompt", pairs, steps)
            found["checkpoint"] = self._checkpoint(trainer, plan)
            fullest = self.plan("longest_prompt", fewer)
            found["update, longest prompts"], _ = self._update(place / "longest", fullest, "longest_prompt", fewer, 1)
        for draw in self._draws(plan):
            if figures := self._drawn(plan, draw):
                found[f"{draw.variable.name} by {draw.owner}{draw.when}"] = figures
        return found

    # ---- training ------------------------------------------------------------------------------------------------

    def _update(self, folder: Path, plan: Plan, prompt: str, pairs: int, steps: int) -> tuple[Figures, Trainer]:
        """`steps` updates of `pairs` pairs, no pair twice; the first only warms up if there are more."""
        log.info("train with prompts of %d tokens", self.lengths[prompt])
        plan.train()
        once: dict[str, Any] = {"validate_every": 0, "evaluate_every": 0, "patience": None, "checkpoint_every": steps}
        settings = replace(self.settings, steps=steps, batch_size=pairs, **once)
        folder.mkdir()
        load_trainable(self.system, self.untrained)  # each measurement is a training of its own
        rows = self.made[prompt].pairs(pairs * steps)
        trainer = Trainer(self.system, self.objective, rows, [], settings, folder)
        with counted_tokens(self.system) as tokens:
            self.memory.timed(trainer.run)
        history = read_jsonl(folder / "metrics.jsonl")
        seconds = statistics.median(row["seconds"] for row in history[1 if steps > 1 else 0 :])
        scored = sum(phase.tokens for phase in plan.phases if not phase.name.startswith("train: draw"))
        found = self._beside(plan, plan.phases, seconds, "tokens", sum(tokens) / steps, scored)
        missing = history[-1].get("count/samples_missing", 0.0)
        return {**beside({"pairs": pairs, "samples_missing": missing}, {}), **found}, trainer

    def _checkpoint(self, trainer: Trainer, plan: Plan) -> Figures:
        """The checkpoint of a run written once more and read back, and the adapters beside it."""
        log.info("checkpoint")
        _, writing = self.memory.timed(trainer.checkpoint)
        _, reading = self.memory.timed(trainer.resume)
        self.system.save(trainer.folder / "adapters")
        files = [f for part in ("checkpoints", "adapters") for f in (trainer.folder / part).rglob("*") if f.is_file()]
        found = {"write_seconds": writing, "read_seconds": reading, "bytes": sum(f.stat().st_size for f in files)}
        return beside(found, {"bytes": checkpoint_bytes(plan)})

    # ---- sampling ------------------------------------------------------------------------------------------------

    def _draws(self, plan: Plan) -> list["Draw"]:
        """Each variable by each model that draws it, the samples that training draws of it, and the images that the
        data are made with."""
        graph, rows = self.system.graph, int(self.config.benchmark.rows)
        draws = [
            Draw(self.system, v, name, name, plan.system.component(name), rows)
            for v in graph.generated
            for name in v.components
        ]
        intermediates = [draw for draw in draws if draw.variable in graph.intermediates]
        images = [draw for draw in draws if draw.variable in graph.finals]
        if isinstance(self.objective, Sampling):
            strategy, rows = self.objective.strategy, min(self.config.benchmark.pairs, self.settings.micro_batch_size)
            again: dict[str, Any] = {"rows": rows, "each": strategy.num_draws, "sampler": strategy.draw}
            draws += [replace(draw, **again, when=" while training") for draw in intermediates]
        if (planned := plan.generator()) is not None:
            system = with_images_from(self.system, instantiate(self.config.dataset.generator))
            draws += [replace(draw, system=system, owner=GENERATOR, planned=planned) for draw in images]
        return draws

    def _drawn(self, plan: Plan, draw: "Draw") -> Figures:
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
        phase = plan.draw_by(draw.planned, draw.owner, "sample", values, values, variable)
        log.info("%s by %s%s", variable.name, draw.owner, draw.when)
        draw(given[:1])
        drawn, seconds = self.memory.timed(lambda: draw(given))
        amount = sum(map(component.amount, drawn))
        found = self._beside(plan, [phase], seconds, component.unit, amount, phase.tokens or amount)
        return {**beside({"rows": len(given) * draw.each}, {}), **found}

    def _beside(
        self, plan: Plan, phases: Sequence[Phase], seconds: float, unit: str, amount: float, planned: float
    ) -> Figures:
        """Amount, time, speed and the fullest moment, beside those of the phases; a CPU's time is not planned."""
        real = {unit: amount, "seconds": seconds, f"{unit}_per_second": amount / seconds}
        expected: dict[str, float | None] = {unit: planned, "peak_bytes": max(map(plan.total, phases))}
        if self.memory.gpus:
            expected["seconds"] = sum(phase.seconds for phase in phases)
            expected[f"{unit}_per_second"] = planned / sum(phase.seconds for phase in phases)
        return beside({**real, "peak_bytes": self.memory.peak()}, expected)


@dataclass(frozen=True)
class Draw:
    """A variable drawn by one component of a system, at `rows` inputs, `each` values for each.

    The component stands in the plan as `owner`; `planned` is its twin there.
    """

    system: CompoundSystem
    variable: Variable
    name: str
    owner: str
    planned: Component
    rows: int
    each: int = 1
    sampler: TokenSampler | None = None
    when: str = ""

    def __call__(self, rows: Sequence[Row]) -> list[Value]:
        repeated = [row for row in rows for _ in range(self.each)]
        requests = [i for i in range(len(rows)) for _ in range(self.each)]
        drawn = self.system.generate(repeated, range(len(repeated)), self.sampler, [self.variable.name], requests)
        values = [row[self.variable.name] for row in drawn]
        return [each for value in values for each in (value if isinstance(value, list) else [value])]


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
