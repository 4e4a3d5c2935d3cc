"""What `conf/theory.yaml` sets."""

from collections.abc import Sequence
from dataclasses import dataclass

from sysdpo.errors import SettingError


@dataclass(frozen=True)
class TheorySettings:
    """Every key is commented in `conf/theory.yaml`."""

    betas: Sequence[float]
    samples: Sequence[int]
    drafts: int
    lengths: Sequence[int]
    repeats: int
    seed: int

    def __post_init__(self) -> None:
        if not self.betas or min(self.betas) <= 0:
            raise SettingError(f"betas={list(self.betas)}: write positive numbers.")
        if not self.samples or min(self.samples) < 1 or max(self.samples) > self.drafts:
            raise SettingError(f"samples={list(self.samples)}: each must lie between 1 and drafts={self.drafts}.")
        if not self.lengths or min(self.lengths) < 0:
            raise SettingError(f"lengths={list(self.lengths)}: write numbers of words, 0 or more.")
        if self.repeats < 2:
            raise SettingError(f"repeats={self.repeats}: must be at least 2.")
