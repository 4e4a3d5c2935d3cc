"""Loading a causal language model: which weights, which precision, which adapter."""

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sysdpo.components.hub import check_available, is_hub_id
from sysdpo.components.text.codec import byte_tokenizer, local_tokenizer
from sysdpo.components.weights import WHEELS, architecture_folder, pretrained_folder
from sysdpo.devices import resolve_device
from sysdpo.errors import SettingError
from sysdpo.paths import ASSETS

Weights = Literal["pretrained", "random"]

SHIPPED = {"mini_captioner": ASSETS / "mini_captioner"}
"""Language models that come with this project, in the layout of `save_pretrained`."""


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """`auto` is bf16 wherever the hardware multiplies it natively, else fp32."""
    if dtype != "auto":
        resolved = getattr(torch, dtype, None)
        if not isinstance(resolved, torch.dtype):
            raise SettingError(f"dtype={dtype!r}: write auto, float32, bfloat16 or float16.")
        return resolved
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


def shapes_only(device: torch.device) -> AbstractContextManager[Any]:
    """On torch's `meta` device modules are made there: shapes without memory, for `make plan`."""
    return device if device.type == "meta" else nullcontext()


def load_causal_lm(
    pretrained: str | None,
    *,
    weights: Weights = "pretrained",
    architecture: Mapping[str, Any] | None = None,
    dtype: str = "auto",
    device: str = "auto",
    attention: str = "auto",
    adapter: str | None = None,
    seed: int = 0,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal LM of transformers and its tokenizer.

    Args:
        pretrained: the name of a wheel's weights (`smollm2_135m`) or of a shipped model (`mini_captioner`), a folder,
            or a hub id; None builds the architecture alone, with one token a byte.
        weights: `random` keeps the architecture and the tokenizer and draws the weights from `seed`; of the paper's
            models it needs no file and no network.
        architecture: keys of the model's config that replace those of `pretrained`; None leaves one as it is.
        adapter: a trained adapter in PEFT's layout; it is merged, so that it is part of the reference.
    """
    if weights not in ("pretrained", "random"):
        raise SettingError(f"model.weights={weights!r}: write pretrained or random.")
    place = resolve_device(device)
    torch_dtype = resolve_dtype(dtype, place)
    attention = "sdpa" if attention == "auto" else attention
    source = str(pretrained_folder(pretrained)) if pretrained in WHEELS else pretrained
    source = str(SHIPPED[source]) if source in SHIPPED else source
    if source is not None and source.startswith((".", "/", "~")) and not Path(source).expanduser().is_dir():
        raise SettingError(f"model.pretrained={source!r}: there is no such folder.")
    changes = {key: value for key, value in (architecture or {}).items() if value is not None}
    if source is None:
        if weights != "random":
            raise SettingError("model.pretrained is not set: name weights, or set model.weights=random.")
        tokenizer: PreTrainedTokenizerBase = byte_tokenizer()
        tokens = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        config = AutoConfig.for_model(**{"vocab_size": len(tokenizer), **tokens, **changes})
    elif weights == "random" and (shape := architecture_folder(source)) is not None:
        published = json.loads((shape / "config.json").read_text(encoding="utf-8"))
        config = AutoConfig.for_model(**{**published, **changes})
        tokenizer = local_tokenizer(source, config.vocab_size)
    else:
        if is_hub_id(source):
            check_available(source)
        try:
            tokenizer = AutoTokenizer.from_pretrained(source)
            config = AutoConfig.from_pretrained(source, **changes)
        except OSError as error:
            raise SettingError(f"model.pretrained={source!r}: {_first_line(error)}") from error
    form = {"config": config, "dtype": torch_dtype, "attn_implementation": attention}
    try:
        if source is None or weights == "random":
            with torch.random.fork_rng(devices=[]), shapes_only(place):
                torch.manual_seed(seed)
                model = AutoModelForCausalLM.from_config(**form)
        else:
            model = _load_weights(source, form)
    except SettingError:
        raise
    except OSError as error:
        raise SettingError(f"model.pretrained={source!r}: {_first_line(error)}") from error
    except (ImportError, ValueError) as error:
        if attention not in str(error) and "attention" not in str(error):
            raise
        raise SettingError(f"model.attention={attention!r}: {_first_line(error)}") from error
    if adapter is not None:
        if adapter.startswith((".", "/", "~")) and not (Path(adapter).expanduser() / "adapter_config.json").is_file():
            raise SettingError(f"model.adapter={adapter!r}: there is no adapter in PEFT's layout.")
        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return model.to(place).eval(), tokenizer


def _load_weights(source: str, form: Mapping[str, Any]) -> PreTrainedModel:
    """Every weight from the file: transformers would draw those that it lacks at random, and go on."""
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        source, **form, ignore_mismatched_sizes=True, output_loading_info=True
    )
    model, found = loaded
    absent = {*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])}
    if absent:
        raise SettingError(
            f"model.pretrained={source!r}: holds weights of another architecture than its config and "
            f"model.architecture say: {sorted(absent)[0]} is not there, or has another shape."
        )
    return model


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


def lora_config(lora: Mapping[str, Any], **fixed: Any) -> LoraConfig:
    """PEFT's own `LoraConfig` of the keys under `model.lora`; `fixed` ones are not the user's."""
    if lora.get("lora_dropout"):
        raise SettingError(
            f"model.lora.lora_dropout={lora['lora_dropout']}: must be 0; a log-ratio compares policy and reference "
            "as they are, without noise."
        )
    try:
        return LoraConfig(**fixed, **lora)
    except (TypeError, ValueError) as error:
        raise SettingError(f"model.lora={dict(lora)}: {error}") from error


def add_lora(model: PreTrainedModel, lora: Mapping[str, Any], seed: int) -> PeftModel:
    """Low-rank adapters (Hu et al., 2021) in fp32 on a frozen model."""
    config = lora_config(lora, task_type="CAUSAL_LM")
    with torch.random.fork_rng(devices=[]), shapes_only(model.device):
        torch.manual_seed(seed)
        try:
            return get_peft_model(model, config).eval()
        except ValueError as error:
            raise SettingError(f"model.lora.target_modules={lora.get('target_modules')!r}: {error}") from error
