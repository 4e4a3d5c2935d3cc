"""Table 2 offline: instructions from seeds, and samples of the untrained system ranked by the rule of each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from sysdpo.data.files import Record, read_rows
from sysdpo.data.ranking import ranked_pairs
from sysdpo.data.records import PreferenceData, make_pairs
from sysdpo.data.sources import draw_samples, hold_out, store
from sysdpo.data.storage import made_once
from sysdpo.errors import SettingError
from sysdpo.runs.files import SUMS, damage
from sysdpo.system import CompoundSystem
from sysdpo.tasks.verifiable.instructions import make_instructions
from sysdpo.tasks.verifiable.score import score


@dataclass(frozen=True)
class VerifiableInstructions:
    """Instructions whose answers a rule can score; pairs are samples of the untrained system ranked by that score.

    Args:
        prompts: training prompts, and evaluation_prompts, of which none is a training prompt.
        samples: drawn from the untrained system for each training prompt; evaluation_samples likewise, of which the
            best is the evaluation prompt's `chosen` answer.
        min_gap: pairs whose scores differ by no more are dropped; 0 drops ties only.
        pairs_per_prompt: the widest gaps are kept.
        validation: pairs held out to stop training by; their prompts are not trained on.
        batch_size: samples drawn at a time.
        seed: of prompts and samples.
        instructions: makes the rows of a task set: (`train` or `evaluation`, how many, seed) -> `{"x", "oracle", …}`.
    """

    prompts: int
    evaluation_prompts: int = 193
    samples: int = 4
    evaluation_samples: int = 4
    min_gap: float = 0.0
    pairs_per_prompt: int = 1
    validation: int = 0
    batch_size: int = 64
    seed: int = 0
    instructions: Callable[[Literal["train", "evaluation"], int, int], Sequence[Record]] = make_instructions

    def prepare(self, system: CompoundSystem, folder: Path, needs_intermediates: bool) -> PreferenceData:
        final = _only_final(system)
        with made_once(folder, folder / SUMS, lambda: damage(folder)) as missing:
            if missing:
                self._build(system, final, folder)
        train_rows, evaluation = read_rows(folder / "train"), read_rows(folder / "evaluation")
        pairs = make_pairs(train_rows, system.graph, needs_intermediates=needs_intermediates)
        held, kept = hold_out(pairs, self.validation)
        drawn = float(self.prompts * self.samples)
        return PreferenceData(kept, held, evaluation, {"answers": drawn, "judge_calls": drawn})

    def _build(self, system: CompoundSystem, final: str, folder: Path) -> None:
        train = self.instructions("train", self.prompts, self.seed)
        evaluation = self.instructions("evaluation", self.evaluation_prompts, self.seed)
        drawn = draw_samples(system, train, self.samples, self.seed, self.batch_size, folder / "train.partial.jsonl")
        drawn_evaluation = draw_samples(
            system,
            evaluation,
            self.evaluation_samples,
            self.seed + 1,
            self.batch_size,
            folder / "evaluation.partial.jsonl",
        )
        pairs = []
        for row, samples in zip(train, drawn, strict=True):
            scores = [score(row["oracle"], s[final]) for s in samples]
            for i, j in ranked_pairs(scores, self.min_gap, self.pairs_per_prompt):
                pairs.append(
                    {
                        **row,
                        "chosen": samples[i],
                        "rejected": samples[j],
                        "chosen_score": scores[i],
                        "rejected_score": scores[j],
                    }
                )
        if not pairs:
            raise SettingError("dataset: no two samples of any prompt differ in score; raise dataset.prompts.")
        judged = []
        for row, samples in zip(evaluation, drawn_evaluation, strict=True):
            scores = [score(row["oracle"], s[final]) for s in samples]
            best = max(range(len(samples)), key=scores.__getitem__)
            judged.append({**row, "chosen": samples[best], "chosen_score": scores[best]})
        settings = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "instructions"}
        store(folder, {"train": pairs, "evaluation": judged}, settings)


def _only_final(system: CompoundSystem) -> str:
    if len(system.graph.finals) != 1:
        raise SettingError(
            "dataset=verifiable scores one text, but the system has "
            f"{len(system.graph.finals)} final variables; use dataset=jsonl."
        )
    return system.graph.finals[0].name
