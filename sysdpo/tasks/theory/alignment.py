"""Section 3 checked on systems small enough for exact expectations.

Every system here is made of tables (`Tabular`), and the system, objectives and loop that train language models train
them too. A preference oracle with integer weights, pref(z > z') = w(z) / (w(z) + w(z')), has a finite data set whose
average is its exact expectation: w(z) copies of z > z' for w(z') copies of z' > z.
"""

import itertools
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sysdpo.sampling.strategies import Sampler
from sysdpo.system import CompoundSystem, Pair
from sysdpo.tasks.theory.systems import ALL, log_marginal, single, tables, two_stages
from sysdpo.training.loop import Trainer, TrainingSettings
from sysdpo.training.objectives import Direct, Objective, Sampling

Weights = Mapping[str, Mapping[str, int]]
"""{x: {z: w(z)}}: the oracle."""

WEIGHTS: Weights = {"p": {"a": 1, "b": 2, "c": 4}, "q": {"a": 3, "b": 1, "c": 1}}
DRAFTS = ("l", "r")
UPDATES, LEARNING_RATE = 400, 0.2


# ---- exact preference data -----------------------------------------------------------------------------------------


def preferences(weights: Weights) -> list[Pair]:
    """All pairs of answers, in the proportion in which the oracle prefers one to the other."""
    pairs = [
        (x, {"z": z}, {"z": other})
        for x, weight in weights.items()
        for z, other in itertools.permutations(weight, 2)
        for _ in range(weight[z])
    ]
    return _numbered(pairs)


def system_preferences(weights: Weights, support: Mapping[str, Sequence[tuple[str, str]]]) -> list[Pair]:
    """All pairs of s = (y, z) in `support` ({x: [(y, z), …]}), judged by z alone (eq. 12); equal z are a toss-up."""
    pairs = [
        (x, {"y": y, "z": z}, {"y": other_y, "z": other_z})
        for x, outcomes in support.items()
        for (y, z), (other_y, other_z) in itertools.permutations(outcomes, 2)
        for _ in range(weights[x][z] if z != other_z else 1)
    ]
    return _numbered(pairs)


def _numbered(pairs: Sequence[tuple[str, dict[str, str], dict[str, str]]]) -> list[Pair]:
    return [Pair(i, {"x": x}, chosen, rejected) for i, (x, chosen, rejected) in enumerate(pairs)]


def full_support(weights: Weights) -> dict[str, list[tuple[str, str]]]:
    """Assumption 1."""
    return {x: list(itertools.product(DRAFTS, weight)) for x, weight in weights.items()}


def broken_support(weights: Weights) -> dict[str, list[tuple[str, str]]]:
    """Each answer was only ever seen with one draft: assumption 1 fails."""
    return {x: [(DRAFTS[i % len(DRAFTS)], z) for i, z in enumerate(weight)] for x, weight in weights.items()}


def align(system: CompoundSystem, objective: Objective, pairs: Sequence[Pair], beta: float) -> float:
    """Minimise the exact loss with the ordinary loop; returns the last value of the loss."""
    objective.check(system)
    settings = TrainingSettings(
        steps=UPDATES,
        batch_size=len(pairs),
        micro_batch_size=len(pairs),
        learning_rate=LEARNING_RATE,
        beta=beta,
        checkpoint_every=UPDATES,
    )
    log: list[Mapping[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        Trainer(system, objective, pairs, (), settings, Path(folder), log.append).run()
    return log[-1]["loss"]


# ---- definition 1, theorem 1, assumption 1 -------------------------------------------------------------------------


def perfection_error(system: CompoundSystem, weights: Weights, beta: float) -> float:
    """Definition 1: the largest |log p(z|x)/p(z'|x) - log(pref / (1 - pref)) / beta| over all x, z, z', in nats."""
    target = torch.tensor([[math.log(w) / beta for w in weight.values()] for weight in weights.values()]).double()
    difference = log_marginal(system, len(weights)) - target  # constant in z for a perfectly aligned system
    return float((difference.max(-1).values - difference.min(-1).values).max())


def least_loss(pairs: Sequence[Pair], weights: Weights) -> float:
    """The cross-entropy of the oracle with itself on these pairs: no system has a smaller loss."""
    total = 0.0
    for pair in pairs:
        chosen, rejected = weights[pair.inputs["x"]][pair.chosen["z"]], weights[pair.inputs["x"]][pair.rejected["z"]]
        total -= math.log(chosen / (chosen + rejected))
    return total / len(pairs)


def check_perfect_alignment(betas: Sequence[float]) -> list[dict[str, Any]]:
    """For each beta: DPO, SysDPO-Direct with and without assumption 1, SysDPO-Sampling over all intermediates."""
    inputs, answers = list(WEIGHTS), list(WEIGHTS["p"])
    final = preferences(WEIGHTS)
    runs: dict[str, tuple[Any, Objective, list[Pair]]] = {
        "dpo": (single, Direct(), final),
        "sysdpo_direct": (two_stages, Direct(), system_preferences(WEIGHTS, full_support(WEIGHTS))),
        "sysdpo_direct_without_assumption_1": (
            two_stages,
            Direct(),
            system_preferences(WEIGHTS, broken_support(WEIGHTS)),
        ),
        "sysdpo_sampling_all_y": (two_stages, Sampling(Sampler(len(DRAFTS), ALL)), final),
    }
    rows = []
    for method, (make, objective, pairs) in runs.items():
        for beta in betas:
            system = make(inputs, answers) if make is single else make(inputs, DRAFTS, answers)
            loss = align(system, objective, pairs, beta)
            rows.append(
                {
                    "method": method,
                    "beta": beta,
                    "log_ratio_error": perfection_error(system, WEIGHTS, beta),
                    "excess_loss": loss - least_loss(pairs, WEIGHTS),
                    "log_marginal": log_marginal(system, len(inputs)).tolist(),
                }
            )
    return rows


# ---- joint against separate alignment ------------------------------------------------------------------------------


def check_joint_against_separate(beta: float, seed: int) -> dict[str, float]:
    """Preferences that do not decompose: z should equal x, but the second stage sees nothing except y.

    The first stage has to encode x and the second to decode it. Aligned as in Separate-DPO, each stage as if its
    value were the answer and its input came from the untrained system, the second one sees drafts that tell nothing
    of x. Returned is E_x p(z = x | x): 0.5 is chance.
    """
    values = ["a", "b"]
    pairs = [Pair(i, {"x": x}, {"z": x}, {"z": other}) for i, (x, other) in enumerate(itertools.permutations(values))]

    def make() -> CompoundSystem:  # nearly uniform: perfect symmetry between the two codes would be a saddle point
        return two_stages(values, values, values, sees_input=False, scale=0.02, seed=seed)

    def success(first: Tensor, second: Tensor) -> float:
        return float((first.exp() @ second.exp()).diagonal().mean())

    untrained, joint = make(), make()
    align(joint, Sampling(Sampler(len(values), ALL)), pairs, beta)
    first, second = (single(values, values, log_probs.float()) for log_probs in tables(untrained))
    align(first, Direct(), pairs, beta)
    drafts = tables(untrained)[0].exp()
    with_drafts = [
        Pair(i, {"x": y}, pair.chosen, pair.rejected)
        for i, (pair, (k, y)) in enumerate(itertools.product(pairs, enumerate(values)))
        for _ in range(round(100 * float(drafts[values.index(pair.inputs["x"]), k])))
    ]
    align(second, Direct(), with_drafts, beta)
    return {
        "untrained": success(*tables(untrained)),
        "separate": success(tables(first)[0], tables(second)[0]),
        "joint": success(*tables(joint)),
    }
