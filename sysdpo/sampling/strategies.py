"""How the K intermediate samples of SysDPO-Sampling are found (section 2.3, appendix J).

A `Sampler` says how many joint samples a prompt gets, how a language model draws its share of them, and
whether they are thinned afterwards by the system's own likelihoods.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sysdpo.errors import SettingError
from sysdpo.limits import check_fields
from sysdpo.sampling.diverse_beam import diverse_beam_search
from sysdpo.sampling.monte_carlo import MonteCarlo


@dataclass(frozen=True)
class DiverseBeam:
    """Diverse beam search (Vijayakumar et al., 2016): the paper's choice.

    Args:
        diversity_penalty: subtracted from a token's log-probability for every earlier group that chose it at the
            same step; the paper takes 10, its later version 20.
        groups: beam groups; None gives every beam its own.
        length_penalty: exponent of the length that a finished beam's score is divided by.
    """

    diversity_penalty: float = 10.0
    groups: int | None = None
    length_penalty: float = 1.0
    distinct: bool = True

    def __post_init__(self) -> None:
        check_fields(self, "sampler.draw.")

    @property
    def why_not_own(self) -> str:
        """See `Sampler.check_own_draws`."""
        return "beams are searched, not drawn, and have no probability of being drawn"

    def draw(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        *,
        n: int,
        seeds: Sequence[int],
        max_new_tokens: int,
        eos_token_id: int | Sequence[int],
        pad_token_id: int,
    ) -> list[list[list[int]]]:
        # joint samples that have parted ways ask for fewer beams each than there are samples
        groups = n if self.groups is None else math.gcd(n, self.groups)
        output = diverse_beam_search(
            model,
            input_ids,
            attention_mask,
            num_beams=n,
            num_beam_groups=groups,
            diversity_penalty=self.diversity_penalty if n > 1 else 0.0,
            max_new_tokens=max_new_tokens,
            eos_token_id=eos_token_id,
            pad_token_id=pad_token_id,
            length_penalty=self.length_penalty,
        )
        ends = {eos_token_id} if isinstance(eos_token_id, int) else set(eos_token_id)
        return [
            [_until_end(ids, ends) for ids, repeated in zip(beams, row_repeats, strict=True) if not repeated]
            for beams, row_repeats in zip(output.sequences.tolist(), output.duplicate.tolist(), strict=True)
        ]


def _until_end(ids: list[int], ends: Collection[int]) -> list[int]:
    return next((ids[: i + 1] for i, token in enumerate(ids) if token in ends), ids)


@dataclass(frozen=True)
class Sampler:
    """One choice of `conf/sampler/`.

    Args:
        k: joint samples of the intermediates that enter the loss (K in eq. 9).
        draw: how a language model draws; its samples are distinct.
        candidates: joint samples drawn first; where there are more than `k`, the most contrasting are kept.
    """

    k: int
    draw: DiverseBeam | MonteCarlo
    candidates: int | None = None

    def __post_init__(self) -> None:
        check_fields(self, "sampler.")
        groups = getattr(self.draw, "groups", None)
        if groups is not None and groups > self.num_draws:
            raise SettingError(
                f"sampler.draw.groups={groups}: more beam groups than the {self.num_draws} beams; lower it or raise "
                "sampler.k."
            )
        if groups is not None and self.num_draws % groups:
            raise SettingError(
                f"sampler.draw.groups={groups}: groups are of equal size, so {self.num_draws} beams cannot form them; "
                "choose a divisor."
            )
        if self.candidates is not None and (self.candidates < self.k or self.k != 2):
            raise SettingError(
                f"sampler.candidates={self.candidates} with sampler.k={self.k}: the contrastive choice keeps k=2 of "
                "at least 2 candidates."
            )

    @property
    def num_draws(self) -> int:
        return self.candidates if self.candidates is not None else self.k

    @property
    def contrastive(self) -> bool:
        return self.num_draws > self.k

    def check_own_draws(self, asked_by: str) -> None:
        """Refuse whatever does not draw K independent samples from the system's own distribution.

        Only of such samples the components' `log_prob` is the density. A sampler says by `why_not_own` what speaks
        against it, "" if nothing does; one that does not say is refused.
        """
        if self.contrastive:
            reason = f"sampler.candidates={self.candidates} keeps samples by what they explain, not as they were drawn"
        else:
            unknown = f"{type(self.draw).__name__} does not say so (its `why_not_own` would be '')"
            reason = getattr(self.draw, "why_not_own", unknown)
        if reason:
            raise SettingError(
                f"{asked_by} needs independent draws from the system itself, but {reason}; choose sampler=monte_carlo "
                "as it comes."
            )


def most_contrasting(log_odds: Tensor) -> list[int]:
    """Appendix J: of M candidates, the one under which the chosen outcome is likeliest to win, and the opposite one.

    Args:
        log_odds: log p(chosen | x, y) - log p(rejected | x, y) for each candidate y, [M].

    Returns:
        Two indices, highest first; one if there is a single candidate.
    """
    best, worst = int(torch.argmax(log_odds)), int(torch.argmin(log_odds))
    return [best, worst] if best != worst else [best] if len(log_odds) == 1 else [0, 1]
