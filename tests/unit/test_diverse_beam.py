"""Diverse beam search against hand derivation, enumeration and teacher forcing on toy language models."""

import itertools
import math
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from sysdpo.errors import SettingError
from sysdpo.sampling.diverse_beam import BeamOutput, diverse_beam_search

END, PAD = 1, 0
PROMPT = torch.tensor([[2]])


def tiny_llama(vocab_size: int = 11, seed: int = 0, **overrides: Any) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.5,
        **overrides,
    )
    return LlamaForCausalLM(config).eval()


class Unigram(nn.Module):
    """A language model whose every next token has the same probabilities, whatever came before."""

    def __init__(self, probabilities: list[float]) -> None:
        super().__init__()
        self.log_probs = torch.tensor(probabilities).log()

    def forward(self, input_ids: Tensor, **_: Any) -> SimpleNamespace:
        logits = self.log_probs.expand(len(input_ids), 1, -1)
        return SimpleNamespace(logits=logits, past_key_values=SimpleNamespace(reorder_cache=lambda index: None))


def search(model: nn.Module, input_ids: Tensor, mask: Tensor | None = None, **settings: Any) -> BeamOutput:
    defaults: dict[str, Any] = {
        "num_beams": 2,
        "num_beam_groups": 2,
        "diversity_penalty": 1.0,
        "max_new_tokens": 2,
        "eos_token_id": END,
        "pad_token_id": PAD,
    }
    mask = torch.ones_like(input_ids) if mask is None else mask
    return diverse_beam_search(model, input_ids, mask, **(defaults | settings))


def until_end(sequence: list[int], ends: tuple[int, ...] = (END,)) -> list[int]:
    length = next((i + 1 for i, token in enumerate(sequence) if token in ends), len(sequence))
    return sequence[:length]


def teacher_forced(model: nn.Module, prompt: list[int], sequence: list[int]) -> float:
    """log p(sequence | prompt) by one plain forward."""
    with torch.no_grad():
        log_probs = model(torch.tensor([prompt + sequence])).logits[0].float().log_softmax(dim=-1)
    return sum(float(log_probs[len(prompt) - 1 + i, token]) for i, token in enumerate(sequence))


class TestPenalty:
    """By hand, p(A) = .6, p(B) = .3, p(end) = .1: ln .6 = -.511, ln .3 = -1.204."""

    A, B = 2, 3
    model = Unigram([0.0, 0.1, 0.6, 0.3])

    def test_second_group_turns_away_from_what_the_first_chose(self) -> None:
        # group 2: A costs .511 + 1 > 1.204, so B, for which nothing is paid
        found = search(self.model, PROMPT, diversity_penalty=1.0)
        assert found.sequences.tolist() == [[[self.A, self.A], [self.B, self.B]]]
        torch.testing.assert_close(found.log_probs, torch.tensor([[2 * math.log(0.6), 2 * math.log(0.3)]]))
        torch.testing.assert_close(found.scores, torch.tensor([[math.log(0.6), math.log(0.3)]]))
        assert not found.duplicate.any()

    def test_groups_that_meet_are_reported_and_pay_in_score_only(self) -> None:
        # group 2: A costs .511 + .5 < 1.204, at both steps
        found = search(self.model, PROMPT, diversity_penalty=0.5)
        assert found.sequences.tolist() == [[[self.A, self.A], [self.A, self.A]]]
        assert found.duplicate.tolist() == [[False, True]]
        torch.testing.assert_close(found.log_probs, torch.full((1, 2), 2 * math.log(0.6)))
        torch.testing.assert_close(found.scores, torch.tensor([[math.log(0.6), math.log(0.6) - 0.5]]))

    def test_every_earlier_choice_is_counted(self) -> None:
        # group 3: A costs .511 + 2 * .5 > 1.204 although once .5 was not enough for group 2
        found = search(self.model, PROMPT, num_beams=3, num_beam_groups=3, diversity_penalty=0.5)
        # scores: -.511, -1.011, -1.204
        assert found.sequences.tolist() == [[[self.A, self.A], [self.A, self.A], [self.B, self.B]]]
        assert found.duplicate.tolist() == [[False, True, False]]

    def test_earlier_steps_are_not_counted(self) -> None:
        # four steps of A in group 1 cost group 2 no more a step than one does: A at each, for .5 each
        found = search(self.model, PROMPT, diversity_penalty=0.5, max_new_tokens=4)
        assert found.sequences[0, 1].tolist() == [self.A] * 4
        torch.testing.assert_close(found.scores[0, 1], torch.tensor(math.log(0.6) - 0.5))


def test_ended_beam_gives_way_to_a_longer_better_one() -> None:
    """p(end) = .4, p(A) = .6: "end" scores ln .4, "A end" ln(.24)/2 = -.71, "A A" ln .6 = -.51."""
    model = Unigram([0.0, 0.4, 0.6])
    found = search(model, PROMPT, num_beam_groups=1, diversity_penalty=0.0)
    assert found.sequences.tolist() == [[[2, 2], [2, END]]]
    torch.testing.assert_close(found.scores, torch.tensor([[math.log(0.6), math.log(0.24) / 2]]))
    short = search(model, PROMPT, num_beam_groups=1, diversity_penalty=0.0, length_penalty=0.0)
    # with no reward for length the sums themselves are ranked: ln .4 > ln .36 > ln .24
    assert short.sequences.tolist() == [[[END, PAD], [2, 2]]]
    torch.testing.assert_close(short.scores, torch.tensor([[0.4, 0.36]]).log())


@pytest.mark.parametrize("length_penalty", [1.0, 0.5])
def test_enough_beams_find_exactly_all_sequences(length_penalty: float) -> None:
    """5 tokens, 3 steps: 1 + 4 + 16 sequences that end, 64 that do not; each scored by a plain forward."""
    model, prompt, steps = tiny_llama(vocab_size=5), [2, 4, 3], 3
    others = [token for token in range(5) if token != END]
    ended = [[*head, END] for length in range(steps) for head in itertools.product(others, repeat=length)]
    every = ended + [list(head) for head in itertools.product(others, repeat=steps)]
    assert len(every) == 85
    ranked = sorted(((teacher_forced(model, prompt, s) / len(s) ** length_penalty, s) for s in every), reverse=True)

    found = search(
        model,
        torch.tensor([prompt]),
        num_beams=85,
        num_beam_groups=1,
        diversity_penalty=0.0,
        max_new_tokens=steps,
        length_penalty=length_penalty,
    )
    assert [until_end(s) for s in found.sequences[0].tolist()] == [s for _, s in ranked]
    torch.testing.assert_close(found.scores[0], torch.tensor([score for score, _ in ranked]), atol=1e-5, rtol=0)
    assert not found.duplicate.any()


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_log_probs_are_the_models_own(groups: int) -> None:
    model, prompt, ends = tiny_llama(seed=1), [5, 3, 9, 2], (END, 7)
    found = search(
        model,
        torch.tensor([prompt]),
        num_beams=4,
        num_beam_groups=groups,
        diversity_penalty=2.0 if groups > 1 else 0.0,
        max_new_tokens=8,
        eos_token_id=list(ends),
    )
    sequences = [until_end(s, ends) for s in found.sequences[0].tolist()]
    expected = torch.tensor([teacher_forced(model, prompt, s) for s in sequences])
    torch.testing.assert_close(found.log_probs[0], expected, atol=1e-5, rtol=0)
    padding = [s[len(kept) :] for s, kept in zip(found.sequences[0].tolist(), sequences, strict=True)]
    assert all(token == PAD for tail in padding for token in tail)
    assert max(map(len, sequences)) == found.sequences.shape[-1]


@pytest.mark.parametrize(("beams", "groups"), [(1, 1), (3, 1), (3, 3), (4, 2)])
def test_batch_of_unequal_prompts_equals_each_alone(beams: int, groups: int) -> None:
    model, ends = tiny_llama(seed=2), (END, 3, 6)
    prompts = [[3, 8, 5, 2, 9, 4], [7], [2, 6, 6], [9, 9, 4, 10]]
    settings: dict[str, Any] = {
        "num_beams": beams,
        "num_beam_groups": groups,
        "diversity_penalty": 1.5 if groups > 1 else 0.0,
        "max_new_tokens": 9,
        "eos_token_id": ends,
    }
    width = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    together = search(model, ids, mask, **settings)
    lengths = []
    for i, prompt in enumerate(prompts):
        alone = search(model, torch.tensor([prompt]), **settings)
        expected = [until_end(s, ends) for s in alone.sequences[0].tolist()]
        assert [until_end(s, ends) for s in together.sequences[i].tolist()] == expected
        torch.testing.assert_close(together.log_probs[i], alone.log_probs[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(together.scores[i], alone.scores[0], atol=1e-5, rtol=0)
        lengths.append(max(map(len, expected)))
    assert len(set(lengths)) > 1, "the prompts should end at different steps for this test to mean something"


def test_one_forward_a_step_and_one_prefill_a_prompt() -> None:
    """Beams cost a line from the second step on; a group that has finished costs nothing any more."""
    model, ends = tiny_llama(seed=2), (END, 3, 6)
    shapes: list[tuple[int, ...]] = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    ids = torch.tensor([[3, 8, 5], [7, 2, 6]])
    found = search(model, ids, num_beams=3, num_beam_groups=3, max_new_tokens=9, eos_token_id=ends)
    lengths = [len(until_end(s, ends)) for s in found.sequences.flatten(0, 1).tolist()]
    assert min(lengths) < 9
    # groups of one beam are greedy, so each costs a line for every token after its first
    assert shapes == [(2, 3)] + [
        (rows, 1) for step in range(1, 9) if (rows := sum(length > step for length in lengths))
    ]


def test_peft_model_is_searched_with_its_adapter() -> None:
    model, ids = tiny_llama(seed=3), torch.tensor([[4, 2, 8]])
    adapted = peft.get_peft_model(
        tiny_llama(seed=3), peft.LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    )
    found = search(adapted, ids, max_new_tokens=6)
    with adapted.disable_adapter():
        off = search(adapted, ids, max_new_tokens=6)
    plain = search(model, ids, max_new_tokens=6)
    torch.testing.assert_close(off.log_probs, plain.log_probs)
    assert off.sequences.tolist() == plain.sequences.tolist()
    merged = search(adapted.merge_and_unload(), ids, max_new_tokens=6)
    torch.testing.assert_close(found.log_probs, merged.log_probs, atol=1e-4, rtol=0)
    assert (found.log_probs - plain.log_probs).abs().max() > 0.01


def test_mode_is_eval_inside_and_restored_outside() -> None:
    model, ids = tiny_llama(seed=4, attention_dropout=0.9), torch.tensor([[4, 2, 8]])
    expected = search(model, ids, max_new_tokens=6)
    model.train()
    model.model.layers[0].eval()  # a mixed state must come back as it was
    modes = [module.training for module in model.modules()]
    found = search(model, ids, max_new_tokens=6)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(found.sequences, expected.sequences)
    assert torch.equal(found.log_probs, expected.log_probs)


def test_half_precision_model_gets_full_precision_log_probs() -> None:
    model, ids = tiny_llama(seed=5).bfloat16(), torch.tensor([[4, 2, 8]])
    found = search(model, ids, num_beam_groups=1, diversity_penalty=0.0, max_new_tokens=1)
    with torch.no_grad():
        expected = model(ids).logits[0, -1].float().log_softmax(dim=-1).topk(2)
    assert found.log_probs.dtype == torch.float32
    torch.testing.assert_close(found.log_probs[0], expected.values)
    assert found.sequences[0, :, 0].tolist() == expected.indices.tolist()


def test_places_that_nothing_can_fill_are_reported() -> None:
    """Only A and end have any probability: 1 step has 2 sequences, though 4 tokens promise more."""
    found = search(
        Unigram([0.0, 0.3, 0.7, 0.0]),
        PROMPT,
        num_beams=3,
        num_beam_groups=1,
        diversity_penalty=0.0,
        max_new_tokens=1,
        pad_token_id=9,
    )
    assert found.sequences.tolist() == [[[2], [END], [9]]]
    assert found.duplicate.tolist() == [[False, False, True]]
    assert found.log_probs[0, 2] == -math.inf


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_beams": 0}, "num_beams=0: a search needs at least 1 beam"),
        ({"max_new_tokens": 0}, "max_new_tokens=0: "),
        ({"num_beam_groups": 3}, "num_beam_groups=3: num_beams=2 can form 1 to 2 groups"),
        ({"num_beam_groups": 0}, "num_beam_groups=0: "),
        ({"num_beams": 5}, "num_beam_groups=2: groups are of equal size, so num_beams=5 must be a multiple"),
        ({"diversity_penalty": -1.0}, "diversity_penalty=-1.0: must be a finite number, 0 or more"),
        ({"diversity_penalty": math.nan}, "diversity_penalty=nan: "),
        # end, A end, B end, AA, AB, BA, BB
        (
            {"num_beams": 8},
            "num_beams=8: only 7 sequences exist with 3 tokens to choose from and max_new_tokens=2",
        ),
        ({"eos_token_id": 3}, "eos_token_id=3: the model knows tokens 0 to 2 only"),
        ({"eos_token_id": [0, 1, 2]}, r"eos_token_id=\[0, 1, 2\]: leaves no token that goes on"),
    ],
)
def test_bad_settings_are_refused_in_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message) as caught:
        search(Unigram([0.5, 0.3, 0.2]), PROMPT, **settings)
    assert "\n" not in str(caught.value)


def test_as_many_beams_as_sequences_are_not_refused() -> None:
    found = search(Unigram([0.5, 0.3, 0.2]), PROMPT, num_beams=7, num_beam_groups=1, diversity_penalty=0.0)
    assert not found.duplicate.any()


def test_right_padded_prompts_are_refused() -> None:
    with pytest.raises(ValueError, match="pad the prompts on the left"):
        search(tiny_llama(), torch.tensor([[4, 2, 0]]), torch.tensor([[1, 1, 0]]))
