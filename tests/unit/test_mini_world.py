"""The miniature of Table 2: no prompt in two shares, perfect answers score 1, teachers keep their rates."""

import json
import random
from itertools import islice

import pytest

from sysdpo.errors import SettingError
from sysdpo.tasks.mini import teachers
from sysdpo.tasks.mini.instructions import Share, draw_tasks, make_instructions, share_of
from sysdpo.tasks.mini.roles import turns, user_prompts
from sysdpo.tasks.mini.tasks import FAMILIES, Core, Format, Task
from sysdpo.tasks.mini.tokenizer import build_tokenizer, vocabulary
from sysdpo.tasks.mini.words import CATEGORIES, COLOURS, SIZES, THINGS, members
from sysdpo.tasks.verifiable.score import score

SHARES: tuple[Share, ...] = ("base", "train", "evaluation")

SYSTEMS = {"two_llm": ("draft", "answer"), "planner_writer": ("plan", "write")}
SORTING = Task(
    "sorting",
    Core("sort pear apple fig", ("apple", "fig", "pear"), 3, True, ("kiwi",)),
    Format(True, ";", "done", None),
)


def test_every_thing_is_one_word_with_one_of_each_attribute() -> None:
    assert len({thing.name for thing in THINGS}) == len(THINGS) == 160
    assert {len(members(category)) for category in CATEGORIES} == {16}
    assert {len(members(size)) for size in SIZES} == {80}
    assert {len(members(colour)) for colour in COLOURS} == {40}
    assert members("fruits", "small", "red") == ["cherry", "berry"]


def test_no_prompt_is_in_two_shares_nor_twice_in_one() -> None:
    prompts = {share: [task.prompt for task in islice(draw_tasks(share, 0), 2500)] for share in SHARES}
    every = [prompt for drawn in prompts.values() for prompt in drawn]
    assert len(set(every)) == len(every)
    assert all(share_of(prompt) == share for share, drawn in prompts.items() for prompt in drawn)


@pytest.mark.parametrize("share", ["train", "evaluation"])
def test_same_seed_same_rows_families_take_turns_a_shorter_set_is_the_head_of_a_longer_one(share: Share) -> None:
    rows = make_instructions(share, 200, seed=0)
    assert rows == make_instructions(share, 200, seed=0)
    assert rows[:50] == make_instructions(share, 50, seed=0)
    assert rows != make_instructions(share, 200, seed=1)
    assert [row["family"] for row in rows[: len(FAMILIES)]] == list(FAMILIES)


def test_unknown_shares_and_empty_sets_are_refused() -> None:
    with pytest.raises(SettingError, match="evaluation"):
        make_instructions("evaluatoin", 3, seed=0)  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="at least one"):
        make_instructions("train", 0, seed=0)


def test_perfect_answers_score_1_and_the_prompt_itself_scores_nearly_nothing() -> None:
    rng = random.Random(0)
    for task in islice(draw_tasks("evaluation", 0), 1600):
        assert score(task.oracle, teachers.as_answer(teachers.right(task, rng))) == 1.0, task
        assert score(task.oracle, task.prompt) < 0.35, task


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("APPLE ; FIG ; PEAR DONE", 1.0),
        ("apple ; fig ; pear done", (0.1 + 1 + 1) / 3),  # no word in upper case
        ("APPLE FIG PEAR DONE", (1 + 0 + 1) / 3),
        ("APPLE ; FIG ; PEAR", (1 + 1 + 0.1) / 3),
        ("APPLE ; PEAR ; FIG DONE", 2 / 3),  # two of three in order
        ("APPLE ; FIG DONE", (1 + 1 / 2 + 1) / 3 * 2 / 3),  # one gap of two, two words of three
        ("APPLE ; FIG ; PEAR ; KIWI DONE", (1 + 2 / 3 + 1) / 3 * 3 / 4),
        ("APPLE ; FIG , PEAR DONE", (1 + 1 / 2 * 1 / 2 + 1) / 3),
        ("take apple fig pear use upper mark ; close done", None),  # a plan is no answer
    ],
)
def test_scores_by_hand(answer: str, value: float | None) -> None:
    found = score(SORTING.oracle, answer)
    assert found == pytest.approx(value) if value is not None else found < 0.35


def test_a_plan_says_which_words_and_which_format_and_is_poor_as_an_answer() -> None:
    attempt = teachers.Attempt(("apple", "fig"), Format(True, "/", "done", "so"))
    assert teachers.as_plan(attempt) == "take apple fig use upper mark / open so close done"
    assert teachers.as_answer(attempt) == "SO APPLE / FIG DONE"
    rng = random.Random(0)
    tasks = list(islice(draw_tasks("train", 0), 800))
    plans = [score(task.oracle, teachers.as_plan(teachers.right(task, rng))) for task in tasks]
    assert sum(plans) / len(plans) < 0.2


def test_every_word_that_prompts_and_teachers_use_is_a_token_and_comes_back() -> None:
    tokenizer = build_tokenizer()
    assert 400 <= len(tokenizer) == len(vocabulary()) <= 600
    assert tokenizer.eos_token == "<|im_end|>"
    users = user_prompts(SYSTEMS)
    for said in islice(turns(draw_tasks("train", 0), 0), 400):
        for role, turn in said.items():
            question = [{"role": "user", "content": users[role].format(**turn.parents)}]
            ids = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=True)["input_ids"]
            assert tokenizer.unk_token_id not in ids
            said_ids = tokenizer(turn.text, add_special_tokens=False)["input_ids"]
            assert tokenizer.decode(said_ids) == turn.text


def share(values: list[bool]) -> float:
    return sum(values) / len(values)


def test_teachers_meet_the_stated_rates() -> None:
    """Over 4,000 tasks a share has a standard error of at most 0.008; the bound is four of them."""
    rng = random.Random(1)
    rates = teachers.IMPERFECT
    tasks = [task for task in islice(draw_tasks("base", 0), 4000) if task.form.ending]
    first = [teachers.first(task, rng) for task in tasks]
    noted = [f.form.ending == t.form.ending for f, t in zip(first, tasks, strict=True)]
    assert share(noted) == pytest.approx(rates.first_wish, abs=0.045)
    answers = [teachers.answer(t, f, rng) for t, f in zip(tasks, first, strict=True)]
    kept = [a.words == f.words for a, f in zip(answers, first, strict=True)]
    assert share(kept) >= rates.answer_keeps_words - 0.04  # and where words of its own are the same
    met = [a.form.ending == t.form.ending for a, t in zip(answers, tasks, strict=True)]
    # with the draft's chance or its own: half of each
    expected = rates.answer_keeps_form * rates.first_wish + (1 - rates.answer_keeps_form) * rates.answer_wish
    assert share(met) == pytest.approx(expected, abs=0.045)
    written = [teachers.write(t, f, rng) for t, f in zip(tasks, first, strict=True)]
    forgotten = [
        w.form.ending == t.form.ending for w, t, f in zip(written, tasks, first, strict=True) if not f.form.ending
    ]
    assert share(forgotten) == pytest.approx(rates.write_unnoted, abs=0.045)
    followed = [w.form.ending == f.form.ending for w, f in zip(written, first, strict=True) if f.form.ending]
    assert share(followed) == pytest.approx(rates.write_noted, abs=0.045)


def test_skilled_teachers_are_right_and_true_to_the_first_text() -> None:
    rng = random.Random(2)
    for task in islice(draw_tasks("base", 0), 400):
        assert score(task.oracle, teachers.as_answer(teachers.first(task, rng, teachers.SKILLED))) == 1.0
        other = teachers.first(task, rng)
        assert teachers.answer(task, other, rng, teachers.SKILLED) == teachers.Attempt(other.words, task.form)
        assert teachers.write(task, other, rng, teachers.SKILLED) == other


def test_an_oracle_is_json_of_checks_that_the_judge_knows() -> None:
    parsed = json.loads(SORTING.oracle)
    assert [check["check"] for check in parsed["task"]] == ["letter_case", "separated", "ends"]
    assert parsed["gate"] == [{"check": "sequence", "wanted": ["apple", "fig", "pear"], "others": ["done"]}]
