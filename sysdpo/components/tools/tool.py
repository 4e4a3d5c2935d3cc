"""A tool: a deterministic node, factor 1 in the likelihood and log-ratio 0 (workshop version, section 2)."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sysdpo.components.base import Component, Parents, Value
from sysdpo.errors import SettingError

_RAISE = object()


class Tool(Component):
    """Calls `function(**parents)` for each row.

    Args:
        function: from the parents' values to the variable's value.
        name: how an error names the node.
        on_error: the value that stands for a failed call; without it a failure is an error with the node's name.
    """

    likelihood = "constant"

    def __init__(self, function: Callable[..., Value], name: str = "tool", on_error: Any = _RAISE) -> None:
        super().__init__()
        self.function = function
        self.name = name
        self.on_error = on_error

    def sample(self, parents: Parents, n: int, seeds: Sequence[int], sampler: Any = None) -> list[list[Value]]:
        """One value a row: a tool has no second answer."""
        return [[self._call(row)] for row in parents]

    def _call(self, row: Any) -> Value:
        try:
            return self.function(**row)
        except Exception as error:
            if self.on_error is not _RAISE:
                return self.on_error
            raise SettingError(
                f"tool {self.name!r} failed: {type(error).__name__}: {error}; mend its input or set on_error."
            ) from error

    def log_prob(self, values: Sequence[Value], parents: Parents) -> Tensor:
        return torch.zeros(len(values))

    def save(self, folder: str) -> None:
        """Nothing was trained."""

    def restore(self, folder: str) -> None:
        """Nothing was trained."""
