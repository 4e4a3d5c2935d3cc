"""Prompts of the miniature from seeds, in three shares that have no prompt in common."""

import hashlib
import random
from collections.abc import Iterator
from itertools import islice
from typing import Literal, get_args

from sysdpo.errors import SettingError, nearest
from sysdpo.tasks.mini.tasks import FAMILIES, Task, draw_task

Share = Literal["base", "train", "evaluation"]

_SHARES: tuple[Share, ...] = ("base", "base", "base", "train", "evaluation")

_ATTEMPTS = 2_000
"""Draws for one new prompt before a family counts as exhausted."""


def share_of(prompt: str) -> Share:
    """Which share a prompt belongs to, by its hash: 60 % base (the language model's own training), 20 % each other.

    All shares are of the same kind: words, families and formats are common to them, whole prompts are not.
    """
    return _SHARES[hashlib.sha256(prompt.encode()).digest()[0] * 5 // 256]


def draw_tasks(share: Share, seed: int) -> Iterator[Task]:
    """Different tasks of one share without end, the families taking turns."""
    if share not in get_args(Share):
        raise SettingError(f"dataset.share: {nearest(share, get_args(Share))}")
    generators = {family: random.Random(f"mini/{share}/{seed}/{family}") for family in FAMILIES}
    taken: set[str] = set()
    while True:
        for family, rng in generators.items():
            for _ in range(_ATTEMPTS):
                task = draw_task(family, rng)
                if task.prompt not in taken and share_of(task.prompt) == share:
                    break
            else:
                raise SettingError(f"dataset: family {family} has no new prompt after {len(taken)}; ask for fewer")
            taken.add(task.prompt)
            yield task


def make_instructions(share: Share, n: int, seed: int) -> list[dict[str, str]]:
    """`n` different instructions; a smaller `n` gives the first rows.

    Args:
        share: `train` or `evaluation`; `base` is what the shipped language model was trained on.
        n: rows wanted.
        seed: the same seed gives the same rows, everywhere.

    Returns:
        Rows `{"x": prompt, "family": name, "oracle": checks as JSON}`; see `sysdpo.tasks.verifiable.score.score`.

    Raises:
        SettingError: an unknown share, n < 1, or more rows than a family has different prompts for.
    """
    if n < 1:
        raise SettingError(f"dataset.n={n}: ask for at least one instruction")
    tasks = islice(draw_tasks(share, seed), n)
    return [{"x": task.prompt, "family": task.family, "oracle": task.oracle} for task in tasks]
