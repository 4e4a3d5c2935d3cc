"""Notebooks at smoke, in this process: every cell runs, and what they print is what they say they print."""

import json
import math
import re
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from hydra.core.global_hydra import GlobalHydra

from tests.integration.commands import train_in_process

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"


def execute(name: str) -> dict[str, Any]:
    """Run the code cells one after another; returns their names."""
    GlobalHydra.instance().clear()
    matplotlib.use("Agg")
    names: dict[str, Any] = {}
    for cell in json.loads((NOTEBOOKS / name).read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    return names


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_are_committed_without_output(path: Path) -> None:
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


def test_quickstart(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("SYSDPO_SCALE", "smoke")
    names = execute("quickstart.ipynb")
    printed = capsys.readouterr().out
    assert "x --> y" in printed
    assert "margin 0.0" in printed
    log_probs = names["log_probs"]
    assert set(log_probs) == {"y", "z"}
    # the update was one along this pair's own gradient: its margin grows, by both components' terms together
    margin = names["after"].margin.item()
    assert margin > 0
    assert sum(term.item() for term in names["after"].terms.values()) == pytest.approx(margin, abs=1e-5)


def test_bring_your_own_system(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("SYSDPO_SCALE", "smoke")
    names = execute("bring_your_own_system.ipynb")
    printed = capsys.readouterr().out
    assert "draft --> length" in printed
    assert re.search(r"margins before training: \[-?0\.0\d*(e-\d+)?, -?0\.0\d*(e-\d+)?\]", printed)
    assert names["system"].trainable == ["writer", "editor"]
    assert names["compared"].margin.mean().item() > 0


def test_table1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["scale=smoke", "experiment=table1", f"outputs={tmp_path}"]
    for method in ("before", "sysdpo_direct"):
        assert train_in_process([*common, f"method={method}"], monkeypatch) == 0
    monkeypatch.setenv("SYSDPO_TABLE1", str(tmp_path / "table1" / "smoke"))
    capsys.readouterr()
    names = execute("table1.ipynb")
    printed = capsys.readouterr().out
    for method in ("before", "sysdpo_direct"):
        value = names["runs"][method][0].metrics["preference_score"]["value"]
        assert re.search(rf"{method} +preference_score +{value:.3f} ±", printed)
    assert printed.count(" -> ") == 12  # attributes
    assert "1 0.693" in printed  # the first update's loss is ln 2
    assert math.isclose(math.log(2), 0.693, abs_tol=1e-3)
    assert len(names["canvas"].axes) == 6
