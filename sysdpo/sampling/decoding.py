"""One step of a causal language model of transformers: what every sampler asks of it."""

import inspect
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

CACHES = ("past_key_values", "cache_params")
"""What transformers calls the state that continues a sequence: of attention, and of recurrent models."""


def accepts(model: Any, argument: str) -> bool:
    """Whether the model's forward names this argument; one that it does not name could be swallowed unread."""
    wrapped = getattr(model, "get_base_model", None)
    kind: Any = type(wrapped() if wrapped is not None else model)
    return argument in _parameters(kind)


@lru_cache(maxsize=256)
def _parameters(kind: type[nn.Module]) -> frozenset[str]:
    return frozenset(inspect.signature(kind.forward).parameters)


def next_token_logits(
    model: Any, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, cache: Any = None
) -> tuple[Tensor, Any]:
    """Logits of the token that follows each row, and the cache that continues it.

    Args:
        input_ids: [B, T] the tokens that the cache does not hold yet.
        attention_mask: [B, past + T].
        position_ids: [B, T].

    Returns:
        [B, vocabulary] and transformers' cache. Its `reorder_cache(index)` gives row i the past of row index[i],
        for as many rows as the index has, whatever the layers keep; other ways to select rows know some kinds only.
    """
    # an index, not the number 1: transformers would take a strided slice, whose product with the head copies the
    # head once a row on a CPU, half the time of a short generation
    last = torch.tensor([input_ids.shape[1] - 1], device=input_ids.device)
    known = {"attention_mask": attention_mask, "position_ids": position_ids, "use_cache": True, "logits_to_keep": last}
    arguments = {name: value for name, value in known.items() if accepts(model, name)}
    kind = next((name for name in CACHES if accepts(model, name)), None)
    if kind is not None:
        arguments[kind] = cache
    if kind == "cache_params" and cache is not None:  # the state has left the padding out; a token is none
        arguments.pop("attention_mask", None)
    output = model(input_ids=input_ids, **arguments)
    held = kind if kind is not None else CACHES[0]
    return output.logits[:, -1], getattr(output, held)


class Uncached(nn.Module):
    """A model without a cache that can be reordered: every step reads the whole sequence again. Slow, and right.

    Its rows must be of equal length: nothing masks a padding.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, past_key_values: "_Sequences | None" = None) -> SimpleNamespace:
        tokens = input_ids if past_key_values is None else torch.cat([past_key_values.tokens, input_ids], dim=1)
        arguments: dict[str, Any] = {"use_cache": False} if accepts(self.model, "use_cache") else {}
        logits = self.model(input_ids=tokens, **arguments).logits[:, -1:]
        return SimpleNamespace(logits=logits, past_key_values=_Sequences(tokens))


class _Sequences:
    """The tokens read so far, [B, T], in the place of a cache."""

    def __init__(self, tokens: Tensor) -> None:
        self.tokens = tokens

    def reorder_cache(self, index: Tensor) -> None:
        self.tokens = self.tokens[index]
