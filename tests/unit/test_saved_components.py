"""Saved and loaded again: a fresh component has the trained weights, and its reference is still the untrained one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sysdpo.components.base import Component
from sysdpo.components.tabular import Tabular
from sysdpo.graph import SystemGraph
from sysdpo.system import CompoundSystem
from sysdpo.training.checkpoints import load_components, save_components
from tests.image_systems import LORA, image, make_diffusion
from tests.systems import make_tiny, perturb

TEXT = (["an answer", "another"], [{"x": "q"}, {"x": "r"}])
PICTURES = ([image(1), image(2)], [{"x": "fog"}, {"x": "snow"}])
KINDS: dict[str, tuple[Callable[[], Component], Any]] = {
    "language model, LoRA": (lambda: make_tiny(seed=3), TEXT),
    "language model, all weights": (lambda: make_tiny(seed=3, lora=None), TEXT),
    "diffusion, LoRA": (lambda: make_diffusion(seed=3, lora=LORA), PICTURES),
    "diffusion, all weights": (lambda: make_diffusion(seed=3), PICTURES),
    "table": (
        lambda: Tabular(["a", "b"], {"x": ["q", "r"]}, scale=1.0, seed=3),
        (["a", "b"], [{"x": "q"}, {"x": "r"}]),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_weights_come_back_and_the_reference_stays(tmp_path: Path, kind: str) -> None:
    make, (values, parents) = KINDS[kind]

    def system() -> CompoundSystem:
        graph = {"x": {"role": "input"}, "z": {"role": "final", "component": "c", "parents": ["x"]}}
        components = {"c": make()}
        return CompoundSystem(SystemGraph(graph, components), components)

    trained, fresh = system(), system()
    rows = [{**p, "z": v} for v, p in zip(values, parents, strict=True)]
    noise = [5, 6]
    assert torch.allclose(fresh.log_ratio(rows, noise)["z"], torch.zeros(2), atol=1e-5)
    perturb(trained)
    expected = trained.log_ratio(rows, noise)["z"].detach()
    assert expected.abs().min() > 1e-4
    save_components(trained, ["c"], tmp_path)
    assert load_components(fresh, tmp_path) == ["c"]
    torch.testing.assert_close(fresh.log_ratio(rows, noise)["z"].detach(), expected, rtol=1e-4, atol=1e-5)
