"""The paper's mathematics as pure functions on tensors: fp32 in, fp32 out, no models, no I/O.

A *margin* says how much more the policy favours the chosen outcome over the rejected one than the reference does, in
nats; a *link* turns margins into a loss. Shapes: B preference pairs, V generated variables, K joint samples of the
intermediates, N images.
"""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

Link = Literal["sigmoid", "ipo", "hinge"]
Estimator = Literal["sum", "importance"]
Reduction = Literal["mean", "sum"]


def direct_margin(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Equation 4: the graph factorises the likelihood (eq. 3), so the log-ratios of its variables add up.

    Args:
        chosen, rejected: log p(v | Pa(v)) - log p_ref(v | Pa(v)) of every variable, in nats, [B, V] each.

    Returns:
        Margins in nats, [B].
    """
    if chosen.shape != rejected.shape or chosen.dim() != 2:
        raise ValueError(f"direct_margin needs two [B, V] tensors, got {tuple(chosen.shape)}, {tuple(rejected.shape)}")
    return chosen.float().sum(-1) - rejected.float().sum(-1)


def sampling_margin(
    policy_chosen: Tensor,
    reference_chosen: Tensor,
    policy_rejected: Tensor,
    reference_rejected: Tensor,
    proposal: Tensor | None = None,
) -> Tensor:
    """Equation 9: the intermediates are summed out over K joint samples, shared by both outcomes.

    Without a proposal this is the paper's sum over K distinct samples. With one, each sample is divided by the
    probability with which it was drawn (importance weighting): the sum over draws with replacement, divided by K,
    estimates the whole sum over all intermediates. The division by K is left out because it cancels: policy and
    reference of one side have the same samples, in a row with fewer samples too.

    Args:
        policy_chosen, …: joint log-probabilities log p(y^alpha, z | x) in nats, [B, K] each. A row with fewer than
            K samples is filled up with -inf in all four.
        proposal: log-probability of drawing y^alpha, in nats, [B, K]; no gradient flows through it. Where a row is
            filled up, any number or -inf.

    Returns:
        Margins in nats, [B].
    """
    tensors = [policy_chosen, reference_chosen, policy_rejected, reference_rejected]
    shapes = [t.shape for t in (*tensors, *([] if proposal is None else [proposal]))]
    if any(shape != policy_chosen.shape or len(shape) != 2 for shape in shapes):
        raise ValueError(
            f"sampling_margin needs [B, K] tensors of one shape, got {', '.join(str(tuple(s)) for s in shapes)}"
        )
    tensors = [t.float() for t in tensors]
    if proposal is not None:
        drawn = proposal.detach().float()
        drawn = drawn.masked_fill(drawn.isneginf(), 0.0)  # of no sample: -inf stays -inf
        tensors = [t - drawn for t in tensors]
    marginal = [torch.logsumexp(t, dim=-1) for t in tensors]
    return (marginal[0] - marginal[1]) - (marginal[2] - marginal[3])


def posterior_agreement(weights: Tensor) -> tuple[Tensor, Tensor]:
    """How much the K samples have to say: what the margin's gradient by their log-probability rests on.

    Each side's posterior is the softmax over its samples, w(k) = p(y^k | x, z) among those drawn. The first model's
    gradient is sum_k (w_chosen(k) - w_rejected(k)) grad log p(y^k | x): it vanishes where one sample has all the
    weight on both sides.

    Args:
        weights: log-weights of the samples on the chosen and the rejected side, nats, [2, B, K]; -inf: no sample.

    Returns:
        The effective number of samples of each side, 1 / sum_k w(k)^2, in [1, K], [2, B]; and the total variation
        between the two sides' posteriors, 1/2 sum_k |w_chosen(k) - w_rejected(k)|, in [0, 1], [B].
    """
    posterior = weights.float().softmax(-1)
    return posterior.square().sum(-1).reciprocal(), (posterior[0] - posterior[1]).abs().sum(-1) / 2


def preference_loss(margin: Tensor, beta: float, link: Link = "sigmoid", label_smoothing: float = 0.0) -> Tensor:
    """Equation 2 on margins, and its two common relatives.

    Args:
        margin: [B], nats.
        beta: strength of the pull towards the reference; larger keeps the system closer to it.
        link: `sigmoid`: -(1-s) log sigma(beta m) - s log sigma(-beta m) (DPO; s > 0 is conservative DPO);
            `ipo`: (m - 1/(2 beta))^2 (Azar et al., 2023); `hinge`: max(0, 1 - beta m) (SLiC; Zhao et al., 2023).
        label_smoothing: s, the assumed share of flipped preferences, in [0, 0.5); `sigmoid` only.

    Returns:
        Loss of each pair, [B]. At margin 0 the sigmoid loss is ln 2.
    """
    if beta <= 0:
        raise ValueError(f"beta={beta}: must be positive")
    if not 0.0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing={label_smoothing}: must lie in [0, 0.5)")
    if label_smoothing and link != "sigmoid":
        raise ValueError(f"label_smoothing={label_smoothing} is defined for link=sigmoid, not link={link}")
    margin = margin.float()
    if link == "sigmoid":
        return -(1 - label_smoothing) * F.logsigmoid(beta * margin) - label_smoothing * F.logsigmoid(-beta * margin)
    if link == "ipo":
        return (margin - 1 / (2 * beta)) ** 2
    if link == "hinge":
        return torch.relu(1 - beta * margin)
    raise ValueError(f"link={link!r}: choose one of {', '.join(get_args(Link))}")


def group_advantages(rewards: Tensor) -> Tensor:
    """Rewards of G answers to one prompt as GRPO weighs them (Shao et al., 2024): less their mean, over their spread.

    Args:
        rewards: [B, G].

    Returns:
        (r - mean) / max(sd, 1e-6) over each group, sd with ddof 0, [B, G]; 0 where a group has one reward.
    """
    centred = rewards.float() - rewards.float().mean(-1, keepdim=True)
    return centred / centred.square().mean(-1, keepdim=True).sqrt().clamp(min=1e-6)


def group_relative_loss(log_probs: Tensor, advantages: Tensor) -> Tensor:
    """The policy gradient of one's own fresh answers: - mean over the group of advantage * log p(answer), [B].

    With the joint log-probability of a system's variables this is multi-agent GRPO (MAGRPO; Liu et al., 2025): every
    component has the gradient of its own factor, weighed by the reward that all share.

    Args:
        log_probs: of each answer with its intermediates under the policy that drew it, nats, [B, G].
        advantages: [B, G]; no gradient flows through them.
    """
    return -(advantages.detach().float() * log_probs.float()).mean(-1)


def denoising_log_ratio(
    policy_error: Tensor,
    reference_error: Tensor,
    num_timesteps: int,
    reduction: Reduction = "mean",
    weight: float | Tensor = 1.0,
) -> Tensor:
    """Equation 17: a one-sample estimate of the bound on a diffusion model's log-ratio.

    Args:
        policy_error, reference_error: squared errors of the denoiser at one shared (t, noise), [N, C, H, W] each.
        num_timesteps: T, the number of diffusion steps that the single t stands for.
        reduction: over C, H, W. The paper's squared norm is `sum`; implementations of Diffusion-DPO take `mean`.
        weight: w_t, a number or [N].

    Returns:
        T * w_t * (reduce(reference_error) - reduce(policy_error)), [N].
    """
    if policy_error.shape != reference_error.shape or policy_error.dim() != 4:
        raise ValueError(
            "denoising_log_ratio needs two [N, C, H, W] tensors, "
            f"got {tuple(policy_error.shape)}, {tuple(reference_error.shape)}"
        )
    if reduction not in get_args(Reduction):
        raise ValueError(f"reduction={reduction!r}: choose one of {', '.join(get_args(Reduction))}")
    reduce = torch.mean if reduction == "mean" else torch.sum
    difference = reduce(reference_error.float(), dim=(1, 2, 3)) - reduce(policy_error.float(), dim=(1, 2, 3))
    return num_timesteps * weight * difference
