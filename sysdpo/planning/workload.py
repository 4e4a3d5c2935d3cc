"""Made-up values of known lengths for every variable of a system: pairs to plan or to measure with, without data."""

from collections.abc import Mapping, Sequence
from typing import Any

from sysdpo.errors import SettingError
from sysdpo.graph import Variable
from sysdpo.system import CompoundSystem, Pair

DRAWN = 1_000_000
"""Added to the keys of samples, which differ from what the data hold."""


class Workload:
    """Rows of a system; those of two keys differ in every text and picture.

    Args:
        prompt: tokens of each input.
        text: tokens of each text that a language model wrote; of all texts of a plate together.
        elements: of each plate.
    """

    def __init__(self, system: CompoundSystem, prompt: int, text: int, elements: int) -> None:
        self.system, self.prompt, self.text, self.elements = system, prompt, text, elements
        components = [system.component(name) for v in system.graph.generated for name in v.components]
        reader = next((c for c in components if c.made_up_text(0, 1) is not None), None)
        if reader is None:
            raise SettingError("system: no language model in it, so lengths in tokens mean nothing.")
        self.reader = reader

    def frame(self) -> int:
        """Tokens of the longest prompt of a language model beside what its parents say."""
        asked = [
            self.system.component(name).prompt_tokens({alias: "" for alias, _ in variable.parents})
            for variable in self.system.graph.generated
            for name in variable.components
        ]
        return max(1, *asked)

    def row(self, key: int) -> dict[str, Any]:
        """A value for each variable."""
        inputs = self.inputs(key)
        return inputs | self._generated(inputs, key)

    def inputs(self, key: int) -> dict[str, Any]:
        return {v.name: self.reader.made_up_text(key, self.prompt) for v in self.system.graph.inputs}

    def pairs(self, n: int, start: int = 0) -> list[Pair]:
        """`n` preferences over every generated variable, numbered from `start`."""
        made = []
        for i in range(start, start + n):
            inputs = self.inputs(2 * i)
            made.append(Pair(i, inputs, self._generated(inputs, 2 * i), self._generated(inputs, 2 * i + 1)))
        return made

    def samples(self, pairs: Sequence[Pair], k: int) -> list[list[dict[str, Any]]]:
        """`k` joint samples of the intermediates for each pair."""
        names = [v.name for v in self.system.graph.intermediates]
        made = [[self._generated(p.inputs, DRAWN + k * p.index + j) for j in range(k)] for p in pairs]
        return [[{name: values[name] for name in names} for values in drawn] for drawn in made]

    def _generated(self, inputs: Mapping[str, Any], key: int) -> dict[str, Any]:
        row = dict(inputs)
        for variable in self.system.graph.generated:
            row[variable.name] = self._value(variable, row, key)
        return {name: value for name, value in row.items() if name not in inputs}

    def _value(self, variable: Variable, row: Mapping[str, Any], key: int) -> Any:
        names = variable.may_draw(row)
        if not names:
            return None
        component = self.system.component(names[0])
        elements = [key * self.elements + i for i in range(self.elements)]
        if self.system.graph.opens_plate(variable.name):  # no tool would find its elements in a made-up text
            return [self.reader.made_up_text(i, max(1, self.text // self.elements)) for i in elements]
        if component.made_up_value(0, 1) is None:
            return self.system.generate([row], [0], only=[variable.name])[0][variable.name]
        if variable.plate:
            return [component.made_up_value(i, self.text) for i in elements]
        return component.made_up_value(key, self.text)
