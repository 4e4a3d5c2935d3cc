"""Equation 9 with every intermediate enumerated is the exact marginal, on systems of tables."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from sysdpo.components.tabular import Tabular
from sysdpo.graph import SystemGraph
from sysdpo.losses import sampling_margin
from sysdpo.sampling.strategies import DiverseBeam, Sampler
from sysdpo.system import CompoundSystem, Pair
from sysdpo.training.objectives import Sampling
from tests.systems import perturb

X, Y, W, Z = ["p", "q", "r"], ["a", "b", "c", "d"], [0, 1, 2], ["win", "lose", "draw"]


def chain() -> CompoundSystem:
    """x -> y -> z, with x a parent of z too: p(z | x) = sum_y p(y | x) p(z | x, y)."""
    components = {
        "first": Tabular(Y, {"x": X}, scale=1.0, seed=1),
        "second": Tabular(Z, {"x": X, "y": Y}, scale=1.0, seed=2),
    }
    graph = SystemGraph(
        {
            "x": {"role": "input"},
            "y": {"role": "intermediate", "component": "first", "parents": ["x"]},
            "z": {"role": "final", "component": "second", "parents": ["x", "y"]},
        }
    )
    return CompoundSystem(graph, components)


def diamond() -> CompoundSystem:
    """x -> y, x -> y -> w, (y, w) -> z: two intermediates, summed out jointly."""
    components = {
        "first": Tabular(Y, {"x": X}, scale=1.0, seed=3),
        "middle": Tabular(W, {"x": X, "y": Y}, scale=1.0, seed=4),
        "last": Tabular(Z, {"y": Y, "w": W}, scale=1.0, seed=5),
    }
    graph = SystemGraph(
        {
            "x": {"role": "input"},
            "y": {"role": "intermediate", "component": "first", "parents": ["x"]},
            "w": {"role": "intermediate", "component": "middle", "parents": ["x", "y"]},
            "z": {"role": "final", "component": "last", "parents": ["y", "w"]},
        }
    )
    return CompoundSystem(graph, components)


def marginal(system: CompoundSystem, which: str) -> Tensor:
    """p(z | x) as matrix products of the tables, [x, z]; no code of the system is used."""

    def table(name: str) -> Tensor:
        component: Any = system.components[name]
        logits = component.logits if which == "policy" else component.reference_logits
        return logits.detach().double().softmax(-1)

    if "middle" in system.components:
        first, middle, last = table("first"), table("middle").view(3, 4, 3), table("last").view(4, 3, 3)
        return torch.einsum("xy,xyw,ywz->xz", first, middle, last)
    return torch.einsum("xy,xyz->xz", table("first"), table("second").view(3, 4, 3))


def exact_margin(system: CompoundSystem, pair: Pair) -> float:
    x, chosen, rejected = (X.index(pair.inputs["x"]), Z.index(pair.chosen["z"]), Z.index(pair.rejected["z"]))
    ratio = marginal(system, "policy").log() - marginal(system, "reference").log()
    return float(ratio[x, chosen] - ratio[x, rejected])


PAIRS = [
    Pair(i, {"x": x}, {"z": chosen}, {"z": rejected})
    for i, (x, (chosen, rejected)) in enumerate(itertools.product(X, itertools.permutations(Z, 2)))
]


@pytest.mark.parametrize("make", [chain, diamond])
def test_sampling_margin_over_all_intermediates_is_the_exact_marginal(make: Any) -> None:
    system = make()
    perturb(system, 1.0)
    names = [v.name for v in system.graph.intermediates]
    domains = {"y": Y, "w": W}
    every = [dict(zip(names, values, strict=True)) for values in itertools.product(*(domains[n] for n in names))]

    def joint(side: str, quantity: str) -> Tensor:
        rows = [{**pair.row(side), **sample} for pair in PAIRS for sample in every]
        with torch.no_grad():
            return sum(system(rows, quantity).values()).view(len(PAIRS), len(every))  # type: ignore[union-attr]

    margins = sampling_margin(
        *(joint(side, q) for side in ("chosen", "rejected") for q in ("log_prob", "reference_log_prob"))
    )
    expected = [exact_margin(system, pair) for pair in PAIRS]
    assert margins.tolist() == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert max(map(abs, expected)) > 0.5


def test_compare_with_k_equal_to_all_values_is_exact_too() -> None:
    """The whole path: beams over the table find every y once, eq. 9 sums them."""
    system = chain()
    perturb(system, 1.0)
    objective = Sampling(Sampler(len(Y), DiverseBeam(diversity_penalty=100.0)))
    compared = objective.compare(system, PAIRS, range(len(PAIRS)))
    assert compared.counts == {"samples": 4.0 * len(PAIRS), "samples_missing": 0.0}
    assert compared.margin.tolist() == pytest.approx([exact_margin(system, p) for p in PAIRS], rel=1e-6, abs=1e-6)
    rows = marginal(system, "policy").log()
    chosen = [float(rows[X.index(p.inputs["x"]), Z.index(p.chosen["z"])]) for p in PAIRS]
    assert compared.logps["chosen"].tolist() == pytest.approx(chosen, rel=1e-6, abs=1e-6)


def test_its_gradient_is_that_of_the_exact_marginal() -> None:
    """Through both factors, log p(y | x) as well as log p(z | x, y)."""
    system = chain()
    perturb(system, 1.0)
    objective = Sampling(Sampler(len(Y), DiverseBeam(diversity_penalty=100.0)))
    objective.compare(system, PAIRS[:1], [0]).margin.sum().backward()
    tables: dict[str, Any] = {
        n: system.components[n].logits.detach().clone().requires_grad_() for n in system.components
    }
    exact = torch.einsum("xy,xyz->xz", tables["first"].softmax(-1), tables["second"].softmax(-1).view(3, 4, 3)).log()
    pair = PAIRS[0]
    (exact[X.index(pair.inputs["x"]), Z.index(pair.chosen["z"])] - exact[0, Z.index(pair.rejected["z"])]).backward()
    for name, leaf in tables.items():
        gradient = system.components[name].logits.grad
        assert torch.allclose(gradient, leaf.grad, atol=1e-6), name  # type: ignore[arg-type]
        assert gradient.abs().max() > 1e-3  # type: ignore[union-attr]
