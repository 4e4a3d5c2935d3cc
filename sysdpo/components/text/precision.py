"""Weights that are trained are kept in fp32: an update of 1e-6 is lost in the 8 bits of a bf16 weight.

The model computes in its own precision all the same, by autocast. A reference beside it must round where it rounds:
with the policy's embeddings and norms in fp32, the reference has its own there, too, and the margin starts at 0.
"""

import copy
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn

Model = TypeVar("Model", bound=nn.Module)
HALF = (torch.bfloat16, torch.float16)


def masters(model: nn.Module) -> None:
    """Turn 16-bit weights into fp32 ones of the same value, in place."""
    for parameter in model.parameters():
        if parameter.dtype in HALF:
            parameter.data = parameter.data.float()


def widened_copy(model: Model) -> Model:
    """A frozen copy that computes under autocast as `masters(model)` does, at 16 bits for what only is multiplied."""
    frozen = copy.deepcopy(model).requires_grad_(False)
    multiplied = {id(m.weight) for m in frozen.modules() if isinstance(m, nn.Linear)}
    looked_up = {id(m.weight) for m in frozen.modules() if isinstance(m, nn.Embedding)}  # a tied head is both
    for parameter in frozen.parameters():
        if parameter.dtype in HALF and id(parameter) not in multiplied - looked_up:
            parameter.data = parameter.data.float()
    return frozen


@contextmanager
def hold_in(dtype: torch.dtype, model: nn.Module, kept: Collection[int]) -> Iterator[None]:
    """Inside, every weight but those whose `id` is kept has this precision; its exact value comes back afterwards."""
    parameters = [p for p in model.parameters() if p.dtype == torch.float32 != dtype and id(p) not in kept]
    exact = [p.data for p in parameters]
    try:
        for parameter in parameters:
            parameter.data = parameter.data.to(dtype)
        yield
    finally:
        for parameter, data in zip(parameters, exact, strict=True):
            parameter.data = data


@contextmanager
def adapters_as_they_come(model: nn.Module) -> Iterator[None]:
    """Inside, PEFT's layers do not widen their inputs to the adapters' fp32: autocast says what is multiplied how."""
    layers: list[Any] = [m for m in model.modules() if getattr(m, "cast_input_dtype_enabled", False)]
    try:
        for layer in layers:
            layer.cast_input_dtype_enabled = False
        yield
    finally:
        for layer in layers:
            layer.cast_input_dtype_enabled = True
