"""The verifiable instructions of Table 2 at `laptop`: reproducible, balanced, two splits without a common subject."""

import json
import re
from collections import Counter

import pytest

from sysdpo.errors import SettingError
from sysdpo.tasks.verifiable.instructions import FAMILIES, INSTRUCTION_WORDS, PHRASINGS, POOLS, Split, make_instructions
from sysdpo.tasks.verifiable.score import explain, score

SPLITS: tuple[Split, ...] = ("train", "evaluation")


def words(rows: list[dict[str, str]]) -> set[str]:
    return {word for row in rows for word in re.findall(r"[a-z]+", row["x"].lower())}


def stem(word: str) -> str:
    return re.sub(r"(?:ies|es|s|y|ing|ed)$", "", word) if len(word) > 3 else word


@pytest.mark.parametrize("split", SPLITS)
def test_same_seed_same_rows_and_a_shorter_set_is_the_head_of_a_longer_one(split: Split) -> None:
    rows = make_instructions(split, 193, seed=0)
    assert rows == make_instructions(split, 193, seed=0)
    assert rows[:60] == make_instructions(split, 60, seed=0)
    assert rows != make_instructions(split, 193, seed=1)


@pytest.mark.parametrize("split", SPLITS)
def test_prompts_are_different_families_take_turns_every_phrasing_occurs(split: Split) -> None:
    rows = make_instructions(split, 600, seed=3)
    assert len({row["x"] for row in rows}) == 600
    assert [row["family"] for row in rows[: len(FAMILIES)]] == list(FAMILIES)
    counts = Counter(row["family"] for row in rows)
    assert len(counts) >= 12
    assert max(counts.values()) - min(counts.values()) <= 1
    for family, phrasings in PHRASINGS.items():
        assert len(phrasings) >= 4
        for phrasing in phrasings:
            shape = re.compile(re.sub(r"\\\{\w+\\\}", ".+", re.escape(phrasing)), re.IGNORECASE)
            assert any(shape.fullmatch(row["x"]) for row in rows if row["family"] == family), phrasing


@pytest.mark.parametrize("split", SPLITS)
def test_rows_have_a_readable_prompt_and_an_oracle_that_rewards_no_echo(split: Split) -> None:
    for row in make_instructions(split, 1000, seed=5):
        assert set(row) == {"x", "family", "oracle"}
        assert not re.search(r"[{}]|  | an? [aeiou]?\W|\ba [aeio]|\ban [^aeio]", row["x"]), row["x"]
        assert len(row["x"].split()) <= 25
        assert len(explain(row["oracle"], "x")) >= 2
        assert score(row["oracle"], "") == 0.0
        assert score(row["oracle"], row["x"]) <= 0.35, row  # extraction's prompt states the answer


def test_splits_share_only_the_vocabulary_of_instructing() -> None:
    train, evaluation = (words(make_instructions(split, 1000, seed=0)) for split in SPLITS)
    assert train & evaluation <= INSTRUCTION_WORDS
    content_train = {stem(word) for word in train - INSTRUCTION_WORDS}
    content_evaluation = {stem(word) for word in evaluation - INSTRUCTION_WORDS}
    assert not content_train & content_evaluation
    assert min(len(content_train), len(content_evaluation)) > 200


def test_every_instruction_word_is_used_by_both_splits() -> None:
    """The shared vocabulary hides no content word: each of its words occurs in prompts of either split."""
    for split in SPLITS:
        assert words(make_instructions(split, 1000, seed=0)) >= INSTRUCTION_WORDS


def test_known_answers_of_the_splits_are_different_too() -> None:
    train, evaluation = (POOLS[split] for split in SPLITS)
    assert not set(train.sums) & set(evaluation.sums)
    assert not {m for c in train.categories for m in c.members} & {m for c in evaluation.categories for m in c.members}
    for name in ("people", "things", "jobs", "places", "pets", "endings", "beginnings", "records", "opposites"):
        assert not set(getattr(train, name)) & set(getattr(evaluation, name)), name


@pytest.mark.parametrize("split", SPLITS)
def test_arithmetic_and_extraction_ask_for_what_the_prompt_says(split: Split) -> None:
    rows = make_instructions(split, 1000, seed=2)
    for row in rows:
        task = json.loads(row["oracle"])["task"][0]
        if row["family"] == "arithmetic":
            assert sum(map(int, re.findall(r"\d+", row["x"]))) == task["value"]
        if row["family"] == "extraction":
            assert task["accepted"][0] in row["x"]
            assert all(other in row["x"] for other in task["others"])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("test", 5, 0), "did you mean"),
        (("train", 0, 0), "n=0"),
        (("train", 10**6, 0), "no new prompt"),
    ],
)
def test_a_wrong_setting_is_one_clear_line(arguments: tuple[Split, int, int], says: str) -> None:
    with pytest.raises(SettingError, match=says) as caught:
        make_instructions(*arguments)
    assert "\n" not in str(caught.value)
