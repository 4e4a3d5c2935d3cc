"""What makes scoring cheaper changes no number, and does take place: blocks of attention, layers in one product."""

import copy
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sysdpo.components.text import blocks, fused, norms
from sysdpo.components.text.language_model import LanguageModel
from sysdpo.components.text.packing import Completion, pack
from tests.systems import make_tiny, perturb

LONG = [{"x": "a question " * 9}, {"x": "another one " * 8}]
PARENTS = [LONG[0], LONG[0], LONG[1], LONG[1]]
VALUES = ["an answer " * 9, "other words " * 8, "a third text " * 7, "the last one " * 7]  # one token a byte


def scored(component: LanguageModel) -> tuple[Tensor, dict[str, Tensor]]:
    """Log-probabilities, and the gradients of an uneven weighting of them."""
    perturb(component)
    component.zero_grad()
    values = component.log_prob(VALUES, PARENTS)
    (values * torch.arange(1.0, 5.0)).sum().backward()
    return values.detach(), {n: p.grad.clone() for n, p in component.named_parameters() if p.grad is not None}


def assert_equal(first: tuple[Tensor, dict[str, Tensor]], second: tuple[Tensor, dict[str, Tensor]]) -> None:
    torch.testing.assert_close(first[0], second[0], atol=2e-4, rtol=1e-6)
    assert first[1].keys() == second[1].keys()
    assert len(first[1]) > 10
    for name, gradient in first[1].items():
        scale = max(1.0, float(second[1][name].abs().max()))
        assert float((gradient - second[1][name]).abs().max()) <= 1e-5 * scale, name


@pytest.fixture
def attended(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Queries times keys of every call of torch's attention."""
    areas: list[int] = []
    whole = nn.functional.scaled_dot_product_attention

    def counted(query: Tensor, key: Tensor, *args: Any, **more: Any) -> Tensor:
        areas.append(query.shape[0] * query.shape[2] * key.shape[2])
        return whole(query, key, *args, **more)

    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", counted)
    return areas


def test_attention_in_blocks(attended: list[int]) -> None:
    """Against one text a sequence, and against a dense mask, which computes nearly twice as much."""
    settings: dict[str, Any] = {"max_new_tokens": 120, "architecture": {"max_position_embeddings": 1024}}
    apart = scored(make_tiny(share_prefix=False, **settings))
    dense_model, model = make_tiny(skip_hidden=False, **settings), make_tiny(**settings)
    model.log_prob(VALUES, PARENTS)  # what is tried once for this length
    attended.clear()
    dense = scored(dense_model)
    computed_dense = sum(attended)
    attended.clear()
    in_blocks = scored(model)
    assert_equal(in_blocks, apart)
    assert_equal(in_blocks, dense)
    assert 0.4 < sum(attended) / computed_dense < 0.7
    recomputing = make_tiny(gradient_checkpointing=True, **settings)
    assert_equal(scored(recomputing), apart)


def test_blocks_hold_what_their_queries_see() -> None:
    """[prompt 100 | one 60 | two 60] and a sequence whose second text begins 5 tokens later."""
    shared = [Completion((1,) * 100, (2,) * 60), Completion((1,) * 100, (3,) * 60)]
    later = [Completion((4,) * 100, (5,) * 65), Completion((4,) * 100, (6,) * 55)]
    packed = pack([*shared, *later], share_prefix=True, pad_token_id=0)
    length = packed.input_ids.shape[1]
    q, k = torch.arange(length)[:, None], torch.arange(length)[None]
    visible = torch.stack([packed.mask_function(lambda b, h, i, j: i >= j)(s, 0, q, k) for s in (0, 1)])
    found = blocks.blocks_of(visible, packed.segments)
    assert [(queries.start, queries.stop) for queries, _ in found] == [(0, 100), (100, 165), (165, 220)]
    assert [len(keys) for _, keys in found] == [100, 165, 100 + 60]
    for queries, keys in found:
        hidden = torch.ones(length, dtype=torch.bool)
        hidden[keys] = False
        assert not visible[:, queries][:, :, hidden].any()
    assert blocks.blocks_of(visible[:, :150, :150], packed.segments[:, :150]) == []  # too short to pay


def calls_of(function: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each time that an autograd function is applied from here on."""
    calls: list[int] = []
    apply = function.apply
    monkeypatch.setattr(function, "apply", lambda *given: (calls.append(1), apply(*given))[1])
    return calls


def test_adapters_in_one_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against PEFT's own layers; the reference is still the model without adapters."""
    theirs, ours = make_tiny(fuse_adapters=False), make_tiny()
    calls = calls_of(fused._Adapted, monkeypatch)
    expected = scored(theirs)
    assert calls == []
    actual = scored(ours)
    assert len(calls) == 2 * 7  # layers, and the linear ones in each
    assert_equal(actual, expected)
    calls.clear()
    reference = [component.reference_log_prob(VALUES, PARENTS) for component in (ours, theirs)]
    assert calls == []
    torch.testing.assert_close(*reference)


def test_only_plain_adapters_in_fp32_are_fused() -> None:
    lora = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
    assert fused.fuse(make_tiny(lora=lora, fuse_adapters=False).model) == 14
    assert fused.fuse(make_tiny(lora={**lora, "use_dora": True}, fuse_adapters=False).model) == 0
    assert fused.fuse(make_tiny(lora=lora, dtype="bfloat16", fuse_adapters=False).model) == 0


def test_norms_state_their_slope(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the model's own layers."""
    theirs, ours = make_tiny(fuse_norms=False), make_tiny()
    calls = calls_of(norms._Normed, monkeypatch)
    expected = scored(theirs)
    assert calls == []
    actual = scored(ours)
    assert len(calls) == 2 * 2 + 1  # two a layer, and the last
    assert_equal(actual, expected)


@pytest.mark.parametrize(("family", "name"), [("llama", "Llama"), ("qwen3", "Qwen3"), ("gemma3", "Gemma3")])
def test_a_norm_of_other_numbers_stays_as_it_is(family: str, name: str) -> None:
    made = getattr(import_module(f"transformers.models.{family}.modeling_{family}"), f"{name}RMSNorm")
    norm = made(12).requires_grad_(False)
    norm.weight.uniform_(0.5, 1.5)
    x = torch.randn(3, 5, 12, requires_grad=True)
    (expected,) = torch.autograd.grad((norm(x) * torch.arange(12.0)).sum(), x)
    assert norms.fuse_norms(nn.Sequential(norm)) == (0 if family == "gemma3" else 1)
    (actual,) = torch.autograd.grad((norm(x) * torch.arange(12.0)).sum(), x)
    torch.testing.assert_close(actual, expected)
    assert copy.deepcopy(norm)(x).equal(norm(x))
    norm.requires_grad_(True)
    assert "_Normed" not in type(norm(x).grad_fn).__name__  # its own forward, whose weight has a slope
