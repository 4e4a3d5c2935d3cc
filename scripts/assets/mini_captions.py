"""The language of table 1 at `mini`: captions of one attribute, "A lake with a little snow.", two words a grade."""

from random import Random

from sysdpo.tasks.progression.prompts import NOUNS

WORDS: dict[str, tuple[str, str]] = {
    "none": ("no", "zero"),
    "slight": ("slight", "a little"),
    "moderate": ("moderate", "some"),
    "heavy": ("heavy", "a lot of"),
    "extreme": ("extreme", "extremely heavy"),
}
"""Grade of `sysdpo.tasks.progression.scenes` -> the words for it."""


def phrase(place: str, attribute: str, grade: str, rng: Random) -> str:
    """One caption; `rng` chooses between the grade's two words."""
    return worded(place, attribute, rng.choice(WORDS[grade]))


def worded(place: str, attribute: str, word: str) -> str:
    return f"A {place} with {word} {NOUNS[attribute]}."


def grade_of_word(word: str) -> str:
    """The grade that a word stands for."""
    return next(grade for grade, words in WORDS.items() if word in words)
