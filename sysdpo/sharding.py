"""Weights in parts (FSDP2): each process keeps a part of every component, and has one component whole at a time.

The unit is a component, whatever its architecture. What a component does within one computation may depend on its rows
(how many passes, which layers), so nothing is exchanged there: before it the parts are put together, after it the
whole is let go, in the forward and in the backward pass.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from sysdpo import processes
from sysdpo.errors import SettingError

Module = TypeVar("Module", bound=nn.Module)


def split(components: nn.ModuleDict) -> None:
    """Keep only this process's part of every component.

    Raises:
        SettingError: two components share weights.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    owners: dict[int, str] = {}
    for name, component in components.items():
        for parameter in component.parameters():
            if (other := owners.setdefault(id(parameter), name)) != name:
                raise SettingError(
                    f"distributed=fsdp: components {other!r} and {name!r} share weights, which cannot be in parts of "
                    "both; let one component draw both variables, or set distributed=ddp."
                )
    for component in components.values():
        first = next(component.parameters(), None)
        if first is not None:
            mesh = init_device_mesh(first.device.type, (processes.count(),))
            fully_shard(component, mesh=mesh, reshard_after_forward=True)


def is_split(module: nn.Module) -> bool:
    return processes.layout() == "fsdp" and hasattr(module, "unshard")


def own_class(module: nn.Module) -> type[nn.Module]:
    """The module's class, which FSDP2 replaces by one of its own."""
    return type(module).__mro__[2] if is_split(module) else type(module)


@contextmanager
def whole(module: Module) -> Iterator[Module]:
    """Inside, the module has all of its weights; every process goes in and out at the same places."""
    if not is_split(module):
        yield module
        return
    parts: Any = module
    parts.unshard()
    try:
        yield module
    finally:
        parts.reshard()


@contextmanager
def assembled(module: Module) -> Iterator[Module]:
    """Inside, the module's weights are plain tensors, in its `state_dict` too: for libraries that save them.

    What is done to them there is lost. Every process goes in and out.
    """
    if not is_split(module):
        yield module
        return
    places = [(m, name, p) for m in module.modules() for name, p in m._parameters.items() if p is not None]
    wholes: dict[int, nn.Parameter] = {}  # tied weights stay one
    for _, _, p in places:
        if id(p) not in wholes:
            wholes[id(p)] = nn.Parameter(full(p.detach()), p.requires_grad)
    for m, name, p in places:
        m._parameters[name] = wholes[id(p)]
    try:
        yield module
    finally:
        for m, name, p in places:
            m._parameters[name] = p


def full(tensor: Tensor) -> Tensor:
    """A tensor of which the processes may have parts, whole; asked for in every process."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def parted_like(value: Tensor, other: Tensor) -> Tensor:
    """`value` in parts as `other` is, if it is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(other, DTensor) or value.shape != other.shape:
        return value
    return distribute_tensor(value.to(other.device), other.device_mesh, other.placements)


def backward_apart(terms: Tensor) -> Tensor:
    """The same numbers, whose backward pass is one of its own: once it is over, the component is in parts again."""
    if not terms.requires_grad:
        return terms
    apart: Tensor = _Apart.apply(terms.detach().requires_grad_(), [terms])
    return apart


class _Apart(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, leaf: Tensor, terms: list[Tensor]) -> Tensor:
        ctx.terms = terms  # in a list: no input of this function, so that its graph is left to `backward`
        return leaf.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None]:
        torch.autograd.backward(ctx.terms.pop(), gradient)
        return None, None
