"""Rectified flows against diffusers: the loss from its classes, pictures from its pipelines, the bound by sums."""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import nn

from sysdpo.components.image import diffusion as module
from sysdpo.components.image.denoising import Bound
from sysdpo.components.image.diffusion import Diffusion
from sysdpo.components.image.noise import RectifiedFlow
from tests.flow_models import LORA, make_flow, pipeline_of
from tests.image_systems import image
from tests.systems import perturb

CAPTION = "a lake"


def flow_loss(
    component: Any, transformer: Any, pixels: torch.Tensor, sigma: float, noise: torch.Tensor
) -> torch.Tensor:
    """Mean squared error in velocity, from the pipeline's own pieces and the definition of a rectified flow."""
    pipeline = pipeline_of(component)
    vae = component.codec.vae
    clean = (vae.encode(pixels[None] * 2 - 1).latent_dist.mode() - vae.config.shift_factor) * vae.config.scaling_factor
    noisy = (1 - sigma) * clean + sigma * noise
    if len(component.captions.encoder.clips) == 2:
        states, _, pooled, _ = pipeline.encode_prompt(CAPTION, None, None, do_classifier_free_guidance=False)
        predicted = transformer(noisy, states, pooled, torch.tensor([sigma * 1000])).sample
    else:
        states, pooled, words = pipeline.encode_prompt(CAPTION, None)
        side = noisy.shape[-1]
        packed = pipeline._pack_latents(noisy, 1, 4, side, side)
        places = pipeline._prepare_latent_image_ids(1, side // 2, side // 2, "cpu", torch.float32)
        guidance = torch.full((1,), 2.5)
        blocks = transformer(packed, states, pooled, torch.tensor([sigma]), places, words, guidance).sample
        predicted = pipeline._unpack_latents(blocks, 16, 16, 2)
    return ((predicted - (noise - clean)) ** 2).mean()


@pytest.mark.parametrize("kind", ["sd3", "flux"])
@pytest.mark.parametrize("lora", [None, LORA])
def test_the_log_ratio_is_the_difference_of_two_flow_losses(
    monkeypatch: pytest.MonkeyPatch, kind: str, lora: dict[str, Any] | None
) -> None:
    """At levels of which one is a third: shift 3 makes it 0.6; FLUX's mu at 16 tokens is 0.5 - 0.65 * 240 / 3840."""
    t = 332  # of 0 .. 999: (t + 1) / 1000 = 0.333
    even = 0.333
    mu = 0.5 - (1.15 - 0.5) * (256 - 16) / (4096 - 256)
    sigma = 3 * even / (1 + 2 * even) if kind == "sd3" else math.exp(mu) / (math.exp(mu) + (1 / even - 1))
    noise = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(7))
    monkeypatch.setattr(module, "_draw", lambda seed, draws, steps, shape: (torch.tensor([t]), noise[None]))
    component: Any = make_flow(kind, lora=lora)
    base = make_flow(kind, train=False).unet  # the same seed
    perturb(component, 0.2)
    ratio = component.log_ratio([image(1, 16)], [{"c": CAPTION}], [0])
    expected = 1000 * (
        flow_loss(component, base, image(1, 16), sigma, noise)
        - flow_loss(component, component.unet, image(1, 16), sigma, noise)
    )
    assert abs(expected.item()) > 1e-2
    torch.testing.assert_close(ratio[0], expected, rtol=1e-4, atol=1e-3)
    parameters = [p for p in component.parameters() if p.requires_grad]
    ours = torch.autograd.grad(ratio.sum(), parameters, retain_graph=True, allow_unused=True)
    theirs = torch.autograd.grad(expected, parameters, allow_unused=True)
    for own, other in zip(ours, theirs, strict=True):
        assert (own is None) == (other is None)
        if own is not None:
            torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["sd3", "flux"])
def test_pictures_are_the_pipeline_s_own(kind: str) -> None:
    component: Any = make_flow(kind, train=False)
    (drawn,) = component.sample([{"c": CAPTION}], 1, [3])
    noise = torch.randn(component.codec.latent_shape, generator=torch.Generator().manual_seed(3))[None]
    pipeline = pipeline_of(component)
    settings: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": 2.5, "height": 16, "width": 16}
    if kind == "flux":
        noise = pipeline._pack_latents(noise, 1, 4, 8, 8)
    expected = pipeline(CAPTION, latents=noise, output_type="pt", **settings).images[0]
    torch.testing.assert_close(drawn[0], expected, rtol=1e-4, atol=1e-5)
    other = component.sample([{"c": "a beach at night"}], 1, [3])[0][0]
    assert (other - drawn[0]).abs().max() > 1e-4  # the caption is read


@pytest.mark.parametrize("kind", ["sd3", "flux"])
def test_a_trained_lora_opens_in_the_pipeline_and_comes_back(tmp_path: Path, kind: str) -> None:
    component: Any = make_flow(kind, lora=LORA)
    perturb(component, 0.2)
    component.save(str(tmp_path))
    (drawn,) = component.sample([{"c": CAPTION}], 1, [3])
    fresh: Any = make_flow(kind, train=False)
    pipeline = pipeline_of(fresh)
    pipeline.load_lora_weights(str(tmp_path))
    opened = fresh.sample([{"c": CAPTION}], 1, [3])[0][0]
    torch.testing.assert_close(opened, drawn[0], rtol=1e-4, atol=1e-5)
    restored: Any = make_flow(kind, lora=LORA)
    untrained = restored.sample([{"c": CAPTION}], 1, [3])[0][0]
    restored.restore(str(tmp_path))
    torch.testing.assert_close(restored.sample([{"c": CAPTION}], 1, [3])[0][0], drawn[0])
    assert (untrained - drawn[0]).abs().max() > 1e-4


def test_fully_trained_weights_come_back_beside_their_reference(tmp_path: Path) -> None:
    component: Any = make_flow("sd3")
    perturb(component, 0.2)
    component.save(str(tmp_path))
    restored: Any = make_flow("sd3")
    restored.restore(str(tmp_path))
    arguments = ([image(1, 16)], [{"c": CAPTION}], [5])
    assert restored.log_ratio(*arguments).tolist() == component.log_ratio(*arguments).tolist() != [0.0]


# ---- the bound -----------------------------------------------------------------------------------------------------


class Line(nn.Module):
    """A velocity that is a line in x, whatever the level."""

    def __init__(self, slope: float, shift: float) -> None:
        super().__init__()
        self.slope, self.shift = nn.Parameter(torch.tensor(slope)), nn.Parameter(torch.tensor(shift))
        self.device, self.dtype = torch.device("cpu"), torch.float32

    def forward(self, x: torch.Tensor, t: torch.Tensor, **_: Any) -> tuple[torch.Tensor]:
        return (self.slope * x + self.shift,)


class OneNumber:
    """A picture of one pixel, of which the red is taken, in [-1, 1]."""

    image_size = 1
    latent_shape = (1, 1, 1)

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels[:, :1] * 2 - 1


class NoCaptions:
    def encode(self, caption: str) -> dict[str, torch.Tensor]:
        return {"encoder_hidden_states": torch.zeros(1, 1)}


def test_the_average_bound_of_a_flow_is_the_difference_of_gaussian_kls() -> None:
    """In one dimension: sum_t E_{x_t | x_0} [KL(q || p_ref) - KL(q || p)], q by Bayes' rule, by quadrature."""
    steps, slopes, shifts, x0 = 8, (0.6, 0.3), (0.2, -0.1), 0.4
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=steps, shift=2.0)
    bound = Bound(reduction="sum", weighting="exact", draws=10_000)
    component: Any = Diffusion(Line(slopes[1], shifts[1]), scheduler, NoCaptions(), OneNumber(), bound=bound)  # type: ignore[arg-type]
    component.trainable(True)
    with torch.no_grad():
        component.unet.slope.fill_(slopes[0])
        component.unet.shift.fill_(shifts[0])
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    weights = weights / weights.sum()
    levels = [2 * k / steps / (1 + k / steps) for k in range(steps + 1)]  # shift 2; the last is pure noise
    exact = 0.0
    for before, level in itertools.pairwise(levels):
        x = (1 - level) * x0 + level * nodes
        ratio = (1 - level) / (1 - before)  # x_t = ratio * x_{t-1} + sqrt(variance) * fresh noise
        variance = level**2 - ratio**2 * before**2
        prior_mean, prior_variance = (1 - before) * x0, max(before**2, 1e-300)
        true_variance = 1 / (1 / prior_variance + ratio**2 / variance)
        true_mean = true_variance * (prior_mean / prior_variance + ratio * x / variance)
        kls = []
        for slope, shift in zip(slopes, shifts, strict=True):
            guess = x - level * (slope * x + shift)
            guessed_mean = true_variance * ((1 - before) * guess / prior_variance + ratio * x / variance)
            spread = true_variance / variance
            kls.append(0.5 * (spread - 1 - np.log(spread) + (true_mean - guessed_mean) ** 2 / variance))
        exact += float(weights @ (kls[1] - kls[0]))
    pixel = torch.full((3, 1, 1), (x0 + 1) / 2)
    with torch.no_grad():
        estimates = component.log_ratio([pixel] * 100, [{"c": ""}] * 100, list(range(100)))
    error = float(estimates.std() / 10)
    assert error < 0.02 * abs(exact)
    assert float(estimates.mean()) == pytest.approx(exact, abs=4 * error)


def test_the_levels_are_the_scheduler_s_and_their_weights_go_to_the_integral_s() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=3.0)
    process = RectifiedFlow(scheduler, 0)
    torch.testing.assert_close(process.sigmas.float(), scheduler.sigmas.flip(0))
    torch.testing.assert_close(process.times(torch.arange(1000)), scheduler.timesteps.flip(0))
    even = RectifiedFlow(FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000), 0)
    sigma = torch.arange(1, 1001, dtype=torch.float64) / 1000
    inner = slice(99, 950)
    torch.testing.assert_close((even.kl_weights() * 1000)[inner], ((1 - sigma) / sigma)[inner], rtol=0.02, atol=1e-3)


def test_at_the_start_the_ratio_is_zero_at_every_level() -> None:
    component = make_flow("flux", lora=LORA)
    ratios = component.log_ratio([image(1, 16)] * 3, [{"c": CAPTION}] * 3, [1, 2, 3])
    assert ratios.tolist() == [0.0, 0.0, 0.0]
