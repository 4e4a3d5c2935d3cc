"""The parts of a pipeline whose denoiser is a transformer, SD3's or FLUX's: loaded, or with random weights."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config
from transformers.models.t5.modeling_t5 import T5EncoderModel

from sysdpo.components.image.joint_text import ClipAndT5, Encoder
from sysdpo.components.image.latents import Autoencoder
from sysdpo.components.text.codec import byte_tokenizer, local_tokenizer
from sysdpo.components.text.pretrained import shapes_only
from sysdpo.errors import SettingError

CLASSES: dict[str, Any] = {each.__name__: each for each in (SD3Transformer2DModel, FluxTransformer2DModel)}
ENCODERS: dict[str, list[Any]] = {
    "SD3Transformer2DModel": [CLIPTextModelWithProjection, CLIPTextModelWithProjection, T5EncoderModel],
    "FluxTransformer2DModel": [CLIPTextModel, T5EncoderModel],
}
"""The text encoders of each denoiser's pipeline, in the order of its folders."""
T5_LENGTH = {"SD3Transformer2DModel": 256, "FluxTransformer2DModel": 512}
"""Tokens of a caption, as the pipelines cut it."""
IMAGE_SIZE = 1024
"""Of a transformer whose config names none."""

Parts = tuple[Any, FlowMatchEulerDiscreteScheduler, ClipAndT5, Autoencoder]


def class_of(setting: str, config: Mapping[str, Any]) -> str:
    """The name of the denoiser's class, which is in its config.

    Raises:
        SettingError: a transformer of another kind.
    """
    name = str(config.get("_class_name"))
    if name not in CLASSES:
        raise SettingError(f"{setting}: its transformer is a {name}; {' and '.join(CLASSES)} are known.")
    return name


def pretrained_parts(source: str, image_size: int | None, load: Callable[..., Any]) -> Parts:
    """From a folder or a hub id.

    Args:
        load: of a class, the source and a part's folder; it explains what cannot be read.
    """
    config = SD3Transformer2DModel.load_config(source, subfolder="transformer")
    name = class_of(f"model.pretrained={source!r}", config)
    denoiser = load(CLASSES[name], source, "transformer", low_cpu_mem_usage=False)
    scheduler = load(FlowMatchEulerDiscreteScheduler, source, "scheduler")
    vae = load(AutoencoderKL, source, "vae", low_cpu_mem_usage=False)
    encoders = []
    for position, cls in enumerate(ENCODERS[name]):
        number = f"_{position + 1}" if position else ""
        tokenizer = load(AutoTokenizer, source, f"tokenizer{number}")
        encoders.append((tokenizer, load(cls, source, f"text_encoder{number}")))
    return _together(name, denoiser, scheduler, vae, encoders, image_size)


def random_parts(
    architecture: Mapping[str, Any], pretrained: str | None, image_size: int | None, seed: int, place: torch.device
) -> Parts:
    """Of an architecture with `transformer`, `vae`, `scheduler` and `text_encoders`, weights drawn from `seed`."""
    name = class_of("model.architecture", architecture["transformer"])
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(architecture["scheduler"])
    with torch.random.fork_rng(devices=[]), shapes_only(place):
        torch.manual_seed(seed)
        own = {key: value for key, value in architecture["transformer"].items() if key != "_class_name"}
        denoiser = CLASSES[name].from_config(own)
        vae = AutoencoderKL.from_config(architecture["vae"])
        encoders = [
            _random_encoder(cls, config, position, pretrained)
            for position, (cls, config) in enumerate(zip(ENCODERS[name], architecture["text_encoders"], strict=True))
        ]
    return _together(name, denoiser, scheduler, vae, encoders, image_size)


def _random_encoder(cls: Any, config: Mapping[str, Any], position: int, pretrained: str | None) -> Encoder:
    tokenizer: Any = byte_tokenizer()
    if pretrained is not None:
        folder = f"tokenizer_{position + 1}" if position else "tokenizer"
        tokenizer = local_tokenizer(pretrained, config["vocab_size"], folder)
    tokens = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    if cls is T5EncoderModel:
        return tokenizer, cls(T5Config(**{**tokens, **config}))
    return tokenizer, cls(CLIPTextConfig(**{"bos_token_id": 1, **tokens, **config}))


def _together(
    name: str, denoiser: Any, scheduler: Any, vae: Any, encoders: list[Encoder], image_size: int | None
) -> Parts:
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    size = image_size or (int(denoiser.config.get("sample_size") or 0) * factor) or IMAGE_SIZE
    *clips, t5 = encoders
    captions = ClipAndT5(clips, t5, T5_LENGTH[name], int(denoiser.config.joint_attention_dim))
    return denoiser, scheduler, captions, Autoencoder(vae, size)
