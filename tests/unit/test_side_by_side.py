"""How `make benchmark` compares: turns, ratios, refusals, the summary and the page that shows it."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "scripts" / "benchmarks"
VARIANTS = """
import sys
sys.path.insert(0, {folder!r})
from side_by_side import serve

def ready(options, size, loss):
    def work():
        held = bytearray(size * 2**20)
        held[::4096] = bytes(len(held[::4096]))
        return {{"loss": loss + options["more"]}}
    return work

serve({{"ours": lambda o: ready(o, 64, 1.0), "theirs": lambda o: ready(o, 256, 1.0),
        "wrong": lambda o: ready(o, 1, 2.0), "broken": lambda o: 1 / 0}})
"""


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    for name in ("side_by_side", "run", "growth"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module("side_by_side")


def test_ways_are_measured_in_processes_of_their_own(tools: Any, tmp_path: Path) -> None:
    script = tmp_path / "ways.py"
    script.write_text(VARIANTS.format(folder=str(FOLDER)))
    turns = tools.measure(str(script), ["ours", "theirs"], {"more": 0.5, "device": "cpu"}, rounds=2)
    assert [len(those) for those in turns.values()] == [3, 3]  # one warms up
    assert turns["ours"][0]["loss"] == 1.5
    tools.check_equal(turns, "loss", 0.0)
    found = tools.memory_ratio(turns, "ours", "theirs")["ratio"]
    assert found == pytest.approx(64 / 256, rel=0.1)
    wrong = tools.measure(str(script), ["ours", "wrong"], {"more": 0.0, "device": "cpu"}, rounds=0)
    with pytest.raises(RuntimeError, match=r"round 0: loss of 'wrong' is 2.0, of 'ours' 1.0"):
        tools.check_equal(wrong, "loss", 0.5)
    tools.check_equal(wrong, "loss", 1.0)
    with pytest.raises(RuntimeError, match="broken: stopped with status 1"):
        tools.measure(str(script), ["broken"], {"more": 0.0, "device": "cpu"}, rounds=0)


def test_a_ratio_is_that_of_pairs(tools: Any) -> None:
    """Halves, equals and one and a half; a slow moment that falls on both sides cancels."""
    assert tools.ratio([1.0, 20.0, 3.0], [2.0, 20.0, 2.0]) == {"ratio": 1.0, "low": 0.5, "high": 1.5}
    turns = {"a": [{"seconds": 9.0}, {"seconds": 1.0}], "b": [{"seconds": 1.0}, {"seconds": 4.0}]}
    assert tools.seconds_ratio(turns, "a", "b")["ratio"] == 0.25  # without the turn that warms up


def test_an_exponent_is_the_slope_of_logarithms(tools: Any) -> None:
    growth = importlib.import_module("growth")
    sizes = (1, 2, 4, 8)
    assert growth.exponent(sizes, [3 * size**1.5 for size in sizes]) == pytest.approx(1.5)


def test_the_summary_and_its_table(tools: Any, tmp_path: Path) -> None:
    run = importlib.import_module("run")
    (tmp_path / "parts").mkdir()
    names = {"beams": ["dbs_vs_one_by_one"], "training_step": ["step_time_vs_trl", "step_memory_vs_trl"]}
    for part, figures in names.items():
        made = [{"name": name, "ratio": 0.4, "low": 0.3, "high": 0.5, "machine": "M"} for name in figures]
        (tmp_path / "parts" / f"{part}-cpu.json").write_text(
            json.dumps({"part": part, "options": {"device": "cpu"}, "figures": made})
        )
    summary = run.summarise(tmp_path)
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert [figure["name"] for figure in summary] == ["step_time_vs_trl", "step_memory_vs_trl", "dbs_vs_one_by_one"]
    lines = run.table(summary).splitlines()
    assert "| `step_time_vs_trl` | 0.40 | 0.30 – 0.50 | at most 0.5: reached | M |" in lines
    assert "| `dbs_vs_one_by_one` | 0.40 | 0.30 – 0.50 | at most 0.35: not reached | M |" in lines
    assert "| `sampling_update_vs_plain` | pending | | at most 0.4 | |" in lines
    page = tmp_path / "page.md"
    page.write_text(f"before {run.BEGIN} old {run.END} after")
    run.write_page(page, "new")
    assert page.read_text() == f"before {run.BEGIN}\n\nnew\n\n{run.END} after"


def test_the_page_shows_what_was_measured(tools: Any) -> None:
    run = importlib.import_module("run")
    summary = json.loads((run.RESULTS / "summary.json").read_text(encoding="utf-8"))
    assert all(figure.keys() == {"name", "ratio", "low", "high", "machine"} for figure in summary)
    assert run.table(summary) in run.PAGE.read_text(encoding="utf-8")
