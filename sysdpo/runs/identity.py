"""What a run is: what decides its numbers, and nothing else. docs/identity.md says the same to users.

Two digests. `training` covers what decides the weights and the lines logged on the way to them, `evaluation` what is
measured of them in the end: where only the second differs, trained weights are judged again and not trained again.
Files and folders count by their content, never by the path under which they were named.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from sysdpo.errors import SettingError
from sysdpo.runs.files import sha256

TRAINING = (
    *("seed", "beta", "train", "trainer", "method", "system", "dataset", "objective", "training"),
    *("labels", "curve_rows"),
)
EVALUATION = ("seed", "evaluation", "evaluation_system")
"""The settings at the top that commands read and that decide numbers; parts like `llm` or `judge` stand inside them."""

NEITHER = (
    *("outputs", "table_folder", "run_folder", "data_folder", "study", "experiment", "scale", "logger", "distributed"),
    *("rows", "sheets", "metrics", "metric_titles", "title", "paper", "figures", "contrasts"),
    *("evaluation_batch_size", "plan", "benchmark", "hydra"),
)
"""Those that decide none: where results lie, who listens, how a report looks, how many are answered at a time."""

WITHOUT_EFFECT = (
    *("device", "gradient_checkpointing", "share_prefix", "head_on_completions", "remember_reference"),
    *("skip_hidden", "fuse_adapters", "fuse_norms", "trust_remote_code", "python"),
    *("batch_size", "micro_batch_size", "draw_batch_size"),
    *("checkpoint_every", "keep_checkpoints", "nonfinite"),
    *("concurrency", "timeout_s", "max_attempts", "first_wait_s", "longest_wait_s", "longest_retry_after_s"),
    *("api_key_env", "cache_dir", "assume_yes", "characters_per_token"),
    *("dollars_per_million_prompt_tokens", "dollars_per_million_completion_tokens"),
)
"""Settings that change no number wherever they stand: how much at a time, on what, how often, at what price."""
WITH_EFFECT = ("training.batch_size", "dataset.batch_size")
"""Named like one of them, but deciding which pairs share an update, and which samples were drawn together."""
ON_POLICY = ("redraw_every", "redraw_samples", "replay", "reference", "reference_decay")
"""Training settings that decide nothing where no pair is drawn anew and the reference stays."""
LABELS = ("method.title", "dataset.name")

NAMED = ("variables", "components", "parents", "learning_rates", "inputs", "loop", "architecture")
"""Mappings whose keys are a user's or a library's own names."""

PATHS = ("adapter", "checkpoint", "folder", "model", "path", "pretrained", "prompts")
"""Settings that may name a file or folder of the user's, by their last word."""


@dataclass(frozen=True)
class Identity:
    """Two runs with equal `training` have equal weights; with equal `evaluation` as well, equal results."""

    training: str
    evaluation: str


def identity(config: Mapping[str, Any], data: str | None = None) -> Identity:
    """The identity of the run of a resolved config.

    Args:
        data: what identifies the rows of a data set that is read, in place of its path.

    Raises:
        SettingError: a file that the config names cannot be read.
    """
    parts = decisive(config)
    if data is not None:
        parts["dataset"] = {**parts["dataset"], "path": data}
    training = parts.get("training") or {}
    if not training.get("evaluate_every"):
        parts.pop("curve_rows", None)
    if not training.get("redraw_every") and not isinstance(parts.get("trainer"), Mapping):
        parts.pop("labels", None)  # who labels pairs that are made during training: none are
    if training and not training.get("redraw_every") and training.get("reference", "fixed") == "fixed":
        parts["training"] = {key: value for key, value in training.items() if key not in ON_POLICY}
    return Identity(*(digest({k: parts[k] for k in keys if k in parts}) for keys in (TRAINING, EVALUATION)))


def decisive(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a resolved config decides numbers, files and folders by their content."""
    known = dict.fromkeys((*TRAINING, *EVALUATION))
    return {key: by_content(_decisive(config[key], key), key) for key in known if key in config}


def changes_nothing(place: str, key: str) -> bool:
    """Whether a setting, inside the part of that name, changes no number."""
    own = f"{place}.{key}"
    return own in LABELS or (key in WITHOUT_EFFECT and own not in WITH_EFFECT)


def by_content(value: Any, key: str = "") -> Any:
    """The same settings, with the content's digest in the place of every path of a file or folder that exists."""
    if isinstance(value, Mapping):
        return {k: part if key in NAMED and isinstance(part, str) else by_content(part, k) for k, part in value.items()}
    if isinstance(value, list):
        return [by_content(part) for part in value]
    if isinstance(value, str) and key in PATHS and (path := _existing(value)) is not None:
        return content(path, key)
    return value


def digest(*content: Any) -> str:
    """Of plain data; 1 and 1.0 are one number."""
    return hashlib.sha256(json.dumps(_plain(content), sort_keys=True, default=str).encode()).hexdigest()[:16]


def content(path: Path, setting: str = "path") -> str:
    """What identifies a file, or a folder's visible files but pages (`.md`), wherever it lies, whatever its name."""
    try:
        files = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.is_file() and _is_seen(f, path))
        states = [(str(f.relative_to(path)), f.stat()) for f in files]
        return _content(path.resolve(), tuple((name, s.st_size, s.st_mtime_ns) for name, s in states))
    except OSError as error:
        raise SettingError(f"{setting}={path}: cannot be read ({error.strerror}).") from error


@lru_cache(maxsize=64)
def _content(path: Path, states: tuple[tuple[str, int, int], ...]) -> str:
    return f"content {digest([[name, sha256(path / name)] for name, *_ in states])}"


def _is_seen(file: Path, folder: Path) -> bool:
    return file.suffix != ".md" and not any(part.startswith(".") for part in file.relative_to(folder).parts)


def _existing(value: str) -> Path | None:
    """The file or folder that a setting names; None for a name of another kind, such as a hub id."""
    try:
        path = Path(value).expanduser()
        return path if path.exists() else None
    except (OSError, ValueError, RuntimeError):  # too long, a zero byte, no such user
        return None


def _decisive(value: Any, place: str) -> Any:
    if isinstance(value, list):
        return [_decisive(part, place) for part in value]
    if not isinstance(value, Mapping):
        return value
    if place in NAMED:  # their keys are names that users give; the order of components decides their seeds
        return {**{key: _decisive(part, "") for key, part in value.items()}, "": list(value)}
    return {key: _decisive(part, str(key)) for key, part in value.items() if not changes_nothing(place, str(key))}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
