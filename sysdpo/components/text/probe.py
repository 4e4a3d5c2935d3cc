"""What a causal language model does, found by asking it: may completions share a sequence, prompts a batch?

A handful of tiny forwards at load compare each shortcut with the bare forward, one text a call. A shortcut whose
numbers differ is not taken, and one line says so; what no way gives right is refused. Names of architectures decide
nothing: a sliding window, a recurrence, an ALiBi or foreign code from the hub is judged by its logits.
"""

import json
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sysdpo.components.text.packing import Completion, pack
from sysdpo.errors import SettingError
from sysdpo.sampling.decoding import Uncached, accepts, next_token_logits

log = logging.getLogger(__name__)

TOLERANCE = 1e-4
"""Largest difference of log-probabilities, relative to the largest of them; the probe computes in fp32."""
FIRST_LENGTH = 64
"""Tokens of the packed sequence that is tried at load; longer ones are tried before they are first used."""

Decoding = Literal["padded", "even", "uncached"]
"""How prompts are continued together: padded on the left, only with prompts of their own length, or without a cache."""

REMARKS: dict[Decoding, str] = {
    "even": "prompts of different lengths are continued apart, because padding on the left changes its numbers",
    "uncached": "every new token reads its whole text again, because its cache cannot be reordered: sampling is slow",
}


@dataclass(frozen=True)
class Findings:
    """What holds for a model and its config, whatever its weights."""

    packs: bool
    """Completions of one prompt may share a sequence."""
    batches: bool
    """Texts of different lengths may share a batch, padded on the right."""
    plain_head: bool
    """Logits are exactly head(hidden states), so the head may run on some positions only."""
    decoding: Decoding


_FOUND: dict[tuple[Any, ...], Findings] = {}
_PACKED: dict[tuple[Any, ...], bool] = {}


def probe(model: PreTrainedModel, name: str) -> Findings:
    """Try every shortcut once for each kind of model; `name` is what the lines call it.

    Raises:
        SettingError: the model sees what follows a token, gives numbers that are not finite, or cannot be sampled.
    """
    if model.device.type == "meta":  # shapes only, for `make plan`: there is nothing to compare
        return Findings(packs=True, batches=True, plain_head=True, decoding="padded")
    key = _key(model)
    if key not in _FOUND:
        with torch.no_grad(), in_float32(model):
            _check_causal(model, name)
            batches = _holds(lambda: _padded_batch(model))
            plain_head = _holds(lambda: _head_alone(model))
            decoding = _decoding(model, name)
        _FOUND[key] = Findings(packs_at(model, FIRST_LENGTH), batches, plain_head, decoding)
    found = _FOUND[key]
    if not found.packs:
        log.info("%s: completions are scored one sequence each; packed behind one prompt, its numbers differ", name)
    if not found.batches:
        log.info("%s: texts are scored one by one; beside longer ones in a batch, its numbers differ", name)
    if found.decoding != "padded":
        log.info("%s: %s", name, REMARKS[found.decoding])
    return found


def packs_at(model: PreTrainedModel, length: int) -> bool:
    """Whether completions packed in a sequence of `length` tokens score as they do alone: tried once a length."""
    if model.device.type == "meta":
        return True
    key = (*_key(model), length)
    if key not in _PACKED:
        with torch.no_grad(), in_float32(model):
            _PACKED[key] = _holds(lambda: _packed(model, length))
    return _PACKED[key]


def _key(model: PreTrainedModel) -> tuple[Any, ...]:
    config = json.dumps(model.config.to_dict(), sort_keys=True, default=str)
    return type(model), config, model.config._attn_implementation, model.dtype, model.device


def _holds(shortcut: Callable[[], tuple[Tensor, Tensor]]) -> bool:
    """Whether a shortcut gives the bare forward's numbers; one that the model's code cannot take does not."""
    try:
        actual, expected = shortcut()
    except Exception as error:  # foreign code may raise anything
        log.debug("not taken: %s: %s", type(error).__name__, error)
        return False
    return actual.shape == expected.shape and _close(actual, expected)


def _close(actual: Tensor, expected: Tensor) -> bool:
    scale = max(1.0, float(expected.abs().max()))
    return bool(torch.isfinite(actual).all()) and float((actual - expected).abs().max()) <= TOLERANCE * scale


# ---- the bare forward ------------------------------------------------------------------------------------------------


def bare_logits(model: Any, ids: Sequence[int]) -> Tensor:
    """[T, vocabulary], fp32: one text, no mask, no positions, no cache; what anyone would compute first."""
    arguments: dict[str, Any] = {"use_cache": False} if accepts(model, "use_cache") else {}
    return model(input_ids=torch.tensor([list(ids)], device=model.device), **arguments).logits[0].float()


def _bare(model: PreTrainedModel, completion: Completion) -> Tensor:
    """Log-probabilities of a completion's tokens, [T]."""
    logits = bare_logits(model, [*completion.prompt, *completion.tokens])[len(completion.prompt) - 1 : -1]
    targets = torch.tensor(completion.tokens, device=logits.device)
    return logits.log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)


def _check_causal(model: PreTrainedModel, name: str) -> None:
    text, more = probe_tokens(model, 12), probe_tokens(model, 16, seed=1)
    try:
        alone, followed = bare_logits(model, text), bare_logits(model, [*text, *more])[: len(text)]
    except Exception as error:
        raise SettingError(f"{name}: a plain forward fails: {_line(error)}") from error
    if not torch.isfinite(alone).all():
        raise SettingError(f"{name}: its logits are not finite (NaN or infinity), in fp32; its weights are damaged.")
    if not _close(followed, alone):
        raise SettingError(
            f"{name}: what follows a token changes that token's probability, so this is no causal language model; "
            "name another."
        )


# ---- scoring ---------------------------------------------------------------------------------------------------------


def _packed(model: PreTrainedModel, length: int) -> tuple[Tensor, Tensor]:
    """The second and the last of the completions that fill a sequence of `length` tokens, packed and alone."""
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or length
    piece = max(2, min(length // 4, int(context) // 2))
    prompt = tuple(probe_tokens(model, piece))
    completions = [Completion(prompt, tuple(probe_tokens(model, piece, seed=i))) for i in range(1, length // piece)]
    packed = pack(completions, share_prefix=True, pad_token_id=0).to(model.device)
    with packed.shaping_masks(model):
        output = model(**packed.arguments(model), **({"use_cache": False} if accepts(model, "use_cache") else {}))
    logits = output.logits.flatten(0, 1)[packed.positions].float()
    scores = logits.log_softmax(-1).gather(-1, packed.targets[:, None]).squeeze(-1).view(len(completions), piece)
    chosen = sorted({1, len(completions) - 1})
    return scores[chosen].flatten(), torch.cat([_bare(model, completions[i]) for i in chosen])


def _padded_batch(model: PreTrainedModel) -> tuple[Tensor, Tensor]:
    """A short text beside a long one, as `pack` lays them out without a shared prefix."""
    texts = [Completion(tuple(probe_tokens(model, 4, seed=i)), tuple(probe_tokens(model, n, seed=9 + i)))
             for i, n in enumerate((5, 19))]  # fmt: skip
    packed = pack(texts, share_prefix=False, pad_token_id=_pad(model)).to(model.device)
    logits = model(**packed.arguments(model), **({"use_cache": False} if accepts(model, "use_cache") else {})).logits
    scores = logits.flatten(0, 1)[packed.positions].float().log_softmax(-1).gather(-1, packed.targets[:, None])
    return scores.squeeze(-1), torch.cat([_bare(model, text) for text in texts])


def _head_alone(model: PreTrainedModel) -> tuple[Tensor, Tensor]:
    ids = probe_tokens(model, 12)
    decoder: Any = model.get_decoder()
    arguments: dict[str, Any] = {"use_cache": False} if accepts(decoder, "use_cache") else {}
    states = decoder(input_ids=torch.tensor([ids], device=model.device), **arguments)[0]
    return model.get_output_embeddings()(states[0]).float(), bare_logits(model, ids)


# ---- sampling --------------------------------------------------------------------------------------------------------


def _decoding(model: PreTrainedModel, name: str) -> Decoding:
    """The fastest way to continue prompts together whose every step has the bare forward's logits."""
    short, long = probe_tokens(model, 5, seed=3), probe_tokens(model, 9, seed=4)
    other = probe_tokens(model, 9, seed=5)
    if _holds(lambda: _continued(model, model, [short, long])):
        return "padded"
    if _holds(lambda: _continued(model, model, [other, long])) and _holds(lambda: _continued(model, model, [short])):
        return "even"
    if _holds(lambda: _continued(model, Uncached(model), [other, long])):
        return "uncached"
    raise SettingError(f"{name}: texts sampled together differ from those sampled one by one; name another model.")


def _continued(model: PreTrainedModel, stepped: Any, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Logits of each step of a search that multiplies, mixes and drops rows, and of bare forwards of its texts."""
    width = max(map(len, prompts))
    ids = torch.tensor([[_pad(model)] * (width - len(p)) + list(p) for p in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    texts = [list(p) for p in prompts]
    logits, cache = next_token_logits(stepped, ids, mask, (mask.cumsum(-1) - 1).clamp(min=0))
    actual, expected = [logits.float()], [bare_logits(model, text)[-1] for text in texts]
    last = len(prompts) - 1
    for step, source in enumerate(([last, 0, 0, last], [3, 0, 1, 2], [2, 0], [1, 0], [0, 1])):
        index = torch.tensor(source, device=model.device)
        cache.reorder_cache(index)
        newest = probe_tokens(model, len(source), seed=20 + step)
        texts = [[*texts[i], token] for i, token in zip(source, newest, strict=True)]
        mask = torch.cat([mask[index], mask.new_ones(len(index), 1)], dim=1)
        fed = torch.tensor(newest, device=model.device)[:, None]
        logits, cache = next_token_logits(stepped, fed, mask, mask.sum(-1, keepdim=True) - 1, cache)
        actual.append(logits.float())
        expected += [bare_logits(model, text)[-1] for text in texts]
    return torch.cat(actual), torch.stack(expected)


# ---- what it is asked with -------------------------------------------------------------------------------------------


def probe_tokens(model: PreTrainedModel, n: int, seed: int = 0) -> list[int]:
    """`n` tokens that mean nothing special to the model, the same ones every time."""
    config = model.config.get_text_config().to_dict()
    named = [v if isinstance(v, list) else [v] for key, v in config.items() if key.endswith("token_id")]
    special = {token for tokens in named for token in tokens}
    embeddings: Any = model.get_input_embeddings()
    size = min(int(embeddings.weight.shape[0]), int(config.get("vocab_size") or math.inf))
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(size, (4 * n + 64,), generator=generator).tolist()
    plain = [token for token in drawn if token not in special] or drawn
    return (plain * (n // len(plain) + 1))[:n]


def _pad(model: PreTrainedModel) -> int:
    config = model.config.get_text_config()
    padding = getattr(config, "pad_token_id", None)
    return int(padding) if isinstance(padding, int) and 0 <= padding < int(config.vocab_size) else 0


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"


@contextmanager
def in_float32(model: torch.nn.Module) -> Iterator[None]:
    """Inside, every layer computes in fp32, on weights that are widened while it runs: memory for one layer."""
    kept: dict[int, torch.dtype] = {}

    def own(module: torch.nn.Module) -> Iterator[Tensor]:
        yield from module.parameters(recurse=False)
        yield from module.buffers(recurse=False)

    def widen(module: torch.nn.Module, *_: Any) -> None:
        for tensor in own(module):
            if tensor.dtype in (torch.bfloat16, torch.float16):
                kept[id(tensor)] = tensor.dtype
                tensor.data = tensor.data.float()

    def narrow(module: torch.nn.Module, *_: Any) -> None:
        for tensor in own(module):
            if id(tensor) in kept:
                tensor.data = tensor.data.to(kept.pop(id(tensor)))

    hooks = []
    if any(tensor.dtype in (torch.bfloat16, torch.float16) for tensor in model.parameters()):
        for module in model.modules():
            hooks.append(module.register_forward_pre_hook(widen))
            hooks.append(module.register_forward_hook(narrow, always_call=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
