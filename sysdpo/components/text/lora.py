"""Low-rank adapters (Hu et al., 2021) on a frozen model, with any key of PEFT's `LoraConfig` that keeps its promises.

Two promises make a margin of 0 before training and a reference that stays: with adapters on, the untrained policy is
the original model; with adapters off, it is the original model whatever training does. They are tried, not looked up:
an initialisation that moves base weights (PiSSA, OLoRA), trained biases or random adapters break one, and are refused.
"""

import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, get_type_hints

import torch
from omegaconf import OmegaConf
from peft import LoraConfig, PeftModel, get_peft_model, load_peft_weights, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from transformers import PreTrainedModel

from sysdpo.components.text.probe import bare_logits, probe_tokens
from sysdpo.errors import SettingError, one_line

TOLERANCE = {torch.float32: 1e-4}
HALF_TOLERANCE = 5e-3
"""Largest difference between an untrained policy and its reference, relative to the largest logit: rounding."""


def plain(value: Any) -> Any:
    """Containers of a config as Python's own: PEFT writes them to JSON."""
    if OmegaConf.is_config(value):
        return OmegaConf.to_container(value, resolve=True)
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def lora_config(lora: Mapping[str, Any], **fixed: Any) -> LoraConfig:
    """PEFT's own `LoraConfig` of the keys under `model.lora`; `fixed` ones are not the user's."""
    keys: dict[str, Any] = plain(lora)
    if keys.get("lora_dropout"):
        raise SettingError(
            f"model.lora.lora_dropout={keys['lora_dropout']}: must be 0; a log-ratio compares policy and reference "
            "as they are, without noise."
        )
    switches = [key for key, kind in get_type_hints(LoraConfig).items() if kind is bool]
    for key in switches:
        if key in keys and not isinstance(keys[key], bool):  # a text such as `no` would count as true
            raise SettingError(f"model.lora.{key}={keys[key]}: must be true or false.")
    try:
        return LoraConfig(**fixed, **keys)
    except Exception as error:  # PEFT checks its keys by whatever they break
        raise SettingError(f"model.lora={keys}: {one_line(error, 300)}") from error


def add_lora(model: PreTrainedModel, lora: Mapping[str, Any], seed: int) -> PeftModel:
    """Adapters in fp32 on a frozen model, in eval mode; what PEFT would train is what requires gradients.

    Raises:
        SettingError: PEFT refuses the keys, or a promise of this module does not hold with them.
    """
    config = lora_config(lora, task_type="CAUSAL_LM")
    keys = plain(lora)
    shapes: AbstractContextManager[Any] = model.device if model.device.type == "meta" else nullcontext()
    original = _logits(model)
    with torch.random.fork_rng(devices=[]), shapes:
        torch.manual_seed(seed)
        try:
            adapted = get_peft_model(model, config).eval()
        except Exception as error:
            named = f"model.lora.target_modules={keys.get('target_modules')!r}" if "target" in str(error) else f"{keys}"
            raise SettingError(f"{named}: {one_line(error, 300)}") from error
    for parameter in adapted.parameters():
        if parameter.requires_grad and parameter.dtype in (torch.bfloat16, torch.float16):
            parameter.data = parameter.data.float()  # copies of the model's own weights that are trained
    _check_names(adapted, keys)
    if original is not None:
        try:
            _check(adapted, model, original, keys)
        except (IndexError, RuntimeError) as error:  # token numbers that the model does not have
            raise SettingError(f"model.lora={keys}: {one_line(error, 300)}") from error
    return adapted


def _check_names(adapted: PeftModel, keys: Mapping[str, Any]) -> None:
    """Refuse a name in a list that adapts nothing: PEFT takes the others and goes on."""
    places = {
        "target_modules": [name for name, module in adapted.named_modules() if isinstance(module, BaseTunerLayer)],
        "modules_to_save": [name for name, module in adapted.named_modules() if hasattr(module, "modules_to_save")],
        "target_parameters": list(adapted.targeted_parameter_names),
    }
    for key, found in places.items():
        given = keys.get(key)
        if isinstance(given, str) and key != "target_modules":
            raise SettingError(f"model.lora.{key}={given}: write a list of names.")
        for name in given if isinstance(given, list) else ():
            if not any(place == name or place.endswith(f".{name}") for place in found):
                raise SettingError(
                    f"model.lora.{key}: {name!r} is nothing that this model has, or is left out; remove it."
                )


def _logits(model: PreTrainedModel) -> Tensor | None:
    """[T, vocabulary] of a few tokens in the model's own precision; None where there are only shapes."""
    if model.device.type == "meta":
        return None
    with torch.no_grad(), torch.autocast(model.device.type, model.dtype, enabled=model.dtype != torch.float32):
        return bare_logits(model, probe_tokens(model, 12))


def _check(adapted: PeftModel, model: PreTrainedModel, original: Tensor, keys: Mapping[str, Any]) -> None:
    tolerance = TOLERANCE.get(model.dtype, HALF_TOLERANCE) * max(1.0, float(original.abs().max()))

    def moved() -> float:
        logits = _logits(model)
        assert logits is not None
        return float((logits - original).abs().max().nan_to_num(torch.inf))

    with adapted.disable_adapter():
        off = moved()
    if off > tolerance:
        raise SettingError(
            f"model.lora={keys}: changes the base weights (init_lora_weights, or layers that are replicated), so that "
            f"the model without adapters is not the original one: its logits move by {off:.2g}; take another."
        )
    on = moved()
    if on > tolerance:
        raise SettingError(
            f"model.lora={keys}: the untrained adapters move the model's logits by {on:.2g}, so that policy and "
            "reference differ before training; let them start at zero (init_lora_weights=true), or use dtype=float32."
        )
    trained = [p for p in adapted.parameters() if p.requires_grad]
    kept = [p.detach().clone() for p in trained]
    generator = torch.Generator().manual_seed(0)
    try:
        with torch.no_grad():
            for parameter in trained:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(parameter))
        on = moved()
        with adapted.disable_adapter():
            off = moved()
    finally:
        with torch.no_grad():
            for parameter, value in zip(trained, kept, strict=True):
                parameter.copy_(value)
    if on == 0:
        raise SettingError(
            f"model.lora={keys}: whatever is trained, the model's logits stay what they are (lora_alpha, or adapters "
            "that only act after certain tokens?); take other keys."
        )
    if off > tolerance:
        raise SettingError(
            f"model.lora={keys}: trains weights that are there without adapters too (bias?), so that the reference "
            "would move with the policy; leave that key out."
        )


def load_adapter(model: PeftModel, folder: str, device: torch.device) -> None:
    """Take trained weights that PEFT wrote; every trained weight must be in the folder."""
    try:
        result: Any = set_peft_model_state_dict(model, load_peft_weights(folder, device=str(device)))
    except Exception as error:
        raise SettingError(f"{folder}: no adapter that fits model.lora: {one_line(error, 300)}") from error
    absent = [name for name in result.missing_keys if "lora_" in name]
    if absent or result.unexpected_keys:
        name = (absent or result.unexpected_keys)[0]
        raise SettingError(f"{folder}: the adapter of another model or of other model.lora keys: {name}.")


def rehearse_saving(model: PeftModel, load: Callable[[str], None]) -> None:
    """Write the untrained adapters and read them back, so that nothing trained is lost at the end.

    Raises:
        SettingError: PEFT cannot write them, or what it reads is not what it wrote.
    """
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    with tempfile.TemporaryDirectory() as folder:
        try:
            model.save_pretrained(folder)
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if name in before:
                        parameter.zero_()
            load(folder)
        except SettingError:
            raise
        except Exception as error:
            raise SettingError(
                f"model.lora: adapters with these keys cannot be saved: {one_line(error, 300)}"
            ) from error
        finally:
            now = dict(model.named_parameters())
            lost = [name for name, value in before.items() if not _same(now[name].detach(), value)]
            with torch.no_grad():
                for name, value in before.items():
                    now[name].copy_(value)
    if lost:
        raise SettingError(f"model.lora: {lost[0]} is trained, but PEFT does not save it; leave out its key.")


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal, a NaN to a NaN too: what is wrong with it is another check's to say."""
    return one.shape == other.shape and torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)
