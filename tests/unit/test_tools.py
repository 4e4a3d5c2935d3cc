"""Tools: deterministic nodes; retrieval over a folder of texts; a calculator."""

from pathlib import Path
from typing import Any

import pytest
import torch

from sysdpo.components.tools.calculator import calculate
from sysdpo.components.tools.retrieval import Passages
from sysdpo.components.tools.tool import Tool
from sysdpo.errors import SettingError
from sysdpo.graph import SystemGraph
from sysdpo.losses import preference_loss
from sysdpo.sampling.monte_carlo import MonteCarlo
from sysdpo.sampling.strategies import Sampler
from sysdpo.system import CompoundSystem
from sysdpo.training.objectives import Direct, Sampling
from tests.systems import WITH_TOOL, make_pairs_for, make_tiny, make_with_tool


def refuse(query: str) -> str:
    raise LookupError(f"nothing about {query}")


def with_tool(tool: Tool) -> CompoundSystem:
    components = {"asker": make_tiny("{x}", seed=1), "search": tool, "reader": make_tiny("{x}|{found}", seed=2)}
    return CompoundSystem(SystemGraph(WITH_TOOL, components), components)


def test_a_failing_tool_is_an_error_that_names_the_node_and_the_cause() -> None:
    system = with_tool(Tool(refuse, name="search"))
    with pytest.raises(
        SettingError, match=r"variable 'found': tool 'search' failed: LookupError: nothing about"
    ) as error:
        system.generate([{"x": "q"}], [0])
    assert isinstance(error.value.__cause__, SettingError)
    assert isinstance(error.value.__cause__.__cause__, LookupError)


@pytest.mark.parametrize("value", ["no result", "", None])
def test_on_error_is_the_value_of_a_failed_call_and_only_of_that(value: Any) -> None:
    tool = Tool(lambda query: refuse(query) if query == "bad" else query.upper(), on_error=value)
    assert tool.sample([{"query": "bad"}, {"query": "good"}], 1, [0, 1]) == [[value], ["GOOD"]]


@pytest.mark.parametrize("objective", [Direct(), Sampling(Sampler(2, MonteCarlo(distinct=False)))])
def test_a_tool_between_two_models_leaves_both_trainable(objective: Any) -> None:
    system = make_with_tool()
    assert system.trainable == ["asker", "reader"]
    pairs = make_pairs_for(system, 3)
    compared = objective.compare(system, pairs, [0, 1, 2])
    assert not compared.terms["search"].any()
    preference_loss(compared.margin, 0.1).sum().backward()
    for name in ("asker", "reader"):
        gradients = [p.grad for p in system.component(name).parameters() if p.requires_grad]
        assert max(float(g.abs().max()) for g in gradients if g is not None) > 1e-4, name
    assert not list(system.component("search").parameters())


def test_a_tool_cannot_write_the_final_answer_where_intermediates_are_summed_out() -> None:
    """Its factor is 1 for its own output only: no sample would give the answer that the data hold."""
    components = {"asker": make_tiny("{x}"), "search": Tool(str)}
    graph = SystemGraph(
        {
            "x": {"role": "input"},
            "y": {"role": "intermediate", "component": "asker", "parents": ["x"]},
            "z": {"role": "final", "component": "search", "parents": ["y"]},
        }
    )
    with pytest.raises(SettingError, match=r"'z' is drawn by 'search', a tool.*objective=direct"):
        Sampling(Sampler(2, MonteCarlo())).check(CompoundSystem(graph, components))


class TestCalculator:
    @pytest.mark.parametrize(
        ("expression", "value"),
        [
            ("2 + 3 * 4", "14"),
            ("(2 + 3) * 4", "20"),
            ("-7 // 2", "-4"),
            ("-7 % 3", "2"),
            ("2 ** 10", "1024"),
            ("2 ** -1", "0.5"),
            ("1 / 3", "0.3333333333"),
            ("6 / 3", "2"),
            (" 1.5e3 ", "1500"),
            ("+4", "4"),
            ("0 ** 0", "1"),
        ],
    )
    def test_values(self, expression: str, value: str) -> None:
        assert calculate(expression) == value

    @pytest.mark.parametrize(
        "expression",
        [
            "",
            "two plus two",
            "2 +",
            "True",
            "x + 1",
            "abs(1)",
            "__import__('os')",
            "(1).real",
            "'a' * 9",
            "[1]",
            "1 < 2",
            "2j",
            "(-8) ** 0.5",
            "9 ** 9 ** 9",
            "0.1 ** 99999999",
            "10 ** 15 * 10",
            "1e400",
            "((((((((((" * 50,
            "-" * 100_000 + "1",
        ],
    )
    def test_anything_else_is_refused_at_once(self, expression: str) -> None:
        with pytest.raises(ValueError, match=r"is no|out of range"):
            calculate(expression)

    def test_division_by_zero_is_pythons(self) -> None:
        with pytest.raises(ZeroDivisionError):
            calculate("1 / (2 - 2)")


class TestRetrieval:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        (tmp_path / "deeper").mkdir()
        (tmp_path / "a.txt").write_text("The herring swims\nin shoals.\n\n\nThe owl hunts at night.\n")
        (tmp_path / "deeper" / "b.md").write_text("A herring gull steals a herring from a man who eats a herring.")
        (tmp_path / "c.csv").write_text("herring,herring,herring")
        return tmp_path

    def test_passages_come_best_first_and_only_where_a_word_is_shared(self, folder: Path) -> None:
        """By BM25's formula the passage with three herrings in eight words goes before the one in two."""
        search = Passages(str(folder), k=3)
        assert search("herring") == (
            "A herring gull steals a herring from a man who eats a herring.\n\nThe herring swims in shoals."
        )
        assert search("When does an OWL hunt?") == "The owl hunts at night."
        assert search("submarine") == ""
        assert search("") == ""
        assert Passages(str(folder), k=1)("herring").startswith("A herring gull")

    def test_long_finds_are_cut_off_at_a_word(self, folder: Path) -> None:
        assert Passages(str(folder), k=1, max_characters=12)("owl") == "The owl"

    def test_the_shipped_texts_are_found(self) -> None:
        assert "trunk" in Passages(k=1)("Tell me about elephants.")

    @pytest.mark.parametrize("k", [0, -1])
    def test_refusals(self, folder: Path, k: int) -> None:
        with pytest.raises(SettingError, match=f"k={k}"):
            Passages(str(folder), k=k)

    def test_folders_that_cannot_be_searched(self, tmp_path: Path) -> None:
        with pytest.raises(SettingError, match="there is no such folder"):
            Passages(str(tmp_path / "absent"))
        with pytest.raises(SettingError, match="holds no text"):
            Passages(str(tmp_path))
        (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
        with pytest.raises(SettingError, match=r"latin\.txt .*UTF-8"):
            Passages(str(tmp_path))


def test_a_tool_has_no_likelihood_to_train() -> None:
    tool = Tool(str)
    assert tool.likelihood == "constant"
    assert torch.equal(tool.log_prob(["a", "b"], [{}, {}]), torch.zeros(2))
