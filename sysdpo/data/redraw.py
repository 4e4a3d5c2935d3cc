"""Fresh preference pairs: the current system's outputs for training prompts, the best against the worst of each."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sysdpo import processes
from sysdpo.components.image.pixels import stored
from sysdpo.data.ranking import ranked_pairs
from sysdpo.data.storage import load_rows, save_rows
from sysdpo.errors import SettingError
from sysdpo.evaluation.measures import Labels
from sysdpo.progress import progress
from sysdpo.seeds import stream
from sysdpo.system import CompoundSystem, Pair


@dataclass(frozen=True)
class JudgedPairs:
    """The `Redraw` of a `Trainer`: draws from the system as it is, lets `labels` prefer, keeps the pairs in a folder.

    Args:
        given: the training pairs, whose prompts are drawn for again.
        labels: who prefers: a win rate's judge, or a scorer of images.
        folder: gets `step=<n>/`, a `datasets` directory for each redraw.
        samples: outputs drawn for each prompt; the best and the worst make a pair, ties make none.
        batch_size: outputs drawn at a time.
    """

    system: CompoundSystem
    given: Sequence[Pair]
    labels: Labels
    folder: Path
    samples: int = 4
    batch_size: int = 64
    seed: int = 0

    def draw(self, step: int, prompts: Sequence[int]) -> tuple[list[Pair], dict[str, float]]:
        sources = [self.given[i] for i in prompts]
        drawn = draw_outputs(self.system, sources, self.samples, stream(self.seed, step), self.batch_size)
        scores, calls = self.labels.scores([{**p.extra, **p.inputs} for p in sources], drawn)
        names = [v.name for v in self.system.graph.generated]
        rows: list[dict[str, Any]] = []
        for i, samples, own in zip(prompts, drawn, scores, strict=True):
            for best, worst in ranked_pairs(own, limit=1):
                sides = {
                    side: {name: stored(samples[k][name]) for name in names}
                    for side, k in (("chosen", best), ("rejected", worst))
                }
                rows.append({"given": i, **sides, "chosen_score": own[best], "rejected_score": own[worst]})
        if not rows:
            raise SettingError(
                f"update {step}: no two of {self.samples} fresh outputs differ in score for any of {len(prompts)} "
                "prompts; raise training.redraw_samples, or set training.redraw_every=0."
            )
        processes.by_first(lambda: save_rows(rows, self._place(step)))
        return self.read(step), {"answers": float(len(prompts) * self.samples), "judge_calls": float(calls)}

    def read(self, step: int) -> list[Pair]:
        found = []
        for row in load_rows(self._place(step)):
            source = self.given[row["given"]]
            scores = {key: row[key] for key in ("chosen_score", "rejected_score")}
            found.append(
                replace(source, chosen=row["chosen"], rejected=row["rejected"], extra={**source.extra, **scores})
            )
        return found

    def _place(self, step: int) -> Path:
        return self.folder / f"step={step}"


def draw_outputs(
    system: CompoundSystem, pairs: Sequence[Pair], n: int, seed: int, batch_size: int, quiet: bool = False
) -> list[list[dict[str, Any]]]:
    """`n` outputs of the current system for each pair's inputs, each with every variable."""
    inputs = [dict(pair.inputs) for pair in pairs for _ in range(n)]
    seeds = [stream(seed, pair.index) * 1_009 + k for pair in pairs for k in range(n)]
    turns = processes.turns(len(inputs), batch_size)
    rows: list[dict[str, Any]] = []
    for own in turns if quiet else progress(turns, "redraw", total=len(turns)):
        rows += processes.joined(system.generate([inputs[i] for i in own], [seeds[i] for i in own]))
    return [rows[i * n : (i + 1) * n] for i in range(len(pairs))]
