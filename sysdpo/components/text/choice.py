"""A language model that chooses one of k labels: a routing decision as a variable with an exact likelihood."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sysdpo.components.base import Parents, TokenSampler, Value
from sysdpo.components.drawing import draw_values
from sysdpo.components.text.codec import Prompt
from sysdpo.components.text.language_model import LanguageModel, build_language_model
from sysdpo.errors import SettingError, nearest


class Choice(LanguageModel):
    """p(label | Pa(v)): the model's probability of writing each label and stopping, renormalised over the labels.

    Args:
        labels: the texts to choose from; at least two, none twice.
        settings: of the language model. `max_new_tokens` is what the longest label needs, whatever they say.

    Because nothing outside the labels can be drawn, sampling and `log_prob` are of one distribution: no answer has to
    be parsed, and none is lost.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompt: Prompt,
        *,
        labels: Sequence[str],
        **settings: Any,
    ) -> None:
        self.labels = list(labels)
        if any(not isinstance(label, str) or not label.strip() for label in self.labels):
            raise SettingError(f"labels={self.labels}: write texts (in quotes, where YAML would read yes or 1).")
        if len(self.labels) < 2 or len(set(self.labels)) < len(self.labels):
            raise SettingError(f"labels={self.labels}: write at least two, and none twice.")
        longest = max(len(ids) for ids in tokenizer(self.labels, add_special_tokens=False)["input_ids"])
        super().__init__(model, tokenizer, prompt, **{**settings, "max_new_tokens": longest + 1})  # and the end token

    @property
    def domain(self) -> list[Value]:
        return self.labels

    def check_value(self, value: Value) -> None:
        if value not in self.labels:
            raise SettingError(f"choice {nearest(str(value), self.labels)}")

    @torch.no_grad()
    def sample(
        self, parents: Parents, n: int, seeds: Sequence[int], sampler: TokenSampler | None = None
    ) -> list[list[Value]]:
        """Labels by the strategy given, else by `model.generation`, whose temperature acts on the labels."""
        table = self._table(parents)
        return draw_values(table, self.labels, n, seeds, sampler if sampler is not None else self.generation)

    def log_prob(self, values: Sequence[Value], parents: Parents) -> Tensor:
        return self._pick(self._table(parents), values)

    @torch.no_grad()
    def reference_log_prob(self, values: Sequence[Value], parents: Parents) -> Tensor:
        scores = self._reference_score(self._every_label(parents))
        return self._pick(scores.view(len(parents), -1).log_softmax(-1), values)

    def _table(self, parents: Parents) -> Tensor:
        """log p(label | parents) of every label: [B, labels], nats."""
        return self.score(self._every_label(parents)).view(len(parents), -1).log_softmax(-1)

    def _every_label(self, parents: Parents) -> list[Any]:
        return [self._completion(label, row) for row in parents for label in self.labels]

    def _pick(self, table: Tensor, values: Sequence[Value]) -> Tensor:
        for value in values:
            self.check_value(value)
        columns = [self.labels.index(value) for value in values]
        return table[torch.arange(len(columns), device=table.device), torch.tensor(columns, device=table.device)]


def build_choice(*, labels: Sequence[str], **config: Any) -> LanguageModel:
    """A `Choice` from a config: `conf/model/*.yaml` with a prompt and `labels`."""
    return build_language_model(kind=partial(Choice, labels=labels), **config)
