"""Sequences of images under an attribute scorer: levels, preference score, and a picture to look at."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from PIL import Image

from sysdpo.errors import SettingError
from sysdpo.tasks.progression.preference_score import preference_score

UNPARSED_SCORE = -1.0
"""q of a text from which no captions can be read: that of a full progression the wrong way round."""


STRIP_HEIGHT = 96


class Scorer(Protocol):
    """Attribute levels of images; `conf/scorer/` names one."""

    name: str

    @property
    def attributes(self) -> Sequence[str]: ...

    def score(self, images: Sequence[Any], attributes: Sequence[str]) -> Any:
        """N images [3, H, W] in [0, 1] and an attribute each -> N levels in [0, 1]."""
        ...


@dataclass(frozen=True)
class ScoredSequence:
    """Levels of the three images, empty where the text did not parse, and q."""

    levels: list[float]
    score: float

    @property
    def is_parsed(self) -> bool:
        return bool(self.levels)

    @property
    def is_ordered(self) -> bool:
        """a1 < a2 < a3; never for a text that did not parse."""
        return self.is_parsed and self.levels[0] < self.levels[1] < self.levels[2]


def score_sequences(
    scorer: Scorer, sequences: Sequence[Sequence[Any]], attributes: Sequence[str]
) -> list[ScoredSequence]:
    """Score sequence i for attribute i; an empty sequence stands for a text that did not parse.

    Raises:
        SettingError: a sequence of another length than 3, or a level that is NaN or outside [0, 1]; names the row.
    """
    for row, sequence in enumerate(sequences):
        if len(sequence) not in (0, 3):
            raise SettingError(
                f"row {row} has {len(sequence)} images; the preference score compares 3: set captions_per_prompt=3."
            )
    flat = [image for sequence in sequences for image in sequence]
    names = [name for name, sequence in zip(attributes, sequences, strict=True) for _ in sequence]
    levels = iter(np.asarray(scorer.score(flat, names), dtype=float).tolist() if flat else [])
    scored = []
    for row, sequence in enumerate(sequences):
        own = [next(levels) for _ in sequence]
        for image, level in enumerate(own, 1):
            if not 0 <= level <= 1:  # written so that NaN is caught too
                raise SettingError(
                    f"scorer {scorer.name}: row {row}, image {image} has level {level}; levels must lie in [0, 1]."
                )
        scored.append(ScoredSequence(own, float(preference_score(own)) if own else UNPARSED_SCORE))
    return scored


def strip(images: Sequence[Any], gap: int = 2) -> Image.Image:
    """Images [3, H, W] in [0, 1] side by side; small ones are enlarged by a whole factor, to about 96 pixels."""
    pictures = [np.asarray(image) for image in images]
    height, width = pictures[0].shape[1:]
    canvas = np.ones((height, len(pictures) * (width + gap) - gap, 3))
    for i, picture in enumerate(pictures):
        canvas[:, i * (width + gap) : i * (width + gap) + width] = picture.transpose(1, 2, 0)
    scale = max(1, STRIP_HEIGHT // height)
    sheet = Image.fromarray((canvas * 255).round().astype(np.uint8))
    return sheet.resize((sheet.width * scale, sheet.height * scale), Image.Resampling.NEAREST)
