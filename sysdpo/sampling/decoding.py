"""One step of a causal language model of transformers: what every sampler asks of it."""

from typing import Any

import torch
from torch import Tensor


def next_token_logits(
    model: Any, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, cache: Any = None
) -> tuple[Tensor, Any]:
    """Logits of the token that follows each row, and the cache that continues it.

    Args:
        input_ids: [B, T] the tokens that the cache does not hold yet.
        attention_mask: [B, past + T].
        position_ids: [B, T].

    Returns:
        [B, vocabulary] and transformers' key-value cache.
    """
    # an index, not the number 1: transformers would take a strided slice, whose product with the head copies the
    # head once a row on a CPU, half the time of a short generation
    last = torch.tensor([input_ids.shape[1] - 1], device=input_ids.device)
    output = model(
        input_ids=input_ids,
        attention_mask=attention_mask,
        position_ids=position_ids,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=last,
    )
    return output.logits[:, -1], output.past_key_values
