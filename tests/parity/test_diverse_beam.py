"""Diverse beam search against transformers: group beam search as recorded, beam search as installed."""

import json
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from sysdpo.components.weights import pretrained_folder
from sysdpo.errors import SettingError
from sysdpo.sampling.diverse_beam import BeamOutput, diverse_beam_search

GOLDEN = Path(__file__).parents[3] / "shared" / "data" / "dbs_golden.json"
CASES: list[dict[str, Any]] = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else []
SETTINGS = ("num_beams", "num_beam_groups", "diversity_penalty", "max_new_tokens", "eos_token_id")
PAD = 2

needs_golden = pytest.mark.skipif(not CASES, reason="needs shared/data/dbs_golden.json beside the repository")


@pytest.fixture(scope="module")
def smollm2() -> nn.Module:
    try:
        folder = pretrained_folder("smollm2_135m")
    except SettingError as error:
        pytest.skip(str(error))
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def run(model: nn.Module, cases: list[dict[str, Any]]) -> BeamOutput:
    """All `cases` as one left-padded batch; they share their settings."""
    width = max(len(case["input_ids"]) for case in cases)
    ids = [[PAD] * (width - len(case["input_ids"])) + case["input_ids"] for case in cases]
    mask = [[0] * (width - len(case["input_ids"])) + [1] * len(case["input_ids"]) for case in cases]
    settings = {name: cases[0][name] for name in SETTINGS}
    return diverse_beam_search(model, torch.tensor(ids), torch.tensor(mask), pad_token_id=PAD, **settings)


def until_end(sequence: list[int], ends: Iterable[int]) -> list[int]:
    length = next((i + 1 for i, token in enumerate(sequence) if token in ends), len(sequence))
    return sequence[:length]


def assert_golden(found: BeamOutput, row: int, case: dict[str, Any]) -> None:
    ends = [case["eos_token_id"]]
    expected = [until_end(sequence, ends) for sequence in case["sequences"]]
    assert [until_end(sequence, ends) for sequence in found.sequences[row].tolist()] == expected
    # The recording and this run round differently: up to 1e-5 nats a token, 24 tokens.
    log_probs, scores = torch.tensor(case["sequence_log_probs"]), torch.tensor(case["sequences_scores"])
    torch.testing.assert_close(found.log_probs[row], log_probs, atol=5e-4, rtol=0)
    torch.testing.assert_close(found.scores[row], scores, atol=5e-5, rtol=0)
    repeated = [sequence in expected[:i] for i, sequence in enumerate(expected)]
    assert found.duplicate[row].tolist() == repeated


@needs_golden
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['prompt'][:20]}-{case['num_beams']}")
def test_each_golden_prompt_alone(smollm2: nn.Module, case: dict[str, Any]) -> None:
    assert_golden(run(smollm2, [case]), 0, case)


@needs_golden
@pytest.mark.parametrize("settings", sorted({tuple(case[name] for name in SETTINGS) for case in CASES}))
def test_golden_prompts_as_one_padded_batch(smollm2: nn.Module, settings: tuple[Any, ...]) -> None:
    cases = [case for case in CASES if tuple(case[name] for name in SETTINGS) == settings]
    assert len({len(case["input_ids"]) for case in cases}) > 1
    found = run(smollm2, cases)
    for row, case in enumerate(cases):
        assert_golden(found, row, case)


class WaveModel(nn.Module):
    """Logits that depend on the position and the last token by a formula that any library can be given."""

    def __init__(self, seed: int, vocab_size: int, scale: float, end_bias: float) -> None:
        super().__init__()
        self.seed, self.scale, self.end_bias = seed, scale, end_bias
        self.tokens = torch.arange(vocab_size, dtype=torch.float64)

    def forward(self, input_ids: Tensor, position_ids: Tensor, **_: Any) -> SimpleNamespace:
        position, last, following = position_ids[..., None], input_ids[..., None], self.tokens
        angle = 1.3 * position + 2.1 * last * (following + 1) + 0.7 * following**2 + self.seed
        logits = self.scale * angle.sin()
        logits[..., 1] += self.end_bias
        cache = SimpleNamespace(reorder_cache=lambda index: None)
        return SimpleNamespace(logits=logits[:, -1:].float(), past_key_values=cache)


WAVES = [
    # (seed, vocabulary, scale, end bias), (beams, groups, penalty, length penalty, steps), sequences, scores.
    # Recorded with transformers 4.55.4, prompt [2, 4], end and padding 1. Between them they notice a
    # search that counts an ending below the best `size`, stops at the first ending or never, takes the wrong
    # bound for stopping, forgets that finished groups count as choosing the padding, counts a repeated choice
    # once, looks at too few tokens under the penalty, forgets unfinished beams, or does not count the end
    # token in the length.
    (
        (370, 8, 2.0, 0.0),
        (3, 3, 1.0, 1.0, 6),
        [[7, 5, 6, 7, 0, 1], [7, 1], [0, 0, 4, 4, 3, 3]],
        [-1.058239, -1.413837, -1.423275],
    ),
    (
        (11, 6, 1.0, 1.0),
        (4, 2, 0.5, 2.0, 6),
        [[2, 4, 5, 3, 2, 4], [2, 4, 5, 0, 2, 4], [0, 1], [0, 3, 1]],
        [-0.246300, -0.246485, -0.493225, -0.501378],
    ),
    (
        (204, 8, 1.0, 0.0),
        (4, 2, 1.0, 2.0, 6),
        [[2, 2, 4, 5, 6, 7], [2, 2, 4, 5, 6, 2], [6, 7, 7, 5, 3, 4], [6, 7, 7, 5, 3, 5]],
        [-0.222144, -0.224685, -0.301622, -0.302555],
    ),
    ((49, 8, 1.0, 1.0), (2, 1, 0.0, 2.0, 5), [[0, 1], [7, 1]], [-0.668179, -0.710072]),
    ((51, 8, 2.0, 0.0), (2, 2, 3.0, 1.0, 5), [[1], [5, 6, 7, 0, 1]], [-1.033821, -1.144659]),
    ((56, 8, 1.0, 1.0), (2, 1, 0.0, 2.0, 4), [[7, 7, 1], [7, 1]], [-0.479472, -0.491038]),
]


@pytest.mark.parametrize(("model", "settings", "sequences", "scores"), WAVES)
def test_corners_of_the_recorded_search(
    model: tuple[int, int, float, float],
    settings: tuple[int, int, float, float, int],
    sequences: list[list[int]],
    scores: list[float],
) -> None:
    num_beams, groups, penalty, length_penalty, steps = settings
    prompt = torch.tensor([[2, 4]])
    found = diverse_beam_search(
        WaveModel(*model),
        prompt,
        torch.ones_like(prompt),
        num_beams=num_beams,
        num_beam_groups=groups,
        diversity_penalty=penalty,
        max_new_tokens=steps,
        eos_token_id=1,
        pad_token_id=1,
        length_penalty=length_penalty,
    )
    assert [until_end(sequence, [1]) for sequence in found.sequences[0].tolist()] == sequences
    torch.testing.assert_close(found.scores[0], torch.tensor(scores), atol=3e-6, rtol=0)


@pytest.mark.parametrize("seed", range(8))
def test_one_group_is_transformers_beam_search(seed: int) -> None:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=13,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.4,
    )
    model = LlamaForCausalLM(config).eval()
    prompts = torch.randint(3, 13, (5, 4))
    mask = torch.ones_like(prompts)
    mask[0, :3] = mask[1, :1] = 0
    num_beams, length_penalty = 2 + seed % 3, (1.0, 0.0, 2.0)[seed % 3]
    # So many end tokens that the best 2 * num_beams candidates can leave too few beams to go on with.
    ends = [1, 5, 6, 7, 8, 9] if seed % 2 else [1]
    expected = model.generate(
        prompts,
        attention_mask=mask,
        num_beams=num_beams,
        num_return_sequences=num_beams,
        max_new_tokens=10,
        eos_token_id=ends,
        pad_token_id=1,
        length_penalty=length_penalty,
        do_sample=False,
        early_stopping=False,
        return_dict_in_generate=True,
        output_scores=True,
    )
    found = diverse_beam_search(
        model,
        prompts,
        mask,
        num_beams=num_beams,
        num_beam_groups=1,
        diversity_penalty=0.0,
        max_new_tokens=10,
        eos_token_id=ends,
        pad_token_id=1,
        length_penalty=length_penalty,
    )
    assert found.sequences.flatten(0, 1).tolist() == expected.sequences[:, prompts.shape[1] :].tolist()
    torch.testing.assert_close(found.scores.flatten(), expected.sequences_scores, atol=1e-5, rtol=0)
