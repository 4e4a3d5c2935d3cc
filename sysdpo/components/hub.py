"""Models that live on a model hub: can this machine have them? Asked before anything is loaded."""

from functools import lru_cache
from pathlib import Path

from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from sysdpo.errors import SettingError

HUB = "https://huggingface.co"
CONFIGS = ("config.json", "model_index.json")
"""What a model's repository holds: a language model's config, or a pipeline's index."""


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
        if is_cached(repository):
            return
        HfApi().auth_check(repository)
    except HFValidationError as error:
        raise SettingError(
            f"{setting}={repository!r}: is neither a folder nor a hub id of the form owner/name."
        ) from error
    except GatedRepoError as error:
        raise SettingError(_line(setting, repository, "it is gated and this machine has no access to it")) from error
    except RepositoryNotFoundError as error:
        raise SettingError(_line(setting, repository, "the model hub has no such model, or hides it")) from error
    except OfflineModeIsEnabled as error:
        raise SettingError(
            _line(setting, repository, "it is not on this machine and HF_HUB_OFFLINE forbids to fetch it")
        ) from error
    except Exception as error:  # the HTTP client below the hub's has changed with its versions, and its errors with it
        why = f"it is not on this machine and the model hub cannot be reached ({type(error).__name__})"
        raise SettingError(_line(setting, repository, why)) from error


def _line(setting: str, repository: str, reason: str) -> str:
    return (
        f"{setting}={repository!r}: {reason}; accept its licence at {HUB}/{repository}, log in with `hf auth login` "
        f"and fetch it with `hf download {repository}`, or name a folder that holds it."
    )
