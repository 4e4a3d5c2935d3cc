"""Small trainings that torchrun's processes do together: `python -m tests.several LAYOUT,LAYOUT FOLDER CASE…`."""

import faulthandler
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sysdpo import processes
from sysdpo.components.tools.tool import Tool
from sysdpo.data.redraw import JudgedPairs
from sysdpo.graph import SystemGraph
from sysdpo.runs.folder import read_jsonl
from sysdpo.sampling.monte_carlo import MonteCarlo
from sysdpo.sampling.strategies import Sampler
from sysdpo.system import CompoundSystem, Pair
from sysdpo.training.checkpoints import trainable_state
from sysdpo.training.loop import Trainer
from sysdpo.training.objectives import Direct, Objective, Sampling
from tests.image_systems import LORA, make_image_pairs, make_llm_diffusion
from tests.systems import make_five_nodes, make_pairs_for, make_tiny, make_two_llm, make_with_tool

ROOT = Path(__file__).resolve().parent.parent
STEPS = 3
ROUTES = {
    "x": {"role": "input"},
    "way": {"role": "intermediate", "component": "router", "parents": ["x"]},
    "z": {"role": "final", "parents": ["x"], "component": {"way": {"left": "one", "right": "other"}}},
}


def make_routing() -> CompoundSystem:
    """Most rows go left: whole micro batches leave a component out, and the first update may leave out `other`."""
    components = {
        "router": Tool(lambda x: "right" if x.startswith("x4") else "left", name="router"),
        "one": make_tiny("{x}", seed=1),
        "other": make_tiny("{x}", seed=2),
    }
    return CompoundSystem(SystemGraph(ROUTES, components), components)


def _text(make: Callable[[], CompoundSystem]) -> tuple[CompoundSystem, list[Pair]]:
    system = make()
    pairs = make_pairs_for(system, 7)
    return system, pairs


def _images() -> tuple[CompoundSystem, list[Pair]]:
    """T = 10: the bound multiplies the rounding of errors, which are about 1, by T. Ten pairs are two updates."""
    return make_llm_diffusion(lora=LORA, bound={"beta": 0.1, "num_timesteps": 10}), make_image_pairs(10)


def _checkpointed() -> CompoundSystem:
    return make_two_llm(gradient_checkpointing=True)


def _half_precision() -> CompoundSystem:
    """A base in 16 bits whose adapters are in 32: parts of both kinds."""
    return make_two_llm(dtype="bfloat16")


def _whole_weights() -> CompoundSystem:
    return make_two_llm(lora=None)


def _half_frozen() -> CompoundSystem:
    system = make_with_tool()
    system.train_only(["reader"])
    return system


class Plainer:
    """Labels that prefer the output whose texts have fewer distinct letters."""

    def scores(self, rows: Sequence[Any], samples: Sequence[Sequence[Any]]) -> tuple[list[list[float]], int]:
        texts = [[[v for v in output.values() if isinstance(v, str)] for output in own] for own in samples]
        return [[-float(len(set("".join(each)))) for each in own] for own in texts], 0


@dataclass(frozen=True)
class Case:
    """A system with its pairs, how they are compared, and settings of the training."""

    make: Callable[[], tuple[CompoundSystem, list[Pair]]]
    objective: Objective = field(default_factory=Direct)
    settings: dict[str, Any] = field(default_factory=dict)
    tolerance: float = 1e-5


ON_POLICY = {"redraw_every": 1, "redraw_samples": 3, "replay": 0.4}

CASES = {
    "direct": Case(lambda: _text(make_two_llm)),
    "sampling": Case(lambda: _text(make_two_llm), Sampling(k=2)),
    "images": Case(_images),
    "routing": Case(lambda: _text(make_routing)),
    "fresh": Case(lambda: _text(make_two_llm), settings={**ON_POLICY, "reference": "ema", "reference_decay": 0.5}),
    "shared": Case(lambda: _text(make_five_nodes)),
    "frozen": Case(lambda: _text(_half_frozen), Sampling(Sampler(2, MonteCarlo()))),
    "contrastive": Case(lambda: _text(make_two_llm), Sampling(Sampler(2, MonteCarlo(), candidates=4))),
    "ahead": Case(lambda: _text(make_two_llm), Sampling(k=2), {"draw_batch_size": 3}),
    "importance": Case(lambda: _text(make_two_llm), Sampling(k=2, estimator="importance")),
    "checkpointed": Case(lambda: _text(_checkpointed)),
    "half": Case(lambda: _text(_half_precision), tolerance=5e-2),  # 8 bits of mantissa
    "whole": Case(lambda: _text(_whole_weights)),
    "previous": Case(_images, settings={**ON_POLICY, "reference": "previous"}),
}


def train(case: str, folder: Path, steps: int = STEPS) -> None:
    """Three updates of five pairs, in micro batches of two: no number of processes divides them evenly.

    `folder` gets what a run leaves behind, and `weights.pt`: all that was trained.
    """
    asked = CASES[case]
    system, pairs = asked.make()
    system.to(os.environ.get("DEVICE", "cpu"))
    redraw = JudgedPairs(system, pairs, Plainer(), folder / "redrawn", samples=3, batch_size=2)
    trainer = Trainer(
        system,
        asked.objective,
        pairs,
        pairs[:3],
        folder=folder,
        redraw=redraw if "redraw_every" in asked.settings else None,
        steps=steps,
        batch_size=5,
        micro_batch_size=2,
        learning_rate=3e-4,  # AdamW divides by the size of a gradient: rounding in a tiny one moves a weight by a rate
        checkpoint_every=1,
        keep_checkpoints=None,
        validate_every=2,
        **asked.settings,
    )
    trainer.run()
    system.save(folder / "adapters")
    weights = trainable_state(system)
    if processes.is_first():
        torch.save(weights, folder / "weights.pt")


def launch(number: int, *arguments: str, module: str = "tests.several", **environment: str) -> str:
    """What `torchrun --nproc-per-node=number -m module arguments` writes; it has to end well."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={number}"]
    done = subprocess.run(
        [*command, "-m", module, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=540,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def history(folder: Path) -> list[dict[str, float]]:
    """The lines of `metrics.jsonl` without what only clocks decide."""
    lines = read_jsonl(folder / "metrics.jsonl")  # an untrained row has none
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


if __name__ == "__main__":
    faulthandler.dump_traceback_later(480, exit=True)  # a process that waits for another says where
    torch.set_num_threads(1)
    layouts, place, *asked = sys.argv[1:]
    for layout in layouts.split(","):
        processes.join(layout)
        for name in asked:
            train(name, Path(place) / layout / name)
    processes.leave()
