"""What code would take on real hardware, read off a run of the code itself on tensors that have no memory.

Under `shapes()` every tensor is fake: it has a shape, a type and a lifetime, but no values. Models are trained a step
and asked for a token by their own code, and a `Meter` sees each operation: which storages it makes and when they
die (so the bytes alive at any moment, saved activations and recomputation included), its floating-point operations,
the bytes it reads and writes, and that it is one kernel to launch.
"""

import math
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

LOOKUPS = ("embedding", "index", "index_select", "gather")
"""Operations that read only the rows they return, not the whole of their input."""

NO_KERNEL = ("detach", "empty", "empty_like", "lift_fresh")


@contextmanager
def shapes(*networks: nn.Module) -> Iterator[None]:
    """Inside, tensors have no memory, and attention is the one that GPUs run: scores are never stored whole.

    `networks`, which were built on the `meta` device, get parameters and buffers of this kind.
    """
    # replaced by name: a function mode is off during the backward pass, where checkpointing computes again
    with FakeTensorMode(allow_non_fake_inputs=True), patch.object(F, "scaled_dot_product_attention", _attention):
        for network in networks:
            _as_shapes(network)
        yield


def _as_shapes(network: nn.Module) -> None:
    made: dict[int, Tensor] = {}  # tied weights stay tied

    def twin(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            made[id(tensor)] = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
        return made[id(tensor)]

    for part in network.modules():
        weights = {n: nn.Parameter(twin(p), p.requires_grad) for n, p in part._parameters.items() if p is not None}
        part._parameters.update(weights)
        part._buffers.update({name: twin(buffer) for name, buffer in part._buffers.items() if buffer is not None})


class Meter(TorchDispatchMode):
    """Counts what runs inside; may be entered several times.

    Attributes:
        live: bytes alive now of the storages that were made inside.
        peak: the most that were alive at once.
        largest: of a single storage.
        kernels: {(floating-point operations, bytes read and written): how often}, views left out.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = self.largest = 0
        self.kernels: Counter[tuple[int, int]] = Counter()
        self._known: set[int] = set()

    @property
    def flops(self) -> int:
        return sum(flops * n for (flops, _), n in self.kernels.items())

    def seconds(self, flops_per_s: float, bytes_per_s: float, launch_s: float) -> float:
        """Each kernel takes the longest of its arithmetic, its traffic, and the time to launch it."""
        return sum(max(f / flops_per_s, b / bytes_per_s, launch_s) * n for (f, b), n in self.kernels.items())

    def restart(self) -> None:
        """Forget what has run; what is alive stays."""
        self.kernels.clear()
        self.peak = self.live

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default:  # for a log or a memory: no number is known, 0 is one
            return False if args[0].dtype == torch.bool else 0.0 if args[0].is_floating_point() else 0
        taken = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        given = {t.untyped_storage()._cdata for t in taken}
        out = func(*args, **kwargs)
        made = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        for tensor in made:
            if tensor.untyped_storage()._cdata not in given:  # a view of a weight is no new memory
                self._watch(tensor)
        packet = func._overloadpacket
        if not func.is_view and packet.__name__ not in NO_KERNEL:
            flops = int(flop_registry[packet](*args, **kwargs, out_val=out)) if packet in flop_registry else 0
            read = made if packet.__name__ in LOOKUPS else taken
            self.kernels[flops, sum(map(_bytes, (*read, *made)))] += 1
        return out

    def _watch(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.live += size
        self.largest = max(self.largest, size)
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def _bytes(tensor: Tensor) -> int:
    """Of its elements; an expanded tensor is read once."""
    sizes = [size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride]
    return math.prod(sizes) * tensor.element_size()


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`scaled_dot_product_attention` as its memory-efficient kernel, which allows any mask."""
    repeats = query.shape[1] // key.shape[1]
    if repeats > 1:
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill_(attn_mask.logical_not(), -torch.inf)
        attn_mask = attn_mask.to(query.dtype).expand(*query.shape[:-1], key.shape[-2])
    saves = torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value))
    return torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, attn_mask, saves, dropout_p, is_causal, scale=scale
    )[0]
