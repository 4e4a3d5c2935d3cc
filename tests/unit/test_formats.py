"""Anybody's preference data: read so that the model sees what the plain form says, token for token, or refused."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sysdpo.components.text.conversation import Conversation, Turn
from sysdpo.data.records import make_pairs, understand
from sysdpo.data.sources import Recorded, read_pairs
from sysdpo.data.usable import OVERLONG
from sysdpo.errors import SettingError
from sysdpo.system import CompoundSystem
from tests.conftest import ROOT
from tests.formats import ROWS, outcome, page
from tests.systems import make_two_llm

SYSTEM = make_two_llm(architecture={"max_position_embeddings": 1024}, max_new_tokens=12)
USER = [{"role": "user", "content": "What is the capital of France?"}]
SYSTEM_TEXT = [{"role": "system", "content": "Be brief."}]
YES, NO = [{"role": "assistant", "content": "Paris."}], [{"role": "assistant", "content": "Pisa."}]
QUESTION = "What is the capital of France?"
HH = f"\n\nHuman: {QUESTION}\n\nAssistant: "


def tokens(pair: Any) -> tuple[Any, ...]:
    """What both models are given: the prompts, and the answers of both sides."""
    codecs = [SYSTEM.component(name).codec for name in ("psi1", "psi2")]  # type: ignore[union-attr]
    prompts = [codec.prompt_ids({**pair.inputs, "y": "draft"}) for codec in codecs]
    return (*prompts, *(codecs[1].completion_ids(side["z"]) for side in (pair.chosen, pair.rejected)))


def write(folder: Path, rows: list[Any], name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(rows: list[Any] | Path, tmp_path: Path, **settings: Any) -> Any:
    path = rows if isinstance(rows, Path) else write(tmp_path, rows)
    return Recorded(str(path), **settings).read(SYSTEM, needs_intermediates=False)


def chatml(*turns: tuple[str, str]) -> str:
    return "".join(f"<|im_start|>{r}\n{c}<|im_end|>\n" for r, c in turns) + "<|im_start|>assistant\n"


def asked(pair: Any, name: str = "psi1") -> str:
    codec: Any = SYSTEM.component(name).codec  # type: ignore[union-attr]
    return str(codec.tokenizer.decode(list(codec.prompt_ids({**pair.inputs, "y": "draft"}))))


# ---- the cases of ../shared/data/cases -------------------------------------------------------------------------------

EQUAL_TO_PLAIN = (
    "array_compact.json",
    "array_pretty.json",
    "bom.jsonl",
    "hh_rlhf.jsonl",
    "llamafactory_sharegpt.jsonl",
    "message_mapping.jsonl",
    "openai_preference.jsonl",
    "responses_jk.jsonl",
    "trl_conversational.jsonl",
    "trl_implicit_conversational.jsonl",
    "trl_implicit_standard.jsonl",
    "ultrafeedback_binarized.jsonl",
    "utf16.jsonl",
)
REFUSED = {
    "kto.jsonl": "lacks 'chosen' and 'rejected'",
    "both_prompt_and_x.jsonl": "row 1 has 'x' and 'prompt', which differ",
    "input_in_chosen.jsonl": "row 1: 'chosen' has another value for the input 'x'",
    "ties.jsonl": "6 equal answers",
    "same_beginning.jsonl": "6 equal answers once cut to max_new_tokens",
    "empty_both.jsonl": "6 both answers are empty",
    "half_emoji_chosen.jsonl": "row 3: 'chosen' holds half a character",
    "half_emoji_prompt.jsonl": "row 3: 'prompt' holds half a character",
    "one_long_prompt.jsonl": "row 4: a prompt of",
}


@pytest.fixture
def cases(shared_data: Path) -> Path:
    folder = shared_data / "cases"
    if not folder.is_dir():
        pytest.skip("the cases of ../shared/data/cases are not here")
    return folder


class TestCases:
    @pytest.mark.parametrize("name", EQUAL_TO_PLAIN)
    def test_read_as_the_plain_file(self, cases: Path, tmp_path: Path, name: str) -> None:
        plain, found = read(cases / "plain.jsonl", tmp_path), read(cases / name, tmp_path)
        assert [tokens(pair) for pair in found.pairs] == [tokens(pair) for pair in plain.pairs]
        assert not found.dropped

    @pytest.mark.parametrize("name", REFUSED)
    def test_refused_in_one_line(self, cases: Path, tmp_path: Path, name: str) -> None:
        with pytest.raises(SettingError) as error:
            read(cases / name, tmp_path)
        assert REFUSED[name] in str(error.value)
        assert "\n" not in str(error.value)

    def test_system_texts_are_system_turns(self, cases: Path, tmp_path: Path) -> None:
        first = read(cases / "trl_conversational_system.jsonl", tmp_path).pairs[0]
        assert asked(first) == chatml(("system", "Be brief."), ("user", QUESTION))
        assert asked(first, "psi2") == chatml(("system", "Be brief."), ("user", f"{QUESTION}|draft"))
        orca = read(cases / "orca_dpo_pairs.jsonl", tmp_path).pairs
        assert asked(orca[0]) == chatml(("user", QUESTION))
        assert asked(orca[1]) == chatml(("system", "You are an AI assistant."), ("user", "Name a prime above ten."))
        tie = read(cases / "distilabel_orca.jsonl", tmp_path)
        assert tie.dropped == {"a tie by the data (status: tie)": [1]}
        assert asked(tie.pairs[0]) == chatml(("system", "You are an AI."), ("user", "Name a prime above ten."))

    def test_input_is_part_of_the_prompt(self, cases: Path, tmp_path: Path) -> None:
        first = read(cases / "llamafactory_alpaca.jsonl", tmp_path).pairs[0]
        assert asked(first) == chatml(("user", f"Answer the question.\n{QUESTION}"))

    def test_texts_are_kept_as_they_are(self, cases: Path, tmp_path: Path) -> None:
        for name in ("braces", "unicode", "whitespace", "empty_prompt", "empty_rejected"):
            raw = [json.loads(line) for line in (cases / f"{name}.jsonl").read_text("utf-8").split("\n") if line]
            found = read(cases / f"{name}.jsonl", tmp_path).pairs
            assert [(p.inputs["x"], p.chosen["z"], p.rejected["z"]) for p in found] == [
                (row["prompt"], row["chosen"], row["rejected"]) for row in raw
            ]

    def test_what_is_odd_is_said(self, cases: Path, tmp_path: Path) -> None:
        (line,) = read(cases / "contradiction.jsonl", tmp_path).remarks
        assert line.startswith("6 pairs contradict another one (rows 1 and 7")
        assert read(cases / "duplicates.jsonl", tmp_path).remarks == ["10 pairs repeat an earlier one: all are taken"]
        tie = read(cases / "one_tie.jsonl", tmp_path)
        assert (len(tie.pairs), tie.dropped) == (5, {"equal answers": [3]})

    def test_direct(self, cases: Path) -> None:
        found = Recorded(str(cases / "direct.jsonl")).read(SYSTEM, needs_intermediates=True)
        assert found.pairs[0].chosen == {"y": "a draft of it", "z": "Paris."}

    def test_held_out_prompts_are_not_trained_on(self, cases: Path, tmp_path: Path) -> None:
        source = Recorded(str(cases / "pairs_per_prompt.jsonl"), evaluation=0.2, validation=0.2)
        data = source.prepare(SYSTEM, tmp_path, needs_intermediates=False)
        trained = {p.inputs["x"] for p in data.train}
        assert len(data.evaluation) == 5  # ceil(.2 * 24)
        assert data.validation
        assert trained.isdisjoint(row["x"] for row in data.evaluation)
        assert trained.isdisjoint(p.inputs["x"] for p in data.validation)

    @pytest.mark.parametrize("name", ["one_long_prompt", "overflows_once_drafted"])
    def test_long_prompts(self, cases: Path, tmp_path: Path, name: str) -> None:
        """The context is chosen so that the long row of the second file fits only while its draft is empty."""
        rows = [json.loads(line) for line in (cases / f"{name}.jsonl").read_text().splitlines()]
        codec: Any = make_two_llm().component("psi2").codec
        codec.max_length = None
        length = len(codec.prompt_ids({"x": rows[3]["prompt"], "y": ""}))
        context = length + 12 if name == "overflows_once_drafted" else 1024
        system = make_two_llm(architecture={"max_position_embeddings": context}, max_new_tokens=12)
        kept = {}
        for overlong in OVERLONG[1:]:
            found = Recorded(str(cases / f"{name}.jsonl"), overlong=overlong).read(system, False)
            kept[overlong] = [p.index for p in found.pairs]
            for pair in found.pairs:  # any draft of at most 12 tokens fits now
                system.check_row({**pair.row("chosen"), "y": "d" * 12})
        assert kept == {"drop": [0, 1, 2, 4, 5], "cut": [0, 1, 2, 3, 4, 5]}
        with pytest.raises(SettingError, match=r"^row 4.*dataset\.overlong=drop or cut"):
            Recorded(str(cases / f"{name}.jsonl")).read(system, False)


def test_the_page_shows_what_becomes_of_each_format() -> None:
    """`python -m tests.formats` writes it again."""
    text = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    assert text == page(text)
    assert {what for what, _ in map(outcome, ROWS.values())} == {"read", "dropped, counted", "refused"}


# ---- siblings --------------------------------------------------------------------------------------------------------

PLAIN = {"prompt": QUESTION, "chosen": "Paris.", "rejected": "Pisa."}
SAME: dict[str, dict[str, Any]] = {
    "content parts": {
        "prompt": [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}],
        "chosen": [{"role": "assistant", "content": [{"type": "text", "text": "Paris."}]}],
        "rejected": [{"role": "assistant", "content": [{"type": "text", "text": "Pisa."}]}],
    },
    "prompt and whole conversations": {"prompt": USER, "chosen": USER + YES, "rejected": USER + NO},
    "implicit, words that begin alike": {"chosen": f"{QUESTION} Paris.", "rejected": f"{QUESTION} Pisa."},
    "implicit, new line": {"chosen": f"{QUESTION}\nParis.", "rejected": f"{QUESTION}\nPisa.", "source": "web"},
    "HH-RLHF prompt": {"prompt": f"\n\nHuman: {QUESTION}\n\nAssistant:", "chosen": " Paris.", "rejected": " Pisa."},
    "ShareGPT pair": {
        "conversations": [{"from": "human", "value": QUESTION}],
        "chosen": {"from": "gpt", "value": "Paris."},
        "rejected": {"from": "gpt", "value": "Pisa."},
        "system": "",
        "tools": None,
    },
    "ShareGPT with role": {
        "conversations": USER,
        "chosen": {"role": "assistant", "content": "Paris."},
        "rejected": {"role": "assistant", "content": "Pisa."},
    },
    "alpaca, nothing in input": {"instruction": QUESTION, "input": "", "chosen": "Paris.", "rejected": "Pisa."},
    "alpaca, null": {"instruction": QUESTION, "input": None, "system": None, "chosen": "Paris.", "rejected": "Pisa."},
    "x and an equal prompt": {"x": QUESTION, **PLAIN},
    "turns as JSON in a text": {k: json.dumps(v) for k, v in {"prompt": USER, "chosen": YES, "rejected": NO}.items()},
    "final variable in a mapping": {"x": QUESTION, "chosen": {"z": YES}, "rejected": {"z": NO}},
    "scores": {**PLAIN, "score_chosen": 8.0, "score_rejected": 4.0},
    "HH-RLHF, line ends of Windows": {
        "chosen": f"\r\n\r\nHuman: {QUESTION}\r\n\r\nAssistant: Paris.",
        "rejected": f"\r\n\r\nHuman: {QUESTION}\r\n\r\nAssistant: Pisa.",
    },
    "a question beside HH-RLHF's dialogues": {
        "prompt": QUESTION,
        "chosen": f"\n\nHuman: {QUESTION}\n\nAssistant: Paris.",
        "rejected": f"\n\nHuman: {QUESTION}\n\nAssistant: Pisa.",
    },
    "rounds in another notation beside turns": {
        "conversation": [{"input": QUESTION, "output": None}],
        "chosen": USER + YES,
        "rejected": USER + NO,
    },
    "a draft that Parquet left empty": {
        "x": QUESTION,
        "chosen": {"y": None, "z": "Paris."},
        "rejected": {"y": "d", "z": "Pisa."},
    },
    "no tools, no pictures": {**PLAIN, "tools": None, "images": [], "chat_template_kwargs": "{}"},
}


@pytest.mark.parametrize("name", SAME)
def test_siblings_are_read_as_the_plain_row(tmp_path: Path, name: str) -> None:
    plain, found = read([PLAIN], tmp_path).pairs, read([SAME[name]], tmp_path).pairs
    assert [tokens(pair) for pair in found] == [tokens(pair) for pair in plain]


def test_turns_stay_turns(tmp_path: Path) -> None:
    earlier = [
        {"role": "user", "content": "Hi."},
        {"role": "assistant", "content": "Hello!"},
    ]
    want = chatml(("system", "Be brief."), ("user", "Hi."), ("assistant", "Hello!"), ("user", QUESTION))
    prompt = SYSTEM_TEXT + earlier + USER
    text = f"\n\nHuman: Hi.\n\nAssistant: Hello!\n\nHuman: {QUESTION}\n\nAssistant:"
    for row in (
        {"prompt": prompt, "chosen": YES, "rejected": NO},
        {"chosen": prompt + YES, "rejected": prompt + NO},
        {"prompt": QUESTION, "chosen": prompt + YES, "rejected": prompt + NO},
        {"system": "Be brief.", "chosen": earlier + USER + YES, "rejected": earlier + USER + NO},
        {"input": {"messages": prompt}, "preferred_output": YES, "non_preferred_output": NO},
        {"instruction": QUESTION, "history": earlier, "system": "Be brief.", "chosen": "a", "rejected": "b"},
        {
            "instruction": QUESTION,
            "history": [["Hi.", "Hello!"]],
            "system": "Be brief.",
            "chosen": "a",
            "rejected": "b",
        },
        {"system": "Be brief.", "chosen": f"{text} Paris.", "rejected": f"{text} Pisa."},
    ):
        (pair,) = read([row], tmp_path).pairs
        assert asked(pair) == want, row
        assert str(pair.inputs["x"]) == f"System: Be brief.\n\nUser: Hi.\n\nAssistant: Hello!\n\nUser: {QUESTION}"


@pytest.mark.parametrize(
    ("row", "part"),
    [
        ({**PLAIN, "prompt": 5}, "'prompt' holds a number where a text belongs"),
        ({**PLAIN, "prompt": ["a", "b"]}, "'prompt' holds a list where a text belongs"),
        ({**PLAIN, "chosen": 3.5}, "a text is needed, not float"),
        ({**PLAIN, "chosen": True}, "a text is needed, not bool"),
        ({**PLAIN, "rejected": ["Pisa."]}, "a text is needed, not list"),
        ({**PLAIN, "chosen": {"text": "Paris."}, "rejected": {"text": "Pisa."}}, "'chosen' lacks the variable 'z'"),
        ({**PLAIN, "chosen": YES}, "both must be of one kind"),
        ({**PLAIN, "chosen": str(YES), "rejected": str(NO)}, "written as a text"),
        ({"prompt": USER, "chosen": USER + YES + USER + YES, "rejected": USER + NO}, "must end in one turn"),
        ({"prompt": USER + YES, "chosen": YES, "rejected": NO}, "the user's"),
        ({"prompt": SYSTEM_TEXT, "chosen": YES, "rejected": NO}, "the user's"),
        ({"prompt": "Another?", "chosen": USER + YES, "rejected": USER + NO}, "not the one its answers begin with"),
        ({"prompt": [{"role": "tool", "content": "1"}, *USER], "chosen": YES, "rejected": NO}, "role 'tool'"),
        (
            {
                "prompt": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
                "chosen": YES,
                "rejected": NO,
            },
            "type 'image_url'",
        ),
        ({"input": {"messages": USER, "tools": [1]}, "preferred_output": YES, "non_preferred_output": NO}, "'tools'"),
        ({**PLAIN, "question": "Another?"}, "'prompt' and 'question', which differ"),
        ({"text": "Tell me.", "chosen": "It is A", "rejected": "It is B"}, "lacks 'x' (its columns: text"),
        ({"prompt": QUESTION, "completion": "Paris.", "label": True}, "(KTO)"),
        ({"prompt": QUESTION, "better": "a", "worse": "b"}, "dataset.chosen=COLUMN dataset.rejected=COLUMN"),
        ({"prompt": QUESTION, "chosen": "a", "rejected": None}, "lacks 'rejected'"),
        ({**PLAIN, "tools": [{"type": "function"}]}, "'tools', which a model here would not see"),
        ({**PLAIN, "images": [{"bytes": None, "path": "a.png"}]}, "'images', which a model here would not see"),
        ({"prompt": USER, "chosen": [], "rejected": NO}, "an empty list as 'chosen'"),
        ({"prompt": "Another?", "chosen": HH + "Paris.", "rejected": HH + "Pisa."}, "not the one its answers begin"),
        *(
            ({"instruction": QUESTION, "history": history, "chosen": "a", "rejected": "b"}, "'history' that is no list")
            for history in (5, "Hi.", ["Hi."], [["Hi."]], [["a", "b", "c"]], {"a": "b"})
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_pair_of_texts_is_refused_with_its_row(tmp_path: Path, row: dict[str, Any], part: str) -> None:
    with pytest.raises(SettingError) as error:
        read([PLAIN, {**PLAIN, "prompt": "q"}, row], tmp_path)
    assert str(error.value).startswith("row 3")
    assert part in str(error.value)
    dropped = read([PLAIN, row], tmp_path, bad_rows="drop")
    assert len(dropped.pairs) == 1
    assert list(dropped.dropped.values()) == [[2]]


def test_remedies_work(tmp_path: Path) -> None:
    both = {"x": "id-0", **PLAIN}
    (pair,) = read([both], tmp_path, inputs={"x": "{prompt}"}).pairs
    assert pair.inputs["x"] == QUESTION
    (pair,) = read([{"prompt": QUESTION, "win": "a", "lose": "b"}], tmp_path, chosen="win", rejected="lose").pairs
    assert (pair.chosen, pair.rejected) == ({"z": "a"}, {"z": "b"})
    (pair,) = read([{"text": QUESTION, "chosen": "a", "rejected": "b"}], tmp_path, inputs={"x": "{text}"}).pairs
    assert pair.inputs["x"] == QUESTION
    with pytest.raises(SettingError, match="a list"):
        read([{"t": [1], "u": "q", "chosen": "a", "rejected": "b"}], tmp_path, inputs={"x": "{t} {u}"})
    for settings_ in ({"overlong": "dorp"}, {"bad_rows": "ignore"}, {"chosen": "a"}):
        with pytest.raises(SettingError, match=r"^dataset\."):
            read([PLAIN], tmp_path, **settings_)


def test_ties_by_the_data_s_own_word(tmp_path: Path) -> None:
    rows = [PLAIN, {**PLAIN, "winner": "Tie"}, {**PLAIN, "score_chosen": 5, "score_rejected": 5}]
    found = read(rows, tmp_path)
    assert found.dropped == {
        "a tie by the data (winner: tie)": [2],
        "a tie by the data (equal score_chosen and score_rejected)": [3],
    }


def test_what_a_row_says_against_itself_is_counted(tmp_path: Path) -> None:
    rows = [
        {**PLAIN, "score_chosen": "3", "score_rejected": "3.0"},  # texts, as in a CSV file
        {**PLAIN, "score_chosen": "3", "score_rejected": "10"},
        {"prompt": "Say it.", "chosen": "Say it. Yes.", "rejected": "Say it. No.", "rating_chosen": float("nan")},
    ]
    found = read(rows, tmp_path)
    assert found.dropped == {"a tie by the data (equal score_chosen and score_rejected)": [1]}
    assert found.remarks == [
        "1 pairs have a lower score_chosen than score_rejected: all are taken (row 2)",
        "1 pairs have two answers that repeat the prompt: all are taken (row 3)",
    ]


def test_cut_takes_the_oldest_turns_first_then_the_end(tmp_path: Path) -> None:
    system = make_two_llm(architecture={"max_position_embeddings": 160}, max_new_tokens=12)
    long = [{"role": "user", "content": "a" * 100}, {"role": "assistant", "content": "b" * 50}]
    path = write(tmp_path, [{"prompt": SYSTEM_TEXT + long + USER, "chosen": YES, "rejected": NO}])
    (pair,) = Recorded(str(path), overlong="cut").read(system, False).pairs
    assert pair.inputs["x"] == Conversation([Turn("system", "Be brief."), Turn("user", QUESTION)])
    path = write(tmp_path, [{**PLAIN, "prompt": "ab" * 500}])
    found = Recorded(str(path), overlong="cut").read(system, False)
    kept = found.pairs[0].inputs["x"]
    assert ("ab" * 500).startswith(kept)
    prompt = system.component("psi2").codec.prompt_ids({"x": kept, "y": ""})  # type: ignore[union-attr]
    assert len(prompt) + 12 + 12 == 160  # not a character less than fits
    assert found.remarks == ["1 prompts are cut to the context: row 1"]


def test_read_pairs_keeps_pairs_that_differ_in_an_intermediate_only(tmp_path: Path) -> None:
    row = {"x": "q", "chosen": {"y": "a", "z": "same"}, "rejected": {"y": "b", "z": "same"}}
    assert len(read_pairs(write(tmp_path, [row]), SYSTEM)) == 1
    with pytest.raises(SettingError, match="1 equal answers"):
        read([row], tmp_path)


class TestConversation:
    VALUE = Conversation([Turn("system", "s"), Turn("user", "q")])

    def test_a_text_with_turns(self) -> None:
        import copy
        import pickle

        assert str(self.VALUE) == "s\n\nq"
        assert json.loads(json.dumps({"x": self.VALUE})) == {"x": "s\n\nq"}
        assert self.VALUE != "s\n\nq"
        assert self.VALUE != "s\n\nq"
        for same in (copy.deepcopy(self.VALUE), pickle.loads(pickle.dumps(self.VALUE))):
            assert same == self.VALUE
            assert same.turns == self.VALUE.turns
            assert hash(same) == hash(self.VALUE)
        with pytest.raises(ValueError, match="last"):
            Conversation([Turn("assistant", "a")])

    def test_a_list_of_messages_is_asked_as_turns(self) -> None:
        pair = make_pairs(
            [{"prompt": SYSTEM_TEXT + USER, "chosen": "a", "rejected": "b"}], SYSTEM.graph, needs_intermediates=False
        )[0]
        codec: Any = SYSTEM.component("psi1").codec  # type: ignore[union-attr]
        assert codec.prompt_ids({"x": SYSTEM_TEXT + USER}) == codec.prompt_ids(pair.inputs)


# ---- hostile rows ----------------------------------------------------------------------------------------------------

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "from", "value", "type", "text", "x", "z", "messages"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)
COLUMNS = st.sampled_from(
    ["x", "prompt", "question", "instruction", "input", "system", "conversations", "messages", "history", "chosen",
     "rejected",     "status", "score_chosen", "score_rejected", "preferred_output", "non_preferred_output", "label"]
)  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.dictionaries(COLUMNS, VALUES, max_size=6), min_size=1, max_size=3))
def test_any_rows_are_read_or_refused_in_one_line(rows: list[dict[str, Any]]) -> None:
    graph = SYSTEM.graph
    try:
        found = understand(rows, graph, needs_intermediates=False)
    except SettingError as error:
        said = str(error)
    else:
        said = ""
    assert "\n" not in said
    if said:
        return
    assert len(found.pairs) + sum(map(len, found.dropped.values())) == len(rows)
    for pair in found.pairs:
        _texts_are_of_the_data(pair.inputs["x"], rows[pair.index])


def _texts_are_of_the_data(value: Any, row: Mapping[str, Any]) -> None:
    """No text that is the `repr` of something else: every turn's text stands in the row."""
    said = json.dumps(row, ensure_ascii=False)
    for text in [turn.content for turn in value.turns] if isinstance(value, Conversation) else [value]:
        if isinstance(text, str):
            for part in text.split("\n"):
                assert json.dumps(part.strip(), ensure_ascii=False)[1:-1] in said


@settings(max_examples=60, deadline=None)
@given(question=st.text(min_size=1, max_size=30), better=st.text(max_size=10), worse=st.text(max_size=10))
def test_a_text_is_kept_to_the_character(question: str, better: str, worse: str) -> None:
    system: CompoundSystem = SYSTEM
    row = {"prompt": question, "chosen": better, "rejected": worse}
    try:
        (pair,) = understand([row], system.graph, needs_intermediates=False).pairs
    except SettingError:
        assert any("\ud800" <= c <= "\udfff" for c in question + better + worse)
        return
    assert (pair.inputs["x"], pair.chosen["z"], pair.rejected["z"]) == (question, better, worse)
