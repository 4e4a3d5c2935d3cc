"""The instruction families of Table 2 at `laptop` scale: what fills a prompt, and its answer's checks."""

import json
import random
from collections.abc import Callable
from typing import Any, NamedTuple

from sysdpo.tasks.verifiable.pool import Category, Pool

Check = dict[str, Any]


class Draw(NamedTuple):
    """One instruction before its phrasing is chosen: slot values, task checks, gate checks."""

    slots: dict[str, str]
    task: list[Check]
    gate: list[Check]


Family = Callable[[Pool, random.Random], Draw]

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def _check(name: str, **arguments: Any) -> Check:
    return {"check": name, **arguments}


def _about(pool: Pool, rng: random.Random, at_most: int) -> tuple[str, list[Check]]:
    """A subject and the gates of a short text about it."""
    subject, stems = rng.choice(list(pool.subjects.items()))
    return subject, [_check("on_subject", stems=list(stems)), *_text(at_most)]


def _text(at_most: int, sentences: int | None = None) -> list[Check]:
    counted = [] if sentences is None else [_check("sentences", n=sentences)]
    return [*counted, _check("prose"), _check("varied"), _check("length", at_most=at_most)]


def _short(at_most: int) -> list[Check]:
    return [_check("varied"), _check("length", at_most=at_most)]


def _listing(category: Category, n: int) -> list[Check]:
    return [_check("members", known=list(category.members), n=n), *_short(3 * n)]


def _sentence_about(pool: Pool, rng: random.Random) -> tuple[str, list[Check]]:
    subject, gate = _about(pool, rng, 25)
    return subject, [_check("sentences", n=1), *gate]


def word_limit(pool: Pool, rng: random.Random) -> Draw:
    subject, gate = _about(pool, rng, 30)
    n = rng.choice((8, 10, 12, 15))
    return Draw({"subject": subject, "n": str(n)}, [_check("words_at_most", n=n)], gate)


def sentence_count(pool: Pool, rng: random.Random) -> Draw:
    n = rng.choice((1, 2, 3))
    subject, gate = _about(pool, rng, 12 * n)
    return Draw({"subject": subject, "n": _NUMBERS[n], "s": "s" if n > 1 else ""}, [_check("sentences", n=n)], gate)


def include_words(pool: Pool, rng: random.Random) -> Draw:
    a, b = rng.sample(rng.choice(pool.scenes), 2)
    return Draw({"a": a, "b": b}, [_check("includes", wanted=[a, b])], _text(25, sentences=1))


def avoid_words(pool: Pool, rng: random.Random) -> Draw:
    subject, words = rng.choice(list(pool.taboo.items()))
    a, b = rng.sample(words, 2)
    noun = subject.split()[-1].removesuffix("s")
    stem = noun[:-1] if len(noun) > 5 else noun  # library, libraries
    gate = [_check("on_subject", stems=[stem]), *_text(25, sentences=1)]
    return Draw({"subject": subject, "a": a, "b": b}, [_check("avoids", unwanted=[a, b])], gate)


def list_lines(pool: Pool, rng: random.Random) -> Draw:
    category, n = rng.choice(pool.categories), rng.randint(3, 6)
    return Draw({"plural": category.plural, "n": _NUMBERS[n]}, [_check("lines", n=n)], _listing(category, n))


def comma_list(pool: Pool, rng: random.Random) -> Draw:
    category, n = rng.choice(pool.categories), rng.randint(3, 6)
    return Draw({"plural": category.plural, "n": _NUMBERS[n]}, [_check("commas", n=n)], _listing(category, n))


def letter_case(pool: Pool, rng: random.Random) -> Draw:
    category, n = rng.choice(pool.categories), rng.randint(1, 3)
    style = rng.choice(("upper", "lower"))
    slots = {"n": _NUMBERS[n], "what": category.plural if n > 1 else category.singular, "case": f"{style}case"}
    return Draw(slots, [_check("letter_case", style=style)], _listing(category, n))


def ending(pool: Pool, rng: random.Random) -> Draw:
    subject, gate = _sentence_about(pool, rng)
    text = rng.choice(pool.endings)
    return Draw({"subject": subject, "text": text}, [_check("ends", text=text)], gate)


def beginning(pool: Pool, rng: random.Random) -> Draw:
    subject, gate = _sentence_about(pool, rng)
    text = rng.choice(pool.beginnings)
    return Draw({"subject": subject, "text": text}, [_check("begins", text=text)], gate)


def question(pool: Pool, rng: random.Random) -> Draw:
    subject, gate = _sentence_about(pool, rng)
    return Draw({"subject": subject}, [_check("questions")], gate)


def quoted_title(pool: Pool, rng: random.Random) -> Draw:
    subject, stems = rng.choice(list(pool.subjects.items()))
    gate = [_check("on_subject", stems=list(stems)), *_short(12)]
    task = [_check("wrapped", left='"', right='"'), _check("words_at_most", n=8)]
    return Draw({"subject": subject}, task, gate)


def json_object(pool: Pool, rng: random.Random) -> Draw:
    record, keys = rng.choice(list(pool.records.items()))
    a, b = rng.sample(keys, 2)
    return Draw({"record": record, "a": a, "b": b}, [_check("json_keys", keys=[a, b])], _short(16))


def arithmetic(pool: Pool, rng: random.Random) -> Draw:
    total = rng.choice(pool.sums)
    a = rng.randint(2, total - 2)
    slots = {
        "a": str(a),
        "b": str(total - a),
        "person": rng.choice(pool.people),
        "thing": rng.choice(pool.things),
    }
    return Draw(slots, [_check("number", value=total)], _short(10))


def extraction(pool: Pool, rng: random.Random) -> Draw:
    facts = {"job": rng.choice(pool.jobs), "city": rng.choice(pool.places), "pet": rng.choice(pool.pets)}
    person, asked = rng.choice(pool.people), rng.choice(sorted(facts))
    wanted = {
        "job": f"What is {person}'s job?",
        "city": f"Where does {person} live?",
        "pet": f"Which pet does {person} have?",
    }[asked]
    others = [value for key, value in facts.items() if key != asked]
    task = [_check("names", accepted=[facts[asked]], others=others)]
    return Draw({"person": person, "question": wanted, **facts}, task, _short(8))


def choice(pool: Pool, rng: random.Random) -> Draw:
    adjective, pairs = rng.choice(list(pool.comparisons.items()))
    more, less = rng.choice(pairs)
    a, b = (_article(word) for word in rng.sample((more, less), 2))
    task = [_check("chooses", accepted=[more], others=[less])]
    return Draw({"adjective": adjective, "a": a, "b": b}, task, _short(8))


def yes_no(pool: Pool, rng: random.Random) -> Draw:
    asked, other = rng.sample(pool.categories, 2)
    truth = rng.random() < 0.5
    members = set((asked if truth else other).members) - (set() if truth else set(asked.members))
    task = [_check("chooses", accepted=["yes" if truth else "no"], others=["no" if truth else "yes"])]
    return Draw({"member": rng.choice(sorted(members)), "singular": _article(asked.singular)}, task, _short(8))


def opposite(pool: Pool, rng: random.Random) -> Draw:
    word, accepted = rng.choice(list(pool.opposites.items()))
    return Draw({"word": word}, [_check("names", accepted=list(accepted), others=[])], _short(8))


def _article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


FAMILIES: dict[str, Family] = {
    family.__name__: family
    for family in (
        word_limit,
        sentence_count,
        include_words,
        avoid_words,
        list_lines,
        comma_list,
        letter_case,
        ending,
        beginning,
        question,
        quoted_title,
        json_object,
        arithmetic,
        extraction,
        choice,
        yes_no,
        opposite,
    )
}

_COPYING = ("extraction",)
"""Families whose good answers repeat words of the prompt."""

_ASKING = ("question",)
"""Families whose good answers ask."""


def oracle(family: str, prompt: str, draw: Draw) -> str:
    """The checks of one instruction as `sysdpo.tasks.verifiable.score.score` reads them."""
    gate = list(draw.gate)
    if family not in _COPYING:
        gate.append(_check("not_echoed", prompt=prompt))
    if family not in _ASKING:
        gate.append(_check("direct"))
    return json.dumps({"task": draw.task, "gate": gate})
