"""Captions of scenes: a place, usually one attribute (sometimes two), and a word for how much of it.

The wording follows what a small chat model writes when it is asked for captions that progress ("A lake with
no snow.", "with some snow.", "with extremely heavy snow."). Every intensity word belongs to one of five
grades, and each grade to a narrow interval of levels (`GRADES`): a caption fixes the level it asks for.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from sysdpo.errors import SettingError, nearest
from sysdpo.tasks.progression.scenes.render import ATTRIBUTES, PLACES

GRADES: dict[str, tuple[float, float]] = {
    "none": (0.0, 0.0),
    "slight": (0.2, 0.3),
    "moderate": (0.45, 0.55),
    "heavy": (0.7, 0.8),
    "extreme": (0.95, 1.0),
}
"""Grade -> the interval of levels it stands for. Levels between two intervals go to the nearer grade."""

_BEFORE_NOUN: dict[str, tuple[str, ...]] = {
    "none": ("no", "no", "zero", "not any"),
    "slight": ("a little", "slight", "a bit of", "very little", "light"),
    "moderate": ("some", "some", "moderate", ""),
    "heavy": ("heavy", "strong", "a lot of", "very strong", "more"),
    "extreme": ("extremely heavy", "extremely strong", "extreme", "extremely heavy", "too much"),
}
_BEFORE_ADJECTIVE: dict[str, tuple[str, ...]] = {
    "none": ("not at all", "not"),
    "slight": ("slightly", "a little"),
    "moderate": ("somewhat", "moderately"),
    "heavy": ("very", "heavily"),
    "extreme": ("extremely", "incredibly"),
}
_NOUNS: dict[str, tuple[str, ...]] = {
    "bright": ("bright light", "brightness", "bright"),
    "dark": ("darkness", "shadow", "dark"),
    "fog": ("fog", "fog", "mist"),
    "snow": ("snow", "snow", "snow cover"),
    "ice": ("ice", "ice", "frost"),
    "night": ("night", "night sky", "nighttime"),
    "clouds": ("clouds", "clouds", "cloud cover"),
    "flowers": ("flowers", "flowers", "blossoms"),
    "autumn": ("autumn", "autumn leaves", "fall colors"),
    "warm": ("warmth", "warm light", "warm", "heat"),
    "lush": ("lush", "lush greenery", "green plants"),
    "sunny": ("sun", "sunshine", "sunlight", "sunny"),
}
_ADJECTIVES: dict[str, str] = {
    "bright": "bright",
    "dark": "dark",
    "fog": "foggy",
    "snow": "snowy",
    "ice": "icy",
    "night": "nocturnal",
    "clouds": "cloudy",
    "flowers": "flowery",
    "autumn": "autumnal",
    "warm": "warm",
    "lush": "lush",
    "sunny": "sunny",
}
_PLACE_NAMES: dict[str, tuple[str, ...]] = {
    "beach": ("beach", "beach", "sandy beach"),
    "mountain": ("mountain", "mountain", "mountain range"),
    "forest": ("forest", "forest", "woodland"),
    "city street": ("city street", "city street", "street"),
    "lake": ("lake", "lake", "lakeside"),
    "field": ("field", "field", "meadow"),
}
HELD_OUT_SHARE = 0.15


@dataclass(frozen=True)
class SceneCaption:
    """A caption and the scene it asks for: attributes it does not name have level 0."""

    text: str
    place: str
    levels: dict[str, float]


def grade_of(level: float) -> str:
    """The grade whose interval is nearest to `level`."""
    return min(GRADES, key=lambda grade: max(GRADES[grade][0] - level, level - GRADES[grade][1]))


def grade_center(grade: str) -> float:
    """The level a caption of this grade asks for: the middle of its interval."""
    low, high = GRADES[grade]
    return (low + high) / 2


def caption(place: str, attribute: str, level: float, rng: Random) -> str:
    """One caption that names one attribute, such as "A lake with extremely heavy snow."

    Args:
        place: one of `PLACES`.
        attribute: one of `ATTRIBUTES`.
        level: in [0, 1]; expressed by a word of `grade_of(level)`.
        rng: chooses among the synonyms.
    """
    return caption_of(place, [attribute], [level], rng)


def caption_of(place: str, attributes: Sequence[str], levels: Sequence[float], rng: Random) -> str:
    """One caption that names each of `attributes` at its level, joined by "and"; see `caption`."""
    if place not in PLACES:
        raise SettingError(f"caption place: {nearest(place, PLACES)}")
    for attribute in attributes:
        if attribute not in ATTRIBUTES:
            raise SettingError(f"caption attribute: {nearest(attribute, ATTRIBUTES)}")
    where = rng.choice(_PLACE_NAMES[place])
    grades = [grade_of(level) for level in levels]
    if len(attributes) == 1 and rng.random() < 0.2:
        how = f"{rng.choice(_BEFORE_ADJECTIVE[grades[0]])} {_ADJECTIVES[attributes[0]]}"
        return _sentence(f"{how} {where}" if grades[0] != "none" else f"{where} that is {how}")
    named = [
        f"{rng.choice(_BEFORE_NOUN[grade])} {rng.choice(_NOUNS[attribute])}".strip()
        for attribute, grade in zip(attributes, grades, strict=True)
    ]
    return _sentence(f"{where} with {' and '.join(named)}")


def sample_caption(rng: Random, two_attributes: float = 0.15) -> SceneCaption:
    """Draw a caption with places, attributes and grades equally likely.

    Args:
        rng: source of every choice.
        two_attributes: share of captions that name two different attributes.

    Returns:
        the caption with the centre level of each grade it names.
    """
    place = rng.choice(PLACES)
    attributes = rng.sample(ATTRIBUTES, 2 if rng.random() < two_attributes else 1)
    levels = [grade_center(rng.choice(tuple(GRADES))) for _ in attributes]
    text = caption_of(place, attributes, levels, rng)
    return SceneCaption(text, place, dict(zip(attributes, levels, strict=True)))


def is_held_out(text: str) -> bool:
    """Whether a caption belongs to the held-out share: a hash of its text decides, on every machine alike."""
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**32 < HELD_OUT_SHARE


def _sentence(phrase: str) -> str:
    article = "An" if phrase[0] in "aeiou" else "A"
    if phrase.startswith("a little "):  # "A little foggy lake" already starts with its article
        return f"{phrase[0].upper()}{phrase[1:]}."
    return f"{article} {phrase}."
