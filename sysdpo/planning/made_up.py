"""Made-up values of known lengths for every variable of a system: rows to measure on, no data set needed."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sysdpo.components.image.diffusion import Diffusion
from sysdpo.components.text.codec import TextCodec
from sysdpo.components.text.language_model import LanguageModel
from sysdpo.errors import SettingError
from sysdpo.graph import Variable
from sysdpo.paths import ASSETS
from sysdpo.system import CompoundSystem, Pair

PASSAGE = ASSETS / "passages" / "nature.txt"
CHARACTERS_PER_TOKEN = 12  # more than any tokenizer's mean


class MadeUp:
    """Rows of a system; those of two keys differ in every text and picture.

    Args:
        prompt: tokens of each input.
        text: tokens of each text that a language model wrote; of all texts of a plate together.
        elements: of each plate.
    """

    def __init__(self, system: CompoundSystem, prompt: int, text: int, elements: int) -> None:
        self.system, self.prompt, self.text, self.elements = system, prompt, text, elements
        self.passage = " ".join(PASSAGE.read_text(encoding="utf-8").split())
        readers = [self._codec(name) for variable in system.graph.generated for name in variable.components]
        codec = next((reader for reader in readers if reader is not None), None)
        if codec is None:
            raise SettingError("system: no language model in it, so lengths in tokens mean nothing.")
        self.codec: TextCodec = codec

    def frame(self) -> int:
        """Tokens of the longest prompt of a language model beside what its parents say."""
        lengths = [1]
        for variable in self.system.graph.generated:
            empty = {alias: "" for alias, _ in variable.parents}
            codecs = map(self._codec, variable.components)
            lengths += [len(codec.prompt_ids(empty)) for codec in codecs if codec is not None]
        return max(lengths)

    def row(self, key: int) -> dict[str, Any]:
        """A value for each variable."""
        inputs = self.inputs(key)
        return inputs | self._generated(inputs, key)

    def inputs(self, key: int) -> dict[str, str]:
        return {v.name: self._text(self.codec, self.prompt, key) for v in self.system.graph.inputs}

    def pairs(self, n: int) -> list[Pair]:
        """`n` preferences over every generated variable."""
        made = []
        for i in range(n):
            inputs = self.inputs(2 * i)
            made.append(Pair(i, inputs, self._generated(inputs, 2 * i), self._generated(inputs, 2 * i + 1)))
        return made

    def _generated(self, inputs: Mapping[str, Any], key: int) -> dict[str, Any]:
        row = dict(inputs)
        for variable in self.system.graph.generated:
            row[variable.name] = self._value(variable, row, key)
        return {name: value for name, value in row.items() if name not in inputs}

    def _value(self, variable: Variable, row: Mapping[str, Any], key: int) -> Any:
        names = variable.may_draw(row)
        if not names:
            return None
        component, codec = self.system.component(names[0]), self._codec(names[0])
        elements = [key * self.elements + i for i in range(self.elements)]
        if component.domain is not None:
            return component.domain[key % len(component.domain)]
        if self.system.graph.opens_plate(variable.name):  # no tool would find its elements in a made-up text
            return [self._text(self.codec, max(1, self.text // self.elements), i) for i in elements]
        if isinstance(component, Diffusion):
            size = component.codec.image_size
            return [_picture(size, i) for i in elements] if variable.plate else _picture(size, key)
        if codec is not None:
            return self._text(codec, self.text, key)
        return self.system.generate([row], [0], only=[variable.name])[0][variable.name]

    def _codec(self, name: str) -> TextCodec | None:
        component = self.system.component(name)
        return component.codec if isinstance(component, LanguageModel) else None

    def _text(self, codec: TextCodec, tokens: int, key: int) -> str:
        needed = tokens * CHARACTERS_PER_TOKEN
        text = f"{key} " + (self.passage * (1 + needed // len(self.passage)))[:needed]
        return str(codec.tokenizer.decode(codec.tokenizer(text, add_special_tokens=False)["input_ids"][:tokens]))


def _picture(size: int, key: int) -> Tensor:
    """Noise, [3, size, size] in [0, 1]."""
    return torch.rand(3, size, size, generator=torch.Generator().manual_seed(key))
