"""Does Table 1 learn? A short joint run at `mini` against the system as it comes, on the same prompts and seeds."""

import json
import math
from pathlib import Path
from statistics import mean, stdev

from tests.integration.commands import start

SMALL = (
    "dataset.prompts_per_attribute=8",  # 96 prompts, 576 pairs
    "dataset.evaluation_prompts_per_attribute=16",  # 192 sequences
    "dataset.seed=1",  # prompts that the table does not use
    "training.steps=40",
    "training.learning_rate=2e-4",
    "training.checkpoint_every=40",
)


def scores(table: Path, row: str) -> list[float]:
    lines = (table / row / "seed=0" / "samples" / "evaluation.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["preference_score"] for line in lines]


def test_a_short_joint_run_beats_none_by_more_than_three_standard_errors(tmp_path: Path) -> None:
    process = start(
        "train.py",
        "-m",
        "experiment=table1",
        "scale=mini",
        "method=before,sysdpo_direct",
        f"outputs={tmp_path}",
        *SMALL,
    )
    _, errors = process.communicate(timeout=500)
    assert process.returncode == 0, errors
    table = tmp_path / "table1" / "mini"
    gains = [
        after - before for before, after in zip(scores(table, "before"), scores(table, "sysdpo_direct"), strict=True)
    ]
    assert len(gains) == 192
    assert mean(gains) > 3 * stdev(gains) / math.sqrt(len(gains))
