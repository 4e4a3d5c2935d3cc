"""Tiny text-to-image models of diffusers' real classes, and the system of figure 2a made of them."""

from functools import partial
from typing import Any

import torch

from sysdpo.components.image.diffusion import Diffusion
from sysdpo.components.image.pretrained import build_diffusion
from sysdpo.components.tools.captions import even_captions
from sysdpo.components.tools.tool import Tool
from sysdpo.graph import SystemGraph
from sysdpo.system import CompoundSystem, Pair
from tests.systems import make_tiny

UNET: dict[str, Any] = {
    "sample_size": 4,
    "in_channels": 12,
    "out_channels": 12,
    "block_out_channels": (4, 8),
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 8,
    "attention_head_dim": 2,
}
CLIP = {
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 300,
    "max_position_embeddings": 32,
    "projection_dim": 8,
}
VAE = {
    "block_out_channels": (4, 8),
    "norm_num_groups": 2,
    "down_block_types": ("DownEncoderBlock2D", "DownEncoderBlock2D"),
    "up_block_types": ("UpDecoderBlock2D", "UpDecoderBlock2D"),
    "latent_channels": 4,
}
LLAMA = {
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
XL = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 32,  # 6 time ids of 4 and a pooled text of 8
    "cross_attention_dim": 16,
}
LORA = {"r": 2, "lora_alpha": 4, "target_modules": ["to_q", "to_k", "to_v", "to_out.0"]}
CAPTIONS = {
    "x": {"role": "input"},
    "y": {"role": "intermediate", "component": "captioner", "parents": ["x"]},
    "captions": {"role": "intermediate", "component": "parser", "parents": {"text": "y"}, "plate": "captions"},
    "z": {"role": "final", "component": "diffusion", "parents": {"caption": "captions"}, "plate": "captions"},
}


def make_diffusion(
    prediction_type: str = "epsilon", kind: str = "scene", train: bool = True, **settings: Any
) -> Diffusion:
    """8 x 8 pixels. kind: `scene` (unshuffled pixels, a language model's states), `sd` or `sdxl` (VAE and CLIP).

    Trainable, as `train_only` makes it, unless `train=False` leaves it as it was built.
    """
    architecture: dict[str, Any] = {
        "unet": UNET,
        "scheduler": {"num_train_timesteps": 100, "prediction_type": prediction_type, "timestep_spacing": "trailing"},
    }
    if kind == "scene":
        architecture |= {"pixel_unshuffle": 2, "language_model": LLAMA, "max_length": 16}
    else:
        xl = kind == "sdxl"
        architecture["unet"] = {**UNET, "in_channels": 4, "out_channels": 4, **(XL if xl else {})}
        architecture |= {"vae": VAE, "text_encoders": [CLIP, CLIP] if xl else [CLIP]}
    defaults: dict[str, Any] = {
        "pretrained": None,
        "weights": "random",
        "dtype": "float32",
        "device": "cpu",
        "bound": {"beta": 0.1},
        "num_inference_steps": 2,
        "guidance_scale": 2.0,
    }
    component = build_diffusion(**{**defaults, **settings}, architecture=architecture)
    if train:
        component.trainable(True)
    return component


def make_llm_diffusion(**settings: Any) -> CompoundSystem:
    components = {
        "captioner": make_tiny("{x}", seed=1, max_new_tokens=9),
        "parser": Tool(partial(even_captions, count=3), name="parser"),
        "diffusion": make_diffusion(**settings),
    }
    return CompoundSystem(SystemGraph(CAPTIONS, components), components)


def image(seed: int, size: int = 8) -> torch.Tensor:
    return torch.rand(3, size, size, generator=torch.Generator().manual_seed(seed))


def make_image_pairs(count: int) -> list[Pair]:
    """Pairs of three captioned images; the last pair's rejected text did not parse."""
    pairs = []
    for i in range(count):
        sides = []
        for side in range(2):
            captions = [f"{'ab'[side]}{i}{j}" for j in range(3)]
            images = [image(100 * i + 10 * side + j) for j in range(3)]
            sides.append({"y": "".join(captions), "captions": captions, "z": images})
        if i == count - 1:
            sides[1] = {"y": "no", "captions": [], "z": []}
        pairs.append(Pair(i, {"x": f"prompt {i}"}, *sides))
    return pairs
