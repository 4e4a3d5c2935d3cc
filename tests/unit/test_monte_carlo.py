"""Ancestral sampling: no dependence on the batch, the right frequencies, the nucleus by brute force, greedy search."""

import itertools
from collections import Counter

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from sysdpo.errors import SettingError
from sysdpo.sampling.monte_carlo import NUCLEUS, MonteCarlo, ancestral_sample, choose_tokens

END, PAD = 1, 0
PROMPTS = [[2, 3], [4], [5, 6, 2, 7, 3]]


def llama(vocab_size: int = 8, seed: int = 0, spread: float = 0.6) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=spread,
        bos_token_id=None,
        eos_token_id=END,
        pad_token_id=PAD,
    )
    return LlamaForCausalLM(config).eval()


def padded(prompts: list[list[int]]) -> tuple[Tensor, Tensor]:
    width = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    return ids, mask


def sample(
    model: LlamaForCausalLM,
    prompts: list[list[int]],
    seeds: list[int],
    n: int = 1,
    steps: int = 12,
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> list[list[list[int]]]:
    return ancestral_sample(
        model,
        *padded(prompts),
        n=n,
        seeds=seeds,
        temperature=temperature,
        top_p=top_p,
        max_new_tokens=steps,
        eos_token_id=END,
    )


@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_a_row_depends_on_its_seed_alone(top_p: float) -> None:
    model = llama()
    together = sample(model, PROMPTS * 4, list(range(12)), n=3, top_p=top_p)
    lengths = {len(tokens) for row in together for tokens in row}
    assert len(lengths) > 3  # rows end at different steps, so that finished ones are dropped on the way
    for i, prompt in enumerate(PROMPTS * 4):
        assert sample(model, [prompt], [i], n=3, top_p=top_p)[0] == together[i]


def test_more_draws_keep_the_first_ones() -> None:
    model = llama()
    assert sample(model, PROMPTS, [7, 8, 9], n=5)[1][:2] == sample(model, PROMPTS, [7, 8, 9], n=2)[1]


def test_draws_end_with_the_end_token_or_at_the_limit() -> None:
    for row in sample(llama(), PROMPTS, [1, 2, 3], n=40, steps=6):
        for tokens in row:
            assert END not in tokens[:-1]
            assert len(tokens) == 6 or tokens[-1] == END


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_frequencies_are_the_models_probabilities(temperature: float) -> None:
    """All sequences of at most two tokens, enumerated; Pearson's statistic against its 0.001 quantile."""
    model, draws = llama(vocab_size=5), 4000
    prompt = [2, 3, 4]

    def next_probabilities(tokens: list[int]) -> list[float]:
        with torch.no_grad():
            return (model(torch.tensor([prompt + tokens])).logits[0, -1] / temperature).softmax(-1).tolist()

    expected: dict[tuple[int, ...], float] = {}
    first = next_probabilities([])
    for a in range(5):
        if a == END:
            expected[(END,)] = first[END]
            continue
        for b, p in enumerate(next_probabilities([a])):
            expected[(a, b)] = first[a] * p
    counts = Counter(
        tuple(tokens) for tokens in sample(model, [prompt], [5], n=draws, steps=2, temperature=temperature)[0]
    )
    assert set(counts) <= set(expected)
    common = {k: p for k, p in expected.items() if p * draws >= 5}
    statistic = sum((counts[k] - draws * p) ** 2 / (draws * p) for k, p in common.items())
    rest = 1 - sum(common.values())
    degrees = len(common)
    assert rest * draws < 100
    assert statistic < degrees + 3.1 * (2 * degrees) ** 0.5 + 4  # the upper 0.001 quantile of chi-square, roughly


def test_seeds_of_different_rows_are_not_correlated() -> None:
    """Neighbouring seeds, one draw each: as many repeats as independent draws have."""
    model = llama(vocab_size=5)
    with torch.no_grad():
        p = model(torch.tensor([[2, 3]])).logits[0, -1].softmax(-1)
    drawn = [row[0][0] for row in sample(model, [[2, 3]] * 2000, list(range(2000)), steps=1)]
    for token, q in enumerate(p.tolist()):
        assert abs(drawn.count(token) / 2000 - q) < 4 * (q * (1 - q) / 2000) ** 0.5 + 1e-3
    equal = sum(a == b for a, b in itertools.pairwise(drawn)) / 1999
    assert abs(equal - float((p**2).sum())) < 0.05


class TestNucleus:
    @staticmethod
    def brute_force(logits: Tensor, temperature: float, top_p: float) -> Tensor:
        p = (logits.double() / temperature).softmax(-1)
        kept, total = torch.zeros_like(p), 0.0
        for i in p.argsort(descending=True).tolist():
            if total >= top_p:
                break
            kept[i], total = p[i], total + float(p[i])
        return kept / kept.sum()

    @pytest.mark.parametrize("vocabulary", [20, 4 * NUCLEUS])
    @pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.999])
    @pytest.mark.parametrize("spread", [0.1, 3.0])
    def test_against_brute_force(self, vocabulary: int, top_p: float, spread: float) -> None:
        """Flat logits over 512 tokens make a nucleus wider than the first look."""
        torch.manual_seed(0)
        logits = spread * torch.randn(vocabulary)
        expected = self.brute_force(logits, 0.8, top_p)
        grid = (torch.arange(20_000) + 0.5) / 20_000  # inverting the distribution function on a grid gives it back
        tokens = choose_tokens(logits.expand(len(grid), -1), grid, 0.8, top_p)
        share = torch.bincount(tokens, minlength=vocabulary) / len(grid)
        assert (share - expected).abs().max() < 1.1e-4
        assert share[expected == 0].sum() == 0

    def test_rows_with_narrow_and_wide_nuclei_together(self) -> None:
        narrow, wide = torch.zeros(300), torch.zeros(300)
        narrow[17] = 50.0
        tokens = choose_tokens(torch.stack([narrow, wide, narrow]), torch.tensor([0.3, 0.999, 0.999]), 1.0, 0.99)
        assert tokens[0] == tokens[2] == 17
        assert tokens[1] != 17

    @pytest.mark.parametrize("uniform", [0.0, 1 - 2**-24])
    def test_the_ends_of_the_unit_interval_never_choose_the_impossible(self, uniform: float) -> None:
        logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 1.0, -torch.inf]])
        for top_p in (1.0, 0.999):
            assert choose_tokens(logits, torch.tensor([uniform]), 1.0, top_p).item() in (1, 3)


def test_temperature_zero_is_transformers_greedy_search() -> None:
    model = llama(vocab_size=30)
    ids, mask = padded(PROMPTS)
    golden = model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=12)[:, ids.shape[1] :].tolist()
    ours = [row[0] for row in sample(model, PROMPTS, [0, 0, 0], temperature=0)]
    for expected, tokens in zip(golden, ours, strict=True):
        assert expected[: len(tokens)] == tokens
        assert len(tokens) == 12 or tokens[-1] == END


def test_distinct_drops_repeats_and_keeps_the_order() -> None:
    model, (ids, mask) = llama(), padded(PROMPTS)
    settings = {"n": 60, "seeds": [1, 2, 3], "max_new_tokens": 2, "eos_token_id": END, "pad_token_id": PAD}
    every = MonteCarlo(distinct=False).draw(model, ids, mask, **settings)
    assert [len(row) for row in every] == [60] * 3
    once = MonteCarlo(distinct=True).draw(model, ids, mask, **settings)
    assert once == [[list(t) for t in dict.fromkeys(map(tuple, row))] for row in every]
    assert all(1 < len(row) < 60 for row in once)
    assert [len(row) for row in MonteCarlo(temperature=0).draw(model, ids, mask, **settings)] == [1, 1, 1]


@pytest.mark.parametrize("settings", [{"temperature": -0.1}, {"top_p": 0.0}, {"top_p": 1.1}])
def test_refusals(settings: dict[str, float]) -> None:
    with pytest.raises(SettingError, match=next(iter(settings))):
        MonteCarlo(**settings)
