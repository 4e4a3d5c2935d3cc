"""Preference pairs from several samples of one prompt: ranked by a score (section 5.1), or compared by a judge."""

from collections.abc import Mapping, Sequence
from itertools import combinations


def ranked_pairs(scores: Sequence[float], min_gap: float = 0.0, limit: int | None = None) -> list[tuple[int, int]]:
    """(chosen, rejected) indices of every two samples whose scores differ, widest gap first.

    Args:
        scores: of the n samples of one prompt; n samples give at most n (n-1) / 2 pairs.
        min_gap: pairs whose scores differ by no more than this are dropped; 0 drops ties only.
        limit: keep at most this many.
    """
    pairs = [
        (i, j) if scores[i] > scores[j] else (j, i)
        for i, j in combinations(range(len(scores)), 2)
        if abs(scores[i] - scores[j]) > min_gap
    ]
    return sorted(pairs, key=lambda p: scores[p[1]] - scores[p[0]])[:limit]


def preferred_pairs(
    preferences: Mapping[tuple[int, int], float], min_gap: float = 0.0, limit: int | None = None
) -> list[tuple[int, int, float]]:
    """(chosen, rejected, preference) of every two samples that a judge tells apart, the clearest first.

    Args:
        preferences: of (i, j), in [1, 2] as a judge gives them: 1 prefers sample i, 2 sample j; NaN: no opinion.
        min_gap: pairs no farther from 1.5 are dropped; 0 drops ties only.
        limit: keep at most this many.

    Returns:
        The preference for the chosen one, in (1.5, 2].
    """
    pairs = [
        (j, i, preference) if preference > 1.5 else (i, j, 3 - preference)
        for (i, j), preference in preferences.items()
        if abs(preference - 1.5) > min_gap  # false for NaN
    ]
    return sorted(pairs, key=lambda pair: -pair[2])[:limit]
