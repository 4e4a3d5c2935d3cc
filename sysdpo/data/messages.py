"""Turns of a conversation as data sets give them: OpenAI's, ShareGPT's, content parts, HH-RLHF's text."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from sysdpo.components.text.conversation import Conversation, Turn
from sysdpo.errors import SettingError

ROLES = {
    "system": "system",
    "developer": "system",  # OpenAI's newer name
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}
KEYS = (("role", "content"), ("from", "value"))
MORE = ("tool_calls", "function_call", "reasoning_content", "thinking", "images", "audio", "refusal")
"""What a turn may say beside its text; the models here would not see it."""

HH = re.compile(r"(?:\A\s*|\r?\n\r?\n)(Human|Assistant):[ ]?")


def is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and any(role in value and content in value for role, content in KEYS)


def is_messages(value: Any) -> bool:
    """A turn, or a list of turns."""
    return is_message(value) or (isinstance(value, list | tuple) and bool(value) and all(map(is_message, value)))


def turns_of(value: Any) -> list[Turn]:
    """The turns of a message or a list of messages."""
    return [_turn(message) for message in ([value] if isinstance(value, Mapping) else value)]


def _turn(message: Mapping[str, Any]) -> Turn:
    role_key, content_key = next(keys for keys in KEYS if keys[0] in message and keys[1] in message)
    role = ROLES.get(str(message[role_key]).lower())
    if role is None:
        raise SettingError(
            f"has a turn of role {message[role_key]!r}; only {', '.join(sorted(set(ROLES.values())))} are known here"
        )
    for key in MORE:
        if message.get(key):
            raise SettingError(f"has a turn with {key!r}, which a model here would not see")
    return Turn(role, text_of(message[content_key], f"a turn of role {role!r}"))


def is_parts(value: Any) -> bool:
    """Content parts: `[{"type": "text", "text": …}, …]`."""
    return (
        isinstance(value, list | tuple) and bool(value) and all(isinstance(v, Mapping) and "type" in v for v in value)
    )


def text_of(value: Any, what: str) -> str:
    """A text, or the texts of content parts one after another."""
    if isinstance(value, str):
        return value
    if is_parts(value):
        for part in value:
            if part["type"] not in ("text", "input_text", "output_text") or not isinstance(part.get("text"), str):
                raise SettingError(f"{what} has a part of type {part['type']!r}, which is no text")
        return "".join(part["text"] for part in value)
    raise SettingError(f"{what} holds {kind(value)} where a text belongs")


def kind(value: Any) -> str:
    """What a value is, in words."""
    match value:
        case None:
            return "nothing"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "a text"
        case bytes():
            return "bytes"
        case list() | tuple():
            return "a list" if value else "an empty list"
        case Mapping():
            return f"a mapping of {', '.join(map(str, list(value)[:5])) or 'nothing'}"
    return f"a {type(value).__name__}"


def conversation(turns: Sequence[Turn]) -> str:
    """One question as its plain text; with a system text or earlier turns a `Conversation`."""
    if not turns or turns[-1].role != "user":
        last = turns[-1].role if turns else "nobody"
        raise SettingError(f"has a prompt whose last turn is of {last}; it must be the user's")
    return turns[0].content if len(turns) == 1 else Conversation(turns)


def is_dialogue(value: Any) -> bool:
    """HH-RLHF's text: `\\n\\nHuman: …\\n\\nAssistant: …`, from its first word on."""
    if not isinstance(value, str):
        return False
    names = [found[1] for found in HH.finditer(value)]
    return names[:1] == ["Human"] and "Assistant" in names and HH.match(value) is not None


def dialogue(text: str) -> list[Turn]:
    """The turns of such a text, without blanks at their ends."""
    marks = list(HH.finditer(text))
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    names = {"Human": "user", "Assistant": "assistant"}
    return [Turn(names[mark[1]], text[mark.end() : end].strip()) for mark, end in zip(marks, ends, strict=True)]
