"""How the cost of an update grows with K, pairs, length and number of components: exponents fitted to four sizes each.

One process, a small random model: what is asked is the growth, not the seconds. The sizes are measured in turns.
"""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from side_by_side import Options

from sysdpo.components.base import Component
from sysdpo.components.text.language_model import build_language_model
from sysdpo.graph import SystemGraph
from sysdpo.losses import preference_loss
from sysdpo.sampling.monte_carlo import MonteCarlo
from sysdpo.system import CompoundSystem, Pair
from sysdpo.training.objectives import Direct, Objective, Sampling

ARCHITECTURE = {
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 4096,
}
LORA = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"}
SWEEPS: dict[str, tuple[int, ...]] = {
    "k": (1, 2, 4, 8),
    "pairs": (2, 4, 8, 16),
    "tokens": (32, 64, 128, 256),
    "components": (1, 2, 4, 8),
}
USUAL = {"k": 2, "pairs": 4, "tokens": 64, "components": 2}


def chain(options: Options, components: int, tokens: int) -> CompoundSystem:
    """x -> v1 -> ... -> vn, each by a model of its own that reads the input and the variable before it."""
    names = [f"v{i}" for i in range(1, components + 1)]
    graph: dict[str, dict[str, Any]] = {"x": {"role": "input"}}
    models: dict[str, Component] = {}
    for before, name in zip(["x", *names], names, strict=False):
        role = "final" if name == names[-1] else "intermediate"
        graph[name] = {"role": role, "component": f"of_{name}", "parents": [before]}
        models[f"of_{name}"] = build_language_model(
            prompt={"user": f"{{{before}}}"},
            pretrained=None,
            weights="random",
            architecture=ARCHITECTURE,
            dtype="float32",
            device=options["device"],
            lora=LORA,
            max_new_tokens=tokens,
            remember_reference=False,
        )
    system = CompoundSystem(SystemGraph(graph, models), models)
    system.train_only(list(models))
    return system


def update(options: Options, *, k: int, pairs: int, tokens: int, components: int, sampled: bool) -> Callable[[], None]:
    system = chain(options, components, tokens)
    names = [v.name for v in system.graph.generated]
    wanted = names[-1:] if sampled else names

    def side(pair: int, letter: str) -> dict[str, str]:
        return {name: f"{letter}{pair} ".ljust(tokens - 1, letter) for name in wanted}

    rows = [Pair(i, {"x": str(i).ljust(tokens, "q")}, side(i, "a"), side(i, "b")) for i in range(pairs)]
    compares: Objective = Sampling(k=k, draw=MonteCarlo(distinct=False)) if sampled else Direct()

    def work() -> None:
        preference_loss(compares.compare(system, rows, range(pairs)).margin, 0.1).mean().backward()
        system.zero_grad(set_to_none=True)

    return work


def exponent(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """The slope of log seconds over log size, by least squares."""
    x, y = [math.log(size) for size in sizes], [math.log(second) for second in seconds]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)


def run(options: Options) -> dict[str, Any]:
    """`ratio` is the exponent of the medians, `low` and `high` those of single rounds."""
    figures, measured = [], {}
    clock = time.process_time if options["device"] == "cpu" else time.perf_counter
    for name, sizes in SWEEPS.items():
        works = [update(options, **{**USUAL, name: size}, sampled=name == "k") for size in sizes]
        rounds: list[list[float]] = []
        for _ in range(options["rounds"] + 1):
            seconds = []
            for work in works:
                started = clock()
                work()
                if options["device"] != "cpu":
                    torch.cuda.synchronize()
                seconds.append(clock() - started)
            rounds.append(seconds)
        rounds = rounds[1:]  # the first warms up
        medians = [sorted(column)[len(rounds) // 2] for column in zip(*rounds, strict=True)]
        single = [exponent(sizes, seconds) for seconds in rounds]
        fitted = exponent(sizes, medians)
        figures.append(
            {"name": f"growth_in_{name}", "ratio": fitted, "low": min(*single, fitted), "high": max(*single, fitted)}
        )
        measured[name] = dict(zip(map(str, sizes), medians, strict=True))
    return {"figures": figures, "seconds": measured}
