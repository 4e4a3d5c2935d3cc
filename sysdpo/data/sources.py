"""Where preference data come from; `conf/dataset/` names one of these classes.

A source is asked for its data with the untrained system at hand, because some sets are made of its samples.
"""

import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from datasets import disable_progress_bars

from sysdpo.components.base import identity
from sysdpo.data.records import PreferenceData, Row, fetch_rows, make_pairs, read_rows
from sysdpo.data.storage import save_rows
from sysdpo.errors import SettingError
from sysdpo.progress import progress
from sysdpo.runs.folder import read_jsonl, write_jsonl
from sysdpo.seeds import stream
from sysdpo.system import CompoundSystem, Pair

disable_progress_bars()


class Source(Protocol):
    def prepare(self, system: CompoundSystem, folder: Path, needs_intermediates: bool) -> PreferenceData:
        """The data for `system`; whatever takes time to make is kept in `folder`."""
        ...


@dataclass(frozen=True)
class Recorded:
    """Preferences that exist as a JSONL file, a `datasets` directory, or a data set of the hub.

    Args:
        path: the file or folder; None fetches `hub`.
        hub: a hub id, of which the split `train` is read.
        evaluation: rows held out for evaluation: a count, or a share in (0, 1).
        validation: pairs of the rest held out to stop training by: a count, or a share in (0, 1).
        inputs: `{input variable: template over columns}`, where the columns have other names.
        seed: of the split.
        limit: use only this many rows of the shuffled set.
    """

    path: str | None = None
    hub: str | None = None
    evaluation: float = 0.0
    validation: float = 0
    inputs: Mapping[str, str] | None = None
    seed: int = 0
    limit: int | None = None

    def prepare(self, system: CompoundSystem, folder: Path, needs_intermediates: bool) -> PreferenceData:
        rows = self._rows()
        # every row is checked, in the file's order, before any is set aside
        pairs = make_pairs(rows, system.graph, needs_intermediates=needs_intermediates, inputs=self.inputs)
        return split(pairs, self.evaluation, self.validation, self.seed, self.limit)

    def _rows(self) -> list[Row]:
        if self.path is not None:
            return read_rows(self.path)
        if self.hub is None:
            raise SettingError("dataset.path is not set; give it on the command line: dataset.path=FILE")
        return fetch_rows(self.hub)


def split(
    pairs: Sequence[Any], evaluation: float, validation: float, seed: int, limit: int | None = None
) -> PreferenceData:
    """Shuffle once, then hold out: evaluation rows first, validation pairs next (as `train_test_split`: ceil)."""
    for name, size in {"evaluation": evaluation, "validation": validation}.items():
        if size < 0 or (size > 1 and size != int(size)):
            raise SettingError(f"dataset.{name}={size}: write a count, or a share in (0, 1).")
    order = list(pairs)
    random.Random(seed).shuffle(order)
    order = order[:limit]
    held = math.ceil(evaluation * len(order)) if evaluation < 1 else int(evaluation)
    stop = held + (math.ceil(validation * (len(order) - held)) if validation < 1 else int(validation))
    if stop >= len(order):
        raise SettingError(
            f"dataset.evaluation={evaluation} and dataset.validation={validation} leave nothing of {len(order)} rows "
            "to train on; lower them."
        )
    rows = [{**p.extra, **p.inputs, "chosen": dict(p.chosen)} for p in order[:held]]
    return PreferenceData(order[stop:], order[held:stop], rows)


def hold_out(pairs: Sequence[Pair], validation: int) -> tuple[list[Pair], list[Pair]]:
    """(held out, kept): at least `validation` pairs, with all pairs of their prompts.

    The prompts are taken at equal distances: neighbours in a data set may share their subject.
    """
    prompts = list(dict.fromkeys(identity(p.inputs) for p in pairs))
    held: list[Pair] = []
    for n in range(1, len(prompts) + 1):
        if len(held) >= validation:
            break
        chosen = {prompts[(2 * i + 1) * len(prompts) // (2 * n)] for i in range(n)}
        held = [p for p in pairs if identity(p.inputs) in chosen]
    indices = {p.index for p in held}
    return held, [p for p in pairs if p.index not in indices]


def draw_samples(
    system: CompoundSystem, prompts: Sequence[Row], n: int, seed: int, batch_size: int, partial: Path
) -> list[list[dict[str, Any]]]:
    """`n` samples of all generated variables for each prompt; kept batch by batch, so that a killed build goes on."""
    names = [v.name for v in system.graph.generated]
    inputs = [v.name for v in system.graph.inputs]
    done = read_jsonl(partial)
    write_jsonl(partial, done)
    requests = [(i, k) for i in range(len(prompts)) for k in range(n)]
    batches = range(len(done), len(requests), batch_size)
    with partial.open("a", encoding="utf-8") as file:
        for start in progress(batches, f"sample {partial.name.split('.')[0]} set", total=len(batches)):
            part = requests[start : start + batch_size]
            rows = system.generate(
                [{name: prompts[i][name] for name in inputs} for i, _ in part],
                [stream(seed, i) * 1_009 + k for i, k in part],
            )
            for row in rows:
                sample = {name: row[name] for name in names}
                file.write(json.dumps(sample) + "\n")
                done.append(sample)
            file.flush()
    return [done[i * n : (i + 1) * n] for i in range(len(prompts))]


def store(folder: Path, parts: Mapping[str, list[Row]], card: Mapping[str, Any]) -> None:
    for name, rows in parts.items():
        save_rows(rows, folder / name)
    # written last: its presence means that the set is whole
    (folder / "card.json").write_text(
        json.dumps({**card, "rows": {name: len(rows) for name, rows in parts.items()}}, indent=2) + "\n"
    )
    for name in parts:
        (folder / f"{name}.partial.jsonl").unlink(missing_ok=True)
