"""A tokenizer's chat template: messages as token ids in which only the template writes control tokens.

Data may hold `<|im_end|>` or `<s>` as text. It stays text: control tokens of the contents are put behind private
characters while the template is rendered, and are spelt out when the text between the template's own control tokens
is tokenised. Contents without any give the very ids of `apply_chat_template`.
"""

import itertools
import logging
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from sysdpo.errors import SettingError, one_line

log = logging.getLogger(__name__)

FIXED_DATE = {
    "%d": "26", "%m": "07", "%Y": "2024", "%y": "24", "%b": "Jul", "%B": "July", "%a": "Fri", "%A": "Friday",
    "%H": "00", "%M": "00", "%S": "00",
}  # fmt: skip
"""The date given to templates that write today's date, so that a prompt is the same tomorrow: Llama-3's default."""
PRIVATE_PLANES = (0xF0000, 0x100000)
"""First characters of Unicode's private planes, which texts hardly use; the second where a text uses the first."""
SYSTEM, USER, ANSWER, AGAIN = "sysdpo said so", "sysdpo asks it", "sysdpo answers", "sysdpo goes on"
"""Texts that are found again in what a template writes."""

Message = Mapping[str, str]


class ChatTemplate:
    """Messages to token ids, and the token that ends an answer.

    Attributes:
        exists: False for a base model, whose messages are paragraphs, after its BOS where it has one.
        control: tokens that only the template writes: the special ones, and others that it puts between turns.
        end: the control token that the template writes after an answer; None where it writes none.
        knows_system: whether a system message is written; else its text joins the first user turn.
        knows_rounds: whether earlier turns are written; else a conversation of several rounds is refused.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._added = {token.content: token for token in tokenizer.added_tokens_decoder.values()}
        special = {name for name, token in self._added.items() if token.special}
        self._obeys({*special, *tokenizer.all_special_tokens})
        self.knows_system, self.knows_rounds, self._told = True, True, False
        self.end: int | None = None
        if self.exists:
            try:
                self._undated = _undated(tokenizer)
            except ValueError as error:  # several templates, of which none is the default
                raise SettingError(f"{self._name}: {one_line(error, 200)}") from error
            self._learn()

    def _obeys(self, names: Collection[str]) -> None:
        """Take these tokens for control tokens."""
        ordered = sorted(filter(None, names), key=len, reverse=True)
        ids: Any = self.tokenizer.convert_tokens_to_ids(ordered)
        self.control: dict[str, int] = dict(zip(ordered, map(int, ids), strict=True))
        self._pattern = _any_of(self.control)
        # those that a fast tokenizer does not call special are not split by `split_special_tokens`
        self._unsplit = _any_of([name for name in ordered if name in self._added and not self._added[name].special])

    @property
    def exists(self) -> bool:
        return bool(self.tokenizer.chat_template)

    def _learn(self) -> None:
        question = {"role": "user", "content": USER}
        if USER not in self._render([question], answering=True):
            raise SettingError(f"{self._name}: leaves out what the user says.")
        try:
            written = self._render([{"role": "system", "content": SYSTEM}, question], True)
            self.knows_system = SYSTEM in written and USER in written
        except SettingError:
            self.knows_system = False
        again = {"role": "user", "content": AGAIN}
        try:
            written = self._render([question, {"role": "assistant", "content": ANSWER}, again], answering=False)
            self.knows_rounds = all(text in written for text in (USER, ANSWER, AGAIN))
            # tokens that were added as if they were words, as many fine-tunes do
            between = _any_of([name for name in self._added if re.search(r"[^\w\s]", name)])
            self._obeys({*self.control, *between.findall(written)})
        except SettingError:
            pass  # a conversation that this template refuses is refused with its row
        try:
            written = self._render([question, {"role": "assistant", "content": ANSWER}], answering=False)
        except SettingError:
            return
        after = self._pattern.search(written.rpartition(ANSWER)[2]) if ANSWER in written else None
        self.end = self.control[after.group()] if after else None

    @property
    def _name(self) -> str:
        return f"the chat template of {self.tokenizer.name_or_path or 'this tokenizer'!r}"

    def _render(self, messages: Sequence[Message], answering: bool) -> str:
        try:
            text = self.tokenizer.apply_chat_template(
                [dict(m) for m in messages],
                tokenize=False,
                add_generation_prompt=answering,
                chat_template=self._undated,
            )
        except Exception as error:  # a template is a foreign program
            reason = f"{type(error).__name__}: {one_line(error, 200)}"
            raise SettingError(f"{self._name}: {reason}; mend it, or take another.") from error
        return str(text)

    # ---- tokens ------------------------------------------------------------------------------------------------------

    def prompt_ids(self, messages: Sequence[Message], prefix: str) -> tuple[int, ...]:
        """A conversation up to where the answer begins, and the forced beginning of the answer."""
        messages = messages if self.knows_system and self.exists else self._without_system(messages)
        if not self.knows_rounds and any(m["role"] == "assistant" for m in messages):
            raise SettingError(f"{self._name}: leaves out earlier turns; mend it, or take another.")
        if not self.exists:
            ids = self.text_ids("\n\n".join(m["content"] for m in messages) + "\n\n" + prefix)
            begin = self.tokenizer.bos_token_id
            return ids if begin is None or ids[:1] == (begin,) else (int(begin), *ids)
        if not any(self._pattern.search(m["content"]) for m in messages):
            return self._ids(self._render(messages, answering=True) + prefix)
        everything = "".join(m["content"] for m in messages)
        plane = next(p for p in PRIVATE_PLANES if not any(p <= ord(c) <= p + len(self.control) for c in everything))
        hidden = {name: chr(plane + i) for i, name in enumerate(self.control)}
        veiled = [
            {**m, "content": self._pattern.sub(lambda found: hidden[found.group()], m["content"])} for m in messages
        ]
        return self._spelt(self._render(veiled, answering=True) + prefix, {v: name for name, v in hidden.items()})

    def _without_system(self, messages: Sequence[Message]) -> Sequence[Message]:
        if not self.exists or not messages or messages[0]["role"] != "system":
            return messages
        first = next((i for i, m in enumerate(messages) if m["role"] == "user"), None)
        if first is None:
            return messages
        if not self._told:
            log.info("%s has no system role: its text joins the first user turn", self._name)
        self._told = True
        joined = {"role": "user", "content": f"{messages[0]['content']}\n\n{messages[first]['content']}"}
        return [*messages[1:first], joined, *messages[first + 1 :]]

    def _spelt(self, text: str, veiled: Mapping[str, str]) -> tuple[int, ...]:
        """Tokens of a rendered text whose control tokens are the template's, and whose veiled ones are text."""
        ids: list[int] = []
        spelling = str.maketrans(dict(veiled))
        start, strip = 0, False
        for found in [*self._pattern.finditer(text), None]:
            piece = text[start : found.start() if found else len(text)]
            token = self._added.get(found.group()) if found else None
            before, after = (token.lstrip, token.rstrip) if token else (False, False)
            piece = piece.lstrip() if strip else piece
            piece = piece.rstrip() if before else piece
            ids += self.text_ids(piece.translate(spelling))
            if found is not None:
                ids.append(self.control[found.group()])
                start, strip = found.end(), after
        return tuple(ids)

    def text_ids(self, text: str) -> tuple[int, ...]:
        """Tokens of a text as it reads: what looks like a control token in it is spelt, not obeyed."""
        if not self._pattern.search(text):
            return self._ids(text)
        cuts = [0, *(found.start() + 1 for found in self._unsplit.finditer(text)), len(text)]
        pieces = [text[start:stop] for start, stop in itertools.pairwise(cuts)]
        spelt = [self.tokenizer(piece, add_special_tokens=False, split_special_tokens=True) for piece in pieces]
        return tuple(token for piece in spelt for token in piece["input_ids"])

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def _any_of(names: Collection[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))) or r"(?!)")


def _undated(tokenizer: PreTrainedTokenizerBase) -> str:
    """The template, whose clock stands still: a macro takes the place of transformers' `strftime_now`."""
    template = str(tokenizer.get_chat_template())
    if "strftime_now" not in template:
        return template
    spelt = "".join(f" | replace('{code}', '{text}')" for code, text in FIXED_DATE.items())
    return "{%- macro strftime_now(format) -%}{{ format" + spelt + " }}{%- endmacro %}" + template
