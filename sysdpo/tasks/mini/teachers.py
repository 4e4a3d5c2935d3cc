"""The deliberately imperfect teachers of the miniature's language model: four roles, two systems of two models.

Same roles (the paper's table 2): a first model drafts an answer, a second one answers with the draft at hand.
Distinct roles: a first model plans (which words, which format), a second one writes the answer mostly from the plan.

Each teacher gets single things right by chance, independently, so that samples of one prompt differ and there is
something to be aligned. The rates were set by the score of the untrained systems (0.3 to 0.5), not by any aligned one.
"""

import random
from typing import Any, NamedTuple

from sysdpo.tasks.mini.tasks import ENDINGS, MARKS, OPENINGS, Core, Format, Task


class Rates(NamedTuple):
    """How often a teacher does what; wishes (of the format) count one by one.

    Args:
        own_words: words of a teacher's own are right.
        first_wish: a draft meets a wish, a plan notes it.
        answer_keeps_words: an answer keeps the draft's words; else they are its own.
        answer_keeps_form: an answer treats a wish as the draft did; else it meets it by `answer_wish`.
        write_keeps_words: an answer from a plan keeps its words; else they are its own.
        write_noted, write_unnoted: such an answer meets a wish that the plan noted; one that it did not.
        wrong_value: where a wish is not met, another mark, ending or opening stands; else nothing.
    """

    own_words: float = 0.5
    first_wish: float = 0.5
    answer_keeps_words: float = 0.8
    answer_keeps_form: float = 0.5
    answer_wish: float = 0.5
    write_keeps_words: float = 0.9
    write_noted: float = 0.9
    write_unnoted: float = 0.15
    wrong_value: float = 0.3


IMPERFECT = Rates()

SKILLED = Rates(1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0)
"""For the first part of the training, which teaches the skills: right by itself, true to the first model's words."""


class Attempt(NamedTuple):
    """What a role says: words and a format (which may not be those asked for)."""

    words: tuple[str, ...]
    form: Format


def first(task: Task, rng: random.Random, rates: Rates = IMPERFECT) -> Attempt:
    """What a first model says: as a draft by `as_answer`, as a plan by `as_plan`."""
    return Attempt(_own_words(task.core, rng, rates), _form(task.form, rng, [rates.first_wish] * 4, rates))


def answer(task: Task, drafted: Attempt, rng: random.Random, rates: Rates = IMPERFECT) -> Attempt:
    """A second model's answer with a draft at hand."""
    words = drafted.words if rng.random() < rates.answer_keeps_words else _own_words(task.core, rng, rates)
    own = _form(task.form, rng, [rates.answer_wish] * 4, rates)
    kept: list[Any] = [
        of_draft if rng.random() < rates.answer_keeps_form else fresh
        for of_draft, fresh in zip(drafted.form, own, strict=True)
    ]
    return Attempt(words, Format(*kept))


def write(task: Task, planned: Attempt, rng: random.Random, rates: Rates = IMPERFECT) -> Attempt:
    """A second model's answer from a plan; noted values are taken from the plan, wrong ones too."""
    words = planned.words if rng.random() < rates.write_keeps_words else _own_words(task.core, rng, rates)
    merged: list[Any] = [noted if noted else asked for noted, asked in zip(planned.form, task.form, strict=True)]
    each = [rates.write_noted if noted else rates.write_unnoted for noted in planned.form]
    return Attempt(words, _form(Format(*merged), rng, each, rates))


def right(task: Task, rng: random.Random) -> Attempt:
    """A perfect attempt."""
    return Attempt(_right_words(task.core, rng), task.form)


def as_answer(attempt: Attempt) -> str:
    """The attempt as an answer: `SO APPLE ; KIWI DONE`."""
    words, form = attempt
    parts = [form.opening] if form.opening else []
    parts += f" {form.mark} ".join(words).split(" ") if form.mark else words
    parts += [form.ending] if form.ending else []
    text = " ".join(parts)
    return text.upper() if form.upper else text


def as_plan(attempt: Attempt) -> str:
    """The attempt as a plan: `take apple kiwi use upper mark ; open so close done`."""
    words, form = attempt
    notes = ["upper"] if form.upper else []
    notes += [f"mark {form.mark}"] if form.mark else []
    notes += [f"open {form.opening}"] if form.opening else []
    notes += [f"close {form.ending}"] if form.ending else []
    return " ".join(["take", *words, *(["use", *notes] if notes else [])])


def _form(form: Format, rng: random.Random, met: list[float], rates: Rates) -> Format:
    def value(wish: str | None, choices: tuple[str, ...], rate: float) -> str | None:
        if wish is None or rng.random() < rate:
            return wish
        return rng.choice([c for c in choices if c != wish]) if rng.random() < rates.wrong_value else None

    return Format(
        form.upper and rng.random() < met[0],
        value(form.mark, MARKS, met[1]),
        value(form.ending, ENDINGS, met[2]),
        value(form.opening, OPENINGS, met[3]),
    )


def _right_words(core: Core, rng: random.Random) -> tuple[str, ...]:
    return core.known if core.ordered else tuple(rng.sample(core.known, core.n))


def _own_words(core: Core, rng: random.Random, rates: Rates) -> tuple[str, ...]:
    words = list(_right_words(core, rng))
    if rng.random() < rates.own_words:
        return tuple(words)
    kinds = ["replace", "add"] if core.request.split()[0] != "count" else ["replace"]
    kinds += ["leave out"] if len(words) > 1 else []
    kinds += ["swap"] if core.ordered and len(words) > 1 else []
    for _ in range(rng.choice((1, 1, 2))):
        kind, place = rng.choice(kinds), rng.randrange(len(words))
        if kind == "replace":
            words[place] = rng.choice(core.near)
        elif kind == "add":
            words.insert(place, rng.choice(core.near))
        elif kind == "leave out" and len(words) > 1:
            del words[place]
        elif kind == "swap" and len(words) > 1:
            other = (place + 1) % len(words)
            words[place], words[other] = words[other], words[place]
    return tuple(words)
