"""Diverse beam search (Vijayakumar et al., 2016): the samples y^alpha of SysDPO-Sampling (eq. 9).

The beams of a prompt form groups that choose one after another at every step; a group pays
`diversity_penalty` for each time an earlier one has just chosen the same token. The result is that of
transformers 4.55.4, the last line whose core had this search, but all prompts share one forward a step.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sysdpo.errors import SettingError
from sysdpo.sampling.decoding import next_token_logits

ABSENT = -torch.inf
"""Score of a place that holds no sequence: below every real one."""


@dataclass(frozen=True)
class BeamOutput:
    """The `num_beams` sequences of each prompt over all its groups, best `scores` first.

    Attributes:
        sequences: [B, num_beams, T] new tokens, `pad_token_id` after the end token; the longest has length T.
        log_probs: [B, num_beams] nats: the model's own log p(sequence | prompt), end token included.
        scores: [B, num_beams] what ranks them: penalised log-probability / length ** length_penalty.
        duplicate: [B, num_beams] True where a place adds no sequence: an earlier one of the same prompt is
            equal (groups can meet when the penalty is small), or nothing of non-zero probability was left
            (then it is all padding, with log-probability -inf). Drop these and count them.
    """

    sequences: Tensor
    log_probs: Tensor
    scores: Tensor
    duplicate: Tensor


@torch.no_grad()
def diverse_beam_search(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor,
    *,
    num_beams: int,
    num_beam_groups: int,
    diversity_penalty: float,
    max_new_tokens: int,
    eos_token_id: int | Sequence[int],
    pad_token_id: int,
    length_penalty: float = 1.0,
) -> BeamOutput:
    """Search `num_beams` continuations of every prompt; ordinary beam search where `num_beam_groups` is 1.

    Args:
        model: a transformers causal LM (PEFT-wrapped or not) with a key-value cache; it runs in eval mode.
        input_ids: [B, P] prompts, padded on the left.
        attention_mask: [B, P] 1 on a prompt, 0 on its padding.
        num_beams: sequences of a prompt, a multiple of `num_beam_groups`.
        diversity_penalty: nats a token loses for each beam of an earlier group that has just chosen it.
        max_new_tokens: a sequence that has not ended by then is taken as it stands.
        eos_token_id: the token or tokens that end a sequence.
        pad_token_id: fills a row after its end; as in 4.55.4, a finished group counts as choosing it.
        length_penalty: power of the length (end token included) that divides a sum of log-probabilities.

    Raises:
        SettingError: a setting is out of range, or there are fewer sequences than `num_beams`.
        ValueError: a prompt is empty or not padded on the left.
    """
    _check_settings(num_beams, num_beam_groups, diversity_penalty, max_new_tokens)
    if not bool(attention_mask[:, -1].all()):
        raise ValueError("attention_mask ends in 0: pad the prompts on the left and leave none empty")
    batch, device = len(input_ids), input_ids.device
    size = num_beams // num_beam_groups
    end_tokens = torch.as_tensor(eos_token_id, dtype=torch.long, device=device).reshape(-1).unique()
    groups = [
        _Group(
            live=_Beams.empty(batch, size, max_new_tokens, pad_token_id, device).started(),
            ended=_Beams.empty(batch, size, max_new_tokens, pad_token_id, device),
            lines=torch.arange(batch, device=device)[:, None].expand(batch, size),
            done=torch.zeros(batch, dtype=torch.bool, device=device),
            end_tokens=end_tokens,
            pad_token_id=pad_token_id,
            diversity_penalty=diversity_penalty,
            length_penalty=length_penalty,
            alone=num_beam_groups == 1,
        )
        for _ in range(num_beam_groups)
    ]
    with _evaluating(model):
        mask = attention_mask.long()
        logits, cache = next_token_logits(model, input_ids, mask, (mask.cumsum(dim=-1) - 1).clamp(min=0))
        _check_vocabulary(logits.shape[-1], end_tokens, num_beams, max_new_tokens)
        for step in range(max_new_tokens):
            # The penalty can push at most the num_beams - size tokens of other groups off the top of a line.
            top = _top_tokens(logits, groups[0].num_candidates + num_beams - size)
            taken = torch.empty(batch, 0, dtype=torch.long, device=device)  # [B, beams of earlier groups]
            for group in groups:
                taken = torch.cat([taken, group.advance(*top, taken, step)], dim=1)

            growing = torch.stack([group.growing for group in groups])  # [groups, B, size]
            if step + 1 == max_new_tokens or not bool(growing.any()):
                break
            source = torch.stack([group.lines for group in groups])[growing]  # [N] lines to go on from
            newest = torch.stack([group.live.tokens[..., step] for group in groups])[growing]
            if not torch.equal(source, torch.arange(len(mask), device=device)):
                cache.reorder_cache(source)
                mask = mask[source]
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            numbered = torch.zeros(growing.shape, dtype=torch.long, device=device)
            numbered[growing] = torch.arange(len(source), device=device)
            for group, lines in zip(groups, numbered, strict=True):
                group.lines = lines
            positions = mask.sum(dim=-1, keepdim=True) - 1
            logits, cache = next_token_logits(model, newest[:, None], mask, positions, cache)

    found = _Beams.join([group.finished() for group in groups]).best(num_beams)
    equal = (found.tokens[:, :, None] == found.tokens[:, None]).all(dim=-1)
    length = int(found.lengths.max())
    return BeamOutput(
        sequences=found.tokens[..., :length],
        log_probs=found.log_probs,
        scores=found.scores,
        duplicate=equal.tril(diagonal=-1).any(dim=-1) | (found.scores == ABSENT),
    )


@dataclass
class _Beams:
    """n sequences of every prompt; a place whose score is `ABSENT` holds none."""

    tokens: Tensor  # [B, n, max_new_tokens]
    lengths: Tensor  # [B, n]
    log_probs: Tensor  # [B, n]
    scores: Tensor  # [B, n]

    @classmethod
    def empty(cls, batch: int, n: int, length: int, pad_token_id: int, device: torch.device) -> "_Beams":
        return cls(
            tokens=torch.full((batch, n, length), pad_token_id, device=device),
            lengths=torch.zeros(batch, n, dtype=torch.long, device=device),
            log_probs=torch.full((batch, n), ABSENT, device=device),
            scores=torch.full((batch, n), ABSENT, device=device),
        )

    @classmethod
    def join(cls, parts: "Sequence[_Beams]") -> "_Beams":
        return cls(
            tokens=torch.cat([part.tokens for part in parts], dim=1),
            lengths=torch.cat([part.lengths for part in parts], dim=1),
            log_probs=torch.cat([part.log_probs for part in parts], dim=1),
            scores=torch.cat([part.scores for part in parts], dim=1),
        )

    def started(self) -> "_Beams":
        """One beam alive with nothing in it, so that the others do not repeat its first tokens."""
        self.log_probs[:, 0] = self.scores[:, 0] = 0.0
        return self

    def take(self, index: Tensor) -> "_Beams":
        """The sequences at `index` [B, m]."""
        rows = index[..., None].expand(-1, -1, self.tokens.shape[-1])
        columns = (x.gather(1, index) for x in (self.lengths, self.log_probs, self.scores))
        return _Beams(self.tokens.gather(1, rows), *columns)

    def best(self, n: int) -> "_Beams":
        """The n of highest score. A stable order, so that an unfilled place stays all padding."""
        return self.take(self.scores.argsort(dim=1, descending=True, stable=True)[:, :n])


@dataclass
class _Group:
    """One group's beams in every prompt: those that still grow and the best that have ended."""

    live: _Beams  # scores are sums here
    ended: _Beams  # scores are divided by length here
    lines: Tensor  # [B, size] the line of the model's last output that continues each live beam
    done: Tensor  # [B] nothing that still grows is expected to beat what has ended
    end_tokens: Tensor
    pad_token_id: int
    diversity_penalty: float
    length_penalty: float
    alone: bool

    @property
    def num_candidates(self) -> int:
        """A beam can spend one candidate on every end token, and `size` of them must be able to go on."""
        return max(2, 1 + len(self.end_tokens)) * self.lines.shape[1]

    @property
    def growing(self) -> Tensor:
        """[B, size] True for the beams whose next token the model has to give."""
        return (self.live.scores > ABSENT) & ~self.done[:, None]

    def advance(self, log_probs: Tensor, tokens: Tensor, taken: Tensor, step: int) -> Tensor:
        """Lengthen the live beams by one token each.

        Args:
            log_probs, tokens: [lines, k] the likeliest tokens of every line.
            taken: [B, n] tokens that earlier groups' beams chose at this step, -1 for an empty place.

        Returns:
            [B, size] the same for this group.
        """
        size, norm = self.lines.shape[1], (step + 1) ** self.length_penalty
        own, proposed = log_probs[self.lines], tokens[self.lines]  # [B, size, k]
        times_taken = (proposed[..., None] == taken[:, None, None]).sum(dim=-1)
        totals = own - self.diversity_penalty * times_taken + self.live.scores[..., None]
        scores, flat = totals.flatten(1).topk(self.num_candidates)  # [B, candidates], best first
        token = proposed.flatten(1).gather(1, flat)
        parent = flat // tokens.shape[-1]
        candidates = self.live.take(parent)
        candidates.tokens[..., step] = token
        candidates.lengths += 1
        candidates.log_probs += own.flatten(1).gather(1, flat)
        candidates.scores = scores

        ends = torch.isin(token, self.end_tokens)
        # An ending counts only among the best `size`, and a longer, better one may still replace it.
        eligible = ends & ~self.done[:, None]
        eligible[:, size:] = False
        onward = ends.int().argsort(dim=1, stable=True)[:, :size]
        self.live, self.lines = candidates.take(onward), self.lines.gather(1, parent.gather(1, onward))
        candidates.scores = (scores / norm).masked_fill(~eligible, ABSENT)
        self.ended = _Beams.join([self.ended, candidates]).best(size)

        chosen = self.live.tokens[..., step].masked_fill(self.live.scores == ABSENT, -1)
        chosen = chosen.masked_fill(self.done[:, None], self.pad_token_id)
        # What growing beams may reach: in groups, 4.55.4 takes the best candidate, even one that ended.
        hope = self.live.scores[:, 0] if self.alone else scores[:, 0]
        self.done = self.done | (self.ended.scores[:, -1] >= hope / norm)
        return chosen

    def finished(self) -> _Beams:
        """The group's best sequences once the search is over: beams that still grow count as they stand."""
        norm = self.live.lengths.clamp(min=1) ** self.length_penalty
        self.live.scores = (self.live.scores / norm).masked_fill(~self.growing, ABSENT)
        return _Beams.join([self.ended, self.live]).best(self.lines.shape[1])


def _top_tokens(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Log-probabilities (fp32) and ids of the k likeliest tokens, [N, V] -> two of [N, min(k, V)]."""
    logits = logits.float()
    top, tokens = logits.topk(min(k, logits.shape[-1]), dim=-1)
    return top - logits.logsumexp(dim=-1, keepdim=True), tokens


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """No dropout, and no checkpointing (it would lose the cache); each module's own mode comes back after."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _check_settings(num_beams: int, num_beam_groups: int, diversity_penalty: float, max_new_tokens: int) -> None:
    if num_beams < 1:
        raise SettingError(f"num_beams={num_beams}: a search needs at least 1 beam")
    if max_new_tokens < 1:
        raise SettingError(f"max_new_tokens={max_new_tokens}: a search needs at least 1 new token")
    if not 1 <= num_beam_groups <= num_beams:
        raise SettingError(f"num_beam_groups={num_beam_groups}: num_beams={num_beams} can form 1 to {num_beams} groups")
    if num_beams % num_beam_groups:
        raise SettingError(
            f"num_beam_groups={num_beam_groups}: groups are of equal size, so num_beams={num_beams} "
            "must be a multiple of it"
        )
    if not 0 <= diversity_penalty < math.inf:
        raise SettingError(f"diversity_penalty={diversity_penalty}: must be a finite number, 0 or more")


def _check_vocabulary(vocabulary: int, end_tokens: Tensor, num_beams: int, max_new_tokens: int) -> None:
    """Refuse what no search can give: `num_beams` different sequences where fewer exist."""
    outside = [token for token in end_tokens.tolist() if not 0 <= token < vocabulary]
    if outside:
        raise SettingError(f"eos_token_id={outside[0]}: the model knows tokens 0 to {vocabulary - 1} only")
    onward = vocabulary - len(end_tokens)
    if onward < 1:
        raise SettingError(f"eos_token_id={end_tokens.tolist()}: leaves no token that goes on; name fewer end tokens")
    existing = 0
    for length in range(max_new_tokens):  # endings after `length` other tokens, and those that never end
        existing += onward**length * len(end_tokens)
        if existing + onward ** (length + 1) >= num_beams:
            return
    raise SettingError(
        f"num_beams={num_beams}: only {existing + onward**max_new_tokens} sequences exist with {vocabulary} "
        f"tokens to choose from and max_new_tokens={max_new_tokens}; lower num_beams or raise max_new_tokens"
    )
