"""Text systems learn: a joint run at `mini` beats the untrained system by more than three standard errors."""

import json
from pathlib import Path

import pytest

from tests.integration.commands import train_in_process


@pytest.mark.slow
def test_a_joint_run_beats_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On other prompts than the table's: `dataset.seed=1`. When it was settled: 58.4 with a standard error of 1.1."""
    arguments = ["experiment=table2", "scale=mini", f"outputs={tmp_path}", "dataset.seed=1", "logger=none"]
    assert train_in_process(arguments, monkeypatch) == 0
    found = json.loads((tmp_path / "table2" / "mini" / "sysdpo_sampling" / "seed=0" / "metrics.json").read_text())
    rate = found["wr_prompted"]
    assert rate["n"] == 1000
    assert rate["value"] - 50 > 3 * rate["se"], rate
