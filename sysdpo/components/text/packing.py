"""Completions of one prompt in one sequence: the prompt is computed once, and each completion sees only it and itself.

    [ prompt | completion 1 | completion 2 | … ]

Position ids restart after the prompt for every completion, so the log-probabilities are those of separate sequences.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import torch
from torch import Tensor


class Completion(NamedTuple):
    """The tokens of a text and of the prompt it answers."""

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Pack:
    """S sequences of length L that hold C distinct completions with N tokens in all, for R requested rows."""

    input_ids: Tensor
    """[S, L], right-padded."""
    position_ids: Tensor
    """[S, L]."""
    segments: Tensor
    """[S, L]: 0 for the prompt, i for the i-th completion, -1 for padding."""
    positions: Tensor
    """[N]: where, in the flattened [S * L], the state lies that predicts each completion token."""
    targets: Tensor
    """[N]: the completion tokens."""
    owners: Tensor
    """[N]: which distinct completion each token belongs to."""
    rows: Tensor
    """[R]: the distinct completion of each requested row."""
    num_completions: int
    shares_prefix: bool
    """Whether any sequence holds more than one completion."""

    def to(self, device: torch.device) -> "Pack":
        tensors = {f.name: getattr(self, f.name).to(device) for f in fields(self) if f.type == Tensor}
        return replace(self, **tensors)

    def attention_mask(self, dtype: torch.dtype) -> Tensor | None:
        """Additive [S, 1, L, L], or None where plain causal attention is already right.

        Padding stands on the right, where a causal model never looks.
        """
        if not self.shares_prefix:
            return None
        query, key = self.segments[:, :, None], self.segments[:, None, :]
        length = self.segments.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=self.segments.device).tril()
        allowed = causal & ((key == 0) | (key == query))
        mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
        return mask.masked_fill_(~allowed, torch.finfo(dtype).min)[:, None]


def pack(completions: Sequence[Completion], *, share_prefix: bool, pad_token_id: int) -> Pack:
    """Lay out completions for one forward pass; equal ones are computed once."""
    distinct = {completion: i for i, completion in enumerate(dict.fromkeys(completions))}
    groups: dict[object, list[Completion]] = {}
    for completion in distinct:
        groups.setdefault(completion.prompt if share_prefix else completion, []).append(completion)

    length = max(len(g[0].prompt) + sum(len(c.tokens) for c in g) for g in groups.values())
    input_ids = torch.full((len(groups), length), pad_token_id)
    position_ids = torch.zeros_like(input_ids)
    segments = torch.full_like(input_ids, -1)
    positions: list[int] = []
    targets: list[int] = []
    owners: list[int] = []
    for s, group in enumerate(groups.values()):
        prompt = group[0].prompt
        start = len(prompt)
        input_ids[s, :start] = torch.tensor(prompt)
        position_ids[s, :start] = torch.arange(start)
        segments[s, :start] = 0
        for i, completion in enumerate(group, 1):
            size = len(completion.tokens)
            span = slice(start, start + size)
            input_ids[s, span] = torch.tensor(completion.tokens)
            position_ids[s, span] = torch.arange(len(prompt), len(prompt) + size)
            segments[s, span] = i
            positions += [s * length + p for p in (len(prompt) - 1, *range(start, start + size - 1))]
            targets += completion.tokens
            owners += [distinct[completion]] * size
            start += size
    return Pack(
        input_ids,
        position_ids,
        segments,
        torch.tensor(positions),
        torch.tensor(targets),
        torch.tensor(owners),
        torch.tensor([distinct[c] for c in completions]),
        len(distinct),
        any(len(group) > 1 for group in groups.values()),
    )
