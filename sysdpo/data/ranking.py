"""Preference pairs from several samples of one prompt, ranked by a score (section 5.1)."""

from collections.abc import Sequence
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
