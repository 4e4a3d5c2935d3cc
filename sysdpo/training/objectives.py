"""How a system compares two outcomes: the margins of SysDPO-Direct (eq. 4) and SysDPO-Sampling (eq. 9)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, get_args

import torch
from torch import Tensor

from sysdpo import processes
from sysdpo.components.base import identity
from sysdpo.errors import SettingError, nearest
from sysdpo.losses import Estimator, direct_margin, posterior_agreement, sampling_margin
from sysdpo.sampling.diversity import distinct_ngrams
from sysdpo.sampling.monte_carlo import MonteCarlo
from sysdpo.sampling.strategies import DiverseBeam, Sampler, most_contrasting
from sysdpo.system import CompoundSystem, Pair

SIDES = ("chosen", "rejected")
Drawn = list[list[dict[str, Any]]]
"""For each pair, up to K joint samples of the intermediates."""


@dataclass(frozen=True)
class Comparison:
    """B pairs compared; all tensors in nats.

    `chosen` and `rejected` are the policy's log-ratio to the reference for each side, [B]; `logps` the policy's
    log-probability of each side where it is exact; `terms` each component's part of the margin, `sides` of each
    side's log-ratio, [B]. `chosen_likelihood` is the chosen side's log-ratio over the variables whose likelihood is
    exact, [B]; its gradient is that of their log-likelihood. `sampling` describes the samples that were summed over,
    [B] each.
    """

    margin: Tensor
    chosen: Tensor
    rejected: Tensor
    chosen_likelihood: Tensor
    logps: Mapping[str, Tensor] = field(default_factory=dict)
    terms: Mapping[str, Tensor] = field(default_factory=dict)
    sides: Mapping[tuple[str, str], Tensor] = field(default_factory=dict)
    counts: Mapping[str, float] = field(default_factory=dict)
    sampling: Mapping[str, Tensor] = field(default_factory=dict)


class Objective(Protocol):
    """A way to compare; `conf/objective/` names one."""

    @property
    def needs_intermediates(self) -> bool:
        """Whether a pair has to hold values for the intermediate variables too."""
        ...

    def check(self, system: CompoundSystem) -> None: ...

    def compare(
        self, system: CompoundSystem, pairs: Sequence[Pair], seeds: Sequence[int], drawn: Drawn | None = None
    ) -> Comparison:
        """`drawn`: what `draw_ahead` gave for these pairs; None draws it now."""
        ...

    def draw_ahead(
        self, system: CompoundSystem, pairs: Sequence[Pair], seeds: Sequence[int], at_once: int
    ) -> Drawn | None:
        """What the pairs' comparisons will need, drawn for `at_once` of them at a time; None if they need nothing."""
        ...


@dataclass(frozen=True)
class Direct:
    """SysDPO-Direct: every variable is in the data, so the likelihood factorises (eq. 3 and 4)."""

    needs_intermediates: bool = True
    with_reference: ClassVar[bool] = True

    def check(self, system: CompoundSystem) -> None:
        """Any mixture of exact, bounded and constant components can be compared directly."""

    def draw_ahead(self, system: CompoundSystem, pairs: Sequence[Pair], seeds: Sequence[int], at_once: int) -> None:
        """Every value is in the data."""

    def compare(
        self, system: CompoundSystem, pairs: Sequence[Pair], seeds: Sequence[int], drawn: Drawn | None = None
    ) -> Comparison:
        """`seeds`: one a pair; a bound's random draws are shared between the chosen and the rejected side."""
        rows = [pair.row(side) for side in SIDES for pair in pairs]
        logps: dict[str, Tensor] = {}
        if all(system.likelihood_of(v) != "bound" for v in system.graph.generated):
            policy, reference = system.log_prob(rows), system.reference_log_prob(rows)
            ratios = {name: policy[name] - reference[name] * self.with_reference for name in policy}
            joint = torch.stack([p.detach() for p in policy.values()]).sum(0)
            logps = dict(zip(SIDES, joint.chunk(2), strict=True))
        else:
            ratios = system.log_ratio(rows, noise=[*seeds, *seeds])
        chosen, rejected = torch.stack(list(ratios.values()), dim=-1).chunk(2)  # [B, V] each
        sides: dict[tuple[str, str], Tensor] = {}
        for i, name in enumerate(ratios):
            for component, its_rows in system.drawn_by(system.graph[name], rows).items():
                for side, values, own in zip(SIDES, (chosen, rejected), its_rows.chunk(2), strict=True):
                    share = values[:, i].detach() * own
                    sides[component, side] = sides[component, side] + share if (component, side) in sides else share
        terms = {name: sides[name, "chosen"] - sides[name, "rejected"] for name in system.components}
        exact = [i for i, name in enumerate(ratios) if system.likelihood_of(system.graph[name]) == "exact"]
        return Comparison(
            direct_margin(chosen, rejected),
            chosen.sum(-1).detach(),
            rejected.sum(-1).detach(),
            chosen[:, exact].sum(-1),
            logps,
            terms,
            sides,
        )


class WithoutReference(Direct):
    """The joint margin log p(chosen) - log p(rejected): the loss of multi-agent DPO (MADPO, CoMLRL).

    Nothing holds the system where it was.
    """

    with_reference = False

    def check(self, system: CompoundSystem) -> None:
        """Every variable needs a likelihood of its own."""
        for variable in system.graph.generated:
            if system.likelihood_of(variable) == "bound":
                raise SettingError(
                    f"objective=no_reference: variable {variable.name!r} has only a bound on its log-ratio, and no "
                    "likelihood of its own; use objective=direct."
                )


class Sampling:
    """SysDPO-Sampling: intermediates are drawn from the current system and summed out (eq. 9).

    Args:
        strategy: how samples are found; or say it in short, `Sampling(k=4, draw=MonteCarlo())`:
        k: joint samples of the intermediates for each pair (K in eq. 9).
        draw: how a language model draws its share of them.
        estimator: `sum` is eq. 9: the sum over distinct samples. `importance` divides each sample by the probability
            with which it was drawn, repeated draws counting each, so that the first components have a gradient
            however long their texts are (docs/estimators.md). It is beyond the paper, and takes draws of the system
            itself only: `Sampling(k=4, estimator="importance")`.

    Raises:
        SettingError: the estimator is unknown, or the strategy's samples have no density that it could divide by.
    """

    needs_intermediates = False

    def __init__(
        self,
        strategy: Sampler | None = None,
        estimator: Estimator = "sum",
        *,
        k: int = 2,
        draw: DiverseBeam | MonteCarlo | None = None,
    ) -> None:
        if estimator not in get_args(Estimator):
            raise SettingError(f"objective.estimator: {nearest(str(estimator), get_args(Estimator))}")
        own = MonteCarlo(distinct=False) if estimator == "importance" else DiverseBeam()
        self.strategy, self.estimator = strategy or Sampler(k, draw or own), estimator
        if estimator == "importance":
            self.strategy.check_own_draws("objective.estimator=importance")

    def check(self, system: CompoundSystem) -> None:
        for variable in system.graph.generated:
            names = " or ".join(map(repr, variable.components))
            if system.likelihood_of(variable) == "bound":
                raise SettingError(
                    f"objective=sampling: component {names} has no exact likelihood, only a bound, so samples cannot "
                    "be summed out; use objective=direct."
                )
            if variable.role == "final" and any(
                system.component(n).likelihood == "constant" for n in variable.components
            ):
                raise SettingError(
                    f"objective=sampling: the final variable {variable.name!r} is drawn by {names}, a tool: no sample "
                    "of the intermediates would give the data's answer; let a model write it, or use objective=direct."
                )
            before = [name for name in variable.depends_on if system.graph[name].role == "final"]
            if variable.role == "intermediate" and before:
                raise SettingError(
                    f"objective=sampling: the intermediate {variable.name!r} is drawn after the final {before[0]!r}, "
                    "so chosen and rejected outcomes have no samples in common; use objective=direct."
                )

    def draw_ahead(self, system: CompoundSystem, pairs: Sequence[Pair], seeds: Sequence[int], at_once: int) -> Drawn:
        """A step of decoding takes about as long for many rows as for few: larger batches than a loss has room for."""
        drawn: Drawn = []
        for start in range(0, max(1, len(pairs)), at_once):  # without pairs too: processes draw together
            part = slice(start, start + at_once)
            drawn += self.draw(system, pairs[part], seeds[part])
        return drawn

    def compare(
        self, system: CompoundSystem, pairs: Sequence[Pair], seeds: Sequence[int], drawn: Drawn | None = None
    ) -> Comparison:
        """`seeds`: one a pair, of the intermediate samples."""
        if drawn is None:
            drawn = self.draw(system, pairs, seeds)
        rows, index = [], []
        for b, (pair, samples) in enumerate(zip(pairs, drawn, strict=True)):
            for k, sample in enumerate(samples):
                for s, side in enumerate(SIDES):
                    rows.append({**pair.row(side), **sample})
                    index.append((s, b, k))
        where = tuple(torch.tensor(index, dtype=torch.long).view(-1, 3).T)
        policy, reference = system.log_prob(rows), system.reference_log_prob(rows)
        shape = (2, len(pairs), max(map(len, drawn), default=1))
        joint_policy = _scatter(_total(policy), where, shape, -torch.inf)  # [2, B, K]
        joint_reference = _scatter(_total(reference), where, shape, -torch.inf)
        own = {v.name for v in system.graph.intermediates}
        proposal = None
        if self.estimator == "importance":
            # the samples were drawn with these weights: what they are scored with now is what they were drawn with
            drawn_with = {name: value.detach() for name, value in policy.items() if name in own}
            proposal = _scatter(_total(drawn_with), where, shape, 0.0)[0]  # [B, K]
        margin = sampling_margin(joint_policy[0], joint_reference[0], joint_policy[1], joint_reference[1], proposal)
        # fitting the chosen outcome must not sharpen the intermediates, which are the system's own samples
        given = {name: value.detach() if name in own else value for name, value in policy.items()}
        fitted = _scatter(_total(given), where, shape, -torch.inf)[0]
        # a mean of weights estimates log p(z | x); a sum of probabilities is a lower bound on it
        divisor = torch.zeros(()) if proposal is None else proposal + math.log(shape[2])
        divisor = divisor.to(joint_policy)
        likelihood = (fitted - divisor).logsumexp(-1) - (joint_reference[0] - divisor).logsumexp(-1)
        with torch.no_grad():
            weights = joint_policy - divisor
            marginal = weights.logsumexp(-1)
            ratio = marginal - (joint_reference - divisor).logsumexp(-1)
            posterior = weights.softmax(-1)
            effective, variation = posterior_agreement(weights)
            terms: dict[str, Tensor] = {}
            for name in policy:  # which part of the system moved, averaged over the samples that explain each side
                for component, share in system.drawn_by(system.graph[name], rows).items():
                    moved = _scatter((policy[name] - reference[name]) * share, where, shape, 0.0)
                    sides = (posterior * moved).sum(-1)
                    terms[component] = terms.get(component, torch.zeros_like(margin)) + sides[0] - sides[1]
        wanted = self.strategy.k * len(pairs)
        counts = {
            "samples": float(sum(map(len, drawn))),
            "samples_missing": float(wanted - sum(map(len, drawn))),
        }
        logps = {"chosen": marginal[0], "rejected": marginal[1]}
        sampling = {
            "effective_samples": effective.mean(0),
            "effective_samples_chosen": effective[0],
            "effective_samples_rejected": effective[1],
            "total_variation": variation,
        }
        texts = [[v for sample in samples for v in sample.values() if isinstance(v, str)] for samples in drawn]
        if any(texts):
            sampling["distinct_bigrams"] = margin.new_tensor([distinct_ngrams(own) for own in texts])
        return Comparison(margin, ratio[0], ratio[1], likelihood, logps, terms, counts=counts, sampling=sampling)

    @torch.no_grad()
    def draw(self, system: CompoundSystem, pairs: Sequence[Pair], seeds: Sequence[int]) -> Drawn:
        """Joint samples of the intermediates for each pair, from the current policy; distinct ones for `sum`."""
        names = [v.name for v in system.graph.intermediates]
        n = self.strategy.num_draws
        rows = system.generate(
            [pair.inputs for pair in pairs for _ in range(n)],
            [seed * n + k for seed in seeds for k in range(n)],
            sampler=self.strategy.draw,
            only=names,
            requests=[b for b in range(len(pairs)) for _ in range(n)],  # what a pair gets is its own affair
        )
        drawn = []
        for b in range(len(pairs)):
            samples = [{name: row[name] for name in names} for row in rows[b * n : (b + 1) * n]]
            distinct = {identity(sample): sample for sample in samples}
            drawn.append(samples if self.estimator == "importance" else list(distinct.values()))
        return self._contrast(system, pairs, drawn) if self.strategy.contrastive else drawn

    def _contrast(self, system: CompoundSystem, pairs: Sequence[Pair], drawn: Sequence[list[dict[str, Any]]]) -> Drawn:
        finals = [v.name for v in system.graph.finals]
        kept = []
        for b in range(processes.most(len(pairs))):  # a process without a pair is there where weights are in parts
            part, samples = pairs[b : b + 1], drawn[b] if b < len(drawn) else []
            rows = [{**pair.row(side), **sample} for pair in part for side in SIDES for sample in samples]
            scores = system.log_prob(rows)
            if part:
                chosen, rejected = torch.stack([scores[name] for name in finals]).sum(0).chunk(2)
                kept.append([samples[i] for i in most_contrasting(chosen - rejected)])
        return kept


def _total(terms: Mapping[str, Tensor]) -> Tensor:
    return torch.stack(list(terms.values())).sum(0)


def _scatter(values: Tensor, where: tuple[Tensor, ...], shape: tuple[int, ...], fill: float) -> Tensor:
    return values.new_full(shape, fill).index_put(where, values)
