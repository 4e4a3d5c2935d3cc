"""Tokens of prompts and answers as transformers' own templates write them, and TRL's first step on the same tokens."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from sysdpo.components.text.codec import CHATML, Prompt, TextCodec
from sysdpo.components.text.language_model import LanguageModel
from sysdpo.errors import SettingError
from sysdpo.graph import SystemGraph
from sysdpo.sampling.monte_carlo import MonteCarlo
from sysdpo.system import CompoundSystem, Pair
from sysdpo.training.loop import Trainer, TrainingSettings
from sysdpo.training.objectives import Direct
from sysdpo.training.separate import train_separately
from tests.systems import ARCHITECTURE, LORA
from tests.tokenizers import KINDS, make_tokenizer

CHATS = [kind for kind in KINDS if KINDS[kind]["template"]]
PAIRS = [
    ("short", "good", "bad answer"),
    ("a longer question", "yes", "no, and far too long for the limit"),
    ("é?", "", "x"),
]


def codec(kind: str, prompt: Prompt | None = None, **settings: Any) -> TextCodec:
    return TextCodec(make_tokenizer(kind), prompt or Prompt("{x}"), 12, **settings)


def named(kind: str, token: str) -> int:
    return int(make_tokenizer(kind).convert_tokens_to_ids(token))


def end(kind: str) -> int:
    return named(kind, KINDS[kind].get("end", KINDS[kind]["eos"]))


def control_tokens(kind: str) -> list[str]:
    """The special tokens, and the words that the template writes between turns."""
    return KINDS[kind]["specials"] + [word for word in KINDS[kind].get("words", []) if word.startswith("<|")]


@pytest.mark.parametrize("kind", CHATS)
@pytest.mark.parametrize("system", [None, "Be brief."])
def test_a_prompt_is_what_the_template_writes(kind: str, system: str | None) -> None:
    c = codec(kind, Prompt("Q: {x}", system, (("two", "2"),)))
    turns = [("user", "two"), ("assistant", "2"), ("user", "Q: \nhow  many? ")]
    if system is not None and KINDS[kind].get("system", True):
        turns = [("system", system), *turns]
    elif system is not None:
        turns = [("user", f"{system}\n\ntwo"), *turns[1:]]
    messages = [{"role": role, "content": content} for role, content in turns]
    expected = c.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert list(c.prompt_ids({"x": "\nhow  many? "})) == list(expected)


@pytest.mark.parametrize("kind", KINDS)
def test_ends_and_beginnings(kind: str) -> None:
    c = codec(kind)
    assert c.eos_token_id == end(kind)
    assert c.completion_ids("yes")[-1] == end(kind)
    assert set(c.stop_token_ids) == {end(kind), *([named(kind, eos)] if (eos := KINDS[kind]["eos"]) else [])}
    for stop in c.stop_token_ids:
        assert c.decode([*c.completion_ids("yes")[:-1], stop, *c.completion_ids("more")]) == "yes"
    begin = KINDS[kind].get("bos")
    ids = c.prompt_ids({"x": "hello"})
    assert begin is None or [i for i, token in enumerate(ids) if token == named(kind, begin)] == [0]


def test_the_generation_config_adds_ends_that_the_tokenizer_has() -> None:
    pad, foreign = named("llama3", "<|start_header_id|>"), 99_999
    assert codec("llama3", stops=[pad, foreign]).stop_token_ids == (
        named("llama3", "<|eot_id|>"), named("llama3", "<|end_of_text|>"), pad,
    )  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_control_tokens_in_data_are_text(kind: str) -> None:
    c = codec(kind, Prompt("{x}", "Say {x}."))
    nasty = " ".join(control_tokens(kind))
    ids, clean = c.prompt_ids({"x": f"a {nasty}b"}), c.prompt_ids({"x": "a b"})
    specials = {named(kind, token) for token in control_tokens(kind)}
    assert [token for token in ids if token in specials] == [token for token in clean if token in specials]
    text = c.tokenizer.decode(list(ids))
    assert text.count(f"a {nasty}b") == 2  # once in the system text, once in the question
    assert text.replace(nasty, "") == c.tokenizer.decode(list(clean))
    answer = c.completion_ids("<s></s>" if kind == "base" else KINDS[kind].get("end", KINDS[kind]["eos"]))
    assert not specials.intersection(answer[:-1])
    assert c.decode(answer) != ""


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ({"rag": CHATML, "tool_use": CHATML}, "no default"),
        ("{{ messages[-1].content }}", "leaves out earlier turns"),
        ("{{ messages[0].content }}", "leaves out earlier turns"),
    ],
)
def test_a_template_that_would_lose_turns_is_refused(template: Any, says: str) -> None:
    tokenizer = make_tokenizer("chatml")
    tokenizer.chat_template = template
    with pytest.raises(SettingError, match=says):
        TextCodec(tokenizer, Prompt("{x}", None, (("two", "2"),)), 4).prompt_ids({"x": "three"})


def test_a_system_text_is_not_taken_for_the_question() -> None:
    tokenizer = make_tokenizer("chatml")
    tokenizer.chat_template = "{{ messages[0].content }}"
    ids = TextCodec(tokenizer, Prompt("{x}", "Be brief."), 4).prompt_ids({"x": "three"})
    assert tokenizer.decode(list(ids)) == "Be brief.\n\nthree"


def test_a_system_text_joins_the_first_user_turn_and_the_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    c = codec("gemma", Prompt("{x}", "Be brief."))
    with caplog.at_level(logging.INFO):
        for x in ("a", "b", "c"):
            assert c.tokenizer.decode(list(c.prompt_ids({"x": x}))).count("Be brief.") == 1
    assert len([r for r in caplog.records if "no system role" in r.message]) == 1


def test_a_date_in_a_template_stands_still() -> None:
    tokenizer = make_tokenizer("chatml")
    tokenizer.chat_template = (
        "{{ strftime_now('%d %b %Y|%Y-%m-%d') }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    )
    ids = TextCodec(tokenizer, Prompt("{x}"), 4).prompt_ids({"x": "?"})
    assert tokenizer.decode(list(ids)) == "26 Jul 2024|2024-07-26?"


def one_component(kind: str, nll: bool) -> tuple[CompoundSystem, list[Pair], TrainingSettings]:
    tokenizer = make_tokenizer(kind)
    tokens = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "eos_token_id": 1}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**ARCHITECTURE, **tokens)).eval()
    generation = MonteCarlo(distinct=False)
    component = LanguageModel(
        model, tokenizer, Prompt("{x}", "Sys."), max_new_tokens=12, lora=LORA, generation=generation
    )
    graph = SystemGraph({"x": {"role": "input"}, "y": {"role": "final", "component": "m", "parents": ["x"]}})
    system = CompoundSystem(graph, {"m": component})
    system.train_only(["m"])
    pairs = [Pair(i, {"x": x}, {"y": chosen}, {"y": rejected}) for i, (x, chosen, rejected) in enumerate(PAIRS)]
    settings = TrainingSettings(
        steps=1, batch_size=len(PAIRS), micro_batch_size=len(PAIRS), learning_rate=1e-3, beta=0.3,
        nll_weight=0.05 if nll else 0.0, max_grad_norm=1e9,
    )  # fmt: skip
    return system, pairs, settings


@pytest.mark.parametrize("nll", [False, True], ids=["dpo", "with likelihood"])
@pytest.mark.parametrize("kind", KINDS)
def test_separate_dpo_takes_the_joint_runs_first_step(tmp_path: Path, kind: str, nll: bool) -> None:
    """Loss, log-probabilities of every token scored, and the gradient; the tokens are theirs and ours alike."""
    lines = []
    for name in ("ours", "trl"):
        system, pairs, settings = one_component(kind, nll)
        folder = tmp_path / name
        folder.mkdir()
        if name == "ours":
            state = {key: value.clone() for key, value in system.state_dict().items()}
            Trainer(system, Direct(), pairs, [], settings, folder).run()
        else:
            system.load_state_dict(state)
            train_separately(system, pairs, settings, folder)
        lines.append(json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1]))
    ours, trl = lines
    for key in ("loss", "logps/chosen", "logps/rejected", "grad_norm"):
        assert trl[key] == pytest.approx(ours[key], rel=1e-4, abs=1e-4), key
    assert ours["grad_norm"] > 1e-3
