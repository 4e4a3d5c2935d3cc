"""A reward model as judge (table 2 without an API): any sequence-classification model with one output."""

import itertools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from sysdpo import processes
from sysdpo.devices import resolve_device
from sysdpo.errors import SettingError, one_line
from sysdpo.evaluation.judges.base import check_columns, check_rows, check_temperature, preference_from_scores
from sysdpo.progress import progress

logger = logging.getLogger(__name__)


class RewardModelJudge:
    """Soft preference 1 + sigma((reward(output) - reward(reference)) / temperature).

    Reward models are trained by Bradley-Terry on reward differences, so a temperature of 1 reads them as
    trained. The conversation goes through the tokenizer's chat template; without one, instruction and answer
    are encoded as a pair of texts, as the older encoder models expect.
    """

    def __init__(
        self,
        model: str,
        temperature: float = 1.0,
        batch_size: int = 8,
        max_length: int = 2048,
        device: str = "auto",
        dtype: str = "auto",
    ) -> None:
        """Loads nothing yet: the weights come with the first call of `preferences`.

        Args:
            model: a hub id or a folder in the hub's layout.
            max_length: tokens of instruction and answer together; what exceeds it is cut off at the end, and
                said.
            device: where it runs; auto: the GPU if there is one.
            dtype: of the weights; `auto` takes the checkpoint's.
        """
        if batch_size < 1 or max_length < 1:
            raise SettingError(f"judge: batch_size={batch_size} and max_length={max_length} must be at least 1.")
        self.model = model
        self.temperature = check_temperature(temperature)
        self.batch_size = batch_size
        self.max_length = max_length
        self.device = resolve_device(device)
        self.dtype = dtype
        self._loaded: tuple[Any, Any] | None = None

    @property
    def name(self) -> str:
        return f"reward model {self.model} (temperature {self.temperature:g})"

    def check(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Refuse rows without an instruction."""
        check_columns(rows, ["x"])

    def preferences(
        self, rows: Sequence[Mapping[str, Any]], references: Sequence[str], outputs: Sequence[str]
    ) -> list[float]:
        """One preference [1, 2] per row, NaN where a reward is not finite; see `Judge`."""
        check_rows(rows, references, outputs, columns=["x"])
        pairs = [
            (row["x"], answer) for answers in (references, outputs) for row, answer in zip(rows, answers, strict=True)
        ]
        # Equal answers must get equal rewards to the last bit, whatever batch they fall into.
        unique = list(dict.fromkeys(pairs))
        reward = dict(zip(unique, self.rewards(unique), strict=True))
        return [
            preference_from_scores(reward[row["x"], output], reward[row["x"], reference], self.temperature)
            for row, reference, output in zip(rows, references, outputs, strict=True)
        ]

    def scores(self, rows: Sequence[Mapping[str, Any]], outputs: Sequence[str]) -> list[float]:
        """The reward of each output."""
        check_rows(rows, outputs, outputs, columns=["x"])
        return self.rewards([(row["x"], output) for row, output in zip(rows, outputs, strict=True)])

    @torch.inference_mode()
    def rewards(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """The reward of each (instruction, answer)."""
        tokenizer, model = self._load()
        encoded = [self._encode(tokenizer, *pair) for pair in pairs]
        cut = sum(len(e["input_ids"]) > self.max_length for e in encoded)
        if cut:
            logger.warning("%d of %d texts exceed judge.max_length and are cut.", cut, len(pairs))
        encoded = [{name: values[: self.max_length] for name, values in e.items()} for e in encoded]
        # Neighbours in length pad little; the longest come first, so that memory runs out early or never.
        order = sorted(range(len(encoded)), key=lambda i: -len(encoded[i]["input_ids"]))
        found: list[tuple[int, float]] = []
        pad = self._padding(tokenizer, model, encoded)
        turns = [own for own in processes.turns(len(order), self.batch_size) if own]
        for own in progress(turns, "rewards", total=len(turns)):
            batch = [order[i] for i in own]
            inputs = {
                name: pad_sequence(
                    [torch.tensor(encoded[i][name]) for i in batch],
                    batch_first=True,
                    padding_value=pad if name == "input_ids" else 0,
                ).to(self.device)
                for name in encoded[batch[0]]
            }
            found += zip(batch, model(**inputs).logits[:, 0].float().tolist(), strict=True)
        return [reward for _, reward in sorted(processes.joined(found))]

    @staticmethod
    def _padding(tokenizer: Any, model: Any, encoded: Sequence[Mapping[str, list[int]]]) -> int:
        """The padding token. A decoder reads its reward at the last token that is another one, so where the tokenizer
        has none, it must not be the one that ends the texts; it is masked, so any other will do."""
        pad = tokenizer.pad_token_id
        if pad is None:
            ends = {row["input_ids"][-1] for row in encoded}
            pad = next(token for token in itertools.count() if token not in ends)
        model.config.get_text_config().pad_token_id = pad
        return int(pad)

    @staticmethod
    def _encode(tokenizer: Any, instruction: str, answer: str) -> dict[str, list[int]]:
        if tokenizer.chat_template is None:
            return dict(tokenizer(instruction, answer))
        turns = [{"role": "user", "content": instruction}, {"role": "assistant", "content": answer}]
        text = tokenizer.apply_chat_template(turns, tokenize=False)
        return dict(tokenizer(text, add_special_tokens=False))  # the template writes them itself

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            try:
                tokenizer = AutoTokenizer.from_pretrained(self.model)
                model, info = AutoModelForSequenceClassification.from_pretrained(
                    self.model, dtype=self.dtype, output_loading_info=True
                )
            except Exception as error:  # of whatever library reads a broken folder
                first = one_line(error, 200)
                raise SettingError(
                    f"judge.model: cannot load {self.model!r} as a reward model ({first}); give a folder or a "
                    "hub id that can be reached, and log in with `hf auth login` if it is gated."
                ) from error
            if info["missing_keys"] or model.config.num_labels != 1:
                # A language model loads without complaint, with a random head whose preferences are noise.
                raise SettingError(
                    f"judge.model: {self.model!r} is not a reward model ({model.config.num_labels} outputs, "
                    f"weights missing for: {', '.join(sorted(info['missing_keys'])) or 'none'}); choose a "
                    "sequence-classification model with one output."
                )
            self._loaded = tokenizer, model.to(self.device).eval()
        return self._loaded
