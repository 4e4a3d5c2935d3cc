"""Every promise of `SystemGraph`: order, roles, plates, aliases, refusals, unrolling, drawing."""

from typing import Any

import pytest

from sysdpo.graph import GraphError, SystemGraph

X: dict[str, Any] = {"role": "input"}


def node(parents: Any, role: str = "intermediate", component: str = "c", **more: Any) -> dict[str, Any]:
    return {"role": role, "component": component, "parents": parents, **more}


def final(parents: Any, component: str = "c", **more: Any) -> dict[str, Any]:
    return node(parents, "final", component, **more)


FIVE = {  # written back to front on purpose
    "answer": final(["plan", "left", "right"], "judge"),
    "right": node({"p": "plan"}, component="writer"),
    "left": node({"p": "plan"}, component="writer"),
    "plan": node(["x"], component="planner"),
    "x": X,
}
LOOP = {
    "x": X,
    "draft": node(["x"], component="gen"),
    "critique": node(["x", "draft"], component="critic"),
    "revision": final({"x": "x", "last": "draft", "critique": "critique"}, "gen2"),
}


def test_order_puts_parents_first_whatever_the_order_written() -> None:
    graph = SystemGraph(FIVE)
    order = [v.name for v in graph]
    for v in graph:
        assert all(order.index(p) < order.index(v.name) for p in v.parent_names)
    assert sorted(order) == sorted(FIVE)


def test_roles_components_and_aliases_of_the_five_node_graph() -> None:
    graph = SystemGraph(FIVE, components={"planner", "writer", "judge"})
    assert [v.name for v in graph.inputs] == ["x"]
    assert {v.name for v in graph.intermediates} == {"plan", "left", "right"}
    assert [v.name for v in graph.finals] == ["answer"]
    assert graph.generated[0].name == "plan"
    assert graph.generated[-1].name == "answer"
    assert set(graph.components) == {"planner", "writer", "judge"}
    assert len(graph.components) == 3  # a component that draws two variables is named once
    assert graph["left"].parents == (("p", "plan"),)
    assert graph["answer"].parents == (("plan", "plan"), ("left", "left"), ("right", "right"))


def test_plates_are_opened_by_the_variable_without_a_parent_in_them() -> None:
    graph = SystemGraph(
        {
            "x": X,
            "captions": node(["x"], plate="captions"),
            "image": final({"caption": "captions"}, plate="captions"),
        }
    )
    assert graph.opens_plate("captions")
    assert not graph.opens_plate("image")
    assert not graph.opens_plate("x")
    listed = SystemGraph({"xs": {"role": "input", "plate": "p"}, "y": final(["xs"], plate="p")})
    assert listed.opens_plate("xs")
    assert not listed.opens_plate("y")


@pytest.mark.parametrize(
    ("variables", "parts"),
    [
        ({"x": X, "a": node(["b"]), "b": node(["a"]), "z": final(["b"])}, ["cycle", "a -> b -> a", "unroll"]),
        ({"x": X, "z": final(["x", "z"])}, ["cycle", "z -> z", "unroll"]),
        ({"x": X, "answer": final(["x", "anser"])}, ["'answer'", "'anser'", "did you mean 'answer'"]),
        ({"x": X, "y": node(["x"])}, ["no final variable"]),
        ({}, ["no final variable"]),
        ({"x": {"role": "input", "component": "c"}, "z": final(["x"])}, ["'x'", "input", "component"]),
        ({"w": X, "x": {"role": "input", "parents": ["w"]}, "z": final(["x"])}, ["'x'", "input", "parents"]),
        ({"x": X, "y": node([]), "z": final(["x", "y"])}, ["'y'", "unreachable"]),
        ({"x": X, "y": node(["x"]), "z": final(["x"])}, ["'y'", "no final variable"]),
        ({"x": X, "z": final(["x"], component=["c", "d"])}, ["'z'", "two producers", "'c', 'd'"]),
        ({"x": X, "z": {"role": "final", "parents": ["x"]}}, ["'z'", "component"]),
        ({"x": X, "z": final(["x"], rolle="final")}, ["'z'", "'rolle'", "did you mean 'role'"]),
        ({"x": X, "z": node(["x"], role="last")}, ["'z'", "'last'", "input, intermediate or final"]),
        ({"x": X, "z": {"component": "c", "parents": ["x"]}}, ["'z'", "role=None"]),
        ({"x": X, "z": final("x")}, ["'z'", "parents='x'", "list of names"]),
        ({"x": X, "z": final(1)}, ["'z'", "parents=1"]),
        ({"x": X, "z": final([1])}, ["'z'", "parents=[1]"]),
        ({"x": X, "z": None}, ["'z'"]),
        ({"x": X, "z": "final"}, ["'z'"]),
        ({"x": X, "z": final({"a": ["x"]})}, ["'z'", "parents"]),
        ({"x": X, "z": final(["x"], component=3)}, ["'z'", "component"]),
    ],
)
def test_refusals_are_one_line_that_says_what_and_where(variables: Any, parts: list[str]) -> None:
    with pytest.raises(GraphError) as error:
        SystemGraph(variables)
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_an_unknown_component_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(GraphError, match=r"'z': component unknown 'psi3'; did you mean 'psi1'\?"):
        SystemGraph({"x": X, "z": final(["x"], component="psi3")}, components={"psi1": 0, "other": 0})


def test_mermaid_draws_every_node_and_every_edge_once() -> None:
    graph = SystemGraph({"x": X, "y": node(["x"], plate="words"), "z": final({"a": "y", "b": "y", "x": "x"})})
    assert graph.to_mermaid().splitlines() == [
        "flowchart LR",
        '    x(["x"])',
        '    y["y ~ c (each of words)"]',
        '    z[["z ~ c"]]',
        "    x --> y",
        "    y & x --> z",
    ]


class TestUnroll:
    def test_one_pass_is_the_graph_itself(self) -> None:
        once, graph = SystemGraph(LOOP).unroll({"draft": "revision"}, 1), SystemGraph(LOOP)
        assert list(once) == list(graph)

    def test_two_passes(self) -> None:
        graph = SystemGraph(LOOP).unroll({"draft": "revision"}, 2)
        assert {v.name: v.parents for v in graph} == {
            "x": (),
            "draft": (("x", "x"),),
            "critique_1": (("x", "x"), ("draft", "draft")),
            "revision_1": (("x", "x"), ("last", "draft"), ("critique", "critique_1")),
            "critique": (("x", "x"), ("draft", "revision_1")),
            "revision": (("x", "x"), ("last", "revision_1"), ("critique", "critique")),
        }
        assert [v.name for v in graph.finals] == ["revision"]
        assert graph["revision_1"].role == "intermediate"
        assert graph["revision_1"].component == graph["revision"].component == "gen2"

    def test_three_passes_chain(self) -> None:
        graph = SystemGraph(LOOP).unroll({"draft": "revision"}, 3)
        assert graph["critique_2"].parents == (("x", "x"), ("draft", "revision_1"))
        assert graph["critique"].parents == (("x", "x"), ("draft", "revision_2"))
        assert [v.name for v in graph.finals] == ["revision"]
        assert len(list(graph)) == 2 + 3 * 2
        assert set(graph.components) == {"gen", "critic", "gen2"}

    def test_what_an_earlier_pass_makes_for_nobody_is_left_out(self) -> None:
        """A second final variable of the loop is wanted once, at the end."""
        graph = SystemGraph({**LOOP, "report": final(["critique"], "reporter")})
        unrolled = graph.unroll({"draft": "revision"}, 2)
        assert {v.name for v in unrolled.finals} == {"revision", "report"}
        assert "report_1" not in unrolled.variables

    def test_a_name_that_is_taken_is_refused(self) -> None:
        taken = {**LOOP, "critique_1": X, "revision": final(["x", "draft", "critique", "critique_1"])}
        with pytest.raises(GraphError, match="critique_1"):
            SystemGraph(taken).unroll({"draft": "revision"}, 2)

    @pytest.mark.parametrize(
        ("loop", "steps", "part"),
        [
            ({"draft": "revision"}, 0, "at least one pass"),
            ({"draft": "revisoin"}, 2, "did you mean 'revision'"),
            ({"darft": "revision"}, 2, "did you mean 'draft'"),
            ({"critique": "draft"}, 2, "does not depend on"),
        ],
    )
    def test_refusals(self, loop: dict[str, str], steps: int, part: str) -> None:
        with pytest.raises(GraphError, match=part):
            SystemGraph(LOOP).unroll(loop, steps)

    def test_the_cyclic_form_names_the_way_out(self) -> None:
        cyclic = {**LOOP, "draft": node(["x", "revision"], component="gen")}
        with pytest.raises(GraphError, match="unroll"):
            SystemGraph(cyclic)
