"""Any key of PEFT's LoraConfig either keeps the promises of a reference, and is saved and loaded, or is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from peft import PeftModel

from sysdpo.components.text.language_model import LanguageModel
from sysdpo.components.text.pretrained import load_causal_lm
from sysdpo.errors import SettingError
from sysdpo.graph import SystemGraph
from sysdpo.system import CompoundSystem, Pair
from sysdpo.training.loop import Trainer, TrainingSettings
from sysdpo.training.objectives import Direct
from tests.systems import ARCHITECTURE, make_tiny, perturb

PARENTS = [{"x": "short"}, {"x": "longer question"}]
VALUES = ["one", "two!"]
BASE = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}

TRAINED: dict[str, dict[str, Any]] = {
    "a list from the command line": {"target_modules": OmegaConf.create(["q_proj", "v_proj"])},
    "nested config": {"rank_pattern": OmegaConf.create({"q_proj": 2}), "alpha_pattern": {"v_proj": 3}},
    "a regular expression": {"target_modules": ".*q_proj"},
    "all-linear without some": {"target_modules": "all-linear", "exclude_modules": ["down_proj"]},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "gaussian": {"init_lora_weights": "gaussian"},
    "some layers": {"layers_to_transform": [1]},
    "lora bias": {"lora_bias": True},
    "the head": {"target_modules": ["lm_head", "q_proj"]},
    "the embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "modules to save": {"modules_to_save": ["norm"]},
    "modules to save, the embedding": {"modules_to_save": ["embed_tokens"]},
    "new tokens": {"trainable_token_indices": [40, 41, 70, 78]},
    "eva, whose data PEFT asks for elsewhere": {"init_lora_weights": "eva"},
    "parameters": {"target_parameters": ["mlp.down_proj.weight"]},
}
REFUSED: dict[str, dict[str, Any]] = {
    "pissa": {"init_lora_weights": "pissa"},
    "olora": {"init_lora_weights": "olora"},
    "random": {"init_lora_weights": False},
    "biases": {"bias": "all", "attention_bias": True},
    "replicated layers": {"layer_replication": [[0, 2], [1, 2]]},
    "unknown": {"rank": 4},
    "a text for a rank": {"r": "four"},
    "rank 0": {"r": 0},
    "nothing to adapt": {"target_modules": ["nowhere"]},
    "dropout": {"lora_dropout": 0.1},
    "a text for a switch": {"use_rslora": "no"},
    "a target that is not there": {"target_modules": ["q_proj", "vv_proj"]},
    "a module to save that is not there": {"modules_to_save": ["nope"]},
    "a module to save that is no list": {"modules_to_save": "norm"},
    "a parameter that is not there": {"target_parameters": ["nope"]},
    "a token before the first": {"trainable_token_indices": [-1]},
    "adapters that act after certain tokens": {"alora_invocation_tokens": [40, 41]},
    "adapters times nothing": {"lora_alpha": 0},
}


def tiny(keys: dict[str, Any], **settings: Any) -> LanguageModel:
    lora = {**BASE, **{key: value for key, value in keys.items() if key != "attention_bias"}}
    architecture = {"tie_word_embeddings": False, "attention_bias": keys.get("attention_bias", False)}
    return make_tiny(lora=lora, architecture=architecture, **settings)


def scores(component: LanguageModel) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        return component.log_prob(VALUES, PARENTS), component.reference_log_prob(VALUES, PARENTS)


@pytest.mark.parametrize("name", TRAINED)
def test_it_trains_is_saved_resumed_and_opens_in_peft(name: str, tmp_path: Path) -> None:
    component = tiny(TRAINED[name], remember_reference=False)
    policy, original = scores(component)
    assert torch.allclose(policy, original, atol=1e-5)
    component.rehearse_saving()
    assert torch.equal(scores(component)[0], policy)  # the rehearsal leaves no trace
    component.log_prob(VALUES, PARENTS).sum().backward()
    assert all(p.grad is not None for p in component.parameters() if p.requires_grad)
    perturb(component)
    policy, reference = scores(component)
    assert torch.allclose(reference, original, atol=1e-5)
    assert not torch.allclose(policy, original, atol=1e-2)
    component.save(str(tmp_path))
    json.loads((tmp_path / "adapter_config.json").read_text())
    again = tiny(TRAINED[name])
    again.restore(str(tmp_path))
    assert torch.allclose(scores(again)[0], policy, atol=1e-5)
    assert torch.allclose(scores(again)[1], original, atol=1e-5)
    base, _ = load_causal_lm(
        None,
        weights="random",
        architecture={**ARCHITECTURE, "tie_word_embeddings": False},
        dtype="float32",
        device="cpu",
    )
    opened = PeftModel.from_pretrained(base, str(tmp_path))
    ids = torch.tensor([component.codec.prompt_ids(PARENTS[0])])
    with torch.no_grad():
        assert torch.allclose(opened(ids).logits, component.causal_lm(ids).logits, atol=1e-5)


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(SettingError, match=r"lora|four|\{") as caught:
        tiny(REFUSED[name])
    assert "\n" not in str(caught.value)


def test_an_adapter_of_other_keys_is_refused(tmp_path: Path) -> None:
    tiny({}).save(str(tmp_path))
    for keys in ({"r": 2}, {"target_modules": ["q_proj", "k_proj"]}, {"target_modules": ["q_proj"]}):
        with pytest.raises(SettingError, match="adapter"):
            tiny(keys).restore(str(tmp_path))


def trainer(component: LanguageModel, folder: Path, **settings: Any) -> Trainer:
    graph = SystemGraph({"x": {"role": "input"}, "y": {"role": "final", "component": "m", "parents": ["x"]}})
    system = CompoundSystem(graph, {"m": component})
    system.train_only(["m"])
    pairs = [Pair(0, {"x": "a"}, {"y": "good"}, {"y": "bad"}), Pair(1, {"x": "b"}, {"y": "yes"}, {"y": "no, no"})]
    defaults: dict[str, Any] = {"steps": 2, "batch_size": 2, "micro_batch_size": 2, "learning_rate": 1e-5, "beta": 0.3}
    return Trainer(system, Direct(), pairs, [], TrainingSettings(**{**defaults, **settings}), folder)


class TestBeforeTraining:
    def test_a_margin_that_is_not_zero_stops_the_run_before_a_weight_moves(self, tmp_path: Path) -> None:
        component = tiny({})
        perturb(component)
        before = {name: p.detach().clone() for name, p in component.named_parameters()}
        with pytest.raises(SettingError, match=r"margin before training is .* not 0: the policy of component 'm'"):
            trainer(component, tmp_path).run()
        assert all(torch.equal(p, before[name]) for name, p in component.named_parameters())

    def test_what_cannot_be_saved_stops_the_run_before_the_first_step(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: Any, **__: Any) -> None:
            raise TypeError("Object of type ListConfig is not JSON serializable")

        monkeypatch.setattr(PeftModel, "save_pretrained", fail)
        with pytest.raises(SettingError, match="cannot be saved: Object of type ListConfig"):
            trainer(tiny({}), tmp_path).run()
        assert not [line for line in (tmp_path / "metrics.jsonl").read_text().splitlines() if line]


@pytest.mark.parametrize("tied", [True, False])
class TestFullTrainingIn16Bits:
    """lr 1e-5 moves a weight of size .2 by less than half of bf16's step of 1e-3: without fp32 weights, most stay."""

    def test_every_weight_moves_and_the_reference_does_not(self, tmp_path: Path, tied: bool) -> None:
        component = make_tiny(lora=None, dtype="bfloat16", architecture={"tie_word_embeddings": tied}, train=False)
        untrained = {name: p.detach().clone() for name, p in component.model.named_parameters()}
        run = trainer(component, tmp_path)
        _, original = scores(component)
        run.run()
        first = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
        assert first["rewards/margins"] == 0.0
        parameters = dict(component.model.named_parameters())
        assert {p.dtype for p in parameters.values()} == {torch.float32}
        for name, parameter in parameters.items():
            if "embed_tokens" not in name:  # of tokens that no text has, nothing is learned
                assert float((parameter != untrained[name].float()).float().mean()) > 0.95, name
        assert torch.equal(scores(component)[1], original)

    def test_what_is_saved_is_exact(self, tmp_path: Path, tied: bool) -> None:
        component = make_tiny(lora=None, dtype="bfloat16", architecture={"tie_word_embeddings": tied})
        perturb(component, 1e-3)
        component.save(str(tmp_path))
        again = make_tiny(lora=None, dtype="bfloat16", architecture={"tie_word_embeddings": tied}, train=False)
        again.restore(str(tmp_path))
        assert torch.equal(scores(again)[0], scores(component)[0])
        assert component.sample(PARENTS, 1, [1, 2]) == again.sample(PARENTS, 1, [1, 2])


@pytest.mark.parametrize("name", ["rslora", "all-linear without some", "new tokens", "the head", "modules to save"])
def test_on_16_bits_adapters_start_at_a_margin_of_zero(tmp_path: Path, name: str) -> None:
    trainer(tiny(TRAINED[name], dtype="bfloat16"), tmp_path).run()


def test_dora_on_16_bits_rounds_the_untrained_policy_and_is_refused() -> None:
    with pytest.raises(SettingError, match=r"differ before training.*dtype=float32"):
        tiny({"use_dora": True}, dtype="bfloat16")


def test_values_that_the_limit_makes_equal(tmp_path: Path) -> None:
    component = make_tiny(max_new_tokens=4)
    assert component.same("", "")
    assert component.same("same beginning", "same ending")
    assert not component.same("abc", "abcd")  # the end token tells them apart
    assert not component.same("ab", "ba")
