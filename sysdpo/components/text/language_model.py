"""A language model as a component: p(v | Pa(v)) of a text given texts, with a LoRA policy and its frozen reference."""

import logging
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sysdpo.components.base import Component, Parents, TokenSampler, Value
from sysdpo.components.text import norms
from sysdpo.components.text.codec import Prompt, TextCodec
from sysdpo.components.text.conversation import as_conversation
from sysdpo.components.text.fused import fuse
from sysdpo.components.text.head import gather_log_probs, target_log_probs
from sysdpo.components.text.lengths import LengthCodec, decode
from sysdpo.components.text.lora import add_lora, load_adapter, rehearse_saving
from sysdpo.components.text.packing import Completion, Pack, pack
from sysdpo.components.text.precision import adapters_as_they_come, hold_in, masters, widened_copy
from sysdpo.components.text.pretrained import Weights, load_causal_lm
from sysdpo.components.text.probe import FIRST_LENGTH, packs_at, probe
from sysdpo.errors import SettingError
from sysdpo.sampling.decoding import Uncached, accepts
from sysdpo.sampling.monte_carlo import MonteCarlo

log = logging.getLogger(__name__)

TEXT_LIMIT = 1_000_000
"""Characters of a completion that are compared; the limit on new tokens comes long before."""

MEMORY_LIMIT = 100_000
"""Texts whose reference log-probability is remembered, about 1 KB each; samples that are redrawn never come back."""


class LanguageModel(Component):
    """Any causal LM of transformers.

    Args:
        model, tokenizer: as loaded; `build_language_model` makes them from a config.
        prompt: what the model is asked, in terms of the variable's parents.
        generation: how the model draws where the caller asks for no strategy of its own.
        max_new_tokens: the longest text, in tokens, that is generated and that is scored.
        lora: keys of PEFT's `LoraConfig`; None trains all weights, from `trainable(True)` on, against a frozen copy.
            A model in 16 bits then keeps them in fp32 and computes in its own precision.
        share_prefix: score completions of one prompt in one sequence (fewer tokens, equal values); where the model's
            own numbers would change, it is switched off.
        skip_hidden: attention over a shared sequence leaves out what is hidden from whole texts (equal values).
        head_on_completions: run the LM head on completion tokens only (fewer logits, equal values); likewise.
        fuse_adapters: plain LoRA layers in fp32 add their product into the layer's own (equal values, less traffic).
        fuse_norms: frozen RMSNorms in fp32 state their slope instead of leaving it to autograd (likewise).
        remember_reference: keep the reference's log-probabilities of texts that were scored before.
        gradient_checkpointing: recompute activations in the backward pass (memory for time).
        seed: of the adapter's initial weights.
    """

    likelihood = "exact"
    draws = "text"

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompt: Prompt,
        *,
        generation: TokenSampler | None = None,
        max_new_tokens: int = 256,
        lora: Mapping[str, Any] | None = None,
        share_prefix: bool = True,
        skip_hidden: bool = True,
        head_on_completions: bool = True,
        fuse_adapters: bool = True,
        fuse_norms: bool = True,
        remember_reference: bool = True,
        gradient_checkpointing: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        context = _context(model)
        self.name = str(model.config._name_or_path or model.config.model_type)
        self.codec = TextCodec(tokenizer, prompt, max_new_tokens, max_length=context, stops=_stops(model, tokenizer))
        embeddings: Any = model.get_input_embeddings()
        self.codec.within(int(embeddings.weight.shape[0]))
        found = probe(model, self.name)
        self.decoding, self.batches = found.decoding, found.batches
        self.share_prefix = share_prefix and found.packs
        self.head_on_completions = head_on_completions and found.plain_head
        self._longest_pack = FIRST_LENGTH
        self.dtype = model.dtype
        self._wide = {id(p) for p in model.parameters() if p.dtype != model.dtype}  # the architecture's own choice
        self.model: PreTrainedModel | PeftModel = add_lora(model, lora, seed) if lora is not None else model
        # recomputed layers run outside of the pass that knows the blocks
        self.skip_hidden = skip_hidden and not gradient_checkpointing
        if fuse_adapters and lora is not None:
            fuse(self.model)
        if fuse_norms and lora is not None:
            norms.fuse_norms(self.model)
        self._trained = {name for name, p in self.model.named_parameters() if p.requires_grad or lora is None}
        self.generation = generation
        self._memory: dict[Completion, float] | None = {} if remember_reference else None
        self._frozen_copy: list[PreTrainedModel] = []  # in a list: no submodule, so never trained or saved
        if gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            model.enable_input_require_grads()
        self.trainable(isinstance(self.model, PeftModel))

    def check_parents(self, component: str, parents: Collection[str]) -> None:
        self.codec.prompt.check(component, parents)

    @property
    def longest(self) -> int:
        return self.codec.max_new_tokens

    def check_row(self, parents: Mapping[str, Value], drafts: Mapping[str, int] | None = None) -> None:
        self.codec.check_length(parents, drafts or {})
        self.codec.check_known(self.codec.prompt_ids(parents), "prompt")

    def check_input(self, name: str, value: Value) -> None:
        value = as_conversation(value)
        texts = value if isinstance(value, list | tuple) else [value]
        for text in texts:
            if not isinstance(text, str):
                raise SettingError(f"{name!r} is {type(text).__name__} {str(text)[:40]}, no text; put it into quotes")

    def check_value(self, value: Value) -> None:
        if not isinstance(value, str):
            raise SettingError(f"a text is needed, not {type(value).__name__} {str(value)[:40]}; put it into quotes")
        self.codec.check_known(self.codec.completion_ids(value[:TEXT_LIMIT]), "answer")

    def same(self, value: Value, other: Value) -> bool:
        return self.codec.completion_ids(value[:TEXT_LIMIT]) == self.codec.completion_ids(other[:TEXT_LIMIT])

    @property
    def causal_lm(self) -> PreTrainedModel:
        """The transformers model itself; adapters sit inside its layers."""
        if not isinstance(self.model, PeftModel):
            return self.model
        base = self.model.get_base_model()
        assert isinstance(base, PreTrainedModel)
        return base

    @property
    def device(self) -> torch.device:
        return self.causal_lm.device

    def trainable(self, train: bool) -> None:
        has_lora = isinstance(self.model, PeftModel)
        if train and not has_lora and not self._frozen_copy:
            self._frozen_copy = [widened_copy(self.causal_lm)]
            masters(self.causal_lm)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(train and name in self._trained)

    @contextmanager
    def _precision(self) -> Iterator[None]:
        """What is trained is kept in fp32 but multiplied in the model's own precision."""
        with (
            adapters_as_they_come(self.model),
            torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32),
        ):
            yield

    def follow(self, weights: Mapping[str, Tensor] | None) -> None:
        super().follow(weights)
        if self._memory is not None:
            self._memory.clear()  # of another reference

    @contextmanager
    def reference(self) -> Iterator[None]:
        if self._followed is not None:
            with self.holding(self._followed):
                yield
            return
        flags = [(parameter, parameter.requires_grad) for parameter in self.model.parameters()]
        policy = self.model
        try:
            if isinstance(policy, PeftModel):
                with policy.disable_adapter():
                    yield
            else:
                self.model = self._frozen_copy[0] if self._frozen_copy else policy
                yield
        finally:
            self.model = policy
            for parameter, flag in flags:  # peft#3453: leaving disable_adapter can thaw frozen adapters
                parameter.requires_grad_(flag)

    @torch.no_grad()
    def sample(
        self, parents: Parents, n: int, seeds: Sequence[int], sampler: TokenSampler | None = None
    ) -> list[list[Value]]:
        strategy = sampler if sampler is not None else self.generation
        if strategy is None:
            raise SettingError("this language model has no way to generate; set model.generation.")
        drawn = self.draw_ids([self.codec.prompt_ids(row) for row in parents], n, seeds, strategy)
        texts: list[list[Value]] = [[self.codec.decode(ids) for ids in row] for row in drawn]
        # different tokens can spell one text, and the text is the variable
        return [list(dict.fromkeys(row)) if strategy.distinct else row for row in texts]

    @torch.no_grad()
    def draw_ids(
        self, prompts: Sequence[Sequence[int]], n: int, seeds: Sequence[int], strategy: TokenSampler
    ) -> list[list[list[int]]]:
        """Up to `n` completions of each prompt, as token ids."""
        drawn: list[list[list[int]]] = [[] for _ in prompts]
        with hold_in(self.dtype, self.model, self._wide):  # what autocast makes of them at each product, once
            for rows in self._drawn_together(prompts):
                some = self._draw(strategy, [prompts[i] for i in rows], n, [seeds[i] for i in rows])
                for i, ids in zip(rows, some, strict=True):
                    drawn[i] = ids
        return drawn

    def _drawn_together(self, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        """Rows that one batch may hold: all, or those whose prompts are of one length."""
        if self.decoding == "padded":
            return [list(range(len(prompts)))]
        lengths: dict[int, list[int]] = {}
        for i, prompt in enumerate(prompts):
            lengths.setdefault(len(prompt), []).append(i)
        return list(lengths.values())

    def _draw(
        self, strategy: TokenSampler, prompts: Sequence[Sequence[int]], n: int, seeds: Sequence[int]
    ) -> list[list[list[int]]]:
        width = max(len(p) for p in prompts)
        pad = self.codec.pad_token_id
        input_ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=self.device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=self.device)
        return strategy.draw(
            Uncached(self.causal_lm) if self.decoding == "uncached" else self.causal_lm,
            input_ids,
            mask,
            n=n,
            seeds=seeds,
            max_new_tokens=self.codec.max_new_tokens,
            eos_token_id=self.codec.stop_token_ids,
            pad_token_id=pad,
        )

    def log_prob(self, values: Sequence[Value], parents: Parents) -> Tensor:
        return self.score([self._completion(v, p) for v, p in zip(values, parents, strict=True)])

    def reference_log_prob(self, values: Sequence[Value], parents: Parents) -> Tensor:
        return self._reference_score([self._completion(v, p) for v, p in zip(values, parents, strict=True)])

    def _completion(self, value: Value, parents: Mapping[str, Value]) -> Completion:
        return Completion(self.codec.prompt_ids(parents), self.codec.completion_ids(str(value)))

    def forget(self) -> None:
        if self._memory is not None:
            self._memory.clear()

    @torch.no_grad()
    def _reference_score(self, completions: Sequence[Completion]) -> Tensor:
        memory = self._memory
        if memory is None:
            with self.reference():
                return self.score(completions)
        if len(memory) > MEMORY_LIMIT:
            memory.clear()
        missing = [c for c in dict.fromkeys(completions) if c not in memory]
        if missing:
            with self.reference():
                memory.update(zip(missing, self.score(missing).tolist(), strict=True))
        return torch.tensor([memory[c] for c in completions], device=self.device)

    def score(self, completions: Sequence[Completion]) -> Tensor:
        """Summed token log-probabilities of each completion: [N], nats, fp32."""
        if not self.batches and len(set(completions)) > 1:
            alone = {completion: self.score([completion]) for completion in dict.fromkeys(completions)}
            return torch.cat([alone[completion] for completion in completions])
        packed = self._pack(completions)
        with self._precision():
            token_log_probs = self._token_log_probs(packed)  # [tokens]
        distinct = token_log_probs.new_zeros(packed.num_completions)
        return distinct.index_add(0, packed.owners, token_log_probs)[packed.rows]

    def _pack(self, completions: Sequence[Completion]) -> Pack:
        pad = self.codec.pad_token_id
        packed = pack(completions, share_prefix=self.share_prefix, pad_token_id=pad)
        length = packed.input_ids.shape[1]
        if packed.shares_prefix and length > self._longest_pack:
            # a window may lie between what was tried at load and what comes: tried once for each power of two
            self._longest_pack = 1 << (length - 1).bit_length()
            if not packs_at(self.causal_lm, self._longest_pack):
                log.info(
                    "%s: completions are scored one sequence each; in long sequences, its numbers differ", self.name
                )
                self.share_prefix = False
                packed = pack(completions, share_prefix=False, pad_token_id=pad)
        return packed.to(self.device)

    def _token_log_probs(self, packed: Pack) -> Tensor:
        model = self.causal_lm
        if not self.head_on_completions:
            with _recomputing(model), packed.shaping_masks(model, self.skip_hidden):
                output = model(**packed.arguments(model), **_without_cache(model))
            return gather_log_probs(output.logits.flatten(0, 1)[packed.positions], packed.targets)
        decoder = model.get_decoder()
        with _recomputing(model), packed.shaping_masks(model, self.skip_hidden):
            states = decoder(**packed.arguments(decoder), **_without_cache(decoder))
        hidden = states[0]
        # a flat, contiguous [tokens, hidden]: a product with a strided slice copies the whole head on a CPU
        completion_states = hidden.flatten(0, 1)[packed.positions]
        return target_log_probs(model.get_output_embeddings(), completion_states, packed.targets)

    def save(self, folder: str) -> None:
        self.model.save_pretrained(folder)

    def rehearse_saving(self) -> None:
        if isinstance(self.model, PeftModel) and self.device.type != "meta":
            rehearse_saving(self.model, self.restore)

    @classmethod
    def load(cls, pretrained: str, prompt: str | Mapping[str, Any], **settings: Any) -> "LanguageModel":
        """A pretrained model as a component, with the settings of `conf/model/` unless they are given.

        Args:
            pretrained: `smollm2_135m` (its wheel), a folder in the layout of `save_pretrained`, or a hub id.
            prompt: what the model is asked, `{name}` standing for a parent; or `{"user": …, "system": …, "examples": …,
                "prefix": …}`.
            settings: of `build_language_model`: `lora`, `generation`, `max_new_tokens`, `dtype`, `device`, …
        """
        defaults = {
            "lora": {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"},
            "generation": MonteCarlo(temperature=0.7, top_p=0.9, distinct=False),
        }
        asked = {"user": prompt} if isinstance(prompt, str) else prompt
        return build_language_model(prompt=asked, pretrained=pretrained, kind=cls, **{**defaults, **settings})

    # ---- what a plan and a benchmark ask -------------------------------------------------------------------------

    @property
    def unit(self) -> Literal["tokens"]:
        return "tokens"

    def networks(self) -> dict[str, torch.nn.Module]:
        return {"model": self.model}

    def frozen_copies(self) -> list[torch.nn.Module]:
        return list(self._frozen_copy)

    @property
    def tokenizer(self) -> str:
        return "the model's own" if self.codec.tokenizer.name_or_path else "one token a byte"

    def token_embedding(self) -> torch.nn.Module:
        return self.causal_lm.get_input_embeddings()

    def amount(self, value: Value) -> int:
        return len(self.codec.completion_ids(str(value)))

    def prompt_tokens(self, parents: Mapping[str, Value]) -> int:
        return len(self.codec.prompt_ids(parents))

    def made_up_text(self, key: int, tokens: int) -> str:
        return self.codec.made_up(key, tokens)

    def made_up_value(self, key: int, tokens: int) -> Value | None:
        return self.made_up_text(key, tokens) if self.domain is None else super().made_up_value(key, tokens)

    def take_lengths(self, frame: int, tokens: int | None) -> None:
        limit = self.codec.max_new_tokens
        self._longest_pack = sys.maxsize  # what has no values cannot be tried
        self.codec = LengthCodec(self.codec, frame, limit if tokens is None else min(limit, tokens))

    def drawing(self, n: int, prompt: int) -> Iterator[int]:
        with hold_in(self.dtype, self.model, self._wide):
            yield from decode(self.causal_lm, n, prompt, self.codec.max_new_tokens)

    def restore(self, folder: str) -> None:
        if isinstance(self.model, PeftModel):
            load_adapter(self.model, folder, self.device)
        else:
            self.trainable(True)  # the reference is kept before it is left
            trained = type(self.causal_lm).from_pretrained(folder, dtype=self.causal_lm.dtype)
            self.model.load_state_dict(trained.state_dict())


def _context(model: PreTrainedModel) -> int | None:
    """The most tokens of a text; None where the model's config names none.

    Where positions are scaled by the longest text of a batch (LongRoPE), texts beyond the original context change the
    numbers of the others: they are not taken.
    """
    config = model.config.get_text_config()
    scaling: Mapping[str, Any] = getattr(config, "rope_parameters", None) or {}
    limits = [getattr(config, "max_position_embeddings", None)]
    if scaling.get("rope_type") == "longrope":
        limits += [
            scaling.get("original_max_position_embeddings"),
            getattr(config, "original_max_position_embeddings", 0),
        ]
    return min((int(limit) for limit in limits if limit), default=None)


def _stops(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens at which the model's own generation config ends a text."""
    config = getattr(model, "generation_config", None)
    given = getattr(config, "eos_token_id", None)
    ends = [] if given is None else list(given) if isinstance(given, list | tuple) else [given]
    ends = [end for end in ends if end is not None]
    if not all(isinstance(end, int) and not isinstance(end, bool) for end in ends):
        raise SettingError(
            f"{model.config._name_or_path!r}: its generation config has eos_token_id={given!r}; write a token's id, or "
            "a list of ids."
        )
    # where it only repeats the model's config, an id that is no control token here belongs to another tokenizer
    copied = getattr(config, "_from_model_config", None)
    control = {*tokenizer.added_tokens_decoder, *tokenizer.all_special_ids}
    return [end for end in ends if end in control or not copied]


def _without_cache(model: Any) -> dict[str, bool]:
    return {"use_cache": False} if accepts(model, "use_cache") else {}


@contextmanager
def _recomputing(model: PreTrainedModel) -> Iterator[None]:
    """Where gradient checkpointing is on, let it act: transformers leaves it out of layers in eval mode."""
    layers = [m for m in model.modules() if getattr(m, "gradient_checkpointing", False)]
    if not torch.is_grad_enabled():
        layers = []
    for layer in layers:
        layer.training = True  # the layer's own flag: what lies inside it, dropout too, stays in eval mode
    try:
        yield
    finally:
        for layer in layers:
            layer.training = False


def build_language_model(
    *,
    prompt: Mapping[str, Any],
    pretrained: str | None,
    weights: Weights = "pretrained",
    architecture: Mapping[str, Any] | None = None,
    dtype: str = "auto",
    device: str = "auto",
    attention: str = "auto",
    adapter: str | None = None,
    trust_remote_code: bool = False,
    seed: int = 0,
    kind: Callable[..., LanguageModel] = LanguageModel,
    **settings: Any,
) -> LanguageModel:
    """A `LanguageModel` from its config: `conf/model/*.yaml` plus the component's prompt from `conf/system/*.yaml`.

    `kind` is the class, or whatever makes one of it.
    """
    if attention.startswith("flash") and settings.get("share_prefix", True):
        raise SettingError(
            f"model.attention={attention}: flash attention knows no block mask; set model.share_prefix=false."
        )
    model, tokenizer = load_causal_lm(
        pretrained,
        weights=weights,
        architecture=architecture,
        dtype=dtype,
        device=device,
        attention=attention,
        adapter=adapter,
        trust_remote_code=trust_remote_code,
        seed=seed,
    )
    given = prompt.get("examples") or ()
    if any(set(each) != {"user", "assistant"} or not all(isinstance(v, str) for v in each.values()) for each in given):
        raise SettingError("prompt.examples: each must be {user: text, assistant: text}.")
    examples = tuple((each["user"], each["assistant"]) for each in given)
    user = prompt["user"] if isinstance(prompt["user"], str) else tuple(prompt["user"])
    template = Prompt(user, prompt.get("system"), examples, prompt.get("prefix") or "")
    return kind(model, tokenizer, template, seed=seed, **settings)
