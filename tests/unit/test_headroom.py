"""The share of variance between rows, against cases worked by hand."""

import numpy as np
import pytest

from sysdpo.experiment.headroom import between_rows


def test_rows_that_never_vary_hold_all_of_the_variance() -> None:
    assert between_rows([[0.0, 1.0, 5.0], [0.0, 1.0, 5.0]]) == 1.0


def test_a_case_by_hand() -> None:
    # rows (1, 3) and (5, 7): variance within 2; of the means 2 and 6 it is 8, less 2 / 2: between 7
    assert between_rows([[1.0, 5.0], [3.0, 7.0]]) == pytest.approx(7 / 9)


def test_independent_numbers_have_none_on_average() -> None:
    draws = np.random.default_rng(0).normal(size=(200, 4, 50))
    assert np.mean([between_rows(numbers) for numbers in draws]) == pytest.approx(0, abs=0.02)
