"""Loading a causal language model: which weights, which precision, which adapter."""

import inspect
import json
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sysdpo.components.folders import check_adapter_folder, check_finite, check_model_folder, loading, weight_file
from sysdpo.components.hub import check_available, is_hub_id
from sysdpo.components.text.codec import byte_tokenizer, local_tokenizer
from sysdpo.components.weights import WHEELS, architecture_folder, pretrained_folder
from sysdpo.devices import resolve_device
from sysdpo.errors import SettingError, closest
from sysdpo.paths import ASSETS

Weights = Literal["pretrained", "random"]

SHIPPED = {name: ASSETS / name for name in ("mini_lm", "mini_captioner")}
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
    trust_remote_code: bool = False,
    seed: int = 0,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal LM of transformers and its tokenizer.

    Args:
        pretrained: the name of a wheel's weights (`smollm2_135m`) or of a shipped model (`mini_lm`), a folder, or a
            hub id; None builds the architecture alone, with one token a byte.
        weights: `random` keeps the architecture and the tokenizer and draws the weights from `seed`; of the paper's
            models it needs no file and no network.
        architecture: keys of the model's config that replace those of `pretrained`; None leaves one as it is.
        adapter: a trained adapter in PEFT's layout; it is merged, so that it is part of the reference.
        trust_remote_code: run the code that a model folder brings; only the user can allow it.

    Raises:
        SettingError: nothing can be loaded, or what was loaded is broken: one line that names the file.
    """
    if weights not in ("pretrained", "random"):
        raise SettingError(f"model.weights={weights!r}: write pretrained or random.")
    place = resolve_device(device)
    source = str(pretrained_folder(pretrained)) if pretrained in WHEELS else pretrained
    source = str(SHIPPED[source]) if source in SHIPPED else source
    if source is not None and source.startswith((".", "/", "~")):
        source = str(Path(source).expanduser())
        if not Path(source).is_dir():
            raise SettingError(f"model.pretrained={source!r}: there is no such folder.")
    changes = {key: value for key, value in (architecture or {}).items() if value is not None}
    _check_keys(source, weights, changes)
    config, tokenizer = _config_and_tokenizer(source, weights, changes, trust_remote_code)
    form: dict[str, Any] = {"config": config, "dtype": resolve_dtype(dtype, place)}
    if attention != "auto":
        form["attn_implementation"] = attention
    try:
        if source is None or weights == "random":
            with torch.random.fork_rng(devices=[]), shapes_only(place):
                torch.manual_seed(seed)
                model = AutoModelForCausalLM.from_config(**form, trust_remote_code=trust_remote_code)
        else:
            model = _load_weights(source, form, trust_remote_code)
    except SettingError:
        raise
    except (ImportError, ValueError) as error:
        if attention not in str(error) and "attention" not in str(error):
            raise SettingError(f"{_named(source)}: {_first_line(error)}") from error
        raise SettingError(f"model.attention={attention!r}: {_first_line(error)}") from error
    except Exception as error:
        file = weight_file(Path(source)) if source is not None else "its config"
        raise SettingError(f"{_named(source)}: {file}: {type(error).__name__}: {_first_line(error)}") from error
    _check_vocabulary(source, tokenizer, model)
    if adapter is not None:
        model = _with_adapter(model, adapter)
    return model.to(place).eval(), tokenizer


def _check_keys(source: str | None, weights: Weights, changes: Mapping[str, Any]) -> None:
    """Refuse a key that the architecture does not have: transformers would keep it, and nothing would read it."""
    kind = changes.get("model_type") or _model_type(source, weights)
    if kind is None or kind not in CONFIG_MAPPING:
        return  # foreign code, or a type that is refused with its name where it is loaded
    known = _keys(kind)
    for key in changes:
        # llama's are those of `model=tiny_llm`, which `model_type` alone makes another architecture
        if key not in known and key not in OLDER_NAMES and key not in _keys("llama"):
            raise SettingError(f"model.architecture of a {kind}: {closest(key, known)}")


def _keys(kind: str) -> set[str]:
    made = CONFIG_MAPPING[kind]
    return {*inspect.signature(made).parameters, *dir(made()), *made.attribute_map}


def _model_type(source: str | None, weights: Weights) -> str | None:
    shape = architecture_folder(source) if source is not None and weights == "random" else None
    folder = shape or (Path(source) if source is not None else None)
    try:
        return str(json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]) if folder else None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # of the hub, or broken: said where it is loaded


OLDER_NAMES = ("rope_scaling", "rope_theta", "partial_rotary_factor", "attn_implementation", "model_type")
"""Keys that transformers takes although no config has them."""


def _config_and_tokenizer(
    source: str | None, weights: Weights, changes: Mapping[str, Any], trust_remote_code: bool
) -> tuple[Any, PreTrainedTokenizerBase]:
    if source is None:
        if weights != "random":
            raise SettingError("model.pretrained is not set: name weights, or set model.weights=random.")
        tokenizer: PreTrainedTokenizerBase = byte_tokenizer()
        tokens = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        with loading("model.architecture", str(changes.get("model_type"))):
            return AutoConfig.for_model(**{"vocab_size": len(tokenizer), **tokens, **changes}), tokenizer
    if weights == "random" and (shape := architecture_folder(source)) is not None:
        published = json.loads((shape / "config.json").read_text(encoding="utf-8"))
        with loading("model.pretrained", source):
            config = AutoConfig.for_model(**{**published, **changes})
        return config, local_tokenizer(source, config.vocab_size)
    if is_hub_id(source):
        check_available(source)
    else:
        check_model_folder("model.pretrained", Path(source), trust_remote_code)
    with loading("model.pretrained", source):
        config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code, **changes)
    with loading("model.pretrained (its tokenizer)", source):
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    if not tokenizer("a word", add_special_tokens=False)["input_ids"]:
        raise SettingError(
            f"model.pretrained={source!r}: its tokenizer knows no words; tokenizer.json is not there, or empty."
        )
    return config, tokenizer


def _check_vocabulary(source: str | None, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    embeddings: Any = model.get_input_embeddings()
    rows = int(embeddings.weight.shape[0])
    if tokenizer.vocab_size > rows:  # tokens added on top are asked for by name only: Gemma 3's last is an image
        raise SettingError(
            f"{_named(source)}: its tokenizer has {tokenizer.vocab_size} tokens and the model {rows}; they do not "
            "belong together."
        )


def _with_adapter(model: PreTrainedModel, adapter: str) -> PreTrainedModel:
    folder = Path(adapter).expanduser()
    if adapter.startswith((".", "/", "~")) or folder.is_dir():
        check_adapter_folder("model.adapter", folder)
        adapter = str(folder)
    with loading("model.adapter", adapter):
        merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    check_finite("model.adapter", adapter, merged)
    return merged


def _named(source: str | None) -> str:
    return f"model.pretrained={source!r}" if source is not None else "model.architecture"


def _load_weights(source: str, form: Mapping[str, Any], trust_remote_code: bool) -> PreTrainedModel:
    """Every weight from the file: transformers would draw those that it lacks at random, and go on."""
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        source,
        **form,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
        trust_remote_code=trust_remote_code,
    )
    model, found = loaded
    absent = {*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])}
    if absent:
        raise SettingError(
            f"model.pretrained={source!r}: {weight_file(Path(source))} holds weights of another architecture than its "
            f"config and model.architecture say: {sorted(absent)[0]} is not there, or has another shape."
        )
    check_finite("model.pretrained", source, model)
    return model


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
