"""What a run survives: rows at `smoke` are killed, starved of room and have their files harmed, then run again.

`make faults` writes `docs/faults.json` and the tables of `docs/faults.md`. Every try ends with the same command once
more, undisturbed; it is recovered if its figures are then those of a run that nothing happened to (to 1e-6). Bad inputs
of every kind are generated and tried as well (`bad_inputs.py`). Tries are kept as they are made: with `--minutes` the
command stops in between, and the same command goes on.
"""

import argparse
import json
import logging
import math
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sysdpo.cli.command import prepare_environment

prepare_environment()

import torch  # noqa: E402
from bad_inputs import BadInputs, tried  # noqa: E402
from hydra import compose, initialize_config_dir  # noqa: E402

from sysdpo.cli.failures import explain  # noqa: E402
from sysdpo.experiment.run import run  # noqa: E402
from sysdpo.paths import CONF  # noqa: E402
from sysdpo.runs.files import append_line, remove, write_between, write_json  # noqa: E402
from sysdpo.runs.folder import read_jsonl  # noqa: E402
from sysdpo.runs.stopping import stoppable  # noqa: E402

ROWS = {
    "sysdpo_sampling": ["experiment=table2", "method=sysdpo_sampling", "training.steps=5"],
    "separate_dpo": ["experiment=table2", "method=separate_dpo", "training.steps=5"],
    "table1": ["experiment=table1", "method=sysdpo_direct", "training.steps=5"],
}
"""Five updates of four of twelve pairs: no multiple of an epoch."""
LIMIT = 300.0  # seconds of one attempt
MARKS = ("<!-- faults -->", "<!-- end -->")
NAMES = ("equal", "tracebacks", "other_results", "not_recovered")


@dataclass
class Fault:
    """A kind of fault: how often it was tried, and what came of it."""

    name: str
    tries: int = 0
    equal: int = 0
    tracebacks: int = 0
    other_results: int = 0
    not_recovered: int = 0
    remarks: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Attempt:
    """One run in a process of its own: its exit status (negative: the signal that ended it) and what it printed."""

    status: int
    output: str

    @property
    def is_traceback(self) -> bool:
        return "Traceback (most recent call last)" in self.output


def attempt(
    overrides: list[str],
    outputs: Path,
    inside: Callable[[], None] | None = None,
    signal_after: tuple[int, float] | None = None,
) -> Attempt:
    """Run a row in a forked process; `inside` is done there first, `signal_after` sends it (signal, seconds)."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", [*overrides, "scale=smoke", f"outputs={outputs}"])
    with tempfile.TemporaryFile("w+") as printed:
        process = os.fork()
        if process == 0:
            os.dup2(printed.fileno(), 1)
            os.dup2(printed.fileno(), 2)
            os._exit(_inside(config, inside))
        began = time.monotonic()
        status: int | None = None
        while status is None:
            found, raw = os.waitpid(process, os.WNOHANG)
            status = os.waitstatus_to_exitcode(raw) if found else None
            passed = time.monotonic() - began
            if status is None and (passed > LIMIT or (signal_after is not None and passed > signal_after[1])):
                os.kill(process, signal.SIGKILL if passed > LIMIT else signal_after[0])  # type: ignore[index]
                signal_after = None
            time.sleep(0.01)
        printed.seek(0)
        return Attempt(status, printed.read())


def _inside(config: Any, first: Callable[[], None] | None) -> int:
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, force=True)
    try:
        if first is not None:
            first()
        with stoppable():
            run(config)
        return 0
    except KeyboardInterrupt as stop:
        return int(getattr(stop, "status", 130))
    except BaseException as error:
        line = explain(error)
        print(f"error: {line}" if line else traceback.format_exc(), file=sys.stderr)
        return 2 if line else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def folder_of(outputs: Path) -> Path:
    return next(outputs.glob("*/smoke/*/seed=0"))


def figures(outputs: Path) -> dict[str, Any] | None:
    """All numbers of a finished row, its history without the seconds included; None if it is not finished."""
    try:
        folder = folder_of(outputs)
        metrics = json.loads((folder / "metrics.json").read_text())
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    except (OSError, ValueError, StopIteration):
        return None
    unequal = ("seconds", "train_runtime", "epoch", "num_tokens")
    return {"metrics": metrics, "lines": [{k: v for k, v in row.items() if k not in unequal} for row in lines]}


def agree(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(agree(value, other[key]) for key, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(agree, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-5, abs_tol=1e-6) or (math.isnan(one) and math.isnan(other))
    return bool(one == other)


# ---- faults --------------------------------------------------------------------------------------------------------


def killed(number: int) -> Callable[[random.Random, list[str], Path, Path, float], list[Attempt]]:
    """The process is sent a signal at a random moment, up to three times."""

    def fault(dice: random.Random, row: list[str], outputs: Path, whole: Path, seconds: float) -> list[Attempt]:
        times = [dice.uniform(0.05, 0.95) * seconds for _ in range(dice.randint(1, 3))]
        return [attempt(row, outputs, signal_after=(number, moment)) for moment in times]

    return fault


def harmed(dice: random.Random, row: list[str], outputs: Path, whole: Path, seconds: float) -> list[Attempt]:
    """One file of a finished or an interrupted run is cut off, emptied, overwritten, lost or has its lines swapped."""
    shutil.copytree(whole, outputs)
    folder = folder_of(outputs)
    if dice.random() < 0.5:
        for name in ("metrics.json", "SHA256SUMS"):
            (folder / name).unlink()
        shutil.rmtree(folder / "samples")
        shutil.rmtree(folder / "adapters")
        newest = sorted(folder.glob("checkpoints/**/*[=-]5*"))
        for path in newest:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    files = sorted(path for path in outputs.rglob("*") if path.is_file() and ".lock" not in path.name)
    file = dice.choice(files)
    content = file.read_bytes()
    lines = content.splitlines(keepends=True)
    harm = dice.choice(["cut off", "emptied", "overwritten", "lost", "swapped"])
    if harm == "lost":
        file.unlink()
    else:
        file.write_bytes(
            {
                "cut off": content[: dice.randrange(len(content))] if content else b"",
                "emptied": b"",
                "overwritten": dice.randbytes(200),
                "swapped": b"".join(lines[::-1]),
            }[harm]
        )
    print(f"    {file.relative_to(outputs)} {harm}")
    return []


def no_room(dice: random.Random, row: list[str], outputs: Path, whole: Path, seconds: float) -> list[Attempt]:
    """The system refuses files beyond a random size, as a quota does; then there is room again."""
    limit = int(10 ** dice.uniform(1.5, 5.5))

    def restrict() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return [attempt(row, outputs, inside=restrict)]


FAULTS: dict[str, Callable[[random.Random, list[str], Path, Path, float], list[Attempt]]] = {
    "SIGKILL at random moments": killed(signal.SIGKILL),
    "SIGTERM at random moments": killed(signal.SIGTERM),
    "SIGUSR1 at random moments": killed(signal.SIGUSR1),
    "a file cut off, emptied, overwritten, swapped, lost": harmed,
    "no room for files beyond a random size": no_room,
}


def undisturbed(name: str, work: Path) -> tuple[Path, Any, float]:
    """A row's folder, its figures and its seconds, run once."""
    file = work / f"{name}.json"
    if not file.exists():
        remove(work / name)
        began = time.monotonic()
        whole = attempt(ROWS[name], work / name)
        if whole.status != 0:
            raise SystemExit(f"{name}: the undisturbed run failed\n{whole.output}")
        write_json(file, {"seconds": time.monotonic() - began})
        print(f"{name}: undisturbed in {time.monotonic() - began:.1f} s", flush=True)
    return work / name, figures(work / name), float(json.loads(file.read_text())["seconds"])


def try_one(title: str, number: int, name: str, work: Path, seed: int) -> dict[str, Any]:
    """One try of a fault: what came of it."""
    path, expected, seconds = undisturbed(name, work)
    outputs = work / "try"
    remove(outputs)
    print(f"{title}, {name}, {number + 1}", flush=True)
    dice = random.Random(f"{seed} {title} {number}")  # its own: tries do not depend on each other
    disturbed = FAULTS[title](dice, ROWS[name], outputs, path, seconds)
    last = attempt(ROWS[name], outputs)
    found = dict.fromkeys(NAMES, False)
    found["tracebacks"] = any(each.is_traceback for each in [*disturbed, last])
    remark = ""
    if last.status != 0:
        found["not_recovered"] = True
        remark = f"{name}: {last.output.strip().splitlines()[-1:] or last.status}"
    elif agree(figures(outputs), expected):
        found["equal"] = True
    else:
        found["other_results"] = True
        remark = f"{name}: other results"
    if remark:
        print(last.output)
    for each in disturbed:
        if each.is_traceback:
            print(each.output)
    return {"fault": title, "number": number, "row": name, **found, "remark": remark}


def try_all(tries: int, rows: list[str], work: Path, seed: int, until: float) -> list[Fault] | None:
    """All tries, those before this call included; None where the time is over before the last."""
    kept = work / "tries.jsonl"
    done = {(each["fault"], each["number"]): each for each in read_jsonl(kept)}
    for title in FAULTS:
        for number in range(tries):
            if (title, number) in done:
                continue
            if time.monotonic() > until:
                print(f"{len(done)} of {tries * len(FAULTS)} tries are made; the same command goes on")
                return None
            done[title, number] = try_one(title, number, rows[number % len(rows)], work, seed)
            append_line(kept, done[title, number])
    found = []
    for title in FAULTS:
        own = [done[title, number] for number in range(tries)]
        counts = {name: sum(each[name] for each in own) for name in NAMES}
        found.append(Fault(title, tries, **counts, remarks=[each["remark"] for each in own if each["remark"]]))
    return found


def as_markdown(found: Sequence[Fault], inputs: Sequence[BadInputs]) -> str:
    lines = ["| Fault | tries | recovered, equal results | tracebacks | other results | not recovered |"]
    lines.append("|---|---:|---:|---:|---:|---:|")
    for f in found:
        lines.append(f"| {f.name} | {f.tries} | {f.equal} | {f.tracebacks} | {f.other_results} | {f.not_recovered} |")
    if inputs:
        lines += [
            "",
            "| Generated bad inputs | tried | refused in one line | read | tracebacks |",
            "|---|---:|---:|---:|---:|",
        ]
        lines += [f"| {i.kind} | {i.tried} | {i.refused} | {i.read} | {i.tracebacks} |" for i in inputs]
        total = [sum(getattr(i, name) for i in inputs) for name in ("tried", "refused", "read", "tracebacks")]
        lines.append(f"| all | {' | '.join(map(str, total))} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tries", type=int, default=6, help="of each fault")
    parser.add_argument("--inputs", type=int, default=100, help="bad inputs of each kind")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--seed", type=int, default=0, help="of moments, files and sizes")
    parser.add_argument("--minutes", type=float, default=math.inf, help="after which no further try is begun")
    parser.add_argument("--work", type=Path, default=Path("outputs/faults"), help="where tries are kept until the last")
    parser.add_argument("--output", type=Path, default=Path("docs/faults.json"))
    parser.add_argument("--page", type=Path, default=None, help="Markdown whose tables are replaced")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)  # before the first fork: threads do not pass into it
    found = try_all(args.tries, args.rows, args.work, args.seed, time.monotonic() + 60 * args.minutes)
    if found is None:
        return 0
    inputs = tried(args.inputs) if args.inputs else []
    command = f"make faults TRIES={args.tries}"
    content = {"command": command, "rows": args.rows, "faults": [asdict(f) for f in found]}
    write_json(args.output, {**content, "inputs": [asdict(each) for each in inputs]})
    table = as_markdown(found, inputs)
    if args.page is not None:
        write_between(args.page, *MARKS, table)
    print(table)
    remove(args.work)
    is_well = all(f.equal == f.tries and not f.tracebacks for f in found) and not any(i.tracebacks for i in inputs)
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main())
