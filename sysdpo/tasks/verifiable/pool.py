"""What a split's pool of words holds, and the instruction vocabulary that the two splits share."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Category:
    """A class of things to list: `plural` and `singular` as prompts say them, and well-known members."""

    plural: str
    singular: str
    members: tuple[str, ...]


@dataclass(frozen=True)
class Pool:
    """Everything that the prompts of one split can be about.

    subjects: phrase to stems, one of which a text about it contains.
    taboo: a subject and the two words that come to mind first.
    scenes: nouns that fit into one sentence together.
    records: who or what a JSON object describes, and the keys that suit it.
    sums: the results of its additions.
    comparisons: a comparative, then pairs (more, less) in that respect.
    opposites: a word and its accepted opposites.
    """

    subjects: dict[str, tuple[str, ...]]
    taboo: dict[str, tuple[str, str]]
    scenes: tuple[tuple[str, ...], ...]
    categories: tuple[Category, ...]
    endings: tuple[str, ...]
    beginnings: tuple[str, ...]
    records: dict[str, tuple[str, ...]]
    people: tuple[str, ...]
    things: tuple[str, ...]
    jobs: tuple[str, ...]
    places: tuple[str, ...]
    pets: tuple[str, ...]
    sums: tuple[int, ...]
    comparisons: dict[str, tuple[tuple[str, ...], ...]]
    opposites: dict[str, tuple[str, ...]]


def stems(text: str) -> dict[str, tuple[str, ...]]:
    """`rivers: river water, bees: bee hive` -> `{"rivers": ("river", "water"), "bees": ("bee", "hive")}`"""
    entries = (entry.split(":") for entry in " ".join(text.split()).split(","))
    return {phrase.strip(): tuple(found.split()) for phrase, found in entries}


def groups(text: str) -> tuple[tuple[str, ...], ...]:
    """`fox hen farm, boat net` -> `(("fox", "hen", "farm"), ("boat", "net"))`"""
    return tuple(tuple(group.split()) for group in text.split(","))


def category(plural: str, singular: str, members: str) -> Category:
    """A category whose members stand in one text, separated by commas."""
    return Category(plural, singular, tuple(" ".join(name.split()) for name in members.split(",")))
