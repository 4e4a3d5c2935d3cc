"""How far training can move outputs: the bound against torch's own AdamW, against real layers, and in a plan."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from peft.tuners.lora import LoraLayer
from torch import nn

from sysdpo.paths import CONF
from sysdpo.planning.plan import make_plan
from sysdpo.planning.text import render
from sysdpo.training.loop import TrainingSettings
from sysdpo.training.reach import adam_reach, in_words, reach, reaches
from tests.systems import make_tiny, make_two_llm

B1, B2 = 0.9, 0.999


def moved(gradients: torch.Tensor, rate: float) -> list[float]:
    """How far torch's AdamW moves one entry in each update."""
    entry = nn.Parameter(torch.zeros((), dtype=torch.float64))
    optimizer = torch.optim.AdamW([entry], lr=rate, weight_decay=0.0, eps=1e-30)
    path = [0.0]
    for gradient in gradients.double():
        entry.grad = gradient.clone()
        optimizer.step()
        path.append(float(entry.detach()))
    return [abs(b - a) for a, b in pairwise(path)]


@pytest.mark.parametrize("steps", [1, 2, 10, 100])
def test_no_gradients_move_an_entry_farther_and_the_worst_ones_as_far(steps: int) -> None:
    """The bound of an update is reached by gradients that grow by b2 / b1 from one to the next (Cauchy, Schwarz)."""
    last = adam_reach([0.1] * steps) - adam_reach([0.1] * (steps - 1))
    worst = torch.tensor([(B2 / B1) ** t for t in range(steps)])
    assert moved(worst, 0.1)[-1] == pytest.approx(last, rel=1e-9)
    generator = torch.Generator().manual_seed(steps)
    for scale in (0.1, 1.0, 4.0):  # from even to wild
        wild = (scale * torch.randn(steps, generator=generator)).exp() * torch.randn(steps, generator=generator).sign()
        assert sum(moved(wild, 0.1)) <= adam_reach([0.1] * steps) + 1e-12
    assert sum(moved(torch.ones(steps), 0.1)) == pytest.approx(0.1 * steps)  # one size and sign: the rate itself


def test_the_factor_of_an_update() -> None:
    """1 at the first; by the formula of the module at the second and the hundredth."""
    assert adam_reach([1.0]) == pytest.approx(1.0)
    second = 0.1 / 0.19 * math.sqrt(0.001999 / 0.001) * math.sqrt(1 + 0.81 / 0.999)
    assert adam_reach([0.0, 1.0]) == pytest.approx(second)
    assert adam_reach([0.0] * 99 + [1.0]) == pytest.approx(2.24, abs=0.01)


def test_a_layer_moves_by_no_more_than_its_reach_and_can_come_near() -> None:
    """All of B at its limit, with the signs that add up for one input: no output of that layer exceeds the share."""
    entry = 0.01
    component = make_tiny("{x}", seed=1)
    layers = [m for n in component.networks().values() for m in n.modules() if isinstance(m, LoraLayer)]
    found = reach(component, entry)
    assert found is not None
    shares = []
    for layer in layers:
        a, b = (getattr(layer, name)["default"].weight for name in ("lora_A", "lora_B"))
        base: Any = layer.get_base_layer().weight
        inputs = torch.randn(2_000, a.shape[1], generator=torch.Generator().manual_seed(0)).sign()
        own = (inputs @ base.T).square().mean().sqrt()
        with torch.no_grad():
            b.fill_(entry)
        signs = (inputs @ a.T).sign()  # what training could choose for one input
        outputs = layer.scaling["default"] * entry * (inputs @ a.T * signs).sum(-1)
        shares.append(float(outputs.mean() / own))
        with torch.no_grad():
            b.zero_()
    assert found.lora == (4, 8.0)
    assert 0.5 * found.share < max(shares) < found.share


def test_weights_that_are_trained_themselves_are_held_against_their_own_size() -> None:
    component = make_tiny("{x}", lora=None, dtype="bfloat16")
    matrices = [p for n in component.networks().values() for p in n.parameters() if p.dim() > 1]
    smallest = min(float(p.detach().float().square().mean().sqrt()) for p in matrices)
    found = reach(component, 1e-3)
    assert found is not None
    assert found.share == pytest.approx(1e-3 / smallest, rel=1e-3)
    assert found.lora is None


def test_rates_and_warm_up_are_the_loop_s() -> None:
    system = make_two_llm()
    settings = TrainingSettings(steps=4, learning_rate=1e-3, learning_rates={"psi1": 1e-4}, warmup_steps=2)
    found = reaches(system, settings)
    assert found["psi2"].entry == pytest.approx(adam_reach([5e-4, 1e-3, 1e-3, 1e-3]))
    assert found["psi1"].entry == pytest.approx(found["psi2"].entry / 10)
    system.train_only(["psi2"])
    assert list(reaches(system, settings)) == ["psi2"]
    assert "BELOW" not in in_words("psi2", found["psi2"])


def test_the_paper_s_rate_is_below_rounding_and_the_plan_says_so() -> None:
    """99 updates at 1e-7: D sqrt(r) sqrt(r / 3) alpha / r = 32 D / sqrt(3), of layers that keep the size of inputs."""
    small = ["llm.architecture.num_hidden_layers=1", "training.micro_batch_size=1", "training.evaluate_every=0"]
    small += ["plan.tokens={prompt: 8, longest_prompt: 8, text: 4}", "max_new_tokens=4"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("plan", ["experiment=table2", "scale=paper", *small])
    plan = make_plan(config)
    share = 32 * adam_reach([1e-7] * 99) / math.sqrt(3)
    assert share < 2**-8
    assert list(plan.reaches) == ["psi1", "psi2"]
    for name, found in plan.reaches.items():
        line = in_words(name, found)
        assert line.startswith(f"{name}: ")
        assert f"at most {share:.2g} of its size" in line
        assert "the paper states neither" in line
        assert "BELOW ROUNDING: bfloat16" in line
        assert line in render(plan, config)
