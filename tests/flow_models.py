"""Tiny pipelines of SD3's and FLUX's kinds, of diffusers' real classes: 16 x 16 pixels, latents 4 x 8 x 8."""

from typing import Any

import diffusers
from diffusers import FluxPipeline, StableDiffusion3Pipeline

from sysdpo.components.image.diffusion import Diffusion
from sysdpo.components.image.pretrained import build_diffusion

CLIP = {
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 300,
    "max_position_embeddings": 16,
    "projection_dim": 8,
}
T5 = {"vocab_size": 300, "d_model": 24, "d_ff": 16, "d_kv": 4, "num_heads": 2, "num_layers": 1, "is_gated_act": True}
VAE = {
    "block_out_channels": (4, 8),
    "norm_num_groups": 2,
    "down_block_types": ("DownEncoderBlock2D", "DownEncoderBlock2D"),
    "up_block_types": ("UpDecoderBlock2D", "UpDecoderBlock2D"),
    "latent_channels": 4,
    "scaling_factor": 1.5,
    "shift_factor": 0.06,
}
SD3 = {
    "_class_name": "SD3Transformer2DModel",
    "sample_size": 8,
    "patch_size": 2,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "attention_head_dim": 4,
    "num_attention_heads": 2,
    "joint_attention_dim": 24,
    "caption_projection_dim": 8,
    "pooled_projection_dim": 16,
    "pos_embed_max_size": 8,
    "dual_attention_layers": (0,),
    "qk_norm": "rms_norm",
}
FLUX = {
    "_class_name": "FluxTransformer2DModel",
    "patch_size": 1,
    "in_channels": 16,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": 24,
    "pooled_projection_dim": 8,
    "guidance_embeds": True,
    "axes_dims_rope": (2, 2, 4),
}
LORA = {"r": 2, "lora_alpha": 4, "target_modules": ["to_q", "to_k", "to_v", "to_out.0"]}


def make_flow(kind: str = "sd3", train: bool = True, shift: float = 3.0, **settings: Any) -> Diffusion:
    """kind: `sd3` or `flux`, whose scheduler shifts by the size of the picture."""
    is_flux = kind == "flux"
    architecture: dict[str, Any] = {
        "transformer": FLUX if is_flux else SD3,
        "vae": VAE,
        "scheduler": {"num_train_timesteps": 1000, "shift": shift, "use_dynamic_shifting": is_flux},
        "text_encoders": [CLIP, T5] if is_flux else [CLIP, CLIP, T5],
    }
    defaults: dict[str, Any] = {
        "pretrained": None,
        "weights": "random",
        "dtype": "float32",
        "device": "cpu",
        "bound": {"beta": 0.1},
        "num_inference_steps": 3,
        "guidance_scale": 2.5,
        "image_size": 16,
    }
    component = build_diffusion(**{**defaults, **settings}, architecture=architecture)
    if train:
        component.trainable(True)
    return component


def pipeline_of(component: Diffusion) -> Any:
    """diffusers' own pipeline of the component's parts."""
    part: Any = component
    encoders = part.captions.encoder.encoders
    parts = {"transformer": part.unet, "vae": part.codec.vae, "scheduler": part.scheduler}
    for number, (tokenizer, model) in zip(("", "_2", "_3"), encoders, strict=False):
        tokenizer.model_max_length = 16 if hasattr(model.config, "projection_dim") else 512
        parts |= {f"tokenizer{number}": tokenizer, f"text_encoder{number}": model}
    pipeline = (FluxPipeline if len(encoders) == 2 else StableDiffusion3Pipeline)(**parts)
    pipeline.set_progress_bar_config(disable=True)
    diffusers.utils.logging.set_verbosity_error()
    return pipeline
