"""Systems of tables, small enough that every sum over their values is exact."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from sysdpo.components.tabular import Tabular
from sysdpo.graph import SystemGraph
from sysdpo.sampling.strategies import DiverseBeam
from sysdpo.system import CompoundSystem

ALL = DiverseBeam(diversity_penalty=1_000.0)
"""With this penalty every beam takes another value: K beams are the K most probable values, all of them in the end."""


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


def tables(system: CompoundSystem, differentiable: bool = False) -> list[Tensor]:
    """log p of every component, parents' combinations by values, in the order of the graph."""
    found = [system.component(name) for name in system.components]
    log_probs = [c.table().double() for c in found if isinstance(c, Tabular)]
    return log_probs if differentiable else [table.detach() for table in log_probs]


def log_marginal(system: CompoundSystem, inputs: int, differentiable: bool = False) -> Tensor:
    """log p(z | x) with the intermediate summed out exactly (eq. 5): [inputs, answers]."""
    log_probs = tables(system, differentiable)
    if len(log_probs) == 1:
        return log_probs[0]
    first, second = log_probs
    drafts = first.shape[1]
    if len(second) == drafts:  # the second stage does not read x
        second = second.repeat(inputs, 1)
    return (first[:, :, None] + second.view(inputs, drafts, -1)).logsumexp(1)
