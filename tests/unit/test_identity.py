"""What decides a run's numbers, and what does not."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from sysdpo.cli.schema.effect import READ
from sysdpo.data.sources import Recorded
from sysdpo.data.storage import save_rows
from sysdpo.experiment.build import data_content, made_data
from sysdpo.paths import ASSETS, CONF
from sysdpo.runs import identity as module
from sysdpo.runs.folder import RunFolder
from sysdpo.runs.identity import EVALUATION, NEITHER, TRAINING, Identity, identity


@pytest.fixture(scope="module")
def plain() -> Identity:
    return of()


def of(*overrides: str) -> Identity:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", ["scale=smoke", *overrides])
    resolved: Any = OmegaConf.to_container(config, resolve=True)
    return identity(resolved, data_content(config))


def test_every_setting_that_a_command_reads_is_said_to_decide_numbers_or_not() -> None:
    assert set(READ) <= {*TRAINING, *EVALUATION, *NEITHER}
    assert not {*TRAINING, *EVALUATION} & set(NEITHER)


def test_what_changes_no_number_changes_no_identity(plain: Identity) -> None:
    assert of("outputs=./outputs", "data_folder=/elsewhere", "study=mine", "title=mine", "dataset.name=mine") == plain
    assert of("logger=wandb", "device=cpu", "evaluation_batch_size=3", "training.micro_batch_size=1") == plain
    assert of("training.checkpoint_every=2", "training.keep_checkpoints=null", "beta=1e-1") == plain
    assert of("llm.share_prefix=false", "llm.gradient_checkpointing=true", "curve_rows=2") == plain  # no curve is drawn


@pytest.mark.parametrize(
    "override",
    [
        *("seed=1", "beta=0.2", "train=[psi1]", "trainer=separate", "method=sysdpo_psi2", "objective=direct"),
        *("training.batch_size=2", "training.steps=4", "training.learning_rate=1", "training.evaluate_every=1"),
        *("dataset.seed=1", "dataset.prompts=15", "dataset.batch_size=5", "max_new_tokens=11", "llm.lora.r=4"),
        *("llm.generation.temperature=0.5", "sampler.draw.diversity_penalty=3", "system=planner_writer"),
    ],
)
def test_what_decides_the_weights_is_another_training(override: str, plain: Identity) -> None:
    assert of(override).training != plain.training


@pytest.mark.parametrize("override", ["judge.temperature=0.2", "judge=none", "evaluation.answer=y"])
def test_another_judge_is_another_evaluation_of_the_same_training(override: str, plain: Identity) -> None:
    judged = of(override)
    assert judged.training == plain.training
    assert judged.evaluation != plain.evaluation


def test_what_a_judge_costs_is_no_part_of_a_run() -> None:
    settings = [
        *("assume_yes=true", "endpoint.concurrency=1", "endpoint.max_attempts=2", "endpoint.timeout_s=5"),
        *("endpoint.first_wait_s=2", "endpoint.api_key_env=OTHER", "cache_dir=/elsewhere", "characters_per_token=3"),
        *("dollars_per_million_prompt_tokens=9", "dollars_per_million_completion_tokens=9"),
    ]
    assert of("judge=alpaca_eval", *(f"judge.{setting}" for setting in settings)) == of("judge=alpaca_eval")


def test_who_labels_counts_where_pairs_are_made_during_training() -> None:
    def config(labels: str, every: int) -> dict[str, Any]:
        return {"labels": {"judge": labels}, "training": {"redraw_every": every}, "trainer": "joint"}

    assert identity(config("a", 0)) == identity(config("b", 0))
    assert identity(config("a", 5)).training != identity(config("b", 5)).training


def test_who_judges_is() -> None:
    judge = of("judge=alpaca_eval")
    for setting in ("model=other", "seed=1", "endpoint.base_url=http://127.0.0.1:1/v1"):
        assert of("judge=alpaca_eval", f"judge.{setting}").evaluation != judge.evaluation


def test_names_that_users_give_are_never_taken_for_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A component called `device` with its own model and rate; a variable `path` whose parent has a file's name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").write_text("one")

    def config(size: int, rate: float) -> dict[str, Any]:
        variables = {"x": {"role": "input"}, "path": {"component": "device", "parents": {"model": "x"}}}
        components = {"device": {"model": {"size": size}}}
        training = {"learning_rates": {"device": rate}}
        return {"system": {"variables": variables, "components": components}, "training": training}

    first = identity(config(1, 0.1))
    assert identity(config(2, 0.1)) != first
    assert identity(config(1, 0.2)) != first
    (tmp_path / "x").write_text("two")
    assert identity(config(1, 0.1)) == first
    swapped = config(1, 0.1)
    swapped["system"]["variables"] = dict(reversed(swapped["system"]["variables"].items()))
    assert identity(swapped) != first  # the order of components decides their seeds


ROWS = [{"prompt": f"p{i}", "chosen": "good", "rejected": "bad"} for i in range(4)]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_data_count_by_their_rows_not_by_their_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_rows(tmp_path / "a b=[ü]" / "rows.jsonl", ROWS)
    monkeypatch.chdir(file.parent)
    first = of("dataset=jsonl", "dataset.path=rows.jsonl")
    assert of("dataset=jsonl", "dataset.path=./rows.jsonl") == first
    assert of("dataset=jsonl", f"dataset.path='{file}'") == first
    other = write_rows(tmp_path / "copy.jsonl", ROWS)
    assert of("dataset=jsonl", f"dataset.path={other}") == first
    save_rows(ROWS, tmp_path / "saved")
    assert of("dataset=jsonl", f"dataset.path={tmp_path / 'saved'}") == first
    write_rows(other, [*ROWS[:-1], {**ROWS[-1], "chosen": "better"}])
    assert of("dataset=jsonl", f"dataset.path={other}").training != first.training


def test_a_picture_that_rows_only_name_counts_by_its_bytes(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [{"x": "a", "chosen": {"z": ["one.png"]}, "rejected": {"z": "../no"}}])
    (tmp_path / "one.png").write_bytes(b"first")
    first = Recorded(str(path)).fingerprint()
    assert Recorded(str(path)).fingerprint() == first
    (tmp_path / "one.png").write_bytes(b"other")
    assert Recorded(str(path)).fingerprint() != first


@pytest.mark.parametrize("place", ["llm.pretrained", "judge.model"])
def test_a_model_folder_counts_by_its_files(place: str, tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        shutil.copytree(ASSETS / "mini_lm", folder)
    given = ["scale=mini"] if place.startswith("llm") else ["judge=reward_model"]
    first, second = (of(*given, f"{place}={folder}") for folder in folders)
    assert first == second
    weights = folders[1] / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    second = of(*given, f"{place}={folders[1]}")
    assert (second.training == first.training) is place.startswith("judge")
    assert second.evaluation != first.evaluation or place.startswith("llm")


def test_data_are_made_anew_for_another_model_under_the_same_path(tmp_path: Path) -> None:
    """Whatever else lies in the folder's name: pairs and baselines are samples of the model's weights."""

    def made(folder: Path) -> Path:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return made_data(compose("config", ["scale=mini", f"llm.pretrained={folder}", "outputs=o"]))

    shutil.copytree(ASSETS / "mini_lm", tmp_path / "lm")
    first = made(tmp_path / "lm")
    (tmp_path / "lm").rename(tmp_path / "moved")
    assert made(tmp_path / "moved") == first
    (tmp_path / "moved" / "generation_config.json").write_text("{}")
    assert made(tmp_path / "moved") != first


def test_a_file_with_an_old_time_stamp_is_read_again_if_its_size_differs(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_text("one")
    times = file.stat().st_atime_ns, file.stat().st_mtime_ns
    first = module.content(file)
    file.write_text("three")
    os.utime(file, ns=times)
    assert module.content(file) != first


def test_a_model_s_page_is_no_part_of_it(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "config.json").write_text("{}")
    first = module.content(tmp_path)
    (tmp_path / "README.md").write_text("What it is.")
    assert module.content(tmp_path) == first
    (tmp_path / "config.json").write_text('{"a": 1}')
    assert module.content(tmp_path) != first


def test_a_run_of_an_earlier_version_is_known_by_its_config(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    config = {"beta": 0.1, "system": {"components": {"psi1": {"model": {"device": "cpu"}}}}}
    run.open(config, identity(config), "abc")
    (run.path / "identity.json").unlink()
    assert run.identity == identity(config)
    assert run.run_id(identity(config)) == "abc"


def test_a_new_judge_keeps_weights_and_puts_the_old_results_aside(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "seed=0")
    first, second = Identity("t", "a"), Identity("t", "b")
    run.open({"judge": "a"}, first, "abc")
    (run.path / "checkpoints").mkdir()
    (run.path / ".logged-WandbLogger").touch()
    (run.path / "samples").mkdir()
    (run.path / "samples" / "evaluation.jsonl").write_text('{"row": 0}\n')
    run.finish({"wr": 1.0})
    assert not run.is_finished(second)
    assert run.run_id(second) == "abc"
    run.open({"judge": "b"}, second, "abc")
    assert run.metrics is None
    assert (run.path / "checkpoints").is_dir()
    assert not (run.path / ".logged-WandbLogger").exists()
    old = RunFolder(tmp_path / ".seed=0.superseded-1")
    assert (old.metrics, old.config, old.identity, old.samples) == ({"wr": 1.0}, {"judge": "a"}, first, [{"row": 0}])
    run.finish({"wr": 2.0})
    assert run.is_finished(second)
    assert run.fault() is None
