"""docs/extending.md, word for word: its classes as a package outside this one, its YAML in a folder outside conf/."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.integration.commands import ROOT, start, train_in_process

BLOCK = re.compile(r"```(?:python|yaml)\n# (my_\S+)\n(.*?)```", re.DOTALL)
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """The page's files, blocks of one name after another."""
    for name, text in BLOCK.findall(PAGE):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
    return tmp_path


def test_the_complete_example_has_under_40_lines() -> None:
    component, system = BLOCK.findall(PAGE)[:2]
    assert (component[0], system[0]) == ("my_package/my_parts.py", "my_conf/system/with_tone.yaml")
    assert sum(bool(line.strip()) for _, text in (component, system) for line in text.splitlines()) < 40


def test_a_component_a_sampler_a_judge_and_a_data_set_through_the_command(parts: Path) -> None:
    command = re.search(r"train\.py (.*?)```", PAGE, re.DOTALL)
    assert command is not None
    arguments = command[1].replace("\\\n", " ").replace("my_conf", str(parts / "my_conf")).split()
    small = ["scale=smoke", "training.batch_size=3", "training.steps=4", "training.learning_rate=0.05"]
    process = start(
        "train.py",
        *arguments,
        *small,
        f"outputs={parts / 'outputs'}",
        PYTHONPATH=f"{ROOT}:{parts / 'my_package'}",
    )
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    folder = parts / "outputs" / "table2" / "smoke" / "sysdpo_sampling" / "seed=0"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["judge"] == "the shorter answer"
    assert metrics["wr_chosen"]["n"] == 2
    history = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert history[0]["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert history[-1]["rewards/margins"] > history[0]["rewards/margins"]
    assert {path.name for path in (folder / "adapters").iterdir()} == {"picker", "writer"}


@pytest.fixture
def importable(parts: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(parts / "my_package"))
    monkeypatch.setitem(sys.modules, "my_parts", None)  # so that it is forgotten afterwards
    monkeypatch.delitem(sys.modules, "my_parts")
    return parts


def test_the_component_learns_the_preferred_value(importable: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SysDPO-Direct: every pair prefers the calm tone, so its logit rises and the other falls by as much."""
    arguments: list[Any] = [
        "--config-dir",
        importable / "my_conf",
        "system=with_tone",
        "dataset=questions",
        "judge=none",
    ]
    arguments += ["scale=smoke", "method=sysdpo_direct", "training.learning_rate=0.05", f"outputs={importable}"]
    assert train_in_process(list(map(str, arguments)), monkeypatch) == 0
    folder = importable / "table2" / "smoke" / "sysdpo_direct" / "seed=0"
    calm, merry = torch.load(folder / "adapters" / "picker" / "logits.pt").tolist()
    assert calm == pytest.approx(-merry, abs=1e-6)
    assert calm > 0.01


def test_a_scorer_ranks_the_data_and_measures_the_images(importable: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--config-dir", str(importable / "my_conf"), "experiment=table1", "scale=smoke", "scorer=brightness"]
    assert train_in_process([*arguments, "method=before", f"outputs={importable}"], monkeypatch) == 0
    folder = importable / "table1" / "smoke" / "before" / "seed=0"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["scorer"] == "brightness"
    assert list(metrics["attributes"]) == ["bright"]
