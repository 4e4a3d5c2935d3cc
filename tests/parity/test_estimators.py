"""The importance-weighted margin against enumeration on systems of tables; samplers without a density are refused."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sysdpo.components.base import Component
from sysdpo.components.tabular import Tabular
from sysdpo.components.tools.tool import Tool
from sysdpo.errors import SettingError
from sysdpo.graph import SystemGraph
from sysdpo.losses import posterior_agreement, sampling_margin
from sysdpo.sampling.monte_carlo import MonteCarlo
from sysdpo.sampling.strategies import DiverseBeam, Sampler
from sysdpo.system import CompoundSystem, Pair
from sysdpo.training.objectives import Sampling
from tests.parity.test_marginal import PAIRS, chain, diamond, exact_margin
from tests.systems import make_pairs_for, make_two_llm, make_with_tool, perturb

OWN = MonteCarlo(distinct=False)


def routed() -> CompoundSystem:
    """x -> route; a tool reads it; a note that only `long` opens; z drawn by whom the route names."""
    routes, notes, answers = ["short", "long"], [0, 1], ["win", "lose"]
    nothing = [*notes, None]
    components: dict[str, Component] = {
        "router": Tabular(routes, {"x": ["p", "q"]}, scale=1.0, seed=1),
        "upper": Tool(lambda route: route.upper(), name="upper"),
        "noter": Tabular(notes, {"shout": ["SHORT", "LONG"]}, scale=1.0, seed=2),
        "quick": Tabular(answers, {"x": ["p", "q"], "note": nothing}, scale=2.5, seed=3),
        "slow": Tabular(answers, {"x": ["p", "q"], "note": nothing}, scale=2.5, seed=6),
    }
    graph = SystemGraph(
        {
            "x": {"role": "input"},
            "route": {"role": "intermediate", "component": "router", "parents": ["x"]},
            "shout": {"role": "intermediate", "component": "upper", "parents": ["route"]},
            "note": {
                "role": "intermediate",
                "component": "noter",
                "parents": ["shout"],
                "when": {"route": "long"},
            },
            "z": {
                "role": "final",
                "component": {"route": {"short": "quick", "long": "slow"}},
                "parents": ["x", "note"],
            },
        }
    )
    return CompoundSystem(graph, components)


ROUTED_PAIRS = [Pair(0, {"x": "p"}, {"z": "win"}, {"z": "lose"}), Pair(1, {"x": "q"}, {"z": "lose"}, {"z": "win"})]
EVERY_ROUTE: list[dict[str, Any]] = [
    {"route": "short", "shout": "SHORT", "note": None},
    *({"route": "long", "shout": "LONG", "note": note} for note in (0, 1)),
]


def plated() -> CompoundSystem:
    """x -> one item or two (they open a plate) -> a mark of each -> a tool joins the marks -> z."""
    items, marks = [("a",), ("a", "a"), ("b", "a")], ["0", "1"]
    words = ["".join(word) for size in (1, 2) for word in itertools.product(marks, repeat=size)]
    components: dict[str, Component] = {
        "lister": Tabular(items, {"x": ["p", "q"]}, scale=1.0, seed=1),
        "marker": Tabular(marks, {"x": ["p", "q"], "item": ["a", "b"]}, scale=1.0, seed=2),
        "join": Tool(lambda marks: "".join(marks), name="join"),
        "last": Tabular(["win", "lose"], {"word": words}, scale=3.0, seed=3),
    }
    graph = SystemGraph(
        {
            "x": {"role": "input"},
            "items": {"role": "intermediate", "component": "lister", "parents": ["x"], "plate": "items"},
            "marks": {
                "role": "intermediate",
                "component": "marker",
                "parents": {"x": "x", "item": "items"},
                "plate": "items",
            },
            "word": {"role": "intermediate", "component": "join", "parents": ["marks"]},
            "z": {"role": "final", "component": "last", "parents": ["word"]},
        }
    )
    return CompoundSystem(graph, components)


EVERY_PLATE: list[dict[str, Any]] = [
    {"items": items, "marks": list(marks), "word": "".join(marks)}
    for items in [("a",), ("a", "a"), ("b", "a")]
    for marks in itertools.product(["0", "1"], repeat=len(items))
]


def every_sample(system: CompoundSystem) -> list[dict[str, Any]]:
    if "router" in system.components:
        return EVERY_ROUTE
    if "lister" in system.components:
        return EVERY_PLATE
    names = [v.name for v in system.graph.intermediates]
    domains: Any = {v.name: system.component(v.components[0]).domain for v in system.graph.intermediates}
    return [dict(zip(names, values, strict=True)) for values in itertools.product(*(domains[n] for n in names))]


def enumerated_margin(system: CompoundSystem, pair: Pair) -> Tensor:
    """Equation 5 with nothing left out, differentiable: four sums over every value of the intermediates."""
    marginal = {}
    for side in ("chosen", "rejected"):
        rows = [{**pair.row(side), **sample} for sample in every_sample(system)]
        policy, reference = system.log_prob(rows), system.reference_log_prob(rows)
        marginal[side] = torch.stack(list(policy.values())).sum(0).logsumexp(0)
        marginal[side] = marginal[side] - torch.stack(list(reference.values())).sum(0).logsumexp(0)
    return marginal["chosen"] - marginal["rejected"]


def gradients(system: CompoundSystem, value: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*system.named_parameters(), strict=True)
    found = torch.autograd.grad(value, parameters, allow_unused=True)
    return {n: torch.zeros_like(p) if g is None else g for n, p, g in zip(names, parameters, found, strict=True)}


SYSTEMS: dict[str, tuple[Any, list[Pair]]] = {
    "chain": (chain, PAIRS[:2]),
    "diamond": (diamond, PAIRS[:2]),
    "routed": (routed, ROUTED_PAIRS),
    "plated": (plated, ROUTED_PAIRS),
}


class TestLoss:
    def test_by_hand(self) -> None:
        """Draws of probability 1/2 and 1/4; p(y, z) = .1, .2 and .3, .1, the reference's .2, .2 on both sides.

        Weights .2, .8 against 1.2 - .4 apart: (ln 1.0 - ln 1.2) - (ln 1.0 - ln 1.2), then with other rejected ones.
        """
        log = lambda *values: torch.tensor([values]).log()  # noqa: E731
        proposal = log(0.5, 0.25)
        margin = sampling_margin(log(0.1, 0.2), log(0.2, 0.2), log(0.3, 0.1), log(0.2, 0.2), proposal)
        # weights: chosen .2 + .8 = 1, rejected .6 + .4 = 1, reference .4 + .8 = 1.2 on both sides
        assert margin.item() == pytest.approx(0.0, abs=1e-6)
        margin = sampling_margin(log(0.1, 0.2), log(0.2, 0.2), log(0.1, 0.05), log(0.1, 0.2), proposal)
        # chosen ln 1 - ln 1.2; rejected ln (.2 + .2) - ln (.2 + .8)
        assert margin.item() == pytest.approx(-math.log(1.2) - math.log(0.4), abs=1e-6)

    def test_drawing_every_value_equally_often_is_equation_9(self) -> None:
        """A constant proposal divides all four sums by one number."""
        four = [torch.randn(3, 5, generator=torch.Generator().manual_seed(i)) for i in range(4)]
        assert torch.allclose(
            sampling_margin(*four, proposal=torch.full((3, 5), -7.0)), sampling_margin(*four), atol=1e-5
        )

    @pytest.mark.parametrize("fill", [0.0, -3.0, -math.inf])
    def test_a_row_with_fewer_samples_is_as_if_it_were_alone(self, fill: float) -> None:
        five = [torch.randn(2, 3, generator=torch.Generator().manual_seed(i)) for i in range(5)]
        whole = sampling_margin(*five[:4], proposal=five[4])
        padding = torch.full((2, 1), -torch.inf)
        padded = [torch.cat([t, padding], -1) for t in five[:4]]
        proposal = torch.cat([five[4], torch.full((2, 1), fill)], -1)
        assert torch.allclose(sampling_margin(*padded, proposal=proposal), whole)

    def test_no_gradient_reaches_the_proposal(self) -> None:
        policy = torch.randn(1, 3, requires_grad=True)
        fixed = [torch.randn(1, 3) for _ in range(3)]
        sampling_margin(policy, *fixed, proposal=policy).sum().backward()
        weights = (policy - policy).softmax(-1)
        assert torch.allclose(policy.grad, weights)  # type: ignore[arg-type]

    def test_a_proposal_of_another_shape_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"\(2, 3\)"):
            sampling_margin(*(torch.zeros(2, 2) for _ in range(4)), proposal=torch.zeros(2, 3))

    def test_posterior_agreement_by_hand(self) -> None:
        """Weights 3 : 1 against 1 : 1: 1 / (9/16 + 1/16) = 1.6 and 2 effective samples, total variation 1/4."""
        weights = torch.tensor([[[3.0, 1.0]], [[1.0, 1.0]]]).log()
        effective, variation = posterior_agreement(weights)
        assert effective.flatten().tolist() == pytest.approx([1.6, 2.0])
        assert variation.tolist() == pytest.approx([0.25])
        far = torch.tensor([[[0.0, -40.0, -torch.inf]], [[0.0, -38.0, -torch.inf]]])
        effective, variation = posterior_agreement(far)
        assert effective.flatten().tolist() == pytest.approx([1.0, 1.0])
        assert variation.tolist() == pytest.approx([0.0], abs=1e-6)


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_value_with_its_own_probability_is_the_exact_marginal(name: str) -> None:
    """Each value p(y) / u times among the draws, that is with weight u: the sum over all of them is the marginal.

    Done by hand of the log-probabilities: every value once, with a proposal of one over their number.
    """
    make, pairs = SYSTEMS[name]
    system = make()
    perturb(system, 1.0)
    every = every_sample(system)
    four = []
    for side in ("chosen", "rejected"):
        rows = [{**pair.row(side), **sample} for pair in pairs for sample in every]
        for quantity in ("log_prob", "reference_log_prob"):
            four.append(torch.stack(list(system(rows, quantity).values())).sum(0).view(len(pairs), -1))
    uniform = torch.full_like(four[0], -math.log(len(every)))
    exact = [enumerated_margin(system, pair).item() for pair in pairs]
    assert sampling_margin(*four, proposal=uniform).tolist() == pytest.approx(exact, rel=1e-5, abs=1e-5)
    if name in ("chain", "diamond"):
        assert exact == pytest.approx([exact_margin(system, pair) for pair in pairs], rel=1e-5, abs=1e-5)
    assert min(map(abs, exact)) > 0.02


@pytest.mark.parametrize("name", SYSTEMS)
def test_margin_and_gradient_converge_to_the_exact_ones(name: str) -> None:
    """K = 4,000 draws: the margin within 4 of its standard errors, every component's gradient in direction and size."""
    make, pairs = SYSTEMS[name]
    system = make()
    perturb(system, 1.0)
    objective = Sampling(Sampler(4_000, OWN), "importance")
    objective.check(system)
    for pair in pairs:
        exact = enumerated_margin(system, pair)
        compared = objective.compare(system, [pair], [11 + pair.index])
        assert compared.margin.item() == pytest.approx(exact.item(), abs=0.08)
        assert compared.counts == {"samples": 4_000.0, "samples_missing": 0.0}  # repeats count
        ours, expected = gradients(system, compared.margin.sum()), gradients(system, exact)
        for parameter, gradient in expected.items():
            # a mean of 4,000 terms of size about 1: a standard error of 1 / 63
            assert (ours[parameter] - gradient).norm() < 4 / math.sqrt(4_000), parameter
            if parameter.split(".")[1] in ("first", "router", "lister"):
                assert gradient.norm() > 2 * 4 / math.sqrt(4_000), parameter


def test_the_logged_marginals_are_estimates_of_the_exact_ones() -> None:
    """A mean, not a sum: log p(z | x) itself, whatever K is."""
    system = chain()
    perturb(system, 1.0)
    pair = PAIRS[0]
    compared = Sampling(Sampler(4_000, OWN), "importance").compare(system, [pair], [3])
    for side in ("chosen", "rejected"):
        rows = [{**pair.row(side), **sample} for sample in every_sample(system)]
        exact = torch.stack(list(system.log_prob(rows).values())).sum(0).logsumexp(0)
        assert compared.logps[side].item() == pytest.approx(exact.item(), abs=0.05)
    assert compared.margin.item() == pytest.approx((compared.chosen - compared.rejected).item(), abs=1e-5)


def long_draft(words: int, seed: int = 0) -> tuple[CompoundSystem, Pair]:
    """x -> y -> z with a draft of one word that matters and `words` that z's table does not look at."""
    fillers = {f"w{i}": Tabular(range(16), {"x": ["p"]}, scale=2.0, seed=seed + i) for i in range(words)}
    components: dict[str, Component] = {"first": Tabular(["a", "b"], {"x": ["p"]}), **fillers}
    variables: dict[str, Any] = {"x": {"role": "input"}}
    variables |= {name: {"role": "intermediate", "component": name, "parents": ["x"]} for name in fillers}
    variables["y"] = {"role": "intermediate", "component": "first", "parents": ["x"]}
    components["last"] = Tabular(["win", "lose"], {"y": ["a", "b"]}, [[1.0, 0.0], [0.0, 1.0]])
    variables["z"] = {"role": "final", "component": "last", "parents": {"y": "y", **{n: n for n in fillers}}}
    return CompoundSystem(SystemGraph(variables), components), Pair(0, {"x": "p"}, {"z": "win"}, {"z": "lose"})


def test_length_takes_the_gradient_from_equation_9_and_not_from_importance_weights() -> None:
    """Mean over draws of the first component's gradient, as a share of the exact one, with 0 and 24 idle words."""
    share: dict[tuple[str, int], float] = {}
    for words in (0, 24):
        system, pair = long_draft(words)
        for estimator in ("sum", "importance"):
            pairs = [Pair(i, pair.inputs, pair.chosen, pair.rejected) for i in range(400)]
            compared = Sampling(Sampler(4, OWN), estimator).compare(system, pairs, range(400))
            gradient = gradients(system, compared.margin.mean())["components.first.logits"][0]
            # exactly: p(y | win) - p(y | lose) = (s, -s) with s = sigmoid(1) - sigmoid(-1) = tanh(1 / 2)
            share[estimator, words] = float(gradient[0] - gradient[1]) / (2 * math.tanh(0.5))
            effective = float(compared.sampling["effective_samples"].mean())
            if estimator == "importance":
                assert effective > 3.2, (words, effective)
            elif words:
                assert effective < 1.5, effective
    assert share["importance", 0] == pytest.approx(0.75, abs=0.06)  # the bias of K = 4 draws: about 1 - 1/K
    assert share["importance", 24] == pytest.approx(share["importance", 0], abs=0.1)
    assert share["sum", 24] < 0.5 * share["importance", 24]


@pytest.mark.parametrize("make", [make_two_llm, make_with_tool])
def test_language_models(make: Any) -> None:
    """Texts drawn and scored again: margin 0 at the start, the policy's weights are p(z | x, y) and nothing else."""
    system = make()
    pairs = make_pairs_for(system, 2)
    objective = Sampling(Sampler(3, OWN), "importance")
    objective.check(system)
    compared = objective.compare(system, pairs, [1, 2])
    assert compared.margin.tolist() == [0.0, 0.0]
    perturb(system, 0.1)
    compared = objective.compare(system, pairs, [1, 2])
    final, own = system.graph.finals[0].name, [v.name for v in system.graph.intermediates]
    for b, (pair, samples) in enumerate(zip(pairs, objective.draw(system, pairs, [1, 2]), strict=True)):
        assert len(samples) == 3
        sides = []
        for side in ("chosen", "rejected"):
            rows = [{**pair.row(side), **sample} for sample in samples]
            with torch.no_grad():
                policy, reference = system.log_prob(rows), system.reference_log_prob(rows)
            moved = torch.stack([reference[n] - policy[n] for n in own]).sum(0)
            sides.append(policy[final].logsumexp(0) - (reference[final] + moved).logsumexp(0))
        assert compared.margin[b].item() == pytest.approx(float(sides[0] - sides[1]), abs=2e-4)
    compared.margin.sum().backward()
    first = next(iter(system.components))
    assert max(float(p.grad.abs().max()) for p in system.component(first).parameters() if p.grad is not None) > 0


@pytest.mark.parametrize(
    ("strategy", "part"),
    [
        (Sampler(2, DiverseBeam(10.0)), "beams are searched"),
        (Sampler(2, MonteCarlo(temperature=0.7, distinct=False)), "sampler.draw.temperature=0.7"),
        (Sampler(2, MonteCarlo(temperature=0, distinct=False)), "sampler.draw.temperature=0"),
        (Sampler(2, MonteCarlo(top_p=0.9, distinct=False)), "sampler.draw.top_p=0.9"),
        (Sampler(2, MonteCarlo()), "sampler.draw.distinct=true"),
        (Sampler(2, OWN, candidates=4), "sampler.candidates=4"),
        (Sampler(2, object()), "object does not say so"),  # type: ignore[arg-type]
    ],
)
def test_samplers_without_a_density_are_refused(strategy: Sampler, part: str) -> None:
    with pytest.raises(SettingError) as refused:
        Sampling(strategy, "importance")
    assert part in str(refused.value)
    assert "\n" not in str(refused.value)
    assert "sampler=monte_carlo" in str(refused.value)
    Sampling(strategy)  # eq. 9 takes any


def test_an_unknown_estimator_is_refused() -> None:
    with pytest.raises(SettingError, match=r"objective\.estimator: unknown 'importanse'; did you mean 'importance'"):
        Sampling(Sampler(2, OWN), "importanse")  # type: ignore[arg-type]
