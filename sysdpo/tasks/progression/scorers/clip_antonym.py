"""Attribute levels by CLIP: which of two opposite descriptions an image is closer to; for any attribute in words.

After CLIP-IQA (Wang et al., 2023): the level is the softmax, at a temperature, over the image's cosine similarities to
the description and to its antonym. No training, but also no calibration: compare levels under one model only.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoTokenizer, CLIPModel, PreTrainedTokenizerBase

from sysdpo.components.folders import check_finite
from sysdpo.devices import resolve_device
from sysdpo.errors import SettingError, one_line
from sysdpo.tasks.progression.scorers.scene import Floats, attribute_rows

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""Of the pixels that CLIP was trained on, by channel."""


class ClipAntonym:
    """level = sigmoid((cos(image, description) - cos(image, antonym)) / temperature).

    Args:
        model, tokenizer: a CLIP of transformers and its tokenizer.
        pairs: `{attribute: (description, antonym)}`.
        temperature: 0.01 is CLIP's own; larger is softer.
        batch_size: images at a time.
    """

    name = "clip_antonym"

    def __init__(
        self,
        model: CLIPModel,
        tokenizer: PreTrainedTokenizerBase,
        pairs: Mapping[str, Sequence[str]],
        temperature: float = 0.01,
        batch_size: int = 32,
    ) -> None:
        if not temperature > 0:
            raise SettingError(f"scorer.temperature={temperature}: must be positive; 0.01 is CLIP's own.")
        for attribute, texts in pairs.items():
            if len(texts) != 2 or texts[0] == texts[1]:
                raise SettingError(f"scorer.pairs.{attribute}={list(texts)}: write a description and its antonym.")
        self.model = model.requires_grad_(False).eval()
        self.tokenizer, self.temperature, self.batch_size = tokenizer, temperature, batch_size
        self.attributes = tuple(pairs)
        self._texts = self._encode_texts([text for texts in pairs.values() for text in texts])  # [2 A, D]

    @torch.no_grad()
    def score(self, images: Sequence[Any], attributes: Sequence[str]) -> Floats:
        """N images [3, H, W] in [0, 1] and an attribute each -> N levels in (0, 1)."""
        names = attribute_rows(attributes, len(images), self.attributes)
        if not len(images):
            return np.empty(0)
        parts = [images[i : i + self.batch_size] for i in range(0, len(images), self.batch_size)]
        states = torch.cat([self._encode_images(part) for part in parts])  # [N, D]
        rows = torch.tensor([self.attributes.index(name) for name in names])
        towards, away = self._texts[2 * rows], self._texts[2 * rows + 1]
        gap = (states * (towards - away)).sum(-1) / self.temperature
        return np.asarray(torch.sigmoid(gap.double()).numpy())

    @torch.no_grad()
    def _encode_texts(self, texts: list[str]) -> Tensor:
        length = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt")
        states = self.model.text_model(
            input_ids=tokens["input_ids"].to(self.model.device),
            attention_mask=tokens["attention_mask"].to(self.model.device),
        )
        return F.normalize(self.model.text_projection(states.pooler_output).float(), dim=-1).cpu()

    def _encode_images(self, images: Sequence[Any]) -> Tensor:
        size = self.model.config.vision_config.image_size
        pixels = torch.stack([_prepared(torch.as_tensor(image).float(), size) for image in images])
        states = self.model.vision_model(pixel_values=pixels.to(self.model.device, self.model.dtype))
        return F.normalize(self.model.visual_projection(states.pooler_output).float(), dim=-1).cpu()


def _prepared(image: Tensor, size: int) -> Tensor:
    """Shorter side to `size`, bicubic; the middle; CLIP's normalisation."""
    height, width = image.shape[1:]
    scale = size / min(height, width)
    shape = (max(size, round(height * scale)), max(size, round(width * scale)))
    resized = F.interpolate(image[None], size=shape, mode="bicubic", antialias=True, align_corners=False)[0].clamp(0, 1)
    top, left = (shape[0] - size) // 2, (shape[1] - size) // 2
    middle = resized[:, top : top + size, left : left + size]
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return (middle - mean) / std


def build_clip_antonym(
    pretrained: str,
    pairs: Mapping[str, Sequence[str]],
    temperature: float = 0.01,
    batch_size: int = 32,
    device: str = "cpu",
) -> ClipAntonym:
    """The scorer from a folder in the layout of `save_pretrained`, or a hub id."""
    place = resolve_device(device)
    source = str(Path(pretrained).expanduser()) if pretrained.startswith("~") else pretrained
    try:
        model: Any = CLIPModel.from_pretrained(source)
        tokenizer = AutoTokenizer.from_pretrained(source)
    except Exception as error:  # of whatever library reads a broken folder
        first = one_line(error, 200)
        raise SettingError(
            f"scorer.pretrained={pretrained!r}: {first}; name a folder that holds a CLIP, or connect to the hub once."
        ) from error
    check_finite("scorer.pretrained", pretrained, model)
    return ClipAntonym(model.to(place), tokenizer, pairs, temperature, batch_size)
