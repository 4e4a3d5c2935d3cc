"""Captions as a denoiser sees them: frozen text encoders, computed once a caption."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

Features = dict[str, Tensor]
"""Of one caption: `encoder_hidden_states` [L, D]; `encoder_attention_mask` [L] where padding is masked;
`pooled_projections` [P] of a transformer; the rest are the UNet's `added_cond_kwargs` (SDXL: `text_embeds` [P] and
`time_ids` [6])."""

Caption = str | None
"""None: no caption, the side of classifier-free guidance that is not told what to draw."""

CONDITIONS = ("encoder_hidden_states", "encoder_attention_mask", "pooled_projections")


class CaptionEncoder(Protocol):
    @property
    def length(self) -> int:
        """Tokens of a caption's hidden states."""
        ...

    def encode(self, caption: Caption) -> Features:
        """By itself: in the company of others its last digits would depend on who they are."""
        ...

    def networks(self) -> dict[str, nn.Module]:
        """By name."""
        ...


class HiddenStates:
    """Last hidden states of a causal language model, zero and masked where a caption is shorter than the longest.

    Args:
        prefix: put before every caption, so that an empty one has a state too.
        max_length: tokens; longer captions are cut off.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_length: int, prefix: str = ""
    ) -> None:
        self.model, self.tokenizer = model.requires_grad_(False).eval(), tokenizer
        self.max_length, self.prefix = max_length, prefix

    @property
    def length(self) -> int:
        return self.max_length

    def networks(self) -> dict[str, nn.Module]:
        return {"text_encoder_1": self.model}

    @torch.no_grad()
    def encode(self, caption: Caption) -> Features:
        text = self.prefix + (caption or "")
        tokens = self.tokenizer(text, add_special_tokens=False)["input_ids"][: self.max_length]
        state = self.model(torch.tensor([tokens], device=self.model.device)).last_hidden_state[0].float().cpu()
        hidden = torch.zeros(self.max_length, state.shape[-1])
        hidden[: len(tokens)] = state
        mask = (torch.arange(self.max_length) < len(tokens)).float()
        return {"encoder_hidden_states": hidden, "encoder_attention_mask": mask}


class Clip:
    """The CLIP text encoders of Stable Diffusion: one for 1.x; for XL two, whose penultimate states are joined.

    Args:
        encoders: (tokenizer, text model) pairs; with two, the second gives the pooled embedding as well.
        image_size: tells XL the resolution it is asked for.
        zeros_for_none: of XL: no caption is all zeros, as it was in training (a pipeline's
            `force_zeros_for_empty_prompt`); otherwise, and always with one encoder, it is the empty text.
    """

    def __init__(
        self,
        encoders: Sequence[tuple[PreTrainedTokenizerBase, PreTrainedModel]],
        image_size: int,
        zeros_for_none: bool = True,
    ) -> None:
        self.encoders = [(tokenizer, model.requires_grad_(False).eval()) for tokenizer, model in encoders]
        self.image_size, self.zeros_for_none = image_size, zeros_for_none

    @property
    def length(self) -> int:
        return int(self.encoders[0][1].config.max_position_embeddings)

    def networks(self) -> dict[str, nn.Module]:
        return {f"text_encoder_{i}": model for i, (_, model) in enumerate(self.encoders, 1)}

    @torch.no_grad()
    def encode(self, caption: Caption) -> Features:
        outputs = [_run_clip(*encoder, caption or "") for encoder in self.encoders]
        if len(outputs) == 1:
            return {"encoder_hidden_states": outputs[0].last_hidden_state[0].float().cpu()}
        hidden = torch.cat([output.hidden_states[-2][0] for output in outputs], dim=-1).float().cpu()
        pooled = outputs[-1].text_embeds[0].float().cpu()
        if caption is None and self.zeros_for_none:
            hidden, pooled = torch.zeros_like(hidden), torch.zeros_like(pooled)
        size = float(self.image_size)
        return {
            "encoder_hidden_states": hidden,
            "text_embeds": pooled,
            "time_ids": torch.tensor([size, size, 0.0, 0.0, size, size]),  # original size, crop, target size
        }


def _run_clip(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, caption: str) -> Any:
    length = model.config.max_position_embeddings
    tokens = tokenizer([caption], padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    return model(tokens["input_ids"].to(model.device), output_hidden_states=True)


class CachedCaptions:
    """An encoder that computes each caption once; `limit` captions are kept."""

    def __init__(self, encoder: CaptionEncoder, limit: int = 20_000) -> None:
        self.encoder, self.limit = encoder, limit
        self._memory: dict[Caption, Features] = {}

    def __call__(self, captions: Sequence[Caption], device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
        """Keyword arguments of a denoiser for N captions."""
        if len(self._memory) > self.limit:
            self._memory.clear()
        for caption in captions:
            if caption not in self._memory:
                self._memory[caption] = self.encoder.encode(caption)
        features = [self._memory[c] for c in captions]
        stacked = {key: torch.stack([f[key] for f in features]).to(device, dtype) for key in features[0]}
        kwargs: dict[str, Any] = {key: stacked[key] for key in CONDITIONS if key in stacked}
        added = {key: value for key, value in stacked.items() if key not in CONDITIONS}
        return {**kwargs, "added_cond_kwargs": added} if added else kwargs
