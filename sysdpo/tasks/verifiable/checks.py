"""The checks an oracle is made of: each reads one answer and gives a value in [0, 1].

Task checks ask whether the instruction was carried out, with partial credit. Gate checks ask what no
instruction spells out: is it an answer at all? `sysdpo.tasks.verifiable.score` puts them together (Table 2 at
`laptop` scale). They read the surface: prose that keeps every form and is false in content is not found out.
"""

import json
import math
import re
from collections.abc import Callable
from itertools import pairwise
from typing import Literal

Check = Callable[..., float]

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_MARKER = re.compile(r"^\s*(?:[-*•–]|\(?\d{1,2}[.):])\s*")
_ENDED = re.compile(r"[.!?][\"'”’)\]]*$")
_ABOUT_ITSELF = re.compile(
    r"\b(?:answer|task|hint|note|explanation|version|response|output|question|corrected)\s*:"
    r"|\b(?:drafts?|sentences?|instructions?|rephras\w+|prompts?)\b",
    re.IGNORECASE,
)
_NUMBER_WORDS = """
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
    eighteen nineteen twenty
""".split()  # noqa: SIM905
_FUNCTION_WORDS = """
    a an the this that these those some any all each every no not and or but so if as than then when
    while because of in on at by for from to into with without over under up down out off about after
    before between through near i you he she it we they me him her us them my your his its our their who
    which what why where how there here one am is are was were be been being do does did have has had
    can could will would may might must should very more most many much too also just only even often
    always never like make makes
""".split()  # noqa: SIM905


# -- task checks: was the instruction carried out?


def words_at_most(answer: str, n: int) -> float:
    """1 up to n words, (n / m)^2 for m words beyond: a quarter at twice the limit."""
    return min(1.0, n / max(len(_words(answer)), 1)) ** 2


def sentences(answer: str, n: int) -> float:
    """min(m, n) / max(m, n) for m sentences."""
    return _ratio(len(_sentences(answer)), n)


def questions(answer: str) -> float:
    """The share of the answer's sentences that end in a question mark."""
    found = _sentences(answer)
    return sum(part.rstrip("\"'”’)]").endswith("?") for part in found) / max(len(found), 1)


def includes(answer: str, wanted: list[str]) -> float:
    """The share of the wanted words that occur (a plural counts)."""
    present = _words(answer)
    return sum(any(_same_word(word, have) for have in present) for word in wanted) / len(wanted)


def avoids(answer: str, unwanted: list[str]) -> float:
    """The share of the unwanted words that do not occur."""
    return 1 - includes(answer, unwanted)


def lines(answer: str, n: int) -> float:
    """min(m, n) / max(m, n) for m list items, one a line.

    A closing colon marks a heading, not an item. An item that runs on for more than four words counts half, an
    item that was there before does not count.
    """
    entries = [_MARKER.sub("", line) for line in answer.splitlines()]
    return _items([entry for entry in entries if not entry.rstrip().endswith(":")], n)


def commas(answer: str, n: int) -> float:
    """min(m, n) / max(m, n) for m items between commas or a last "and", after a heading with a colon if any.

    Counted as in `lines`; a list over several lines counts half.
    """
    body = answer.strip().rsplit(":", 1)[-1]
    return _items(re.split(r",(?:\s*and\b)?|\n|\band\b", body), n) * (0.5 if "\n" in answer.strip() else 1.0)


def letter_case(answer: str, style: Literal["upper", "lower"]) -> float:
    """1 if every word is in that case, else 0.1 to 0.5 with the share of words that are."""
    found = [word for word in _WORD.findall(answer) if any(letter.isalpha() for letter in word)]
    share = sum(word == (word.upper() if style == "upper" else word.lower()) for word in found) / max(len(found), 1)
    return 1.0 if share == 1 else 0.1 + 0.4 * share


def begins(answer: str, text: str) -> float:
    """1 if the answer opens with the text, 0.4 if the text stands elsewhere, else 0.1, or more for a part of it."""
    return _placed(_words(answer), _words(text))


def ends(answer: str, text: str) -> float:
    """1 if the answer closes with the text (punctuation aside); credit for less as in `begins`."""
    return _placed(_words(answer)[::-1], _words(text)[::-1])


def json_keys(answer: str, keys: list[str]) -> float:
    """Overlap (Jaccard) of the object's filled keys with those asked for, if the answer is that object.

    Text around the object costs 0.3 of it. Broken JSON after a brace gets 0.3 of the share of keys it quotes.
    """
    text = re.sub(r"^```(?:json)?\s*|\s*```$", "", answer.strip())
    start, stop = text.find("{"), text.rfind("}")
    for candidate, credit in ((text, 1.0), (text[start : stop + 1], 0.7)):
        try:
            found = json.loads(candidate)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict):
            filled = {key for key, value in found.items() if _words(str(value)) and str(value) != key}
            return credit * len(filled & set(keys)) / len(set(found) | set(keys))
    return 0.3 * sum(f'"{key}"' in text[start:] for key in keys) / len(keys) if start >= 0 else 0.0


def number(answer: str, value: int) -> float:
    """1 if the last number is the value, 0.3 if an earlier one is; up to 0.2 if none is, the nearer the more."""
    plain = re.sub(r"(?<=\d),(?=\d{3})", "", answer)
    found = [int(digits) for digits in re.findall(r"(?<!\d)\d{1,9}(?!\d)", plain)]
    found = found or [_NUMBER_WORDS.index(word) for word in _words(answer) if word in _NUMBER_WORDS]
    if not found:
        return 0.0
    if found[-1] == value:
        return 1.0
    return 0.3 if value in found else 0.2 * _clip(1 - abs(found[-1] - value) / max(value, 1))


def names(answer: str, accepted: list[str], others: list[str]) -> float:
    """1 if an accepted answer is named, 0.4 if one of the others is named beside it, else 0."""
    if _first(answer, accepted) is None:
        return 0.0
    return 1.0 if _first(answer, others) is None else 0.4


def chooses(answer: str, accepted: list[str], others: list[str]) -> float:
    """1 if an accepted answer is named before the others ("A is bigger than B" is A), 0.2 after, else 0."""
    right, wrong = _first(answer, accepted), _first(answer, others)
    if right is None:
        return 0.0
    return 1.0 if wrong is None or right < wrong else 0.2


def wrapped(answer: str, left: str, right: str) -> float:
    """1 if the marks enclose the whole answer, 0.5 if they enclose a part of it, else 0."""
    text = re.sub("[“”]", '"', answer.strip()).rstrip(".")
    inner = text[len(left) : -len(right)] if text.startswith(left) and text.endswith(right) else ""
    if _words(inner) and left not in inner:
        return 1.0
    return 0.5 if re.search(rf"{re.escape(left)}[^\n]*?\w[^\n]*?{re.escape(right)}", text) else 0.0


def separated(answer: str, mark: str, n: int) -> float:
    """How well the mark stands between n items: its gaps against n - 1, less the share of gaps with another mark.

    A gap is what stands between two words; one of spaces alone does not count.
    """
    gaps = [gap.strip() for gap in _WORD.split(answer.strip())[1:-1]]
    right = sum(gap == mark for gap in gaps)
    other = sum(bool(gap) and gap != mark for gap in gaps)
    return _ratio(right, n - 1) * right / (right + other) if right else 0.0


# -- gate checks: is it an answer at all?


def picks(answer: str, known: list[str], n: int, others: list[str]) -> float:
    """n different known words and nothing else: min(m, n) / (max(m, n) + the words that are neither known nor new).

    `others` may stand beside them, once each.
    """
    found = _beside(answer, others)
    right = len(set(found) & set(known))
    return min(right, n) / (max(right, n) + len(found) - right)


def sequence(answer: str, wanted: list[str], others: list[str]) -> float:
    """The longest common subsequence of the answer's words and those wanted, as a share of the longer one.

    `others` may stand beside them, once each.
    """
    found = _beside(answer, others)
    row = [0] * (len(wanted) + 1)
    for word in found:  # row[j]: the longest of the words so far and the first j wanted ones
        fresh = [0]
        for j, other in enumerate(wanted):
            fresh.append(row[j] + 1 if word == other else max(row[j + 1], fresh[j]))
        row = fresh
    return row[-1] / max(len(found), len(wanted))


def on_subject(answer: str, stems: list[str]) -> float:
    """1 if a word has one of the subject's stems, else 0.1; after a stem of three letters only a plural may follow."""
    found = _words(answer)
    named = any(_same_word(stem, word) or (len(stem) > 3 and word.startswith(stem)) for word in found for stem in stems)
    return 1.0 if named else 0.1


def members(answer: str, known: list[str], n: int) -> float:
    """0.1 to 1 with the number of different known members of the class that are named.

    Half of n is enough for 1: no list of known members is complete.
    """
    text = f" {' '.join(_words(answer))} "
    found = sum(any(f" {name}{end} " in text for end in ("", "s", "es")) for name in known)
    return 0.1 + 0.9 * min(1.0, found / math.ceil(n / 2))


def varied(answer: str) -> float:
    """Falls with the share of repeated word triples and of stutters, and below half different words."""
    found = _words(answer)
    triples = [tuple(found[at : at + 3]) for at in range(len(found) - 2)]
    again = 1 - len(set(triples)) / len(triples) if triples else 0.0
    stutter = max(0, sum(a == b for a, b in pairwise(found)) - 1) / max(len(found), 1)
    return _clip(1 - 2 * again - 2 * stutter) * min(1.0, 2 * len(set(found)) / max(len(found), 1))


def prose(answer: str) -> float:
    """1 for running English, less by each shortfall.

    Three words or more; 15 to 80 % of them function words (of four or fewer, one with a verb's or plural's ending
    does); all of them pronounceable; the last sentence ended: a missing end, as in an answer cut off by the token
    limit, halves.
    """
    found = _words(answer)
    if not found:
        return 0.0
    grammar = sum(word in _FUNCTION_WORDS for word in found) / len(found)
    if len(found) <= 4 and any(word.endswith(("s", "ed", "ing", "ly")) for word in found):
        grammar = max(grammar, 0.15)
    readable = sum(bool(re.search("[aeiouy0-9]", word)) and len(word) < 18 for word in found) / len(found)
    ended = 1.0 if _ENDED.search(answer.strip()) else 0.5
    return min(1.0, len(found) / 3) * min(1.0, grammar / 0.15) * (grammar <= 0.8) * readable**2 * ended


def length(answer: str, at_most: int) -> float:
    """1 up to `at_most` words, then at_most / words: an answer is worth less the more stands around it."""
    return min(1.0, at_most / max(len(_words(answer)), 1))


def not_echoed(answer: str, prompt: str) -> float:
    """Falls from 1 to 0 as the share of the answer's word quadruples in the prompt rises from 0.5 to 1."""
    given, asked = _quadruples(answer), set(_quadruples(prompt))
    return _clip(2 - 2 * sum(quad in asked for quad in given) / len(given)) if given else 1.0


def direct(answer: str) -> float:
    """0.5 if the answer talks about itself ("Note:", "this sentence"), 0.3 if it asks back instead, else 1."""
    asks_back = answer.strip().rstrip("\"'”’)]").endswith("?")
    return 0.3 if asks_back else 0.5 if _ABOUT_ITSELF.search(answer) else 1.0


CHECKS: dict[str, Check] = {
    "words_at_most": words_at_most,
    "sentences": sentences,
    "questions": questions,
    "includes": includes,
    "avoids": avoids,
    "lines": lines,
    "commas": commas,
    "members": members,
    "letter_case": letter_case,
    "begins": begins,
    "ends": ends,
    "json_keys": json_keys,
    "number": number,
    "names": names,
    "chooses": chooses,
    "wrapped": wrapped,
    "separated": separated,
    "picks": picks,
    "sequence": sequence,
    "on_subject": on_subject,
    "varied": varied,
    "prose": prose,
    "length": length,
    "not_echoed": not_echoed,
    "direct": direct,
}


# -- reading a text


def _words(text: str) -> list[str]:
    return [word.lower().replace("’", "'") for word in _WORD.findall(text)]


def _beside(answer: str, others: list[str]) -> list[str]:
    """The answer's words without the first of each of `others`."""
    found = _words(answer)
    for word in others:
        if word in found:
            found.remove(word)
    return found


def _quadruples(text: str) -> list[tuple[str, ...]]:
    found = _words(text)
    return [tuple(found[at : at + 4]) for at in range(len(found) - 3)]


def _sentences(text: str) -> list[str]:
    body = "\n".join(_MARKER.sub("", line) for line in text.splitlines())
    parts = re.split(r"(?<=[.!?])[\"'”’)\]]*\s+|\n+", body)
    return [part for part in parts if re.search(r"[^\W\d_]", part) and not part.rstrip().endswith(":")]


def _same_word(wanted: str, have: str) -> bool:
    return have in {wanted.lower() + end for end in ("", "s", "es", "'s")}


def _placed(found: list[str], wanted: list[str]) -> float:
    size = len(wanted)
    begun = next((at for at, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b), min(len(found), size))
    if begun == size:
        return 1.0
    elsewhere = any(found[at : at + size] == wanted for at in range(1, len(found) - size + 1))
    return 0.4 if elsewhere else 0.1 + 0.3 * begun / size


def _items(entries: list[str], n: int) -> float:
    found = [tuple(_words(entry)) for entry in entries if _words(entry)]
    short = sum(1.0 if len(entry) <= 4 else 0.5 for entry in found) / max(len(found), 1)
    repeated = len(set(found)) / max(len(found), 1)
    return _ratio(len(found), n) * short * repeated


def _first(answer: str, candidates: list[str]) -> int | None:
    text = f" {' '.join(_words(answer))} "
    return min((at for name in candidates if (at := text.find(f" {name.lower()} ")) >= 0), default=None)


def _ratio(m: int, n: int) -> float:
    return min(m, n) / max(m, n)


def _clip(value: float) -> float:
    return min(1.0, max(0.0, value))
