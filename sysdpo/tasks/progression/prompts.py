"""User prompts that ask for a progression, in the four styles of appendix F, from templates in our own words."""

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product, zip_longest

from sysdpo.data.files import read_rows
from sysdpo.errors import SettingError, nearest

NOUNS = {
    "dirty": "dirt",
    "daylight": "daylight",
    "night": "night",
    "sunrisesunset": "sunset colors",
    "dawndusk": "twilight",
    "sunny": "sunshine",
    "clouds": "clouds",
    "fog": "fog",
    "storm": "storm",
    "snow": "snow",
    "warm": "warm light",
    "cold": "cold",
    "busy": "bustle",
    "beautiful": "beauty",
    "flowers": "flowers",
    "spring": "signs of spring",
    "summer": "signs of summer",
    "autumn": "autumn leaves",
    "winter": "signs of winter",
    "glowing": "glow",
    "colorful": "color",
    "dull": "dullness",
    "rugged": "rugged rock",
    "midday": "midday light",
    "dark": "darkness",
    "bright": "bright light",
    "dry": "dryness",
    "moist": "moisture",
    "windy": "wind",
    "rain": "rain",
    "ice": "ice",
    "cluttered": "clutter",
    "soothing": "calm",
    "stressful": "tension",
    "exciting": "excitement",
    "sentimental": "nostalgia",
    "mysterious": "mystery",
    "boring": "monotony",
    "gloomy": "gloom",
    "lush": "lush greenery",
}
"""What a prompt calls each of the forty scene attributes, in the index order of the attribute regressor."""

TEMPLATES: dict[str, tuple[str, ...]] = {
    "prompt": (
        "Three images of a {place} with more and more {noun}.",
        "A {place} in three images, from no {noun} to a great deal of it.",
    ),
    "instruction": (
        "Show a {place} three times and add {noun} each time.",
        "Draw three images of a {place}, each with more {noun} than the one before.",
    ),
    "inspiration": (
        "I would love to see a {place} with more {noun} in every image.",
        "I imagine a {place} in three pictures, with {noun} building up bit by bit.",
    ),
    "hypothesis": (
        "If there were more and more {noun} at a {place}, three images in a row would show it.",
        "Suppose a {place} had more {noun} every hour; three images would tell the story.",
    ),
}


@dataclass(frozen=True)
class ProgressionPrompt:
    x: str
    attribute: str
    place: str
    style: str

    def row(self) -> dict[str, str]:
        return asdict(self)


def make_prompts(
    attributes: Sequence[str],
    places: Sequence[str],
    per_attribute: int,
    held_out_per_attribute: int,
    seed: int,
    held_out_places: int | None = None,
) -> tuple[list[ProgressionPrompt], list[ProgressionPrompt]]:
    """Training and evaluation prompts that share no (place, attribute) pair; styles take turns.

    `held_out_places` of the places of every attribute (None: a third) are held out for evaluation, other places for
    other attributes.

    Raises:
        SettingError: an unknown attribute, or more prompts asked for than the templates and places give.
    """
    for attribute in attributes:
        if attribute not in NOUNS:
            raise SettingError(f"dataset.attributes: {nearest(attribute, NOUNS)}")
    if len(set(places)) < 2:
        raise SettingError(f"dataset.places={list(places)}: name at least two, one of them is held out.")
    held_out = max(1, len(places) // 3) if held_out_places is None else held_out_places
    if not 0 < held_out < len(places):
        raise SettingError(
            f"dataset.held_out_places={held_out}: must be at least 1 and less than the {len(places)} places there are."
        )
    train: list[ProgressionPrompt] = []
    evaluation: list[ProgressionPrompt] = []
    for position, attribute in enumerate(attributes):
        rng = random.Random(f"{seed} {attribute}")
        ordered = list(places)
        rng.shuffle(ordered)
        parts = (
            (train, ordered[held_out:], per_attribute, "dataset.prompts_per_attribute"),
            (evaluation, ordered[:held_out], held_out_per_attribute, "dataset.evaluation_prompts_per_attribute"),
        )
        for target, where, wanted, setting in parts:
            target += _prompts(attribute, where, wanted, position, setting, rng)
    return train, evaluation


def read_prompts(
    path: str, attributes: Sequence[str], per_attribute: int, held_out_per_attribute: int
) -> tuple[list[ProgressionPrompt], list[ProgressionPrompt]]:
    """Training and evaluation prompts from a file of `scripts/generate_prompts.py`; styles take turns.

    Raises:
        SettingError: a row that is none, or too few prompts of an attribute.
    """
    groups: dict[tuple[str, str], list[ProgressionPrompt]] = {}
    for number, row in enumerate(read_rows(path, "dataset.prompts"), 1):
        if not all(isinstance(row.get(key), str) for key in ("x", "attribute", "style")):
            raise SettingError(f"dataset.prompts={path}, row {number}: needs the texts x, attribute and style.")
        prompt = ProgressionPrompt(row["x"], row["attribute"], "", row["style"])
        groups.setdefault((prompt.attribute, prompt.style), []).append(prompt)
    train: list[ProgressionPrompt] = []
    evaluation: list[ProgressionPrompt] = []
    for attribute in attributes:
        columns = [prompts for (name, _), prompts in groups.items() if name == attribute]
        turns = [prompt for turn in zip_longest(*columns) for prompt in turn if prompt is not None]
        if len(turns) < per_attribute + held_out_per_attribute:
            raise SettingError(
                f"dataset.prompts={path}: has {len(turns)} prompts of {attribute!r} where {per_attribute} to train on "
                f"and {held_out_per_attribute} to be judged on are asked for; generate more."
            )
        train += turns[:per_attribute]
        evaluation += turns[per_attribute : per_attribute + held_out_per_attribute]
    return train, evaluation


def _prompts(
    attribute: str, places: Sequence[str], wanted: int, position: int, setting: str, rng: random.Random
) -> list[ProgressionPrompt]:
    by_style = {style: list(product(places, templates)) for style, templates in TEMPLATES.items()}
    available = sum(map(len, by_style.values()))
    if wanted > available:
        raise SettingError(
            f"{setting}={wanted}: {len(places)} places give {available} different prompts; add to dataset.places."
        )
    for combinations in by_style.values():
        rng.shuffle(combinations)
    styles = list(TEMPLATES)
    prompts = []
    for i in range(wanted):
        style = styles[(i + position) % len(styles)]
        place, template = by_style[style].pop()
        text = template.format(place=place, noun=NOUNS[attribute])
        prompts.append(ProgressionPrompt(text, attribute, place, style))
    return prompts
