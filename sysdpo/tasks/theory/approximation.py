"""The approximation error of equation 6: log p(z | x) and the margin from K samples, against the exact sums."""

import itertools
import math
from typing import Any

import torch
from torch import Tensor

from sysdpo.sampling.monte_carlo import MonteCarlo
from sysdpo.seeds import stream
from sysdpo.tasks.theory.settings import TheorySettings
from sysdpo.tasks.theory.systems import ALL, tables, two_stages


def importance_log_marginal(log_joint: Tensor, log_proposal: Tensor, correct: bool = True) -> Tensor:
    """log p(z | x) from K draws with replacement from a proposal q(y | x), importance-weighted.

    The mean of the weights p(y, z | x) / q(y | x) has the right expectation for every K, unlike equation 6, whose
    partial sum is always too small; the logarithm of that mean is again too small by half its relative variance.
    `correct` takes this term away by the jackknife (as Nowozin, 2018, does for evidence bounds).

    Args:
        log_joint: log p(y^k, z | x), [..., K], nats.
        log_proposal: log q(y^k | x), [..., K], nats.
    """
    weights = log_joint - log_proposal
    k = weights.shape[-1]
    estimate = weights.logsumexp(-1) - math.log(k)
    if not correct or k == 1:
        return estimate
    others = torch.stack([torch.cat([weights[..., :i], weights[..., i + 1 :]], -1) for i in range(k)])
    left_out = others.logsumexp(-1) - math.log(k - 1)  # [K, ...]
    return k * estimate - (k - 1) * left_out.mean(0)


def approximation_error(settings: TheorySettings) -> list[dict[str, Any]]:
    """Bias and root mean square error, in nats, of log p(z | x) (eq. 6) and of the margin (eq. 9), against K."""
    inputs, answers = list(range(4)), list(range(3))
    drafts = list(range(settings.drafts))
    system = two_stages(inputs, drafts, answers, scale=2.0, seed=settings.seed)
    reference = tables(system)
    generator = torch.Generator().manual_seed(settings.seed)
    with torch.no_grad():  # a policy that training has moved away from its reference
        for parameter in system.parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))
    policy = tables(system)
    first: Any = system.component("p_y")
    joint = {
        name: first_table[:, :, None] + second.view(len(inputs), len(drafts), len(answers))
        for name, (first_table, second) in {"policy": policy, "reference": reference}.items()
    }
    exact = {name: values.logsumexp(1) for name, values in joint.items()}  # [x, z]
    exact_margin = _margins(exact["policy"] - exact["reference"])
    rows = []
    for k in settings.samples:
        for method in ("diverse_beam", "monte_carlo", "importance_weighted", "importance_weighted_corrected"):
            repeats = 1 if method == "diverse_beam" else settings.repeats
            sampler = ALL if method == "diverse_beam" else MonteCarlo(distinct=method == "monte_carlo")
            parents = [{"x": x} for x in inputs for _ in range(repeats)]
            seeds = [stream(settings.seed, i) for i in range(len(parents))]
            drawn = first.sample(parents, k, seeds, sampler)
            estimates: dict[str, list[Tensor]] = {name: [] for name in joint}
            for row, values in zip(parents, drawn, strict=True):
                for name, table in joint.items():
                    terms = table[row["x"], values].T  # [z, K]: the same samples for every answer
                    if method.startswith("importance"):
                        proposal = policy[0][row["x"], values].expand_as(terms)
                        estimate = importance_log_marginal(terms, proposal, method.endswith("corrected"))
                    else:
                        estimate = terms.logsumexp(-1)
                    estimates[name].append(estimate)
            found = {name: torch.stack(v).view(len(inputs), repeats, -1) for name, v in estimates.items()}
            error = found["policy"] - exact["policy"][:, None]
            margin_error = _margins(found["policy"] - found["reference"]) - exact_margin[:, None]
            rows.append(
                {
                    "method": method,
                    "k": k,
                    "bias": float(error.mean(1).mean()),
                    "rmse": float(error.square().mean().sqrt()),
                    "margin_bias": float(margin_error.mean(1).abs().mean()),
                    "margin_rmse": float(margin_error.square().mean().sqrt()),
                }
            )
    return rows


def _margins(log_ratio: Tensor) -> Tensor:
    """Margins of all pairs of answers: [..., z] -> [..., pairs]."""
    pairs = list(itertools.combinations(range(log_ratio.shape[-1]), 2))
    return torch.stack([log_ratio[..., i] - log_ratio[..., j] for i, j in pairs], -1)
