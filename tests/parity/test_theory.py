"""The claims of section 3 on tables: what has to hold exactly holds, what has to fail fails."""

import json
import math
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch

from sysdpo.errors import SettingError
from sysdpo.reporting.theory import write_theory_report
from sysdpo.tasks.theory.alignment import (
    DRAFTS,
    WEIGHTS,
    align,
    broken_support,
    check_joint_against_separate,
    check_perfect_alignment,
    full_support,
    least_loss,
    perfection_error,
    preferences,
    system_preferences,
)
from sysdpo.tasks.theory.approximation import approximation_error, importance_log_marginal
from sysdpo.tasks.theory.estimators import _every, _pairs, error_by_samples, sampled_margin, signal_by_length
from sysdpo.tasks.theory.rlhf import check_rlhf, maximise_rlhf
from sysdpo.tasks.theory.settings import TheorySettings
from sysdpo.tasks.theory.systems import log_marginal, single, two_stages
from sysdpo.training.objectives import Direct


def test_the_data_set_is_the_oracles_exact_expectation() -> None:
    """Of the pairs of a and c under p, w(a) : w(c) = 1 : 4 prefer a."""
    pairs = [p for p in preferences(WEIGHTS) if p.inputs["x"] == "p" and {p.chosen["z"], p.rejected["z"]} == {"a", "c"}]
    assert sum(p.chosen["z"] == "a" for p in pairs) / len(pairs) == 1 / 5
    by_z = {"a": 1, "b": 2, "c": 4}
    whole = [p for p in system_preferences(WEIGHTS, full_support(WEIGHTS)) if p.inputs["x"] == "p"]
    assert {(p.chosen["y"], p.chosen["z"]) for p in whole} == {(y, z) for y in DRAFTS for z in by_z}
    assert len(whole) == sum((by_z[p] * 4 for p, q in _ordered(by_z))) + 3 * 2


def _ordered(values: dict[str, int]) -> list[tuple[str, str]]:
    return [(p, q) for p in values for q in values if p != q]


def test_the_log_marginal_by_hand() -> None:
    """p(y) = (.5, .5), p(z | y) = (.9, .1), (.3, .7): p(z) = (.6, .4)."""
    system = two_stages(["x"], DRAFTS, ["a", "b"])
    with torch.no_grad():
        system.component("p_z").logits.copy_(torch.tensor([[0.9, 0.1], [0.3, 0.7]]).log())  # type: ignore[operator, union-attr]
    assert log_marginal(system, 1).exp()[0].tolist() == pytest.approx([0.6, 0.4])


def test_perfection_error_by_hand() -> None:
    """Weights 1, 2, 4 at beta 0.5 ask for p in 1 : 4 : 16; the uniform system is off by ln 16 under p, ln 9 under q."""
    inputs, answers = list(WEIGHTS), list(WEIGHTS["p"])
    assert perfection_error(single(inputs, answers), WEIGHTS, 0.5) == pytest.approx(math.log(16))
    logits = torch.tensor([[math.log(w) / 0.5 for w in weight.values()] for weight in WEIGHTS.values()])
    assert perfection_error(single(inputs, answers, logits), WEIGHTS, 0.5) == pytest.approx(0.0, abs=1e-6)


BETAS = [*(pytest.param(beta, marks=pytest.mark.slow) for beta in (0.1, 0.5, 1)), 2]


@lru_cache
def aligned(beta: float) -> dict[str, Any]:
    return {row["method"]: row for row in check_perfect_alignment([beta])}


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("method", ["dpo", "sysdpo_direct", "sysdpo_sampling_all_y"])
def test_beta_perfect_alignment(method: str, beta: float) -> None:
    row = aligned(beta)[method]
    assert row["log_ratio_error"] < 1e-3
    assert row["excess_loss"] == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("beta", BETAS)
def test_without_assumption_1_the_loss_is_least_and_the_system_is_not_aligned(beta: float) -> None:
    row = aligned(beta)["sysdpo_direct_without_assumption_1"]
    assert row["excess_loss"] == pytest.approx(0.0, abs=1e-5)
    assert row["log_ratio_error"] > 0.1


@pytest.mark.parametrize("beta", BETAS)
def test_sampling_over_all_intermediates_is_dpo_on_the_marginal(beta: float) -> None:
    ours, dpo = (torch.tensor(aligned(beta)[method]["log_marginal"]) for method in ("sysdpo_sampling_all_y", "dpo"))
    assert (ours - dpo).abs().max() < 1e-3


def test_a_reference_that_is_not_uniform_gives_its_ratio_times_the_oracles() -> None:
    """Equation 10: p* is proportional to p_ref w^(1 / beta), so definition 1 needs the uniform reference."""
    inputs, answers = list(WEIGHTS), list(WEIGHTS["p"])
    logits = torch.tensor([[0.5, -0.2, 0.1], [-1.0, 0.3, 0.0]])
    system = single(inputs, answers, logits)
    align(system, Direct(), preferences(WEIGHTS), 1.0)
    target = logits + torch.tensor([[math.log(w) for w in weight.values()] for weight in WEIGHTS.values()])
    assert torch.allclose(log_marginal(system, 2).float(), target.log_softmax(-1), atol=1e-3)


def test_the_broken_data_set_is_a_subset_of_the_full_one() -> None:
    broken, full = broken_support(WEIGHTS), full_support(WEIGHTS)
    for x in WEIGHTS:
        assert set(broken[x]) < set(full[x])
        assert {z for _, z in broken[x]} == set(WEIGHTS[x])
    assert least_loss(system_preferences(WEIGHTS, broken), WEIGHTS) > 0


def test_joint_alignment_reaches_what_separate_alignment_misses() -> None:
    result = check_joint_against_separate(0.5, seed=1)
    assert result["untrained"] == pytest.approx(0.5, abs=0.01)
    assert result["separate"] < 0.6
    assert result["joint"] > 0.99


class TestImportanceWeights:
    def test_by_hand(self) -> None:
        """Weights 1 and 3: mean 2. The jackknife: 2 ln 2 - (ln 1 + ln 3) / 2."""
        log_joint, log_proposal = torch.tensor([0.1, 0.6]).log(), torch.tensor([0.1, 0.2]).log()
        plain = importance_log_marginal(log_joint, log_proposal, correct=False)
        assert plain.item() == pytest.approx(math.log(2))
        corrected = importance_log_marginal(log_joint, log_proposal)
        assert corrected.item() == pytest.approx(2 * math.log(2) - math.log(3) / 2)
        assert importance_log_marginal(log_joint[:1], log_proposal[:1]).item() == pytest.approx(0.0, abs=1e-6)

    def test_the_mean_of_the_weights_is_unbiased_and_the_correction_lowers_the_bias_of_the_logarithm(self) -> None:
        generator = torch.Generator().manual_seed(0)
        prior = torch.randn(20, generator=generator).softmax(-1)
        likelihood = torch.rand(20, generator=generator)
        exact = (prior * likelihood).sum().log()
        drawn = torch.multinomial(prior.expand(20_000, -1), 4, replacement=True, generator=generator)
        joint, proposal = (prior * likelihood).log()[drawn], prior.log()[drawn]
        plain = importance_log_marginal(joint, proposal, correct=False)
        corrected = importance_log_marginal(joint, proposal)
        assert plain.exp().mean().item() == pytest.approx(exact.exp().item(), rel=0.01)
        assert abs(corrected.mean() - exact) < 0.5 * abs(plain.mean() - exact)


@pytest.mark.parametrize("beta", [0.1, 0.5, 2])
def test_the_maximum_of_rlhf_is_equation_10_and_perfect_from_a_uniform_reference(beta: float) -> None:
    """From another reference the ratios are those of the reference times the oracle's, at every beta."""
    for row in check_rlhf([beta], seed=0):
        assert row["equation_10_error"] < 1e-8, row
        assert row["objective_gap"] == pytest.approx(0.0, abs=1e-12)
        assert (row["log_ratio_error"] < 1e-8) == (row["reference"] == "uniform"), row


def test_rlhf_by_hand() -> None:
    """Weights 1, 2, 4 from a uniform reference at beta 1: p = 1/7, 2/7, 4/7; reached from one model and DPO alike."""
    system = single(["p"], ["a", "b", "c"])
    maximise_rlhf(system, {"p": WEIGHTS["p"]}, 1.0)
    assert log_marginal(system, 1).exp()[0].tolist() == pytest.approx([1 / 7, 2 / 7, 4 / 7])


class TestEstimators:
    SETTINGS = TheorySettings([1.0], [1, 2, 8, 64], drafts=64, lengths=[0, 32], repeats=40, seed=0)

    def test_the_exact_margin_and_gradient_are_those_of_automatic_differentiation(self) -> None:
        """Through the softmax of the logits themselves, in place of the score in closed form."""
        prior, likelihood, reference = _pairs(self.SETTINGS)
        exact = sampled_margin(prior, likelihood, reference, *_every(prior), False)
        logits = prior.clone().requires_grad_()
        policy = (logits.log_softmax(-1) + likelihood).logsumexp(-1) - reference.logsumexp(-1)
        margin = policy[0] - policy[1]
        (gradient,) = torch.autograd.grad(margin.sum(), logits)
        assert torch.allclose(exact.margin.double(), margin.detach(), atol=1e-5)
        assert torch.allclose(exact.gradient, gradient, atol=1e-5)
        assert gradient.norm(dim=-1).min() > 0.05

    def test_bias_and_variance_by_k(self) -> None:
        found = {(row["method"], row["k"]): row for row in error_by_samples(self.SETTINGS)}
        every = found["diverse_beam", 64]  # all values: nothing is left out
        assert every["margin_bias"] < 1e-5
        assert every["gradient_bias"] < 1e-5
        for method in ("diverse_beam", "monte_carlo", "importance"):
            assert found[method, 1]["gradient_share"] == pytest.approx(0.0, abs=1e-5)  # one sample has all the weight
        bias = [found["importance", k]["margin_bias"] for k in (2, 8, 64)]
        assert bias[0] > 2 * bias[1] > 2 * 2 * bias[2] * 0.5
        scatter = [found["importance", k]["gradient_sd"] for k in (8, 64)]
        assert scatter[1] == pytest.approx(scatter[0] * math.sqrt(8 / 64), rel=0.3)
        assert found["importance", 64]["gradient_share"] == pytest.approx(1.0, abs=0.06)
        assert found["importance", 64]["margin_bias"] < found["monte_carlo", 64]["margin_bias"]

    def test_equation_9_loses_the_gradient_with_length_and_importance_weights_keep_it(self) -> None:
        found = {(row["method"], row["length"]): row for row in signal_by_length(self.SETTINGS)}
        assert found["importance", 32]["gradient_share"] == pytest.approx(
            found["importance", 0]["gradient_share"], abs=0.12
        )
        assert found["monte_carlo", 32]["gradient_share"] < 0.5 * found["monte_carlo", 0]["gradient_share"]
        assert found["monte_carlo", 32]["effective_samples"] < 1.5 < found["importance", 32]["effective_samples"]
        assert found["monte_carlo", 32]["spread"] > 5 * found["monte_carlo", 0]["spread"]


def test_error_of_equation_6_falls_with_k_and_ends_with_enumeration(tmp_path: Path) -> None:
    settings = TheorySettings([1.0], [1, 4, 16], drafts=16, lengths=[0, 16], repeats=20, seed=0)
    rows = approximation_error(settings)
    by_method = {m: [r for r in rows if r["method"] == m] for m in dict.fromkeys(r["method"] for r in rows)}
    beams = by_method["diverse_beam"]
    assert beams[0]["rmse"] > beams[1]["rmse"] > beams[2]["rmse"]
    assert beams[2]["rmse"] < 1e-6
    assert beams[2]["margin_rmse"] < 1e-6
    for name in ("diverse_beam", "monte_carlo"):
        assert all(r["bias"] <= 1e-9 for r in by_method[name])  # a part of a sum of positive terms
    weighted = by_method["importance_weighted"]
    assert abs(weighted[1]["bias"]) < abs(by_method["monte_carlo"][1]["bias"])

    content = {
        "perfect_alignment": list(aligned(2).values()),
        "rlhf": check_rlhf([2], 0),
        "estimators": error_by_samples(settings),
        "draft_length": signal_by_length(settings),
        "joint_against_separate": [{"seed": 0, "untrained": 0.5, "separate": 0.5, "joint": 1.0}],
        "approximation": rows,
        "settings": {"drafts": 16},
    }
    (tmp_path / "table.json").write_text(json.dumps(content))
    text = write_theory_report(tmp_path).read_text()
    assert "| SysDPO-Direct, every (y, z) in the data |" in text
    assert "| RLHF (equation 7), two stages, uniform reference |" in text
    for name in ("approximation", "estimators", "draft_length"):
        assert f"figures/{name}.png" in text
        assert (tmp_path / "figures" / f"{name}.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"betas": [0.0]}, "betas"),
        ({"samples": [0]}, "samples"),
        ({"samples": [17]}, "drafts=16"),
        ({"repeats": 1}, "repeats=1"),
        ({"lengths": [-1]}, "lengths"),
    ],
)
def test_refusals(changes: dict, part: str) -> None:
    with pytest.raises(SettingError, match=part):
        TheorySettings(
            **{"betas": [1.0], "samples": [1], "drafts": 16, "lengths": [0], "repeats": 2, "seed": 0, **changes}
        )
