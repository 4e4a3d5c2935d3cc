"""Each system trains through the experiment, Direct and Sampling; a YAML outside the repository; bad inputs."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from sysdpo.cli.command import explain
from sysdpo.errors import SettingError
from sysdpo.experiment.run import run
from tests.composed import TEXT_SYSTEMS, build, compose_system
from tests.integration.commands import train_in_process
from tests.systems import make_pairs_for

SMALL = ["max_new_tokens=5", "llm.architecture.num_hidden_layers=1"]


def history_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def write_pairs(path: Path, name: str, count: int) -> Path:
    """A preference file whose columns are the system's variables."""
    pairs = make_pairs_for(build(name, SMALL), count)
    rows = [{**p.inputs, "chosen": p.chosen, "rejected": p.rejected} for p in pairs]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("name", TEXT_SYSTEMS)
def test_one_direct_and_one_sampling_update(name: str, tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "pairs.jsonl", name, 3)
    for method in ("sysdpo_direct", "sysdpo_sampling"):
        overrides = [
            *SMALL,
            f"method={method}",
            "dataset=jsonl",
            f"dataset.path={data}",
            "dataset.validation=0",
            "training.validate_every=0",
            "training.steps=1",
            f"outputs={tmp_path}",
        ]
        metrics = run(compose_system(name, overrides))
        assert metrics["best_step"] in (0, 1)
        folder = tmp_path / "table2" / "smoke" / method / "seed=0"
        (line,) = history_of(folder)
        assert line["loss"] == pytest.approx(0.693147, abs=1e-5)
        trained = {key.removeprefix("grad_norm/") for key in line if key.startswith("grad_norm/")}
        assert trained == {path.name for path in (folder / "adapters").iterdir()}
        if method == "sysdpo_direct" and name != "routing":  # whichever expert no pair chose stays as it was
            assert all(line[f"grad_norm/{component}"] > 0 for component in trained)


OUTSIDE = """
variables:
  x: {role: input}
  summary: {role: intermediate, component: summariser, parents: [x]}
  answer: {role: final, component: writer, parents: [summary]}
components:
  summariser: {model: "${llm}", max_new_tokens: 8, prompt: {user: "Summarise: {x}"}}
  writer: {model: "${llm}", max_new_tokens: 8, prompt: {user: "Rewrite for a newspaper: {summary}"}}
"""


@pytest.fixture
def outside(tmp_path: Path) -> list[str]:
    """A system and its preferences, in a folder of the user's own."""
    folder = tmp_path / "my_conf" / "system"
    folder.mkdir(parents=True)
    (folder / "newspaper.yaml").write_text(OUTSIDE)
    data = tmp_path / "pairs.jsonl"
    row = {"chosen": {"summary": "s", "answer": "good"}, "rejected": {"summary": "t", "answer": "bad"}}
    data.write_text("".join(json.dumps({"x": f"q{i}", **row}) + "\n" for i in range(4)))
    options = ["system=newspaper", "scale=smoke", "dataset=jsonl", f"dataset.path={data}", "dataset.validation=1"]
    return ["--config-dir", str(tmp_path / "my_conf"), *options, "training.steps=2", f"outputs={tmp_path}"]


@pytest.mark.parametrize("method", ["sysdpo_direct", "sysdpo_sampling"])
def test_a_system_outside_the_repository(
    outside: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    assert train_in_process([*outside, f"method={method}"], monkeypatch) == 0
    folder = tmp_path / "table2" / "smoke" / method / "seed=0"
    lines = history_of(folder)
    assert [line["step"] for line in lines] == [1, 2]
    assert lines[0]["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert {path.name for path in (folder / "adapters").iterdir()} == {"summariser", "writer"}


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["dataset.evaluation=1"], ["evaluation.answer", "unknown 'z'", "Known: answer, summary"]),
        (["system.components.writer.prompt.user='{sumary}'"], ["{sumary}", "did you mean 'summary'"]),
    ],
)
def test_its_mistakes_are_one_line(
    outside: list[str], overrides: list[str], parts: list[str], monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    assert train_in_process([*outside, *overrides], monkeypatch) == 2
    (line,) = capfd.readouterr().err.strip().splitlines()
    assert all(part in line for part in parts), line


@pytest.mark.parametrize(
    ("name", "override", "part"),
    [
        ("mixture_of_agents", "system.variables.b2.parents.third=a4", "'b2': parent unknown 'a4'; did you mean"),
        ("mixture_of_agents", "system.variables.z.parents.third=b2", "'b3' is unreachable from the other side"),
        ("mixture_of_agents", "system.with_answers='{fourth}'", r"refiner_1.prompt names \{fourth\}"),
        ("mixture_of_agents_shared", "system.questions=['{first}','{own}']", "each of the 2 templates names something"),
        ("mixture_of_agents_small", "system.variables.z.component=agregator", "did you mean 'aggregator'"),
        ("routing", "system.components.router.labels=[brief]", "at least two"),
        ("routing", "system.components.router.labels=[brief,whole,poem]", "'z': component.choice: names no .* 'poem'"),
        ("routing", "+system.variables.z.component.choice.hole=whole_expert", "unknown 'hole'; did you mean 'whole'"),
        ("refinement", "system.variables.draft.parents=[x,z]", "cycle: draft -> .*z -> draft.*unroll"),
        ("refinement", "system.unroll.steps=0", "unroll.steps=0"),
        ("refinement", "system.unroll.loop={draft:zz}", "unroll.loop: unknown 'zz'; did you mean 'z'"),
        ("debate", "system.components.arbiter.prompt.user='{verdict}'", "arbiter.prompt names"),
        ("retrieval_augmented", "system.components.index.function.folder=/no/such", "there is no such folder"),
        ("retrieval_augmented", "system.components.index.function.k=0", "retrieval: k=0"),
        ("summarise_rewrite", "system.variables.z.parents=[x]", "'summary' is unreachable from the other side"),
    ],
)
def test_bad_inputs_are_refused(name: str, override: str, part: str) -> None:
    try:
        build(name, [override])
    except Exception as error:
        line = explain(error)  # what a command would print
    else:
        line = "nothing was refused"
    assert line is not None
    assert re.search(part, line), line


def test_a_tool_without_on_error_stops_the_run_and_names_the_node() -> None:
    system = build("tool_augmented", ["~system.components.calculator.on_error", *SMALL])
    with pytest.raises(SettingError, match=r"variable 'result': tool 'calculator' failed: ValueError: .* on_error"):
        system.generate([{"x": "one and one"}], [0])
    spared = build("tool_augmented", SMALL).generate([{"x": "one and one"}], [0])
    assert spared[0]["result"] == "no result"


def test_unrolling_further_ties_the_weights() -> None:
    system = build("refinement", ["system.unroll.steps=3", *SMALL])
    assert [v.name for v in system.graph.generated if v.component == "generator"] == ["draft", "z_1", "z_2", "z"]
    assert list(system.components) == ["generator", "critic"]


def test_data_that_name_no_label_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    data = tmp_path / "pairs.jsonl"
    rows = [
        {"x": "q", "chosen": {"choice": "brief", "z": "a"}, "rejected": {"choice": choice, "z": "b"}}
        for choice in ("whole", "whole", "breif")
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["system=routing", "scale=smoke", "method=sysdpo_direct", "dataset=jsonl", f"dataset.path={data}"]
    assert train_in_process([*arguments, f"outputs={tmp_path / 'outputs'}"], monkeypatch) == 2
    (line,) = capfd.readouterr().err.strip().splitlines()
    assert "row 3, choice: choice unknown 'breif'; did you mean 'brief'" in line  # of the file, not of the shuffled set
    assert not (tmp_path / "outputs").exists()
