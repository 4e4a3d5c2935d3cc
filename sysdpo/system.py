"""A compound system: a graph whose variables are drawn by components (sections 2.1 to 2.3)."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sysdpo import processes
from sysdpo.components.base import Component, Likelihood, Parents, Quantity, TokenSampler, Value, identity
from sysdpo.components.names import check_component_name
from sysdpo.errors import SettingError, nearest
from sysdpo.graph import SystemGraph, Variable
from sysdpo.runs.files import SUMS, damage, replacing, write_sums
from sysdpo.seeds import stream
from sysdpo.sharding import assembled, backward_apart, is_split, split, whole

Row = Mapping[str, Value]
"""One assignment of values to variables; a variable in a plate holds a list."""


@dataclass(frozen=True)
class Pair:
    """Two outcomes for one input, the first preferred.

    `chosen` and `rejected` assign values to every generated variable (SysDPO-Direct) or at least to the final ones
    (SysDPO-Sampling); `extra` keeps what else the data know of the row, for judges and reports.
    """

    index: int
    inputs: Row
    chosen: Row
    rejected: Row
    extra: Row = field(default_factory=dict)

    def row(self, side: str) -> dict[str, Value]:
        """The assignment of one side: inputs and that side's values."""
        return {**self.inputs, **(self.chosen if side == "chosen" else self.rejected)}


class CompoundSystem(nn.Module):
    """All components of a system in one module: one optimizer, one checkpoint, one forward for any graph.

    Args:
        graph: the structure, or the mapping that `SystemGraph` takes.
        components: `{name: component}` for every component the graph names.
    """

    def __init__(
        self, graph: SystemGraph | Mapping[str, Mapping[str, Any]], components: Mapping[str, Component]
    ) -> None:
        super().__init__()
        if not isinstance(graph, SystemGraph):
            graph = SystemGraph(graph, components)
        for name in graph.components:
            if name not in components:
                raise SettingError(f"components: {nearest(name, components)}")
            check_component_name(name)
        self.graph = graph
        self.components = nn.ModuleDict({name: components[name] for name in graph.components})
        self.computed: set[str] = set()  # components that a pass with gradients went through, since it was cleared
        for variable in graph.generated:
            for name in variable.components:
                self.component(name).check_parents(name, [alias for alias, _ in variable.parents])
            for control, values in variable.controls.items():
                self._check_control(variable, control, values)

    def _check_control(self, variable: Variable, control: str, values: Sequence[Value]) -> None:
        """The values by which one variable steers another are values that its components can draw, all of them."""
        domains = [self.component(name).domain for name in self.graph[control].components]
        if not domains or any(domain is None for domain in domains):
            return
        known = list(dict.fromkeys(value for domain in domains for value in domain or ()))
        where = f"variable {variable.name!r}: {'component' if control == variable.switch else 'when'}.{control}"
        for value in values:
            if value not in known:
                raise SettingError(f"{where}: {nearest(str(value), map(str, known))}")
        if control == variable.switch and (missing := [value for value in known if value not in values]):
            raise SettingError(f"{where}: names no component for {', '.join(map(repr, missing))}.")

    @property
    def device(self) -> torch.device:
        return next((p.device for p in self.parameters()), torch.device("cpu"))

    def component(self, name: str) -> Component:
        component = self.components[name]
        assert isinstance(component, Component)
        return component

    def likelihood_of(self, variable: Variable) -> Likelihood:
        """What is known of the variable's factor in every row: the weakest of what its components know."""
        kinds = {self.component(name).likelihood for name in variable.components}
        return "bound" if "bound" in kinds else "exact" if "exact" in kinds else "constant"

    def drawn_by(self, variable: Variable, rows: Sequence[Row]) -> dict[str, Tensor]:
        """Which rows each component draws the variable in: {component: [N], 1 or 0}."""
        names = [variable.may_draw(row) for row in rows]
        return {
            name: torch.tensor([float(name in who) for who in names], device=self.device)
            for name in variable.components
        }

    @property
    def trainable(self) -> list[str]:
        """The components that training changes."""
        return [name for name in self.components if self.component(name).is_trainable]

    def train_only(self, names: Sequence[str]) -> None:
        """Make exactly these components trainable (`train: [...]`)."""
        for name in names:
            if name not in self.components:
                raise SettingError(
                    f"train: this system has no component {name!r}, only {', '.join(self.components)}; choose another "
                    "method, or name its components in train=[…]."
                )
        for name in self.components:
            self.component(name).trainable(name in names)

    def save(self, folder: str | Path) -> None:
        """Write the trained components, one folder each, in the layout of the library that they belong to.

        Language models become PEFT's adapters (`PeftModel.from_pretrained`), diffusion models what `load_lora_weights`
        reads. A folder is whole or absent.
        """
        folder = Path(folder)
        for name in self.trainable:
            with assembled(self.component(name)) as component:
                processes.by_first(partial(_save, component, folder / name))

    def restore(self, folder: str | Path) -> list[str]:
        """Give the components the weights that `save` wrote; returns the names of those that have some.

        Raises:
            SettingError: a file is not the one that was written.
        """
        found = [name for name in self.components if (Path(folder) / name).is_dir()]
        for name in found:
            place = Path(folder) / name
            if (place / SUMS).exists() and (wrong := damage(place)) is not None:
                raise SettingError(f"{place}: {wrong}; the command that made the run restores it.")
            self.component(name).restore(str(Path(folder) / name))
        return found

    def share_out(self) -> None:
        """Under `distributed=fsdp`, keep only this process's part of every component's weights.

        Raises:
            SettingError: they could not be saved afterwards, or two components share some.
        """
        if processes.layout() == "fsdp" and not any(map(is_split, self.components.values())):
            for name in self.trainable:
                self.component(name).rehearse_saving()  # libraries load whole weights only
            split(self.components)

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Inside, every component computes with its reference weights."""
        with ExitStack() as stack:
            for name in self.components:
                stack.enter_context(self.component(name).reference())
            yield

    @contextmanager
    def first_reference(self) -> Iterator[None]:
        """Inside, the reference is the untrained system, wherever it has moved since."""
        followed = {name: self.component(name)._followed for name in self.components}
        moved = [name for name, weights in followed.items() if weights is not None]
        try:
            for name in moved:
                self.component(name).follow(None)
            yield
        finally:
            for name in moved:
                self.component(name).follow(followed[name])

    @contextmanager
    def untrained(self) -> Iterator[None]:
        """Inside, every component computes as before training."""
        with self.first_reference(), self.reference():
            yield

    # ---- walking the graph -------------------------------------------------------------------------------------

    @torch.no_grad()
    def generate(
        self,
        inputs: Sequence[Row],
        seeds: Sequence[int] | int = 0,
        sampler: TokenSampler | None = None,
        only: Sequence[str] | None = None,
        requests: Sequence[int] | None = None,
    ) -> list[dict[str, Value]]:
        """Draw every generated variable (or those named in `only`), parents first.

        With a sampler, rows of one request whose parents agree are drawn at once: a component is asked for as many
        values as there are such rows, so that a strategy which promises distinct values spreads them over the rows.
        Where it has fewer, values repeat.

        Args:
            inputs: one mapping a row, with at least the input variables.
            seeds: one a row; what a row gets depends on its own seed and parents, and on those of its request.
                A single number gives every row a stream of its own.
            requests: the number of the request that each row belongs to; None: all rows are one request.
        """
        rows: list[dict[str, Value]] = [dict(row) for row in inputs]
        if isinstance(seeds, int):
            seeds = [stream(seeds, i) for i in range(len(rows))]
        for position, variable in enumerate(self.graph.generated):
            if only is not None and variable.name not in only:
                continue
            calls, owners = self._calls(variable, rows)
            values: list[Value] = [None] * len(calls)
            asked = _by_component(variable, rows, owners)
            for name in variable.components:
                members = asked.get(name, [])
                chosen = [owners[i] for i in members]
                call_seeds = [_mix(seeds[row], position, element) for row, element in chosen]
                together = [(requests[row] if requests is not None else 0, element) for row, element in chosen]
                try:
                    with whole(self.component(name)) as component:
                        drawn = _draw_grouped(component, [calls[i] for i in members], call_seeds, sampler, together)
                except SettingError as error:
                    raise SettingError(f"variable {variable.name!r}: {error}") from error
                for i, value in zip(members, drawn, strict=True):
                    values[i] = value
            self._assign(variable, rows, owners, values)
        return rows

    def log_prob(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """log p(v | Pa(v)) of every generated variable in every row: {variable: [N]}, nats."""
        return self(rows, "log_prob")

    def reference_log_prob(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """The same under the reference, without gradient."""
        return self(rows, "reference_log_prob")

    def log_ratio(self, rows: Sequence[Row], noise: Sequence[int] | None = None) -> dict[str, Tensor]:
        """log p(v | Pa(v)) - log p_ref(v | Pa(v)): {variable: [N]}, nats. `noise`: one seed a row, for bounds."""
        return self(rows, "log_ratio", noise)

    def forward(
        self, rows: Sequence[Row], quantity: Quantity = "log_ratio", noise: Sequence[int] | None = None
    ) -> dict[str, Tensor]:
        """Any of the three quantities, so that a wrapper of the module sees every computation with gradients.

        Log-probabilities leave out the variables whose component knows only a bound on its log-ratio.
        """
        output: dict[str, Tensor] = {}
        for variable in self.graph.generated:
            if self.likelihood_of(variable) == "bound" and quantity != "log_ratio":
                continue
            calls, owners = self._calls(variable, rows)
            values = self._values(variable, rows, owners)
            total = torch.zeros(len(rows), device=self.device)
            asked = _by_component(variable, rows, owners)
            for name in variable.components:
                component, members = self.component(name), asked.get(name, [])
                # weights that are never updated: policy and reference agree
                agrees = quantity == "log_ratio" and not component.is_trainable
                if component.likelihood == "constant" or agrees:
                    continue
                if not members and processes.layout() == "none":
                    continue
                if members and torch.is_grad_enabled():
                    self.computed.add(name)
                seeds = None if noise is None else [_mix(noise[owners[i][0]], 0, owners[i][1]) for i in members]
                terms = evaluate(component, quantity, [values[i] for i in members], [calls[i] for i in members], seeds)
                terms = terms.to(self.device)  # components may live on several
                index = torch.tensor([owners[i][0] for i in members], dtype=torch.long, device=terms.device)
                total = total.to(terms.dtype).index_add(0, index, terms)
            output[variable.name] = total
        return output

    def check_rows(self, rows: Sequence[Row], numbers: Sequence[int] | None = None) -> None:
        """Refuse rows that a component could not score, before any work is done.

        Args:
            rows: with all values, or without those that are still to be drawn.
            numbers: what an error calls each row; None counts from 0.
        """
        for number, row in zip(numbers or range(len(rows)), rows, strict=True):
            try:
                self.check_row(row)
            except SettingError as error:
                glue = "" if str(error).startswith(",") else ": "
                raise type(error)(f"row {number}{glue}{error}") from error

    def check_row(self, row: Row) -> None:
        """The same for one row; a value at fault is named by a line that begins with a comma."""
        for variable in self.graph.generated:
            self._check(variable, row)

    def _check(self, variable: Variable, row: Row) -> None:
        names = variable.may_draw(row)
        given = row.get(variable.name)
        if variable.plate is not None and given is not None and not isinstance(given, list | tuple):
            raise SettingError(f", {variable.name}: must be a list, one value for each of {variable.plate}.")
        calls, owners = self._calls(variable, [row], missing="")
        values = self._values(variable, [row], owners) if variable.name in row else []
        inputs = {alias: parent for alias, parent in variable.parents if self.graph[parent].role == "input"}
        drafts = {alias: self._longest(parent) for alias, parent in variable.parents if parent not in row}
        for parents in calls:
            for name in names:
                for alias, parent in inputs.items():
                    self.component(name).check_input(parent, parents[alias])
                self.component(name).check_row(parents, drafts)
        for value in values if len(names) == 1 else ():
            try:
                self.component(names[0]).check_value(value)
            except SettingError as error:
                raise SettingError(f", {variable.name}: {error}") from error

    def _longest(self, variable: str) -> int:
        """The most tokens that a text of this variable may take."""
        return max((self.component(name).longest for name in self.graph[variable].components), default=0)

    # ---- plates: one call an element, summed over the elements ---------------------------------------------------

    def _calls(
        self, variable: Variable, rows: Sequence[Row], missing: Value | None = None
    ) -> tuple[list[dict[str, Value]], list[tuple[int, int]]]:
        """The parents of every call of the variable's component, and the (row, element) each call belongs to."""
        calls: list[dict[str, Value]] = []
        owners: list[tuple[int, int]] = []
        repeated = variable.plate is not None and not self.graph.opens_plate(variable.name)
        for i, row in enumerate(rows):
            if variable.is_closed(row):
                continue
            parents = {
                alias: row[name] if missing is None else row.get(name, missing) for alias, name in variable.parents
            }
            if not repeated:
                calls.append(parents)
                owners.append((i, 0))
                continue
            in_plate = {a for a, name in variable.parents if self.graph[name].plate == variable.plate}
            sizes = {len(parents[alias]) for alias in in_plate}
            if len(sizes) != 1:
                raise SettingError(
                    f"variable {variable.name!r}: its parents in plate {variable.plate!r} have {sorted(sizes)} "
                    "elements; they must agree."
                )
            for element in range(sizes.pop()):
                calls.append({a: v[element] if a in in_plate else v for a, v in parents.items()})
                owners.append((i, element))
        return calls, owners

    def _values(self, variable: Variable, rows: Sequence[Row], owners: Sequence[tuple[int, int]]) -> list[Value]:
        if variable.plate is None or self.graph.opens_plate(variable.name):
            return [rows[row][variable.name] for row, _ in owners]
        counts: dict[int, int] = {}
        for row, _ in owners:
            counts[row] = counts.get(row, 0) + 1
        for i, values in enumerate(row[variable.name] for row in rows):
            if len(values) != counts.get(i, 0):
                raise SettingError(
                    f"{variable.name!r} has {len(values)} values where plate {variable.plate!r} has {counts.get(i, 0)}."
                )
        return [rows[row][variable.name][element] for row, element in owners]

    def _assign(
        self,
        variable: Variable,
        rows: list[dict[str, Value]],
        owners: Sequence[tuple[int, int]],
        values: Sequence[Value],
    ) -> None:
        if variable.plate is None or self.graph.opens_plate(variable.name):
            for row in rows:
                row[variable.name] = None
            for (i, _), value in zip(owners, values, strict=True):
                rows[i][variable.name] = value
            return
        for row in rows:
            row[variable.name] = []
        for (i, _), value in zip(owners, values, strict=True):
            rows[i][variable.name].append(value)


def _save(component: Component, place: Path) -> None:
    with replacing(place) as fresh:
        fresh.mkdir()
        component.save(str(fresh))
        write_sums(fresh)


def _by_component(variable: Variable, rows: Sequence[Row], owners: Sequence[tuple[int, int]]) -> dict[str, list[int]]:
    """The calls that each component has to answer."""
    members: dict[str, list[int]] = {}
    for i, (row, _) in enumerate(owners):
        (name,) = variable.may_draw(rows[row])
        members.setdefault(name, []).append(i)
    return members


def evaluate(
    component: Component, quantity: Quantity, values: Sequence[Value], parents: Parents, noise: Sequence[int] | None
) -> Tensor:
    """The quantity of B values of one component: [B]; every computation of a forward pass goes through here."""
    terms: Tensor = component(quantity, values, parents, noise)
    return backward_apart(terms) if is_split(component) else terms


def _mix(seed: int, position: int, element: int) -> int:
    """Independent streams for the variables and plate elements of one row."""
    return (seed * 1_000_003 + position * 7_919 + element * 104_729) % (2**63 - 1)


def _draw_grouped(
    component: Component,
    calls: Sequence[Mapping[str, Any]],
    seeds: Sequence[int],
    sampler: TokenSampler | None,
    requests: Sequence[tuple[int, int]],
) -> list[Value]:
    """One value a call; with a sampler, calls of one request with equal parents are one call for several values."""
    if sampler is None:
        return [values[0] for values in component.sample(calls, 1, seeds)] if calls else []
    groups: dict[object, list[int]] = {}
    for i, parents in enumerate(calls):
        groups.setdefault((requests[i], identity(parents)), []).append(i)
    result: list[Value] = [None] * len(calls)
    for n in sorted({len(members) for members in groups.values()}):
        same_size = [members for members in groups.values() if len(members) == n]
        first = [members[0] for members in same_size]
        drawn = component.sample([calls[i] for i in first], n, [seeds[i] for i in first], sampler)
        for members, values in zip(same_size, drawn, strict=True):
            for rank, i in enumerate(members):
                result[i] = values[rank % len(values)]
    return result
