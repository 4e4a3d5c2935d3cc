"""Completions of one prompt in one sequence: the prompt is computed once, and each completion sees only it and itself.

    [ prompt | completion 1 | completion 2 | … ]

Position ids restart after the prompt for every completion, and the model's own attention mask (causal, sliding or
chunked) is asked in those positions, so the log-probabilities are those of separate sequences wherever transformers'
masks decide who sees whom. Where something else does (a recurrence, an ALiBi), `probe` finds out and packing is off.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, causal_mask_function

from sysdpo.components.text.blocks import Block, blocks_of, in_blocks
from sysdpo.sampling.decoding import accepts

MaskFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""transformers' form of a mask: (batch, head, query, key) indices -> whether the query sees the key."""


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

    def mask_function(self, own: MaskFunction) -> MaskFunction:
        """The model's `own` mask among the tokens of a completion and its prompt; nothing of other completions.

        Padding stands on the right, where a causal model never looks; it sees the prompt, so that no row is empty.
        """

        def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            asks, asked = self.segments[batch, query], self.segments[batch, key]
            positions = self.position_ids
            return ((asked == 0) | (asked == asks)) & own(batch, head, positions[batch, query], positions[batch, key])

        return visible

    @contextmanager
    def shaping_masks(self, model: PreTrainedModel, blocks: bool = True) -> Iterator[None]:
        """Inside, the masks that `model` asks of transformers are composed with this pack's.

        With `blocks`, attention leaves out what they hide from whole blocks of queries (`in_blocks`).

        The interface is transformers' own way to replace a mask; forwards of other shapes pass through it unchanged.
        """
        attention = model.config.get_text_config()._attn_implementation
        if attention not in ALL_MASK_ATTENTION_FUNCTIONS:  # one that is given no mask: the probe refuses it
            yield
            return
        made_by = ALL_MASK_ATTENTION_FUNCTIONS[attention]
        cut: dict[int, tuple[Tensor, list[Block]]] = {}

        def composed(
            batch_size: int,
            q_length: int,
            kv_length: int,
            mask_function: MaskFunction = causal_mask_function,  # type: ignore[assignment]
            attention_mask: Tensor | None = None,
            allow_is_causal_skip: bool = True,
            **more: Any,
        ) -> Any:
            fits = (batch_size, q_length) == self.segments.shape and kv_length == q_length
            if fits:
                mask_function, attention_mask, allow_is_causal_skip = self.mask_function(mask_function), None, False
            mask = made_by(
                batch_size=batch_size,
                q_length=q_length,
                kv_length=kv_length,
                mask_function=mask_function,
                attention_mask=attention_mask,
                allow_is_causal_skip=allow_is_causal_skip,
                **more,
            )
            if fits and isinstance(mask, Tensor) and mask.dtype == torch.bool:
                # what torch makes of it, but once: else every layer makes one, and keeps it for the backward pass
                # in the precision that the model computes in, which is not always that of its weights (see `probe`)
                computed = more.get("dtype") or model.dtype
                added = torch.zeros_like(mask, dtype=computed).masked_fill_(mask.logical_not(), -torch.inf)
                has_values = type(mask) is Tensor and not mask.is_meta  # a plan's has none
                if blocks and self.shares_prefix and has_values:
                    found = blocks_of(mask[:, 0], self.segments)
                    if found:
                        cut[id(added)] = added, found  # kept, so that its id stays its own
                return added
            return mask

        ALL_MASK_ATTENTION_FUNCTIONS[attention] = composed
        try:
            with in_blocks(attention, cut):
                yield
        finally:
            del ALL_MASK_ATTENTION_FUNCTIONS[attention]

    def arguments(self, model: PreTrainedModel) -> dict[str, Tensor]:
        """What the model is called with: the tokens alone where each sequence is a text, as anyone would call it."""
        if not self.shares_prefix:
            return {"input_ids": self.input_ids}
        # an explicit mask of ones, or transformers would take every restart of the positions for another text
        shared = {"input_ids": self.input_ids, "attention_mask": torch.ones_like(self.input_ids)}
        return {**shared, "position_ids": self.position_ids} if accepts(model, "position_ids") else shared


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
