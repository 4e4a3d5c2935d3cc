"""Table 2 through its command: every row, nothing done twice, changed configs, killed runs, foreign data."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from peft import PeftConfig

from sysdpo.runs.resident import FORGET
from tests.integration.commands import start, train_in_process

ROWS = ["prompted", "sysdpo_sampling", "sysdpo_psi1", "sysdpo_psi2", "separate_dpo", "sysdpo_direct"]
ROWS += ["sysdpo_importance", "sysdpo_psi1_importance"]  # beyond the paper


def finish(process: Any) -> str:
    output, errors = process.communicate(timeout=500)
    assert process.returncode == 0, errors
    return str(output)


def metrics_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())


def history_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All rows once, by the command of the README."""
    outputs = tmp_path_factory.mktemp("table2") / "outputs"
    finish(start("train.py", "-m", "scale=smoke", f"outputs={outputs}"))
    return outputs / "table2" / "smoke"


def test_every_row_has_its_figures_and_files(table: Path) -> None:
    for row in ROWS:
        folder = table / row / "seed=0"
        metrics = metrics_of(folder)
        assert metrics["method"] == row
        for name in ("wr_chosen", "wr_prompted"):
            assert 0 <= metrics[name]["value"] <= 100, row
            assert metrics[name]["n"] == 14
        assert (folder / "config.yaml").exists()
        if FORGET.exists():  # torch alone takes 100 MB
            assert 100 < json.loads((folder / "budget.json").read_text())["memory_mb"] < 4000
        samples = [json.loads(line) for line in (folder / "samples" / "evaluation.jsonl").read_text().splitlines()]
        assert len(samples) == 14
        assert {"x", "y", "z"} <= samples[0].keys()
        adapters = folder / "adapters"
        trained = {p.name for p in adapters.iterdir()} if adapters.exists() else set()
        alone = {"sysdpo_psi1": {"psi1"}, "sysdpo_psi1_importance": {"psi1"}, "sysdpo_psi2": {"psi2"}}
        expected = {"prompted": set(), **alone}.get(row, {"psi1", "psi2"})
        assert trained == expected, row
        for name in trained:
            assert PeftConfig.from_pretrained(str(adapters / name)).r == 16
            assert not [p for p in (adapters / name).iterdir() if p.is_dir()]
    # against the very same answers every row is a draw
    assert metrics_of(table / "prompted" / "seed=0")["wr_prompted"]["value"] == 50.0


def test_losses_start_at_ln_2_and_are_logged_by_component(table: Path) -> None:
    for row in (r for r in ROWS if r not in ("prompted", "separate_dpo")):
        history = history_of(table / row / "seed=0")
        assert [line["step"] for line in history] == [1, 2, 3]
        assert history[0]["loss"] == pytest.approx(0.693147, abs=1e-5)
        for name in ("rewards/margins", "rewards/accuracies", "logps/chosen", "grad_norm", "components/psi1/margin"):
            assert name in history[0], name
        samples = [name for name in history[0] if name.startswith("sampling/")]
        assert bool(samples) == (row != "sysdpo_direct"), row
        for name in samples:
            assert metrics_of(table / row / "seed=0")[name] == pytest.approx(sum(h[name] for h in history) / 3), name
    assert history_of(table / "sysdpo_psi1" / "seed=0")[2]["components/psi2/margin"] == 0.0
    assert history_of(table / "sysdpo_psi1_importance" / "seed=0")[0]["grad_norm/psi1"] > 0


def test_a_curve_over_training_ends_at_the_figure_and_meets_a_baseline_drawn_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On all rows and with the last weights kept, the last point of the curve is the figure of the table."""
    common = ["scale=smoke", f"outputs={tmp_path}", "training.evaluate_every=2", "curve_rows=14"]
    common += ["training.validate_every=0"]
    assert train_in_process([*common, "method=sysdpo_sampling"], monkeypatch) == 0
    data = tmp_path / "table2" / "smoke" / "data"
    baselines = {path: path.stat().st_mtime_ns for path in data.glob("untrained-*.jsonl")}
    assert len(baselines) == 1
    assert train_in_process([*common, "method=sysdpo_psi2"], monkeypatch) == 0
    assert {path: path.stat().st_mtime_ns for path in data.glob("untrained-*.jsonl")} == baselines
    starts = set()
    for method in ("sysdpo_sampling", "sysdpo_psi2"):
        folder = tmp_path / "table2" / "smoke" / method / "seed=0"
        curve = {line["step"]: line for line in history_of(folder) if "evaluation/wr_prompted" in line}
        assert list(curve) == [0, 2, 3]
        starts.add(curve[0]["evaluation/wr_prompted"])
        for name in ("wr_prompted", "wr_chosen"):
            assert curve[3][f"evaluation/{name}"] == metrics_of(folder)[name]["value"]
            assert curve[3][f"evaluation/{name}/se"] == metrics_of(folder)[name]["se"]
    assert len(starts) == 1  # nothing is trained yet
    drafts = [json.loads(line)["y"] for line in next(iter(baselines)).read_text(encoding="utf-8").splitlines()]
    samples = [
        json.loads(line)
        for line in (tmp_path / "table2/smoke/sysdpo_psi2/seed=0/samples/evaluation.jsonl")
        .read_text("utf-8")
        .splitlines()
    ]
    same = sum(draft == line["y"] for draft, line in zip(drafts, samples, strict=True))
    assert same < len(drafts) / 2  # the first model is untrained in both; only its draws differ


def test_every_component_that_a_row_trains_moves(table: Path) -> None:
    """At smoke drafts are short enough that both of two samples count: psi1's gradient is not rounded away."""
    trained = {"sysdpo_psi1": ["psi1"], "sysdpo_psi1_importance": ["psi1"], "sysdpo_psi2": ["psi2"]}
    for row in set(ROWS) - {"prompted", "separate_dpo"}:
        for line in history_of(table / row / "seed=0"):
            assert all(line[f"grad_norm/{name}"] > 1e-7 for name in trained.get(row, ["psi1", "psi2"])), (row, line)
    last = history_of(table / "sysdpo_sampling" / "seed=0")[-1]
    assert last["sampling/effective_samples"] > 1
    assert last["components/psi1/margin"] != 0


def test_the_notebook_reads_the_runs(
    table: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SYSDPO_RUNS", str(table))
    notebook = json.loads((Path(__file__).parents[2] / "notebooks" / "table2.ipynb").read_text(encoding="utf-8"))
    names: dict[str, Any] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    printed = capsys.readouterr().out
    assert all(f"{row:16} seed 0" in printed for row in ROWS)
    assert printed.count("before:") == 5


def test_again_trains_nothing_and_a_changed_config_sets_the_old_run_aside(
    table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = table.parent.parent
    files = [table / row / "seed=0" / name for row in ROWS for name in ("metrics.json", "config.yaml")]
    before = {path: path.stat().st_mtime_ns for path in files}
    started = time.monotonic()
    assert train_in_process(["-m", "scale=smoke", f"outputs={outputs}"], monkeypatch) == 0
    assert time.monotonic() - started < 30
    assert {path: path.stat().st_mtime_ns for path in files} == before

    old = (table / "sysdpo_psi2" / "seed=0" / "metrics.json").read_bytes()
    assert train_in_process(["scale=smoke", f"outputs={outputs}", "method=sysdpo_psi2", "beta=0.7"], monkeypatch) == 0
    aside = table / "sysdpo_psi2" / ".seed=0.superseded-1"
    assert (aside / "metrics.json").read_bytes() == old
    assert (table / "sysdpo_psi2" / "seed=0" / "metrics.json").exists()
    unchanged = [path for path in files if "sysdpo_psi2" not in str(path)]
    assert all(path.stat().st_mtime_ns == before[path] for path in unchanged)


def test_a_killed_run_goes_on_from_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL in the middle of training; the same command ends as a run that was never killed."""
    common = ("scale=smoke", "training.steps=12", "training.checkpoint_every=1", "evaluation_batch_size=14")
    common += ("dataset.prompts=14", "training.validate_every=0")
    folder = tmp_path / "killed" / "table2" / "smoke" / "sysdpo_sampling" / "seed=0"
    process = start("train.py", *common, f"outputs={tmp_path / 'killed'}")
    log = folder / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        if log.exists() and len(log.read_text().splitlines()) >= 4:
            os.kill(process.pid, signal.SIGKILL)
            break
        time.sleep(0.02)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (folder / "metrics.json").exists()
    done = len(log.read_text().splitlines())
    assert 4 <= done < 12

    for name in ("killed", "whole"):
        assert train_in_process([*common, f"outputs={tmp_path / name}"], monkeypatch) == 0
    whole = tmp_path / "whole" / "table2" / "smoke" / "sysdpo_sampling" / "seed=0"
    killed_history, whole_history = history_of(folder), history_of(whole)
    assert [line["step"] for line in killed_history] == list(range(1, 13))
    for ours, reference in zip(killed_history, whole_history, strict=True):
        for name in ("loss", "rewards/margins", "grad_norm"):
            assert ours[name] == pytest.approx(reference[name], abs=1e-5, rel=1e-4), (ours["step"], name)
    assert metrics_of(folder)["wr_chosen"] == metrics_of(whole)["wr_chosen"]


def test_foreign_data_take_the_same_path(shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real rows of orca_dpo_pairs, without a judge: train, answer, keep the weights."""
    arguments = [
        "scale=smoke",
        f"outputs={tmp_path}",
        "objective=sampling",
        "dataset=jsonl",
        f"dataset.path={shared_data / 'orca_pairs_sample.jsonl'}",
        "dataset.inputs={x:'{question}'}",
        "dataset.overlong=drop",  # one token a byte here
        "dataset.limit=8",
        "dataset.evaluation=2",
        "judge=none",
    ]
    assert train_in_process(arguments, monkeypatch) == 0
    folder = tmp_path / "table2" / "smoke" / "sysdpo_sampling" / "seed=0"
    history = history_of(folder)
    assert [line["step"] for line in history] == [1, 2, 3]
    assert history[0]["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert history[-1]["count/samples"] == 8  # 4 pairs, K = 2
    assert {p.name for p in (folder / "adapters").iterdir()} == {"psi1", "psi2"}
    samples = [json.loads(line) for line in (folder / "samples" / "evaluation.jsonl").read_text().splitlines()]
    assert len(samples) == 2
    assert all(isinstance(row["z"], str) for row in samples)
