"""A table's own setting on this machine, each figure beside the one that `make plan` predicts for the same config."""

import logging
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from sysdpo.benchmark.beside import Measured, both
from sysdpo.benchmark.readings import Memory, timed
from sysdpo.components.base import Component
from sysdpo.errors import SettingError, check_count
from sysdpo.experiment.build import device_name, training_settings
from sysdpo.experiment.downloads import check_models
from sysdpo.planning import cost
from sysdpo.planning.estimate import begin_plan, build_trainable, check_plan
from sysdpo.planning.phases import Phases, count
from sysdpo.planning.plan import GENERATOR, Phase, Plan
from sysdpo.planning.rehearsal import counted_tokens
from sysdpo.planning.workload import Workload
from sysdpo.runs.folder import environment, read_jsonl
from sysdpo.system import CompoundSystem
from sysdpo.training.checkpoints import load_trainable, trainable_state
from sysdpo.training.loop import Trainer, check_training
from sysdpo.training.objectives import Sampling

log = logging.getLogger(__name__)

AT_LEAST_ONE = ("updates", "pairs", "rows", "prompt", "longest_prompt", "text")


def benchmark(config: DictConfig) -> Measured:
    """Load, train, checkpoint, resume and sample as `config` (`conf/benchmark.yaml`) says, on made-up rows.

    Times are planned for a GPU, so on a CPU they stand alone; its memory is compared.

    Raises:
        SettingError: a wrong setting, a method that trains nothing or each component by itself, a model out of reach.
    """
    for name in AT_LEAST_ONE:
        check_count(f"benchmark.{name}", config.benchmark[name], 1)
    check_plan(config)
    if config.trainer != "joint":
        raise SettingError(f"trainer={config.trainer}: only updates of the whole system are measured; set method=….")
    check_models(config)  # no judge, no scorer: nothing is evaluated
    objective = instantiate(config.objective)
    settings = training_settings(config)
    memory = Memory()
    log.info("load")
    system, seconds = timed(lambda: build_trainable(config))
    memory.of(system)
    objective.check(system)
    check_training(system, settings)
    bench = Benchmark(config, system, objective, memory)
    asked, pairs = config.benchmark, int(config.benchmark.pairs)
    bench.check_lengths()
    loaded = {"seconds": seconds, "peak_bytes": memory.peak()}
    held = memory.now()
    phases = bench.plan(asked.prompt, pairs)
    weights = [part.weight_bytes + part.reference_bytes for part in phases.plan.parts.values()]
    with tempfile.TemporaryDirectory() as folder:
        usual, trainer = bench.updates(Path(folder) / "usual", phases, asked.prompt, pairs, 1 + asked.updates)
        kept = bench.checkpoint(trainer, phases)
        fewer = min(pairs, settings.micro_batch_size)
        fullest = bench.plan(asked.longest_prompt, fewer)
        longest, _ = bench.updates(Path(folder) / "longest", fullest, asked.longest_prompt, fewer, 1)
    return {
        "experiment": config.experiment,
        "scale": config.scale,
        "method": config.method.name,
        "device": device_name(system) if memory.on_gpu else "cpu",
        "smaller_than_published": changed_architectures(config),
        "machine": {**environment(), "threads": torch.get_num_threads()},
        "planned_for": phases.plan.gpu_name,
        "lengths": bench.lengths,
        "components": bench.components(phases),
        "load": {**loaded, "bytes": both(held, max(weights) if phases.plan.one_gpu_each else sum(weights))},
        "updates": {"usual": usual, "longest": longest},
        "checkpoint": kept,
        "sampling": bench.sampling(phases),
    }


class Benchmark:
    """The measurements of one system."""

    def __init__(self, config: DictConfig, system: CompoundSystem, objective: Any, memory: Memory) -> None:
        self.config, self.system, self.objective, self.memory = config, system, objective, memory
        self.untrained = trainable_state(system)
        self.elements = int(config.system.get("captions_per_prompt", 1))
        self.text = int(config.benchmark.text)
        asked = config.benchmark
        self.lengths = {"prompt": asked.prompt, "longest_prompt": asked.longest_prompt, "text": asked.text}
        self.lengths["frame"] = self.made(1).frame()

    def made(self, prompt: int) -> Workload:
        return Workload(self.system, prompt, self.text, self.elements)

    def check_lengths(self) -> None:
        """Refuse rows that a component could not read, before anything is measured."""
        for name in ("prompt", "longest_prompt"):
            try:
                self.system.check_rows([self.made(self.lengths[name]).row(0)])
            except SettingError as error:
                raise SettingError(f"benchmark.{name}={self.lengths[name]}: {error}") from error

    def plan(self, prompt: int, pairs: int) -> Phases:
        """What `make plan` is told: one update of `pairs` pairs, all texts as long as those that are measured."""
        config = self.config.copy()
        OmegaConf.set_struct(config, False)
        config.plan.tokens = {"prompt": prompt, "longest_prompt": prompt, "text": self.text}
        config.plan.frame = self.lengths["frame"]
        config.training.update({"steps": 1, "batch_size": pairs})
        return begin_plan(config)

    def components(self, planned: Phases) -> Measured:
        found: Measured = {}
        for name in self.system.components:
            component = self.system.component(name)
            real, part = count(component), planned.plan.parts[name]
            if real.parameters:
                found[name] = {
                    "parameters": both(real.parameters, part.parameters),
                    "trainable": both(real.trainable, part.trainable),
                    "weight_bytes": both(real.weight_bytes, part.weight_bytes),
                }
                if component.tokenizer:
                    found[name]["tokenizer"] = component.tokenizer
        return found

    # ---- training ------------------------------------------------------------------------------------------------

    def updates(self, folder: Path, phases: Phases, prompt: int, pairs: int, steps: int) -> tuple[Measured, Trainer]:
        """`steps` updates of `pairs` pairs, no pair twice; the first only warms up if there are more."""
        log.info("train with prompts of %d tokens", prompt)
        phases.train()
        planned = phases.plan.phases
        trainer = self._trainer(folder, prompt, pairs, steps)
        self.memory.reset()
        with counted_tokens(self.system) as tokens:
            trainer.run()
        history = read_jsonl(folder / "metrics.jsonl")
        seconds = [row["seconds"] for row in history][1 if steps > 1 else 0 :]
        median, expected = statistics.median(seconds), self._planned_seconds(planned)
        per_update = sum(tokens) / steps
        planned_tokens = sum(phase.tokens for phase in planned if not phase.name.startswith("train: draw"))
        figures = {
            "pairs": pairs,
            "pairs_at_a_time": min(pairs, trainer.settings.micro_batch_size),
            "prompt": prompt,
            "seconds": both(median, expected),
            "all_seconds": [round(s, 4) for s in seconds],
            "tokens": both(per_update, planned_tokens),
            "tokens_per_second": both(per_update / median, expected and planned_tokens / expected),
            "peak_bytes": both(self.memory.peak(), max(map(phases.plan.total, planned))),
        }
        if any(self.system.component(name).unit == "images" for name in self.system.trainable):
            figures["images"] = 2 * self.elements * pairs
        if "count/samples_missing" in history[-1]:
            figures["samples_missing"] = history[-1]["count/samples_missing"]
        return figures, trainer

    def _trainer(self, folder: Path, prompt: int, pairs: int, steps: int) -> Trainer:
        settings = replace(
            training_settings(self.config),
            steps=steps,
            batch_size=pairs,
            checkpoint_every=steps,
            validate_every=0,
            evaluate_every=0,
            patience=None,
        )
        folder.mkdir()
        load_trainable(self.system, self.untrained)  # each measurement is a training of its own
        return Trainer(self.system, self.objective, self.made(prompt).pairs(pairs * steps), [], settings, folder)

    def checkpoint(self, trainer: Trainer, phases: Phases) -> Measured:
        """The checkpoint of a run written once more and read back, and the adapters beside it."""
        log.info("checkpoint")
        _, writing = timed(trainer.checkpoint)
        _, reading = timed(trainer.resume)
        self.system.save(trainer.folder / "adapters")
        files = [f for part in ("checkpoints", "adapters") for f in (trainer.folder / part).rglob("*") if f.is_file()]
        planned = cost.disk(phases.plan, phases.content, phases.system)["checkpoint and adapters"]
        return {
            "write_seconds": writing,
            "read_seconds": reading,
            "bytes": both(sum(f.stat().st_size for f in files), planned),
        }

    # ---- sampling ------------------------------------------------------------------------------------------------

    def sampling(self, phases: Phases) -> Measured:
        """A batch of each variable by each model that draws it, of the samples that training draws, and of the images
        that the data are made with."""
        made = self.made(self.lengths["prompt"])
        found: Measured = {}
        for variable in self.system.graph.generated:
            for name in variable.components:
                component = self.system.component(name)
                rows = self._rows(component)
                candidates = (made.row(key) for key in range(rows * len(variable.components)))
                given = [row for row in candidates if variable.may_draw(row) == (name,)][:rows]
                if not given:
                    continue
                values = len(given) * (self.elements if variable.plate and component.unit == "images" else 1)
                phases.draw_by(phases.system.component(name), name, "sample", values, values, variable)
                drawing = partial(self._draw, given, variable.name)
                found[f"{variable.name} by {name}"] = self._sampled(drawing, phases.plan, 1)
        if isinstance(self.objective, Sampling):
            found["while training"] = self._while_training(made, phases)
        if (shaped_drawer := phases.generator()) is not None:
            drawer: Component = instantiate(self.config.dataset.generator)()
            drawer.trainable(False)
            several = range(drawer.most_at_once or 1)
            captions = [{"caption": text} for key in several for text in made.inputs(key).values()]
            phases.draw_by(shaped_drawer, GENERATOR, "sample", len(captions), len(captions))
            found[GENERATOR] = self._sampled(partial(_images, drawer, captions), phases.plan, 1)
        return found

    def _rows(self, component: Component) -> int:
        """How many rows are drawn side by side; none where what draws is no model, or only chooses."""
        if component.unit is None or component.domain is not None:
            return 0
        rows, most = int(self.config.benchmark.rows), component.most_at_once
        return rows if most is None else max(1, min(rows, most // self.elements))

    def _draw(self, given: Sequence[Mapping[str, Any]], variable: str, n: int | None) -> Measured:
        """The variable in the first n rows."""
        values = [row[variable] for row in self.system.generate(given[:n], range(len(given))[:n], only=[variable])]
        if isinstance(values[0], str):
            return {"rows": len(values), "tokens": self._tokens([{variable: text} for text in values])}
        return {"rows": len(values), "images": sum(len(v) if isinstance(v, list) else 1 for v in values)}

    def _while_training(self, made: Workload, phases: Phases) -> Measured:
        """The intermediate samples of one micro-batch."""
        size = min(self.config.benchmark.pairs, self.config.training.micro_batch_size)
        pairs, draws = made.pairs(size), self.objective.strategy.num_draws
        before = len(phases.plan.phases)
        for variable in self.system.graph.intermediates:
            phases.draw(variable, "sample ", size * draws, size * draws)

        def draw(n: int | None) -> Measured:
            drawn = self.objective.draw(self.system, pairs[:n], range(size)[:n])
            return {"rows": size * draws, "tokens": self._tokens([sample for samples in drawn for sample in samples])}

        return self._sampled(draw, phases.plan, len(phases.plan.phases) - before)

    def _tokens(self, samples: Sequence[Mapping[str, Any]]) -> int:
        """Drawn by language models, the end token included."""
        drawn = [(self.system.component(v.components[0]), v.name) for v in self.system.graph.generated]
        written = [(component, name) for component, name in drawn if component.unit == "tokens"]
        texts = [(c, s[name]) for s in samples for c, name in written if s.get(name) is not None]
        return sum(component.amount(text) for component, text in texts)

    def _sampled(self, draw: Callable[[int | None], Measured], plan: Plan, phases: int) -> Measured:
        """All rows drawn at once, after a single one to warm up, beside the plan's newest phases."""
        log.info("%s", plan.phases[-1].name)
        draw(1)
        self.memory.reset()
        drawn, seconds = timed(lambda: draw(None))
        planned = plan.phases[-phases:]
        unit = "images" if "images" in drawn else "tokens"
        expected, amount = self._planned_seconds(planned), sum(p.tokens for p in planned) or drawn[unit]
        return {
            **drawn,
            "seconds": both(seconds, expected),
            f"{unit}_per_second": both(drawn[unit] / seconds, expected and amount / expected),
            "peak_bytes": both(self.memory.peak(), max(map(plan.total, planned))),
        }

    def _planned_seconds(self, phases: Sequence[Phase]) -> float | None:
        return sum(phase.seconds for phase in phases) if self.memory.on_gpu else None


def _images(drawer: Component, captions: Sequence[Mapping[str, Any]], n: int | None) -> Measured:
    return {"images": len(drawer.sample(captions[:n], 1, range(len(captions))[:n]))}


def changed_architectures(config: DictConfig) -> dict[str, Any]:
    """By model, what `architecture` replaces of the published one: depth or width; empty at full size."""
    content: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    models = {name: part.get("model") or {} for name, part in content["system"]["components"].items()}
    models[GENERATOR] = content["dataset"].get("generator") or {}
    random = {n: m for n, m in models.items() if m.get("weights") == "random" and m.get("pretrained")}
    changes = {name: _set(model.get("architecture") or {}) for name, model in random.items()}
    return {name: change for name, change in changes.items() if change}


def _set(content: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is null."""
    plain = {k: _set(v) if isinstance(v, Mapping) else v for k, v in content.items()}
    return {k: v for k, v in plain.items() if v is not None and v != {}}
