"""SysDPO-Direct's data for a system of texts: samples of the untrained system, of which a judge says the better one."""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from sysdpo.components.base import identity
from sysdpo.data.ranking import preferred_pairs
from sysdpo.data.records import PreferenceData
from sysdpo.data.sources import Recorded, draw_samples, store
from sysdpo.data.storage import load_rows, made_once
from sysdpo.errors import SettingError
from sysdpo.evaluation.judges.base import Judge
from sysdpo.runs.files import SUMS, damage
from sysdpo.system import CompoundSystem, Pair

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OwnSamples(Recorded):
    """Every two of `samples` runs of the untrained system on each recorded prompt, compared by `judge`.

    Recorded answers come without the values that a system has between question and answer; its own samples have them
    all. Judged is the final variable alone, as in Table 2. What is held out stays as it was recorded: its prompts are
    not trained on, and its chosen answers are those of the evaluation.

    Args:
        judge: a reward model, or any judge of Table 2; one that is paid is asked once for every two samples.
        samples: n a prompt; n give at most n (n-1) / 2 pairs.
        min_gap: pairs whose preference, in [1, 2], lies no farther from 1.5 are dropped; 0 drops ties only.
        pairs_per_prompt: the clearest are kept.
        batch_size: samples drawn at a time.
        seed: of the split and of the samples.
    """

    judge: Judge = field(kw_only=True)
    samples: int = 4
    min_gap: float = 0.0
    pairs_per_prompt: int = 6
    batch_size: int = 64

    def prepare(self, system: CompoundSystem, folder: Path, needs_intermediates: bool) -> PreferenceData:
        if len(system.graph.finals) != 1:
            raise SettingError(
                f"dataset=own_samples: a judge compares one answer, but the system has {len(system.graph.finals)} "
                "final variables."
            )
        found = super().prepare(system, folder, needs_intermediates=False)
        content = self.fingerprint()
        # by content: samples of the prompts that a file held yesterday are not those of today's
        folder = folder.with_name(f"{folder.name}-{content}")
        prompts = {
            part: _each_prompt(pairs) for part, pairs in (("train", found.train), ("validation", found.validation))
        }
        with made_once(folder, folder / SUMS, lambda: damage(folder)) as missing:
            if missing:
                self._build(system, prompts, folder, content)
        train, validation = (self._pairs(folder / part, prompts[part]) for part in ("train", "validation"))
        return PreferenceData(train, validation, found.evaluation)

    @staticmethod
    def _pairs(folder: Path, prompts: Sequence[Pair]) -> list[Pair]:
        return [
            Pair(i, dict(prompts[row["prompt"]].inputs), row["chosen"], row["rejected"])
            for i, row in enumerate(load_rows(folder) if folder.is_dir() else [])
        ]

    def _build(self, system: CompoundSystem, prompts: Mapping[str, Sequence[Pair]], folder: Path, content: str) -> None:
        parts = {}
        for part, own in prompts.items():
            if not own:
                continue
            inputs = [dict(prompt.inputs) for prompt in own]
            partial = folder / f"{part}.partial.jsonl"
            drawn = draw_samples(system, inputs, self.samples, self.seed, self.batch_size, partial)
            if rows := self._ranked(system, own, drawn):
                parts[part] = rows
        if "train" not in parts:
            raise SettingError(
                f"dataset.min_gap={self.min_gap}: the judge ({self.judge.name}) prefers no sample of any prompt by "
                "more; lower it, or raise dataset.samples."
            )
        card = {
            "judge": self.judge.name,
            "samples": self.samples,
            "min_gap": self.min_gap,
            "seed": self.seed,
            "source": content,
        }
        store(folder, parts, card)

    def _ranked(
        self,
        system: CompoundSystem,
        prompts: Sequence[Pair],
        drawn: Sequence[Sequence[dict[str, Any]]],
    ) -> list[dict[str, Any]]:
        final = system.graph.finals[0].name
        compared = [(n, i, j) for n in range(len(prompts)) for i, j in combinations(range(self.samples), 2)]
        answers = [[str(sample[final]) for sample in samples] for samples in drawn]
        preferences = self.judge.preferences(
            [{**prompts[n].extra, **prompts[n].inputs} for n, _, _ in compared],
            [answers[n][i] for n, i, _ in compared],
            [answers[n][j] for n, _, j in compared],
        )
        if silent := sum(map(math.isnan, preferences)):
            log.warning("data: the judge has no opinion on %d of %d pairs; left out", silent, len(compared))
        of_prompt: list[dict[tuple[int, int], float]] = [{} for _ in prompts]
        for (n, i, j), preference in zip(compared, preferences, strict=True):
            of_prompt[n][i, j] = preference
        return [
            {
                "prompt": n,
                "text": json.dumps(prompts[n].inputs, ensure_ascii=False),  # for readers: what the number stands for
                "chosen": drawn[n][better],
                "rejected": drawn[n][worse],
                "preference": preference,
            }
            for n, found in enumerate(of_prompt)
            for better, worse, preference in preferred_pairs(found, self.min_gap, self.pairs_per_prompt)
        ]


def _each_prompt(pairs: Sequence[Pair]) -> list[Pair]:
    """One of the pairs of each prompt: there may be several recorded ones."""
    return list({identity(pair.inputs): pair for pair in reversed(pairs)}.values())[::-1]
