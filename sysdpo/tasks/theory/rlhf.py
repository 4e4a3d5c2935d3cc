"""The RLHF half of proposition 1: the maximum of equation 7 is that of equation 10, and perfect (definition 1)."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sysdpo.system import CompoundSystem
from sysdpo.tasks.theory.alignment import DRAFTS, WEIGHTS, Weights, perfection_error
from sysdpo.tasks.theory.systems import log_marginal, single, two_stages

STEPS, SHARE = 60, 0.5
"""Steps of the natural gradient, each of them this share of the way that would be the whole one on a single table."""


def maximise_rlhf(system: CompoundSystem, weights: Weights, beta: float) -> dict[str, float]:
    """Maximise equation 7 and hold what comes out against equation 10 and definition 1.

    The reward of the Bradley-Terry oracle is r*(x, z) = log w(z), x is uniform, and both the expectation and the
    divergence are exact sums over z of p(z | x), the intermediate summed out. Ascent is by the natural gradient: the
    plain one is proportional to p(z | x), and takes for ever where the optimum is nearly deterministic.

    Returns:
        `equation_10_error`: the largest |r* - beta log p(z|x)/p_ref(z|x) - beta log G(x)|, with G(x) by its
        definition; `log_ratio_error`: of definition 1, in nats; `objective_gap`: what the objective has left below
        its largest value, beta E[log G(x)].
    """
    system = system.double()
    reward = torch.tensor([[math.log(w) for w in weight.values()] for weight in weights.values()]).double()
    with torch.no_grad(), system.reference():
        reference = log_marginal(system, len(reward))

    def advantage(log_p: Tensor) -> Tensor:
        return reward - beta * (log_p - reference)  # its mean under p is equation 7

    parameters = list(system.parameters())
    for _ in range(STEPS):
        log_p = log_marginal(system, len(reward), differentiable=True)
        gradients = [torch.autograd.grad(v, parameters, retain_graph=True) for v in log_p.flatten()]
        jacobian = torch.stack([torch.cat([g.flatten() for g in row]) for row in gradients])
        # Fisher matrix times step = gradient, as a least-squares problem whose rows have the weight p(z | x)
        root = log_p.detach().exp().sqrt().view(-1, 1)
        target = root * advantage(log_p.detach()).view(-1, 1) / beta
        step = torch.linalg.lstsq(root * jacobian, target, rcond=1e-9, driver="gelsd").solution.flatten()
        with torch.no_grad():
            for parameter, part in zip(parameters, step.split([p.numel() for p in parameters]), strict=True):
                parameter.add_(SHARE * part.view_as(parameter))
    log_p = log_marginal(system, len(reward))
    partition = (reference + reward / beta).logsumexp(-1, keepdim=True)  # log G(x)
    objective = (log_p.exp() * advantage(log_p)).sum(-1, keepdim=True)
    return {
        "equation_10_error": float((advantage(log_p) - beta * partition).abs().max()),
        "log_ratio_error": perfection_error(system, weights, beta),
        "objective_gap": float((beta * partition - objective).mean()),
    }


def check_rlhf(betas: Sequence[float], seed: int) -> list[dict[str, Any]]:
    """For each beta: one model and two stages, from a uniform reference and from another."""
    inputs, answers = list(WEIGHTS), list(WEIGHTS["p"])
    other = torch.randn(len(inputs), len(answers), generator=torch.Generator().manual_seed(seed))
    makers: dict[tuple[str, str], Any] = {
        ("single", "uniform"): lambda: single(inputs, answers),
        ("two_stages", "uniform"): lambda: two_stages(inputs, DRAFTS, answers),
        ("single", "other"): lambda: single(inputs, answers, other),
        ("two_stages", "other"): lambda: two_stages(inputs, DRAFTS, answers, scale=1.0, seed=seed),
    }
    return [
        {"system": system, "reference": reference, "beta": beta, **maximise_rlhf(make(), WEIGHTS, beta)}
        for (system, reference), make in makers.items()
        for beta in betas
    ]
