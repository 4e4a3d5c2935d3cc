"""Text systems learn: a short joint run at `mini` beats the untrained system by more than three standard errors."""

import json
from pathlib import Path

import pytest

from tests.integration.commands import train_in_process

SHORT = (
    "dataset.prompts=300",
    "dataset.evaluation_prompts=300",
    "dataset.seed=1",
    "training.steps=30",
    "training.learning_rate=1e-3",
    "training.checkpoint_every=30",
)
"""Prompts that no table uses, and few enough for a minute on one core."""


@pytest.mark.parametrize("experiment", ["table2", "table2_roles"])
def test_a_short_joint_run_beats_none(experiment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [f"experiment={experiment}", "scale=mini", f"outputs={tmp_path}", *SHORT]
    assert train_in_process(arguments, monkeypatch) == 0
    found = json.loads((tmp_path / experiment / "mini" / "sysdpo_sampling" / "seed=0" / "metrics.json").read_text())
    rate = found["wr_prompted"]
    assert rate["n"] == 300
    assert rate["value"] - 50 > 3 * rate["se"], rate
