"""The paper's scorer: a ResNet-50 that regresses the forty scene attributes (section 5.1)."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import ResNetConfig, ResNetForImageClassification

from sysdpo.components.folders import check_finite, loading
from sysdpo.devices import resolve_device
from sysdpo.errors import SettingError, one_line
from sysdpo.tasks.progression.scorers.scene import Floats, attribute_rows

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
LEAST_GAP = 0.1
"""Between the levels of a day landscape and of the same by night, of the attributes that are about light."""


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
        every = self.raw_levels(images).double().numpy()
        return np.asarray(np.clip(every[np.arange(len(names)), [ATTRIBUTES.index(n) for n in names]], 0, 1))

    @torch.no_grad()
    def raw_levels(self, images: Sequence[Any]) -> Tensor:
        """N images [3, H, W] in [0, 1] -> all levels [N, 40], as the regressor gives them."""
        levels = [torch.empty(0, len(ATTRIBUTES))]
        for start in range(0, len(images), self.batch_size):
            pixels = torch.stack([prepare(image) for image in images[start : start + self.batch_size]])
            levels.append(self.model(pixels.to(self.model.device, self.model.dtype)).logits.float().cpu())
        return torch.cat(levels)


def build_transient_resnet50(
    folder: str | None,
    checkpoint: str | None = None,
    sha256: str | None = None,
    architecture: Mapping[str, Any] | None = None,
    device: str = "cpu",
) -> TransientResNet50:
    """The scorer from one of two layouts; without either, random weights of `architecture`.

    Args:
        folder: in the layout of `save_pretrained`, as `scripts/assets/train_transient.py` writes it.
        checkpoint: a file in the published layout, `{"model": state dict of torchvision's ResNet-50, …}`.
        sha256: of `checkpoint`; given, the file must have it, and is then trusted to be the right regressor.
        architecture: of random weights: keys of transformers' ResNetConfig.
    """
    if folder is not None and checkpoint is not None:
        raise SettingError("scorer.folder and scorer.checkpoint are both set; name one of them.")
    place = resolve_device(device)
    if checkpoint is not None:
        model: Any = _published(Path(checkpoint).expanduser(), sha256)
        scorer = TransientResNet50(model.to(place))
        if sha256 is None:
            _check_levels(scorer, checkpoint)
        return scorer
    if folder is None:
        model = new_resnet50(architecture)
        return TransientResNet50(model.to(place))
    if not (Path(folder).expanduser() / "config.json").is_file():
        raise SettingError(
            f"scorer.folder={folder!r}: there is no model in such a folder; train it with "
            "scripts/assets/train_transient.py, set scorer.checkpoint to a published file, or choose "
            "scorer=clip_antonym."
        )
    with loading("scorer.folder", folder):
        model = ResNetForImageClassification.from_pretrained(str(Path(folder).expanduser()))
        labels = tuple(model.config.id2label[i] for i in range(model.config.num_labels))
    check_finite("scorer.folder", folder, model)
    if labels != ATTRIBUTES and not labels[0].startswith("LABEL_"):
        raise SettingError(
            f"scorer.folder={folder!r}: its outputs are {', '.join(labels[:3])}, … and not the forty attributes."
        )
    return TransientResNet50(model.to(place))


def new_resnet50(architecture: Mapping[str, Any] | None = None) -> ResNetForImageClassification:
    """A ResNet-50 (torchvision's form: strides in the 3 x 3 convolutions) with one output an attribute, at random."""
    names = dict(enumerate(ATTRIBUTES))
    config = ResNetConfig(id2label=names, label2id={v: k for k, v in names.items()}, **dict(architecture or {}))
    return ResNetForImageClassification(config)


def _published(path: Path, sha256: str | None) -> ResNetForImageClassification:
    if not path.is_file():
        raise SettingError(f"scorer.checkpoint={str(path)!r}: there is no such file.")
    if sha256 is not None:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != sha256.lower():
            raise SettingError(f"scorer.checkpoint={str(path)!r}: its sha256 is {digest}, not scorer.sha256={sha256}.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # an unpickler has as many errors as foreign bytes have faces
        first = one_line(error, 120)
        raise SettingError(f"scorer.checkpoint={str(path)!r}: cannot be read as plain weights ({first}).") from error
    if not isinstance(content, Mapping) or not isinstance(content.get("model"), Mapping):
        raise SettingError(
            f"scorer.checkpoint={str(path)!r}: has no 'model'; the published file is {{'model': weights, …}}."
        )
    model = new_resnet50()
    try:
        model.load_state_dict({_renamed(name): value for name, value in content["model"].items()})
    except Exception as error:  # names and shapes are whatever the file says
        reason = one_line(error, 200)
        raise SettingError(
            f"scorer.checkpoint={str(path)!r}: is no ResNet-50 with forty outputs ({reason})."
        ) from error
    check_finite("scorer.checkpoint", str(path), model)
    return model


def _renamed(name: str) -> str:
    """torchvision's name of a weight -> transformers'."""
    name = name.removeprefix("module.")  # of a model that was trained on several GPUs
    first = {"conv1": "convolution", "bn1": "normalization"}
    part, _, rest = name.partition(".")
    if part in first:
        return f"resnet.embedder.embedder.{first[part]}.{rest}"
    if part == "fc":
        return f"classifier.1.{rest}"
    if part.startswith("layer"):
        block, _, rest = rest.partition(".")
        layer, _, rest = rest.partition(".")
        home = f"resnet.encoder.stages.{int(part[5:]) - 1}.layers.{block}"
        if layer == "downsample":
            kind, _, rest = rest.partition(".")
            return f"{home}.shortcut.{'convolution' if kind == '0' else 'normalization'}.{rest}"
        kind = "convolution" if layer.startswith("conv") else "normalization"
        return f"{home}.layer.{int(layer[-1]) - 1}.{kind}.{rest}"
    return name


def _check_levels(scorer: TransientResNet50, checkpoint: str) -> None:
    """Refuse weights that cannot tell day from night: a regressor of forty face attributes has the very same shape."""
    day, night = _landscape(1.0), _landscape(0.04)
    expected = {"bright": 1, "daylight": 1, "dark": -1, "night": -1}
    names = list(expected)
    levels = scorer.raw_levels([day, night])
    gaps = {n: float(levels[0, ATTRIBUTES.index(n)] - levels[1, ATTRIBUTES.index(n)]) for n in names}
    wrong = [n for n in names if not gaps[n] * expected[n] > LEAST_GAP]
    if wrong:
        raise SettingError(
            f"scorer.checkpoint={checkpoint!r}: does not tell a day landscape from the same by night "
            f"({', '.join(wrong)}); files of the same shape for the 40 CelebA attributes circulate. If it is the right "
            "one, set scorer.sha256."
        )


def _landscape(light: float) -> Tensor:
    """Sky above, meadow below, [3, 256, 256], under more or less light."""
    image = torch.empty(3, SIDE, SIDE)
    image[:, : SIDE // 2] = torch.tensor([0.55, 0.75, 0.98])[:, None, None]
    image[:, SIDE // 2 :] = torch.tensor([0.45, 0.62, 0.30])[:, None, None]
    return image * light


def prepare(image: Tensor) -> Tensor:
    """Shorter side to 256 pixels, the middle 256 x 256, values in [-1, 1]."""
    height, width = image.shape[1:]
    scale = SIDE / min(height, width)
    size = (max(SIDE, round(height * scale)), max(SIDE, round(width * scale)))
    resized = F.interpolate(image[None].float(), size=size, mode="bilinear", antialias=True, align_corners=False)[0]
    top, left = (size[0] - SIDE) // 2, (size[1] - SIDE) // 2
    return resized[:, top : top + SIDE, left : left + SIDE] * 2 - 1
