"""Attention over packed sequences, block by block: what the mask hides from a whole block of queries is not computed.

    [ prompt | completion 1 | completion 2 ]      queries of completion 2 need the keys of prompt and completion 2 only

A dense mask costs the square of the packed length; the part that a pack needs is about half of it. Every query still
sees the keys that it saw, so values and gradients are equal.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

SHORTEST = 192
"""Tokens of a packed sequence below which one dense product is as fast."""
APART = 32
"""Tokens between two cuts; segments that begin closer together in different sequences share one."""
WORTH = 0.8
"""Largest share of the dense product at which blocks are taken."""

Block = tuple[slice, Tensor]
"""Queries, and the index of the keys that any of them sees."""


def blocks_of(visible: Tensor, segments: Tensor) -> list[Block]:
    """Blocks of queries with their keys, or none where they would save little.

    Args:
        visible: [S, L, L] whether a query sees a key.
        segments: [S, L] which text a token belongs to; see `Pack.segments`.
    """
    length = segments.shape[1]
    if length < SHORTEST:
        return []
    begins = (segments[:, 1:] != segments[:, :-1]).any(0).nonzero().flatten() + 1
    cuts: list[int] = []
    for cut in begins.tolist():
        if cuts and cut - cuts[-1] < APART:
            cuts[-1] = cut  # the last of a cluster: no query of the text before lies behind it
        else:
            cuts.append(cut)
    edges = [0, *(cut for cut in cuts if APART <= cut <= length - APART), length]
    seen = visible.any(0)  # [L, L]: by any sequence
    found = [(slice(a, b), seen[a:b].any(0).nonzero().flatten()) for a, b in pairwise(edges)]
    computed = sum((queries.stop - queries.start) * len(keys) for queries, keys in found)
    return found if computed <= WORTH * length**2 else []


@contextmanager
def in_blocks(attention: str, blocks: dict[int, tuple[Tensor, list[Block]]]) -> Iterator[None]:
    """Inside, transformers' `attention` under one of these masks, by its `id`, is computed block by block."""
    whole: Callable[..., Any] | None = dict(ALL_ATTENTION_FUNCTIONS.items()).get(attention)
    if whole is None:
        yield
        return
    parts: dict[int, list[tuple[slice, Tensor | slice, Tensor]]] = {}

    def composed(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **more: Any
    ) -> tuple[Tensor, None]:
        known = blocks.get(id(attention_mask))
        if known is None or key.shape[2] != known[0].shape[-1] or more.get("position_bias") is not None:
            return whole(module, query, key, value, attention_mask, **more)
        mask, cut = known
        if id(mask) not in parts:  # once for all layers
            parts[id(mask)] = [
                (queries, _span(keys), mask[:, :, queries].index_select(3, keys)) for queries, keys in cut
            ]
        outputs = [
            whole(
                module,
                query[:, :, queries],
                _taken(key, keys),
                _taken(value, keys),
                part,
                **more,
            )[0]
            for queries, keys, part in parts[id(mask)]
        ]
        return torch.cat(outputs, dim=1), None

    ALL_ATTENTION_FUNCTIONS[attention] = composed
    try:
        yield
    finally:
        del ALL_ATTENTION_FUNCTIONS[attention]


def _span(keys: Tensor) -> Tensor | slice:
    """The index, or the same as a slice where the keys follow each other: a view needs no memory."""
    first, last = int(keys[0]), int(keys[-1])
    return slice(first, last + 1) if last - first + 1 == len(keys) else keys


def _taken(values: Tensor, keys: Tensor | slice) -> Tensor:
    """[B, heads, L, size] at these positions."""
    return values[:, :, keys] if isinstance(keys, slice) else values.index_select(2, keys)
