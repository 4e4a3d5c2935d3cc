"""Commands given again: with other data, another judge, another way to write the same."""

import json
from pathlib import Path
from typing import Any

import pytest

from sysdpo.runs.folder import RunFolder
from tests.integration.commands import train_in_process

SMALL = ("scale=smoke", "dataset=jsonl", "dataset.evaluation=2", "dataset.validation=0", "training.validate_every=0")
SMALL += ("judge=none", "method=sysdpo_psi2", "training.checkpoint_every=1")


def write(path: Path, chosen: str) -> Path:
    rows = [{"prompt": f"p{i}", "chosen": f"{chosen} {i}", "rejected": "bad"} for i in range(8)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["logps/chosen"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_an_edited_file_is_another_run_and_another_spelling_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def run(outputs: str, *more: str) -> str:
        capfd.readouterr()
        assert train_in_process([*SMALL, f"outputs={outputs}", *more], monkeypatch) == 0
        return capfd.readouterr().out

    monkeypatch.chdir(tmp_path)
    data = write(tmp_path / "my data.jsonl", "good")
    folder = tmp_path / "o" / "table2" / "smoke" / "sysdpo_psi2" / "seed=0"
    assert "nothing to do" not in run("o", "dataset.path=my data.jsonl")
    first = losses(folder)
    for outputs, path in (("./o", "./my data.jsonl"), (str(tmp_path / "o"), str(data)), ("o/../o", "my data.jsonl")):
        assert "nothing to do" in run(outputs, f"dataset.path={path}")

    # interrupted after its first update, and the rows edited: nothing of the old ones may be in it
    (folder / "metrics.json").unlink()
    for step in (2, 3):
        (folder / "checkpoints" / f"step={step}.pt").unlink(missing_ok=True)
    write(data, "better and longer")
    assert "nothing to do" not in run("o", "dataset.path=my data.jsonl")
    assert "nothing to do" not in run("fresh", "dataset.path=my data.jsonl")
    edited = losses(folder)
    assert edited == losses(tmp_path / "fresh" / "table2" / "smoke" / "sysdpo_psi2" / "seed=0")
    assert all(new != old for new, old in zip(edited, first, strict=True))
    assert losses(folder.with_name(".seed=0.superseded-1")) == first


@pytest.mark.parametrize("trainer", ["joint", "separate"])
def test_a_new_judge_judges_and_trains_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trainer: str) -> None:
    common = ["scale=smoke", f"outputs={tmp_path}", f"trainer={trainer}", "training.validate_every=0"]
    if trainer == "joint":
        common += ["training.evaluate_every=3", "method=sysdpo_psi2"]
    assert train_in_process(common, monkeypatch) == 0
    folder = next(tmp_path.glob("table2/smoke/*/seed=0"))
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("checkpoints/**/*") if path.is_file()}
    assert kept
    history = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    first: dict[str, Any] = json.loads((folder / "metrics.json").read_text())

    def no_training(*_: Any, **__: Any) -> None:
        raise AssertionError("a weight would move")

    monkeypatch.setattr("torch.optim.AdamW.step", no_training)
    assert train_in_process([*common, "judge.temperature=5"], monkeypatch) == 0
    second = json.loads((folder / "metrics.json").read_text())
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert second["wr_chosen"]["value"] != first["wr_chosen"]["value"]
    assert second["best_step"] == first["best_step"]
    again = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    curve = [{k: v for k, v in line.items() if not k.startswith("evaluation/")} for line in history]
    assert again == [line for line in curve if len(line) > 1]  # points of the other judge are gone
    assert json.loads((folder.parent / ".seed=0.superseded-1" / "metrics.json").read_text()) == first

    assert train_in_process(common, monkeypatch) == 0  # back again: the same figures, the curve with them
    assert json.loads((folder / "metrics.json").read_text()) == first
    assert [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()] == history


def test_a_row_that_a_sweep_has_trained_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a table under the same judge with its figures, under another judge with its weights, and whole in itself."""
    small = ("dataset.prompts=12", "dataset.evaluation_prompts=4", "training.steps=2", "training.batch_size=2")
    common = ["scale=smoke", f"outputs={tmp_path}", "training.validate_every=0", "training.checkpoint_every=1", *small]
    assert train_in_process(["-m", *common, "beta=0.1,0.2"], monkeypatch) == 0
    table = tmp_path / "table2" / "smoke"
    swept = RunFolder(table / "sweeps" / "beta" / "beta=0.1,seed=0")

    def no_training(*_: Any, **__: Any) -> None:
        raise AssertionError("a weight would move")

    monkeypatch.setattr("torch.optim.AdamW.step", no_training)
    assert train_in_process([*common, "beta=0.1"], monkeypatch) == 0
    run = RunFolder(table / "sysdpo_sampling" / "seed=0")
    assert run.metrics == swept.metrics
    assert (run.fault(), run.history, run.samples) == (None, swept.history, swept.samples)
    assert "sweeps" not in str(run.config)
    assert (run.path / "run_id").read_text() != (swept.path / "run_id").read_text()

    assert train_in_process([*common, "beta=0.2", "judge.temperature=5", "experiment=peers"], monkeypatch) == 0
    other = RunFolder(tmp_path / "peers" / "smoke" / "sysdpo_sampling" / "seed=0")
    trained = RunFolder(table / "sweeps" / "beta" / "beta=0.2,seed=0")
    assert other.fault() is None
    assert other.history == trained.history
    assert other.metrics is not None
    assert trained.metrics is not None
    assert other.metrics["sampling/total_variation"] == trained.metrics["sampling/total_variation"]
    assert other.metrics["wr_chosen"]["value"] != trained.metrics["wr_chosen"]["value"]
    assert trained.fault() is None
    assert not list(other.path.parent.glob(".*superseded*"))
