"""Models that live on a model hub: can this machine have them? Asked before anything is loaded, fetched on demand."""

import re
from collections.abc import Collection
from functools import lru_cache
from pathlib import Path, PurePosixPath

from huggingface_hub import HfApi, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from sysdpo.errors import SettingError
from sysdpo.runs.files import no_place

HUB = "https://huggingface.co"
CONFIGS = ("config.json", "model_index.json")
"""What a model's repository holds: a language model's config, or a pipeline's index."""


PARTS = re.compile(r"unet|transformer|vae|scheduler|(tokenizer|text_encoder)(_\d)?")
"""Folders of a pipeline that are loaded; its safety checker and image encoder are not."""
WEIGHTS = re.compile(r"(diffusion_pytorch_model|pytorch_model|model)(-\d+-of-\d+)?\.(safetensors|bin)")
"""Names under which weights are looked for; variants (fp16, ema) and copies in one file have others."""
SMALL = (".json", ".txt", ".model", ".jinja", ".tiktoken")


def is_hub_id(pretrained: str) -> bool:
    """Whether a name that is no wheel's and no shipped model means the hub: neither a path nor a folder that exists."""
    return not pretrained.startswith((".", "/", "~")) and not Path(pretrained).is_dir()


def is_cached(repository: str) -> bool:
    """Whether the model was downloaded before; its config stands for the whole."""
    return any(isinstance(try_to_load_from_cache(repository, name), str) for name in CONFIGS)


@lru_cache(maxsize=64)
def check_available(repository: str, setting: str = "model.pretrained") -> None:
    """Refuse a model that is neither on this machine nor within reach, with the licence to accept and how to log in.

    Nothing but an answer to "may I?" is downloaded.

    Raises:
        SettingError: gated, unknown, or no network.
    """
    try:
        if not is_cached(repository):
            HfApi().auth_check(repository)
    except Exception as error:  # the HTTP client below the hub's has changed with its versions, and its errors with it
        raise _explained(error, repository, setting) from error


def _explained(error: Exception, repository: str, setting: str) -> SettingError:
    """One line for whatever the hub's client raises."""
    if isinstance(error, HFValidationError):
        return SettingError(f"{setting}={repository!r}: is neither a folder nor a hub id of the form owner/name.")
    if isinstance(error, GatedRepoError):
        return SettingError(_line(setting, repository, "it is gated and this machine has no access to it"))
    if isinstance(error, RepositoryNotFoundError):
        return SettingError(_line(setting, repository, "the model hub has no such model, or hides it"))
    if isinstance(error, OfflineModeIsEnabled):
        return SettingError(
            _line(setting, repository, "it is not on this machine and HF_HUB_OFFLINE forbids to fetch it")
        )
    if (why := no_place(error)) is not None:
        return SettingError(f"{setting}={repository!r}: {why[0]}; make room, or set HF_HOME to a folder with more.")
    why_not = f"it is not on this machine and the model hub cannot be reached ({type(error).__name__})"
    return SettingError(_line(setting, repository, why_not))


def needed_files(files: Collection[str]) -> list[str]:
    """Of a repository's files, those that loading the model reads: no variants, no second copies, no demos."""
    is_pipeline = "model_index.json" in files
    kept = []
    for name in sorted(files):
        path = PurePosixPath(name)
        if len(path.parts) > 1 and not (is_pipeline and len(path.parts) == 2 and PARTS.fullmatch(path.parts[0])):
            continue
        if WEIGHTS.fullmatch(path.name):
            beside = [PurePosixPath(other) for other in files]
            safe = any(
                other.parent == path.parent and other.suffix == ".safetensors" and WEIGHTS.fullmatch(other.name)
                for other in beside
            )
            if path.suffix == ".safetensors" or not safe:
                kept.append(name)
        elif path.suffix in SMALL:
            kept.append(name)
    return kept


def download(repository: str, setting: str = "model.pretrained") -> tuple[int, int]:
    """Fetch what loading the model reads into this machine's cache; what is there already is not fetched again.

    Returns:
        Files and bytes, those included that were there.

    Raises:
        SettingError: gated, unknown, no network, or no room.
    """
    check_available.cache_clear()
    try:
        found = {f.rfilename: f.size or 0 for f in HfApi().model_info(repository, files_metadata=True).siblings or []}
        wanted = needed_files(found)
        snapshot_download(repository, allow_patterns=[re.sub(r"([*?\[])", r"[\1]", name) for name in wanted])
    except Exception as error:
        raise _explained(error, repository, setting) from error
    return len(wanted), sum(found[name] for name in wanted)


def _line(setting: str, repository: str, reason: str) -> str:
    return (
        f"{setting}={repository!r}: {reason}; accept its licence at {HUB}/{repository}, log in with `hf auth login` "
        f"and fetch it with `hf download {repository}`, or name a folder that holds it."
    )
