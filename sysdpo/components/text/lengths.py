"""A language model's work by lengths alone: what `sysdpo.planning` computes in place of texts."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from sysdpo.components.base import Value
from sysdpo.components.text.codec import TextCodec
from sysdpo.sampling.decoding import next_token_logits

LENGTH = re.compile(r"(\d+) tokens, text \d+")


class LengthCodec(TextCodec):
    """Texts that only say how long they are, as token ids of that number; different texts differ in the first one.

    Args:
        codec: whose limits are kept.
        frame: tokens of a prompt beside those of the parents' values.
        completion: tokens of every text that is scored, the end token included.
    """

    def __init__(self, codec: TextCodec, frame: int, completion: int) -> None:
        self.__dict__.update(vars(codec))
        self.frame, self.completion = frame, completion
        self._first: dict[str, int] = {}

    def made_up(self, key: int, tokens: int) -> str:
        return f"{tokens} tokens, text {key}"

    def prompt_ids(self, parents: Mapping[str, Any]) -> tuple[int, ...]:
        return self._made_of(repr(parents), self.frame + sum(map(self._length, parents.values())))

    def completion_ids(self, text: str) -> tuple[int, ...]:
        return self._made_of(text, self.completion)

    def _made_of(self, text: str, length: int) -> tuple[int, ...]:
        return (self._first.setdefault(text, 1 + len(self._first)), *[0] * (length - 1))

    def _length(self, value: Value) -> int:
        if isinstance(value, list):
            return sum(map(self._length, value))
        found = LENGTH.fullmatch(str(value))
        return int(found[1]) if found else len(self._ids("" if value is None else str(value)))


def decode(model: Any, texts: int, prompt: int, new: int) -> Iterator[int]:
    """Texts drawn side by side: the pass of the prompts, and a token each, as if all of them were the last.

    The cache is filled up to there in one pass, which a real search never does.
    """
    past = max(1, prompt + new - 2)  # no model reads the last token it writes
    _next(model, texts, 0, prompt)
    yield 1
    cache = _next(model, texts, 0, past)
    yield 0
    _next(model, texts, past, 1, cache)
    yield new


def _next(model: Any, texts: int, past: int, new: int, cache: Any = None) -> Any:
    """`new` tokens behind `past` ones; returns the cache that continues them."""
    ids = torch.zeros(texts, new, dtype=torch.long)
    mask = torch.ones(texts, past + new, dtype=torch.long)
    positions = torch.arange(past, past + new).expand(texts, new)
    return next_token_logits(model, ids, mask, positions, cache)[1]
