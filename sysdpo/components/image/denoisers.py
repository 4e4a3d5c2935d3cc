"""How each kind of denoiser is asked, and how its adapter is kept: UNets, SD3's and FLUX's transformers."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.loaders.lora_pipeline import FluxLoraLoaderMixin, SD3LoraLoaderMixin, StableDiffusionLoraLoaderMixin
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_diffusers, convert_unet_state_dict_to_peft
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor

Model = UNet2DConditionModel | SD3Transformer2DModel | FluxTransformer2DModel
PATCH = 2  # of FLUX: pixels of a latent's side that one token holds


class Denoiser(Protocol):
    """A kind of denoiser; the model itself is handed in, for its reference is another one."""

    part: str
    """Its folder in a pipeline."""
    guides_itself: bool
    """Whether it is told the strength of guidance, instead of being asked with and without the caption."""

    def tokens(self, model: Any, latent_shape: tuple[int, int, int]) -> int:
        """Of a picture; 0 where it has none."""
        ...

    def sigmas(self, steps: int) -> Any:
        """Levels of noise along a path, before the scheduler shifts them; None: the scheduler's own."""
        ...

    def predict(self, model: Any, noisy: Tensor, t: Tensor, conditions: Mapping[str, Any], guidance: float) -> Tensor:
        """For latents [N, C, h, w] at times t, [N] or one for all: [N, C, h, w]."""
        ...

    def made_up(self, model: Any, captions: int, length: int) -> dict[str, Any]:
        """Conditions of the right shapes, whose values are arbitrary; `length` is that of a caption."""
        ...

    def save_lora(self, model: Any, folder: str) -> None:
        """In the layout of the pipeline's `load_lora_weights`."""
        ...

    def restore_lora(self, model: Any, folder: str) -> None: ...


def denoiser_of(model: Any) -> Denoiser:
    if isinstance(model, FluxTransformer2DModel):
        return Flux()
    return StableDiffusion3() if isinstance(model, SD3Transformer2DModel) else UNet()


class UNet:
    part = "unet"
    guides_itself = False

    def tokens(self, model: Any, latent_shape: tuple[int, int, int]) -> int:
        return 0

    def sigmas(self, steps: int) -> None:
        return None

    def predict(self, model: Any, noisy: Tensor, t: Tensor, conditions: Mapping[str, Any], guidance: float) -> Tensor:
        predicted: Tensor = model(noisy, t, **conditions, return_dict=False)[0]
        return predicted

    def made_up(self, model: Any, captions: int, length: int) -> dict[str, Any]:
        config = model.config
        hidden = torch.empty(captions, length, config.cross_attention_dim, dtype=model.dtype)
        if config.addition_embed_type != "text_time":
            return {"encoder_hidden_states": hidden}
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        added = {
            "text_embeds": torch.empty(captions, pooled, dtype=model.dtype),
            "time_ids": torch.empty(captions, 6, dtype=model.dtype),
        }
        return {"encoder_hidden_states": hidden, "added_cond_kwargs": added}

    def save_lora(self, model: Any, folder: str) -> None:
        StableDiffusionLoraLoaderMixin.save_lora_weights(
            folder,
            unet_lora_layers=convert_state_dict_to_diffusers(get_peft_model_state_dict(model)),
            unet_lora_adapter_metadata=model.peft_config["default"].to_dict(),
        )

    def restore_lora(self, model: Any, folder: str) -> None:
        state, *_ = StableDiffusionLoraLoaderMixin.lora_state_dict(folder)
        _set_lora(model, state, self.part)


class StableDiffusion3:
    part = "transformer"
    guides_itself = False
    pipeline: Any = SD3LoraLoaderMixin

    def tokens(self, model: Any, latent_shape: tuple[int, int, int]) -> int:
        return (latent_shape[1] // model.config.patch_size) * (latent_shape[2] // model.config.patch_size)

    def sigmas(self, steps: int) -> Any:
        return None

    def predict(self, model: Any, noisy: Tensor, t: Tensor, conditions: Mapping[str, Any], guidance: float) -> Tensor:
        times = t.to(noisy.device).expand(len(noisy))
        predicted: Tensor = model(hidden_states=noisy, timestep=times, **conditions, return_dict=False)[0]
        return predicted

    def made_up(self, model: Any, captions: int, length: int) -> dict[str, Any]:
        config = model.config
        return {
            "encoder_hidden_states": torch.empty(captions, length, config.joint_attention_dim, dtype=model.dtype),
            "pooled_projections": torch.empty(captions, config.pooled_projection_dim, dtype=model.dtype),
        }

    def save_lora(self, model: Any, folder: str) -> None:
        self.pipeline.save_lora_weights(
            folder,
            transformer_lora_layers=get_peft_model_state_dict(model),
            transformer_lora_adapter_metadata=model.peft_config["default"].to_dict(),
        )

    def restore_lora(self, model: Any, folder: str) -> None:
        _set_lora(model, self.pipeline.lora_state_dict(folder), self.part)


class Flux(StableDiffusion3):
    """Sees a picture as a sequence of 2 x 2 blocks of its latents, with their places."""

    guides_itself = True  # distilled: guidance is an input of dev, and schnell needs none
    pipeline: Any = FluxLoraLoaderMixin

    def tokens(self, model: Any, latent_shape: tuple[int, int, int]) -> int:
        return (latent_shape[1] // PATCH) * (latent_shape[2] // PATCH)

    def sigmas(self, steps: int) -> Any:
        return np.linspace(1.0, 1 / steps, steps)

    def predict(self, model: Any, noisy: Tensor, t: Tensor, conditions: Mapping[str, Any], guidance: float) -> Tensor:
        height, width = noisy.shape[2] // PATCH, noisy.shape[3] // PATCH
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        places = torch.stack([torch.zeros(height, width), rows, columns], -1).view(-1, 3).to(noisy)
        words = torch.zeros(conditions["encoder_hidden_states"].shape[1], 3).to(noisy)
        blocks: Tensor = model(
            hidden_states=F.pixel_unshuffle(noisy, PATCH).flatten(2).transpose(1, 2),  # [N, tokens, 4 C]
            timestep=(t.to(noisy.device).expand(len(noisy)) / 1000).to(noisy.dtype),
            guidance=torch.full((len(noisy),), guidance, device=noisy.device) if model.config.guidance_embeds else None,
            txt_ids=words,
            img_ids=places,
            **conditions,
            return_dict=False,
        )[0]
        return F.pixel_shuffle(blocks.transpose(1, 2).unflatten(2, (height, width)), PATCH)


def _set_lora(model: Any, state: Mapping[str, Tensor], part: str) -> None:
    own = {key.removeprefix(f"{part}."): value for key, value in state.items() if key.startswith(f"{part}.")}
    set_peft_model_state_dict(model, convert_unet_state_dict_to_peft(own))
