"""Learned scorer of scenes: a small CNN that reads all attribute levels off a picture at once.

The paper's kind of scorer (a ResNet-50 regressor trained on attribute levels, section 5.1) at the size of a
laptop; trained on renders by `scripts/assets/train_scene_regressor.py`. `scene.py` is its exact counterpart.
"""

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from sysdpo.errors import SettingError
from sysdpo.tasks.progression.scorers.scene import IMAGE_SIZE, Floats, as_batch, attribute_rows

WEIGHTS = "model.safetensors"
CONFIG = "config.json"


class SceneRegressor(nn.Module):
    """Three convolutions, means over four bands of rows (sky to foreground), one linear layer.

    Args:
        attributes: names of the outputs, in order.
        width: channels of the first convolution; the next two have twice and three times as many.
    """

    name = "scene_regressor"

    def __init__(self, attributes: Sequence[str], width: int = 32) -> None:
        super().__init__()
        self.attributes = tuple(attributes)
        self.width = width
        sizes = (12, width, 2 * width, 3 * width)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride=1 if before == 12 else 2, padding=1) for before, after in pairwise(sizes)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(8, size) for size in sizes[1:])
        self.head = nn.Linear(4 * sizes[-1], len(self.attributes))

    def forward(self, images: Tensor) -> Tensor:
        """[N, 3, 32, 32] in [0, 1] -> levels [N, A], not clamped."""
        x = F.pixel_unshuffle(images * 2 - 1, 2)
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = F.silu(norm(convolution(x)))
        bands = x.mean(dim=3)  # [N, C, 4]: rows stay apart, columns do not matter
        return self.head(bands.flatten(1))

    @torch.no_grad()
    def score(self, images: Sequence[Any], attributes: Sequence[str]) -> Floats:
        """Score image i for attribute i; images, attributes, result and errors as in `SceneScorer.score`."""
        names = attribute_rows(attributes, len(images), self.attributes)
        pixels = torch.from_numpy(as_batch(images)).float().permute(0, 3, 1, 2)
        device = next(self.parameters()).device
        chunks = [self(chunk.to(device)).cpu() for chunk in pixels.split(256)]
        levels = torch.cat(chunks).double().numpy() if chunks else np.empty((0, len(self.attributes)))
        columns = [self.attributes.index(name) for name in names]
        return np.clip(levels[np.arange(len(names)), columns], 0, 1)

    def save(self, folder: Path) -> None:
        """Write `config.json` and `model.safetensors`."""
        folder.mkdir(parents=True, exist_ok=True)
        config = {"attributes": self.attributes, "width": self.width, "image_size": IMAGE_SIZE}
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        save_file(self.state_dict(), folder / WEIGHTS)

    @classmethod
    def from_folder(cls, folder: str | Path) -> "SceneRegressor":
        """Load what `save` wrote.

        Raises:
            SettingError: a file is missing, or the weights are those of another architecture.
        """
        folder = Path(folder)
        for name in (CONFIG, WEIGHTS):
            if not (folder / name).exists():
                raise SettingError(
                    f"scene regressor: {folder / name} is missing; run scripts/assets/train_scene_regressor.py"
                )
        config = json.loads((folder / CONFIG).read_text())
        model = cls(config["attributes"], config["width"])
        try:
            model.load_state_dict(load_file(folder / WEIGHTS))
        except RuntimeError as error:
            first = str(error).splitlines()[-1].strip()
            raise SettingError(
                f"scene regressor: {folder / WEIGHTS} does not fit its {CONFIG} ({first}); train it again"
            ) from error
        return model.eval()
