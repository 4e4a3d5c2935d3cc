"""What a peer is given: the system, the pairs, who prefers, the settings of the joint run, and a folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from sysdpo.components.base import identity
from sysdpo.components.text.language_model import LanguageModel
from sysdpo.errors import SettingError
from sysdpo.evaluation.measures import Labels
from sysdpo.system import CompoundSystem, Pair
from sysdpo.training.loop import TrainingSettings


@dataclass(frozen=True)
class Task:
    """One training of a peer.

    `pairs` are the data set's; `labels` prefers one of several outputs; `batch_size` answers are drawn at a time.
    `folder/metrics.jsonl` is the peer's to write.
    """

    system: CompoundSystem
    pairs: Sequence[Pair]
    labels: Labels
    settings: TrainingSettings
    folder: Path
    batch_size: int

    def prompts(self, limit: int | None = None) -> list[Pair]:
        """The first pair of every training prompt, `limit` of them at most."""
        first: dict[object, Pair] = {}
        for pair in self.pairs:
            first.setdefault(identity(pair.inputs), pair)
        return list(first.values())[:limit]

    def rank(self, pairs: Sequence[Pair], samples: Sequence[Sequence[dict[str, Any]]]) -> tuple[list[list[float]], int]:
        """How good each of several outputs for a pair's inputs is, and the judge calls that this took."""
        return self.labels.scores([{**pair.extra, **pair.inputs} for pair in pairs], samples)

    def language_models(self, peer: str) -> dict[str, LanguageModel]:
        """The trainable components, which have to be language models for this peer."""
        found: dict[str, LanguageModel] = {}
        for name in self.system.trainable:
            component = self.system.component(name)
            if not isinstance(component, LanguageModel) or component.domain is not None:
                raise SettingError(
                    f"trainer={peer}: component {name!r} is no language model that writes; leave it out of train: […]."
                )
            found[name] = component
        return found


class Peer(Protocol):
    """`trainer` of a method's file, in place of `joint` and `separate`."""

    learns_from_pairs: ClassVar[bool]
    """Whether it learns from the data's pairs, with their intermediate values; else from their prompts alone."""

    def train(self, task: Task) -> dict[str, float]:
        """Align the system in place; returns what that took beyond the data: `answers`, `drafts`, `judge_calls`."""
        ...
