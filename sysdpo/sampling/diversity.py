"""How much the texts of one prompt differ: distinct n-grams (Li et al., 2016)."""

from collections.abc import Sequence


def distinct_ngrams(texts: Sequence[str], n: int = 2) -> float:
    """Different n-grams of words over all n-grams of all the texts, in (0, 1]; 1 where no text has n words."""
    grams = [tuple(words[i : i + n]) for words in map(str.split, texts) for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0
