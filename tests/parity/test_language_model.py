"""`LanguageModel` against plain forwards of transformers: values, gradients, references, saved adapters."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from sysdpo.components.text import head
from sysdpo.components.text.codec import Prompt, TextCodec, byte_tokenizer
from sysdpo.components.text.language_model import LanguageModel
from sysdpo.components.text.pretrained import load_causal_lm
from sysdpo.errors import SettingError
from tests.systems import ARCHITECTURE, make_tiny, perturb

PARENTS = [{"x": "short"}, {"x": "a rather longer question"}, {"x": "short"}, {"x": "short"}, {"x": "é"}]
VALUES = ["one", "a much longer answer than allowed", "", "one", "ü!"]
SWITCHES = [
    dict(zip(("share_prefix", "head_on_completions", "remember_reference"), on, strict=True))
    for on in itertools.product((True, False), repeat=3)
]


def plain_log_probs(component: LanguageModel, values: Sequence[str], parents: Sequence[Any]) -> Tensor:
    """One unpadded forward a row, log-softmax over the whole sequence, sum over the completion."""
    rows = []
    for value, row in zip(values, parents, strict=True):
        prompt, completion = component.codec.prompt_ids(row), component.codec.completion_ids(value)
        ids = torch.tensor([[*prompt, *completion]])
        log_probs = component.causal_lm(ids).logits[0].float().log_softmax(-1)
        predicted = log_probs[len(prompt) - 1 : -1]
        rows.append(predicted[torch.arange(len(completion)), list(completion)].sum())
    return torch.stack(rows)


def gradients(component: LanguageModel, log_probs: Tensor) -> dict[str, Tensor]:
    """Of an uneven weighting, so that a swap of rows would show."""
    component.zero_grad()
    (log_probs * torch.arange(1.0, len(log_probs) + 1)).sum().backward()
    return {n: p.grad.clone() for n, p in component.named_parameters() if p.grad is not None}


def close(actual: Tensor, expected: Tensor) -> bool:
    """To 1e-5 of the largest entry: gradients of summed log-probabilities reach into the hundreds."""
    return bool((actual - expected).abs().max() <= 1e-5 * max(1.0, float(expected.abs().max())))


@pytest.mark.parametrize("switches", SWITCHES, ids=lambda s: "".join("01"[v] for v in s.values()))
@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_log_probs_and_gradients_equal_plain_forwards(switches: dict[str, bool], lora: bool) -> None:
    component = make_tiny(**switches, **({} if lora else {"lora": None}))
    perturb(component)
    expected = plain_log_probs(component, VALUES, PARENTS)
    expected_gradients = gradients(component, expected)
    actual = component.log_prob(VALUES, PARENTS)
    assert torch.allclose(actual, expected, atol=1e-5, rtol=1e-5)
    actual_gradients = gradients(component, actual)
    assert actual_gradients.keys() == expected_gradients.keys()
    assert len(actual_gradients) > 10
    for name, gradient in actual_gradients.items():
        assert close(gradient, expected_gradients[name]), name


@pytest.mark.parametrize("model_type", ["qwen2", "gpt_neox", "gemma2"])
def test_other_architectures(model_type: str) -> None:
    """Untied heads, other attention layouts, capped logits: the same numbers."""
    changes: dict[str, Any] = {"model_type": model_type, "tie_word_embeddings": False}
    if model_type == "gemma2":
        changes |= {"head_dim": 8, "query_pre_attn_scalar": 8, "final_logit_softcapping": 3.0, "sliding_window": 512}
    component = make_tiny(architecture=changes, attention="eager")
    perturb(component)
    with torch.no_grad():
        expected = plain_log_probs(component, VALUES, PARENTS)
        assert torch.allclose(component.log_prob(VALUES, PARENTS), expected, atol=1e-5, rtol=1e-5)


class Normalised(TorchDispatchMode):
    """The most rows of logits that were normalised at a time."""

    rows = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.logsumexp.default:
            self.rows = max(self.rows, args[0].shape[0])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("trained_head", [False, True])
def test_a_head_in_chunks_gives_the_same_values_and_gradients(
    monkeypatch: pytest.MonkeyPatch, trained_head: bool
) -> None:
    """Against the head on all tokens at once and autograd's own way back; no more logits than a chunk's are made."""
    component = make_tiny(lora=None) if trained_head else make_tiny()
    perturb(component)
    monkeypatch.setattr(component, "head_on_completions", False)
    whole = component.log_prob(VALUES, PARENTS)
    expected = gradients(component, whole)
    monkeypatch.setattr(component, "head_on_completions", True)
    monkeypatch.setitem(head.CHUNK_BYTES, "cpu", 3 * 4 * component.causal_lm.config.vocab_size)
    with Normalised() as logits:
        chunked = component.log_prob(VALUES, PARENTS)
        actual = gradients(component, chunked)
    assert torch.allclose(chunked, whole, atol=1e-6)
    assert actual.keys() == expected.keys()
    for name, gradient in actual.items():
        assert close(gradient, expected[name]), name
    assert logits.rows == 3


def test_gradient_checkpointing_recomputes_and_changes_no_number() -> None:
    plain, saving = make_tiny(seed=4), make_tiny(seed=4, gradient_checkpointing=True)
    for component in (plain, saving):
        perturb(component)
    forwards = []
    saving.causal_lm.get_decoder().layers[0].mlp.register_forward_pre_hook(lambda *_: forwards.append(1))
    expected = gradients(plain, plain.log_prob(VALUES, PARENTS))
    values = saving.log_prob(VALUES, PARENTS)
    assert len(forwards) == 1
    actual = gradients(saving, values)
    assert len(forwards) == 2  # once more in the backward pass: nothing was kept
    assert torch.allclose(values, plain.log_prob(VALUES, PARENTS), atol=1e-6)
    assert actual.keys() == expected.keys()
    for name, gradient in actual.items():
        assert close(gradient, expected[name]), name
    texts = [component.sample(PARENTS, 2, range(len(PARENTS))) for component in (plain, saving)]
    assert texts[0] == texts[1]


def test_everything_is_in_eval_mode() -> None:
    """A log-ratio compares two networks; dropout in one of them would be noise."""
    component = make_tiny(architecture={"attention_dropout": 0.5})
    assert not any(m.training for m in component.model.modules())
    with torch.no_grad():
        assert torch.equal(component.log_prob(VALUES, PARENTS), component.log_prob(VALUES, PARENTS))


class TestReference:
    @pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
    @pytest.mark.parametrize("remember", [True, False])
    def test_it_is_the_initial_model_also_after_training(self, lora: bool, remember: bool) -> None:
        component = make_tiny(remember_reference=remember, **({} if lora else {"lora": None}))
        with torch.no_grad():
            initial = component.log_prob(VALUES, PARENTS)
        assert component.log_ratio(VALUES, PARENTS).tolist() == [0.0] * len(VALUES)
        perturb(component)
        with torch.no_grad():
            moved = component.log_prob(VALUES, PARENTS)
            assert not torch.allclose(moved, initial, atol=1e-2)
            for _ in range(2):  # fresh and remembered
                assert torch.allclose(component.reference_log_prob(VALUES, PARENTS), initial, atol=1e-6)
            assert torch.allclose(component.log_ratio(VALUES, PARENTS), moved - initial, atol=1e-5)

    @pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
    def test_samples_under_the_reference_are_the_initial_models(self, lora: bool) -> None:
        component = make_tiny(**({} if lora else {"lora": None}))
        initial = component.sample(PARENTS, 1, range(len(PARENTS)))
        perturb(component, 0.5)
        assert component.sample(PARENTS, 1, range(len(PARENTS))) != initial
        with component.reference():
            assert component.sample(PARENTS, 1, range(len(PARENTS))) == initial

    @pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
    def test_trainability_comes_back_after_an_exception(self, lora: bool) -> None:
        component = make_tiny(**({} if lora else {"lora": None}))
        frozen = next(p for p in component.parameters() if p.requires_grad)
        frozen.requires_grad_(False)  # one of many, so that "all on" would be noticed
        before = {n: p.requires_grad for n, p in component.named_parameters()}

        def fail() -> None:
            with component.reference():
                raise RuntimeError("inside")

        with pytest.raises(RuntimeError, match="inside"):
            fail()
        assert {n: p.requires_grad for n, p in component.named_parameters()} == before
        perturb(component)
        ratio = component.log_ratio(VALUES, PARENTS)
        assert not torch.allclose(ratio, torch.zeros_like(ratio), atol=1e-3)

    def test_no_gradient_flows_into_the_reference(self) -> None:
        component = make_tiny(lora=None)
        assert not component.reference_log_prob(VALUES, PARENTS).requires_grad
        assert component.log_ratio(VALUES, PARENTS).requires_grad
        names = [n for n, _ in component.named_parameters()]
        assert len(names) == len(set(names)) == len(list(component.causal_lm.named_parameters()))

    def test_forgetting_when_the_memory_is_full(self, monkeypatch: pytest.MonkeyPatch) -> None:
        component = make_tiny()
        expected = component.reference_log_prob(VALUES, PARENTS)
        monkeypatch.setattr("sysdpo.components.text.language_model.MEMORY_LIMIT", 1)
        for _ in range(2):
            assert torch.allclose(component.reference_log_prob(VALUES, PARENTS), expected, atol=1e-6)


class TestSaving:
    def test_peft_opens_the_adapter_without_our_code(self, tmp_path: Path) -> None:
        component = make_tiny(seed=5)
        perturb(component)
        component.save(str(tmp_path))
        base, _ = load_causal_lm(
            None, weights="random", architecture=ARCHITECTURE, dtype="float32", device="cpu", seed=5
        )
        opened = PeftModel.from_pretrained(base, str(tmp_path))
        ids = torch.tensor([component.codec.prompt_ids(PARENTS[0])])
        with torch.no_grad():
            assert close(opened(ids).logits, component.causal_lm(ids).logits)

    def test_an_adapter_becomes_part_of_the_reference(self, tmp_path: Path) -> None:
        first = make_tiny(seed=5)
        perturb(first)
        first.save(str(tmp_path))
        second = make_tiny(seed=5, adapter=str(tmp_path))
        with torch.no_grad():
            expected = first.log_prob(VALUES, PARENTS)
            assert torch.allclose(second.reference_log_prob(VALUES, PARENTS), expected, atol=1e-5)
            assert torch.allclose(second.log_prob(VALUES, PARENTS), expected, atol=1e-5)

    def test_full_weights_open_in_transformers(self, tmp_path: Path) -> None:
        component = make_tiny(lora=None)
        perturb(component)
        component.save(str(tmp_path))
        opened = AutoModelForCausalLM.from_pretrained(tmp_path)
        ids = torch.tensor([component.codec.prompt_ids(PARENTS[0])])
        with torch.no_grad():
            assert close(opened(ids).logits, component.causal_lm(ids).logits)


class TestSettings:
    @pytest.mark.parametrize(
        ("settings", "part"),
        [
            ({"weights": "pretrained"}, "model.pretrained is not set"),
            ({"weights": "randomm"}, "model.weights='randomm'"),
            ({"pretrained": "/no/such/folder", "weights": "pretrained"}, "there is no such folder"),
            ({"dtype": "float31"}, "dtype='float31'"),
            ({"device": "gpu0"}, "device='gpu0'"),
            ({"lora": {"rank": 4}}, "model.lora"),
            ({"lora": {"r": 4, "lora_dropout": 0.1}}, "lora_dropout=0.1"),
            ({"lora": {"r": 4, "target_modules": ["nothing"]}}, "target_modules"),
            ({"attention": "flash_attention_2"}, "share_prefix=false"),
            ({"adapter": "/no/such/adapter"}, "model.adapter"),
            ({"attention": "sdpaa"}, "model.attention"),
        ],
    )
    def test_refusals(self, settings: dict[str, Any], part: str) -> None:
        with pytest.raises(SettingError, match=part):
            make_tiny(**settings)

    def test_a_folder_without_weights_is_refused(self, tmp_path: Path) -> None:
        component = make_tiny(lora=None)
        component.causal_lm.config.save_pretrained(tmp_path)
        component.codec.tokenizer.save_pretrained(tmp_path)
        with pytest.raises(SettingError, match=r"model\.pretrained"):
            make_tiny(pretrained=str(tmp_path), weights="pretrained", architecture={})

    @pytest.mark.parametrize(
        ("changes", "first"), [({"num_hidden_layers": 3}, "layers.2.input"), ({"hidden_size": 64}, "embed_tokens")]
    )
    def test_weights_of_another_architecture_are_refused(
        self, tmp_path: Path, changes: dict[str, Any], first: str
    ) -> None:
        """Layers that the file lacks would be drawn at random, without a word."""
        component = make_tiny(lora=None)
        component.save(str(tmp_path))
        component.codec.tokenizer.save_pretrained(tmp_path)
        settings: dict[str, Any] = {"weights": "pretrained", "dtype": "float32", "device": "cpu"}
        assert load_causal_lm(str(tmp_path), **settings)
        with pytest.raises(SettingError, match=rf"model\.pretrained=.*another architecture.*{first}.* is not there"):
            load_causal_lm(str(tmp_path), **settings, architecture=changes)

    def test_random_weights_depend_on_the_seed_alone(self) -> None:
        torch.manual_seed(11)
        first = make_tiny(seed=3)
        state = torch.random.get_rng_state()
        second, other = make_tiny(seed=3), make_tiny(seed=4)
        assert torch.equal(torch.random.get_rng_state(), state)
        same = [torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)]
        assert all(same)
        assert not torch.equal(next(first.parameters()), next(other.parameters()))

    def test_without_a_way_to_generate_there_is_one_clear_line(self) -> None:
        with pytest.raises(SettingError, match=r"model\.generation"):
            make_tiny(generation=None).sample(PARENTS[:1], 1, [0])

    def test_a_tokenizer_without_end_token_is_refused(self) -> None:
        tokenizer = byte_tokenizer()
        tokenizer.eos_token = None
        assert TextCodec(tokenizer, Prompt("{x}"), 4).eos_token_id == 2  # ChatML's
        tokenizer.chat_template = None
        with pytest.raises(SettingError, match="end token"):
            TextCodec(tokenizer, Prompt("{x}"), 4)
