"""A choice as a variable, components by case, and gates: what is drawn, what counts, what is refused."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from sysdpo.components.tabular import Tabular
from sysdpo.components.text.choice import Choice
from sysdpo.components.text.codec import Prompt
from sysdpo.components.tools.tool import Tool
from sysdpo.data.records import make_pairs
from sysdpo.errors import SettingError
from sysdpo.graph import GraphError, SystemGraph
from sysdpo.sampling.monte_carlo import MonteCarlo
from sysdpo.sampling.strategies import DiverseBeam, Sampler
from sysdpo.system import CompoundSystem, Pair
from sysdpo.training.loop import TrainingSettings
from sysdpo.training.objectives import Direct, Sampling
from sysdpo.training.separate import train_separately
from tests.systems import make_tiny, perturb

LABELS = ["ab", "cd", "e"]
X: dict[str, Any] = {"role": "input"}


def make_choice(labels: Any = LABELS, **settings: Any) -> Any:
    return make_tiny("{x}", kind=partial(Choice, labels=labels), **settings)


class TestChoice:
    def test_probabilities_sum_to_one_and_are_the_labels_share(self) -> None:
        choice, plain = make_choice(seed=3), make_tiny("{x}", seed=3, max_new_tokens=3)
        parents = [{"x": "q"}, {"x": "another"}]
        with torch.no_grad():
            written = torch.stack([plain.log_prob([label] * 2, parents) for label in LABELS], -1)
            ours = torch.stack([choice.log_prob([label] * 2, parents) for label in LABELS], -1)
        assert torch.allclose(ours.exp().sum(-1), torch.ones(2), atol=1e-6)
        assert torch.allclose(ours, written - written.logsumexp(-1, keepdim=True), atol=1e-5)

    def test_it_draws_what_it_says(self) -> None:
        choice = make_choice(labels=["ab", "cd"], generation=None)
        perturb(choice, 0.1)
        n = 4000
        drawn = choice.sample([{"x": "q"}], n, [0])[0]
        with torch.no_grad():
            p = math.exp(float(choice.log_prob(["ab"], [{"x": "q"}])))
        assert 0.02 < p < 0.98
        assert abs(drawn.count("ab") / n - p) < 4 * math.sqrt(p * (1 - p) / n)

    def test_strategies_for_texts_draw_labels(self) -> None:
        choice = make_choice()
        beams = choice.sample([{"x": "q"}] * 2, 5, [0, 1], DiverseBeam())
        assert [sorted(row) for row in beams] == [sorted(LABELS)] * 2  # each once, and no more than there are
        greedy = choice.sample([{"x": "q"}], 1, [7], MonteCarlo(temperature=0.0))[0]
        with torch.no_grad():
            scores = choice.log_prob(LABELS, [{"x": "q"}] * 3)
        assert greedy == [LABELS[int(scores.argmax())]]

    def test_the_reference_is_the_initial_choice(self) -> None:
        choice = make_choice()
        parents = [{"x": "q"}] * 3
        with torch.no_grad():
            initial = choice.log_prob(LABELS, parents)
            perturb(choice, 0.3)
            for _ in range(2):  # fresh and remembered
                assert torch.allclose(choice.reference_log_prob(LABELS, parents), initial, atol=1e-5)
            assert torch.allclose(
                choice.log_ratio(LABELS, parents), choice.log_prob(LABELS, parents) - initial, atol=1e-5
            )
            assert not torch.allclose(choice.log_prob(LABELS, parents), initial, atol=1e-2)

    @pytest.mark.parametrize(
        ("labels", "part"),
        [(["a"], "at least two"), (["a", "a"], "none twice"), ([True, "a"], "quotes"), ([" ", "a"], "texts")],
    )
    def test_labels_that_are_refused(self, labels: Any, part: str) -> None:
        with pytest.raises(SettingError, match=part):
            make_choice(labels)

    def test_a_value_that_is_no_label_is_refused(self) -> None:
        with pytest.raises(SettingError, match=r"unknown 'abb'; did you mean 'ab'"):
            make_choice().check_value("abb")


# ---- a table for each part, so that everything can be counted -----------------------------------------------------

ROUTED = {
    "x": X,
    "choice": {"role": "intermediate", "component": "router", "parents": ["x"]},
    "z": {"role": "final", "parents": ["x"], "component": {"choice": {"a": "first", "b": "second"}}},
}
GATED = {
    "x": X,
    "choice": {"role": "intermediate", "component": "router", "parents": ["x"]},
    "note": {"role": "intermediate", "component": "first", "parents": ["x"], "when": {"choice": "a"}},
    "z": {"role": "final", "component": "reader", "parents": {"x": "x", "note": "note"}},
}


def routed() -> CompoundSystem:
    parts = {
        "router": Tabular(["a", "b"], {"x": ["p", "q"]}, scale=1.0, seed=1),
        "first": Tabular(["yes", "no"], {"x": ["p", "q"]}, scale=1.0, seed=2),
        "second": Tabular(["yes", "no"], {"x": ["p", "q"]}, scale=1.0, seed=3),
    }
    system = CompoundSystem(SystemGraph(ROUTED, parts), parts)
    perturb(system, 1.0)
    return system


def gated() -> CompoundSystem:
    parts = {
        "router": Tabular(["a", "b"], {"x": ["p", "q"]}, scale=1.0, seed=1),
        "first": Tabular(["m", "n"], {"x": ["p", "q"]}, scale=1.0, seed=2),
        "reader": Tabular(["yes", "no"], {"x": ["p", "q"], "note": ["m", "n", None]}, scale=1.0, seed=3),
    }
    system = CompoundSystem(SystemGraph(GATED, parts), parts)
    perturb(system, 1.0)
    return system


def table(system: CompoundSystem, name: str, reference: bool) -> torch.Tensor:
    part: Any = system.components[name]
    return (part.reference_logits if reference else part.logits).detach().double().softmax(-1)


def marginal(system: CompoundSystem, reference: bool) -> torch.Tensor:
    """p(z | x) by hand, [x, z]: over the choice, and where there is one over the note."""
    router, first = table(system, "router", reference), table(system, "first", reference)
    if "second" in system.components:
        return router[:, :1] * first + router[:, 1:] * table(system, "second", reference)
    reader = table(system, "reader", reference).view(2, 3, 2)
    return router[:, :1] * torch.einsum("xn,xnz->xz", first, reader[:, :2]) + router[:, 1:] * reader[:, 2]


@pytest.mark.parametrize(("make", "k"), [(routed, 2), (gated, 3)])
def test_sampling_over_every_choice_is_the_exact_marginal(make: Any, k: int) -> None:
    """All joint samples are found, each once: (a), (b), or (a, m), (a, n), (b, nothing)."""
    system = make()
    pairs = [Pair(i, {"x": x}, {"z": "yes"}, {"z": "no"}) for i, x in enumerate(["p", "q"])]
    objective = Sampling(Sampler(8, DiverseBeam(diversity_penalty=100.0)))
    compared = objective.compare(system, pairs, [0, 1])
    assert compared.counts["samples"] == 2 * k
    ratio = marginal(system, False).log() - marginal(system, True).log()
    assert compared.margin.tolist() == pytest.approx((ratio[:, 0] - ratio[:, 1]).tolist(), abs=2e-6)
    assert sum(t for t in compared.terms.values()).shape == (2,)  # type: ignore[union-attr]


def test_only_the_chosen_components_factor_counts() -> None:
    system = routed()
    rows = [{"x": "p", "choice": "a", "z": "yes"}, {"x": "q", "choice": "b", "z": "no"}]
    router, first, second = (table(system, name, False).log() for name in ("router", "first", "second"))
    values = system.log_prob(rows)
    assert values["z"].tolist() == pytest.approx([float(first[0, 0]), float(second[1, 1])], abs=1e-6)
    assert values["choice"].tolist() == pytest.approx([float(router[0, 0]), float(router[1, 1])], abs=1e-6)
    pair = Pair(0, {"x": "p"}, {"choice": "a", "z": "yes"}, {"choice": "a", "z": "no"})
    compared = Direct().compare(system, [pair], [0])
    compared.margin.sum().backward()
    assert float(compared.terms["second"]) == 0.0
    assert float(compared.terms["first"]) == pytest.approx(float(compared.margin.detach()), abs=1e-6)
    assert system.components["second"].logits.grad is None
    assert system.components["first"].logits.grad.any()  # type: ignore[union-attr]


def test_behind_a_closed_gate_nothing_is_drawn_and_nothing_counts() -> None:
    system = gated()
    rows = system.generate([{"x": "p"}] * 60, range(60))
    assert {row["choice"] for row in rows} == {"a", "b"}
    assert all((row["note"] is None) == (row["choice"] == "b") for row in rows)
    values = system.log_prob(rows)["note"]
    assert all((float(v) == 0.0) == (row["choice"] == "b") for v, row in zip(values, rows, strict=True))


def test_an_empty_variable_is_no_text_in_a_prompt() -> None:
    assert Prompt("[{x}] {note}").messages({"x": "q", "note": None})[-1]["content"] == "[q] "


class TestRecords:
    GRAPH = SystemGraph(GATED)

    def row(self, **side: Any) -> dict[str, Any]:
        return {"x": "p", "chosen": side, "rejected": {"choice": "b", "z": "no"}}

    def test_a_closed_variable_needs_no_value(self) -> None:
        pairs = make_pairs([self.row(choice="a", note="m", z="yes")], self.GRAPH, needs_intermediates=True)
        assert pairs[0].rejected == {"choice": "b", "note": None, "z": "no"}

    def test_an_open_one_does(self) -> None:
        with pytest.raises(SettingError, match="row 1: 'chosen' lacks the variable 'note'"):
            make_pairs([self.row(choice="a", z="yes")], self.GRAPH, needs_intermediates=True)

    def test_a_value_behind_a_closed_gate_is_refused(self) -> None:
        with pytest.raises(
            SettingError, match="'chosen' has a value for 'note', which is drawn only where choice is a"
        ):
            make_pairs([self.row(choice="b", note="m", z="yes")], self.GRAPH, needs_intermediates=True)

    def test_rows_without_their_closed_variables_can_be_scored(self) -> None:
        system = gated()
        pairs = make_pairs([self.row(choice="a", note="m", z="yes")], self.GRAPH, needs_intermediates=True)
        system.check_rows([pairs[0].row(side) for side in ("chosen", "rejected")])
        assert Direct().compare(system, pairs, [0]).margin.isfinite().all()


def changed(variables: dict[str, Any], name: str, **fields: Any) -> dict[str, Any]:
    return {**variables, name: {**variables[name], **fields}}


@pytest.mark.parametrize(
    ("variables", "parts"),
    [
        (changed(ROUTED, "z", component={"choise": {"a": "first"}}), ["'z'", "'choise'", "did you mean 'choice'"]),
        (changed(ROUTED, "z", component={"choice": "first"}), ["'z'", "{variable: {value: component"]),
        (changed(ROUTED, "z", component={}), ["'z'", "{variable: {value: component"]),
        (changed(ROUTED, "z", component={"choice": {"a": ["first"]}}), ["'z'", "'a'", "component's name"]),
        (changed(ROUTED, "z", component={"choice": {"a": "frist"}}), ["'z'", "'frist'", "did you mean 'first'"]),
        (changed(ROUTED, "z", component={"z": {"a": "first"}}), ["cycle", "z -> z"]),
        (changed(ROUTED, "z", plate="p"), ["'z'", "plate"]),
        (changed(ROUTED, "choice", plate="p"), ["'choice'", "lies in a plate"]),
        (changed(ROUTED, "z", when={"choice": "a"}), ["'z' is final", "instead of when"]),
        (changed(ROUTED, "x", when={"choice": "a"}), ["'x'", "input", "gate"]),
        (changed(GATED, "note", when={"choise": "a"}), ["'note'", "when", "did you mean 'choice'"]),
        (changed(GATED, "note", when="a"), ["'note'", "when='a'"]),
        (changed(GATED, "note", when={"choice": []}), ["'note'", "never be drawn"]),
    ],
)
def test_refused_by_the_graph(variables: Any, parts: list[str]) -> None:
    with pytest.raises(GraphError) as error:
        SystemGraph(variables, components=["router", "first", "second", "reader"])
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("make", "variables", "part"),
    [
        (routed, changed(ROUTED, "z", component={"choice": {"a": "first", "c": "second"}}), "'z'.*choice: unknown 'c'"),
        (routed, changed(ROUTED, "z", component={"choice": {"a": "first"}}), "'z'.*names no component for 'b'"),
        (gated, changed(GATED, "note", when={"choice": ["a", "c"]}), r"'note': when\.choice: unknown 'c'"),
    ],
)
def test_values_that_the_deciding_component_cannot_draw_are_refused(make: Any, variables: Any, part: str) -> None:
    parts = dict(make().components)
    with pytest.raises(SettingError, match=part):
        CompoundSystem(SystemGraph(variables), parts)


def test_a_text_that_decides_must_be_one_of_the_cases() -> None:
    parts = {**dict(routed().components), "router": Tool(lambda x: "c")}
    with pytest.raises(GraphError, match="'z': no component for choice='c'; it has 'a', 'b'"):
        CompoundSystem(SystemGraph(ROUTED), parts).generate([{"x": "p"}], [0])


def test_unrolling_keeps_gates_and_cases_with_their_own_pass() -> None:
    graph = SystemGraph(
        {
            "x": X,
            "draft": {"role": "intermediate", "component": "gen", "parents": ["x"]},
            "verdict": {"role": "intermediate", "component": "critic", "parents": ["draft"]},
            "advice": {"role": "intermediate", "component": "critic", "parents": ["draft"], "when": {"verdict": "bad"}},
            "z": {
                "role": "final",
                "parents": ["draft", "advice"],
                "component": {"verdict": {"bad": "gen", "good": "copy"}},
            },
        }
    ).unroll({"draft": "z"}, 2)
    assert (graph["advice_1"].gates, graph["z_1"].switch) == ((("verdict_1", ("bad",)),), "verdict_1")
    assert (graph["advice"].gates, graph["z"].switch) == ((("verdict", ("bad",)),), "verdict")
    assert graph["verdict"].parents == (("draft", "z_1"),)


def test_mermaid_draws_what_decides_as_dotted_arrows() -> None:
    lines = SystemGraph(changed(GATED, "note", when={"choice": ["a", "b"]})).to_mermaid().splitlines()
    assert '    choice -. "a or b" .-> note' in lines
    routing = SystemGraph(ROUTED).to_mermaid().splitlines()
    assert '    z[["z ~ first or second"]]' in routing
    assert "    choice -.-> z" in routing


def test_an_intermediate_after_the_final_has_no_samples_in_common() -> None:
    graph = SystemGraph(
        {
            "x": X,
            "z": {"role": "final", "component": "first", "parents": ["x"]},
            "y": {"role": "intermediate", "component": "first", "parents": ["z"]},
            "w": {"role": "final", "component": "first", "parents": ["y"]},
        }
    )
    system = CompoundSystem(graph, {"first": make_tiny("", max_new_tokens=2)})
    with pytest.raises(SettingError, match="'y' is drawn after the final 'z'"):
        Sampling(Sampler(2, MonteCarlo())).check(system)


def test_a_choice_has_no_answer_of_its_own_to_be_aligned_by_itself(tmp_path: Path) -> None:
    settings = TrainingSettings(steps=1, batch_size=1, micro_batch_size=1, learning_rate=1e-3, beta=0.1)
    pair = Pair(0, {"x": "p"}, {"z": "yes"}, {"z": "no"})
    with pytest.raises(SettingError, match="component 'router' chooses from a list"):
        train_separately(routed(), [pair], settings, tmp_path)
