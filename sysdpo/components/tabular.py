"""A table of probabilities as a component: p(v | Pa(v)) over values that can all be listed.

Everything the paper states about expectations can be computed exactly on systems of these (section 3).
"""

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sysdpo.components.base import Component, Parents, TokenSampler, Value
from sysdpo.components.drawing import draw_values
from sysdpo.errors import SettingError, nearest


class Tabular(Component):
    """One learnable logit for every value under every combination of the parents' values.

    Args:
        values: all values v can take; they must differ.
        parents: `{parent: all its values}`; its combinations, the last parent changing fastest, are the table's rows.
        logits: the initial table, [combinations, values]; None starts from the uniform distribution.
        scale: without `logits`: standard deviation of random initial logits, in nats, drawn from `seed`.

    The reference is the initial table.
    """

    likelihood = "exact"
    logits: nn.Parameter
    reference_logits: Tensor

    def __init__(
        self,
        values: Sequence[Value],
        parents: Mapping[str, Sequence[Value]],
        logits: Sequence[Sequence[float]] | Tensor | None = None,
        scale: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.values = list(values)
        self.parents = {name: list(domain) for name, domain in parents.items()}
        self._column = {value: i for i, value in enumerate(self.values)}
        self._row = {combination: i for i, combination in enumerate(itertools.product(*self.parents.values()))}
        if not self.values or len(self._column) != len(self.values):
            raise SettingError(f"tabular.values={self.values}: write at least one value, and none twice.")
        shape = (len(self._row), len(self.values))
        if logits is None:
            table = scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        else:
            table = torch.as_tensor(logits, dtype=torch.float32).clone()
        if tuple(table.shape) != shape:
            raise SettingError(f"tabular.logits has shape {tuple(table.shape)}; parents and values make it {shape}.")
        self.logits = nn.Parameter(table)
        self.register_buffer("reference_logits", table.clone())
        self._in_reference = False

    @property
    def domain(self) -> list[Value]:
        return self.values

    def check_parents(self, component: str, parents: Collection[str]) -> None:
        for name in self.parents:
            if name not in parents:
                raise SettingError(f"components.{component}.parents: {nearest(name, parents)}")

    def check_row(self, parents: Mapping[str, Value], drafts: Mapping[str, int] | None = None) -> None:
        for name, domain in self.parents.items():
            if parents[name] not in (*domain, ""):  # "" stands for a value that is not known yet
                raise SettingError(f"tabular: {name}={parents[name]!r} is not one of {domain}.")

    def table(self) -> Tensor:
        """log p(value | parents) of everything, in nats: [combinations, values]."""
        return (self.reference_logits if self._in_reference else self.logits).log_softmax(-1)

    @contextmanager
    def reference(self) -> Iterator[None]:
        if self._followed is not None:
            with self.holding(self._followed):
                yield
            return
        before, self._in_reference = self._in_reference, True
        try:
            yield
        finally:
            self._in_reference = before

    def log_prob(self, values: Sequence[Value], parents: Parents) -> Tensor:
        columns = [self._index(self._column, value, "value") for value in values]
        return self.table()[self._rows(parents), torch.tensor(columns, device=self.logits.device)]

    def _rows(self, parents: Parents) -> Tensor:
        combinations = [tuple(row[name] for name in self.parents) for row in parents]
        rows = [self._index(self._row, combination, "combination of parents") for combination in combinations]
        return torch.tensor(rows, device=self.logits.device)

    @staticmethod
    def _index(known: Mapping[Any, int], key: Any, what: str) -> int:
        if key not in known:
            raise SettingError(f"tabular: unknown {what} {key!r}; the table has {', '.join(map(repr, known))}.")
        return known[key]

    def sample(
        self, parents: Parents, n: int, seeds: Sequence[int], sampler: TokenSampler | None = None
    ) -> list[list[Value]]:
        """Independent draws, or any strategy for language models: a table is one whose texts have a single token."""
        return draw_values(self.table()[self._rows(parents)], self.values, n, seeds, sampler)

    def save(self, folder: str) -> None:
        torch.save(self.state_dict(), f"{folder}/table.pt")

    def restore(self, folder: str) -> None:
        state = torch.load(f"{folder}/table.pt", map_location=self.logits.device, weights_only=True)
        self.logits.data.copy_(state["logits"])
