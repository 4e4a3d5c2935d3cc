"""Files whole or absent, checkpoints that know what they are of, bad numbers, signals: nothing lost but time."""

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from sysdpo.cli.failures import explain
from sysdpo.components.names import MEANT_BY_TORCH, check_component_name
from sysdpo.data.storage import load_rows, made_once, save_rows
from sysdpo.errors import SettingError, check_file_name, plain
from sysdpo.runs.files import (
    SUMS,
    append_line,
    append_rows,
    damage,
    is_summed,
    read_rows,
    replacing,
    write_json,
    write_summed,
    write_sums,
    write_text,
)
from sysdpo.runs.folder import RunFolder, survey
from sysdpo.runs.identity import identity
from sysdpo.runs.stopping import Terminated
from sysdpo.system import CompoundSystem, Pair
from sysdpo.training.checkpoints import (
    checkpoint_path,
    checkpoint_steps,
    load_checkpoint,
    read_checkpoint,
    trainable_state,
    write_checkpoint,
)
from sysdpo.training.loop import Trainer, TrainingSettings
from sysdpo.training.objectives import Direct
from tests.systems import make_pairs_for, make_two_llm, make_with_tool

SETTINGS = TrainingSettings(
    steps=4, batch_size=2, micro_batch_size=2, learning_rate=1e-2, beta=0.1, checkpoint_every=1, keep_checkpoints=None
)


@contextmanager
def little_room(size: int) -> Iterator[None]:
    """No file of this process may grow beyond `size` bytes: the system refuses, as a quota would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


# ---- no room -------------------------------------------------------------------------------------------------------

NOISE = np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8)
WRITERS: dict[str, Callable[[Path], Any]] = {
    "text": lambda path: path.write_text("x" * 100_000),
    "torch": lambda path: torch.save({"w": torch.zeros(50_000)}, path),
    "safetensors": lambda path: save_file({"w": torch.zeros(50_000)}, path),
    "picture": lambda path: Image.fromarray(NOISE).save(path, "PNG"),
}


@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS.keys())
def test_no_room_is_one_line_and_what_was_there_stays(writer: Callable[[Path], Any], tmp_path: Path) -> None:
    def write(path: Path) -> None:
        with replacing(path) as fresh:
            writer(fresh)

    target = tmp_path / "result"
    target.write_bytes(b"before")
    with little_room(20_000), pytest.raises(SettingError, match=r"result: .*make room") as caught:
        write(target)
    assert "\n" not in str(caught.value)
    assert target.read_bytes() == b"before"
    assert [path.name for path in tmp_path.iterdir()] == ["result"]
    write(target)  # there is room again
    assert target.stat().st_size > 20_000


def test_no_room_for_a_data_set_keeps_the_one_before(tmp_path: Path) -> None:
    save_rows([{"x": "old"}], tmp_path / "set")
    with little_room(20_000), pytest.raises(SettingError, match="set: "):
        save_rows([{"x": "a" * 1000} for _ in range(100)], tmp_path / "set")
    assert load_rows(tmp_path / "set") == [{"x": "old"}]


def test_a_full_disk_has_no_file_name_and_still_is_one_line() -> None:
    with pytest.raises(SettingError, match="/dev/full: No space left on device; make room"):
        append_line(Path("/dev/full"), {"step": 1})
    with pytest.raises(OSError, match="No space left") as caught:
        os.write(os.open("/dev/full", os.O_WRONLY), b"x")
    assert caught.value.filename is None
    line = explain(caught.value)
    assert line is not None
    assert "No space left on device; make room" in line
    assert explain(RuntimeError("[enforce fail at inline_container.cc:820] . PytorchStreamWriter failed")) is not None
    assert explain(RuntimeError("a bug")) is None


@pytest.mark.skipif(os.getuid() != 0, reason="mounting a file system needs root")
def test_training_on_a_full_disk_goes_on_once_there_is_room(tmp_path: Path) -> None:
    """A real file system of 60 MB that fills up in the middle of training."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=60m", "none", str(disk)], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        expected, _ = train(tmp_path / "whole")
        ballast = disk / "ballast"
        update = Trainer._update

        def filling(self: Trainer) -> dict[str, float]:
            if self.step == 2:
                with ballast.open("wb", buffering=0) as file:
                    try:
                        while True:
                            file.write(b"x" * 4096)
                    except OSError:
                        pass
            return update(self)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Trainer, "_update", filling)
            with pytest.raises(SettingError, match=r"(No space left on device|did not take all)"):
                train(disk / "run")
        ballast.unlink(missing_ok=True)
        assert checkpoint_steps(disk / "run" / "checkpoints")[0] == 2
        weights, rows = train(disk / "run")
        assert [row["step"] for row in rows] == [1, 2, 3, 4]
        assert all(torch.equal(weights[name], value) for name, value in expected.items())
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)


# ---- checksums -----------------------------------------------------------------------------------------------------


def test_a_folder_says_what_is_wrong_with_it(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "one")
    write_text(tmp_path / "b" / "c.txt", "two")
    write_sums(tmp_path)
    assert damage(tmp_path) is None
    checked = subprocess.run(["sha256sum", "--check", "--quiet", SUMS], cwd=tmp_path, capture_output=True, text=True)
    assert (checked.returncode, checked.stdout) == (0, "")
    (tmp_path / "b" / "c.txt").write_text("twa")
    assert damage(tmp_path) == "b/c.txt is not what was written"
    (tmp_path / "b" / "c.txt").unlink()
    assert damage(tmp_path) == "b/c.txt is missing or cannot be read"
    lines = (tmp_path / SUMS).read_text().splitlines(keepends=True)
    (tmp_path / SUMS).write_text("".join(lines[1:]))  # a list cut short checks less
    assert damage(tmp_path) == f"{SUMS} is missing or damaged"


def test_swapped_rows_do_not_count(tmp_path: Path) -> None:
    file = tmp_path / "untrained.jsonl"
    write_summed(file, [{"z": "a"}, {"z": "b"}])
    assert is_summed(file)
    file.write_text("".join(reversed(file.read_text().splitlines(keepends=True))))
    assert not is_summed(file)


@pytest.mark.parametrize(
    ("harm", "left"),
    [
        (lambda b: b[:-3], 2),
        (lambda b: b.replace(b"two", b"tvo"), 1),
        (lambda b: b"".join(b.splitlines(keepends=True)[::-1]), 0),
        (lambda b: b"\x00\xff" + b, 0),
        (lambda b: b"", 0),
    ],
)
def test_work_kept_row_by_row_ends_at_the_first_row_that_is_not_whole(
    tmp_path: Path, harm: Callable[[bytes], bytes], left: int
) -> None:
    rows = [{"z": "one"}, {"z": "two"}, {"z": "three"}]
    file = tmp_path / "rows"
    append_rows(file, rows, 0)
    file.write_bytes(harm(file.read_bytes()))
    assert read_rows(file) == rows[:left]
    append_rows(file, rows[left:], left)
    assert read_rows(file) == rows


@pytest.mark.parametrize("harm", ["cut", "empty", "gone", "swapped"])
def test_made_data_that_are_damaged_are_made_anew(tmp_path: Path, harm: str, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "set"

    def make() -> bool:
        with made_once(folder, folder / SUMS, lambda: damage(folder)) as missing:
            if missing:
                save_rows([{"x": "a"}, {"x": "b"}], folder / "train")
                write_json(folder / "card.json", {"rows": 2})
                write_sums(folder)
        return missing

    assert make()
    assert not make()
    arrow = next((folder / "train").glob("*.arrow"))
    if harm == "cut":
        arrow.write_bytes(arrow.read_bytes()[:-10])
    elif harm == "empty":
        (folder / "card.json").write_text("")
    elif harm == "gone":
        arrow.unlink()
    else:
        arrow.write_bytes(arrow.read_bytes()[::-1])
    caplog.clear()
    assert make()
    assert [record.getMessage().count("made anew") for record in caplog.records] == [1]
    assert load_rows(folder / "train") == [{"x": "a"}, {"x": "b"}]


# ---- checkpoints ---------------------------------------------------------------------------------------------------


def foreign(path: Path) -> None:
    torch.save({"step": 2, "weights": {}}, path)


def counted_up(path: Path) -> None:
    state, _ = load_checkpoint(path)
    assert state is not None
    torch.save({**state, "step": 99}, path)


HARM: dict[str, Callable[[Path], Any]] = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "last byte": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(os.urandom(5000)),
    "one bit": lambda path: path.write_bytes(b"".join([(b := path.read_bytes())[:400], bytes([b[400] ^ 1]), b[401:]])),
    "foreign": foreign,
    "counter": counted_up,
    "pickle": lambda path: path.write_bytes(b"cos\nsystem\n(S'touch /tmp/owned'\ntR."),
}


@pytest.mark.parametrize("harm", HARM.values(), ids=HARM.keys())
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    harm: Callable[[Path], Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_checkpoint(tmp_path, {"step": 1, "w": torch.ones(300)})
    write_checkpoint(tmp_path, {"step": 2, "w": torch.zeros(300)})
    assert torch.load(checkpoint_path(tmp_path, 2), weights_only=True)["step"] == 2  # torch's own reader opens it
    harm(checkpoint_path(tmp_path, 2))
    state = read_checkpoint(tmp_path)
    assert state is not None
    assert state["step"] == 1
    (line,) = [record.getMessage() for record in caplog.records]
    assert "step=2.pt" in line
    assert "passed over for the checkpoint before it" in line
    assert "\n" not in line


def test_the_last_ones_and_the_best_are_kept(tmp_path: Path) -> None:
    for step in range(1, 8):
        write_checkpoint(tmp_path, {"step": step}, keep=2, best=3)
    assert checkpoint_steps(tmp_path) == [7, 6, 3]
    write_checkpoint(tmp_path, {"step": 4}, keep=None)  # gone on from 3: what lies beyond is another future
    assert checkpoint_steps(tmp_path) == [4, 3]


def train(
    folder: Path,
    settings: TrainingSettings = SETTINGS,
    make: Callable[[], CompoundSystem] = make_two_llm,
    seed: int = 0,
) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    folder.mkdir(parents=True, exist_ok=True)
    system = make()
    Trainer(system, Direct(), make_pairs_for(system, 4, seed=seed), [], settings, folder).run()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return trainable_state(system), lines


def equal(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> bool:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in one] == [
        {k: v for k, v in row.items() if k != "seconds"} for row in other
    ]


@pytest.mark.parametrize("harm", ["newest", "two", "all", "history", "history gone"])
def test_whatever_is_damaged_a_run_ends_as_if_it_had_not_been(tmp_path: Path, harm: str) -> None:
    expected, lines = train(tmp_path / "whole")
    folder = tmp_path / "harmed"
    train(folder)
    kept = checkpoint_steps(folder / "checkpoints")
    assert kept == [4, 3, 2, 1]
    for step in {"newest": kept[:1], "two": kept[:2], "all": kept}.get(harm, []):
        HARM["truncated"](checkpoint_path(folder / "checkpoints", step))
    if harm == "history":
        (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in lines[:1]))
    elif harm == "history gone":
        (folder / "metrics.jsonl").unlink()
    weights, again = train(folder)
    assert equal(again, lines)
    assert all(torch.equal(weights[name], value) for name, value in expected.items())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"settings": replace(SETTINGS, learning_rate=2e-2)}, r"another training.learning_rate \(0.01, here 0.02\)"),
        ({"settings": replace(SETTINGS, beta=0.3)}, r"another training.beta"),
        ({"make": make_with_tool}, "another system"),
        ({"seed": 7}, "another training data"),
    ],
)
def test_a_folder_of_another_training_is_refused(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    train(tmp_path)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(SettingError, match=says) as caught:
        train(tmp_path, **change)
    assert "remove or rename the folder" in str(caught.value)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    assert checkpoint_steps(tmp_path / "checkpoints") == [4, 3, 2, 1]


def test_other_base_weights_are_another_system(tmp_path: Path) -> None:
    def moved() -> CompoundSystem:
        system = make_two_llm()
        frozen = next(p for p in system.parameters() if not p.requires_grad)
        with torch.no_grad():
            frozen += 0.01
        return system

    train(tmp_path)
    with pytest.raises(SettingError, match="another system"):
        train(tmp_path, make=moved)


def test_what_only_decides_how_long_or_how_fast_goes_on(tmp_path: Path) -> None:
    expected, _ = train(tmp_path / "whole", replace(SETTINGS, steps=6))
    train(tmp_path / "longer", replace(SETTINGS, steps=3))
    weights, lines = train(tmp_path / "longer", replace(SETTINGS, steps=6, checkpoint_every=2, nonfinite="skip"))
    assert [row["step"] for row in lines] == [1, 2, 3, 4, 5, 6]
    assert all(torch.equal(weights[name], value) for name, value in expected.items())


def test_adapters_that_are_damaged_are_refused_by_name(tmp_path: Path) -> None:
    system = make_two_llm()
    system.train_only(["psi1"])
    system.save(tmp_path)
    assert system.restore(tmp_path) == ["psi1"]
    weights = next((tmp_path / "psi1").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-5])
    with pytest.raises(SettingError, match=f"psi1: {weights.name} is not what was written"):
        system.restore(tmp_path)


# ---- bad numbers and signals ---------------------------------------------------------------------------------------


class Broken(Direct):
    """A loss that is NaN for one row at one step."""

    def compare(self, system: CompoundSystem, pairs: Any, seeds: Any) -> Any:
        compared = super().compare(system, pairs, seeds)
        hit = torch.tensor([pair.index == 2 for pair in pairs])
        spoilt = torch.where(hit, torch.nan, compared.margin)
        terms = {n: torch.where(hit, torch.nan, v) if n == "psi2" else v for n, v in compared.terms.items()}
        return replace(compared, margin=spoilt, terms=terms)


def test_a_loss_that_is_not_finite_names_step_component_and_row(tmp_path: Path) -> None:
    system = make_two_llm()
    with pytest.raises(SettingError, match=r"step 1: the loss is not finite \(component psi2, row 3 of the data\)"):
        Trainer(system, Broken(), make_pairs_for(system, 4), [], replace(SETTINGS, batch_size=4), tmp_path).run()


def test_skip_leaves_the_update_out_and_the_weights_whole(tmp_path: Path) -> None:
    """Batches of one: the row that is broken has no effect, the others have theirs."""
    system = make_two_llm()
    before = trainable_state(system)
    settings = replace(SETTINGS, batch_size=1, micro_batch_size=1, nonfinite="skip")
    Trainer(system, Broken(), make_pairs_for(system, 4), [], settings, tmp_path).run()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    skipped = [line for line in lines if "skipped" in line]
    assert len(skipped) == 1
    assert "loss" not in skipped[0]
    assert all(torch.isfinite(value).all() for value in trainable_state(system).values())
    assert any(not torch.equal(before[name], value) for name, value in trainable_state(system).items())


def test_an_infinite_gradient_names_its_component(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system = make_two_llm()
    target = next(p for p in system.component("psi2").parameters() if p.requires_grad)
    target.register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(SettingError, match=r"step 1: the gradient is not finite \(component psi2, row "):
        Trainer(system, Direct(), make_pairs_for(system, 4), [], SETTINGS, tmp_path).run()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_ends_the_update_keeps_it_and_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    settings = replace(SETTINGS, checkpoint_every=100)
    expected, lines = train(tmp_path / "whole", settings)
    update = Trainer._update

    def interrupted(self: Trainer) -> dict[str, float]:
        if self.step == 1:
            os.kill(os.getpid(), number)
        return update(self)

    handler = signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_update", interrupted)
        with pytest.raises(Terminated) as caught:
            train(tmp_path / "stopped", settings)
    assert caught.value.status == 128 + number
    assert signal.getsignal(number) is handler
    assert checkpoint_steps(tmp_path / "stopped" / "checkpoints") == [2]
    weights, again = train(tmp_path / "stopped", settings)
    assert equal(again, lines)
    assert all(torch.equal(weights[name], value) for name, value in expected.items())


# ---- run folders ---------------------------------------------------------------------------------------------------

CONFIG = {"beta": 0.1, "train": ["psi1"]}
OWN = identity(CONFIG)


def finished(path: Path) -> RunFolder:
    run = RunFolder(path)
    run.open(CONFIG, OWN, "abc123")
    for step in (1, 2):
        append_line(path / "metrics.jsonl", {"step": step})
    write_text(path / "samples" / "evaluation.jsonl", '{"row": 0, "z": "yes"}\n')
    run.finish({"method": "m", "seed": 0})
    return run


FILES = ("metrics.json", "config.yaml", "identity.json", "metrics.jsonl", "samples/evaluation.jsonl")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", ["{}", "", "\x00garbage", None, "cut"])
def test_a_finished_run_whose_file_is_harmed_is_not_finished(tmp_path: Path, name: str, harm: str | None) -> None:
    run = finished(tmp_path / "m" / "seed=0")
    assert run.is_finished(OWN)
    file = run.path / name
    if harm is None:
        file.unlink()
    elif harm == "cut":
        file.write_bytes(file.read_bytes()[:-8])
    else:
        file.write_text(harm)
    assert not run.is_finished(OWN)
    runs, notes = survey(tmp_path, "m")
    assert runs == {}
    assert len(notes) == (0 if name == "metrics.json" and harm is None else 1)


def test_a_run_id_that_is_garbage_is_replaced(tmp_path: Path) -> None:
    run = finished(tmp_path / "run")
    assert run.run_id(OWN) == "abc123"
    (run.path / "run_id").write_bytes(b"\xff\xfe\x00")
    assert len(run.run_id(OWN)) == 16


def test_stray_folders_are_left_out_and_said(tmp_path: Path) -> None:
    finished(tmp_path / "m" / "seed=0")
    for name in ("seed=0.bak", "seed=0 (copy)", "seed=true", "seed=00", "seed=-1", "seed="):
        finished(tmp_path / "m" / name)
    (tmp_path / "m" / "seed=3").write_text("a file")
    runs, notes = survey(tmp_path, "m")
    assert list(runs) == [0]
    assert len(notes) == 7
    assert "m/seed=0.bak is no run folder (seed=<number>); it is left out." in notes


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="no /proc on this system")
def test_where_the_system_makes_no_folders_is_one_line() -> None:
    expected = "/proc/nope: the system makes no folders there; set outputs"
    with pytest.raises(SettingError, match=expected), RunFolder(Path("/proc/nope/run")).held():
        pass


def test_with_its_lock_file_deleted_a_run_still_belongs_to_one_process(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "m" / "seed=0")
    hold = "import sys; from sysdpo.runs.folder import RunFolder; from pathlib import Path\n"
    hold += (
        "from sysdpo.runs.identity import Identity\nrun = RunFolder(Path(sys.argv[1]))\nwith run.held():\n"
        "    run.open({'beta': 1}, Identity('1', ''))\n    run.open({'beta': 2}, Identity('2', ''))\n"
    )
    hold += "    print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(folder.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        for lock in folder.path.parent.glob(".*.lock"):
            lock.unlink()
        with pytest.raises(SettingError, match="another process is at this run"), folder.held():
            raise AssertionError("both have it")
        other.kill()
    with folder.held():
        pass


# ---- names and what is shown ---------------------------------------------------------------------------------------


ELSEWHERE = ["half\ud800", "../up", "../../../up", "/tmp/x", "a/b", "..", ".", "", " ", "a\\b", "a\x1b[2J", "ü" * 150]


@pytest.mark.parametrize("name", ELSEWHERE)
def test_names_that_lead_elsewhere_are_refused(name: str) -> None:
    with pytest.raises(SettingError, match="names a folder of the results") as caught:
        check_file_name("method.name", name)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("name", ["values", "type", "training", "query.rewriter", "openai/gpt", "/abs", "forward"])
def test_component_names_that_could_not_be_kept_are_refused(name: str) -> None:
    with pytest.raises(SettingError, match="components"):
        check_component_name(name)


def test_names_that_mean_something_to_torch_are_those_that_are_written_down() -> None:
    names = {name for name in dir(nn.ModuleDict()) if not name.startswith("_")}
    # transformers gives every module the last one, once a model of certain kinds was made
    assert names | {"smart_apply"} == MEANT_BY_TORCH


@pytest.mark.parametrize("name", ["psi1", "query-rewriter", "Schreiber_ü", "model 2", "a=b"])
def test_other_names_are_taken(name: str) -> None:
    check_component_name(name)
    assert check_file_name("method.name", name) == name


def test_text_for_terminals_commands_nothing() -> None:
    assert plain("a\x1b]0;owned\x07b\x9b31m\u202ec\ud800") == "a\ufffd]0;owned\ufffdb\ufffd31m\ufffdc\ufffd"
    assert plain("Größe, 漢字, 😀, é") == "Größe, 漢字, 😀, é"
    assert explain(SettingError("row 1: \x1b[2J")) == "row 1: \ufffd[2J"


def test_only_a_run_s_own_pictures_are_pictures(tmp_path: Path) -> None:
    private = tmp_path / "private.png"
    Image.new("RGB", (8, 8), "red").save(private)
    run = RunFolder(tmp_path / "run")
    (run.path / "samples").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(run.path / "samples" / "0000.png")
    (run.path / "samples" / "link.png").symlink_to(private)
    assert run.image("0000.png", "picture") is not None
    for value in (str(private), "../../private.png", "link.png", "samples/../../private.png", "absent.png", 3, None):
        assert run.image(value, "picture") is None
    write_json(run.path / "samples" / "pictures.json", {"fields": ["picture"]})
    assert run.image("0000.png", "picture") is not None
    assert run.image("0000.png", "answer") is None  # a model's text is a text


def test_pairs_of_pictures_have_a_fingerprint(tmp_path: Path) -> None:
    from sysdpo.training.fingerprint import fingerprint

    system = make_two_llm()
    picture = Image.fromarray(NOISE)
    other = picture.copy()
    other.putpixel((0, 0), (1, 2, 3))

    def of(content: Any) -> str:
        pairs = [Pair(0, {"x": "a"}, {"z": [content]}, {"z": ["b"]})]
        return fingerprint(system, Direct(), pairs, [], SETTINGS)["training data"]

    assert of(picture) == of(picture.copy()) != of(other)
    assert of(b"one") == of(b"one") != of(b"two")
