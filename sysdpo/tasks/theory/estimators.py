"""Bias and variance of the margin and of the first component's gradient: equation 9 against importance weighting.

Everything is held against enumeration. The margins are the library's own `sampling_margin`, and so is what each draw's
log-probability receives of their gradient; for a table of logits the rest of the chain rule is the score,
d log p(y) / d logits = onehot(y) - p.
"""

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sysdpo.losses import posterior_agreement, sampling_margin
from sysdpo.tasks.theory.settings import TheorySettings
from sysdpo.tasks.theory.systems import tables, two_stages

METHODS = ("diverse_beam", "monte_carlo", "importance")
"""Eq. 9 over the K most probable values, eq. 9 over K draws without their repeats, K draws importance-weighted."""

WORDS = 16
"""Values of each of the draft's words that do not matter (`signal_by_length`)."""


@dataclass(frozen=True)
class Sampled:
    """N margins, each from K draws, and what they tell of the draws.

    `margin` [N], `gradient` [N, D] of the margin by the first component's D logits, `log_weights` [2, N, K].
    """

    margin: Tensor
    gradient: Tensor
    log_weights: Tensor


def sampled_margin(
    prior: Tensor,
    likelihood: Tensor,
    reference: Tensor,
    drawn: Tensor,
    missing: Tensor,
    weighted: bool,
    wording: float | Tensor = 0.0,
) -> Sampled:
    """Margins from draws of y, and their gradient by the logits of p(y).

    Args:
        prior: log p(y | x) of everything that can be drawn, [N, D].
        likelihood: log p(z | x, y) of the chosen and the rejected answer, [2, N, D].
        reference: the reference's log p(y | x) p(z | x, y), [2, N, D].
        drawn: which y, [N, K].
        missing: True where a row has fewer than K samples, [N, K].
        weighted: divide by the probability of drawing.
        wording: log-probability of what a draw has beside y and z does not depend on, the reference's too, [N, K].
    """
    log_prior = (prior.gather(-1, drawn) + wording).requires_grad_()
    joint = log_prior + torch.stack([side.gather(-1, drawn) for side in likelihood])
    policy = joint.masked_fill(missing, -torch.inf)
    others = torch.stack([side.gather(-1, drawn) + wording for side in reference]).masked_fill(missing, -torch.inf)
    proposal = log_prior.detach() if weighted else None
    margin = sampling_margin(policy[0], others[0], policy[1], others[1], proposal)
    (received,) = torch.autograd.grad(margin.sum(), log_prior)  # of each draw: w_chosen - w_rejected
    gradient = torch.zeros_like(prior).scatter_add(-1, drawn, received)
    gradient = gradient - received.sum(-1, keepdim=True) * prior.exp()
    return Sampled(margin.detach(), gradient, (policy if proposal is None else policy - proposal).detach())


def repeated(drawn: Tensor) -> Tensor:
    """Which draws of a row were there before, [N, K]."""
    same = drawn[:, :, None] == drawn[:, None, :]
    return same.tril(-1).any(-1)


def error_by_samples(settings: TheorySettings) -> list[dict[str, Any]]:
    """For each K and method: errors of the margin (nats) and of the gradient, as shares of the exact one's length.

    `margin_bias` is the mean over pairs of |mean error|, `margin_sd` the standard deviation over draws;
    `gradient_share` is what arrives of the exact gradient on average (its projection on it), `gradient_bias` and
    `gradient_sd` the lengths of the mean error and of the scatter about the mean.
    """
    prior, likelihood, reference = _pairs(settings)
    exact = sampled_margin(prior, likelihood, reference, *_every(prior), False)
    repeats, generator = 10 * settings.repeats, torch.Generator().manual_seed(settings.seed)
    rows = []
    for k, method in itertools.product(settings.samples, METHODS):
        n = 1 if method == "diverse_beam" else repeats
        wide = prior.repeat_interleave(n, 0)
        if method == "diverse_beam":
            drawn = wide.topk(k, -1).indices
        else:
            drawn = torch.multinomial(wide.exp(), k, replacement=True, generator=generator)
        missing = repeated(drawn) if method == "monte_carlo" else torch.zeros_like(drawn, dtype=torch.bool)
        found = sampled_margin(
            wide,
            likelihood.repeat_interleave(n, 1),
            reference.repeat_interleave(n, 1),
            drawn,
            missing,
            method == "importance",
        )
        rows.append({"method": method, "k": k, **_errors(found, exact, n)})
    return rows


def _pairs(settings: TheorySettings) -> tuple[Tensor, Tensor, Tensor]:
    """All pairs of three answers under four inputs, of a policy that training has moved away from its reference."""
    inputs, answers = list(range(4)), list(range(3))
    system = two_stages(inputs, list(range(settings.drafts)), answers, scale=2.0, seed=settings.seed)
    before = tables(system)
    generator = torch.Generator().manual_seed(settings.seed)
    with torch.no_grad():
        for parameter in system.parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))
    first, second = tables(system)
    pairs = list(itertools.combinations(answers, 2))

    def sides(table: Tensor) -> Tensor:
        by_answer = table.view(len(inputs), settings.drafts, len(answers)).movedim(-1, 0)  # [z, x, y]
        return torch.stack([torch.cat([by_answer[pair[side]] for pair in pairs]) for side in (0, 1)])

    wide_prior = before[0].repeat(len(pairs), 1)
    return first.repeat(len(pairs), 1), sides(second), sides(before[1]) + wide_prior


def _every(prior: Tensor) -> tuple[Tensor, Tensor]:
    drawn = torch.arange(prior.shape[-1]).expand_as(prior)
    return drawn, torch.zeros_like(drawn, dtype=torch.bool)


def _errors(found: Sampled, exact: Sampled, n: int) -> dict[str, float]:
    margin = found.margin.view(-1, n)
    gradient = found.gradient.view(len(margin), n, -1)
    mean = gradient.mean(1)
    size = exact.gradient.square().sum()
    effective, variation = posterior_agreement(found.log_weights)
    return {
        "margin_bias": float((margin.mean(1) - exact.margin).abs().mean()),
        "margin_sd": float(margin.var(1, unbiased=False).mean().sqrt()),
        "gradient_share": float((mean * exact.gradient).sum() / size),
        "gradient_bias": float(((mean - exact.gradient).square().sum() / size).sqrt()),
        "gradient_sd": float(((gradient - mean[:, None]).square().sum(-1).mean(1).sum() / size).sqrt()),
        "effective_samples": float(effective.mean()),
        "total_variation": float(variation.mean()),
    }


def signal_by_length(settings: TheorySettings) -> list[dict[str, Any]]:
    """What becomes of the first component's gradient as its texts grow longer, at the start of training.

    A draft is one of eight contents, on which the answer depends, followed by words on which it does not. The words
    cancel from log p(z | x), so that the exact margin and its gradient are those of the content alone, whatever the
    length; in equation 9 they stay, as differences of log p(y | x) between samples. Each word has 16 values with
    logits of standard deviation 2 (1.6 nats of entropy).

    Returns:
        One row for each number of words and method, as `error_by_samples` has them, with `spread`: the mean difference
        between the largest and the second largest log p(y | x) among the draws, in nats.
    """
    contents, k, repeats = 8, 4, 10 * settings.repeats
    generator = torch.Generator().manual_seed(settings.seed)
    prior, answers = (torch.randn(shape, generator=generator).double() for shape in ((1, contents), (contents, 2)))
    words = (2.0 * torch.randn(max(settings.lengths), WORDS, generator=generator).double()).log_softmax(-1)
    prior, likelihood = prior.log_softmax(-1), answers.log_softmax(-1).T[:, None]  # [1, D], [2, 1, D]
    exact = sampled_margin(prior, likelihood, likelihood + prior, *_every(prior), False)
    wide, sides = prior.expand(repeats, -1), likelihood.expand(-1, repeats, -1)
    rows = []
    for length, method in itertools.product(settings.lengths, METHODS[1:]):
        drawn = torch.multinomial(wide.exp(), k, replacement=True, generator=generator)
        text = torch.zeros(repeats, k, length, dtype=torch.long)
        for position, word in enumerate(words[:length]):
            chosen = torch.multinomial(word.exp(), repeats * k, replacement=True, generator=generator)
            text[..., position] = chosen.view(repeats, k)
        wording = words[torch.arange(length), text].sum(-1)  # log-probability of the words, [N, K]
        whole = torch.cat([drawn[..., None], text], -1)
        same = (whole[:, :, None] == whole[:, None]).all(-1).tril(-1).any(-1)  # contents and words repeated
        missing = same if method == "monte_carlo" else torch.zeros_like(same)
        found = sampled_margin(wide, sides, sides + wide, drawn, missing, method == "importance", wording)
        top = (wide.gather(-1, drawn) + wording).sort(-1, descending=True).values
        spread = float((top[:, 0] - top[:, 1]).mean())
        rows.append({"method": method, "length": length, "spread": spread, **_errors(found, exact, repeats)})
    return rows
