"""The oracle of Table 2 at `laptop`: checks against values counted by hand, and answers a reader would rank."""

import json
import random
import re
from dataclasses import replace
from functools import cache
from itertools import pairwise

import pytest

from sysdpo.errors import SettingError
from sysdpo.tasks.mini.instructions import make_instructions as mini_instructions
from sysdpo.tasks.verifiable.checks import CHECKS
from sysdpo.tasks.verifiable.families import oracle
from sysdpo.tasks.verifiable.instructions import FAMILIES, PHRASINGS, POOLS
from sysdpo.tasks.verifiable.score import explain, score

# Fewer people and places, so that a random draw meets the prompts below.
POOL = replace(
    POOLS["train"],
    people=("Anna", "Tom", "Nina"),
    things=("kites",),
    jobs=("baker", "judge"),
    places=("Oslo", "Rome"),
    pets=("duck", "parrot"),
)

GOOD = {
    "Describe rivers in at most 10 words.": "A river carries water from the mountains to the sea.",
    "Write exactly two short sentences about rain.": "Rain falls from dark clouds. It makes the fields green.",
    "Describe kites in one short sentence.": "Kites dance in the wind.",
    'Write one sentence that contains the words "fox" and "farm".': "A fox crept around the farm at night.",
    'Describe honey in one sentence without the words "sweet" and "golden".': "Honey is what bees make from nectar.",
    "List exactly four planets, one per line.": "Mars\nVenus\nJupiter\nNeptune",
    "Write a numbered list of three colours.": "1. Red\n2. Blue\n3. Green",
    "Name three fruits, separated by commas.": "apple, pear, plum",
    "List four tools with commas between them.": "A hammer, a saw, a drill and a file.",
    "Name three birds in lowercase.": "owl, duck, swan",
    "Give me one month in uppercase letters.": "MAY",
    'Write one sentence about trains that ends with "in the rain".': "The old train left the city in the rain.",
    'Write one sentence about coffee that begins with "Long ago".': "Long ago, coffee was drunk only in Ethiopia.",
    "Write one question about chess.": "Who invented chess?",
    "Give me a title for a story about doors, in double quotes.": '"The Door at the End of the Hall"',
    'Write a JSON object about a dog with the keys "age" and "name".': '{"name": "Rex", "age": 4}',
    "What is 4 + 3?": "7",
    "Add 6 and 5. What is the total?": "6 plus 5 is 11.",
    "Anna has 5 kites and gets 3 more. How many kites does Anna have now?": "Anna has eight kites now.",
    "Tom is a baker, lives in Oslo and has a duck. What is Tom's job?": "Tom is a baker.",
    "Read: Nina has a parrot, lives in Rome and works as a judge. Where does Nina live?": "Rome",
    "Which is bigger, a mouse or an elephant?": "An elephant is bigger than a mouse.",
    "Choose the hotter one: a fire or a cloud.": "A fire.",
    'Yes or no: is "hammer" a fruit?': "No.",
    'Is "owl" the name of a bird? Answer yes or no.': "Yes, it is.",
    'What is the opposite of "hot"?': "Cold.",
    "Which word is the opposite of early?": "The opposite of early is late.",
}
NONSENSE = (
    "",
    " \n... !!",
    "asdf qwrt zxcv bnmp hjkl",
    "of the and to the in of a the and",
    "the sun and the sun and the sun and the sun and the sun and the sun and the sun",
    "As a large language model I am unable to help with this kind of request, but I would be glad to talk about "
    "something else that you find interesting, for example the weather or a place that you like to visit.",
)


BETTER_FIRST = {
    "Describe rivers in at most 10 words.": (
        "A river carries water from the mountains to the sea.",
        "A river is a long stream of water that runs from the mountains to the sea.",
        "A river is a long stream of water that runs from the mountains to the sea, and many towns were built on one.",
        "A village is a quiet place.",
    ),
    "Write exactly two short sentences about rain.": (
        "Rain falls from dark clouds. It makes the fields green.",
        "Rain falls from dark clouds.",
        "Rain falls from dark clouds. It makes the fields green. It fills the wells. It is",
    ),
    'Write one sentence that contains the words "fox" and "farm".': (
        "A fox crept around the farm at night.",
        "A fox crept through the wood at night.",
        "fox farm fox farm",
    ),
    'Describe honey in one sentence without the words "sweet" and "golden".': (
        "Honey is what bees make from nectar.",
        "Honey is a golden food that bees make.",
        "Honey is a sweet and golden food that bees make.",
    ),
    "List exactly four planets, one per line.": (
        "1. Mars\n2. Venus\n3. Jupiter\n4. Neptune",
        "1. Mars\n2. Venus\n3. Jupiter",
        "Mars, Venus, Jupiter, Neptune",
        "planets\nplanets\nplanets\nplanets",
    ),
    "Name three fruits, separated by commas.": (
        "apple, pear, plum",
        "apple, pear, plum, fig, grape",
        "apple\npear\nplum",
        "hammer, table, river",
    ),
    "Name three birds in lowercase.": ("owl, duck, swan", "owl, duck, Swan", "I like watching birds."),
    'Write one sentence about trains that ends with "in the rain".': (
        "The old train left the city in the rain.",
        "In the rain the old train left the city.",
        "The old train left the city.",
        "We walked home.",
    ),
    'Write one sentence about coffee that begins with "Long ago".': (
        "Long ago, coffee was drunk only in Ethiopia.",
        "Coffee was drunk long ago in Ethiopia.",
        "Coffee was drunk only in Ethiopia.",
    ),
    "Write one question about chess.": (
        "Who invented chess?",
        "Chess is an old game. Who invented it?",
        "Chess is an old game.",
    ),
    "Give me a title for a story about doors, in double quotes.": (
        '"The Door at the End"',
        'A title could be "The Door at the End".',
        "The story is about a door that stands at the end of a long hall, and nobody dares to open it.",
    ),
    'Write a JSON object about a dog with the keys "age" and "name".': (
        '{"name": "Rex", "age": 4}',
        'Here it is: {"name": "Rex", "age": 4}',
        '{"name": "Rex", "breed": "collie"}',
        '{"name": "Rex", "address": {"street":',
        "The dog is called Rex and it is four years old.",
    ),
    "What is 4 + 3?": (
        "4 + 3 = 7",
        "To find out, take the 4 and put it together with the 3, which makes 7 in all.",
        "4 + 3 = 8",
        "4 + 3 = 43",
    ),
    "Tom is a baker, lives in Oslo and has a duck. What is Tom's job?": (
        "Tom is a baker.",
        "Tom is a baker, lives in Oslo and has a duck.",
        "Tom has a duck.",
    ),
    "Which is bigger, a mouse or an elephant?": (
        "An elephant is bigger than a mouse.",
        "An elephant is bigger than a mouse, because it weighs several tons and stands as tall as a house.",
        "A mouse is bigger than an elephant.",
    ),
    'Yes or no: is "hammer" a fruit?': ("No.", "No, a hammer is a tool that people use for driving nails.", "Yes."),
    'What is the opposite of "hot"?': ("Cold.", "It is cold, as in the far north, where snow lies all year.", "Warm."),
}


@cache
def oracle_of(prompt: str) -> str:
    """The oracle our families give to a prompt: draw until the prompt comes up."""
    for name, family in FAMILIES.items():
        for phrasing in PHRASINGS[name]:
            if not re.fullmatch(re.sub(r"\\\{\w+\\\}", ".*", re.escape(phrasing)), prompt):
                continue
            rng = random.Random(phrasing)
            for _ in range(40_000):
                draw = family(POOL, rng)
                if phrasing.format(**draw.slots) == prompt:
                    return oracle(name, prompt, draw)
    raise AssertionError(f"no family writes {prompt!r}")


@pytest.mark.parametrize("prompt", GOOD)
def test_a_good_answer_scores_one(prompt: str) -> None:
    assert score(oracle_of(prompt), GOOD[prompt]) == 1.0, explain(oracle_of(prompt), GOOD[prompt])


def test_every_family_has_a_good_answer_and_a_ranking() -> None:
    def families(prompts: dict[str, object]) -> set[str]:
        shapes = {name: [re.sub(r"\\\{\w+\\\}", ".*", re.escape(p)) for p in PHRASINGS[name]] for name in FAMILIES}
        return {name for name, found in shapes.items() for p in prompts if any(re.fullmatch(s, p) for s in found)}

    assert families(dict(GOOD)) == set(FAMILIES)
    assert families(dict(BETTER_FIRST)) == set(FAMILIES)


@pytest.mark.parametrize("prompt", GOOD)
def test_nonsense_scores_near_zero(prompt: str) -> None:
    for answer in (*NONSENSE, prompt):
        assert score(oracle_of(prompt), answer) <= 0.11, (answer, explain(oracle_of(prompt), answer))


def test_a_good_answer_to_something_else_scores_low() -> None:
    """An answer is worth something only under its own prompt. Two one-word answers fit by accident."""
    scores = [score(oracle_of(asked), GOOD[given]) for asked in GOOD for given in GOOD if asked != given]
    assert sum(scores) / len(scores) < 0.06
    assert sum(value > 0.5 for value in scores) <= 0.03 * len(scores)


@pytest.mark.parametrize("prompt", BETTER_FIRST)
def test_answers_rank_as_a_reader_ranks_them(prompt: str) -> None:
    scores = [score(oracle_of(prompt), answer) for answer in BETTER_FIRST[prompt]]
    assert all(better > worse for better, worse in pairwise(scores)), scores


def test_a_cut_off_answer_is_worth_less_than_the_same_answer_finished() -> None:
    oracle_text = oracle_of('Write one sentence about trains that ends with "in the rain".')
    whole = "The old train left the city in the rain."
    assert score(oracle_text, whole.rstrip(".")) == 0.5 * score(oracle_text, whole)
    assert score(oracle_text, whole + " The old train left the") < 0.5 * score(oracle_text, whole)


@pytest.mark.parametrize(
    ("check", "arguments", "answer", "value"),
    [
        ("words_at_most", {"n": 4}, "one two three four", 1.0),
        ("words_at_most", {"n": 4}, "one two three four five six seven eight", 0.25),  # (4 / 8)^2
        ("sentences", {"n": 2}, "One is here. Two is there! Three?", 2 / 3),
        ("sentences", {"n": 1}, 'He said "No." Then he left.', 0.5),
        ("sentences", {"n": 2}, "Two sentences:\n1. A cat sat.\n2. It slept.", 1.0),  # heading and markers are none
        ("questions", {}, 'Who? "Where?" There.', 2 / 3),
        ("includes", {"wanted": ["dog", "cat"]}, "Two dogs ran.", 0.5),
        ("includes", {"wanted": ["dog"]}, "A dogma.", 0.0),
        ("avoids", {"unwanted": ["dog", "cat"]}, "Two dogs ran.", 0.5),
        ("lines", {"n": 4}, "Here they are:\n- a\n- b\n\n- c", 0.75),
        ("lines", {"n": 2}, "a\na", 0.5),  # an item said twice
        ("commas", {"n": 3}, "They are: a, b, and c.", 1.0),
        ("commas", {"n": 3}, "a, b", 2 / 3),
        ("commas", {"n": 2}, "a, b c d e f", 0.75),  # the second item runs on
        ("letter_case", {"style": "upper"}, "RED and BLUE", 0.1 + 0.4 * 2 / 3),
        ("letter_case", {"style": "lower"}, "red, blue!", 1.0),
        ("begins", {"text": "Long ago"}, '"Long ago, he left."', 1.0),
        ("begins", {"text": "Long ago"}, "He left long ago.", 0.4),
        ("begins", {"text": "Long ago"}, "Long before that.", 0.25),  # 0.1 + 0.3 / 2
        ("ends", {"text": "in the rain"}, "He left in the rain!", 1.0),
        ("ends", {"text": "in the rain"}, "He left in rain.", 0.2),  # 0.1 + 0.3 / 3
        ("json_keys", {"keys": ["a", "b"]}, '```json\n{"a": 1, "b": "x"}\n```', 1.0),
        ("json_keys", {"keys": ["a", "b"]}, '{"a": 1, "c": 2}', 1 / 3),  # {a} of {a, b, c}
        ("json_keys", {"keys": ["a", "b"]}, '{"a": "", "b": "b"}', 0.0),  # nothing filled in
        ("json_keys", {"keys": ["a", "b"]}, 'Sure: {"a": 1, "b": 2}', 0.7),
        ("json_keys", {"keys": ["a", "b"]}, '{"a": 1, "b', 0.15),
        ("json_keys", {"keys": ["a", "b"]}, '["a", "b"]', 0.0),
        ("number", {"value": 1200}, "It is 1,200.", 1.0),
        ("number", {"value": 8}, "eight", 1.0),
        ("number", {"value": 8}, "8, no, 9", 0.3),
        ("number", {"value": 8}, "6", 0.15),  # 0.2 (1 - 2 / 8)
        ("number", {"value": 8}, "many", 0.0),
        ("names", {"accepted": ["Oslo"], "others": ["baker"]}, "A baker in Oslo", 0.4),
        ("names", {"accepted": ["Oslo"], "others": []}, "oslo!", 1.0),
        ("chooses", {"accepted": ["cow"], "others": ["hen"]}, "The cow, not the hen", 1.0),
        ("chooses", {"accepted": ["cow"], "others": ["hen"]}, "The hen, not the cow", 0.2),
        ("chooses", {"accepted": ["cow"], "others": ["hen"]}, "Cows", 0.0),
        ("wrapped", {"left": '"', "right": '"'}, "“The Sea”", 1.0),
        ("wrapped", {"left": '"', "right": '"'}, 'Call it "The Sea"', 0.5),
        ("wrapped", {"left": '"', "right": '"'}, '""', 0.0),
        ("separated", {"mark": ";", "n": 3}, "ant; bee; cow", 1.0),
        ("separated", {"mark": "/", "n": 3}, "so ant / bee cow", 0.5),  # one gap of two
        ("separated", {"mark": ";", "n": 3}, "ant ; bee , cow", 0.25),  # one of two, and half of what stands there
        ("separated", {"mark": ";", "n": 2}, "ant ; bee ; cow", 0.5),
        ("separated", {"mark": ";", "n": 2}, "; ant bee ;", 0.0),
        ("picks", {"known": ["ant", "bee", "cow"], "n": 2, "others": []}, "bee ant", 1.0),
        ("picks", {"known": ["ant", "bee", "cow"], "n": 2, "others": ["done"]}, "BEE done", 0.5),
        ("picks", {"known": ["ant", "bee", "cow"], "n": 2, "others": []}, "bee bee", 1 / 3),  # one, and one too many
        ("picks", {"known": ["ant", "bee", "cow"], "n": 2, "others": ["done"]}, "ant bee cow done done", 0.5),
        ("sequence", {"wanted": ["ant", "bee", "cow"], "others": []}, "ant cow bee", 2 / 3),
        ("sequence", {"wanted": ["ant", "bee"], "others": ["so"]}, "so dog ant owl bee", 0.5),
        ("sequence", {"wanted": ["ant", "bee"], "others": []}, "", 0.0),
        ("on_subject", {"stems": ["bee"]}, "It has been a beer.", 0.1),
        ("on_subject", {"stems": ["garden"]}, "Gardening is fun.", 1.0),
        ("members", {"known": ["red", "blue", "pink"], "n": 4}, "red, red, mauve", 0.55),  # 0.1 + 0.9 * 1 / 2
        ("varied", {}, "a b c a b c a b c", 0.0),  # 4 of 7 triples said before
        ("varied", {}, "every word here is said once", 1.0),
        ("prose", {}, "The cat sat on the", 0.5),
        ("prose", {}, "Green stone river apple window mountain.", 0.0),
        ("prose", {}, "Dogs bark loudly.", 1.0),
        ("length", {"at_most": 5}, "one two three four five six seven eight nine ten", 0.5),
        ("not_echoed", {"prompt": "Write one sentence about bees."}, "Write one sentence about bees.", 0.0),
        ("not_echoed", {"prompt": "Write one sentence about bees."}, "Bees make the honey.", 1.0),
        ("direct", {}, "Note: bees are small.", 0.5),
        ("direct", {}, "What would you like to know?", 0.3),
    ],
)
def test_checks_by_hand(check: str, arguments: dict[str, object], answer: str, value: float) -> None:
    assert CHECKS[check](answer, **arguments) == pytest.approx(value)


def test_every_check_is_tested_by_hand_and_used_by_a_family() -> None:
    used = {name for prompt in GOOD for name in explain(oracle_of(prompt), "x")}
    used |= {name for row in mini_instructions("train", 100, seed=0) for name in explain(row["oracle"], "x")}
    assert used == set(CHECKS)


def test_score_is_the_mean_of_the_tasks_times_the_gates() -> None:
    text = json.dumps(
        {
            "task": [{"check": "words_at_most", "n": 4}, {"check": "includes", "wanted": ["dog", "cat"]}],
            "gate": [{"check": "length", "at_most": 3}, {"check": "direct"}],
        }
    )
    answer = "Note: a dog ran"  # 4 words: tasks 1 and 1/2, gates 3/4 and 1/2
    assert explain(text, answer) == {"words_at_most": 1.0, "includes": 0.5, "length": 0.75, "direct": 0.5}
    assert score(text, answer) == pytest.approx(0.75 * 0.375)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("not json", "is not JSON"),
        ("[]", "exactly the two lists"),
        ('{"task": []}', "exactly the two lists"),
        ('{"task": [], "gate": []}', "'task' is empty"),
        ('{"task": ["direct"], "gate": []}', "an object with its name under 'check'"),
        ('{"task": [{"check": "sentence", "n": 1}], "gate": []}', "did you mean 'sentences'"),
        ('{"task": [{"check": "sentences"}], "gate": []}', "takes ['n'], was given []"),
        ('{"task": [{"check": "sentences", "n": 0}], "gate": []}', "n=0; give a whole number from 1"),
        ('{"task": [{"check": "sentences", "n": true}], "gate": []}', "n=True; give a whole number"),
        ('{"task": [{"check": "begins", "text": ""}], "gate": []}', "text=''; give a text"),
        ('{"task": [{"check": "includes", "wanted": []}], "gate": []}', "wanted=[]; give a list of texts"),
        ('{"task": [{"check": "letter_case", "style": "bold"}], "gate": []}', "give 'upper' or 'lower'"),
        ('{"task": [{"check": "direct"}], "gate": [{"check": "direct"}]}', "given twice"),
    ],
)
def test_a_malformed_oracle_is_one_clear_line(text: str, says: str) -> None:
    for read in (lambda: score(text, "x"), lambda: explain(text, "x")):
        with pytest.raises(SettingError) as caught:
            read()
        assert says in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("answer", ["{" * 5000, "[" * 200_000, '"' * 999, "1" * 5000, "\x00", "ß İ ŉ", "a" * 50_000])
def test_no_answer_breaks_a_check(answer: str) -> None:
    for prompt in GOOD:
        assert 0.0 <= score(oracle_of(prompt), answer) <= 1.0
