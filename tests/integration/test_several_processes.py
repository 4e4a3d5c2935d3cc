"""Processes that torchrun starts: the losses, weights and adapters of one process, in every layout."""

import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from tests.several import CASES, STEPS, history, launch, train
from tests.systems import make_tiny

QUICK = ["sampling", "images", "routing", "fresh"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every case in one process; made when it is asked for."""
    return tmp_path_factory.mktemp("alone")


def in_one_process(alone: Path, case: str) -> Path:
    if not (alone / case / "weights.pt").exists():
        train(case, alone / case)
    return alone / case


def assert_same(one: Path, several: Path, tolerance: float = 1e-5) -> None:
    ours, theirs = history(one), history(several)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs] == list(range(1, STEPS + 1))
    for line, other in zip(ours, theirs, strict=True):
        assert other == pytest.approx(line, abs=tolerance, rel=tolerance)
    weights, found = (torch.load(folder / "weights.pt") for folder in (one, several))
    assert weights.keys() == found.keys()
    assert any((found[name] != 0).any() for name in weights)
    for name, value in weights.items():
        torch.testing.assert_close(found[name], value, atol=tolerance, rtol=0)
    files = sorted(file.relative_to(one) for file in (one / "adapters").rglob("*.safetensors"))
    assert files == sorted(file.relative_to(several) for file in (several / "adapters").rglob("*.safetensors"))
    for file in files:
        saved, written = load_file(one / file), load_file(several / file)
        assert saved.keys() == written.keys()
        for name, value in saved.items():
            torch.testing.assert_close(written[name], value, atol=tolerance, rtol=0)


def from_checkpoint(source: Path, step: int, target: Path) -> None:
    """A run that was interrupted after this update."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("weights.pt", "adapters"))
    for file in (target / "checkpoints").iterdir():
        if file.name > f"step={step}.pt":
            file.unlink()


LAYOUTS = ("ddp", "fsdp")


def test_two_processes_train_what_one_trains(alone: Path, tmp_path: Path) -> None:
    """One case begins alone and ends in each layout, one begins in each and ends alone."""
    for case in QUICK:
        in_one_process(alone, case)
    for layout in LAYOUTS:
        from_checkpoint(alone / "images", 2, tmp_path / layout / "images")
    launch(2, ",".join(LAYOUTS), str(tmp_path), *QUICK)
    for layout in LAYOUTS:
        for case in QUICK:
            assert_same(alone / case, tmp_path / layout / case)
        back = tmp_path / "back" / layout
        from_checkpoint(tmp_path / layout / "sampling", 1, back)
        train("sampling", back)
        assert_same(alone / "sampling", back)
        model = make_tiny("{x}", seed=1, lora=None).causal_lm
        opened = PeftModel.from_pretrained(model, str(tmp_path / layout / "sampling" / "adapters" / "psi1"))
        moved = [p for name, p in opened.named_parameters() if "lora_B" in name]
        assert moved
        assert all(bool((p != 0).any()) for p in moved)


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 2, 4])
def test_every_system_in_every_layout(number: int, alone: Path, tmp_path: Path) -> None:
    for case in CASES:
        in_one_process(alone, case)
    launch(number, ",".join(LAYOUTS), str(tmp_path), *CASES)
    for layout in LAYOUTS:
        for name, case in CASES.items():
            assert_same(alone / name, tmp_path / layout / name, case.tolerance)
