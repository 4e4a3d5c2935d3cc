"""Our restated losses against CoMLRL's own code; skipped without the package (`pip install --no-deps comlrl`)."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sysdpo.losses import group_advantages, group_relative_loss, preference_loss
from sysdpo.system import CompoundSystem
from sysdpo.training.objectives import WithoutReference
from tests.systems import TWO_LLM, make_pairs_for, make_tiny, make_two_llm, perturb

comlrl = pytest.importorskip("comlrl")
from comlrl.trainers.preference.madpo import AgentPreferenceTensors, MADPOTrainer  # noqa: E402
from comlrl.trainers.reinforce.magrpo import MAGRPOTrainer  # noqa: E402

VARIABLES = {"psi1": "y", "psi2": "z"}


def tokens(system: Any, row: dict[str, Any]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Prompt and completion of each agent. One token more: theirs leaves out the last token of what it scores."""
    found = []
    for name, variable in VARIABLES.items():
        component = system.component(name)
        parents = {alias: row[parent] for alias, parent in system.graph[variable].parents}
        prompt, answer = component.codec.prompt_ids(parents), component.codec.completion_ids(row[variable])
        found.append((torch.tensor(prompt), torch.tensor([*answer, 0])))
    return found


def gradients(system: Any) -> dict[str, torch.Tensor]:
    found = {n: p.grad.clone() for n, p in system.named_parameters() if p.grad is not None}
    system.zero_grad(set_to_none=True)
    return found


def stand_in(system: Any, **settings: Any) -> Any:
    """The package's trainer, as far as its losses look at it."""
    agents = [system.component(name).model for name in VARIABLES]
    return SimpleNamespace(
        agents=agents,
        tokenizers=[system.component(name).codec.tokenizer for name in VARIABLES],
        num_agents=2,
        centralized_collaboration=None,
        args=SimpleNamespace(**settings),
    )


def test_the_preference_loss_of_multi_agent_dpo() -> None:
    """Both agents answer one item, as theirs do: a prompt is the same on both sides."""
    components = {"psi1": make_tiny("{x}", seed=1), "psi2": make_tiny("{x}!", seed=2)}
    system = CompoundSystem(TWO_LLM, components)
    pairs = make_pairs_for(system, 3)
    perturb(system, 0.1)
    batch = []
    for pair in pairs:
        sides = [tokens(system, pair.row(side)) for side in ("chosen", "rejected")]
        both = zip(*sides, strict=True)
        batch.append(SimpleNamespace(agent_tensors=[AgentPreferenceTensors(p, c, r) for (p, c), (_, r) in both]))
    trainer = stand_in(system, dpo_beta=0.3)
    trainer._trim_completion_tokens = lambda ids, _: ids
    for name in ("_sequence_log_prob", "_agent_logprob_delta", "_detached_agent_deltas", "_agent_preference_loss"):
        setattr(trainer, name, getattr(MADPOTrainer, name).__get__(trainer))
    deltas = trainer._detached_agent_deltas(batch)
    losses = [trainer._agent_preference_loss(agent, batch, deltas) for agent in range(2)]
    for loss in losses:
        loss.backward()
    theirs = gradients(system)

    compared = WithoutReference().compare(system, pairs, [0, 1, 2])
    ours = preference_loss(compared.margin, 0.3).mean()
    assert [float(loss) for loss in losses] == pytest.approx([float(ours)] * 2, abs=1e-4)
    ours.backward()
    own = gradients(system)
    assert own.keys() == theirs.keys()
    for name, value in own.items():
        assert torch.allclose(value, theirs[name], atol=1e-4), name


def test_the_group_relative_loss_of_multi_agent_grpo() -> None:
    system = make_two_llm()
    perturb(system, 0.1)
    inputs = [{"x": "say it"}] * 3
    rows = system.generate(inputs, [1, 2, 3])
    rewards = [0.2, 0.9, 0.4]
    trainer = stand_in(system, advantage_normalization=True)
    trainer.advantage_mode = "mean"
    trainer._apply_reference_kl_to_returns = lambda returns, _: returns
    for name in ("_compute_advantages", "_compute_loss_with_gradients"):
        setattr(trainer, name, getattr(MAGRPOTrainer, name).__get__(trainer))
    # their agents answer one prompt; the second agent's depends on the first one's text, so each answer has its own
    advantages = group_advantages(torch.tensor([rewards]))
    data = [tokens(system, row) for row in rows]
    first = {"prompt_input_ids": data[0][0][0][None], "completion_input_ids": [[d[0][1] for d in data]]}
    theirs_first = trainer._compute_loss_with_gradients(trainer.agents[0], first, rewards)
    theirs_first.backward()
    theirs = gradients(system)
    log_probs = system.log_prob(rows)
    ours = group_relative_loss(log_probs["y"][None], advantages).sum()
    assert float(ours) == pytest.approx(float(theirs_first), abs=1e-4)
    ours.backward()
    for name, value in gradients(system).items():
        assert torch.allclose(value, theirs[name], atol=1e-4), name
    joint = group_relative_loss((log_probs["y"] + log_probs["z"]).detach()[None], advantages)
    parts = [group_relative_loss(log_probs[v].detach()[None], advantages) for v in ("y", "z")]
    assert torch.allclose(joint, parts[0] + parts[1])
