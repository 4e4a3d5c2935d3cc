"""Weighted win rates, the two columns of table 2, by AlpacaEval's rules (`weighted_alpaca_eval_gpt4_turbo`).

A preference is a number in [1, 2]: 1 = the reference is surely better, 2 = the evaluated output is surely
better. It is the judge's probability that the second of two answers wins, plus 1; a judge without an opinion
gives NaN.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sysdpo.errors import SettingError


@dataclass(frozen=True)
class WinRate:
    """Percentages of the evaluated system against the reference; the standard error is in points as well.

    `n_total` counts the rows the figures rest on; `n_dropped` those left out for want of a preference.
    """

    win_rate: float
    standard_error: float
    discrete_win_rate: float
    n_total: int
    n_dropped: int


def is_swapped(instruction: str, seed: int = 0) -> bool:
    """Whether the judge sees the evaluated output first: AlpacaEval's coin, fixed by the instruction."""
    coin = random.Random(f"is_switched_outputs{instruction}{seed}")
    return coin.choices([False, True], k=1)[0]


def preference_from_logprobs(top_logprobs: Mapping[str, float], swapped: bool) -> float:
    """The preference [1, 2] in a judge's log-probabilities (nats) of its first token.

    `m` names the answer shown first, `M` the one shown second; unless `swapped`, the reference comes first. A
    token that is missing counts as probability 0; where both are, the judge said nothing of use: NaN.
    """
    first, second = (top_logprobs.get(token, -math.inf) for token in ("m", "M"))
    best = max(first, second)
    if best == -math.inf:
        return math.nan
    # Shifted by the larger one, so that two very unlikely tokens do not become 0 / 0.
    p_first, p_second = math.exp(first - best), math.exp(second - best)
    preference = 2 - p_first / (p_first + p_second)
    return 3 - preference if swapped else preference


def win_rate(preferences: Sequence[float]) -> WinRate:
    """Mean preference as a percentage, its standard error, and the rate if each were a plain vote.

    Args:
        preferences: one number in [1, 2], or NaN, per row.

    Returns:
        100 mean(preference - 1), 100 sd(ddof=1) / sqrt(n) (NaN at n = 1), and 100 (wins + draws / 2) / n.

    Raises:
        SettingError: no row has a preference, or one lies outside [1, 2]; names the row.
    """
    values = np.asarray(preferences, dtype=np.float64)
    wrong = np.flatnonzero((values < 1) | (values > 2))
    if len(wrong):
        raise SettingError(f"preferences: row {wrong[0]} is {values[wrong[0]]}; a preference lies in [1, 2] or is NaN.")
    kept = values[~np.isnan(values)]
    if len(kept) == 0:
        raise SettingError(
            f"preferences: none of the {len(values)} rows has one. For a judge that is a language model: it "
            "never answered with `m` or `M`; choose one that follows the judging prompt."
        )
    wins, draws = np.mean(kept > 1.5), np.mean(kept == 1.5)
    deviation = np.std(kept, ddof=1) if len(kept) > 1 else math.nan
    return WinRate(
        win_rate=float(100 * np.mean(kept - 1)),
        standard_error=float(100 * deviation / math.sqrt(len(kept))),
        discrete_win_rate=float(100 * (wins + draws / 2)),
        n_total=len(kept),
        n_dropped=len(values) - len(kept),
    )
