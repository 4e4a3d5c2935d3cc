"""Our training step beside TRL's, and beside our own with every optimisation off: same model, LoRA, pairs and rate.

    make benchmark                                   # SmolLM2-135M on this machine
    make benchmark ARGS="--model Qwen/Qwen1.5-1.8B-Chat --device cuda --dtype bfloat16 --completion-tokens 256"

One component, so that the system's loss is DPO's and TRL's DPOTrainer has the same task. All variants are measured in
one run, turn by turn, and must reach the same losses; figures are ratios of one machine, not compared across machines.
"""

import argparse
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from sysdpo.cli.command import prepare_environment
from sysdpo.components.text.language_model import LanguageModel, build_language_model
from sysdpo.graph import SystemGraph
from sysdpo.losses import preference_loss
from sysdpo.runs.folder import environment
from sysdpo.system import CompoundSystem, Pair
from sysdpo.training.objectives import Direct

RESULTS = Path(__file__).resolve().parent / "results"
BETA, RATE = 0.1, 1e-4
TEXT = (
    "The harbour lies between two hills, and every morning the boats leave it before the sun is over the water; in "
    "winter the wind turns, the nets stay dry, and the old men talk about years when the ice reached the pier. "
)
OURS = {
    "ours": {},
    "ours, reference not remembered": {"remember_reference": False},
    "ours, plain": {"share_prefix": False, "head_on_completions": False, "remember_reference": False},
}
GRAPH: dict[str, dict[str, Any]] = {"x": {"role": "input"}, "y": {"role": "final", "component": "m", "parents": ["x"]}}
Step = Callable[[], float]


def build(args: argparse.Namespace, **settings: Any) -> LanguageModel:
    return build_language_model(
        prompt={"user": "{x}"},
        pretrained=args.model,
        weights=args.weights,
        dtype=args.dtype,
        device=args.device,
        lora={"r": args.rank, "lora_alpha": 2 * args.rank, "lora_dropout": 0.0, "target_modules": "all-linear"},
        max_new_tokens=args.completion_tokens + 16,  # no text is cut off: TRL ends every one with the end token
        gradient_checkpointing=args.gradient_checkpointing,
        **settings,
    )


def make_pairs(args: argparse.Namespace, component: LanguageModel) -> list[Pair]:
    """Pairs of distinct texts of about the asked lengths: windows of one passage."""
    ids = component.codec.tokenizer(TEXT * 50, add_special_tokens=False)["input_ids"]

    def text(start: int, length: int) -> str:
        return str(component.codec.tokenizer.decode(ids[start : start + length])).strip()

    rows = range(args.batch_size)
    return [
        Pair(
            i,
            {"x": text(7 * i, args.prompt_tokens)},
            {"y": text(7 * i + 3, args.completion_tokens)},
            {"y": text(7 * i + 31, args.completion_tokens)},
        )
        for i in rows
    ]


def our_step(component: LanguageModel, pairs: Sequence[Pair]) -> Step:
    system = CompoundSystem(SystemGraph(GRAPH, {"m": component}), {"m": component})
    optimizer = torch.optim.AdamW([p for p in system.parameters() if p.requires_grad], lr=RATE, weight_decay=0.0)

    def step() -> float:
        loss = preference_loss(Direct().compare(system, pairs, range(len(pairs))).margin, BETA).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


def trl_step(component: LanguageModel, pairs: Sequence[Pair], args: argparse.Namespace) -> Step:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    codec = component.codec
    rows = [
        {
            "prompt": str(codec.tokenizer.decode(list(codec.prompt_ids(pair.inputs)))),
            "chosen": codec.decode(codec.completion_ids(pair.chosen["y"])),
            "rejected": codec.decode(codec.completion_ids(pair.rejected["y"])),
        }
        for pair in pairs
    ]
    half = component.causal_lm.dtype == torch.bfloat16
    trainer = DPOTrainer(
        model=component.model,
        args=DPOConfig(
            output_dir=tempfile.mkdtemp(),  # nothing is saved
            per_device_train_batch_size=len(rows),
            beta=BETA,
            learning_rate=RATE,
            max_length=None,
            use_cpu=component.device.type == "cpu",
            bf16=half,
            gradient_checkpointing=args.gradient_checkpointing,
            report_to=[],
            save_strategy="no",
            logging_steps=1_000_000,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=codec.tokenizer,
    )
    trainer.current_gradient_accumulation_steps = 1  # set by train(), which is not run here
    model: Any = trainer.model
    data: Any = trainer.train_dataset
    batch = trainer.data_collator([data[i] for i in range(len(rows))])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE, weight_decay=0.0)

    def step() -> float:
        model.train()
        loss = trainer.training_step(model, batch)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss)

    return step


def measure(steps: dict[str, Step], rounds: int, device: torch.device) -> dict[str, dict[str, Any]]:
    """`rounds` timed steps of each variant, turn by turn after one that warms up, from the same start."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    losses: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(rounds + 1):
        for name, step in steps.items():
            _wait(device)
            started = time.perf_counter()
            losses[name].append(step())
            _wait(device)
            if round_:
                seconds[name].append(time.perf_counter() - started)
            print(
                f"round {round_}: {name}: {time.perf_counter() - started:.2f} s, loss {losses[name][-1]:.4f}",
                flush=True,
            )
    return {
        name: {
            "median_seconds": statistics.median(seconds[name]),
            "seconds": [round(s, 4) for s in seconds[name]],
            "losses": [round(loss, 5) for loss in losses[name]],
        }
        for name in steps
    }


def peak_memory(steps: dict[str, Step], device: torch.device) -> dict[str, int]:
    """Bytes at the fullest moment of one step of each variant beyond those before it; GPUs only."""
    peaks = {}
    for name, step in steps.items() if device.type == "cuda" else ():
        gc.collect()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        peaks[name] = torch.cuda.max_memory_allocated(device) - before
    return peaks


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def machine(device: torch.device) -> dict[str, Any]:
    """What a figure depends on, without a name or a path."""
    described = {**environment(), "threads": torch.get_num_threads()}
    return described | ({"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {})


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2_135m", help="as model.pretrained (default %(default)s)")
    parser.add_argument("--weights", default="pretrained", choices=["pretrained", "random"])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto", help="auto: bfloat16 where native (default %(default)s)")
    parser.add_argument("--batch-size", type=int, default=8, help="pairs a step (default %(default)s)")
    parser.add_argument("--prompt-tokens", type=int, default=64, help="about (default %(default)s)")
    parser.add_argument("--completion-tokens", type=int, default=64, help="about (default %(default)s)")
    parser.add_argument("--rank", type=int, default=16, help="of the adapters (default %(default)s)")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each variant (default %(default)s)")
    parser.add_argument("--name", help="of the result file (default: model and device)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder (default: beside this script)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    args = parse_args(arguments)
    prepare_environment()
    first = build(args)
    pairs, device = make_pairs(args, first), first.device
    steps = {name: our_step(build(args, **settings), pairs) for name, settings in OURS.items()}
    steps["TRL DPOTrainer"] = trl_step(first, pairs, args)
    variants = measure(steps, args.rounds, device)
    codec = first.codec
    lengths = [
        [
            len(codec.prompt_ids(p.inputs)),
            len(codec.completion_ids(p.chosen["y"])),
            len(codec.completion_ids(p.rejected["y"])),
        ]
        for p in pairs
    ]
    trl, plain = (variants[name]["median_seconds"] for name in ("TRL DPOTrainer", "ours, plain"))
    result = {
        "setting": {k: v for k, v in vars(args).items() if k not in ("results", "name")}
        | {"dtype": str(first.causal_lm.dtype)},
        "machine": machine(device),
        "tokens": {
            "prompt": [n[0] for n in lengths],
            "chosen": [n[1] for n in lengths],
            "rejected": [n[2] for n in lengths],
        },
        "variants": variants,
        "peak_bytes": peak_memory(steps, device),
        "speed_of_ours": {
            "over TRL": round(trl / variants["ours"]["median_seconds"], 3),
            "over TRL, reference not remembered": round(
                trl / variants["ours, reference not remembered"]["median_seconds"], 3
            ),
            "over our plain path": round(plain / variants["ours"]["median_seconds"], 3),
        },
    }
    args.results.mkdir(parents=True, exist_ok=True)
    name = args.name or f"training_step-{args.model.split('/')[-1]}-{device.type}"
    (args.results / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result["speed_of_ours"], indent=2))
    return result


if __name__ == "__main__":
    main()
