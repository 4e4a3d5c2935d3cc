"""User prompts for image progressions written by a language model, as in the paper (section 5.1, appendix F).

The paper asked GPT-4 for 250 prompts an attribute in four styles. Here any OpenAI-compatible model is asked, a few
prompts a request; what comes back is checked, compared with what is there, and asked for again until each (attribute,
style) has its number. The templates of `progression_prompts.py` need no model and stay the default.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sysdpo.data.files import read_rows
from sysdpo.errors import SettingError, nearest
from sysdpo.evaluation.judges.endpoint import Body, ChatEndpoint
from sysdpo.evaluation.judges.reply import MalformedAnswerError
from sysdpo.runs.files import append_line, explained, remove, write_text
from sysdpo.tasks.progression.prompts import NOUNS

STYLES = {
    "prompt": "a terse description of the three images, as one gives to an image generator",
    "instruction": "a direct order to draw the three images",
    "inspiration": "a wish or a dream of the speaker that the three images would show",
    "hypothesis": "a supposition (if, suppose, what if) whose course the three images would show",
}
"""The four kinds of user prompt of appendix F, in our own words."""
LONGEST = 400  # characters
SHORTEST = 20


@dataclass(frozen=True)
class Slot:
    """One attribute in one style."""

    attribute: str
    style: str


def request(slot: Slot, count: int, model: str, round_: int, known: Sequence[str]) -> Body:
    """A chat request for `count` prompts; `known` ones are shown, so that they are not repeated."""
    noun = NOUNS[slot.attribute]
    seen = "\n".join(f"- {text}" for text in known[-20:])
    asked = (
        f"Write {count} different messages in which a person asks for a sequence of exactly three images of one "
        f"outdoor scene, in which {noun} ({slot.attribute}) increases from image to image. Each message must be "
        f"{STYLES[slot.style]}. Vary the scene: landscapes, towns, coasts, gardens. One or two plain sentences each. "
        f"Reply with a JSON array of {count} strings and nothing else."
    )
    if seen:
        asked += f"\nDo not repeat these:\n{seen}"
    messages = [{"role": "system", "content": "You write test data."}, {"role": "user", "content": asked}]
    return {"model": model, "messages": messages, "temperature": 1.0, "max_tokens": 80 * count, "seed": round_}


def parse(body: Body) -> list[str]:
    """The texts of one answer; one that is no JSON array of strings is asked for again."""
    try:
        content = str(body["choices"][0]["message"]["content"])
        found = re.search(r"\[.*\]", content, re.DOTALL)  # some models wrap JSON in a fence
        texts = json.loads(found[0] if found else content)
    except (KeyError, IndexError, TypeError, ValueError, RecursionError):
        raise MalformedAnswerError("not a JSON array of prompts") from None
    if not isinstance(texts, list) or not all(isinstance(t, str) for t in texts):
        raise MalformedAnswerError("not a JSON array of strings")
    return [" ".join(t.split()) for t in texts]


def is_valid(text: str) -> bool:
    """A message of sensible length that asks for three images, or for a sequence of them."""
    asks = re.search(r"\b(three|3|sequence|series|trio)\b", text, re.IGNORECASE)
    return SHORTEST <= len(text) <= LONGEST and asks is not None and "{" not in text and "}" not in text


def fingerprint(text: str) -> str:
    """Equal for texts that differ in case, punctuation and spacing only."""
    return " ".join(re.findall(r"\w+", text.casefold()))


@dataclass
class Collection:
    """What `path` holds: JSON lines `{x, attribute, style}`, written as they come: nothing is paid for twice."""

    path: Path
    per_slot: int
    rows: list[dict[str, str]]
    seen: set[str]

    @classmethod
    def open(cls, path: Path, per_slot: int) -> "Collection":
        """The file's rows; a torn last line, of a run that was killed, is cut off."""
        rows: list[dict[str, str]] = []
        if path.exists():
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            whole = [line for line in lines if line.endswith("\n")]
            if whole != lines:
                write_text(path, "".join(whole))
            rows = [dict(row) for row in read_rows(path)] if whole else []
        for number, row in enumerate(rows, 1):
            if not {"x", "attribute", "style"} <= row.keys():
                raise SettingError(
                    f"{path}, line {number}: lacks x, attribute or style; it is no file of this command."
                )
        return cls(path, per_slot, rows, {fingerprint(row["x"]) for row in rows})

    @property
    def _spare(self) -> Path:
        return self.path.with_name(f".{self.path.name}.spare")

    def reserve(self, count: int) -> None:
        """Keep room for the answers of `count` requests before any is paid for.

        Raises:
            SettingError: there is none.
        """
        with explained(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._spare.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, max(1, count) * 4 * LONGEST)

    def release(self) -> None:
        remove(self._spare)

    def _cut(self) -> None:
        """Take back half a line that found no room."""
        content = self.path.read_bytes()
        os.truncate(self.path, content.rfind(b"\n") + 1)

    def of(self, slot: Slot) -> list[str]:
        return [r["x"] for r in self.rows if (r["attribute"], r["style"]) == (slot.attribute, slot.style)]

    def lacks(self, slot: Slot) -> int:
        return max(0, self.per_slot - len(self.of(slot)))

    def add(self, slot: Slot, texts: Sequence[str]) -> dict[str, int]:
        """Keep what is valid and new, up to the slot's number; returns how many were invalid and how many repeated."""
        dropped = {"invalid": 0, "repeated": 0}
        for text in texts:
            if not is_valid(text):
                dropped["invalid"] += 1
            elif fingerprint(text) in self.seen:
                dropped["repeated"] += 1
            elif self.lacks(slot):
                row = {"x": text, "attribute": slot.attribute, "style": slot.style}
                try:
                    append_line(self.path, row)
                except SettingError:  # what is paid for finds the room that was kept for it
                    remove(self._spare)
                    self._cut()
                    append_line(self.path, row)
                self.rows.append(row)
                self.seen.add(fingerprint(text))
        return dropped


def plan_requests(
    collection: Collection, slots: Sequence[Slot], model: str, batch: int, round_: int
) -> dict[str, tuple[Slot, Body]]:
    """The requests that would fill every slot if each answer were all valid and new."""
    planned: dict[str, tuple[Slot, Body]] = {}
    for slot in slots:
        lacking = collection.lacks(slot)
        for part, start in enumerate(range(0, lacking, batch)):
            count = min(batch, lacking - start)
            key = f"{slot.attribute}/{slot.style}/{round_}/{part}"
            planned[key] = (slot, request(slot, count, model, round_ * 1_000 + part, collection.of(slot)))
    return planned


def cost(
    planned: Mapping[str, tuple[Slot, Body]],
    dollars_per_million: tuple[float, float],
    characters_per_token: float = 4.0,
) -> tuple[int, float]:
    """(requests, dollars) of one round; completions are taken at their limit of tokens."""
    characters = sum(len(m["content"]) for _, body in planned.values() for m in body["messages"])
    completion = sum(body["max_tokens"] for _, body in planned.values())
    dollars = characters / characters_per_token * dollars_per_million[0] + completion * dollars_per_million[1]
    return len(planned), dollars / 1e6


def generate_prompts(
    endpoint: ChatEndpoint, collection: Collection, slots: Sequence[Slot], model: str, *, batch: int, rounds: int
) -> dict[str, int]:
    """Ask until every slot has its number; each answer is written when it arrives.

    Returns:
        How many texts were dropped as invalid and as repeated.

    Raises:
        SettingError: slots still lack prompts after `rounds` rounds, or the endpoint refuses.
    """
    dropped = {"invalid": 0, "repeated": 0}
    for round_ in range(rounds):
        planned = plan_requests(collection, slots, model, batch, round_)
        if not planned:
            return dropped

        def keep(key: str, texts: list[str], planned: Mapping[str, tuple[Slot, Body]] = planned) -> None:
            for kind, count in collection.add(planned[key][0], texts).items():
                dropped[kind] += count

        collection.reserve(batch * endpoint.concurrency)
        try:
            endpoint.complete_all(
                {key: body for key, (_, body) in planned.items()}, parse, keep, f"prompts, round {round_ + 1}"
            )
        finally:
            collection.release()
    lacking = {f"{s.attribute}/{s.style}": n for s in slots if (n := collection.lacks(s))}
    if lacking:
        first = next(iter(lacking))
        raise SettingError(
            f"--rounds {rounds}: {sum(lacking.values())} prompts are still lacking, first for {first}; what came is "
            "kept: run the same command again, or choose another --model."
        )
    return dropped


def make_slots(attributes: Sequence[str], styles: Sequence[str]) -> list[Slot]:
    for attribute in attributes:
        if attribute not in NOUNS:
            raise SettingError(f"--attributes: {nearest(attribute, NOUNS)}")
    for style in styles:
        if style not in STYLES:
            raise SettingError(f"--styles: {nearest(style, STYLES)}")
    return [Slot(attribute, style) for attribute in attributes for style in styles]
