"""Preferences over image sequences, made from the system's own samples (section 5.1): the data of table 1."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from sysdpo import processes
from sysdpo.components.base import Component
from sysdpo.components.image.pixels import stored
from sysdpo.data.files import Record, read_rows
from sysdpo.data.ranking import ranked_pairs
from sysdpo.data.records import PreferenceData, make_pairs
from sysdpo.data.sources import hold_out
from sysdpo.data.storage import load_rows, made_once, save_rows
from sysdpo.errors import SettingError
from sysdpo.progress import progress
from sysdpo.runs.files import SUMS, damage, remove, write_json, write_sums
from sysdpo.seeds import stream
from sysdpo.system import CompoundSystem
from sysdpo.tasks.progression.prompts import ProgressionPrompt, make_prompts, read_prompts
from sysdpo.tasks.progression.sequences import Scorer, score_sequences


@dataclass(frozen=True)
class Progressions:
    """Prompts x `samples` sequences of the untrained system, ranked by the preference score q (eq. 8).

    Args:
        scorer: gives the attribute levels of the images.
        attributes: names that the scorer knows; None takes all of them.
        places: what is depicted.
        prompts_per_attribute: 25 gives the paper's 6,000 pairs of 40 attributes (its text says 250: 60,000 pairs).
        evaluation_prompts_per_attribute: their (place, attribute) pairs do not occur in training.
        samples: sequences a prompt; n give at most n (n-1) / 2 pairs.
        min_gap: pairs whose q differ by no more are dropped; 0 drops ties only.
        pairs_per_prompt: the widest gaps are kept.
        validation: pairs held out to stop training by; their prompts are not trained on.
        batch_size: sequences drawn at a time.
        generator: makes the component that draws the images of the training pairs in place of the system's own
            (the paper draws them with SDXL and trains SD1.5); None keeps the system as it is.
        image_size: height and width to which images are reduced before they are scored and stored; None: as drawn.
        seed: of prompts and samples.
        prompts: a file of `scripts/generate_prompts.py` in place of our templates.
        held_out_places: of each attribute, for evaluation; None: a third of `places`.
    """

    scorer: Scorer
    places: Sequence[str]
    prompts_per_attribute: int
    evaluation_prompts_per_attribute: int
    attributes: Sequence[str] | None = None
    samples: int = 4
    min_gap: float = 0.0
    pairs_per_prompt: int = 6
    validation: int = 0
    batch_size: int = 64
    generator: Callable[[], Component] | None = None
    image_size: int | None = None
    seed: int = 0
    prompts: str | None = None
    held_out_places: int | None = None

    def prepare(self, system: CompoundSystem, folder: Path, needs_intermediates: bool) -> PreferenceData:
        attributes = list(self.attributes or self.scorer.attributes)
        sizes = (self.prompts_per_attribute, self.evaluation_prompts_per_attribute)
        if self.prompts is not None:
            train, evaluation = read_prompts(self.prompts, attributes, *sizes)
        else:
            train, evaluation = make_prompts(attributes, self.places, *sizes, self.seed, self.held_out_places)
        with made_once(folder, folder / SUMS, lambda: damage(folder)) as missing:
            if missing:
                self._build(system, train, evaluation, folder)
        made_for = json.loads((folder / "card.json").read_text(encoding="utf-8")).get("digest")
        if made_for not in (None, _digest(train)):  # the folder's name knows the file of prompts, not what is in it
            raise SettingError(
                f"dataset.prompts={self.prompts}: has other prompts than when {folder} was made of it; remove that "
                "folder, or keep the new prompts in a file of another name."
            )
        pairs = make_pairs(read_rows(folder / "train"), system.graph, needs_intermediates=needs_intermediates)
        held, kept = hold_out(pairs, self.validation)
        drawn = float(len(train) * self.samples)
        return PreferenceData(
            kept, held, [prompt.row() for prompt in evaluation], {"answers": drawn, "judge_calls": drawn}
        )

    def _build(
        self,
        system: CompoundSystem,
        train: Sequence[ProgressionPrompt],
        evaluation: Sequence[ProgressionPrompt],
        folder: Path,
    ) -> None:
        drawn = self._draw(_with_images_from(system, self.generator), train, folder / "samples.partial")
        columns = [v.name for v in system.graph.generated]
        rows: list[Record] = []
        for prompt, start in zip(train, range(0, len(drawn), self.samples), strict=True):
            samples = drawn[start : start + self.samples]
            for sides in ranked_pairs([s["score"] for s in samples], self.min_gap, self.pairs_per_prompt):
                row: Record = dict(prompt.row())
                for side, sample in zip(("chosen", "rejected"), (samples[i] for i in sides), strict=True):
                    row[side] = {name: sample[name] for name in columns}
                    row |= {f"{side}_{key}": sample[key] for key in ("score", "levels", "log_prob")}
                rows.append(row)
        if not rows:
            raise SettingError(
                f"dataset.min_gap={self.min_gap}: no two samples of any prompt differ by more; lower it."
            )
        processes.by_first(lambda: self._store(train, evaluation, drawn, rows, folder))

    def _store(
        self,
        train: Sequence[ProgressionPrompt],
        evaluation: Sequence[ProgressionPrompt],
        drawn: Sequence[dict[str, Any]],
        rows: Sequence[Record],
        folder: Path,
    ) -> None:
        save_rows(rows, folder / "train")
        unparsed = sum(not s["levels"] for s in drawn)
        scores = torch.tensor([s["score"] for s in drawn])
        card = {
            "prompts": len(train),
            "digest": _digest(train),
            "evaluation_prompts": len(evaluation),
            "sequences": len(drawn),
            "unparsed": unparsed,
            "mean_preference_score": round(float(scores.mean()), 4),
            "pairs": len(rows),
            "scorer": self.scorer.name,
            "seed": self.seed,
        }
        write_json(folder / "card.json", card)
        remove(folder / "samples.partial")
        write_sums(folder)  # last: it says that the set is whole

    def _draw(
        self, system: CompoundSystem, prompts: Sequence[ProgressionPrompt], partial: Path
    ) -> list[dict[str, Any]]:
        """`samples` scored sequences of each prompt; kept batch by batch, so that a killed build goes on."""
        requests = [(i, k) for i in range(len(prompts)) for k in range(self.samples)]
        starts = range(0, len(requests), self.batch_size)
        left = processes.by_first(lambda: _still_to_draw(starts, partial))
        turns = processes.turns(len(left), 1)
        done = len(starts) - len(left)
        for own in progress(turns, "sample train set", total=done + len(turns), initial=done):
            mine = [left[i] for i in own]
            part = [request for start in mine for request in requests[start : start + self.batch_size]]
            rows = system.generate(
                [{"x": prompts[i].x} for i, _ in part], [stream(self.seed, i) * 1_009 + k for i, k in part]
            )
            scored = self._scored(system, rows, [prompts[i].attribute for i, _ in part])
            for start, samples in processes.joined([(start, scored) for start in mine]):
                if processes.is_first():
                    save_rows(samples, partial / f"{start:08d}")
        processes.wait()
        return [row for start in starts for row in load_rows(partial / f"{start:08d}")]

    def _scored(
        self, system: CompoundSystem, rows: Sequence[Record], attributes: Sequence[str]
    ) -> list[dict[str, Any]]:
        final = only_sequence(system)
        for row in rows:
            row[final] = [_resized(picture, self.image_size) for picture in row[final]]
        scored = score_sequences(self.scorer, [row[final] for row in rows], attributes)
        log_probs = {name: values.tolist() for name, values in system.log_prob(rows).items()}
        return [
            {
                **{v.name: stored(row[v.name]) for v in system.graph.generated},
                "score": sequence.score,
                "levels": sequence.levels,
                "log_prob": {name: values[i] for name, values in log_probs.items()},
            }
            for i, (row, sequence) in enumerate(zip(rows, scored, strict=True))
        ]


def _still_to_draw(starts: Sequence[int], partial: Path) -> list[int]:
    partial.mkdir(parents=True, exist_ok=True)
    return [start for start in starts if damage(partial / f"{start:08d}") is not None]


def _digest(prompts: Sequence[ProgressionPrompt]) -> str:
    return hashlib.sha256(json.dumps([prompt.row() for prompt in prompts]).encode()).hexdigest()[:12]


def only_sequence(system: CompoundSystem) -> str:
    """The one final variable, which must hold a list of images and be asked for by the one input `x`."""
    finals = system.graph.finals
    if len(finals) != 1 or finals[0].plate is None or [v.name for v in system.graph.inputs] != ["x"]:
        raise SettingError(
            "dataset=progression needs a system with the input x and one final variable in a plate "
            "(a list of images); choose another system, or dataset=jsonl."
        )
    return finals[0].name


def _with_images_from(system: CompoundSystem, generator: Callable[[], Component] | None) -> CompoundSystem:
    """The system with another component in place of its image model; None keeps it."""
    if generator is None:
        return system
    replaced = str(system.graph[only_sequence(system)].component)
    components = {name: system.component(name) for name in system.components}
    return CompoundSystem(system.graph, {**components, replaced: generator()})


def _resized(picture: torch.Tensor, size: int | None) -> torch.Tensor:
    if size is None or picture.shape[1:] == (size, size):
        return picture
    resized = F.interpolate(picture[None], size=(size, size), mode="bilinear", antialias=True, align_corners=False)[0]
    return resized.clamp(0, 1)
