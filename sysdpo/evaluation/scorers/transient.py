"""The paper's scorer: a ResNet-50 that regresses the forty scene attributes (section 5.1)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import ResNetConfig, ResNetForImageClassification

from sysdpo.errors import SettingError
from sysdpo.evaluation.scorers.scene import Floats, attribute_rows

# fmt: off
ATTRIBUTES = (
    "dirty", "daylight", "night", "sunrisesunset", "dawndusk", "sunny", "clouds", "fog", "storm", "snow", "warm",
    "cold", "busy", "beautiful", "flowers", "spring", "summer", "autumn", "winter", "glowing", "colorful", "dull",
    "rugged", "midday", "dark", "bright", "dry", "moist", "windy", "rain", "ice", "cluttered", "soothing",
    "stressful", "exciting", "sentimental", "mysterious", "boring", "gloomy", "lush",
)
# fmt: on
"""In the order of the outputs."""
SIDE = 256


class TransientResNet50:
    """Attribute levels of photographs; `model` has forty outputs, trained on levels in [0, 1] with no activation."""

    name = "transient_resnet50"
    attributes = ATTRIBUTES

    def __init__(self, model: ResNetForImageClassification, batch_size: int = 32) -> None:
        if model.config.num_labels != len(ATTRIBUTES):
            raise SettingError(f"scorer: the regressor has {model.config.num_labels} outputs; it needs 40.")
        self.model, self.batch_size = model.requires_grad_(False).eval(), batch_size

    @torch.no_grad()
    def score(self, images: Sequence[Any], attributes: Sequence[str]) -> Floats:
        """N images [3, H, W] in [0, 1] and an attribute each -> N levels; what lies outside [0, 1] is held there."""
        names = attribute_rows(attributes, len(images), ATTRIBUTES)
        levels = []
        for start in range(0, len(images), self.batch_size):
            pixels = torch.stack([_prepared(image) for image in images[start : start + self.batch_size]])
            levels.append(self.model(pixels.to(self.model.device, self.model.dtype)).logits.float().cpu())
        every = torch.cat(levels).double().numpy() if levels else np.empty((0, len(ATTRIBUTES)))
        return np.asarray(np.clip(every[np.arange(len(names)), [ATTRIBUTES.index(n) for n in names]], 0, 1))


def build_transient_resnet50(
    folder: str | None, architecture: Mapping[str, Any] | None = None, device: str = "cpu"
) -> TransientResNet50:
    """The scorer from a folder in the layout of `save_pretrained`; None draws random weights of `architecture`."""
    if folder is None:
        return TransientResNet50(
            ResNetForImageClassification(ResNetConfig(**{"num_labels": len(ATTRIBUTES), **dict(architecture or {})}))
        )
    if not Path(folder).expanduser().is_dir():
        raise SettingError(
            f"scorer.folder={folder!r}: there is no such folder; train the regressor or choose a scorer."
        )
    place = "cuda" if device == "auto" and torch.cuda.is_available() else device.replace("auto", "cpu")
    model: Any = ResNetForImageClassification.from_pretrained(str(Path(folder).expanduser()))
    return TransientResNet50(model.to(place))


def _prepared(image: Tensor) -> Tensor:
    """Shorter side to 256 pixels, the middle 256 x 256, values in [-1, 1]."""
    height, width = image.shape[1:]
    scale = SIDE / min(height, width)
    size = (max(SIDE, round(height * scale)), max(SIDE, round(width * scale)))
    resized = F.interpolate(image[None].float(), size=size, mode="bilinear", antialias=True, align_corners=False)[0]
    top, left = (size[0] - SIDE) // 2, (size[1] - SIDE) // 2
    return resized[:, top : top + SIDE, left : left + SIDE] * 2 - 1
