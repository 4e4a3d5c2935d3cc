"""log p of given tokens through a language model's head, a few tokens at a time: no logits outlive their chunk.

    log p(t | h) = (W h)_t - logsumexp(W h),    d/dh = W_t - softmax(W h) W

Logits (tokens x vocabulary, fp32) are the largest tensors of a scoring pass, and autograd keeps them until it has gone
back. Where the head is frozen, only the slope in h is wanted, which is as small as h: it is computed on the way
forward, with the product that the way back would have taken.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

CHUNK_BYTES = {"cpu": 2**26}
GPU_CHUNK_BYTES = 2**30
"""Of the logits of one chunk: on a CPU about what its caches hold, on a GPU enough to keep it busy."""


def target_log_probs(head: nn.Module, states: Tensor, targets: Tensor) -> Tensor:
    """log softmax(head(states))[target]: [N, hidden], [N] -> [N], fp32, nats."""
    size = chunk_size(head, states)
    if not (torch.is_grad_enabled() and any(t.requires_grad for t in (states, *head.parameters()))):
        return torch.cat([gather_log_probs(head(s), t) for s, t in _chunks(states, targets, size)])
    if type(head) is nn.Linear and not any(p.requires_grad for p in head.parameters()):
        log_probs: Tensor = _LogProbs.apply(states, targets, head, size)
        return log_probs
    if len(states) <= size:
        return gather_log_probs(head(states), targets)
    recomputed = [checkpoint(_through, head, s, t, use_reentrant=False) for s, t in _chunks(states, targets, size)]
    return torch.cat(recomputed)


def chunk_size(head: nn.Module, states: Tensor) -> int:
    """Tokens at a time, whose logits take `CHUNK_BYTES` in fp32."""
    weight = getattr(head, "weight", None)
    vocabulary = weight.shape[0] if isinstance(weight, Tensor) and weight.dim() == 2 else states.shape[-1]
    return max(1, CHUNK_BYTES.get(states.device.type, GPU_CHUNK_BYTES) // (4 * vocabulary))


class _LogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, targets: Tensor, head: nn.Linear, size: int) -> Tensor:
        log_probs, slopes = [], torch.empty_like(states)
        for start in range(0, len(states), size):
            part, wanted = states[start : start + size], targets[start : start + size, None]
            product = functional.linear(part, head.weight, head.bias)
            logits = product.float()
            total = logits.logsumexp(-1, keepdim=True)
            log_probs.append((logits.gather(-1, wanted) - total).squeeze(-1))
            # in place: what is left of the target's one after the probabilities are taken off
            rest = logits.sub_(total).exp_().neg_().scatter_add_(-1, wanted, torch.ones_like(total))
            slopes[start : start + size] = rest.to(product.dtype) @ head.weight.to(product.dtype)
        ctx.save_for_backward(slopes)
        return torch.cat(log_probs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (slopes,) = ctx.saved_tensors
        return gradient[:, None].to(slopes.dtype) * slopes, None, None, None


def _chunks(states: Tensor, targets: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(states.split(size), targets.split(size), strict=True)


def _through(head: nn.Module, states: Tensor, targets: Tensor) -> Tensor:
    return gather_log_probs(head(states), targets)


def gather_log_probs(logits: Tensor, targets: Tensor) -> Tensor:
    """log softmax(logits)[target]: [tokens, vocabulary], [tokens] -> [tokens], fp32."""
    logits = logits.float()
    return logits.gather(-1, targets[:, None]).squeeze(-1) - logits.logsumexp(-1)
