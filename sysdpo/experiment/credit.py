"""Who earned it: each component's share of the margin of every pair, which the graph's factorisation gives for free."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from sysdpo import processes
from sysdpo.progress import progress
from sysdpo.seeds import stream
from sysdpo.system import CompoundSystem, Pair
from sysdpo.training.loop import TrainingSettings
from sysdpo.training.objectives import Objective

PAIRS = 240
"""Training pairs that are looked at, at equal distances: enough for a mean by prompt family."""
SHARE = 0.25
"""Or as many as this share of those that training has read, if these are fewer: the report is not to cost more."""

FAMILIES = ("family", "attribute")
"""Columns of the data that say of what kind a prompt is."""


@torch.no_grad()
def credit(
    system: CompoundSystem, objective: Objective, pairs: Sequence[Pair], settings: TrainingSettings
) -> list[dict[str, Any]]:
    """What a trained system's components contribute to the margin of training pairs, in nats.

    Returns:
        A record a pair: `row` (from 1), `family`, `margin`, and `components`, whose shares add up to the margin where
        the objective is Direct. In SysDPO-Sampling the margin is a log of a sum; the shares are then the mean moves of
        the samples that explain each side.
    """
    most = min(PAIRS, math.ceil(SHARE * settings.steps * settings.batch_size))
    some = list(pairs[:: max(1, len(pairs) // most)][:most])
    records: list[dict[str, Any]] = []
    turns = processes.turns(len(some), settings.micro_batch_size)
    for turn in progress(turns, "who earned it", total=len(turns)):
        part, own = [some[i] for i in turn], []
        compared = objective.compare(system, part, [stream(settings.seed, settings.steps, p.index) for p in part])
        for i, pair in enumerate(part):
            terms = {name: float(values[i]) for name, values in compared.terms.items()}
            record = {"row": pair.index + 1, "family": family(pair.extra)}
            own.append({**record, "margin": float(compared.margin[i]), "components": terms})
        records += processes.joined(own)
    return records


def family(extra: Mapping[str, Any]) -> str:
    return next((str(extra[name]) for name in FAMILIES if name in extra), "all")
