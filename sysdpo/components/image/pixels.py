"""Pictures in and out of a diffusion model: what counts as a picture, and the latents it is denoised in."""

import hashlib
import io
import warnings
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from PIL import Image, ImageOps
from torch import Tensor, nn

from sysdpo.errors import SettingError, one_line

LATENTS_LIMIT = 50_000
"""Pictures whose latents are remembered; those of Stable Diffusion at 512 pixels take 64 KB each."""


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


class Codec(Protocol):
    """Between pixels [N, 3, H, W] in [0, 1] and the latents [N, C, h, w] that are denoised."""

    image_size: int
    latent_shape: tuple[int, int, int]

    def encode(self, pixels: Tensor) -> Tensor: ...

    def decode(self, latents: Tensor) -> Tensor: ...

    def networks(self) -> dict[str, nn.Module]:
        """By name."""
        ...


class PixelUnshuffle:
    """Latents are the pixels in [-1, 1], with blocks of factor x factor moved into the channels."""

    def __init__(self, image_size: int, factor: int) -> None:
        self.image_size, self.factor = image_size, factor
        self.latent_shape = (3 * factor**2, image_size // factor, image_size // factor)

    def encode(self, pixels: Tensor) -> Tensor:
        return F.pixel_unshuffle(pixels * 2 - 1, self.factor)

    def decode(self, latents: Tensor) -> Tensor:
        return F.pixel_shuffle(latents.float(), self.factor).clamp(-1, 1) / 2 + 0.5

    def networks(self) -> dict[str, nn.Module]:
        return {}


class PatchComponents:
    """Latents are the leading principal components of square patches: a linear autoencoder, fixed before training.

    Args:
        mean: of all patches, [P], pixels in [-1, 1] in the order of `pixel_unshuffle`.
        basis: [P, C], orthonormal columns.
        scale: what one unit of each latent channel stands for, [C].
    """

    def __init__(self, image_size: int, mean: Tensor, basis: Tensor, scale: Tensor) -> None:
        self.image_size = image_size
        self.factor = round((basis.shape[0] / 3) ** 0.5)
        self.mean, self.basis, self.scale = mean.float(), basis.float(), scale.float()
        self.latent_shape = (basis.shape[1], image_size // self.factor, image_size // self.factor)

    def networks(self) -> dict[str, nn.Module]:
        return {}

    def encode(self, pixels: Tensor) -> Tensor:
        patches = F.pixel_unshuffle(pixels * 2 - 1, self.factor).permute(0, 2, 3, 1)  # [N, h, w, P]
        mean, basis, scale = (part.to(pixels.device) for part in (self.mean, self.basis, self.scale))
        return ((patches - mean) @ basis / scale).permute(0, 3, 1, 2).contiguous()

    def decode(self, latents: Tensor) -> Tensor:
        mean, basis, scale = (part.to(latents.device) for part in (self.mean, self.basis, self.scale))
        patches = (latents.float().permute(0, 2, 3, 1) * scale) @ basis.T + mean
        return F.pixel_shuffle(patches.permute(0, 3, 1, 2), self.factor).clamp(-1, 1) / 2 + 0.5


class Autoencoder:
    """Latents of a frozen VAE (latent diffusion). The mode of its posterior is taken, and remembered."""

    def __init__(self, vae: AutoencoderKL, image_size: int, batch_size: int = 8) -> None:
        self.vae = vae.requires_grad_(False).eval()
        self.image_size, self.batch_size = image_size, batch_size
        config: Any = vae.config
        side = image_size // 2 ** (len(config.block_out_channels) - 1)
        self.latent_shape = (int(config.latent_channels), side, side)
        self.scale = float(config.scaling_factor)  # brings latents to unit variance
        self.shift = float(config.shift_factor or 0.0)  # and, of some, to mean zero
        self._memory: dict[bytes, Tensor] = {}

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        keys = [hashlib.blake2b(p.numpy().tobytes(), digest_size=16).digest() for p in pixels.cpu()]
        if len(self._memory) > LATENTS_LIMIT:
            self._memory.clear()
        missing = {key: p for key, p in zip(keys, pixels, strict=True) if key not in self._memory}
        for part in _parts(list(missing), self.batch_size):
            images = torch.stack([missing[key] for key in part]).to(self.vae.device, self.vae.dtype)
            latents = self.vae.encode(images * 2 - 1).latent_dist.mode()
            latents = (latents - self.shift) * self.scale
            self._memory.update(zip(part, latents.float().cpu(), strict=True))
        return torch.stack([self._memory[key] for key in keys])

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        parts = (latents / self.scale + self.shift).to(self.vae.device, self.vae.dtype).split(self.batch_size)
        return torch.cat([self.vae.decode(part).sample.float().clamp(-1, 1) / 2 + 0.5 for part in parts])

    def networks(self) -> dict[str, nn.Module]:
        return {"vae": self.vae}


def _parts(items: list[Any], size: int) -> Sequence[list[Any]]:
    return [items[i : i + size] for i in range(0, len(items), size)]
