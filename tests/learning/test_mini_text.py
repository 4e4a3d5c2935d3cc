"""Text systems learn: a short joint run at `mini` beats the untrained system by more than three standard errors."""

import json
from pathlib import Path

import pytest

from tests.integration.commands import train_in_process

SHORT = (
    "dataset.seed=1",  # prompts that the table does not use
    "dataset.prompts=600",
    "dataset.evaluation_prompts=400",
    "training.steps=50",
    "training.checkpoint_every=50",
)


def test_a_short_joint_run_beats_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["experiment=table2", "scale=mini", f"outputs={tmp_path}", "logger=none", *SHORT]
    assert train_in_process(arguments, monkeypatch) == 0
    found = json.loads((tmp_path / "table2" / "mini" / "sysdpo_sampling" / "seed=0" / "metrics.json").read_text())
    rate = found["wr_prompted"]
    assert rate["n"] == 400
    assert rate["value"] - 50 > 3 * rate["se"], rate
