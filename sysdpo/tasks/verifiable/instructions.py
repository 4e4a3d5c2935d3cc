"""Verifiable instructions for Table 2 at `laptop` scale: short prompts from seeds, each with its oracle."""

import random
from typing import Literal

from sysdpo.errors import SettingError, nearest
from sysdpo.tasks.verifiable.evaluation_words import EVALUATION
from sysdpo.tasks.verifiable.families import FAMILIES, oracle
from sysdpo.tasks.verifiable.phrasings import INSTRUCTION_WORDS, PHRASINGS
from sysdpo.tasks.verifiable.pool import Pool
from sysdpo.tasks.verifiable.train_words import TRAIN

__all__ = ["FAMILIES", "INSTRUCTION_WORDS", "PHRASINGS", "POOLS", "Split", "make_instructions"]

Split = Literal["train", "evaluation"]

POOLS: dict[str, Pool] = {"train": TRAIN, "evaluation": EVALUATION}

_ATTEMPTS = 200
"""Draws for one new prompt before a family counts as exhausted."""


def make_instructions(split: Split, n: int, seed: int) -> list[dict[str, str]]:
    """`n` different instructions, the families taking turns; a smaller `n` gives the first rows.

    Args:
        split: whose words fill the prompts. The two splits share the phrasings and no content word.
        n: rows wanted.
        seed: the same seed gives the same rows, everywhere.

    Returns:
        Rows `{"x": prompt, "family": name, "oracle": checks as JSON}`; see `sysdpo.tasks.verifiable.score.score`.

    Raises:
        SettingError: an unknown split, n < 1, or more rows than a family has different prompts for.
    """
    if split not in POOLS:
        raise SettingError(f"dataset.split: {nearest(split, POOLS)}")
    if n < 1:
        raise SettingError(f"dataset.n={n}: ask for at least one instruction")
    generators = {name: random.Random(f"{split}/{seed}/{name}") for name in FAMILIES}
    names = list(FAMILIES)
    rows: list[dict[str, str]] = []
    taken: set[str] = set()
    for index in range(n):
        name = names[index % len(names)]
        row = _new_row(split, name, generators[name], taken)
        if row is None:
            raise SettingError(f"dataset.n={n}: family {name} has no new prompt after {index} rows; ask for fewer")
        taken.add(row["x"])
        rows.append(row)
    return rows


def _new_row(split: Split, name: str, rng: random.Random, taken: set[str]) -> dict[str, str] | None:
    for _ in range(_ATTEMPTS):
        draw = FAMILIES[name](POOLS[split], rng)
        prompt = rng.choice(PHRASINGS[name]).format(**draw.slots)
        prompt = prompt[0].upper() + prompt[1:]
        if prompt not in taken:
            return {"x": prompt, "family": name, "oracle": oracle(name, prompt, draw)}
    return None
