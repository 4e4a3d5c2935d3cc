"""RAG-DDR's differentiable data rewards (Li et al., 2024): components are aligned from the last one to the first.

For each component, candidates of its variable are drawn at several temperatures; the rest of the system, as aligned so
far, answers from each; the candidate of the best answer is preferred to that of the worst, by TRL's DPOTrainer.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from sysdpo.components.text.language_model import LanguageModel
from sysdpo.data.ranking import ranked_pairs
from sysdpo.errors import SettingError
from sysdpo.graph import Variable
from sysdpo.peers.task import Task
from sysdpo.progress import progress
from sysdpo.runs.files import write_jsonl
from sysdpo.sampling.monte_carlo import MonteCarlo
from sysdpo.seeds import stream
from sysdpo.system import Pair
from sysdpo.training.fingerprint import fingerprint
from sysdpo.training.loop import rate_of
from sysdpo.training.separate import align_alone


@dataclass(frozen=True)
class DataRewards:
    """Beta, learning rate, batch size and updates are those of the joint run, for each component.

    Args:
        temperatures: one candidate is drawn at each.
        prompts: of the training set that each component learns from; None: all.
    """

    temperatures: Sequence[float] = (0.5, 0.7, 0.9, 1.1)
    prompts: int | None = None
    learns_from_pairs: ClassVar[bool] = False

    def train(self, task: Task) -> dict[str, float]:
        models = task.language_models("ddr")
        if len(self.temperatures) < 2:
            raise SettingError("trainer.temperatures: give at least two; a pair needs two candidates.")
        write_jsonl(task.folder / "metrics.jsonl", [])  # each component's lines come back from its checkpoint
        own = fingerprint(task.system, None, task.pairs, [], task.settings)
        spent = {"answers": 0.0, "judge_calls": 0.0}
        order = dict.fromkeys(n for v in reversed(task.system.graph.generated) for n in v.components if n in models)
        for name in order:
            rows: list[dict[str, list[int]]] = []
            numbers: list[int] = []
            for variable in task.system.graph.generated:
                if name not in variable.components:
                    continue
                pairs = task.prompts(self.prompts)
                candidates = self._candidates(task, variable, pairs)
                scores, calls = task.rank(pairs, candidates)
                spent["answers"] += len(pairs) * len(self.temperatures)
                spent["judge_calls"] += calls
                for pair, outputs, rated in zip(pairs, candidates, scores, strict=True):
                    if (row := _preference(models[name], name, variable, outputs, rated)) is not None:
                        rows.append(row)
                        numbers.append(pair.index + 1)
            if not rows:
                raise SettingError(f"trainer=ddr: no two candidates of component {name!r} differ in reward.")
            rate = rate_of(task.settings, task.system, name)
            digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]
            part = {**own, "component": name, "training.learning_rate": str(rate), "candidates": digest}
            align_alone(name, models[name], rows, numbers, task.settings, rate, task.folder, part)
        return spent

    def _candidates(self, task: Task, variable: Variable, pairs: Sequence[Pair]) -> list[list[dict[str, Any]]]:
        """For each pair's inputs, an output of the system around each candidate of the variable."""
        names = [v.name for v in task.system.graph.generated]
        position = names.index(variable.name)
        found: list[list[dict[str, Any]]] = [[] for _ in pairs]
        starts = range(0, len(pairs), task.batch_size)
        for start in progress(starts, f"candidates of {variable.name}", total=len(starts)):
            part = pairs[start : start + task.batch_size]
            seeds = [stream(task.settings.seed, position, pair.index) for pair in part]
            before = task.system.generate([p.inputs for p in part], seeds, only=names[:position])
            for number, temperature in enumerate(self.temperatures, 1):
                own = [stream(seed, number) for seed in seeds]
                hot = MonteCarlo(temperature=temperature, distinct=False)
                rows = task.system.generate(
                    before, own, sampler=hot, only=[variable.name], requests=list(range(len(part)))
                )
                for i, row in enumerate(task.system.generate(rows, own, only=names[position + 1 :])):
                    found[start + i].append(row)
        return found


def _preference(
    model: LanguageModel, name: str, variable: Variable, outputs: Sequence[dict[str, Any]], scores: Sequence[float]
) -> dict[str, list[int]] | None:
    """The best candidate against the worst, as token ids; None where they do not differ."""
    for best, worst in ranked_pairs(scores, limit=1):
        if name not in variable.may_draw(outputs[best]):
            return None
        parents = {alias: outputs[best][parent] for alias, parent in variable.parents}
        chosen, rejected = (model.codec.completion_ids(str(outputs[i][variable.name])) for i in (best, worst))
        if chosen != rejected:
            prompt = model.codec.prompt_ids(parents)
            return {"prompt_ids": list(prompt), "chosen_ids": list(chosen), "rejected_ids": list(rejected)}
    return None
