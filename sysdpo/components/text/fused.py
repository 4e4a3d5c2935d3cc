"""LoRA's y = x W' + s (x A') B' with the second product added into the first, both ways: no copies of the output.

PEFT's layers make the adapter's output, its multiple and the sum as tensors of their own, each as large as the layer's
output; on a CPU that traffic is a tenth of a step. The products are the same.
"""

from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional


class _Adapted(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: nn.Linear, a: Tensor, b: Tensor, scale: float) -> Tensor:
        rows = x.flatten(0, -2)  # [N, in]
        low = rows @ a.t()  # [N, r]
        y = functional.linear(rows, layer.weight, layer.bias).addmm_(low, b.t(), alpha=scale)
        ctx.save_for_backward(rows, low, layer.weight, a, b)
        ctx.scale, ctx.shape = scale, x.shape
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, low, weight, a, b = ctx.saved_tensors
        above = gradient.flatten(0, -2)  # [N, out]
        through = above @ b  # [N, r]
        into_x = None
        if ctx.needs_input_grad[0]:
            into_x = (above @ weight).addmm_(through, a, alpha=ctx.scale).view(ctx.shape)
        into_a = (through.t() @ rows).mul_(ctx.scale) if ctx.needs_input_grad[2] else None
        into_b = (low.t() @ above).mul_(ctx.scale).t() if ctx.needs_input_grad[3] else None
        return into_x, None, into_a, into_b, None


class Fused(Linear):
    """PEFT's layer with one adapter, computed in one product; in any other state of it, PEFT's own forward."""

    def forward(self, x: Tensor, *args: Any, **more: Any) -> Tensor:
        known = self.active_adapters == ["default"] and list(self.lora_A) == ["default"]
        if args or more or self.disable_adapters or self.merged or not known or x.dtype != torch.float32:
            result: Tensor = super().forward(x, *args, **more)
            return result
        a, b = self.lora_A["default"].weight, self.lora_B["default"].weight
        adapted: Tensor = _Adapted.apply(x, self.base_layer, a, b, float(self.scaling["default"]))
        return adapted


def fuse(model: nn.Module) -> int:
    """Let the plain LoRA layers of a model in fp32 compute so; how many do. Others are left as PEFT has them."""
    plain = [module for module in model.modules() if type(module) is Linear and _is_plain(module)]
    for module in plain:
        module.__class__ = Fused  # weights, names and what is saved stay PEFT's
    return len(plain)


def _is_plain(layer: Linear) -> bool:
    base = layer.base_layer
    return (
        type(base) is nn.Linear
        and list(layer.lora_A) == ["default"]
        and not layer.lora_variant
        and isinstance(layer.lora_dropout["default"], nn.Identity)
        and layer.lora_B["default"].bias is None
        and all(p.dtype == torch.float32 for p in layer.parameters())
        and not base.weight.requires_grad
    )
