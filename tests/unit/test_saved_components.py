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
from tests.image_systems import LORA, image, make_diffusion
from tests.systems import make_tiny, perturb

TEXT = (["an answer", "another"], [{"x": "q"}, {"x": "r"}])
PICTURES = ([image(1), image(2)], [{"x": "fog"}, {"x": "snow"}])
KINDS: dict[str, tuple[Callable[[], Component], Any]] = {  # as their builders leave them
    "language model, LoRA": (lambda: make_tiny(seed=3, train=False), TEXT),
    "language model, all weights": (lambda: make_tiny(seed=3, lora=None, train=False), TEXT),
    "diffusion, LoRA": (lambda: make_diffusion(seed=3, lora=LORA, train=False), PICTURES),
    "diffusion, all weights": (lambda: make_diffusion(seed=3, train=False), PICTURES),
    "table": (
        lambda: Tabular(["a", "b"], {"x": ["q", "r"]}, scale=1.0, seed=3),
        (["a", "b"], [{"x": "q"}, {"x": "r"}]),
    ),
}


def make_system(kind: str) -> tuple[CompoundSystem, list[dict[str, Any]]]:
    """A system of one component, and two rows for it."""
    make, (values, parents) = KINDS[kind]
    graph = {"x": {"role": "input"}, "z": {"role": "final", "component": "c", "parents": ["x"]}}
    components = {"c": make()}
    rows = [{**p, "z": v} for v, p in zip(values, parents, strict=True)]
    return CompoundSystem(SystemGraph(graph, components), components), rows


@pytest.mark.parametrize("kind", KINDS)
def test_weights_come_back_and_the_reference_stays(tmp_path: Path, kind: str) -> None:
    (trained, rows), (fresh, _) = make_system(kind), make_system(kind)
    trained.train_only(["c"])
    noise = [5, 6]
    assert torch.allclose(fresh.log_ratio(rows, noise)["z"], torch.zeros(2), atol=1e-5)
    perturb(trained)
    expected = trained.log_ratio(rows, noise)["z"].detach()
    assert expected.abs().min() > 1e-4
    trained.save(tmp_path)
    assert fresh.restore(tmp_path) == ["c"]
    torch.testing.assert_close(fresh.log_ratio(rows, noise)["z"].detach(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_only_a_component_whose_weights_are_all_trained_keeps_a_second_copy(kind: str) -> None:
    system, rows = make_system(kind)
    bytes_alive = sum(p.nbytes for p in system.parameters())
    system.train_only([])
    assert system.component("c").frozen_copies() == []
    system.train_only(["c"])
    copies = [p for network in system.component("c").frozen_copies() for p in network.parameters()]
    assert sum(p.nbytes for p in copies) == (bytes_alive if "all weights" in kind else 0)
    assert not any(p.requires_grad for p in copies)
    noise = [5, 6]
    assert torch.allclose(system.log_ratio(rows, noise)["z"], torch.zeros(2), atol=1e-5)
    perturb(system)
    moved = system.log_ratio(rows, noise)["z"].detach()
    assert moved.abs().min() > 1e-4
    system.train_only([])
    system.train_only(["c"])  # frozen for a while: the reference is still the first one
    torch.testing.assert_close(system.log_ratio(rows, noise)["z"].detach(), moved)
