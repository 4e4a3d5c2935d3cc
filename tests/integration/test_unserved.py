"""Rows of a table that its data cannot serve: named in the report with the reason, and the others go on."""

import json
from pathlib import Path

import pytest

from sysdpo.paths import CONF
from sysdpo.reporting.page import write_report
from sysdpo.runs.folder import RunFolder
from sysdpo.runs.identity import identity
from tests.integration.commands import train_in_process

COMMON = ["scale=smoke", "dataset=jsonl", "dataset.evaluation=2", "dataset.validation=0", "judge=none", "device=cpu"]
COMMON += ["training.validate_every=0", "training.steps=1"]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Final answers only, as recorded preferences are."""
    path = tmp_path / "rows.jsonl"
    rows = [{"x": f"q{i}", "chosen": f"good {i}", "rejected": "bad"} for i in range(6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_others_go_on_and_the_report_says_why(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    outputs = tmp_path / "outputs"
    common = [*COMMON, f"dataset.path={rows}", f"outputs={outputs}"]
    assert train_in_process(["-m", *common, "method=prompted,sysdpo_direct"], monkeypatch) == 0
    assert "not served by dataset=jsonl: method=sysdpo_direct,seed=0: row 1" in capsys.readouterr().out
    table = outputs / "table2" / "smoke"
    assert (table / "prompted" / "seed=0" / "metrics.json").exists()
    found = RunFolder(table / "sysdpo_direct" / "seed=0").unserved
    assert found is not None
    assert "lacks the variable 'y'" in found[1]

    config = {
        "experiment": "table2",
        "scale": "smoke",
        "table_folder": str(table),
        "rows": ["sysdpo_direct", "prompted"],
        "metrics": ["wr_prompted"],
        "title": "Table",
        "dataset": {"name": "jsonl"},
    }
    said = write_report(config, CONF / "method")
    assert "sysdpo_direct: the data set jsonl cannot serve it: row 1: 'chosen' lacks the variable 'y'" in said
    assert "No finished run" not in said
    assert "| SysDPO-Direct   |  not served |" in said
    assert "not served" in (table / "report" / "index.html").read_text()

    # a row that can be served after all forgets that it once could not
    RunFolder(table / "sysdpo_direct" / "seed=0").open({"seed": 0}, identity({"seed": 0}))
    assert RunFolder(table / "sysdpo_direct" / "seed=0").unserved is None


@pytest.mark.parametrize("arguments", [["method=sysdpo_direct"], ["-m", "method=sysdpo_direct", "seed=0,1"]])
def test_a_command_of_which_nothing_can_be_served_fails(
    arguments: list[str],
    rows: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    common = [*COMMON, f"dataset.path={rows}", f"outputs={tmp_path / 'outputs'}"]
    assert train_in_process([*arguments, *common], monkeypatch) == 2
    assert "row 1: 'chosen' lacks the variable 'y'; SysDPO-Direct needs it" in capsys.readouterr().err


def test_dropping_bad_rows_does_not_hide_that_none_is_left(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    common = [*COMMON, f"dataset.path={rows}", f"outputs={tmp_path / 'outputs'}", "dataset.bad_rows=drop"]
    assert train_in_process(["-m", *common, "method=prompted,sysdpo_direct"], monkeypatch) == 0
    assert "not served by dataset=jsonl: method=sysdpo_direct,seed=0: row 1" in capsys.readouterr().out
