"""A tokenizer's chat template: messages as token ids in which only the template writes control tokens.

Data may hold `<|im_end|>` or `<s>` as text. It stays text: control tokens of the contents are put behind private
characters while the template is rendered, and are spelt out when the text between the template's own control tokens
is tokenised. Contents without any give the very ids of `apply_chat_template`.
"""

import logging
import re
from collections.abc import Mapping, Sequence
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
SYSTEM, USER, ANSWER = "sysdpo said so", "sysdpo asks it", "sysdpo answers"
"""Texts that are found again in what a template writes."""

Message = Mapping[str, str]


class ChatTemplate:
    """Messages to token ids, and the token that ends an answer.

    Attributes:
        exists: False for a base model, whose messages are paragraphs, after its BOS where it has one.
        end: the control token that the template writes after an answer; None where it writes none.
        knows_system: whether a system message is written; else its text joins the first user turn.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        added = {token.content: token for token in tokenizer.added_tokens_decoder.values() if token.special}
        self._trimmed = {name: (token.lstrip, token.rstrip) for name, token in added.items()}
        names = sorted({*added, *tokenizer.all_special_tokens}, key=len, reverse=True)
        ids: Any = tokenizer.convert_tokens_to_ids([name for name in names if name])
        self.control: dict[str, int] = dict(zip([name for name in names if name], map(int, ids), strict=True))
        self._pattern = re.compile("|".join(map(re.escape, self.control)) or r"(?!)")
        self.knows_system, self._told = True, False
        self.end: int | None = None
        if self.exists:
            self._undated = _undated(tokenizer)
            self._learn()

    @property
    def exists(self) -> bool:
        return bool(self.tokenizer.chat_template)

    def _learn(self) -> None:
        question = {"role": "user", "content": USER}
        if USER not in self._render([question], answering=True):
            raise SettingError(f"{self._name}: leaves out what the user says.")
        try:
            self.knows_system = SYSTEM in self._render([{"role": "system", "content": SYSTEM}, question], True)
        except SettingError:
            self.knows_system = False
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
            before, after = self._trimmed.get(found.group(), (False, False)) if found else (False, False)
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
        return tuple(self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def _undated(tokenizer: PreTrainedTokenizerBase) -> str:
    """The template, whose clock stands still: a macro takes the place of transformers' `strftime_now`."""
    template = str(tokenizer.get_chat_template())
    if "strftime_now" not in template:
        return template
    spelt = "".join(f" | replace('{code}', '{text}')" for code, text in FIXED_DATE.items())
    return "{%- macro strftime_now(format) -%}{{ format" + spelt + " }}{%- endmacro %}" + template
