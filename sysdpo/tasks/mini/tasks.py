"""The tasks of the miniature: what is asked (eight families), in which format, and how an answer is scored.

A prompt asks for some words and for two or three things of their format:

    list three small fruits without plum in upper case separated by ; ending with done

    score = mean(format checks) * (how well the words are those asked for)

with the checks of `sysdpo.tasks.verifiable.checks`, so that the judge of the verifiable instructions serves unchanged.
"""

import json
import random
from collections.abc import Callable
from typing import Any, NamedTuple

from sysdpo.tasks.mini.words import CATEGORIES, COLOURS, SIZES, THING, THINGS, members

NUMBERS = ("zero", "one", "two", "three", "four", "five")
MARKS = (";", ",", "/", "|")
ENDINGS = ("done", "over", "thanks", "finished")
OPENINGS = ("here", "so", "result", "look")


class Core(NamedTuple):
    """Which words an answer consists of, format aside.

    Args:
        request: the beginning of the prompt.
        known: every word that would do, of which `n` are asked for; in order, if `ordered`.
        near: words that a careless answer would put in place of one.
    """

    request: str
    known: tuple[str, ...]
    n: int
    ordered: bool
    near: tuple[str, ...]


class Format(NamedTuple):
    """How an answer is to look; None is not asked for."""

    upper: bool
    mark: str | None
    ending: str | None
    opening: str | None

    @property
    def request(self) -> str:
        """The end of the prompt."""
        parts = ["in upper case"] if self.upper else []
        parts += [f"separated by {self.mark}"] if self.mark else []
        parts += [f"ending with {self.ending}"] if self.ending else []
        parts += [f"starting with {self.opening}"] if self.opening else []
        return " ".join(parts)


class Task(NamedTuple):
    family: str
    core: Core
    form: Format

    @property
    def prompt(self) -> str:
        return f"{self.core.request} {self.form.request}"

    @property
    def oracle(self) -> str:
        """The checks of this task as `sysdpo.tasks.verifiable.score.score` reads them."""
        core, form = self.core, self.form
        beside = [word for word in (form.opening, form.ending) if word]
        task: list[dict[str, Any]] = [{"check": "letter_case", "style": "upper"}] if form.upper else []
        task += [{"check": "separated", "mark": form.mark, "n": core.n}] if form.mark else []
        task += [{"check": "ends", "text": form.ending}] if form.ending else []
        task += [{"check": "begins", "text": form.opening}] if form.opening else []
        if core.ordered:
            words: dict[str, Any] = {"check": "sequence", "wanted": list(core.known), "others": beside}
        else:
            words = {"check": "picks", "known": list(core.known), "n": core.n, "others": beside}
        return json.dumps({"task": task, "gate": [words]})


# -- families: each draws what is asked for


def listing(rng: random.Random) -> Core:
    """Members of one category, without a certain one."""
    category, n = rng.choice(CATEGORIES), rng.randint(2, 4)
    known = members(category)
    avoid = rng.choice(known)
    request = f"{rng.choice(('list', 'name', 'give'))} {NUMBERS[n]} {category} without {avoid}"
    return Core(request, tuple(w for w in known if w != avoid), n, False, (avoid, *_strangers(rng, category)))


def describing(rng: random.Random) -> Core:
    """Things by two attributes."""
    category, n = rng.choice(CATEGORIES), rng.randint(2, 3)
    attribute = rng.choice((*SIZES, *COLOURS))
    known = members(category, attribute)
    near = [word for word in members(category) if word not in known]
    request = f"{rng.choice(('list', 'name', 'give'))} {NUMBERS[n]} {attribute} {category}"
    return Core(request, tuple(known), n, False, tuple(near))


def keeping(rng: random.Random) -> Core:
    """Of given words those that have an attribute, as they come."""
    attribute, words, inside = _mixture(rng)
    known = tuple(word for word in words if word in inside)
    return Core(f"keep the {attribute} of {' '.join(words)}", known, len(known), True, _rest(words, known))


def dropping(rng: random.Random) -> Core:
    """Of given words those that have not an attribute, as they come."""
    attribute, words, inside = _mixture(rng)
    known = tuple(word for word in words if word not in inside)
    return Core(f"drop the {attribute} of {' '.join(words)}", known, len(known), True, _rest(words, known))


def sorting(rng: random.Random) -> Core:
    """Given words from a to z."""
    words = _some(rng, 3)
    return Core(f"sort {' '.join(words)}", tuple(sorted(words)), 3, True, tuple(_names(rng, 4)))


def reversing(rng: random.Random) -> Core:
    """Given words from the last to the first."""
    words = _some(rng, rng.randint(3, 4))
    return Core(f"reverse {' '.join(words)}", tuple(words[::-1]), len(words), True, tuple(_names(rng, 4)))


def joining(rng: random.Random) -> Core:
    """Two lists as one, without repeating what both have."""
    words = _some(rng, rng.randint(3, 4))
    cut = rng.randint(1, 2)
    left, right = words[: cut + 1], words[cut:]
    return Core(f"join {' '.join(left)} and {' '.join(right)}", tuple(words), len(words), True, tuple(_names(rng, 4)))


def counting(rng: random.Random) -> Core:
    """How many of given words have an attribute."""
    attribute, words, inside = _mixture(rng)
    n = sum(word in inside for word in words)
    others = tuple(number for number in NUMBERS if number != NUMBERS[n])
    return Core(f"count the {attribute} of {' '.join(words)}", (NUMBERS[n],), 1, True, others)


FAMILIES: dict[str, Callable[[random.Random], Core]] = {
    family.__name__: family
    for family in (listing, describing, keeping, dropping, sorting, reversing, joining, counting)
}


def draw_task(family: str, rng: random.Random) -> Task:
    core = FAMILIES[family](rng)
    wishes = ["upper", "ending", "opening"] + (["mark"] if core.n > 1 else [])
    wanted = rng.sample(wishes, min(rng.choice((2, 2, 3)), len(wishes)))
    form = Format(
        "upper" in wanted,
        rng.choice(MARKS) if "mark" in wanted else None,
        rng.choice(ENDINGS) if "ending" in wanted else None,
        rng.choice(OPENINGS) if "opening" in wanted else None,
    )
    return Task(family, core, form)


def _names(rng: random.Random, n: int) -> list[str]:
    return [thing.name for thing in rng.sample(THINGS, n)]


def _strangers(rng: random.Random, category: str) -> list[str]:
    return [word for word in _names(rng, 6) if THING[word].category != category][:3]


def _some(rng: random.Random, n: int) -> list[str]:
    """Words of two categories: related words are harder to keep apart."""
    pool = [thing.name for category in rng.sample(CATEGORIES, 2) for thing in THINGS if thing.category == category]
    return rng.sample(pool, n)


def _mixture(rng: random.Random) -> tuple[str, list[str], set[str]]:
    """An attribute, four or five words of which one to three have it, and all that have it."""
    attribute = rng.choice((*CATEGORIES, *CATEGORIES, *SIZES, *COLOURS))
    inside = set(members(attribute))
    size, n = rng.randint(4, 5), rng.randint(1, 3)
    outside = [thing.name for thing in THINGS if thing.name not in inside]
    words = rng.sample(sorted(inside), n) + rng.sample(outside, size - n)
    rng.shuffle(words)
    return attribute, words, inside


def _rest(words: list[str], known: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(word for word in words if word not in known)
