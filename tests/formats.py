"""One row of each format that people have, and what becomes of it: the table of docs/data.md."""

from typing import Any

from sysdpo.components.text.conversation import Conversation
from sysdpo.data.records import understand
from sysdpo.errors import SettingError
from sysdpo.graph import SystemGraph
from tests.systems import TWO_LLM

USER, ASSISTANT = "user", "assistant"


def turn(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


ASKED = [turn(USER, "Q")]
TEXTS = {"chosen": "A", "rejected": "B"}
TURNS = {"chosen": [turn(ASSISTANT, "A")], "rejected": [turn(ASSISTANT, "B")]}
WHOLE = {side: ASKED + TURNS[side] for side in TURNS}
HH = "\n\nHuman: Q\n\nAssistant: "

ROWS: dict[str, dict[str, Any]] = {
    "this project": {"x": "Q", "chosen": {"y": "d", "z": "A"}, "rejected": {"y": "e", "z": "B"}},
    "TRL, standard": {"prompt": "Q", **TEXTS},
    "TRL, conversational": {"prompt": ASKED, **TURNS},
    "TRL, with a system turn": {"prompt": [turn("system", "S"), *ASKED], **TURNS},
    "TRL, several rounds": {"prompt": [turn(USER, "P"), turn(ASSISTANT, "O"), *ASKED], **TURNS},
    "TRL, content parts": {"prompt": [turn(USER, [{"type": "text", "text": "Q"}])], **TURNS},
    "TRL, implicit prompt, turns": WHOLE,
    "TRL, implicit prompt, texts": {"chosen": "Q A", "rejected": "Q B"},
    "UltraFeedback binarized": {"prompt": "Q", **WHOLE, "score_chosen": 8.0, "score_rejected": 5.0},
    "HH-RLHF": {"chosen": f"{HH}A", "rejected": f"{HH}B"},
    "orca_dpo_pairs": {"system": "S", "question": "Q", **TEXTS},
    "distilabel": {"system": "", "input": "Q", **TEXTS, "status": "unchanged"},
    "distilabel, a tie": {"system": "", "input": "Q", **TEXTS, "status": "tie"},
    "OpenAI preference": {
        "input": {"messages": ASKED},
        "preferred_output": TURNS["chosen"],
        "non_preferred_output": TURNS["rejected"],
    },
    "OpenAI preference with tools": {
        "input": {"messages": ASKED, "tools": [{}]},
        "preferred_output": TURNS["chosen"],
        "non_preferred_output": TURNS["rejected"],
    },
    "ShareGPT": {
        "conversations": [{"from": "human", "value": "Q"}],
        "chosen": {"from": "gpt", "value": "A"},
        "rejected": {"from": "gpt", "value": "B"},
    },
    "alpaca": {"instruction": "P", "input": "Q", **TEXTS},
    "alpaca with a history": {"instruction": "Q", "history": [["P", "O"]], **TEXTS},
    "message mappings": {"prompt": "Q", "chosen": turn(ASSISTANT, "A"), "rejected": turn(ASSISTANT, "B")},
    "stack-exchange-paired": {"question": "Q", "response_j": "A", "response_k": "B"},
    "equal scores": {"prompt": "Q", **TEXTS, "score_chosen": 5, "score_rejected": 5},
    "two prompts": {"prompt": "Q", "question": "P", **TEXTS},
    "KTO": {"prompt": "Q", "completion": "A", "label": True},
    "prompts alone": {"prompt": "Q"},
    "rankings": {"prompt": "Q", "responses": ["A", "B"], "scores": [2, 1]},
    "a number for a text": {"prompt": 5, **TEXTS},
    "a picture beside a text": {"prompt": "Q", **TEXTS, "images": ["a.png"]},
    "a tool's turn": {"prompt": [turn("tool", "5"), *ASKED], **TURNS},
    "several turns of difference": {
        "chosen": [*WHOLE["chosen"], *ASKED, turn(ASSISTANT, "C")],
        "rejected": WHOLE["rejected"],
    },
}
"""A prompt is Q (or P, O), the better answer A, the worse one B, a system text S."""

BEGIN, END = "<!-- formats -->\n", "<!-- end -->"


def outcome(row: dict[str, Any]) -> tuple[str, str]:
    """(what became of a row, what a model is asked)."""
    try:
        found = understand([row], SystemGraph(TWO_LLM), needs_intermediates=False)
    except SettingError as error:
        return "refused", str(error).removeprefix("row 1").split(";")[0].split(" (its")[0].strip(" :,.")
    if found.dropped:
        return "dropped, counted", next(iter(found.dropped))
    (pair,) = found.pairs
    assert [side["z"] for side in (pair.chosen, pair.rejected)] == ["A", "B"]
    asked = pair.inputs["x"]
    turns = asked.turns if isinstance(asked, Conversation) else [(USER, asked)]
    return "read", " ".join(f"{role}: {content!r}" for role, content in turns)


def table() -> str:
    lines = ["| a row of | outcome | the model is asked, or why not |\n", "|---|---|---|\n"]
    for name, row in ROWS.items():
        what, said = outcome(row)
        lines.append(f"| {name} | {what} | {said} |\n")
    return "".join(lines)


def page(text: str) -> str:
    """The page with its table written anew."""
    return text[: text.index(BEGIN) + len(BEGIN)] + "\n" + table() + "\n" + text[text.index(END) :]


if __name__ == "__main__":
    from tests.conftest import ROOT

    path = ROOT / "docs" / "data.md"
    path.write_text(page(path.read_text(encoding="utf-8")), encoding="utf-8")
