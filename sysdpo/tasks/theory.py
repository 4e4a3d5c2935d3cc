"""Section 3 and equation 6 checked on systems small enough for exact expectations.

Every system here is made of tables (`Tabular`), and the system, objectives and loop that train language models train
them too. A preference oracle with integer weights, pref(z > z') = w(z) / (w(z) + w(z')), has a finite data set whose
average is its exact expectation: w(z) copies of z > z' for w(z') copies of z' > z.
"""

import itertools
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sysdpo.components.tabular import Tabular
from sysdpo.errors import SettingError
from sysdpo.graph import SystemGraph
from sysdpo.reporting.theory import write_theory_report
from sysdpo.runs.folder import write_json
from sysdpo.sampling.monte_carlo import MonteCarlo
from sysdpo.sampling.strategies import DiverseBeam, SamplingStrategy
from sysdpo.seeds import stream
from sysdpo.system import CompoundSystem, Pair
from sysdpo.training.loop import Trainer, TrainingSettings
from sysdpo.training.objectives import Direct, Preference, Sampling

Weights = Mapping[str, Mapping[str, int]]
"""{x: {z: w(z)}}: the oracle."""

WEIGHTS: Weights = {"p": {"a": 1, "b": 2, "c": 4}, "q": {"a": 3, "b": 1, "c": 1}}
DRAFTS = ("l", "r")
UPDATES, LEARNING_RATE = 400, 0.2

ALL = DiverseBeam(diversity_penalty=1_000.0)
"""With this penalty every beam takes another value: K beams are the K most probable values, all of them in the end."""


@dataclass(frozen=True)
class TheorySettings:
    """Every key is commented in `conf/theory.yaml`."""

    betas: Sequence[float]
    samples: Sequence[int]
    drafts: int
    repeats: int
    seed: int

    def __post_init__(self) -> None:
        if not self.betas or min(self.betas) <= 0:
            raise SettingError(f"betas={list(self.betas)}: write positive numbers.")
        if not self.samples or min(self.samples) < 1 or max(self.samples) > self.drafts:
            raise SettingError(f"samples={list(self.samples)}: each must lie between 1 and drafts={self.drafts}.")
        if self.repeats < 2:
            raise SettingError(f"repeats={self.repeats}: must be at least 2.")


# ---- systems -------------------------------------------------------------------------------------------------------


def single(inputs: Sequence[Any], answers: Sequence[Any], logits: Tensor | None = None) -> CompoundSystem:
    """x -> z: the setting of DPO itself; without `logits` the reference is uniform."""
    return _chain({"z": Tabular(answers, {"x": inputs}, logits)})


def two_stages(
    inputs: Sequence[Any],
    drafts: Sequence[Any],
    answers: Sequence[Any],
    *,
    sees_input: bool = True,
    scale: float = 0.0,
    seed: int = 0,
) -> CompoundSystem:
    """x -> y -> z; `sees_input`: the second stage reads x too, as in figure 2b. Scale 0 is the uniform reference."""
    parents = {**({"x": inputs} if sees_input else {}), "y": drafts}
    first = Tabular(drafts, {"x": inputs}, scale=scale, seed=seed)
    return _chain({"y": first, "z": Tabular(answers, parents, scale=scale, seed=seed + 1)})


def _chain(stages: Mapping[str, Tabular]) -> CompoundSystem:
    variables: dict[str, dict[str, Any]] = {"x": {"role": "input"}}
    for name, table in stages.items():
        role = "final" if name == "z" else "intermediate"
        variables[name] = {"role": role, "component": f"p_{name}", "parents": list(table.parents)}
    components = {f"p_{name}": table for name, table in stages.items()}
    return CompoundSystem(SystemGraph(variables, components), components)


def tables(system: CompoundSystem) -> list[Tensor]:
    """log p of every component, parents' combinations by values, in the order of the graph."""
    found = [system.component(name) for name in system.components]
    return [c.table().detach().double() for c in found if isinstance(c, Tabular)]


def log_marginal(system: CompoundSystem, inputs: int) -> Tensor:
    """log p(z | x) with the intermediate summed out exactly (eq. 5): [inputs, answers]."""
    log_probs = tables(system)
    if len(log_probs) == 1:
        return log_probs[0]
    first, second = log_probs
    drafts = first.shape[1]
    if len(second) == drafts:  # the second stage does not read x
        second = second.repeat(inputs, 1)
    return (first[:, :, None] + second.view(inputs, drafts, -1)).logsumexp(1)


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


def align(system: CompoundSystem, preference: Preference, pairs: Sequence[Pair], beta: float) -> float:
    """Minimise the exact loss with the ordinary loop; returns the last value of the loss."""
    preference.check(system)
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
        Trainer(system, preference, pairs, (), settings, Path(folder), log.append).run()
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
    runs: dict[str, tuple[Any, Preference, list[Pair]]] = {
        "dpo": (single, Direct(), final),
        "sysdpo_direct": (two_stages, Direct(), system_preferences(WEIGHTS, full_support(WEIGHTS))),
        "sysdpo_direct_without_assumption_1": (
            two_stages,
            Direct(),
            system_preferences(WEIGHTS, broken_support(WEIGHTS)),
        ),
        "sysdpo_sampling_all_y": (two_stages, Sampling(SamplingStrategy(len(DRAFTS), ALL)), final),
    }
    rows = []
    for method, (make, preference, pairs) in runs.items():
        for beta in betas:
            system = make(inputs, answers) if make is single else make(inputs, DRAFTS, answers)
            loss = align(system, preference, pairs, beta)
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
    align(joint, Sampling(SamplingStrategy(len(values), ALL)), pairs, beta)
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


def run_theory(settings: TheorySettings, folder: Path) -> Path:
    """Everything above and below, as `folder/table.json` and what is drawn from it."""
    content = {
        "perfect_alignment": check_perfect_alignment(settings.betas),
        "joint_against_separate": [
            {"seed": seed, **check_joint_against_separate(0.5, seed)}
            for seed in range(settings.seed, settings.seed + 3)
        ],
        "approximation": approximation_error(settings),
        "settings": asdict(settings),
    }
    write_json(folder / "table.json", content)
    return write_theory_report(folder)


# ---- the approximation error of equation 6 -------------------------------------------------------------------------


def importance_log_marginal(log_joint: Tensor, log_proposal: Tensor, correct: bool = True) -> Tensor:
    """log p(z | x) from K draws with replacement from a proposal q(y | x), importance-weighted.

    The mean of the weights p(y, z | x) / q(y | x) has the right expectation for every K, unlike equation 6, whose
    partial sum is always too small; the logarithm of that mean is again too small by half its relative variance.
    `correct` takes this term away by the jackknife (as Nowozin, 2018, does for evidence bounds).

    Args:
        log_joint: log p(y^k, z | x), [..., K], nats.
        log_proposal: log q(y^k | x), [..., K], nats.
    """
    weights = log_joint - log_proposal
    k = weights.shape[-1]
    estimate = weights.logsumexp(-1) - math.log(k)
    if not correct or k == 1:
        return estimate
    others = torch.stack([torch.cat([weights[..., :i], weights[..., i + 1 :]], -1) for i in range(k)])
    left_out = others.logsumexp(-1) - math.log(k - 1)  # [K, ...]
    return k * estimate - (k - 1) * left_out.mean(0)


def approximation_error(settings: TheorySettings) -> list[dict[str, Any]]:
    """Bias and root mean square error, in nats, of log p(z | x) (eq. 6) and of the margin (eq. 9), against K."""
    inputs, answers = list(range(4)), list(range(3))
    drafts = list(range(settings.drafts))
    system = two_stages(inputs, drafts, answers, scale=2.0, seed=settings.seed)
    reference = tables(system)
    generator = torch.Generator().manual_seed(settings.seed)
    with torch.no_grad():  # a policy that training has moved away from its reference
        for parameter in system.parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))
    policy = tables(system)
    first: Any = system.component("p_y")
    joint = {
        name: first_table[:, :, None] + second.view(len(inputs), len(drafts), len(answers))
        for name, (first_table, second) in {"policy": policy, "reference": reference}.items()
    }
    exact = {name: values.logsumexp(1) for name, values in joint.items()}  # [x, z]
    exact_margin = _margins(exact["policy"] - exact["reference"])
    rows = []
    for k in settings.samples:
        for method in ("diverse_beam", "monte_carlo", "importance_weighted", "importance_weighted_corrected"):
            repeats = 1 if method == "diverse_beam" else settings.repeats
            sampler = ALL if method == "diverse_beam" else MonteCarlo(distinct=method == "monte_carlo")
            parents = [{"x": x} for x in inputs for _ in range(repeats)]
            seeds = [stream(settings.seed, i) for i in range(len(parents))]
            drawn = first.sample(parents, k, seeds, sampler)
            estimates: dict[str, list[Tensor]] = {name: [] for name in joint}
            for row, values in zip(parents, drawn, strict=True):
                for name, table in joint.items():
                    terms = table[row["x"], values].T  # [z, K]: the same samples for every answer
                    if method.startswith("importance"):
                        proposal = policy[0][row["x"], values].expand_as(terms)
                        estimate = importance_log_marginal(terms, proposal, method.endswith("corrected"))
                    else:
                        estimate = terms.logsumexp(-1)
                    estimates[name].append(estimate)
            found = {name: torch.stack(v).view(len(inputs), repeats, -1) for name, v in estimates.items()}
            error = found["policy"] - exact["policy"][:, None]
            margin_error = _margins(found["policy"] - found["reference"]) - exact_margin[:, None]
            rows.append(
                {
                    "method": method,
                    "k": k,
                    "bias": float(error.mean(1).mean()),
                    "rmse": float(error.square().mean().sqrt()),
                    "margin_bias": float(margin_error.mean(1).abs().mean()),
                    "margin_rmse": float(margin_error.square().mean().sqrt()),
                }
            )
    return rows


def _margins(log_ratio: Tensor) -> Tensor:
    """Margins of all pairs of answers: [..., z] -> [..., pairs]."""
    pairs = list(itertools.combinations(range(log_ratio.shape[-1]), 2))
    return torch.stack([log_ratio[..., i] - log_ratio[..., j] for i, j in pairs], -1)
