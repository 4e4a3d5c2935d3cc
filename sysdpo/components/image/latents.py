"""The latents in which a diffusion model denoises: those of a VAE, or of blocks of pixels."""

import hashlib
from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor, nn

LATENTS_LIMIT = 50_000
"""Pictures whose latents are remembered; those of Stable Diffusion at 512 pixels take 64 KB each."""


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
