"""A compound system as a directed acyclic graph of variables (section 2.1). Structure only: no models, no tensors."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, Literal, get_args

Role = Literal["input", "intermediate", "final"]


class GraphError(ValueError):
    """The description of a system is not a graph that can be sampled and factorised."""


@dataclass(frozen=True)
class Variable:
    """One node.

    `parents` maps the name by which the component knows a parent to the variable that fills it; a plain list of
    names in the config means that both are the same. `plate` marks a variable that has one value for each element
    of a list: it either opens the plate (no parent lies in it: its component returns the list) or lives in it.

    A value can also decide who draws and whether anything is drawn. `component: {choice: {a: first, b: second}}` in
    the config is `switch` and `cases`: `first` draws where `choice` is `a`, `second` where it is `b`. `when: {choice:
    a}` is `gates`: where `choice` is anything else, the variable is empty (None) and its factor is 1.
    """

    name: str
    role: Role
    component: str | None = None
    parents: tuple[tuple[str, str], ...] = ()
    plate: str | None = None
    switch: str | None = None
    cases: tuple[tuple[Any, str], ...] = ()
    gates: tuple[tuple[str, tuple[Any, ...]], ...] = ()

    @property
    def parent_names(self) -> tuple[str, ...]:
        return tuple(variable for _, variable in self.parents)

    @property
    def controls(self) -> dict[str, tuple[Any, ...]]:
        """The variables that decide about this one, with the values that it knows of them."""
        gates = {name: tuple(values) for name, values in self.gates}
        return gates if self.switch is None else {**gates, self.switch: tuple(value for value, _ in self.cases)}

    @property
    def depends_on(self) -> tuple[str, ...]:
        """Every variable that has to be known before this one: parents and controls."""
        return tuple(dict.fromkeys((*self.parent_names, *self.controls)))

    @property
    def components(self) -> tuple[str, ...]:
        """Every component that may draw this variable."""
        alone = () if self.component is None else (self.component,)
        return tuple(dict.fromkeys((*alone, *(component for _, component in self.cases))))

    def is_closed(self, row: Mapping[str, Any]) -> bool:
        """Whether a gate that the row knows of keeps this variable empty."""
        return any(name in row and row[name] not in values for name, values in self.gates)

    def may_draw(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        """The components that draw this variable in a row; several only where the row lacks what decides."""
        if self.is_closed(row):
            return ()
        if self.switch is None or self.switch not in row:
            return self.components
        for value, component in self.cases:
            if row[self.switch] == value:
                return (component,)
        known = ", ".join(repr(value) for value, _ in self.cases)
        raise GraphError(
            f"variable {self.name!r}: no component for {self.switch}={row[self.switch]!r}; it has {known}."
        )


class SystemGraph:
    """The variables of a system in topological order.

    Args:
        variables: `{name: {role, component, parents, plate, when}}`, as written under `conf/system/`.
        components: the components that exist; None leaves their names unchecked.

    Raises:
        GraphError: for anything that could not be sampled from front to back, in one line that says what and where.
    """

    def __init__(self, variables: Mapping[str, Mapping[str, Any]], components: Collection[str] | None = None) -> None:
        parsed = {name: _parse(name, fields) for name, fields in variables.items()}
        _check_names(parsed, components)
        self.variables: dict[str, Variable] = {name: parsed[name] for name in _topological_order(parsed)}
        _check_reachability(self)
        self.components: tuple[str, ...] = tuple(
            dict.fromkeys(component for v in self.generated for component in v.components)
        )

    def __iter__(self) -> Iterator[Variable]:
        return iter(self.variables.values())

    def __getitem__(self, name: str) -> Variable:
        return self.variables[name]

    def _with_role(self, *roles: Role) -> tuple[Variable, ...]:
        return tuple(v for v in self if v.role in roles)

    @property
    def inputs(self) -> tuple[Variable, ...]:
        return self._with_role("input")

    @property
    def intermediates(self) -> tuple[Variable, ...]:
        return self._with_role("intermediate")

    @property
    def finals(self) -> tuple[Variable, ...]:
        return self._with_role("final")

    @property
    def generated(self) -> tuple[Variable, ...]:
        """Every variable that a component draws, parents first."""
        return self._with_role("intermediate", "final")

    def opens_plate(self, name: str) -> bool:
        """Whether the component of this variable returns the list whose elements the plate repeats over."""
        variable = self.variables[name]
        return variable.plate is not None and all(
            self.variables[p].plate != variable.plate for p in variable.parent_names
        )

    def to_mermaid(self) -> str:
        """The graph as a Mermaid flowchart: stadiums are inputs, boxes intermediates, double boxes finals.

        A dotted arrow leaves a variable whose value decides who draws the other, or whether it is drawn at all.
        """
        shapes: dict[Role, tuple[str, str]] = {
            "input": ("([", "])"),
            "intermediate": ("[", "]"),
            "final": ("[[", "]]"),
        }
        lines = ["flowchart LR"]
        for v in self:
            opening, closing = shapes[v.role]
            label = f"{v.name} ~ {' or '.join(v.components)}" if v.components else v.name
            lines.append(f'    {v.name}{opening}"{label}{f" (each of {v.plate})" if v.plate else ""}"{closing}')
        for v in self:
            if v.parent_names:
                lines.append(f"    {' & '.join(dict.fromkeys(v.parent_names))} --> {v.name}")
            if v.switch is not None:
                lines.append(f"    {v.switch} -.-> {v.name}")
            lines += [f'    {name} -. "{" or ".join(map(str, values))}" .-> {v.name}' for name, values in v.gates]
        return "\n".join(lines)

    def unroll(self, loop: Mapping[str, str], steps: int) -> "SystemGraph":
        """Repeat one pass of a refinement loop `steps` times, as a graph without a cycle and with tied weights.

        The graph describes a single pass. `loop` says what is carried over: `{"draft": "revision"}` makes the next
        pass read the previous `revision` wherever this one reads `draft`. Variables that depend on a carried one
        are repeated as `name_1, name_2, …`; the last pass keeps the plain names, so that the final variables of a
        data set are the same for every number of steps. Everything else, and every component, is shared.
        """
        if steps < 1:
            raise GraphError(f"unroll.steps={steps}: a loop needs at least one pass.")
        for carried, producer in loop.items():
            for name in (carried, producer):
                if name not in self.variables:
                    raise GraphError(f"unroll.loop: {_unknown(name, self.variables)}")
            if producer not in self._descendants(carried):
                raise GraphError(f"unroll.loop {carried}: {producer}: the second does not depend on the first.")
        repeated = {name for carried in loop for name in self._descendants(carried)}
        copies = [f"{name}_{step}" for name in repeated for step in range(1, steps)]
        if taken := sorted(set(copies) & set(self.variables)):
            raise GraphError(f"unroll: the name {taken[0]!r} is needed for a pass of the loop; rename that variable.")

        def name_in_pass(name: str, step: int) -> str:
            if step > 1 and name in loop:  # what this pass reads is what the previous one produced
                return name_in_pass(loop[name], step - 1)
            return name if name not in repeated or step == steps else f"{name}_{step}"

        unrolled: dict[str, Variable] = {v.name: v for v in self if v.name not in repeated}
        for step in range(1, steps + 1):
            for v in (v for v in self if v.name in repeated):
                unrolled[name_in_pass(v.name, step)] = replace(
                    v,
                    name=name_in_pass(v.name, step),
                    role=v.role if step == steps else "intermediate",
                    parents=tuple((alias, name_in_pass(parent, step)) for alias, parent in v.parents),
                    switch=None if v.switch is None else name_in_pass(v.switch, step),
                    gates=tuple((name_in_pass(gate, step), values) for gate, values in v.gates),
                )
        wanted = {name for name, v in unrolled.items() if v.role == "final"}
        for name in reversed(_topological_order(unrolled)):
            if name in wanted:
                wanted.update(unrolled[name].depends_on)
        # what only the end of the loop hands on (a second final variable) is not made in the passes before
        return SystemGraph({n: _describe(v) for n, v in unrolled.items() if n in wanted or v.role == "input"})

    def _descendants(self, name: str) -> set[str]:
        found: set[str] = set()
        for v in self:  # parents come first
            if any(p == name or p in found for p in v.depends_on):
                found.add(v.name)
        return found


def _describe(v: Variable) -> dict[str, Any]:
    return {
        "role": v.role,
        "component": v.component if v.switch is None else {v.switch: dict(v.cases)},
        "parents": dict(v.parents),
        "plate": v.plate,
        "when": {name: list(values) for name, values in v.gates},
    }


def _parse(name: str, fields: Mapping[str, Any]) -> Variable:
    allowed = ("role", "component", "parents", "plate", "when")
    if not isinstance(fields, Mapping):
        raise GraphError(f"variable {name!r}: {fields!r}; write a mapping of {', '.join(allowed)}.")
    for key in fields:
        if key not in allowed:
            raise GraphError(f"variable {name!r}: {_unknown(key, allowed)}")
    role: Any = fields.get("role")
    if role not in get_args(Role):
        raise GraphError(f"variable {name!r}: role={role!r}; choose input, intermediate or final.")
    component = fields.get("component")
    if isinstance(component, list | tuple):
        raise GraphError(f"variable {name!r} has two producers, {list(component)}; give it one component.")
    switch, cases = _parse_cases(name, component) if isinstance(component, Mapping) else (None, ())
    if switch is None and component is not None and not isinstance(component, str):
        raise GraphError(f"variable {name!r}: component={component!r}; write the name of one component.")
    gates = _parse_gates(name, fields.get("when") or {})
    parents = fields.get("parents") or ()
    filling = _names(name, parents.values() if isinstance(parents, Mapping) else parents)
    pairs = tuple(zip(parents, filling, strict=True))
    if role == "input" and (component is not None or pairs or gates):
        raise GraphError(f"variable {name!r} is an input, so it cannot have a component, parents or a gate (when).")
    if role != "input" and component is None:
        raise GraphError(f"variable {name!r} is {role} but no component draws it; set its component.")
    if gates and role == "final":
        raise GraphError(
            f"variable {name!r} is final, so it is always drawn: instead of when, let a value choose who draws it, "
            "component: {variable: {value: component}}."
        )
    plate = fields.get("plate")
    if (gates or switch is not None) and plate is not None:
        raise GraphError(f"variable {name!r}: a variable in a plate cannot depend on when or on a choice of component.")
    return Variable(name, role, None if switch is not None else component, pairs, plate, switch, cases, gates)


def _parse_cases(name: str, component: Mapping[Any, Any]) -> tuple[str, tuple[tuple[Any, str], ...]]:
    """`{choice: {a: first, b: second}}` -> choice, ((a, first), (b, second))."""
    options = next(iter(component.values()), None)
    if len(component) != 1 or not isinstance(options, Mapping) or not options:
        raise GraphError(
            f"variable {name!r}: component={dict(component)}; write {{variable: {{value: component, …}}}}."
        )
    for value, drawn_by in options.items():
        if not isinstance(drawn_by, str):
            raise GraphError(f"variable {name!r}: component for {value!r} is {drawn_by!r}; write a component's name.")
    return str(next(iter(component))), tuple(options.items())


def _parse_gates(name: str, when: Any) -> tuple[tuple[str, tuple[Any, ...]], ...]:
    """`{choice: a, other: [b, c]}` -> ((choice, (a,)), (other, (b, c)))."""
    if not isinstance(when, Mapping):
        raise GraphError(f"variable {name!r}: when={when!r}; write {{variable: value}} or {{variable: [value, …]}}.")
    gates = tuple((gate, tuple(v) if isinstance(v, list | tuple) else (v,)) for gate, v in when.items())
    for gate, values in gates:
        if not values:
            raise GraphError(f"variable {name!r}: when.{gate} names no value, so it would never be drawn.")
    return gates


def _names(variable: str, parents: Any) -> Sequence[str]:
    if isinstance(parents, str | int) or not all(isinstance(p, str) for p in parents):
        raise GraphError(f"variable {variable!r}: parents={parents!r}; write a list of names, or name: variable.")
    return list(parents)


def _unknown(name: str, known: Collection[str]) -> str:
    close = get_close_matches(name, known, n=1, cutoff=0.0)
    return f"unknown {name!r}" + (f"; did you mean {close[0]!r}?" if close else ".")


def _check_names(variables: Mapping[str, Variable], components: Collection[str] | None) -> None:
    for v in variables.values():
        for parent in v.parent_names:
            if parent not in variables:
                raise GraphError(f"variable {v.name!r}: parent {_unknown(parent, variables)}")
        for control in v.controls:
            where = "component" if control == v.switch else "when"
            if control not in variables:
                raise GraphError(f"variable {v.name!r}: {where}: {_unknown(control, variables)}")
            if variables[control].plate is not None:
                raise GraphError(f"variable {v.name!r}: {where}: {control!r} lies in a plate and has no single value.")
        for component in v.components:
            if components is not None and component not in components:
                raise GraphError(f"variable {v.name!r}: component {_unknown(component, components)}")
    if not any(v.role == "final" for v in variables.values()):
        raise GraphError("the graph has no final variable; give at least one variable role: final.")


def _topological_order(variables: Mapping[str, Variable]) -> list[str]:
    order: list[str] = []
    path: list[str] = []

    def visit(name: str) -> None:
        if name in order:
            return
        if name in path:
            cycle = " -> ".join([*path[path.index(name) :], name][::-1])
            raise GraphError(
                f"the graph has a cycle: {cycle}; describe one pass and repeat it with unroll: {{loop, steps}}."
            )
        path.append(name)
        for parent in variables[name].depends_on:
            visit(parent)
        path.pop()
        order.append(name)

    for name in variables:
        visit(name)
    return order


def _check_reachability(graph: SystemGraph) -> None:
    reachable = {v.name for v in graph.inputs}
    for v in graph.generated:
        if not reachable.intersection(v.depends_on):
            raise GraphError(f"variable {v.name!r} is unreachable: no path leads to it from an input.")
        reachable.add(v.name)
    useful = {v.name for v in graph.finals}
    for v in reversed(graph.generated):
        if v.name not in useful:
            raise GraphError(f"variable {v.name!r} is unreachable from the other side: it leads to no final variable.")
        useful.update(v.depends_on)
