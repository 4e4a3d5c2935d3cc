"""Preference score (eq. 8) and order consistency against the paper's examples and hand-derived values."""

import numpy as np
import pytest
import torch

from sysdpo.errors import SettingError
from sysdpo.tasks.progression.preference_score import order_consistency, preference_score


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        ([1, 0.5, 0], -1.0),  # appendix E: reversed
        ([0, 1, 0.9], 0.35),  # appendix E: the middle overshoots
        ([0, 0.5, 1], 1.0),  # appendix E: perfect
        ([0.3, 0.3, 0.3], 0.0),  # no change at all
        ([1, 0, 0], -1.5),  # -(1 + |0 - 1/2|): the worst there is
        ([0, 0, 1], 0.5),  # -(-1 + |0 - 1/2|)
    ],
)
def test_preference_score_of_one_sequence(levels: list[float], expected: float) -> None:
    assert preference_score(levels) == pytest.approx(expected, abs=1e-15)


def test_no_sequence_scores_above_the_even_progression() -> None:
    grid = np.stack(np.meshgrid(*[np.linspace(0, 1, 21)] * 3, indexing="ij"), axis=-1)
    q = preference_score(grid)
    assert q.shape == (21, 21, 21)
    assert q.max() == q[0, 10, 20] == 1.0
    assert q.min() == -1.5


def test_lists_arrays_and_tensors_agree_in_float64() -> None:
    rows = [[0.0, 0.25, 1.0], [1.0, 0.75, 0.5]]
    expected = np.array([1 - 0.25, -(0.5 + 0.0)])
    for scores in (
        rows,
        np.array(rows, dtype=np.float32),
        torch.tensor(rows, requires_grad=True),
        torch.tensor(rows, dtype=torch.bfloat16),
    ):
        q = preference_score(scores)
        assert q.dtype == np.float64
        np.testing.assert_array_equal(q, expected)


def test_order_consistency_counts_strict_rises_only() -> None:
    scores = [[0.1, 0.2, 0.3], [0.1, 0.1, 0.3], [0.1, 0.3, 0.3], [0.3, 0.2, 0.1], [0.0, 0.5, 1.0]]
    assert order_consistency(scores) == pytest.approx(2 / 5)
    assert order_consistency(torch.tensor(scores)) == pytest.approx(2 / 5)


@pytest.mark.parametrize("bad", [float("nan"), -0.01, 1.01, float("inf")])
def test_a_level_outside_the_range_is_refused_by_row_and_image(bad: float) -> None:
    scores = [[0.1, 0.2, 0.3], [0.1, bad, 0.3]]
    for function in (preference_score, order_consistency):
        with pytest.raises(SettingError, match="row 1, image 2"):
            function(scores)
    with pytest.raises(SettingError, match=r"row \(0, 1\), image 2"):
        preference_score([scores])
    with pytest.raises(SettingError, match="the sequence, image 2"):
        preference_score(scores[1])


@pytest.mark.parametrize("scores", [[[0.1, 0.2]], 0.5, [0.1, 0.2, 0.3, 0.4]])
def test_other_than_three_images_are_refused(scores: object) -> None:
    with pytest.raises(SettingError, match="3 images"):
        preference_score(scores)


@pytest.mark.parametrize("scores", [np.zeros((0, 3)), [0.1, 0.2, 0.3], [[[0.1, 0.2, 0.3]]]])
def test_order_consistency_needs_rows(scores: object) -> None:
    with pytest.raises(SettingError, match=r"\[N, 3\]"):
        order_consistency(scores)
