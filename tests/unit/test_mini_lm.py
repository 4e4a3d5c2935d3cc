"""The miniature's shipped language model: loads from its folder alone, and is what its card says."""

import json

import pytest
import torch
from transformers import LlamaForCausalLM

from sysdpo.components.text.codec import Prompt
from sysdpo.components.text.language_model import LanguageModel
from sysdpo.components.text.pretrained import SHIPPED, load_causal_lm
from sysdpo.errors import SettingError
from sysdpo.experiment.build import build_system
from sysdpo.paths import CONF
from sysdpo.sampling.monte_carlo import MonteCarlo
from sysdpo.tasks.mini.instructions import make_instructions
from sysdpo.tasks.mini.roles import user_prompts
from sysdpo.tasks.mini.tokenizer import build_tokenizer
from sysdpo.tasks.verifiable.score import score
from tests.composed import compose_mini

SYSTEMS = {"two_llm": ("draft", "answer"), "planner_writer": ("plan", "write")}
FOLDER = SHIPPED["mini_lm"]


@pytest.fixture(scope="module")
def metrics() -> dict:
    return json.loads((FOLDER / "metrics.json").read_text())


def test_it_is_a_llama_in_its_own_files_and_small() -> None:
    model, tokenizer = load_causal_lm("mini_lm", dtype="float32", device="cpu")
    assert isinstance(model, LlamaForCausalLM)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert sum(p.numel() for p in model.parameters()) < 1_000_000
    assert tokenizer.get_vocab() == build_tokenizer().get_vocab()
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 4_000_000


def test_it_was_fixed_by_its_own_criteria(metrics: dict) -> None:
    for name in SYSTEMS:
        held_out = metrics["held_out"][name]
        assert 0.3 <= held_out["score"] <= 0.5
        assert held_out["differing"] > 0.8
        after = held_out["after"]
        assert after["perfect"] > after["its own"] + 0.1 > after["another prompt's"] + 0.3


@pytest.mark.parametrize("experiment", ["table2", "table2_roles"])
def test_the_untrained_system_scores_as_measured(experiment: str, metrics: dict) -> None:
    system = build_system(compose_mini(experiment))
    rows = make_instructions("evaluation", 160, seed=0)
    answers = system.generate([{"x": row["x"]} for row in rows], list(range(160)))
    scores = torch.tensor([score(row["oracle"], answer["z"]) for row, answer in zip(rows, answers, strict=True)])
    stated = metrics["held_out"]["two_llm" if experiment == "table2" else "planner_writer"]["score"]
    assert scores.mean().item() == pytest.approx(stated, abs=4 * scores.std().item() / 160**0.5)


def test_a_planner_plans_and_a_drafter_answers() -> None:
    model, tokenizer = load_causal_lm("mini_lm", dtype="float32", device="cpu")
    asked = make_instructions("evaluation", 40, seed=1)
    said = {}
    for role in ("draft", "plan"):
        speaker = LanguageModel(
            model,
            tokenizer,
            Prompt(user_prompts(SYSTEMS)[role]),
            generation=MonteCarlo(1.0, 1.0, False),
            max_new_tokens=20,
        )
        said[role] = [row[0] for row in speaker.sample([{"x": row["x"]} for row in asked], 1, list(range(40)))]
    assert all(text.startswith("take ") for text in said["plan"])
    assert not any(text.startswith("take ") for text in said["draft"])


TEXT_EXPERIMENTS = sorted(path.stem.removesuffix("_mini") for path in CONF.glob("setting/*_mini.yaml"))
TEXT_EXPERIMENTS.remove("table1")


@pytest.mark.parametrize("experiment", TEXT_EXPERIMENTS)
def test_every_experiment_asks_in_words_that_the_miniature_knows(experiment: str) -> None:
    system = build_system(compose_mini(experiment))
    inputs = [{"x": row["x"]} for row in make_instructions("train", 20, seed=0)]
    system.check_rows(system.generate(inputs, list(range(20))), list(range(20)))


def test_words_that_the_miniature_does_not_know_are_refused() -> None:
    speaker = LanguageModel.load("mini_lm", prompt="{x}", max_new_tokens=20)
    speaker.check_row({"x": "list two red tools in upper case"})
    with pytest.raises(SettingError, match="the prompt has words that the model's vocabulary of 406 tokens lacks"):
        speaker.check_row({"x": "Name a river."})
    with pytest.raises(SettingError, match="the answer has words"):
        speaker.check_value("the Rhine")
