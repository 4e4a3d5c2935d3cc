"""A diffusion model as a component: p(z | caption), whose likelihood is known only through a bound (appendix D)."""

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers.training_utils import cast_training_params
from torch import Tensor

from sysdpo.components.base import Component, Parents, TokenSampler, Value
from sysdpo.components.image.conditioning import CachedCaptions, Caption, CaptionEncoder
from sysdpo.components.image.denoisers import Model, denoiser_of
from sysdpo.components.image.denoising import Bound, mean_by_name
from sysdpo.components.image.latents import Codec
from sysdpo.components.image.noise import noise_process
from sysdpo.components.image.pixels import to_pixels
from sysdpo.components.text.lora import lora_config
from sysdpo.components.text.pretrained import shapes_only
from sysdpo.errors import SettingError
from sysdpo.losses import denoising_log_ratio


class Diffusion(Component):
    """Any text-to-image model of diffusers with a `UNet2DConditionModel`, or SD3's or FLUX's transformer.

    Args:
        unet: the denoiser; everything else is frozen.
        scheduler: a diffusers scheduler: its noise schedule and prediction type are those of training, its steps
            those of sampling. `FlowMatchEulerDiscreteScheduler` is a rectified flow (`noise`).
        encoder: frozen; captions to the denoiser's conditions.
        codec: frozen; pixels to latents and back.
        bound: how the log-ratio is estimated.
        num_inference_steps, guidance_scale: of sampling; a scale of 1 is no guidance. FLUX is told the scale instead,
            in training too.
        lora: keys of PEFT's `LoraConfig`; None trains all weights, from `trainable(True)` on, against a frozen copy.
        batch_size: images drawn at a time.
        gradient_checkpointing: recompute activations in the backward pass (memory for time).
        seed: of the adapter's initial weights.
    """

    likelihood = "bound"
    draws = "image"

    def __init__(
        self,
        unet: Model,
        scheduler: Any,
        encoder: CaptionEncoder,
        codec: Codec,
        *,
        bound: Bound,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        lora: Mapping[str, Any] | None = None,
        batch_size: int = 64,
        gradient_checkpointing: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.unet, self.scheduler, self.codec, self.bound = unet, scheduler, codec, bound
        self.captions = CachedCaptions(encoder)
        self.num_inference_steps, self.guidance_scale, self.batch_size = num_inference_steps, guidance_scale, batch_size
        self.kind = denoiser_of(unet)
        self.process = noise_process(scheduler, self.kind.tokens(unet, codec.latent_shape))
        self.has_lora = lora is not None
        self._frozen_copy: list[Model] = []  # in a list: no submodule, so never trained or saved
        self._in_reference = False
        self._by_lengths = False
        self._observed: dict[str, list[float]] = {}
        if lora is not None:
            _add_lora(unet, lora, seed)
        if gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        unet.eval()
        self.trainable(self.has_lora)

    # ---- the contract of a component -----------------------------------------------------------------------------

    def check_parents(self, component: str, parents: Collection[str]) -> None:
        if len(parents) != 1:
            raise SettingError(f"components.{component} draws from one caption, not from {', '.join(parents)}.")

    def check_value(self, value: Value) -> None:
        to_pixels(value, self.codec.image_size)

    def trainable(self, train: bool) -> None:
        if train and not self.has_lora and not self._frozen_copy:
            self._frozen_copy = [copy.deepcopy(self.unet).requires_grad_(False)]
        for name, parameter in self.unet.named_parameters():
            parameter.requires_grad_(train and (not self.has_lora or "lora_" in name))

    @contextmanager
    def reference(self) -> Iterator[None]:
        if self._in_reference:  # the outer context switches back
            yield
            return
        if self._followed is not None:
            self._in_reference = True
            try:
                with self.holding(self._followed):
                    yield
            finally:
                self._in_reference = False
            return
        flags = [(parameter, parameter.requires_grad) for parameter in self.unet.parameters()]
        policy = self.unet
        self._in_reference = True
        try:
            if self.has_lora:
                policy.disable_adapters()
            else:
                self.unet = self._frozen_copy[0] if self._frozen_copy else policy
            yield
        finally:
            self._in_reference = False
            self.unet = policy
            if self.has_lora:
                policy.enable_adapters()
            for parameter, flag in flags:  # switching adapters off and on changes what they train
                parameter.requires_grad_(flag)

    @torch.no_grad()
    def sample(
        self, parents: Parents, n: int, seeds: Sequence[int], sampler: TokenSampler | None = None
    ) -> list[list[Value]]:
        """`n` pictures [3, H, W] in [0, 1] a caption; image k of a row is drawn from the row's k-th noise."""
        if sampler is not None:
            raise SettingError("a token sampler cannot draw images; use objective=direct with this system.")
        captions = [_caption(row) for row in parents for _ in range(n)]
        noise = [torch.Generator().manual_seed(seed) for seed in seeds]
        start = [torch.randn(self.codec.latent_shape, generator=g) for g in noise for _ in range(n)]
        images: list[Tensor] = []
        for i in range(0, len(captions), self.batch_size):
            part = slice(i, i + self.batch_size)
            latents = self._denoise(captions[part], torch.stack(start[part]))
            images += self.codec.decode(latents).cpu().unbind()
        return [list(images[i : i + n]) for i in range(0, len(images), n)]

    def _denoise(self, captions: list[str], latents: Tensor) -> Tensor:
        """Classifier-free guidance along the scheduler's own steps: noise [N, C, h, w] -> latents."""
        path = self.process.path(self.num_inference_steps, self.kind.sigmas(self.num_inference_steps))
        guided = self._is_guided
        conditions = self._conditions([*captions, *[None] * len(captions)] if guided else captions)
        latents = self.process.start(latents.to(self.unet.device), path)
        for t in path.timesteps:
            inputs = self.process.seen(torch.cat([latents, latents]) if guided else latents, t, path)
            predicted = self._predict(inputs, t, conditions)  # one t, which the denoiser takes to its own device
            if guided:
                named, unnamed = predicted.chunk(2)
                predicted = unnamed + self.guidance_scale * (named - unnamed)
            latents = path.step(predicted, t, latents, return_dict=False)[0]
        return latents

    @property
    def _is_guided(self) -> bool:
        return self.guidance_scale != 1.0 and not self.kind.guides_itself

    def log_prob(self, values: Sequence[Value], parents: Parents) -> Tensor:
        raise SettingError("a diffusion model has no exact likelihood, only a bound on its log-ratio.")

    def log_ratio(self, values: Sequence[Value], parents: Parents, noise: Sequence[int] | None = None) -> Tensor:
        """Equation 17, averaged over `bound.draws` draws of (t, noise) an image: [B].

        Rows with the same seed in `noise` see the same draws; the first of two is taken as the preferred one in
        `diagnostics`.
        """
        if noise is None:
            raise SettingError("the bound on a diffusion model's log-ratio needs one noise seed a row.")
        draws, device = self.bound.draws, self.unet.device
        latents = self._latents(values).to(device).repeat_interleave(draws, 0)  # [B * draws, C, h, w]
        steps = self.process.steps
        drawn = [_draw(seed, draws, steps, self.codec.latent_shape) for seed in noise]
        t = torch.cat([t for t, _ in drawn]).to(device)
        eps = torch.cat([e for _, e in drawn]).to(device)
        noisy, target = self.process.noisy(latents, eps, t), self.process.target(latents, eps, t)
        times = self.process.times(t)
        conditions = self._conditions([_caption(row) for row in parents for _ in range(draws)])
        policy_error = (self._predict(noisy, times, conditions) - target) ** 2
        with torch.no_grad(), self.reference():
            reference_error = (self._predict(noisy, times, conditions) - target) ** 2
        self._observe(noise, t.cpu(), policy_error.detach(), reference_error)
        weight = self.bound.weight(self.process, t)
        ratio = denoising_log_ratio(
            policy_error, reference_error, self.bound.timesteps(steps), self.bound.reduction, weight
        )
        return ratio.view(len(values), draws).mean(-1)

    def diagnostics(self) -> dict[str, list[float]]:
        observed, self._observed = self._observed, {}
        return dict(sorted(observed.items()))

    def describe(self) -> str:
        weights = self.bound.weight(self.process, torch.arange(self.process.steps))
        return self.bound.describe(self.process.steps, self.codec.latent_shape, float(weights.mean()))

    def save(self, folder: str) -> None:
        """A LoRA in the layout of `load_lora_weights`; fully trained weights in that of `from_pretrained`."""
        if not self.has_lora:
            self.unet.save_pretrained(str(Path(folder) / self.kind.part))
            return
        self.kind.save_lora(self.unet, folder)

    def restore(self, folder: str) -> None:
        if not self.has_lora:
            self.trainable(True)  # the reference is kept before it is left
            trained = type(self.unet).from_pretrained(str(Path(folder) / self.kind.part))
            self.unet.load_state_dict(trained.state_dict())
            return
        self.kind.restore_lora(self.unet, folder)

    # ---- what a plan and a benchmark ask: latents and features of captions are remembered, so they cost nothing ----

    @property
    def unit(self) -> Literal["images"]:
        return "images"

    @property
    def most_at_once(self) -> int:
        return self.batch_size

    def networks(self) -> dict[str, torch.nn.Module]:
        return {self.kind.part: self.unet, **self.codec.networks(), **self.captions.encoder.networks()}

    def frozen_copies(self) -> list[torch.nn.Module]:
        return list(self._frozen_copy)

    def amount(self, value: Value) -> int:
        return 1

    def made_up_value(self, key: int, tokens: int) -> Value:
        """Noise, [3, H, W] in [0, 1]; by lengths alone its number stands for it."""
        size = self.codec.image_size
        return key if self._by_lengths else torch.rand(3, size, size, generator=torch.Generator().manual_seed(key))

    def take_lengths(self, frame: int, tokens: int | None) -> None:
        self._by_lengths = True

    def drawing(self, n: int, prompt: int) -> Iterator[int]:
        """A denoising step, whose batch guidance doubles, and the decoder."""
        seen = 2 * n if self._is_guided else n
        noisy, t = torch.empty(seen, *self.codec.latent_shape), torch.zeros(seen, dtype=torch.long)
        self._predict(noisy, t, self._conditions([""] * seen))
        yield self.num_inference_steps
        self.codec.decode(noisy[:n])
        yield 1

    # ---- the denoiser --------------------------------------------------------------------------------------------

    def _latents(self, values: Sequence[Value]) -> Tensor:
        """[B, C, h, w] of B pictures."""
        if self._by_lengths:
            return torch.empty(len(values), *self.codec.latent_shape)
        return self.codec.encode(torch.stack([to_pixels(value, self.codec.image_size) for value in values]))

    def _conditions(self, captions: Sequence[Caption]) -> dict[str, Any]:
        if self._by_lengths:
            return self.kind.made_up(self.unet, len(captions), self.captions.encoder.length)
        return self.captions(captions, self.unet.device, self.unet.dtype)

    def _predict(self, noisy: Tensor, t: Tensor, conditions: Mapping[str, Any]) -> Tensor:
        """What the denoiser predicts at times t, [N] or one for all: [N, C, h, w], fp32."""
        return self.kind.predict(self.unet, noisy.to(self.unet.dtype), t, conditions, self.guidance_scale).float()

    def _observe(self, seeds: Sequence[int], t: Tensor, policy_error: Tensor, reference_error: Tensor) -> None:
        means = [error.mean(dim=(1, 2, 3)).view(len(seeds), -1).cpu() for error in (policy_error, reference_error)]
        for name, value in mean_by_name(seeds, t.view(len(seeds), -1), means[0], means[1], self.process.steps):
            self._observed.setdefault(name, []).append(value)


def _caption(parents: Mapping[str, Value]) -> str:
    return str(next(iter(parents.values())))


def _draw(seed: int, draws: int, steps: int, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """`draws` timesteps [draws] and noises [draws, C, h, w] of one seed; on the CPU, so that devices agree."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, steps, (draws,), generator=generator), torch.randn(draws, *shape, generator=generator)


def _add_lora(unet: Model, lora: Mapping[str, Any], seed: int) -> None:
    """Low-rank adapters in fp32 on a frozen denoiser."""
    config = lora_config(lora)
    with torch.random.fork_rng(devices=[]), shapes_only(unet.device):
        torch.manual_seed(seed)
        try:
            unet.add_adapter(config)
        except ValueError as error:
            raise SettingError(f"model.lora.target_modules={lora.get('target_modules')!r}: {error}") from error
    for name, parameter in unet.named_parameters():
        parameter.requires_grad_("lora_" in name)
    cast_training_params(unet, dtype=torch.float32)
