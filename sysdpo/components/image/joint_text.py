"""Captions as the transformers of SD3 and FLUX see them: CLIP and T5 encoders, frozen."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sysdpo.components.image.conditioning import Caption, Features

Encoder = tuple[PreTrainedTokenizerBase, PreTrainedModel]


class ClipAndT5:
    """Of each caption the states that the picture attends to, and one pooled vector.

    SD3 has two CLIP models, whose second-last states are joined, padded to T5's width and put before T5's states; their
    projected embeddings are the pooled vector. FLUX has one, of which only the pooled output is taken.

    Args:
        clips: two (SD3) or one (FLUX).
        t5: None: zeros in its place, as SD3 may be used to save memory.
        t5_length: tokens of a caption for T5; SD3 256, FLUX 512.
        width: of the states.
    """

    def __init__(self, clips: Sequence[Encoder], t5: Encoder | None, t5_length: int, width: int) -> None:
        self.clips, self.t5, self.t5_length, self.width = list(clips), t5, t5_length, width
        for _, model in self.encoders:
            model.requires_grad_(False).eval()

    @property
    def encoders(self) -> list[Encoder]:
        return [*self.clips, *([self.t5] if self.t5 is not None else [])]

    @property
    def length(self) -> int:
        clip = self.clips[0][1].config.max_position_embeddings if len(self.clips) > 1 else 0
        return int(clip + self.t5_length)

    def networks(self) -> dict[str, nn.Module]:
        return {f"text_encoder_{i}": model for i, (_, model) in enumerate(self.encoders, 1)}

    @torch.no_grad()
    def encode(self, caption: Caption) -> Features:
        caption = caption or ""
        lengths = [model.config.max_position_embeddings for _, model in self.clips]
        outputs = [_run(*clip, caption, n) for clip, n in zip(self.clips, lengths, strict=True)]
        states = torch.zeros(self.t5_length, self.width)
        if self.t5 is not None:
            states = _run(*self.t5, caption, self.t5_length)[0][0].float().cpu()
        if len(outputs) == 1:
            pooled: Tensor = outputs[0].pooler_output[0]
        else:
            pooled = torch.cat([output[0][0] for output in outputs])
            of_clip = torch.cat([output.hidden_states[-2][0] for output in outputs], dim=-1).float().cpu()
            states = torch.cat([F.pad(of_clip, (0, self.width - of_clip.shape[-1])), states])
        return {"encoder_hidden_states": states, "pooled_projections": pooled.float().cpu()}


def _run(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, caption: str, length: int) -> Any:
    ids = tokenizer([caption], padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    return model(ids["input_ids"].to(model.device), output_hidden_states=True)
