"""Where preference data come from; `conf/dataset/` names one of these classes.

A source is asked for its data with the untrained system at hand, because some sets are made of its samples.
"""

import logging
import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from datasets import disable_progress_bars

from sysdpo import processes
from sysdpo.components.base import identity
from sysdpo.data.files import Record, fetch_rows, read_rows
from sysdpo.data.records import PreferenceData, Understood, prompt_key, understand
from sysdpo.data.storage import fingerprint, save_rows, with_named_files
from sysdpo.data.usable import BAD_ROWS, keep_usable, reasons
from sysdpo.errors import SettingError, nearest, plain
from sysdpo.progress import progress
from sysdpo.runs.files import append_rows, remove, write_json, write_sums
from sysdpo.runs.files import read_rows as kept_rows
from sysdpo.seeds import stream
from sysdpo.system import CompoundSystem, Pair

disable_progress_bars()

log = logging.getLogger(__name__)


class Source(Protocol):
    def prepare(self, system: CompoundSystem, folder: Path, needs_intermediates: bool) -> PreferenceData:
        """The data for `system`; whatever takes time to make is kept in `folder`."""
        ...


@dataclass(frozen=True)
class Recorded:
    """Preferences that exist: a file, a folder or a data set of the hub, in any format that docs/data.md lists.

    Args:
        path: the file or folder, in place of `hub`; None fetches `hub`.
        hub: a hub id; `config` and `split` name a part of it, None its only one and `train`.
        split: also of a folder that holds several.
        evaluation: rows held out for evaluation: a count, or a share in (0, 1).
        validation: pairs of the rest held out to stop training by: a count, or a share in (0, 1).
        inputs: `{input variable: template over columns}`, where the columns have other names.
        chosen, rejected: the columns of the answers, where they have other names.
        overlong: `error`, `drop` or `cut` rows whose prompt exceeds a model's context.
        bad_rows: `error`, or `drop` and count the rows that cannot be read.
        seed: of the split.
        limit: use only this many rows of the shuffled set.
    """

    path: str | None = None
    hub: str | None = None
    config: str | None = None
    split: str | None = None
    evaluation: float = 0.0
    validation: float = 0
    inputs: Mapping[str, str] | None = None
    chosen: str | None = None
    rejected: str | None = None
    overlong: str = "error"
    bad_rows: str = "error"
    seed: int = 0
    limit: int | None = None

    def prepare(self, system: CompoundSystem, folder: Path, needs_intermediates: bool) -> PreferenceData:
        # every row is checked, in the file's order, before any is set aside
        found = self.read(system, needs_intermediates)
        for line in (f"{summary(found)}; {reasons(found)}", *found.remarks):
            log.info("data: %s", plain(line))
        return split(found.pairs, self.evaluation, self.validation, self.seed, self.limit)

    def read(
        self, system: CompoundSystem, needs_intermediates: bool, rows: Sequence[Record] | None = None
    ) -> Understood:
        """All pairs that `system` can be trained on, and what became of the other rows (None: those of the file)."""
        if self.bad_rows not in BAD_ROWS:
            raise SettingError(f"dataset.bad_rows: {nearest(self.bad_rows, BAD_ROWS)}")
        if (self.chosen is None) != (self.rejected is None):
            raise SettingError("dataset.chosen and dataset.rejected name the two columns of answers; set both.")
        columns = {"chosen": self.chosen, "rejected": self.rejected} if self.chosen and self.rejected else None
        drop = self.bad_rows == "drop"
        found = understand(
            self.rows() if rows is None else rows,
            system.graph,
            needs_intermediates=needs_intermediates,
            inputs=self.inputs,
            columns=columns,
            drop_bad=drop,
        )
        return keep_usable(
            found,
            system,
            needs_intermediates=needs_intermediates,
            overlong=self.overlong,
            drop_bad=drop,
            folder=self._place(),
        )

    def rows(self) -> list[Record]:
        """As they stand in the file."""
        if self.path is not None:
            return read_rows(self.path, split=self.split)
        if self.hub is None:
            raise SettingError(
                "dataset.path is not set; give it on the command line: dataset.path=FILE, or dataset.hub=OWNER/NAME"
            )
        return fetch_rows(self.hub, self.config, self.split)

    def fingerprint(self) -> str:
        """What identifies the content of the data, pictures that rows only name included, wherever they lie."""
        rows = self.rows()
        return fingerprint(rows if (place := self._place()) is None else with_named_files(rows, place))

    def _place(self) -> Path | None:
        """Where pictures that rows only name may lie."""
        path = Path(self.path).expanduser() if self.path is not None else None
        return path if path is None or path.is_dir() else path.parent


def read_pairs(path: str | Path, system: CompoundSystem, inputs: Mapping[str, str] | None = None) -> list[Pair]:
    """The preference pairs of a file or folder in any format of docs/data.md, checked against a system.

    Each row needs the final variables of both sides; SysDPO-Direct needs the intermediate ones too, and says so. Pairs
    that prefer nothing are left out.

    Args:
        inputs: `{input variable: template over the row's columns}`, for data whose columns have other names.

    Raises:
        SettingError: a row lacks something or cannot be scored, by its number.
    """
    path = Path(path).expanduser()
    found = understand(read_rows(path, "path"), system.graph, needs_intermediates=False, inputs=inputs)
    place = path if path.is_dir() else path.parent
    # intermediate values, where a row has them, may be all that differs
    return keep_usable(found, system, needs_intermediates=True, folder=place).pairs


def summary(found: Understood) -> str:
    """`5 pairs (TRL, standard)`."""
    formats = (
        ", ".join(found.formats)
        if len(found.formats) == 1
        else ", ".join(f"{name}: {n}" for name, n in found.formats.items())
    )
    return f"{len(found.pairs)} pairs ({formats})"


def split(
    pairs: Sequence[Any], evaluation: float, validation: float, seed: int, limit: int | None = None
) -> PreferenceData:
    """Shuffle once, then hold out by prompt: evaluation first, validation next (as `train_test_split`: ceil).

    Pairs of a prompt that is held out are never trained on: those beyond the number asked for are left out.
    """
    for name, size in {"evaluation": evaluation, "validation": validation}.items():
        if size < 0 or (size > 1 and size != int(size)):
            raise SettingError(f"dataset.{name}={size}: write a count, or a share in (0, 1).")
    order = list(pairs)
    random.Random(seed).shuffle(order)
    order = order[:limit]
    held = math.ceil(evaluation * len(order)) if evaluation < 1 else int(evaluation)
    stop = math.ceil(validation * (len(order) - held)) if validation < 1 else int(validation)
    judged, rest = _hold_prompts(order, held)
    stopping, train = _hold_prompts(rest, stop)
    if not train or held + stop >= len(order):
        raise SettingError(
            f"dataset.evaluation={evaluation} and dataset.validation={validation} leave nothing of {len(order)} rows "
            "to train on; lower them."
        )
    if unused := len(order) - len(judged) - len(stopping) - len(train):
        log.info("data: %d pairs of held-out prompts, beyond the number asked for, are left out", unused)
    rows = [{**p.extra, **p.inputs, "chosen": dict(p.chosen)} for p in judged]
    return PreferenceData(train, stopping, rows)


def _hold_prompts(order: Sequence[Pair], count: int) -> tuple[list[Pair], list[Pair]]:
    """(the first `count` pairs of the first prompts, the pairs of all other prompts)."""
    if count == 0:
        return [], list(order)
    keys = [prompt_key(pair) for pair in order]
    sizes = Counter(keys)
    prompts: set[object] = set()
    reached = 0
    for key in keys:
        if reached >= count:
            break
        if key not in prompts:
            prompts.add(key)
            reached += sizes[key]
    held = [pair for pair, key in zip(order, keys, strict=True) if key in prompts]
    return held[:count], [pair for pair, key in zip(order, keys, strict=True) if key not in prompts]


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
    system: CompoundSystem, prompts: Sequence[Record], n: int, seed: int, batch_size: int, partial: Path
) -> list[list[dict[str, Any]]]:
    """`n` samples of all generated variables for each prompt; kept batch by batch, so that a killed build goes on."""
    names = [v.name for v in system.graph.generated]
    inputs = [v.name for v in system.graph.inputs]
    done = processes.by_first(lambda: _go_on(partial, batch_size))
    left = [(i, k) for i in range(len(prompts)) for k in range(n)][len(done) :]
    turns = processes.turns(len(left), batch_size)
    for own in progress(turns, f"sample {partial.name.split('.')[0]} set", total=len(turns)):
        part = [left[i] for i in own]
        rows = system.generate(
            [{name: prompts[i][name] for name in inputs} for i, _ in part],
            [stream(seed, i) * 1_009 + k for i, k in part],
        )
        drawn = processes.joined([{name: row[name] for name in names} for row in rows])
        if processes.is_first():
            append_rows(partial, drawn, len(done))
        done += drawn
    return [done[i * n : (i + 1) * n] for i in range(len(prompts))]


def _go_on(partial: Path, batch_size: int) -> list[dict[str, Any]]:
    """What was drawn before, in whole batches: a text is drawn in the same company again."""
    done = kept_rows(partial)
    done = done[: len(done) // batch_size * batch_size]
    partial.parent.mkdir(parents=True, exist_ok=True)
    remove(partial)
    append_rows(partial, done, 0)
    return done


def store(folder: Path, parts: Mapping[str, list[Record]], card: Mapping[str, Any]) -> None:
    """Write a data set as a folder: `parts` and a card of what it was made of; the first process does."""
    if not processes.is_first():
        return
    for name, rows in parts.items():
        save_rows(rows, folder / name)
    write_json(folder / "card.json", {**card, "rows": {name: len(rows) for name, rows in parts.items()}})
    for name in parts:
        remove(folder / f"{name}.partial.jsonl")
    write_sums(folder)  # last: it says that the set is whole
