"""The limits of every setting, by name: for the check of a composed config, and for classes made in Python.

A name means the same wherever it stands. `Class.name` goes before it, where one class means something else. A new
setting needs a line here only if any number (from 0 to a million, if whole) is not right for it.
"""

import math
import re
from dataclasses import dataclass
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from sysdpo.errors import SettingError, nearest


@dataclass(frozen=True)
class Limits:
    """The least and the greatest number; `above` and `below` are not reached themselves. Texts: the longest."""

    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    below: float = math.inf
    pattern: str | None = None
    remedy: str = ""

    def refusal(self, value: float | str) -> str | None:
        if isinstance(value, str):
            wrong = self.pattern is not None and re.fullmatch(self.pattern, value, re.DOTALL) is None
            return f"must be {self.remedy}" if wrong else None
        if value < self.least:
            return f"must be at least {self.least:g}"
        if value <= self.above:
            return f"must be greater than {self.above:g}"
        if value > self.most:
            return f"must be at most {self.most:.12g}"
        if value >= self.below:
            return f"must be less than {self.below:g}"
        return None


NO_LIMITS = Limits()
SEED = Limits(0, 2**32 - 1)
SMALL = Limits(1, 10_000)
COUNT = Limits(1, 1_000_000)
COUNT_OR_NONE = Limits(0, 1_000_000)
SIZE = Limits(1, 65_536)
POSITIVE = Limits(above=0, most=1e9)
RATE = Limits(above=0, most=10)
NOT_NEGATIVE = Limits(0, 1e9)
SHARE = Limits(0, 1)
SCORE_GAP = Limits(0, 1e6)
NOT_EMPTY = Limits(pattern=r".*\S.*", remedy="more than empty text")
DEVICE = Limits(pattern=r"auto|[a-z]+(:\d+)?", remedy="auto, cpu, cuda or cuda:NUMBER")
WANDB_NAME = Limits(pattern=r"[^/\\#?%:]{1,128}", remedy="1 to 128 characters without / \\ # ? % : (a name in W&B)")
WANDB_GROUP = Limits(pattern=r".{1,128}", remedy="1 to 128 characters long (a group in W&B); set study=…")
WANDB_TAG = Limits(pattern=r".{1,64}", remedy="1 to 64 characters long (a tag in W&B)")

WHOLE = COUNT_OR_NONE
"""Of a whole number that is not named below."""

LIMITS: dict[str, Limits] = {
    "seed": SEED,
    # of the loop
    "steps": Limits(1, 10_000_000),
    "batch_size": Limits(1, 100_000),
    "micro_batch_size": Limits(1, 100_000),
    "draw_batch_size": Limits(1, 100_000),
    "learning_rate": RATE,
    "intermediate_learning_rate": RATE,
    "label_smoothing": Limits(0, below=0.5),
    "nll_weight": NOT_NEGATIVE,
    "weight_decay": SHARE,
    "max_grad_norm": POSITIVE,
    "checkpoint_every": COUNT,
    "redraw_samples": Limits(2, 10_000),
    "replay": Limits(0, below=1),
    "reference_decay": Limits(0, below=1),
    "patience": COUNT,
    "beta": Limits(above=0, most=1e6),
    # of samples
    "k": Limits(1, 65_536),
    "candidates": Limits(1, 1_024),
    "groups": Limits(1, 1_024),
    "diversity_penalty": NOT_NEGATIVE,
    "length_penalty": Limits(-100, 100),
    "top_p": Limits(above=0, most=1),
    "temperature": NOT_NEGATIVE,
    "max_new_tokens": COUNT,
    "best_of": SMALL,
    # of models
    "pretrained": NOT_EMPTY,
    "device": DEVICE,
    "dtype": NOT_EMPTY,
    "attention": NOT_EMPTY,
    "image_size": Limits(8, 8_192),
    "num_inference_steps": Limits(1, 1_000),
    "guidance_scale": Limits(0, 1_000),
    "num_timesteps": COUNT,
    "strength": POSITIVE,
    "draws": SMALL,
    "count": Limits(1, 1_000),
    "max_characters": COUNT,
    # of data
    "samples": SMALL,
    "Progressions.samples": Limits(2, 10_000),  # of which pairs are made
    "OwnSamples.samples": Limits(2, 10_000),
    "evaluation_samples": SMALL,
    "pairs_per_prompt": COUNT,
    "prompts": Limits(1, 1_000_000, pattern=r".*\S.*", remedy="a file, or a number"),
    "prompts_per_attribute": COUNT,
    "evaluation_prompts_per_attribute": COUNT,
    "evaluation_prompts": COUNT_OR_NONE,
    "evaluation": NOT_NEGATIVE,
    "validation": NOT_NEGATIVE,
    "min_gap": SCORE_GAP,
    "limit": Limits(1, 1_000_000_000),
    "answer": NOT_EMPTY,
    "path": NOT_EMPTY,
    "overlong": Limits(pattern="error|drop|cut", remedy="error, drop or cut"),
    "bad_rows": Limits(pattern="error|drop", remedy="error or drop"),
    "hub": NOT_EMPTY,
    "folder": NOT_EMPTY,
    "checkpoint": NOT_EMPTY,
    "cache_dir": NOT_EMPTY,
    # of judges
    "model": NOT_EMPTY,
    "base_url": Limits(pattern=r"https?://\S+", remedy="an address that begins with http:// or https://"),
    "api_key_env": NOT_EMPTY,
    "concurrency": Limits(1, 1_000),
    "timeout_s": Limits(above=0, most=86_400),
    "max_attempts": Limits(1, 1_000),
    "first_wait_s": Limits(0, 86_400),
    "longest_wait_s": Limits(0, 86_400),
    "longest_retry_after_s": Limits(0, 86_400),
    "dollars_per_million_prompt_tokens": NOT_NEGATIVE,
    "dollars_per_million_completion_tokens": NOT_NEGATIVE,
    "characters_per_token": POSITIVE,
    "max_length": COUNT,
    # of loggers
    "WandbLogger.mode": Limits(pattern="offline|online|disabled", remedy="offline, online or disabled"),
    "max_artifact_mb": NOT_NEGATIVE,
    "WandbLogger.project": WANDB_NAME,
    "WandbLogger.group": WANDB_GROUP,
}

ITEMS: dict[str, Limits] = {
    "learning_rates": RATE,
    "WandbLogger.tags": WANDB_TAG,
    "labels": NOT_EMPTY,
    "temperatures": POSITIVE,
    "places": NOT_EMPTY,
    "attributes": NOT_EMPTY,
}
"""Of each item of a list, or value of a mapping."""


def limits_of(name: str, owner: str = "") -> Limits | None:
    """The limits of a setting, those of its class before the general ones."""
    return LIMITS.get(f"{owner}.{name}", LIMITS.get(name))


def check_fields(settings: Any, place: str = "") -> None:
    """Refuse a dataclass with a choice that is none, or with a number that is of another kind or beyond its limits.

    Args:
        settings: fields other than numbers and `Literal` choices are not checked here.
        place: what an error puts before a field's name (`training.`).
    """
    for name, hint in get_type_hints(type(settings)).items():
        value, hints = getattr(settings, name), get_args(hint) if isinstance(hint, UnionType) else (hint,)
        choices = next((get_args(each) for each in hints if get_origin(each) is Literal), None)
        if choices is not None and value not in choices:
            raise SettingError(f"{place}{name}: {nearest(str(value), choices)}")
        if value is None or not {int, float} & set(hints):
            continue
        limits = limits_of(name, type(settings).__name__) or (NO_LIMITS if float in hints else WHOLE)
        if why := _number_refusal(value, limits, whole=float not in hints):
            raise SettingError(f"{place}{name}={value}: {why}.")


def _number_refusal(value: Any, limits: Limits, whole: bool) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        return f"must be {'a whole number' if whole else 'a number'}"
    return limits.refusal(value) if math.isfinite(value) else "must be a finite number"
