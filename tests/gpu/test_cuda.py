"""The same values on a GPU as on a CPU."""

from pathlib import Path

import pytest
import torch

from sysdpo.training.objectives import Direct
from tests.image_systems import make_image_pairs, make_llm_diffusion
from tests.several import history, launch, train
from tests.systems import make_pairs_for, make_two_llm, perturb

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device"),
]


def test_margins_do_not_depend_on_the_device() -> None:
    system = make_two_llm()
    for name in system.components:
        perturb(system.component(name))
    pairs = make_pairs_for(system, 4)
    expected = Direct().compare(system, pairs, [0] * 4).margin
    margin = Direct().compare(system.to("cuda"), pairs, [0] * 4).margin
    torch.testing.assert_close(margin.cpu(), expected, rtol=1e-3, atol=1e-3)


def test_images_and_their_margins_do_not_depend_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    rows, found = [{"x": "one"}, {"x": "a longer second"}], []
    for device in ("cpu", "cuda"):
        system = make_llm_diffusion(device=device)
        perturb(system.component("captioner"))
        perturb(system.component("diffusion"))
        compared = Direct().compare(system.to(device), make_image_pairs(2), [0, 1])
        captions = [{**row, "y": "t", "captions": ["a", "b", "c"]} for row in rows]
        drawn = system.generate(captions, [5, 6], only=["z"])
        found.append((compared.margin.detach().cpu(), torch.stack([z for row in drawn for z in row["z"]])))
    for actual, expected in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("layout", ["ddp", "fsdp"])
@pytest.mark.parametrize("number", sorted({1, torch.cuda.device_count()}))
def test_processes_with_a_gpu_each_train_what_one_trains(
    number: int, layout: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By NCCL, on one GPU and on all that are there."""
    monkeypatch.setenv("DEVICE", "cuda")
    for case in ("direct", "sampling"):
        train(case, tmp_path / "alone" / case)
    launch(number, layout, str(tmp_path), "direct", "sampling")
    for case in ("direct", "sampling"):
        for line, other in zip(history(tmp_path / "alone" / case), history(tmp_path / layout / case), strict=True):
            assert other == pytest.approx(line, abs=1e-3, rel=1e-3)


def test_two_processes_on_one_gpu_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"processes have \d GPUs; start at most one for each GPU"):
        launch(1 + torch.cuda.device_count(), "ddp", str(tmp_path), "direct")
