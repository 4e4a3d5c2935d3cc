"""W&B offline: what two jobs of one process leave behind, read from the files that `wandb sync` would upload."""

import json
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sysdpo.errors import SettingError
from sysdpo.runs.wandb_log import WandbLogger, _short

wandb = pytest.importorskip("wandb")
wandb_internal = pytest.importorskip("wandb.proto.wandb_internal_pb2")
BLOCK, FILE_HEADER, HEADER = 32768, 7, 7


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")


def records(path: Path) -> Iterator[Any]:
    """The records of a `.wandb` file: LevelDB's log format after W&B's own file header."""
    content, position, parts = path.read_bytes(), FILE_HEADER, b""
    while position + HEADER <= len(content):
        if BLOCK - position % BLOCK < HEADER:  # no header fits into the rest of a block
            position += BLOCK - position % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", content[position : position + HEADER])
        parts += content[position + HEADER : position + HEADER + length]
        position += HEADER + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def items(found: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in found}


def stored(folder: Path) -> dict[str, dict[str, Any]]:
    """Run name -> what its file says."""
    wandb.teardown()  # its service writes behind our back; it has written all once it has stopped
    runs = {}
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        run: dict[str, Any] = {"history": [], "summary": {}, "artifacts": []}
        for record in records(path):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                run |= {"name": record.run.display_name, "group": record.run.run_group, "tags": list(record.run.tags)}
                run |= {"project": record.run.project, "config": items(record.run.config.update)}
            elif kind == "history":
                run["history"].append(items(record.history.item))
            elif kind == "summary":
                run["summary"] |= items(record.summary.update)
            elif kind == "artifact":
                run["artifacts"].append((record.artifact.type, [e.path for e in record.artifact.manifest.contents]))
            elif kind == "exit":
                run["exit"] = record.exit.exit_code
        if "name" in run:  # its process was not killed before it wrote anything
            runs[run["name"]] = run
    return runs


def logger_for(folder: Path, method: str, config: Mapping[str, Any]) -> WandbLogger:
    run_folder = folder / "t" / "tiny" / method / "seed=0"
    run_folder.mkdir(parents=True)
    return WandbLogger("project", "offline", folder, "t/tiny", [method, "tiny"], run_folder, config)


def test_two_jobs_of_one_process_are_two_runs_and_a_crash_closes_its_own(tmp_path: Path) -> None:
    first = logger_for(tmp_path, "joint", {"beta": 0.5, "system": {"_target_": "x"}})
    files = first.files.path
    first.log({"step": 1, "loss": 0.69})
    first.log({"step": 2, "loss": 0.5})
    (files / "metrics.json").write_text(json.dumps({"wr": {"value": 61.0, "se": 2.0, "n": 2}, "judge": "oracle"}))
    (files / "samples").mkdir()
    for name in ("1.png", "2.png"):
        Image.new("RGB", (4, 4)).save(files / "samples" / name)
    sample = {"x": "why?", "y": ["a", "b"], "z": ["1.png", "2.png"]}
    (files / "samples" / "evaluation.jsonl").write_text(json.dumps(sample) + "\n")
    (files / "adapters" / "psi1").mkdir(parents=True)
    (files / "adapters" / "psi1" / "adapter.bin").write_bytes(b"weights")
    first.finish()

    second = logger_for(tmp_path, "separate", {"beta": 0.1})
    second.log({"component": "psi1", "step": 1, "loss": 0.7})
    second.log({"component": "psi2", "step": 1, "loss": 0.6})
    second.finish(succeeded=False)

    third = logger_for(tmp_path, "unsaved", {})
    (third.files.path / "metrics.json").write_text("torn")
    with pytest.raises(json.JSONDecodeError):
        third.finish()

    runs = stored(tmp_path)
    assert set(runs) == {"joint/seed=0", "separate/seed=0", "unsaved/seed=0"}
    one, other = runs["joint/seed=0"], runs["separate/seed=0"]
    assert one["project"] == "project"
    assert one["group"] == other["group"] == "t/tiny"
    assert (one["tags"], other["tags"]) == (["joint", "tiny"], ["separate", "tiny"])
    assert one["config"]["beta"] == 0.5
    assert one["config"]["system"] == {"_target_": "x"}
    assert other["config"]["beta"] == 0.1
    assert [(h["step"], h["loss"]) for h in one["history"] if "loss" in h] == [(1, 0.69), (2, 0.5)]
    assert [h for line in other["history"] for h in line if h.endswith("loss")] == ["psi1/loss", "psi2/loss"]
    assert one["summary"]["judge"] == "oracle"
    assert ("model", ["psi1/adapter.bin"]) in one["artifacts"]
    assert not any(kind == "model" for kind, _ in other["artifacts"])
    assert (one["exit"], other["exit"], runs["unsaved/seed=0"]["exit"]) == (0, 1, 1)

    (table,) = tmp_path.glob("wandb/offline-run-*/files/media/table/samples_*.table.json")
    content = json.loads(table.read_text())
    assert content["columns"] == ["x", "y", "z"]
    assert content["data"] == [["why?", "a\nb", "Image"]]
    (held,) = [paths for kind, paths in one["artifacts"] if kind == "run_table"]
    assert len([path for path in held if path.endswith(".png")]) == 1  # a strip of the two


def test_an_unknown_mode_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="did you mean 'offline'"):
        WandbLogger("project", "ofline", tmp_path, "g", [], tmp_path / "run", {})
    assert os.listdir(tmp_path) == []


def test_a_run_that_goes_on_is_the_same_run_and_its_data_are_an_artifact(tmp_path: Path) -> None:
    data = tmp_path / "pairs.jsonl"
    data.write_text('{"x": 1}\n')
    run_folder = tmp_path / "sweeps" / "grid" / "beta=0.1,seed=0"
    (run_folder / "adapters" / "psi1").mkdir(parents=True)
    (run_folder / "adapters" / "psi1" / "adapter.bin").write_bytes(b"weights")
    for step, limit in ((1, 200.0), (2, 0.0)):
        logger = WandbLogger("p", "offline", tmp_path, "grid", [], run_folder, {}, "0123abcd", data, limit)
        logger.log({"step": step, "components/psi1/margin": 0.5})
        logger.finish()
    (run,) = stored(tmp_path).values()
    folders = [path.name for path in tmp_path.glob("wandb/offline-run-*")]
    assert {name.split("-")[3] for name in folders} == {"0123abcd"}
    assert [paths for kind, paths in run["artifacts"] if kind == "dataset"] in ([["pairs.jsonl"]], [[data.as_uri()]])


KILLED = """
import os, signal, sys
from sysdpo.runs.wandb_log import WandbLogger
logger = WandbLogger("p", "offline", sys.argv[1], "g", [], sys.argv[1] + "/run", {}, "4567cdef")
logger.log({"step": 1, "loss": 0.7})
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_run_of_a_killed_child_goes_on_while_its_parent_s_own_helper_lives(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    parent = WandbLogger("p", "offline", tmp_path, "g", [], tmp_path / "run", {}, "other")  # its helper is up
    child = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert child.returncode == -signal.SIGKILL
    again = WandbLogger("p", "offline", tmp_path, "g", [], tmp_path / "run", {}, "4567cdef")
    again.finish()
    parent.finish()


def test_the_workspace_shows_results_training_and_components(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb_workspaces")
    from sysdpo.runs.wandb_workspace import make_workspace, save_workspace

    spec = make_workspace("me", "p", "n", {"wr_chosen": "WR-Chosen"}, ["psi1", "psi2"])._to_model().model_dump_json()
    assert json.loads(spec)["entity"] == "me"
    for text in ("wr_chosen.value", "rewards/margins", "components/psi1/margin", "components/psi2/margin"):
        assert f'"{text}"' in spec
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", "/no/such/file")
    with pytest.raises(SettingError, match="Log in with `wandb login`"):
        save_workspace(None, "p", "n", {}, [])


def test_a_run_s_name_keeps_to_the_limit_of_wandb() -> None:
    long = [f"{'a=1,' * 60}seed={seed}" for seed in (0, 1)]
    short = [_short(name) for name in long]
    assert [len(name) for name in short] == [128, 128]
    assert short[0] != short[1]
    assert _short("row/seed=0") == "row/seed=0"
