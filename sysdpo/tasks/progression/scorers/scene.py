"""Exact scorer of rendered scenes: attribute levels in closed form from the pixels (table 1, `laptop`).

Each attribute is one colour statistic over the sky (the top eight rows), the ground (the bottom sixteen) or
the whole picture, scaled so that a render without the attribute reads 0 and one at level 1 reads 1. It knows
nothing about places, captions or models: `STATISTICS` is all there is to it. Readings compare pictures in one
attribute; across attributes they are not independent (fog greys the sky as clouds do).
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from sysdpo.errors import SettingError, nearest

IMAGE_SIZE = 32
SKY = slice(0, 8)
GROUND = slice(16, 32)
Floats = NDArray[np.float64]


def as_batch(images: Sequence[Any], size: int = IMAGE_SIZE) -> Floats:
    """Images as one array.

    Args:
        images: float tensors or arrays [3, H, W] in [0, 1], or RGB PIL images.
        size: the only height and width accepted.

    Returns:
        [N, size, size, 3], float64, in [0, 1].

    Raises:
        SettingError: an image of another size or mode, or with values outside [0, 1]; names the row.
    """
    batch = np.empty((len(images), size, size, 3))
    for row, image in enumerate(images):
        if isinstance(image, Image.Image):
            if image.mode != "RGB":
                raise SettingError(f"scene image {row}: mode {image.mode!r}; convert it with image.convert('RGB')")
            pixels = np.asarray(image, dtype=np.float64) / 255
        else:
            array = image.detach().cpu().numpy() if isinstance(image, torch.Tensor) else np.asarray(image)
            if not np.issubdtype(array.dtype, np.floating):
                raise SettingError(f"scene image {row}: {array.dtype} values; give floats in [0, 1]")
            if array.ndim != 3 or array.shape[0] != 3:
                raise SettingError(f"scene image {row}: shape {tuple(array.shape)}; give [3, {size}, {size}]")
            pixels = array.astype(np.float64).transpose(1, 2, 0)
        if pixels.shape != (size, size, 3):
            height, width = pixels.shape[:2]
            raise SettingError(f"scene image {row}: {height} x {width} pixels; this scorer reads {size} x {size}")
        if not np.isfinite(pixels).all() or pixels.min() < 0 or pixels.max() > 1:
            raise SettingError(f"scene image {row}: values outside [0, 1] or not finite; clamp the image to [0, 1]")
        batch[row] = pixels
    return batch


class SceneScorer:
    """Levels of the attributes of `STATISTICS`, exact on renders up to the layout's own scatter."""

    name = "scene_exact"

    @property
    def attributes(self) -> tuple[str, ...]:
        """The attributes this scorer knows."""
        return tuple(STATISTICS)

    def score(self, images: Sequence[Any], attributes: Sequence[str]) -> Floats:
        """Score image i for attribute i.

        Args:
            images: N images, as `as_batch` takes them.
            attributes: N attribute names, or one that serves all images.

        Returns:
            [N] levels in [0, 1].

        Raises:
            SettingError: an unknown attribute, a count that does not match, or an image that cannot be read.
        """
        names = attribute_rows(attributes, len(images), self.attributes)
        pixels = as_batch(images)
        scores = np.empty(len(images))
        for name in set(names):
            rows = [row for row, other in enumerate(names) if other == name]
            scores[rows] = np.clip(STATISTICS[name](pixels[rows]), 0, 1)
        return scores


def attribute_rows(attributes: Sequence[str], count: int, known: Sequence[str]) -> list[str]:
    """One known attribute name per image; a single name serves all."""
    names = [attributes] if isinstance(attributes, str) else list(attributes)
    names = names * count if len(names) == 1 else names
    if len(names) != count:
        raise SettingError(f"scorer: {len(names)} attributes for {count} images; give one each, or one for all")
    for name in names:
        if name not in known:
            raise SettingError(f"scorer attribute: {nearest(name, known)}")
    return names


# --- one statistic an attribute: [N, 32, 32, 3] -> [N] ------------------------------------------------------


def _ramp(value: Floats, zero: float, one: float) -> Floats:
    """Linear in `value`: 0 at `zero`, 1 at `one`, held in [0, 1]."""
    return np.clip((value - zero) / (one - zero), 0, 1)


def _luminance(pixels: Floats) -> Floats:
    return pixels @ np.array([0.299, 0.587, 0.114])


def _sky_colour(pixels: Floats) -> Floats:
    """Median colour of the sky, [N, 3]: neither sun nor stars move it."""
    return np.median(pixels[:, SKY].reshape(len(pixels), -1, 3), axis=1)


def _share_of(pixels: Floats, contrast: Callable[[Floats, Floats, Floats], Floats], low: float, high: float) -> Floats:
    """Share of the pixels whose colour contrast lies above the step from `low` to `high` (soft): [N]."""
    red, green, blue = np.moveaxis(pixels, -1, 0)
    return _ramp(contrast(red, green, blue), low, high).mean(axis=(1, 2))


def _bright(pixels: Floats) -> Floats:
    return _ramp(_luminance(pixels).mean(axis=(1, 2)), 0.460, 0.892)


def _dark(pixels: Floats) -> Floats:
    return _ramp(_luminance(pixels).mean(axis=(1, 2)), 0.460, 0.069)


def _sky_grey(pixels: Floats) -> Floats:
    return _share_of(pixels[:, SKY], lambda r, g, b: 0.3 - (b - r), 0.0, 0.3)


def _fog(pixels: Floats) -> Floats:
    """Near fog colour all over, and under a grey sky."""
    distance = np.abs(pixels - np.array([0.78, 0.79, 0.80])).mean(axis=(1, 2, 3))
    return np.minimum(_ramp(distance, 0.325, 0.042), _ramp(_sky_grey(pixels), 0.02, 0.87))


def _night(pixels: Floats) -> Floats:
    """A sky both dark and deep blue: a dark picture alone is not night."""
    sky = _sky_colour(pixels)
    darkness = _ramp(np.log(_luminance(sky) + 1e-3), np.log(0.525), np.log(0.062))
    blueness = _ramp(sky[:, 2] / np.maximum(sky.sum(axis=1), 1e-3), 0.431, 0.690)
    return np.minimum(darkness, blueness) ** (1 / 1.3)


def _warm(pixels: Floats) -> Floats:
    """Red against blue in the sky, as shares of its colour."""
    sky = _sky_colour(pixels)
    return _ramp((sky[:, 0] - sky[:, 2]) / np.maximum(sky.sum(axis=1), 1e-3), -0.187, 0.250)


def _snow(pixels: Floats) -> Floats:
    return _share_of(pixels[:, GROUND], lambda r, g, b: np.minimum(np.minimum(r, g), b), 0.6, 0.8)


def _ice(pixels: Floats) -> Floats:
    return _share_of(pixels[:, GROUND], lambda r, g, b: np.minimum(g, b) - r, 0.10, 0.25)


def _clouds(pixels: Floats) -> Floats:
    return _ramp(_sky_grey(pixels), 0.02, 0.96)


def _flowers(pixels: Floats) -> Floats:
    return _ramp(_share_of(pixels[:, GROUND], lambda r, g, b: np.minimum(r, b) - g, 0.05, 0.25), 0.0, 0.6)


def _autumn(pixels: Floats) -> Floats:
    return _share_of(pixels[:, GROUND], lambda r, g, b: np.minimum(r - g, 0.6 * (r - b)), 0.12, 0.27)


def _lush(pixels: Floats) -> Floats:
    return _share_of(pixels[:, GROUND], lambda r, g, b: g - np.maximum(r, b), 0.05, 0.25)


def _sunny(pixels: Floats) -> Floats:
    return _ramp(_share_of(pixels[:, SKY], lambda r, g, b: np.minimum(r, g) - b, 0.1, 0.4), 0.0, 0.33)


STATISTICS: dict[str, Callable[[Floats], Floats]] = {
    "bright": _bright,
    "dark": _dark,
    "fog": _fog,
    "snow": _snow,
    "ice": _ice,
    "night": _night,
    "clouds": _clouds,
    "flowers": _flowers,
    "autumn": _autumn,
    "warm": _warm,
    "lush": _lush,
    "sunny": _sunny,
}


def rank_correlation(asked: Sequence[float] | Floats, measured: Sequence[float] | Floats) -> float:
    """Spearman's rank correlation; ties share their mean rank. NaN where either side is constant."""
    return float(np.corrcoef(_ranks(np.asarray(asked)), _ranks(np.asarray(measured)))[0, 1])


def _ranks(values: Floats) -> Floats:
    _, group, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[group]
