"""Every system of `conf/system/`: loss and gradients against a plain loop over its variables.

The loop knows nothing of the walk under test: prompts are formatted from the YAML, each text is one unpadded forward
of transformers, a choice is a softmax over its labels, an image is the textbook's denoising error, a tool is 1.
"""

import string
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from sysdpo.components.image import diffusion as diffusion_module
from sysdpo.components.image.diffusion import Diffusion
from sysdpo.components.text.choice import Choice
from sysdpo.components.text.language_model import LanguageModel
from sysdpo.components.tools.tool import Tool
from sysdpo.experiment.build import build_system
from sysdpo.losses import preference_loss
from sysdpo.sampling.monte_carlo import MonteCarlo
from sysdpo.sampling.strategies import Sampler
from sysdpo.system import CompoundSystem, Pair
from sysdpo.training.objectives import Direct, Sampling
from tests.composed import TEXT_SYSTEMS, compose_system
from tests.systems import make_pairs_for, perturb

BETA = 0.3
DIFFUSION_STEP = 371
DIFFUSION_STEPS = 20  # T: a thousand would show the rounding of two sums of errors


class PlainSystem:
    """The factors of a system, one at a time."""

    def __init__(self, name: str) -> None:
        smaller = ["max_new_tokens=5", "max_draft_tokens=5", "manner=brief", "llm.architecture.num_hidden_layers=1"]
        if name not in TEXT_SYSTEMS:
            smaller.append(f"bound.num_timesteps={DIFFUSION_STEPS}")
        config = compose_system(name, smaller)
        self.described: Any = OmegaConf.to_container(config.system.components, resolve=True)
        self.system: CompoundSystem = build_system(config)
        self.system.train_only(list(self.system.components))
        self.untouched = build_system(config) if name not in TEXT_SYSTEMS else self.system
        for i, component in enumerate(self.system.components):
            perturb(self.system.component(component), 0.15, seed=i)
            part = self.system.component(component)
            if isinstance(part, Tool) and name in TEXT_SYSTEMS:  # random texts ask no tool anything: let it answer all
                part.function = lambda **parents: str(parents)[::-1]

    def log_prob(self, row: Mapping[str, Any], variable: Any, reference: bool) -> Tensor:
        name = variable.component
        if variable.switch is not None:
            name = dict(variable.cases)[row[variable.switch]]
        component = self.system.component(name)
        parents = {alias: row[parent] for alias, parent in variable.parents}
        value = row[variable.name]
        if isinstance(component, Tool):
            return torch.zeros(())
        assert isinstance(component, LanguageModel)
        disabled = component.model.disable_adapter() if reference else nullcontext()
        with disabled:  # type: ignore[attr-defined]
            if isinstance(component, Choice):
                labels = self.described[name]["labels"]
                scores = torch.stack([self.text_log_prob(component, name, label, parents, 99) for label in labels])
                return scores.log_softmax(0)[labels.index(value)]
            return self.text_log_prob(component, name, value, parents, 5)

    def text_log_prob(
        self, component: LanguageModel, name: str, text: str, parents: Mapping[str, Any], limit: int
    ) -> Tensor:
        tokenizer: Any = component.codec.tokenizer
        prompt = self.described[name]["prompt"]
        templates = [prompt["user"]] if isinstance(prompt["user"], str) else prompt["user"]
        fields = [{f for _, f, _, _ in string.Formatter().parse(t) if f} for t in templates]
        fitting = [i for i, names in enumerate(fields) if names <= parents.keys()]
        user = templates[max(fitting, key=lambda i: len(fields[i]))].format(**parents)
        messages = [{"role": "system", "content": prompt["system"]}] if prompt.get("system") else []
        for example in prompt.get("examples") or ():
            messages += [{"role": role, "content": example[role]} for role in ("user", "assistant")]
        messages.append({"role": "user", "content": user})
        written = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        before = tokenizer(written + (prompt.get("prefix") or ""), add_special_tokens=False)["input_ids"]
        answer = tokenizer(text, add_special_tokens=False)["input_ids"]
        answer = [*answer, tokenizer.eos_token_id] if len(answer) < limit else answer[:limit]
        log_probs = component.causal_lm(torch.tensor([[*before, *answer]])).logits[0].log_softmax(-1)
        return log_probs[torch.arange(len(before) - 1, len(before) - 1 + len(answer)), answer].sum()

    def log_ratio(self, row: Mapping[str, Any], variable: Any, noise: Tensor | None) -> Tensor:
        component = self.system.components[variable.component or variable.cases[0][1]]
        if isinstance(component, Diffusion):
            assert noise is not None
            base: Any = self.untouched.components[variable.component]
            pictures = zip(row["z"], row["captions"], strict=True)
            return sum((self.image_log_ratio(component, base.unet, z, c, noise) for z, c in pictures), torch.zeros(()))
        with torch.no_grad():
            reference = self.log_prob(row, variable, reference=True)
        return self.log_prob(row, variable, reference=False) - reference

    @staticmethod
    def image_log_ratio(component: Diffusion, base: Any, pixels: Tensor, caption: str, noise: Tensor) -> Tensor:
        """T * (reference error - policy error) at one step, mean over the latent (eq. 17)."""
        scheduler: Any = component.scheduler
        signal = scheduler.alphas_cumprod[DIFFUSION_STEP]
        clean = torch.nn.functional.pixel_unshuffle(pixels[None] * 2 - 1, 2)
        noisy = signal.sqrt() * clean + (1 - signal).sqrt() * noise
        target = signal.sqrt() * noise - (1 - signal).sqrt() * clean  # v-prediction
        conditions = component.captions([caption], torch.device("cpu"), torch.float32)
        t = torch.tensor([DIFFUSION_STEP])
        error = ((component.unet(noisy, t, **conditions).sample - target) ** 2).mean()
        with torch.no_grad():
            reference = ((base(noisy, t, **conditions).sample - target) ** 2).mean()
        return DIFFUSION_STEPS * (reference - error)


def gradients(system: CompoundSystem, loss: Tensor) -> dict[str, Tensor]:
    system.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in system.named_parameters() if p.grad is not None}


def assert_same(system: CompoundSystem, actual: Tensor, expected: Tensor) -> None:
    """Losses to 1e-5, gradients to 1e-5 of a component's largest; every trainable component has one."""
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    ours, plain = gradients(system, actual.sum()), gradients(system, expected.sum())
    assert ours.keys() == plain.keys()
    for component in system.trainable:
        names = [name for name in plain if name.startswith(f"components.{component}.")]
        largest = max(float(plain[name].abs().max()) for name in names)
        assert largest > 1e-3, component
        for name in names:
            assert float((ours[name] - plain[name]).abs().max()) <= 1e-5 * max(1.0, largest), name


def plain_margins(plain: PlainSystem, pairs: Sequence[Pair], noise: Tensor | None) -> Tensor:
    """Equation 4, variable by variable."""
    graph, margins = plain.system.graph, []
    for pair in pairs:
        chosen, rejected = ({**pair.inputs, **side} for side in (pair.chosen, pair.rejected))
        terms = [plain.log_ratio(chosen, v, noise) - plain.log_ratio(rejected, v, noise) for v in graph.generated]
        margins.append(torch.stack(terms).sum())
    return torch.stack(margins)


@pytest.mark.parametrize("name", [*TEXT_SYSTEMS, "llm_diffusion"])
def test_direct(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = PlainSystem(name)
    shape = getattr(getattr(plain.system.components, "diffusion", None), "codec", None)
    noise = None
    if shape is not None and name not in TEXT_SYSTEMS:
        noise = torch.randn(shape.latent_shape, generator=torch.Generator().manual_seed(3))
        fixed = (torch.tensor([DIFFUSION_STEP]), noise[None])
        monkeypatch.setattr(diffusion_module, "_draw", lambda *_: fixed)
    pairs = make_pairs_for(plain.system, 4)
    margins = Direct().compare(plain.system, pairs, range(4)).margin
    expected = plain_margins(plain, pairs, noise)
    assert expected.abs().max() > 1e-2
    assert_same(plain.system, preference_loss(margins, BETA), -torch.nn.functional.logsigmoid(BETA * expected))


@pytest.mark.parametrize("name", TEXT_SYSTEMS)
def test_sampling(name: str) -> None:
    """Equation 9: a sum over K joint samples of all intermediates, for each side and each of policy and reference."""
    plain = PlainSystem(name)
    system = plain.system
    finals = {v.name for v in system.graph.finals}
    pairs = [
        Pair(p.index, p.inputs, *({k: v for k, v in side.items() if k in finals} for side in (p.chosen, p.rejected)))
        for p in make_pairs_for(system, 2)
    ]
    objective = Sampling(Sampler(3, MonteCarlo(distinct=False)))
    objective.check(system)
    compared = objective.compare(system, pairs, [5, 6])
    expected = []
    for pair, samples in zip(pairs, objective.draw(system, pairs, [5, 6]), strict=True):
        assert {v.name for v in system.graph.intermediates} == samples[0].keys()
        joint: dict[tuple[str, bool], Tensor] = {}
        for side in ("chosen", "rejected"):
            for reference in (False, True):
                rows = [{**pair.row(side), **sample} for sample in samples]
                with torch.set_grad_enabled(not reference):
                    factors = [[plain.log_prob(row, v, reference) for v in system.graph.generated] for row in rows]
                joint[side, reference] = torch.stack([torch.stack(f).sum() for f in factors]).logsumexp(0)
        ratios = {side: joint[side, False] - joint[side, True] for side in ("chosen", "rejected")}
        expected.append(ratios["chosen"] - ratios["rejected"])
    margins = torch.stack(expected)
    assert margins.abs().max() > 1e-3
    assert_same(system, preference_loss(compared.margin, BETA), -torch.nn.functional.logsigmoid(BETA * margins))


def test_a_shared_models_gradient_is_the_sum_of_its_nodes_gradients() -> None:
    """By the chain rule, node by node: d loss / d margin times the gradient of that node's log-ratio alone."""
    plain = PlainSystem("mixture_of_agents_shared")
    system = plain.system
    pairs = make_pairs_for(system, 3)
    margins = Direct().compare(system, pairs, range(3)).margin
    slopes = -BETA * torch.sigmoid(-BETA * margins.detach())
    whole = gradients(system, preference_loss(margins, BETA).sum())
    for component, nodes in {"agent_1": ["a1", "b1", "z"], "agent_2": ["a2", "b2"], "agent_3": ["a3", "b3"]}.items():
        assert [v.name for v in system.graph.generated if v.component == component] == nodes
        parts = []
        for node in nodes:
            ratios = [
                plain.log_ratio(pair.row("chosen"), system.graph[node], None)
                - plain.log_ratio(pair.row("rejected"), system.graph[node], None)
                for pair in pairs
            ]
            parts.append(gradients(system, (slopes * torch.stack(ratios)).sum()))
            assert parts[-1].keys() == {name for name in whole if name.startswith(f"components.{component}.")}
            assert max(float(gradient.abs().max()) for gradient in parts[-1].values()) > 1e-3
        for name in parts[0]:
            torch.testing.assert_close(
                whole[name], torch.stack([part[name] for part in parts]).sum(0), rtol=1e-4, atol=1e-5
            )
