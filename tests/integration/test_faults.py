"""Commands that are disturbed: a quick version of `make faults`, workers, signals, the planted key, a long run."""

import importlib.util
import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.integration.commands import ROOT, start, train_in_process

SMALL = ("scale=smoke", "training.steps=12", "training.checkpoint_every=4", "training.validate_every=0")


def test_a_quick_version_of_make_faults(tmp_path: Path) -> None:
    """One try of each fault on one row, in processes of their own."""
    command = ("faults.py", "--tries", "1", "--rows", "separate_dpo", "--inputs", "2", "--work", str(tmp_path / "work"))
    command += ("--output", str(tmp_path / "faults.json"))
    process = start(*command, "--minutes", "0")  # stopped at once, it goes on
    output, errors = process.communicate(timeout=580)
    assert process.returncode == 0, output + errors
    assert "0 of 5 tries are made" in output
    process = start(*command)
    output, errors = process.communicate(timeout=580)
    assert process.returncode == 0, output + errors
    faults = json.loads((tmp_path / "faults.json").read_text())["faults"]
    assert [fault["equal"] for fault in faults] == [1] * 5


def test_names_that_lead_out_of_outputs_are_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    outputs = tmp_path / "a" / "b" / "outputs"
    for override in ("method.name=../../../up", "+system.components./abs={_target_: x}", "experiment.name=1"):
        assert train_in_process(["scale=smoke", f"outputs={outputs}", override], monkeypatch) == 2
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def workers_of(process: int) -> list[int]:
    """The process ids of joblib's workers, which Linux lists under their parent."""
    children = Path(f"/proc/{process}/task/{process}/children")
    found = [int(pid) for pid in children.read_text().split()] if children.exists() else []
    return [pid for pid in found if b"LokyProcess" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def waiting_for(condition: Any, seconds: float = 240) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError("it did not come to that")


JOBLIB = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")


@pytest.mark.slow
def test_a_worker_that_is_killed_costs_no_row(tmp_path: Path) -> None:
    process = start("train.py", "-m", *JOBLIB, *SMALL, "method=sysdpo_psi1,sysdpo_psi2", f"outputs={tmp_path}")
    table = tmp_path / "table2" / "smoke"
    waiting_for(lambda: list(table.glob("*/seed=0/metrics.jsonl")))
    os.kill(workers_of(process.pid)[0], signal.SIGKILL)
    output, errors = process.communicate(timeout=580)
    assert process.returncode == 0, errors
    assert "Traceback" not in output + errors
    assert errors.count("a worker process was killed") == 1
    assert len(list(table.glob("*/seed=0/metrics.json"))) == 2


@pytest.mark.slow
def test_sigterm_ends_the_workers_too_and_the_same_command_goes_on(tmp_path: Path) -> None:
    command = ("train.py", "-m", *JOBLIB, *SMALL, "training.checkpoint_every=100", "training.steps=400")
    command += ("method=sysdpo_psi1,sysdpo_psi2", f"outputs={tmp_path}")
    process = start(*command)
    table = tmp_path / "table2" / "smoke"
    waiting_for(lambda: len([f for f in table.glob("*/seed=0/metrics.jsonl") if f.stat().st_size]) == 2)
    workers = workers_of(process.pid)
    assert len(workers) == 2
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "Traceback" not in errors
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]
    assert len(list(table.glob("*/seed=0/checkpoints/step=*.pt"))) == 2  # each kept its last update


@pytest.mark.slow
def test_a_long_run_holds_its_memory_and_file_handles(tmp_path: Path) -> None:
    """2,000 updates: resident memory grows by less than 2 % after the first 200, file handles not at all."""
    arguments = ("scale=smoke", "training.steps=2000", "training.checkpoint_every=50", "training.validate_every=0")
    process = start("train.py", *arguments, "method=sysdpo_sampling", f"outputs={tmp_path}", OMP_NUM_THREADS="1")
    threading.Thread(target=process.communicate, daemon=True).start()  # a bar that nobody reads would fill the pipe
    folder = tmp_path / "table2" / "smoke" / "sysdpo_sampling" / "seed=0"

    def state() -> tuple[int, int]:
        pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE"), len(os.listdir(f"/proc/{process.pid}/fd"))

    def reached(step: int) -> Any:
        found = [int(path.stem.removeprefix("step=")) for path in folder.glob("checkpoints/step=*.pt")]
        return max(found, default=0) >= step and state()

    memory, handles = waiting_for(lambda: reached(200), 900)
    later, more = waiting_for(lambda: reached(1950), 3000)
    assert process.wait(timeout=580) == 0
    assert later < 1.02 * memory
    assert more <= handles
    assert len(list(folder.glob("checkpoints/*"))) == 2


def test_a_planted_key_is_in_no_output_of_any_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Table 2 judged by a server that echoes the key, logged to W&B, reported: the key is looked for everywhere."""
    from tests.integration.test_judge_endpoint import Handler, Server, completion, first_token

    key = "sk-planted-0123456789abcdef"

    def echo(handler: Handler) -> None:
        answer = completion(first_token({"m": -0.5, "M": -1.0, key: -3.0})) | {"model": key}
        handler.reply(200, answer, {"X-Echo": key})

    environment = {"OPENAI_API_KEY": key, "NO_PROXY": "127.0.0.1", "WANDB_MODE": "offline"}
    printed = ""
    with Server() as server:
        server.default = echo
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        outputs = f"outputs={tmp_path / 'outputs'}"
        judged = ("judge=alpaca_eval", f"judge.endpoint.base_url={server.url}", f"judge.cache_dir={tmp_path / 'cache'}")
        judged += ("judge.assume_yes=true", "judge.model=scripted")
        train = ("train.py", "scale=smoke", "method=sysdpo_psi2", "logger=wandb", outputs, *judged)
        for command in (train, ("report.py", "scale=smoke", outputs), (*train, "beta=-1")):
            process = start(*command, **environment)
            printed += "".join(process.communicate(timeout=580))
            assert process.returncode == (2 if "beta=-1" in command else 0), printed
        server.shutdown()
    assert server.requests
    assert key not in printed
    found = [path for path in tmp_path.rglob("*") if path.is_file() and key.encode() in path.read_bytes()]
    assert found == []


def test_the_script_is_importable() -> None:
    spec = importlib.util.spec_from_file_location("faults", ROOT / "scripts" / "faults.py")
    assert spec is not None
