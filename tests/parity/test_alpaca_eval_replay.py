"""Real gpt-4-turbo judgements, replayed: our arithmetic must give the published leaderboard figures."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from sysdpo.evaluation.win_rate import is_swapped, preference_from_logprobs, win_rate

REPLAY = Path(__file__).parents[3] / "shared" / "data" / "alpaca_eval_replay"
MODELS = ["gemma-2b-it", "claude-2.1", "NullModel", "phi-2"]

pytestmark = pytest.mark.skipif(
    not REPLAY.is_dir(), reason=f"the replay data (CC BY-NC, not vendored) are not at {REPLAY}"
)


def preference(row: dict[str, Any]) -> float:
    if row["identical"]:
        return 1.5
    return preference_from_logprobs(row["top_logprobs"], is_swapped(row["instruction"]))


@pytest.mark.parametrize("model", MODELS)
def test_published_figures(model: str) -> None:
    with gzip.open(REPLAY / f"{model}.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    published = json.loads((REPLAY / "expected.json").read_text(encoding="utf-8"))[model]

    preferences = [preference(row) for row in rows]
    for number, (ours, row) in enumerate(zip(preferences, rows, strict=True)):
        assert ours == pytest.approx(row["preference"], abs=1e-9), f"row {number}"
    rate = win_rate(preferences)
    assert rate.win_rate == pytest.approx(published["win_rate"], abs=1e-6)
    assert rate.standard_error == pytest.approx(published["standard_error"], abs=1e-6)
    assert rate.discrete_win_rate == pytest.approx(published["discrete_win_rate"], abs=1e-6)
    assert rate.n_total == int(published["n_total"]) == published["n_rows"]
    assert rate.n_dropped == 0


def test_the_replay_puts_both_orders_to_the_test() -> None:
    with gzip.open(REPLAY / "phi-2.jsonl.gz", "rt", encoding="utf-8") as lines:
        swapped = [is_swapped(json.loads(line)["instruction"]) for line in lines]
    assert 0.4 < sum(swapped) / len(swapped) < 0.6
