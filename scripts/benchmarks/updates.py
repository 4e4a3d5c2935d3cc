"""An update of Table 2's system, two language models, with every lever beside the same update with none; equal losses.

With none: samples drawn for one pair at a time, completions of one prompt in sequences of their own, logits of every
token, the reference recomputed.
"""

from collections.abc import Sequence
from typing import Any

import torch
from side_by_side import Options, Work, check_equal, measure, memory_ratio, seconds_ratio, serve
from training_step import BETA, RATE, TOLERANCE, build, make_pairs

from sysdpo.components.base import Component
from sysdpo.graph import SystemGraph
from sysdpo.losses import preference_loss
from sysdpo.system import CompoundSystem, Pair
from sysdpo.training.objectives import Direct, Sampling

GRAPH: dict[str, dict[str, Any]] = {
    "x": {"role": "input"},
    "y": {"role": "intermediate", "component": "psi1", "parents": ["x"]},
    "z": {"role": "final", "component": "psi2", "parents": ["x", "y"]},
}
ASKED = {"psi1": "{x}", "psi2": "Suggested answer: {y}\n\nInstruction: {x}"}
LEVERS = ("share_prefix", "head_on_completions", "remember_reference", "fuse_adapters", "fuse_norms")
PLAIN = dict.fromkeys(LEVERS, False)


def make_system(options: Options, **settings: Any) -> CompoundSystem:
    short = {**options, "completion_tokens": options["answer_tokens"]}
    components: dict[str, Component] = {name: build(short, user, **settings) for name, user in ASKED.items()}
    system = CompoundSystem(SystemGraph(GRAPH, components), components)
    system.train_only(list(components))
    return system


def make_rows(options: Options, system: CompoundSystem) -> list[Pair]:
    """Every pair with a draft beside each answer, for SysDPO-Direct; Sampling draws its own."""
    given = {**options, "completion_tokens": options["answer_tokens"], "prompt_tokens": options["question_tokens"]}
    pairs = make_pairs(given, system.component("psi1"))  # type: ignore[arg-type]
    return [
        Pair(p.index, p.inputs, {"y": p.rejected["y"], "z": p.chosen["y"]}, {"y": p.chosen["y"], "z": p.rejected["y"]})
        for p in pairs
    ]


class OneByOne(Sampling):
    """Draws for one pair at a time."""

    def draw(self, system: CompoundSystem, pairs: Sequence[Pair], seeds: Sequence[int]) -> list[list[dict[str, Any]]]:
        drawn = [super(OneByOne, self).draw(system, [pair], [seed]) for pair, seed in zip(pairs, seeds, strict=True)]
        return [samples for (samples,) in drawn]


def update(options: Options, objective: str, levers: bool) -> Work:
    system = make_system(options, **({} if levers else PLAIN))
    pairs = make_rows(options, system)
    optimizer = torch.optim.AdamW([p for p in system.parameters() if p.requires_grad], lr=RATE, weight_decay=0.0)
    sampling = Sampling if levers else OneByOne
    compares = sampling(k=options["k"]) if objective == "sampling" else Direct()

    def work() -> dict[str, float]:
        compared = compares.compare(system, pairs, [pair.index for pair in pairs])
        loss = preference_loss(compared.margin, BETA).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return {"loss": float(loss.detach())}

    return work


VARIANTS = {
    "sampling, every lever": lambda options: update(options, "sampling", levers=True),
    "sampling, none": lambda options: update(options, "sampling", levers=False),
    "direct, every lever": lambda options: update(options, "direct", levers=True),
    "direct, none": lambda options: update(options, "direct", levers=False),
}


def run(options: Options) -> dict[str, Any]:
    figures: list[dict[str, Any]] = []
    turns: dict[str, list[dict[str, Any]]] = {}
    for objective in ("sampling", "direct"):
        pair = [f"{objective}, every lever", f"{objective}, none"]
        found = measure(__file__, pair, options, options["rounds"])
        check_equal(found, "loss", TOLERANCE[options["dtype"]])
        figures.append({"name": f"{objective}_update_vs_plain", **seconds_ratio(found, *pair)})
        figures.append({"name": f"{objective}_update_memory_vs_plain", **memory_ratio(found, *pair)})
        turns |= found
    return {"figures": figures, "turns": turns}


if __name__ == "__main__":
    serve(VARIANTS)
