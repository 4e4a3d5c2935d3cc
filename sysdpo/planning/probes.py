"""One unit of each kind of work, run on shapes: an update's share, a token, a denoising step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sysdpo.components.base import Component
from sysdpo.components.image.conditioning import Clip
from sysdpo.components.image.diffusion import Diffusion
from sysdpo.components.image.pixels import Autoencoder
from sysdpo.components.text.language_model import LanguageModel
from sysdpo.components.text.packing import Completion
from sysdpo.losses import denoising_log_ratio, direct_margin, preference_loss, sampling_margin
from sysdpo.planning.meter import Meter, as_shapes, shapes
from sysdpo.sampling.decoding import next_token_logits
from sysdpo.system import CompoundSystem


@dataclass(frozen=True)
class Texts:
    """What one variable asks of its language model for one pair: `prompts` prompts with `completions` texts each."""

    prompts: int
    prompt_tokens: int
    completions: int
    completion_tokens: int

    @property
    def tokens(self) -> int:
        """Computed in one pass if completions share their prompt."""
        return self.prompts * (self.prompt_tokens + self.completions * self.completion_tokens)


@dataclass(frozen=True)
class Step:
    """A micro-batch, forward and backward; bytes beyond weights and optimizer.

    saved: what each component's own forward pass keeps; peak: the most at any moment, gradients included.
    """

    saved: Mapping[str, int]
    peak: int
    meter: Meter


def parts(component: Component) -> dict[str, torch.nn.Module]:
    """A component's networks by name, frozen helpers (VAE, text encoders) included."""
    if isinstance(component, Diffusion):
        found: dict[str, Any] = {"unet": component.unet}
        if isinstance(component.codec, Autoencoder):
            found["vae"] = component.codec.vae
        encoder: Any = component.captions.encoder
        models = [model for _, model in encoder.encoders] if isinstance(encoder, Clip) else [encoder.model]
        return found | {f"text_encoder_{i}": model for i, model in enumerate(models, 1)}
    return {"model": component.model} if isinstance(component, LanguageModel) else {}


def frozen_copies(component: Component) -> list[torch.nn.Module]:
    """Networks that a component keeps beside its policy, as reference; none where an adapter is switched off."""
    return list(getattr(component, "_frozen_copy", []))


def training_step(
    system: CompoundSystem,
    asked: Mapping[tuple[str, str], Texts | int],
    trained: Sequence[str],
    *,
    pairs: int,
    joint_samples: int,
    repeats: int = 2,
) -> Step:
    """Score `pairs` pairs under policy and reference, and go back; the second time gradients are in place.

    Args:
        asked: for each (variable, component), the texts of one pair, or the number of images of one pair.
        joint_samples: K of SysDPO-Sampling; 0 is SysDPO-Direct.
    """
    meter = Meter()
    saved: dict[str, int] = {}
    with shapes():
        for component in map(system.component, system.components):
            for network in (*parts(component).values(), *frozen_copies(component)):
                as_shapes(network)
        for _ in range(repeats):
            saved = {}
            meter.kernels.clear()
            meter.reset_peak()
            with meter:
                _compare(system, asked, trained, pairs, joint_samples, meter, saved).backward()
    return Step(saved, meter.peak, meter)


def _compare(
    system: CompoundSystem,
    asked: Mapping[tuple[str, str], Texts | int],
    trained: Sequence[str],
    pairs: int,
    joint_samples: int,
    meter: Meter,
    saved: dict[str, int],
) -> Tensor:
    policy: list[Tensor] = []
    reference: list[Tensor] = []
    scored: list[tuple[LanguageModel, list[Completion]]] = []
    for (_, name), work in asked.items():
        component, base = system.component(name), meter.live
        if isinstance(component, Diffusion) and isinstance(work, int) and name in trained:
            policy.append(_denoising(component, work * pairs).view(2 * pairs, -1).sum(-1))
            reference.append(torch.zeros(2 * pairs))
        elif isinstance(component, LanguageModel) and isinstance(work, Texts) and (name in trained or joint_samples):
            rows = [c for pair in range(pairs) for c in _completions(work, pair)]
            if name in trained:
                policy.append(component.score(rows))
                scored.append((component, rows))
            else:  # never updated: one pass serves both; what the data fix was remembered
                with torch.no_grad(), component.reference():
                    policy.append(component.score(rows))
                reference.append(policy[-1])
        saved[name] = saved.get(name, 0) + meter.live - base
    for component, rows in scored:  # after all policies, as the objectives do
        with torch.no_grad(), component.reference():
            reference.append(component.score(rows))
    if joint_samples:
        shape = (2, pairs, joint_samples)
        joint = [_spread(terms, shape) for terms in (policy, reference)]
        margin = sampling_margin(joint[0][0], joint[1][0], joint[0][1], joint[1][1])
    else:
        ratios = torch.stack([p - r for p, r in zip(policy, reference, strict=True)], dim=-1)
        margin = direct_margin(*ratios.chunk(2))
    return preference_loss(margin, 0.1).sum()


def _spread(terms: Sequence[Tensor], shape: tuple[int, int, int]) -> Tensor:
    """Sum over variables of [2, B, K], in no particular order; an intermediate's terms serve both sides."""
    size = shape[0] * shape[1] * shape[2]
    return torch.stack([term.repeat(size // len(term)) for term in terms]).sum(0).view(shape)


def _completions(work: Texts, pair: int) -> list[Completion]:
    """Tokens that differ where texts do: the first tells prompts apart, and completions of one prompt."""
    return [
        Completion(
            (10 + pair * work.prompts + i, *[5] * (work.prompt_tokens - 1)),
            (10 + k, *[5] * (work.completion_tokens - 1)),
        )
        for i in range(work.prompts)
        for k in range(work.completions)
    ]


def _denoising(component: Diffusion, images: int) -> Tensor:
    """The log-ratios of `images` images at one draw of noise each, as the component estimates them."""
    noisy = torch.empty(images, *component.codec.latent_shape)
    t = torch.zeros(images, dtype=torch.long)
    conditions = _conditions(component, images)
    policy_error = (component._predict(noisy, t, conditions) - noisy) ** 2
    with torch.no_grad(), component.reference():
        reference_error = (component._predict(noisy, t, conditions) - noisy) ** 2
    return denoising_log_ratio(policy_error, reference_error, 1000, component.bound.reduction, torch.ones(images))


def _conditions(component: Diffusion, images: int) -> dict[str, Any]:
    """What captions become for the UNet, by its own config."""
    config: Any = component.unet.config
    length = getattr(component.captions.encoder, "max_length", 77)
    dtype = component.unet.dtype
    conditions: dict[str, Any] = {
        "encoder_hidden_states": torch.empty(images, length, config.cross_attention_dim, dtype=dtype)
    }
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        conditions["added_cond_kwargs"] = {
            "text_embeds": torch.empty(images, pooled, dtype=dtype),
            "time_ids": torch.empty(images, 6, dtype=dtype),
        }
    return conditions


@dataclass(frozen=True)
class Decoding:
    """Texts drawn side by side: the pass over the prompt, one token at full length, and what they hold."""

    prefill: Meter
    token: Meter
    cache: int
    peak: int
    new_tokens: int

    def seconds(self, *speeds: float) -> float:
        return self.prefill.seconds(*speeds) + self.new_tokens * self.token.seconds(*speeds)

    @property
    def flops(self) -> int:
        return self.prefill.flops + self.new_tokens * self.token.flops


@torch.no_grad()
def decoding(component: LanguageModel, *, texts: int, prompt_tokens: int, new_tokens: int) -> Decoding:
    """`texts` texts at a time, with adapters rounded to the model's precision as sampling does; they are left so."""
    prefill, filled, token = Meter(), Meter(), Meter()
    length = prompt_tokens + new_tokens - 1
    with shapes():
        model = component.causal_lm
        as_shapes(model, model.dtype)
        with prefill:
            _next(model, texts, 0, prompt_tokens)
        with filled:
            logits, cache = _next(model, texts, 0, length)
        del logits
        kept = filled.live
        with token:
            _next(model, texts, length, 1, cache)
    return Decoding(prefill, token, kept, max(prefill.peak, kept + token.peak), new_tokens)


def _next(model: Any, texts: int, past: int, new: int, cache: Any = None) -> Any:
    ids = torch.zeros(texts, new, dtype=torch.long)
    mask = torch.ones(texts, past + new, dtype=torch.long)
    positions = torch.arange(past, past + new).expand(texts, new)
    return next_token_logits(model, ids, mask, positions, cache)


@dataclass(frozen=True)
class Drawing:
    """Images drawn side by side: one denoising step, and the decoder."""

    step: Meter
    decode: Meter
    peak: int
    steps: int
    images: int

    def seconds(self, *speeds: float) -> float:
        return self.steps * self.step.seconds(*speeds) + self.decode.seconds(*speeds)

    @property
    def flops(self) -> int:
        return self.steps * self.step.flops + self.decode.flops


@torch.no_grad()
def drawing(component: Diffusion) -> Drawing:
    """A batch of the component's own size; guidance doubles what the UNet sees."""
    step, decode = Meter(), Meter()
    n = component.batch_size
    with shapes():
        as_shapes(component.unet)
        seen = 2 * n if component.guidance_scale != 1.0 else n
        noisy = torch.empty(seen, *component.codec.latent_shape)
        with step:
            component._predict(noisy, torch.zeros(seen, dtype=torch.long), _conditions(component, seen))
        with decode:
            if isinstance(component.codec, Autoencoder):
                as_shapes(component.codec.vae)
                before = decode.live
                component.codec.decode(noisy[:n])
                decode.peak -= before
    return Drawing(step, decode, max(step.peak, decode.peak), component.num_inference_steps, n)
