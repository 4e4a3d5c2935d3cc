"""Ancestral sampling from a causal language model, batched, KV-cached, one random stream a row."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sysdpo.limits import check_fields
from sysdpo.sampling.decoding import next_token_logits

NUCLEUS = 128
"""Most probable tokens looked at first; a nucleus that is wider is found by a full sort."""


@dataclass(frozen=True)
class MonteCarlo:
    """Plain Monte Carlo.

    Args:
        temperature: 0 takes the most probable token.
        top_p: sample from the smallest set of tokens with this probability (Holtzman et al., 2020).
        distinct: drop repeated samples of a prompt, so that fewer than `n` may come back.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    distinct: bool = True

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def why_not_own(self) -> str:
        """Why these are not independent draws from the model itself; "" if they are."""
        if self.temperature != 1.0:
            return f"sampler.draw.temperature={self.temperature} draws from another distribution than temperature 1"
        if self.top_p != 1.0:
            return f"sampler.draw.top_p={self.top_p} leaves out what is less probable"
        return "sampler.draw.distinct=true drops repeated draws, which have to count" if self.distinct else ""

    def draw(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        *,
        n: int,
        seeds: Sequence[int],
        max_new_tokens: int,
        eos_token_id: int | Sequence[int],
        pad_token_id: int,
    ) -> list[list[list[int]]]:
        sequences = ancestral_sample(
            model,
            input_ids,
            attention_mask,
            n=n,
            seeds=seeds,
            temperature=self.temperature,
            top_p=self.top_p,
            max_new_tokens=max_new_tokens,
            eos_token_id=eos_token_id,
        )
        if not self.distinct:
            return sequences
        return [list(map(list, dict.fromkeys(map(tuple, row)))) for row in sequences]


@torch.no_grad()
def ancestral_sample(
    model: Any,
    input_ids: Tensor,
    attention_mask: Tensor,
    *,
    n: int,
    seeds: Sequence[int],
    temperature: float,
    top_p: float,
    max_new_tokens: int,
    eos_token_id: int | Sequence[int],
) -> list[list[list[int]]]:
    """`n` independent completions of each prompt.

    Args:
        model: a causal LM of transformers.
        input_ids, attention_mask: left-padded prompts, [B, T].
        seeds: one a prompt; what a prompt gets does not depend on the rest of the batch.

    Returns:
        B lists of n lists of token ids, the end token (any of `eos_token_id`) included where it was reached.
    """
    ends = {eos_token_id} if isinstance(eos_token_id, int) else set(eos_token_id)
    rows = input_ids.shape[0] * n
    uniforms = torch.stack([_uniforms(seed, n, max_new_tokens) for seed in seeds]).flatten(0, 1)  # [rows, steps]
    # every distinct prompt is computed once, its continuations apart
    both = torch.stack([input_ids, attention_mask], 1)
    distinct, source = torch.unique(both, dim=0, return_inverse=True)
    prompt_ids, prompt_mask = distinct.unbind(1)
    source = source.repeat_interleave(n)
    positions = (prompt_mask.cumsum(-1) - 1).clamp(min=0)
    logits, cache = next_token_logits(model, prompt_ids, prompt_mask, positions)
    cache.reorder_cache(source)
    logits = logits[source]
    mask = prompt_mask[source]
    position = positions[source, -1:]
    sequences: list[list[int]] = [[] for _ in range(rows)]
    active = torch.arange(rows)
    for step in range(max_new_tokens):
        tokens = choose_tokens(logits, uniforms[active, step].to(logits.device), temperature, top_p)
        for row, token in zip(active.tolist(), tokens.tolist(), strict=True):
            if not ends.intersection(sequences[row][-1:]):
                sequences[row].append(token)
        finished = torch.tensor([sequences[r][-1] in ends for r in active.tolist()])
        if step + 1 == max_new_tokens or bool(finished.all()):
            break
        if int(finished.sum()) * 4 > len(active):  # dropping rows copies the cache: not for one row at a time
            keep = (~finished).nonzero().squeeze(-1)
            active = active[keep]
            keep = keep.to(logits.device)
            cache.reorder_cache(keep)
            mask, position, tokens = mask[keep], position[keep], tokens[keep]
        mask = torch.cat([mask, mask.new_ones(len(active), 1)], 1)
        position = position + 1
        logits, cache = next_token_logits(model, tokens[:, None], mask, position, cache)
    return [sequences[i : i + n] for i in range(0, rows, n)]


def _uniforms(seed: int, n: int, steps: int) -> Tensor:
    return torch.rand(n, steps, generator=torch.Generator().manual_seed(seed))


def choose_tokens(logits: Tensor, uniforms: Tensor, temperature: float, top_p: float) -> Tensor:
    """One token a row by inverting the distribution function at the row's uniform: [N, vocabulary], [N] -> [N]."""
    if temperature == 0:
        return logits.argmax(-1)
    scaled = logits.float() / temperature
    if top_p == 1.0:
        return _invert(scaled.softmax(-1), uniforms)
    top, index = scaled.topk(min(NUCLEUS, scaled.shape[-1]), -1)
    probabilities = (top - scaled.logsumexp(-1, keepdim=True)).exp()
    tokens = index.gather(-1, _invert_nucleus(probabilities, uniforms, top_p)[:, None]).squeeze(-1)
    wide = probabilities.sum(-1) < top_p
    if bool(wide.any()):
        ranked, order = scaled[wide].softmax(-1).sort(-1, descending=True)
        tokens[wide] = order.gather(-1, _invert_nucleus(ranked, uniforms[wide], top_p)[:, None]).squeeze(-1)
    return tokens


def _invert_nucleus(ranked: Tensor, uniforms: Tensor, top_p: float) -> Tensor:
    before = ranked.cumsum(-1) - ranked  # probability of all that is more likely
    return _invert(ranked.masked_fill(before >= top_p, 0.0), uniforms)


def _invert(weights: Tensor, uniforms: Tensor) -> Tensor:
    cumulative = weights.double().cumsum(-1)
    point = uniforms.double()[:, None] * cumulative[:, -1:]
    # `right` steps over entries of weight zero; the clamp guards against a point rounded up to the total
    return torch.searchsorted(cumulative, point, right=True).squeeze(-1).clamp(max=weights.shape[-1] - 1)
