"""The same rows by one process and by several: `make processes` writes the tables of `docs/several_processes.md`.

Every row is made at `smoke` from nothing, its data included, by one process and by 1, 2 and 4 in each layout. What is
compared is all that a run leaves behind: each logged number, the adapters' weights, the figures, the judged answers.
Runs are kept under `outputs/processes`; a row that is there is not made again. `--speed` times updates at `mini` and at
`laptop`.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from sysdpo.runs.files import write_between
from sysdpo.runs.folder import read_jsonl

ROOT = Path(__file__).resolve().parents[1]

ROWS = {
    ("table2", "sysdpo_sampling"): "SysDPO-Sampling, texts",
    ("table2", "sysdpo_on_policy"): "SysDPO-Direct, fresh pairs of texts",
    ("table2", "separate_dpo"): "Separate-DPO (TRL)",
    ("table1", "sysdpo_direct"): "SysDPO-Direct, texts and images",
}
STEPS = 21
# sysdpo_on_policy draws fresh pairs once, for the last update
OF_TABLE = {"table1": [], "table2": [f"budget.redraw_every={STEPS - 1}"]}
RATE = 1e-4  # AdamW carries rounding on, times the rate; a draw near a tie may then fall on the other side
SPEED = {
    "mini": ["training.steps=8", "training.validate_every=0", "dataset.prompts=100", "dataset.evaluation_prompts=24"],
    "laptop": ["training.steps=2", "training.validate_every=0", "dataset.prompts=32", "dataset.evaluation_prompts=4"],
}
CLOCKS = ("seconds", "step_time", "train_runtime")
MARKS = ("<!-- {} -->", "<!-- end of {} -->")


def made(place: Path, number: int, layout: str, experiment: str, methods: str, *overrides: str) -> dict[str, Path]:
    """The folders of an experiment's runs by their method, made now if they are not there."""

    def there() -> dict[str, Path]:
        return {file.parent.parent.name: file.parent for file in place.rglob("metrics.json")}

    if there().keys() == set(methods.split(",")):
        return there()
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={number}"] if layout != "none" else []
    command = [sys.executable, *start, str(ROOT / "scripts" / "train.py"), "-m", f"experiment={experiment}"]
    command += [f"method={methods}", *overrides, f"distributed={layout}", f"outputs={place}", "logger=none"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    return there()


def leaves(value: Any, name: str = "") -> dict[str, Any]:
    """Every value of nested results by its path, without those that only clocks decide."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if parts is None:
        return {name: value}
    return {k: v for key, each in parts if key not in CLOCKS for k, v in leaves(each, f"{name}/{key}").items()}


def farthest(one: Any, other: Any) -> float:
    """The largest difference between numbers at the same place, as a share of those above 1; infinite where anything
    else differs."""
    ours, theirs = leaves(one), leaves(other)
    if ours.keys() != theirs.keys():
        return float("inf")
    apart = [0.0]
    for name, value in ours.items():
        if isinstance(value, int | float):
            apart.append(abs(value - theirs[name]) / max(1.0, abs(value)))
        elif value != theirs[name]:
            return float("inf")
    return max(apart)


def compared(one: Path, other: Path) -> list[str]:
    """The cells of two runs: largest differences of losses, of all logged numbers, of weights and figures; answers that
    are others."""
    histories = [read_jsonl(folder / "metrics.jsonl") for folder in (one, other)]
    losses = farthest(*([line.get("loss") for line in lines] for lines in histories))
    logged = farthest(*histories)
    figures = farthest(*(json.loads((folder / "metrics.json").read_text()) for folder in (one, other)))
    weights = 0.0
    for file in sorted((one / "adapters").rglob("*.safetensors")):
        ours, theirs = load_file(file), load_file(other / file.relative_to(one))
        weights = max(weights, *(float((ours[name] - theirs[name]).abs().max()) for name in ours))
    answers = [read_jsonl(folder / "samples" / "evaluation.jsonl") for folder in (one, other)]
    differing = sum(farthest(ours, theirs) > 1e-5 for ours, theirs in zip(*answers, strict=True))
    return [f"{losses:.0e}", f"{logged:.0e}", f"{weights:.0e}", f"{figures:.0e}", f"{differing} of {len(answers[0])}"]


def equality(outputs: Path, numbers: list[int]) -> str:
    lines: dict[tuple[str, str], list[str]] = {row: [] for row in ROWS}
    asked = ["scale=smoke", f"training.steps={STEPS}", f"training.learning_rate={RATE}", "training.validate_every=0"]
    for experiment in dict.fromkeys(owner for owner, _ in ROWS):
        methods = ",".join(method for owner, method in ROWS if owner == experiment)
        own = [*asked, *OF_TABLE[experiment]]
        alone = made(outputs / experiment / "none", 1, "none", experiment, methods, *own)
        for layout in ("ddp", "fsdp"):
            for number in numbers:
                runs = made(outputs / experiment / f"{layout}-{number}", number, layout, experiment, methods, *own)
                for method, run in runs.items():
                    row = experiment, method
                    cells = [ROWS[row], layout, str(number), *compared(alone[method], run)]
                    lines[row].append(f"| {' | '.join(cells)} |")
                    print(lines[row][-1], flush=True)
    head = [
        "| row | layout | processes | losses | all logged numbers | weights | figures | other answers |",
        "|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*head, *(line for each in lines.values() for line in each)])


def speed(outputs: Path, scale: str, tries: int) -> list[str]:
    """Lines of the fastest update of several tries, by one process and by two; each has one thread."""
    seconds: dict[str, float] = {}
    place = outputs / f"speed-{scale}"
    for _ in range(tries):
        for layout, number in (("none", 1), ("ddp", 2), ("fsdp", 2)):
            asked = [f"scale={scale}", *SPEED[scale]]
            run = made(place, number, layout, "table2", "sysdpo_sampling", *asked)["sysdpo_sampling"]
            found = min(line["seconds"] for line in read_jsonl(run / "metrics.jsonl"))
            seconds[layout] = min(found, seconds.get(layout, found))
            shutil.rmtree(run)  # the next is made anew, on the same data
    lines = []
    for layout, found in seconds.items():
        number = 1 if layout == "none" else 2
        lines.append(f"| {scale} | {number} | {layout} | {found:.2f} | {seconds['none'] / found:.2f} |")
        print(lines[-1], flush=True)
    return lines


def speeds(outputs: Path, scales: list[str], tries: int) -> str:
    head = ["| scale | processes | layout | seconds an update | as fast as one |", "|---|---|---|---|---|"]
    return "\n".join([*head, *(line for scale in scales for line in speed(outputs, scale, tries))])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--outputs", type=Path, default=Path("outputs/processes"))
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--speed", type=int, default=0, metavar="TRIES", help="time updates instead of comparing runs")
    parser.add_argument("--scales", nargs="+", default=list(SPEED), choices=list(SPEED), help="whose updates are timed")
    parser.add_argument("--page", type=Path, default=None, help="Markdown whose table is replaced")
    args = parser.parse_args()
    outputs = args.outputs.resolve()
    table = speeds(outputs, args.scales, args.speed) if args.speed else equality(outputs, args.processes)
    print(table)
    if args.page is not None:
        first, last = (mark.format("speed" if args.speed else "equality") for mark in MARKS)
        write_between(args.page, first, last, table)


if __name__ == "__main__":
    main()
