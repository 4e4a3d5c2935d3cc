"""A tool that misleads: at a given rate, a text's words are replaced by others that have nothing to do with it."""

import hashlib
from collections.abc import Sequence
from typing import Any

from sysdpo.components.tools.tool import Tool
from sysdpo.errors import SettingError


class Corruption(Tool):
    """Hands on the parent `text`, or at `rate` a misleading text of as many words. The same for the same parents.

    Args:
        words: what misleading texts are made of.
        rate: share of the parents' values whose text is replaced, in [0, 1].
        seed: decides which, with all parents.
    """

    def __init__(self, words: Sequence[str], rate: float = 0.0, seed: int = 0) -> None:
        super().__init__(self._handed_on, name="corruption")
        if not words:
            raise SettingError("system: a corruption needs words; give at least one.")
        if not 0 <= rate <= 1:
            raise SettingError(f"system: rate={rate} of a corruption must lie in [0, 1].")
        self.words, self.rate, self.seed = list(words), rate, seed

    def _handed_on(self, text: str, **others: Any) -> str:
        digest = hashlib.sha256(repr((self.seed, text, sorted(others.items()))).encode()).digest()
        if int.from_bytes(digest[:8], "big") >= self.rate * 2**64:
            return text
        start, n = int.from_bytes(digest[8:16], "big"), len(self.words)
        return " ".join(self.words[(start + 7 * i) % n] for i in range(max(1, len(text.split()))))
