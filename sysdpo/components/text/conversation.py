"""A prompt of several turns as the value of one variable: a text for whoever reads texts, turns for a chat model."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

ROLES = ("system", "user", "assistant")


class Turn(NamedTuple):
    role: str
    content: str


class Conversation(str):
    """Turns that end with the user's, where one text is not enough: a system text, or several rounds.

    As a text it reads like a transcript: judges, tools and reports need nothing else. A language model gets its turns.
    Equal are those with equal turns; none equals a plain text.
    """

    turns: tuple[Turn, ...]

    def __new__(cls, turns: Sequence[Turn]) -> "Conversation":
        if not turns or turns[-1].role != "user" or any(turn.role not in ROLES for turn in turns):
            raise ValueError("a conversation has turns of system, user and assistant, and the user's comes last")
        made = super().__new__(cls, transcript(turns))
        made.turns = tuple(Turn(*turn) for turn in turns)
        return made

    def __getnewargs__(self) -> tuple[tuple[Turn, ...]]:  # type: ignore[override]  # of pickle and copy
        return (self.turns,)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Conversation) and self.turns == other.turns

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(self.turns)

    def __repr__(self) -> str:
        return f"Conversation({[tuple(turn) for turn in self.turns]})"

    @property
    def question(self) -> str:
        """The last turn, which a template asks."""
        return self.turns[-1].content


def transcript(turns: Sequence[Turn]) -> str:
    """A system text and one question as two paragraphs; longer conversations with the speakers' names."""
    if all(turn.role == "system" for turn in turns[:-1]):
        return "\n\n".join(turn.content for turn in turns)
    return "\n\n".join(f"{turn.role.capitalize()}: {turn.content}" for turn in turns)


def as_conversation(value: Any) -> Any:
    """A list of `{role, content}` mappings as a conversation; any other value as it is."""
    if not isinstance(value, list | tuple) or not value:
        return value
    if not all(isinstance(turn, Mapping) and {"role", "content"} <= set(turn) for turn in value):
        return value
    return Conversation([Turn(turn["role"], turn["content"]) for turn in value])


def unfold(parents: Mapping[str, Any], named: Collection[str]) -> tuple[list[str], list[Turn], dict[str, Any]]:
    """(system texts, earlier turns, parents): what a conversation says before its question, and the question itself.

    Args:
        named: the parents that the prompt asks for; earlier turns of the others are left out.
    """
    systems: list[str] = []
    earlier: list[Turn] = []
    rest: dict[str, Any] = {}
    for name, given in parents.items():
        value = as_conversation(given)
        if isinstance(value, Conversation):
            turns = value.turns[:-1] if name in named else ()
            opening = next((i for i, turn in enumerate(turns) if turn.role != "system"), len(turns))
            systems += [turn.content for turn in turns[:opening]]
            earlier += turns[opening:]
            value = value.question
        rest[name] = value
    return systems, earlier, rest
