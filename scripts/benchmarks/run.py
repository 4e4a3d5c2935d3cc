"""Every figure of docs/benchmarks.md from one command: `make benchmark`.

    make benchmark                                        # what is missing in scripts/benchmarks/results
    make benchmark ARGS="--only training_step --again"    # one part anew
    make benchmark ARGS="--device cuda --model Qwen/Qwen1.5-1.8B-Chat --weights random"

A part compares ways to do one thing, in turns, and keeps its figures in a file of its own, so that an interrupted
command goes on where it stopped. `summary.json` holds the figures of all parts, the page shows them.
"""

import argparse
import importlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from side_by_side import machine

from sysdpo.runs.files import write_between

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "scripts" / "benchmarks" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- figures: written by make benchmark -->", "<!-- end of figures -->"

PARTS: dict[str, tuple[str, dict[str, Any]]] = {
    "training_step": ("training_step", {"batch": 4}),
    "updates": ("updates", {"batch": 4, "k": 2, "question_tokens": 64, "answer_tokens": 28}),
    "beams": ("beams", {"batch": 8}),
    "generation": ("generation", {"batch": 8}),
    "diffusion_step": ("diffusion_step", {}),
    "growth": ("growth", {}),
    "beams_batch1": ("beams", {"batch": 1}),
    "beams_batch32": ("beams", {"batch": 32}),
    "training_step_batch8": ("training_step", {"batch": 8}),
}
"""Each part's script, and its settings."""

BARS = {
    "step_time_vs_trl": 0.5,
    "step_time_vs_trl_best": 0.65,
    "step_memory_vs_trl": 0.45,
    "step_memory_vs_trl_best": 0.8,
    "dbs_vs_transformers_batch8": 0.85,
    "dbs_vs_one_by_one": 0.35,
    "sampling_update_vs_plain": 0.4,
    "direct_update_vs_plain": 0.5,
}
"""What a figure should be at most."""


def options(args: argparse.Namespace, settings: Mapping[str, Any]) -> dict[str, Any]:
    import torch

    from sysdpo.components.text.pretrained import resolve_dtype
    from sysdpo.devices import resolve_device

    device = resolve_device(args.device)
    return {
        "model": args.model,
        "weights": args.weights,
        "device": str(device),
        "dtype": str(resolve_dtype(args.dtype, torch.device(device))).removeprefix("torch."),
        "prompt_tokens": 128,
        "completion_tokens": 128,
        "rounds": args.rounds,
        **settings,
    }


def measure_part(name: str, args: argparse.Namespace) -> None:
    script, settings = PARTS[name]
    given = options(args, settings)
    started = time.perf_counter()
    result = importlib.import_module(script).run(given)
    on = machine(given["device"], given["dtype"])
    figures = [{**figure, "machine": on} for figure in result.pop("figures")]
    for figure in figures:
        figure.update({key: round(figure[key], 4) for key in ("ratio", "low", "high")})
    turns = {
        variant: {
            "seconds": [round(turn["seconds"], 3) for turn in those],
            "peak_mib": round(those[-1]["peak"] / 2**20),
            "held_mib": round(those[-1]["held"] / 2**20),
            **({"losses": [round(turn["loss"], 6) for turn in those]} if "loss" in those[0] else {}),
        }
        for variant, those in result.pop("turns", {}).items()
    }
    minutes = round((time.perf_counter() - started) / 60, 1)
    written = {"part": name, "options": given, "minutes": minutes, "figures": figures, "turns": turns, **result}
    args.results.mkdir(parents=True, exist_ok=True)
    _file(args, name).write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")


def _file(args: argparse.Namespace, name: str) -> Path:
    return Path(args.results) / "parts" / f"{name}-{str(args.device).split(':')[0]}.json"


def summarise(results: Path) -> list[dict[str, Any]]:
    """The figures of all parts that were measured, in the order of `PARTS`; written to `summary.json`."""
    order = list(PARTS)
    found = [json.loads(path.read_text(encoding="utf-8")) for path in (results / "parts").glob("*.json")]
    found.sort(key=lambda part: (order.index(part["part"]), part["options"]["device"]))
    summary = [figure for part in found for figure in part["figures"]]
    (results / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    return summary


def table(summary: Sequence[Mapping[str, Any]]) -> str:
    """The summary as a table in Markdown."""
    lines = ["| figure | ratio | smallest – largest | bar | machine |", "|---|---|---|---|---|"]
    for figure in summary:
        bar = BARS.get(figure["name"])
        judged = "" if bar is None else f"at most {bar}: {'reached' if figure['ratio'] <= bar else 'not reached'}"
        spread = f"{figure['low']:.2f} – {figure['high']:.2f}"
        lines.append(f"| `{figure['name']}` | {figure['ratio']:.2f} | {spread} | {judged} | {figure['machine']} |")
    pending = [name for name in BARS if name not in {figure["name"] for figure in summary}]
    return "\n".join([*lines, *(f"| `{name}` | pending | | at most {BARS[name]} | |" for name in pending)])


def write_page(page: Path, text: str) -> None:
    """Put the table between the page's two marks."""
    write_between(page, BEGIN, END, text)


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(PARTS), choices=list(PARTS), metavar="PART",
                        help=f"of {', '.join(PARTS)} (default: all)")  # fmt: skip
    parser.add_argument("--again", action="store_true", help="measure parts that have been measured, too")
    parser.add_argument("--model", default="smollm2_135m", help="as model.pretrained (default %(default)s)")
    parser.add_argument("--weights", default="pretrained", choices=["pretrained", "random"])
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 … (default %(default)s)")
    parser.add_argument("--dtype", default="auto", help="auto: bfloat16 where native (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="timed turns of each way (default %(default)s)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder (default: beside this script)")
    parser.add_argument("--page", type=Path, default=PAGE, help="where the table goes (default: docs/benchmarks.md)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_args(arguments)
    (args.results / "parts").mkdir(parents=True, exist_ok=True)
    for name in args.only:
        if _file(args, name).exists() and not args.again:
            print(f"{name}: measured already; --again measures it anew", file=sys.stderr)
            continue
        measure_part(name, args)
        summary = summarise(args.results)
        write_page(args.page, table(summary))
    summary = summarise(args.results)
    write_page(args.page, table(summary))
    print(table(summary))


if __name__ == "__main__":
    main()
