"""RMSNorm, y = w x / sqrt(mean(x^2) + eps), with its slope stated: a third of the passes over memory.

Left to autograd, the square, the mean, the root and both products each keep or make tensors as large as the input, and
on a CPU their traffic is what a norm costs. With r = 1 / sqrt(mean(x^2) + eps), h = w g and n channels, the slope is
dx = r h - x r^3 (h . x) / n. The weight has none here: it is frozen beside adapters.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class _Normed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        root = length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()  # [..., 1]
        ctx.save_for_backward(x, root, weight)
        return (x * root).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, root, weight = ctx.saved_tensors
        into_x = gradient * weight
        along = (into_x * x).sum(-1, keepdim=True).mul_(root.pow(3)).div_(x.shape[-1])
        return into_x.mul_(root).addcmul_(x, along, value=-1.0), None, None


@cache
def _fused(made: Any) -> Any:
    """The class, computed so where nothing of it is trained; in any other state, its own forward."""

    def forward(self: Any, x: Tensor, *args: Any, **more: Any) -> Tensor:
        if args or more or self.weight.requires_grad or not x.dtype == self.weight.dtype == torch.float32:
            result: Tensor = made.forward(self, x, *args, **more)
            return result
        normed: Tensor = _Normed.apply(x, self.weight, _eps(self))
        return normed

    return type(made.__name__, (made,), {"forward": forward})


def _eps(module: Any) -> float | None:
    """Under the names that transformers' norms give it."""
    found = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    return float(found) if isinstance(found, int | float) else None


def fuse_norms(model: nn.Module) -> int:
    """Let the frozen RMSNorms of a model in fp32 compute so; how many do.

    One whose numbers are others, as Gemma's, whose weight is an offset from 1, is left as it is.
    """
    plain = [module for module in model.modules() if type(module).__name__.endswith("RMSNorm") and _is_plain(module)]
    for module in plain:
        made: Any = type(module)
        module.__class__ = _fused(made)  # weights, names and what is saved stay the model's
    return len(plain)


@torch.no_grad()
def _is_plain(module: nn.Module) -> bool:
    weight, eps = getattr(module, "weight", None), _eps(module)
    if not isinstance(weight, Tensor) or weight.ndim != 1 or weight.dtype != torch.float32 or eps is None:
        return False
    if weight.is_meta:  # shapes only, for `make plan`: there is nothing to compare
        return True
    x = torch.linspace(-2.0, 3.0, 2 * len(weight), device=weight.device).view(2, -1)
    return torch.allclose(module(x), _Normed.apply(x, weight, eps), rtol=1e-5, atol=1e-6)
