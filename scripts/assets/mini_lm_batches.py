"""Batches of what the miniature's teachers say, and the loss on them."""

import random
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sysdpo.components.text.codec import Prompt, TextCodec
from sysdpo.tasks.mini.instructions import draw_tasks
from sysdpo.tasks.mini.roles import Turn, turns, user_prompts

SYSTEMS = {"two_llm": ("draft", "answer"), "planner_writer": ("plan", "write")}
"""The systems of `conf/system/` whose models speak in this world, and the roles of `psi1` and `psi2`."""


MAX_NEW_TOKENS = 20

IGNORED = -100
"""The label of tokens whose loss does not count: those of prompts, and padding."""

Example = tuple[tuple[int, ...], tuple[int, ...]]
Batch = tuple[Tensor, Tensor]


def role_codecs(tokenizer: PreTrainedTokenizerBase) -> dict[str, TextCodec]:
    return {role: TextCodec(tokenizer, Prompt(user), MAX_NEW_TOKENS) for role, user in user_prompts(SYSTEMS).items()}


def encode(said: Mapping[str, Turn], codecs: Mapping[str, TextCodec]) -> dict[str, Example]:
    """(prompt, completion) token ids of each role."""
    return {
        role: (codecs[role].prompt_ids(turn.parents), codecs[role].completion_ids(turn.text))
        for role, turn in said.items()
    }


def batches(seed: int, codecs: Mapping[str, TextCodec], size: int, skilled: int, pool: int = 16) -> Iterator[Batch]:
    """Batches of the base share without end, the first `skilled` of the skilled teachers.

    Examples of like length share a batch.
    """
    rng = random.Random(seed)
    said = turns(draw_tasks("base", seed), seed, skilled=skilled * size // len(codecs))
    source = (example for each in said for example in encode(each, codecs).values())
    while True:
        drawn = sorted((next(source) for _ in range(size * pool)), key=lambda e: len(e[0]) + len(e[1]))
        starts = list(range(0, len(drawn), size))
        rng.shuffle(starts)
        for start in starts:
            yield collate(drawn[start : start + size])


def collate(part: Sequence[Example]) -> Batch:
    """Right-padded ids and labels, [N, T] each."""
    width = max(len(prompt) + len(completion) for prompt, completion in part)
    ids = torch.zeros(len(part), width, dtype=torch.long)
    labels = torch.full((len(part), width), IGNORED)
    for row, (prompt, completion) in enumerate(part):
        end = len(prompt) + len(completion)
        ids[row, :end] = torch.tensor([*prompt, *completion])
        labels[row, len(prompt) : end] = torch.tensor(completion)
    return ids, labels


def completion_loss(model: PreTrainedModel, ids: Tensor, labels: Tensor) -> Tensor:
    """Mean negative log-likelihood of the completions' tokens, in nats."""
    hidden = model.get_decoder()(input_ids=ids, use_cache=False)[0][:, :-1]
    targets = labels[:, 1:]
    counted = targets != IGNORED
    return F.cross_entropy(model.get_output_embeddings()(hidden[counted]), targets[counted])
