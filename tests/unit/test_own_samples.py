"""SysDPO-Direct's data from a system's own samples: who is preferred, what is held out, what is made again."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from sysdpo.data.own_samples import OwnSamples
from sysdpo.data.ranking import preferred_pairs
from sysdpo.errors import SettingError
from tests.systems import make_two_llm


class Longer:
    """Prefers the longer answer, and has no opinion where the first one ends in an even character."""

    name = "longer"

    def __init__(self, silent: bool = False) -> None:
        self.asked, self.silent = 0, silent

    def preferences(
        self, rows: Sequence[Mapping[str, Any]], references: Sequence[str], outputs: Sequence[str]
    ) -> list[float]:
        self.asked += len(rows)
        assert all(isinstance(row["x"], str) for row in rows)
        return [
            math.nan if self.silent else 1.5 + 0.5 * math.tanh((len(output) - len(reference)) / 10)
            for reference, output in zip(references, outputs, strict=True)
        ]


def test_who_is_preferred_by_hand() -> None:
    """2 over 0 by 1.9, 1 over 0 by 1.7 (said as 1.3 the other way round), a tie, no opinion."""
    found = {(0, 1): 1.7, (0, 2): 1.9, (1, 2): 1.5, (1, 3): math.nan, (2, 3): 1.45}
    assert preferred_pairs(found) == [(2, 0, 1.9), (1, 0, 1.7), (2, 3, pytest.approx(1.55))]
    assert preferred_pairs(found, min_gap=0.1, limit=1) == [(2, 0, 1.9)]


def recorded(path: Path, questions: Sequence[str]) -> Path:
    rows = [{"question": q, "chosen": f"right {q}", "rejected": "no"} for q in questions]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_pairs_hold_every_variable_and_prompts_held_out_stay_out(tmp_path: Path) -> None:
    system = make_two_llm()
    path = recorded(tmp_path / "rows.jsonl", [f"q{i}" for i in range(8)] + ["q1"])  # one prompt has two rows
    judge = Longer()
    source = OwnSamples(path=str(path), evaluation=2, validation=2, samples=3, judge=judge, batch_size=5)
    data = source.prepare(system, tmp_path / "made", needs_intermediates=True)
    for pair in [*data.train, *data.validation]:
        assert {"y", "z"} == pair.chosen.keys() == pair.rejected.keys()
        assert len(pair.chosen["z"]) > len(pair.rejected["z"])
    held = {row["x"] for row in data.evaluation}
    stopping = {pair.inputs["x"] for pair in data.validation}
    trained = {pair.inputs["x"] for pair in data.train}
    assert len(data.evaluation) == 2
    assert not held & (stopping | trained)
    assert not stopping & trained
    assert all(row["chosen"]["z"] == f"right {row['x']}" for row in data.evaluation)
    assert judge.asked == 3 * len({f"q{i}" for i in range(8)} - held)

    asked = judge.asked
    again = source.prepare(system, tmp_path / "made", needs_intermediates=True)
    assert judge.asked == asked  # read, not made
    assert [(p.inputs, p.chosen, p.rejected) for p in again.train] == [
        (p.inputs, p.chosen, p.rejected) for p in data.train
    ]
    recorded(path, [f"other {i}" for i in range(8)])
    changed = source.prepare(system, tmp_path / "made", needs_intermediates=True)
    assert judge.asked > asked  # by content, not by name
    assert all(pair.inputs["x"].startswith("other") for pair in changed.train)


def test_a_judge_without_opinions_is_one_line(tmp_path: Path) -> None:
    path = recorded(tmp_path / "rows.jsonl", ["a", "b"])
    source = OwnSamples(path=str(path), samples=2, judge=Longer(silent=True))
    with pytest.raises(SettingError, match=r"dataset\.min_gap=0\.0: the judge \(longer\)"):
        source.prepare(make_two_llm(), tmp_path / "made", needs_intermediates=True)
