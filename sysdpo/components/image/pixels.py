"""Pictures in and out of an image model: what counts as a picture, and how one is stored."""

import io
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from sysdpo.errors import SettingError, one_line

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""Kinds of files that are decoded; others (EPS among them) would start programs."""

MODES = ("RGB", "RGBA", "L", "LA", "P", "PA", "1")
"""8 bits a channel or fewer, which become RGB without a choice; CMYK needs a colour profile."""


def to_pixels(value: Any, size: int) -> Tensor:
    """One picture as [3, size, size], fp32, in [0, 1].

    Args:
        value: a tensor of that shape, a PIL image, or the bytes of an image file; 8 bits a channel, in colour, grey or
            with a palette, upright by its EXIF orientation. What is transparent stands on white.
        size: the only height and width accepted.

    Raises:
        SettingError: not a picture, truncated, of another mode or size, or with values outside [0, 1].
    """
    if isinstance(value, bytes):
        value = _decoded(value, size)
    if isinstance(value, Image.Image):
        value = torch.from_numpy(np.asarray(_as_rgb(value)).copy()).permute(2, 0, 1).float() / 255
    if not isinstance(value, Tensor) or value.dim() != 3 or value.shape[0] != 3:
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise SettingError(f"an image must be an RGB picture or a tensor [3, {size}, {size}], not {shape}.")
    height, width = value.shape[1:]
    if (height, width) != (size, size):
        raise SettingError(f"the image has {height} x {width} pixels where the model has {size} x {size}; resize it.")
    if not (bool(torch.isfinite(value).all()) and float(value.min()) >= 0 and float(value.max()) <= 1):
        raise SettingError("the image has values outside [0, 1]; scale it to [0, 1].")
    return value.float()


def _decoded(content: bytes, size: int) -> Image.Image:
    """The picture of a file; its size is compared before it is decoded, so that a small file cannot fill the memory."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture = Image.open(io.BytesIO(content), formats=FORMATS)
            if set(picture.size) == {size} and getattr(picture, "n_frames", 1) == 1:
                depths = [str(tile[3]) for tile in picture.tile] + [str(picture.info.get("bitdepth", ""))]
                _check_depth(picture.mode, depths, content)
                picture.load()
                return picture
    except SettingError:
        raise
    except Exception as error:  # truncated, foreign, or made to do harm: of whatever decoder
        raise SettingError(
            f"the image cannot be read ({one_line(error, 100)}); it is truncated or no image file."
        ) from error
    if getattr(picture, "n_frames", 1) != 1:
        raise SettingError(f"the image has {getattr(picture, 'n_frames', 0)} frames; store one of them.")
    width, height = picture.size
    raise SettingError(f"the image has {height} x {width} pixels where the model has {size} x {size}; resize it.")


def _check_depth(mode: str, depths: Sequence[str], content: bytes) -> None:
    """Pillow halves 16-bit colours without a word: what is lost must not be lost silently."""
    png = content[:8] == b"\x89PNG\r\n\x1a\n" and len(content) > 24 and content[24] == 16
    if png or mode.startswith(("I", "F")) or any("16" in depth for depth in depths):
        raise SettingError(f"the image has more than 8 bits a channel (mode {mode!r}); store it with 8.")


def _as_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode not in MODES:
        raise SettingError(f"the image has mode {picture.mode!r}; convert it with image.convert('RGB').")
    picture = ImageOps.exif_transpose(picture)
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    return picture.convert("RGB")


def stored(value: Any) -> Any:
    """A variable's value as a data set stores it: images as PIL pictures, everything else as it is."""
    if isinstance(value, list):
        return [stored(v) for v in value]
    return to_picture(value) if isinstance(value, Tensor) else value


def to_picture(pixels: Tensor) -> Image.Image:
    """[3, H, W] in [0, 1] as an 8-bit RGB picture."""
    return Image.fromarray((pixels.detach().cpu() * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())
