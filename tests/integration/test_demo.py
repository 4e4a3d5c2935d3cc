"""scripts/generate.py on aligned runs of both tables at smoke, and its one-line errors."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from PIL import Image

from sysdpo.cli.command import command
from sysdpo.cli.overrides import as_text
from sysdpo.experiment.build import build_system
from sysdpo.experiment.demo import demonstrate, load_run
from sysdpo.runs.folder import RunFolder
from sysdpo.training.checkpoints import checkpoint_path, checkpoint_steps
from tests.integration.commands import train_in_process

QUESTION = "Name {three} rivers, it's \\ easy: a=b"
SIDES = ("before", "after")


def generate(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """`scripts/generate.py` with these arguments; returns the exit status."""

    def task(config: Any) -> None:
        print(demonstrate(config))

    monkeypatch.setattr(sys, "argv", as_text(["generate.py", *arguments], ("ask",)))
    GlobalHydra.instance().clear()
    try:
        command(task, config_name="generate")()
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        GlobalHydra.instance().clear()
    return 0


@pytest.fixture(scope="module")
def text_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    outputs = tmp_path_factory.mktemp("text")
    settings = ["method=sysdpo_direct", "training.steps=4", "training.learning_rate=0.05", "training.validate_every=0"]
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert train_in_process(["scale=smoke", f"outputs={outputs}", *settings], monkeypatch) == 0
    return outputs / "table2" / "smoke" / "sysdpo_direct" / "seed=0"


def test_text_before_and_after_side_by_side(
    text_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate([f"run={text_run}", f"ask={QUESTION}", "samples=2"], monkeypatch) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"psi1, psi2 of {text_run}, seed 0")
    assert printed.count(f"x: {QUESTION}\n") == 2
    assert printed.count("y (intermediate)") == 2
    assert "No weights beat" not in printed  # nothing was validated
    before, after = ([line for line in printed.splitlines() if line.startswith(f"  {side}:")] for side in SIDES)
    assert len(before) == len(after) == 4  # two samples of two texts
    assert [line[9:] for line in before] != [line[9:] for line in after]


def test_the_reference_of_a_loaded_run_is_the_untrained_system(text_run: Path) -> None:
    run = RunFolder(text_run)
    system, trained = load_run(run)
    assert trained == ["psi1", "psi2"]
    rows = [{"x": "Q", "y": "draft", "z": "answer"}]
    weights = torch.load(
        checkpoint_path(text_run / "checkpoints", checkpoint_steps(text_run / "checkpoints")[0]), weights_only=True
    )["weights"]
    own = dict(system.named_parameters())
    for name, value in weights.items():
        torch.testing.assert_close(own[name].detach(), value)
    fresh = build_system(OmegaConf.create(run.config))
    for name in ("y", "z"):
        assert system.reference_log_prob(rows)[name].item() == pytest.approx(fresh.log_prob(rows)[name].item())
        assert system.log_prob(rows)[name].item() != pytest.approx(fresh.log_prob(rows)[name].item(), abs=1e-3)


def test_pictures_as_a_contact_sheet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_in_process(["experiment=table1", "scale=smoke", f"outputs={tmp_path / 'runs'}"], monkeypatch) == 0
    run = tmp_path / "runs" / "table1" / "smoke" / "sysdpo_direct" / "seed=0"
    capsys.readouterr()
    arguments = [f"run={run}", "ask=A lake with more and more fog", f"folder={tmp_path / 'sheets'}"]
    assert generate(arguments, monkeypatch) == 0
    printed = capsys.readouterr().out
    assert "captions (intermediate)" in printed
    sheet = Path(printed.splitlines()[-1])
    assert sheet == tmp_path / "sheets" / "sheet.png"
    with Image.open(sheet) as image:
        assert image.width > 1000  # two strips of three images beside each other
        assert len(set(image.convert("L").tobytes())) > 50


@pytest.mark.parametrize(
    ("change", "arguments", "parts"),
    [
        (None, ["run=/no/such/run", "ask=a"], ["run=/no/such/run", "no run in this folder"]),
        (None, ["ask=a"], ["run is not set"]),
        (None, ["run={run}"], ["reads x", 'ask="']),
        (None, ["run={run}", "ask= "], ["reads x", 'ask="']),
        (None, ["run={run}", "inputs={xx: a}"], ["unknown 'xx'", "did you mean 'x'"]),
        (None, ["run={run}", "ask=a", "samples=0"], ["samples=0"]),
        (None, ["run={run}", "ask=a", "seed=one"], ["seed=one"]),
        (None, ["run={run}", "ask=a", "sample=2"], ["did you mean 'samples'"]),
        (None, ["run={run}", f"ask={'long ' * 400}"], ["context"]),
        ("metrics.json", ["run={run}", "ask=a"], ["not finished"]),
        ("adapters", ["run={run}", "ask=a"], ["trained nothing"]),
    ],
)
def test_one_clear_line(
    text_run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: str | None,
    arguments: list[str],
    parts: list[str],
) -> None:
    aside = text_run / "aside"
    if change:
        (text_run / change).rename(aside)
    try:
        assert generate([a.replace("{run}", str(text_run)) for a in arguments], monkeypatch) == 2
    finally:
        if change:
            aside.rename(text_run / change)
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    for part in parts:
        assert part in lines[0]


@pytest.mark.parametrize(
    "text", ["a, b", "it's", "\\", "\\'", "a\\\\", "{x: 1}", "[1]", "a=b", "  two  ", "é ψ", "null"]
)
def test_any_text_reaches_the_config_as_it_is(text: str) -> None:
    (argument,) = as_text([f"ask={text}"], ("ask",))
    assert OverridesParser.create().parse_override(argument).value() == text
