"""AlpacaEval's arithmetic on small cases derived by hand; tests/parity replays real judgements."""

import math

import pytest

from sysdpo.errors import SettingError
from sysdpo.evaluation.win_rate import is_swapped, preference_from_logprobs, win_rate

LN = math.log


@pytest.mark.parametrize(
    ("top_logprobs", "preference"),
    [
        ({"m": LN(0.6), "M": LN(0.2), "The": LN(0.1)}, 2 - 0.75),  # 0.6 / 0.8 for the reference
        ({"m": LN(0.2), "M": LN(0.6)}, 2 - 0.25),
        ({"m": LN(0.9), "The": LN(0.05)}, 1.0),  # a missing token counts as probability 0
        ({"M": LN(0.9)}, 2.0),
        ({"m": -9999.0, "M": -9999.0}, 1.5),  # too unlikely for exp, still comparable
        ({"m": -800.0, "M": 0.0}, 2.0),
        ({"m": -1.0, "M": -math.inf}, 1.0),
    ],
)
def test_preference_from_logprobs(top_logprobs: dict[str, float], preference: float) -> None:
    assert preference_from_logprobs(top_logprobs, swapped=False) == pytest.approx(preference, abs=1e-15)
    assert preference_from_logprobs(top_logprobs, swapped=True) == pytest.approx(3 - preference, abs=1e-15)


@pytest.mark.parametrize("top_logprobs", [{}, {"The": -0.1}, {" m": -0.1}, {"m": -math.inf}])
def test_no_verdict_is_nan(top_logprobs: dict[str, float]) -> None:
    assert math.isnan(preference_from_logprobs(top_logprobs, swapped=False))
    assert math.isnan(preference_from_logprobs(top_logprobs, swapped=True))


def test_the_coin_is_fixed_by_the_instruction_and_the_seed_and_fair() -> None:
    instructions = [f"Instruction {i}" for i in range(2000)]
    tosses = [is_swapped(text) for text in instructions]
    assert tosses == [is_swapped(text, seed=0) for text in instructions]
    assert tosses != [is_swapped(text, seed=1) for text in instructions]
    assert abs(sum(tosses) - 1000) < 4 * math.sqrt(500)  # four standard deviations of a fair coin


def test_win_rate_by_hand() -> None:
    rate = win_rate([1.0, 1.25, 1.5, 2.0, math.nan])
    # Shares 0, .25, .5, 1: mean 0.4375; squared deviations sum to 0.546875; sd = sqrt(0.546875 / 3).
    assert rate.win_rate == pytest.approx(43.75)
    assert rate.standard_error == pytest.approx(100 * math.sqrt(0.546875 / 3) / 2)
    assert rate.discrete_win_rate == pytest.approx(100 * (1 + 0.5) / 4)  # one win, one draw
    assert (rate.n_total, rate.n_dropped) == (4, 1)


def test_one_row_has_no_standard_error() -> None:
    rate = win_rate([1.2])
    assert rate.win_rate == pytest.approx(20)
    assert math.isnan(rate.standard_error)


@pytest.mark.parametrize("bad", [0.99, 2.01, -1.0, math.inf])
def test_a_preference_outside_the_range_is_refused_by_row(bad: float) -> None:
    with pytest.raises(SettingError, match="row 2"):
        win_rate([1.5, math.nan, bad])


@pytest.mark.parametrize("preferences", [[], [math.nan, math.nan]])
def test_no_preference_at_all_is_refused(preferences: list[float]) -> None:
    with pytest.raises(SettingError, match=f"none of the {len(preferences)} rows"):
        win_rate(preferences)
