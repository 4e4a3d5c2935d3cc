"""Every architecture's scores and samples are its own: packed, padded and cached as alone, or that way is not taken.

The expected numbers are bare forwards of transformers: one text a call, no mask, no positions, no cache.
"""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from sysdpo.components.text.codec import Prompt, byte_tokenizer
from sysdpo.components.text.language_model import LanguageModel
from sysdpo.components.text.packing import Completion
from sysdpo.components.text.probe import bare_logits
from sysdpo.errors import SettingError
from sysdpo.sampling.monte_carlo import MonteCarlo
from sysdpo.sampling.strategies import DiverseBeam
from tests.architectures import ARCHITECTURES, BASE, OUTCOMES, SAMPLES, build, table
from tests.conftest import ROOT

# two prompts of different lengths, both longer than the windows of 8, with completions that leave them behind
PROMPTS = [tuple(range(10, 22)), tuple(range(30, 47))]
COMPLETIONS = [
    Completion(prompt, tuple(range(start, start + size)))
    for prompt in PROMPTS
    for start, size in ((60, 14), (90, 5), (120, 11))
]
PARENTS = [{"x": "a?"}, {"x": "a longer question"}, {"x": "b!"}]


def component(name: str) -> LanguageModel:
    return LanguageModel(build(name), byte_tokenizer(), Prompt("{x}"), max_new_tokens=6)


def bare(model: LanguageModel, completions: Sequence[Completion]) -> torch.Tensor:
    sums = []
    with torch.no_grad():
        for prompt, tokens in completions:
            log_probs = bare_logits(model.causal_lm, [*prompt, *tokens])[len(prompt) - 1 : -1].log_softmax(-1)
            sums.append(log_probs[torch.arange(len(tokens)), list(tokens)].sum())
    return torch.stack(sums)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_scores_and_samples_are_the_models_own(name: str) -> None:
    if OUTCOMES[name] == "refused":
        with pytest.raises(SettingError, match="no causal language model"):
            component(name)
        return
    model = component(name)
    assert f"{'packed' if model.share_prefix else 'plain'}, {SAMPLES[model.decoding]}" == OUTCOMES[name]
    with torch.no_grad():
        scores = model.score(COMPLETIONS)
    assert torch.allclose(scores, bare(model, COMPLETIONS), rtol=1e-4, atol=1e-4)
    for strategy in (DiverseBeam(diversity_penalty=2.0), MonteCarlo()):
        together = model.sample(PARENTS, 3, [1, 2, 3], strategy)
        alone = [model.sample([row], 3, [seed], strategy)[0] for row, seed in zip(PARENTS, (1, 2, 3), strict=True)]
        assert together == alone, strategy
        assert all(len(row) > 1 for row in together)


def test_texts_end_where_a_batch_would_change_each_other() -> None:
    """LongRoPE turns every text of a batch by the factors of the longest."""
    longrope = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [3.0] * 4}
    keys = {**BASE, "rope_scaling": longrope, "original_max_position_embeddings": 32}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("phi3", **keys)).eval()
    component = LanguageModel(model, byte_tokenizer(), Prompt("{x}"), max_new_tokens=6)
    assert component.codec.max_length == 32
    with pytest.raises(SettingError, match="context of 32"):
        component.check_row({"x": "a question of more than that"})


def test_the_page_shows_what_the_tests_find() -> None:
    """`python -m tests.architectures` writes it again."""
    assert (ROOT / "docs" / "architectures.md").read_text(encoding="utf-8") == table()


def test_a_window_beyond_the_first_probe_is_found_before_it_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """GPT-Neo's window of 256 lies inside its layers, where no mask reaches: 64 tokens do not show it, 300 do."""
    monkeypatch.setitem(ARCHITECTURES, "gpt_neo", {**ARCHITECTURES["gpt_neo"], "window_size": 100, "n_positions": 512,
                                                   "max_position_embeddings": 512})  # fmt: skip
    model = component("gpt_neo")
    assert model.share_prefix
    prompt = tuple(i % 250 + 3 for i in range(40))
    long = [Completion(prompt, tuple(i % 200 + start for i in range(60))) for start in (10, 20, 30, 40)]
    with torch.no_grad():
        scores = model.score(long)
    assert not model.share_prefix
    assert torch.allclose(scores, bare(model, long), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits_are_probed_in_32_and_come_back_unchanged(dtype: torch.dtype) -> None:
    model = build("gemma2").to(dtype)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    found = LanguageModel(model, byte_tokenizer(), Prompt("{x}"), max_new_tokens=4)
    assert (found.share_prefix, found.head_on_completions, found.decoding) == (True, False, "padded")
    for name, parameter in model.named_parameters():
        assert parameter.dtype == before[name].dtype, name
        assert torch.equal(parameter, before[name]), name
