"""Model folders that cannot be loaded: one line that names the file, before or instead of a library's traceback."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import CONFIG_MAPPING

from sysdpo.errors import SettingError, one_line


@contextmanager
def loading(setting: str, source: str) -> Iterator[None]:
    """Inside, libraries load `source`; whatever they raise becomes one line under the setting that names it."""
    try:
        yield
    except SettingError:
        raise
    except (KeyboardInterrupt, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a folder can be broken in more ways than a library has errors for
        kind = "" if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: "
        raise SettingError(f"{setting}={source!r}: {kind}{one_line(error, 300)}") from error


def check_model_folder(setting: str, folder: Path, trust_remote_code: bool = False) -> None:
    """Refuse a transformers model folder whose files cannot be what their names say.

    Raises:
        SettingError: naming the file.
    """
    config = read_mapping(setting, folder / "config.json")
    code = config.get("auto_map") or {}
    for name in ("tokenizer_config.json", "generation_config.json"):
        if (folder / name).exists():
            read = read_mapping(setting, folder / name)
            code = code or (read.get("auto_map") or {})
    if code and not trust_remote_code and config.get("model_type") not in CONFIG_MAPPING:
        raise SettingError(
            f"{setting}: {folder / 'config.json'} asks for the folder's own code, which nobody has read for you; read "
            "it, then set model.trust_remote_code=true on the command line."
        )
    if not isinstance(config.get("model_type"), str):
        raise SettingError(f"{setting}: {folder / 'config.json'} names no model_type, so nothing can load it.")
    tokenizer = folder / "tokenizer.json"
    if tokenizer.exists():
        read_mapping(setting, tokenizer)
        with loading(setting, str(tokenizer)):
            Tokenizer.from_file(str(tokenizer))
    check_safetensors(setting, folder)


def check_safetensors(setting: str, folder: Path) -> None:
    """Refuse truncated, empty or foreign files under a safetensors name, and an index of shards that are not there."""
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(str(path), "pt") as file:
                empty = not file.keys()
        except Exception as error:
            reason = one_line(error, 120)
            raise SettingError(f"{setting}: {path} is no whole safetensors file ({reason}); fetch it again.") from error
        if empty:
            raise SettingError(f"{setting}: {path} holds no tensors; fetch it again.")
    for index in sorted(folder.glob("*.safetensors.index.json")):
        shards = read_mapping(setting, index).get("weight_map")
        if not isinstance(shards, dict):
            raise SettingError(f"{setting}: {index} has no weight_map; fetch it again.")
        absent = sorted({str(name) for name in shards.values() if not (folder / str(name)).exists()})
        if absent:
            raise SettingError(f"{setting}: {folder / absent[0]} is not there, but {index.name} names it; fetch it.")


def check_adapter_folder(setting: str, folder: Path) -> None:
    """The same for an adapter in PEFT's layout."""
    if not (folder / "adapter_config.json").is_file():
        raise SettingError(f"{setting}={str(folder)!r}: there is no adapter in PEFT's layout.")
    read_mapping(setting, folder / "adapter_config.json")
    check_safetensors(setting, folder)


def read_mapping(setting: str, path: Path) -> dict[str, Any]:
    """A JSON file that must hold a mapping."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SettingError(f"{setting}: {path} is not there.") from error
    except (OSError, ValueError) as error:
        raise SettingError(f"{setting}: {path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise SettingError(f"{setting}: {path} holds a {type(content).__name__} where a mapping belongs.")
    return content


def weight_file(folder: Path) -> str:
    """The first file of weights, for a line about what is in it."""
    found = [*sorted(folder.glob("*.safetensors")), *sorted(folder.glob("*.bin"))]
    return found[0].name if found else "its weights"


def check_finite(setting: str, source: str, model: torch.nn.Module) -> None:
    """Refuse weights that are NaN or infinite: every score would be."""
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not bool(torch.isfinite(parameter).all()):
            raise SettingError(f"{setting}={source!r}: the weights of {name} are not finite (NaN or infinity).")
