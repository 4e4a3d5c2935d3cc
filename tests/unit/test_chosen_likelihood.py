"""training.nll_weight: the chosen side's likelihood, over the variables that have one."""

from pathlib import Path
from typing import Any

import pytest
import torch

from sysdpo.errors import SettingError
from sysdpo.sampling.monte_carlo import MonteCarlo
from sysdpo.sampling.strategies import Sampler
from sysdpo.training.loop import Trainer, TrainingSettings
from sysdpo.training.objectives import Direct, Sampling
from tests.image_systems import make_image_pairs, make_llm_diffusion
from tests.systems import make_pairs_for, make_two_llm, perturb

SETTINGS: dict[str, Any] = {
    "steps": 1,
    "batch_size": 2,
    "micro_batch_size": 2,
    "learning_rate": 1e-3,
    "beta": 0.1,
    "nll_weight": 0.5,
}


def test_its_gradient_is_that_of_the_negative_log_likelihood(tmp_path: Path) -> None:
    system = make_llm_diffusion()
    pairs = make_image_pairs(2)
    perturb(system.component("captioner"))
    trainer = Trainer(system, Direct(), pairs, [], TrainingSettings(**SETTINGS), tmp_path)
    plain = Trainer(system, Direct(), pairs, [], TrainingSettings(**{**SETTINGS, "nll_weight": 0.0}), tmp_path)
    losses = [each.micro_batch(pairs, [0, 1])[0] for each in (trainer, plain)]
    difference = (losses[0] - losses[1]).sum()
    nll = -system.log_prob([p.row("chosen") for p in pairs])["y"].sum()
    parameters = [p for p in system.component("captioner").parameters() if p.requires_grad]
    for own, other in zip(
        torch.autograd.grad(difference, parameters), torch.autograd.grad(0.5 * nll, parameters), strict=True
    ):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5)
    unet = [p for p in system.component("diffusion").parameters() if p.requires_grad]
    assert not any(
        g is not None and bool(g.any())
        for g in torch.autograd.grad(
            Direct().compare(system, pairs, [0, 1]).chosen_likelihood.sum(), unet, allow_unused=True
        )
    )


def test_sampled_intermediates_are_not_fitted() -> None:
    """The chosen answer is fitted under each sample by the sample's posterior weight; what drew the samples is not."""
    system = make_two_llm()
    perturb(system.component("psi2"))
    pairs, seeds = make_pairs_for(system, 2), [0, 1]
    sampling = Sampling(Sampler(draw=MonteCarlo(), k=2))
    parameters = [p for p in system.parameters() if p.requires_grad]
    own = torch.autograd.grad(
        sampling.compare(system, pairs, seeds).chosen_likelihood.sum(), parameters, allow_unused=True
    )
    fitted = torch.zeros(())
    for pair, samples in zip(pairs, sampling.draw(system, pairs, seeds), strict=True):
        terms = system.log_prob([{**pair.row("chosen"), **sample} for sample in samples])
        fitted = fitted + ((terms["y"] + terms["z"]).softmax(0).detach() * terms["z"]).sum()
    expected = torch.autograd.grad(fitted, parameters, allow_unused=True)
    for parameter, mine, other in zip(parameters, own, expected, strict=True):
        zero = torch.zeros_like(parameter)
        torch.testing.assert_close(
            mine if mine is not None else zero, other if other is not None else zero, rtol=1e-4, atol=1e-5
        )


def test_what_cannot_be_asked() -> None:
    with pytest.raises(SettingError, match="nll_weight=-1"):
        TrainingSettings(**{**SETTINGS, "nll_weight": -1})
