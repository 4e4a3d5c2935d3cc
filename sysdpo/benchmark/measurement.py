"""The units of a run's work done for real, on made-up rows of the lengths that a plan assumes."""

import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig

from sysdpo.benchmark.readings import Memory
from sysdpo.components.base import Component, Value
from sysdpo.devices import resolve_device
from sysdpo.errors import SettingError
from sysdpo.experiment.build import build_trainable, training_settings
from sysdpo.graph import Variable
from sysdpo.planning.prediction import counted_tokens, drawn
from sysdpo.planning.work import Taken
from sysdpo.planning.workload import Workload
from sysdpo.runs.folder import read_jsonl
from sysdpo.sampling.strategies import Sampler
from sysdpo.system import CompoundSystem, Row
from sysdpo.training.checkpoints import load_trainable, trainable_state
from sysdpo.training.loop import Trainer, check_training


class Measurement:
    """The system of `config` and its made-up rows.

    Raises:
        SettingError: the method trains nothing, or rows of these lengths could not be read.
    """

    holds_weights = True

    def __init__(self, config: DictConfig) -> None:
        self.config, self.objective = config, instantiate(config.objective)
        self.settings, self.lengths = training_settings(config), config.plan.tokens
        self.memory = Memory(on_gpu=resolve_device(config.device).type == "cuda")
        self.system, self.load_seconds = self.memory.timed(lambda: build_trainable(config))
        self.loaded = self.memory.now()
        self.objective.check(self.system)
        check_training(self.system, self.settings)
        self.untrained = trainable_state(self.system)
        self.checkpoint: dict[str, float] = {}
        """Bytes, and seconds to write and to read one, of the last update's trainer."""
        self.elements = int(config.system.get("captions_per_prompt", 1))
        for prompt in ("prompt", "longest_prompt"):
            try:
                self.system.check_rows([self.made(prompt).row(0)])
            except SettingError as error:
                raise SettingError(f"plan.tokens.{prompt}={self.lengths[prompt]}: {error}") from error

    def made(self, prompt: str) -> Workload:
        """With the longest prompts, texts are as long as allowed."""
        text = self.config.max_new_tokens if prompt == "longest_prompt" else self.lengths.text
        return Workload(self.system, self.lengths[prompt], min(text, self.config.max_new_tokens), self.elements)

    def generator(self) -> Component | None:
        if self.config.dataset.get("generator") is None:
            return None
        drawer: Component = instantiate(self.config.dataset.generator)()
        drawer.trainable(False)
        return drawer

    def update(self, pairs: int, prompt: str) -> Taken:
        """The median of several updates after one that warms up; a single one with the longest prompts."""
        steps = 1 if prompt == "longest_prompt" else 1 + int(self.config.benchmark.updates)
        once: dict[str, Any] = {"validate_every": 0, "evaluate_every": 0, "patience": None, "checkpoint_every": steps}
        settings = replace(self.settings, steps=steps, batch_size=pairs, micro_batch_size=pairs, **once)
        load_trainable(self.system, self.untrained)  # each measurement is a training of its own
        with tempfile.TemporaryDirectory() as folder:
            made = self.made(prompt)
            trainer = Trainer(self.system, self.objective, made.pairs(pairs * steps), [], settings, folder)
            with counted_tokens(self.system) as tokens, drawn(self.objective, made):
                self.memory.timed(trainer.run)
            peak = self.memory.peak()
            seconds = [row["seconds"] for row in read_jsonl(Path(folder) / "metrics.jsonl")]
            self._read_checkpoint(trainer)
        return Taken(peak, statistics.median(seconds[steps > 1 :]), tokens=sum(tokens) / steps)

    def _read_checkpoint(self, trainer: Trainer) -> None:
        """The checkpoint of a run written once more and read back, and the adapters beside it."""
        _, writing = self.memory.timed(trainer.checkpoint)
        _, reading = self.memory.timed(trainer.resume)
        self.system.save(trainer.folder / "adapters")
        files = [f for part in ("checkpoints", "adapters") for f in (trainer.folder / part).rglob("*") if f.is_file()]
        written = sum(f.stat().st_size for f in files)
        self.checkpoint = {"bytes": written, "write_seconds": writing, "read_seconds": reading}

    def draw(self, component: Component, variable: Variable, n: int, prompt: str, strategy: Sampler | None) -> Taken:
        """After a single value to warm up; time and tokens are those of `n`, however many rows came of it."""
        each = strategy.num_draws if strategy is not None else 1
        elements = self.elements if variable.plate and component.unit == "images" else 1
        wanted = max(1, n // (each * elements))
        candidates = map(self.made(prompt).row, range(wanted * len(variable.components)))
        owners = {id(self.system.component(name)): name for name in variable.components}
        name = owners.get(id(component), variable.components[0])
        given = [row for row in candidates if variable.may_draw(row) == (name,)][:wanted]
        components = {each: self.system.component(each) for each in self.system.components}
        system = CompoundSystem(self.system.graph, {**components, name: component})

        def draw(rows: Sequence[Row]) -> list[Value]:
            repeated = [row for row in rows for _ in range(each)]
            requests = [i for i in range(len(rows)) for _ in range(each)]
            sampler = strategy.draw if strategy is not None else None
            found = system.generate(repeated, range(len(repeated)), sampler, [variable.name], requests)
            values = [row[variable.name] for row in found]
            return [one for value in values for one in (value if isinstance(value, list) else [value])]

        draw(given[:1])
        values, seconds = self.memory.timed(lambda: draw(given))
        share = n / max(1, len(values))
        amount = sum(map(component.amount, values)) if component.unit == "tokens" else 0
        return Taken(self.memory.peak(), seconds * share, tokens=amount * share)
