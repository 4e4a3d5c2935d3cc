"""Values drawn from a table of log-probabilities, by the strategies that draw texts from a language model."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from sysdpo.components.base import TokenSampler, Value


@torch.no_grad()
def draw_values(
    log_probs: Tensor, values: Sequence[Value], n: int, seeds: Sequence[int], sampler: TokenSampler | None
) -> list[list[Value]]:
    """`n` values for each row of `log_probs`, [B, V]; without a sampler independent draws, one stream a row."""
    if sampler is None:
        drawn = [
            torch.multinomial(p, n, replacement=True, generator=torch.Generator().manual_seed(seed)).tolist()
            for p, seed in zip(log_probs.exp().cpu(), seeds, strict=True)
        ]
        return [[values[i] for i in row] for row in drawn]
    rows = torch.arange(len(log_probs), device=log_probs.device)
    tokens = sampler.draw(
        _OneTokenModel(log_probs, extra=max(1, n - len(values))),
        rows[:, None],
        torch.ones_like(rows)[:, None],
        n=n,
        seeds=seeds,
        max_new_tokens=1,
        eos_token_id=len(values),
        pad_token_id=len(values),
    )
    return [[values[ids[0]] for ids in row] for row in tokens]


class _OneTokenModel(nn.Module):
    """The table in the clothes of a causal language model: the prompt is a row's number, the next token a value.

    `extra` tokens of probability zero follow the values, an end token among them, so that a search for more
    sequences than there are values finds those that exist and says that the others do not.
    """

    def __init__(self, table: Tensor, extra: int) -> None:
        super().__init__()
        self.scores = torch.cat([table, table.new_full((len(table), extra), -torch.inf)], dim=-1)

    def forward(self, input_ids: Tensor, **_: Any) -> SimpleNamespace:
        cache = SimpleNamespace(reorder_cache=lambda _: None)  # one token: nothing follows
        return SimpleNamespace(logits=self.scores[input_ids], past_key_values=cache)
