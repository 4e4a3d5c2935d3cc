"""A checkpoint that a run has kept is judged as the run was while it trained."""

import json
import sys
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

from sysdpo.cli.commands import evaluate
from sysdpo.runs.folder import RunFolder, read_jsonl
from tests.integration.commands import train_in_process


def judged(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *arguments])
    GlobalHydra.instance().clear()
    try:
        evaluate()
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        GlobalHydra.instance().clear()
    return 0


def test_a_kept_step_has_the_figures_of_that_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["scale=smoke", "device=cpu", f"outputs={tmp_path}", "method=sysdpo_psi2", "training.learning_rate=0.05"]
    common += ["training.evaluate_every=1", "training.keep_checkpoints=null", "training.validate_every=0"]
    assert train_in_process(common, monkeypatch) == 0
    run = RunFolder(tmp_path / "table2" / "smoke" / "sysdpo_psi2" / "seed=0")
    logged = {line["step"]: line for line in run.history}
    for step in (1, 3):
        assert judged([f"run={run.path}", f"step={step}", "batch_size=200"], monkeypatch) == 0
    lines = {line["step"]: line for line in run.judged_steps}
    assert list(lines) == [1, 3]
    for step, line in lines.items():
        for name in ("wr_chosen", "wr_prompted", "wr_chosen/se"):
            assert line[f"evaluation/{name}"] == pytest.approx(logged[step][f"evaluation/{name}"]), (step, name)
    final = json.loads((run.path / "metrics.json").read_text())
    assert lines[3]["evaluation/wr_chosen"] == final["wr_chosen"]["value"]
    samples = {step: read_jsonl(run.step_folder(step) / "samples" / "evaluation.jsonl") for step in (1, 3)}
    texts = {step: [row["z"] for row in rows] for step, rows in samples.items()}
    assert texts[3] == [row["z"] for row in run.samples]  # the last weights are the run's
    assert len(texts[1]) == 14
    assert texts[1] != texts[3]

    capsys.readouterr()
    assert judged([f"run={run.path}", "step=55"], monkeypatch) == 2
    assert "step=55: is not kept" in (error := capsys.readouterr().err)
    assert "of these updates: 1, 2, 3" in error
    assert judged([f"run={tmp_path}", "step=1"], monkeypatch) == 2
