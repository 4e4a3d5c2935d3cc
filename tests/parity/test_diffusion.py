"""The denoising bound against the formula of Diffusion-DPO, written out with diffusers' own UNet and schedule."""

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import nn

from sysdpo.components.image import diffusion as module
from sysdpo.components.image.denoising import Bound
from sysdpo.components.image.diffusion import Diffusion
from sysdpo.components.image.noise import noise_process
from sysdpo.components.image.pretrained import build_diffusion
from sysdpo.losses import preference_loss
from sysdpo.paths import ASSETS
from sysdpo.training.objectives import Direct
from tests.image_systems import LORA, image, make_diffusion, make_image_pairs, make_llm_diffusion
from tests.systems import perturb

BETA = 0.2
ARCHITECTURES_FOLDER = ASSETS / "architectures"


def fix_draws(monkeypatch: pytest.MonkeyPatch, t: int, shape: tuple[int, ...] = (12, 4, 4)) -> torch.Tensor:
    """One t and one noise for every image."""
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(7))
    monkeypatch.setattr(module, "_draw", lambda seed, draws, steps, shape: (torch.tensor([t]), noise[None]))
    return noise


def denoising_error(
    unet: UNet2DConditionModel, component: Diffusion, pixels: torch.Tensor, caption: str, t: int, noise: torch.Tensor
) -> torch.Tensor:
    """Mean squared error of one image, from the textbook formulas alone (eq. 15)."""
    scheduler: Any = component.scheduler
    signal = scheduler.alphas_cumprod[t]
    clean = torch.nn.functional.pixel_unshuffle(pixels[None] * 2 - 1, 2)
    noisy = signal.sqrt() * clean + (1 - signal).sqrt() * noise
    target = (
        noise if scheduler.config.prediction_type == "epsilon" else signal.sqrt() * noise - (1 - signal).sqrt() * clean
    )
    conditions = component.captions([caption], torch.device("cpu"), torch.float32)
    return ((unet(noisy, torch.tensor([t]), **conditions).sample - target) ** 2).mean()


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("lora", [None, LORA])
def test_the_diffusion_only_loss_is_that_of_diffusion_dpo(
    monkeypatch: pytest.MonkeyPatch, prediction_type: str, lora: dict[str, Any] | None
) -> None:
    system = make_llm_diffusion(prediction_type=prediction_type, lora=lora)
    base = make_llm_diffusion(prediction_type=prediction_type).component("diffusion").unet  # the same seed
    system.train_only(["diffusion"])
    component: Any = system.component("diffusion")
    perturb(component, 0.2)
    pairs, t = make_image_pairs(2)[:1], 37
    noise = fix_draws(monkeypatch, t)
    compared = Direct().compare(system, pairs, [0])
    loss = preference_loss(compared.margin, BETA)

    sides = []
    for side in (pairs[0].chosen, pairs[0].rejected):
        policy, reference = (
            sum(
                denoising_error(unet, component, z, c, t, noise)
                for z, c in zip(side["z"], side["captions"], strict=True)
            )
            for unet in (component.unet, base)
        )
        sides.append(policy - reference)
    steps = 100
    expected = -torch.nn.functional.logsigmoid(-BETA * steps * (sides[0] - sides[1]))
    assert abs(sides[0].item()) > 1e-4
    torch.testing.assert_close(loss[0], expected, rtol=1e-5, atol=1e-5)

    parameters = [p for p in component.parameters() if p.requires_grad]
    ours = torch.autograd.grad(loss.sum(), parameters, retain_graph=True)
    theirs = torch.autograd.grad(expected, parameters)
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5)


def test_wallace_is_2500_on_a_mean_whatever_beta_is(monkeypatch: pytest.MonkeyPatch) -> None:
    fix_draws(monkeypatch, 12)
    ratios = []
    for bound in ({"beta": 0.1, "strength": 2500}, {"num_timesteps": 25_000}):
        component = make_diffusion(bound=bound)
        perturb(component)
        ratios.append(component.log_ratio([image(1)], [{"c": "a"}], [0]))
    torch.testing.assert_close(ratios[0], ratios[1])
    text = make_diffusion(bound={"beta": 0.1, "strength": 2500}).describe()
    assert "2500 on the mean" in text
    assert f"{2500 / 192:.4g} on their sum" in text


def test_what_the_conventions_make_of_the_errors() -> None:
    """By hand for beta 0.1, T = 100 and 192 elements; w_t of equation 16 for 100 betas from 1e-4 to 0.02."""
    sizes = {"beta": 0.1}
    assert "= 10 on the mean" in make_diffusion(bound=sizes).describe()
    assert f"({10 / 192:.4g} on their sum)" in make_diffusion(bound=sizes).describe()
    text = make_diffusion(bound={**sizes, "reduction": "sum", "weighting": "exact"}).describe()
    beta = np.linspace(1e-4, 0.02, 100)
    weight = beta / (2 * (1 - beta) * (1 - np.cumprod(1 - beta)))
    assert f"({10 * weight.mean():.4g} on their sum)" in text
    assert f"= {192 * 10 * weight.mean():.4g} on the mean" in text
    assert "x w_t, averaged over t" in text


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("lora", [None, LORA])
def test_at_the_start_margin_0_and_loss_ln_2_for_every_t(
    monkeypatch: pytest.MonkeyPatch, prediction_type: str, lora: dict[str, Any] | None
) -> None:
    system = make_llm_diffusion(prediction_type=prediction_type, lora=lora)
    pairs = make_image_pairs(2)
    for t in range(0, 100, 9):
        fix_draws(monkeypatch, t)
        compared = Direct().compare(system, pairs, [0, 1])
        assert compared.margin.tolist() == [0.0, 0.0]
        assert preference_loss(compared.margin, BETA).tolist() == pytest.approx([math.log(2)] * 2, abs=1e-7)


@pytest.mark.parametrize("train", [["captioner", "diffusion"], ["captioner"], ["diffusion"]])
@pytest.mark.parametrize("lora", [None, LORA])
def test_gradients_reach_the_trained_components_and_no_other(train: list[str], lora: dict[str, Any] | None) -> None:
    system = make_llm_diffusion(lora=lora)
    system.train_only(train)
    compared = Direct().compare(system, make_image_pairs(2), [0, 1])
    preference_loss(compared.margin, BETA).sum().backward()
    reached = {
        name
        for name in system.components
        if any(p.grad is not None and bool(p.grad.any()) for p in system.component(name).parameters())
    }
    assert reached == set(train)


class Line(nn.Module):
    """A denoiser for one number: eps(z, t) = slope * z + shift."""

    def __init__(self, slope: float, shift: float) -> None:
        super().__init__()
        self.slope, self.shift = nn.Parameter(torch.tensor(slope)), nn.Parameter(torch.tensor(shift))
        self.device, self.dtype = torch.device("cpu"), torch.float32

    def forward(self, z: torch.Tensor, t: torch.Tensor, return_dict: bool = False, **_: Any) -> tuple[torch.Tensor]:
        return (self.slope * z + self.shift,)


class OneNumber:
    """The image's first value is the only latent."""

    image_size, latent_shape = 1, (1, 1, 1)

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels[:, :1] * 2 - 1

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return latents


class NoCaptions:
    def encode(self, caption: str) -> dict[str, torch.Tensor]:
        return {"encoder_hidden_states": torch.zeros(1, 1)}


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_average_bound_is_the_difference_of_gaussian_kls(prediction_type: str) -> None:
    """In one dimension: sum_t E_{z_t | z_0} [KL(q || p_ref) - KL(q || p)], integrated by Gauss-Hermite quadrature."""
    steps, slopes, shifts, z0 = 8, (0.6, 0.3), (0.2, -0.1), 0.4
    scheduler = DDIMScheduler(num_train_timesteps=steps, beta_start=0.02, beta_end=0.3, prediction_type=prediction_type)
    bound = Bound(reduction="sum", weighting="exact", draws=10_000)
    component = Diffusion(Line(slopes[1], shifts[1]), scheduler, NoCaptions(), OneNumber(), bound=bound)  # type: ignore[arg-type]
    component.trainable(True)
    with torch.no_grad():
        component.unet.slope.fill_(slopes[0])
        component.unet.shift.fill_(shifts[0])

    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    weights = weights / weights.sum()
    beta, signal = scheduler.betas.double().numpy(), scheduler.alphas_cumprod.double().numpy()
    exact = 0.0
    for t in range(steps):
        alpha, before = 1 - beta[t], signal[t - 1] if t else 1.0
        z = np.sqrt(signal[t]) * z0 + np.sqrt(1 - signal[t]) * nodes
        true_mean = (np.sqrt(before) * beta[t] * z0 + np.sqrt(alpha) * (1 - before) * z) / (1 - signal[t])
        true_variance = max(beta[t] * (1 - before) / (1 - signal[t]), 1e-300)  # 0 in the last step: z_0 itself
        kls = []
        for slope, shift in zip(slopes, shifts, strict=True):
            output = slope * z + shift
            noise = output if prediction_type == "epsilon" else np.sqrt(signal[t]) * output + np.sqrt(1 - signal[t]) * z
            mean = (z - beta[t] / np.sqrt(1 - signal[t]) * noise) / np.sqrt(alpha)
            ratio = true_variance / beta[t]
            kls.append(0.5 * (ratio - 1 - np.log(ratio) + (true_mean - mean) ** 2 / beta[t]))
        exact += float(weights @ (kls[1] - kls[0]))

    pixel = torch.full((3, 1, 1), (z0 + 1) / 2)
    with torch.no_grad():
        estimates = component.log_ratio([pixel] * 100, [{"c": ""}] * 100, list(range(100)))
    error = float(estimates.std() / 10)
    assert error < 0.02 * abs(exact)
    assert float(estimates.mean()) == pytest.approx(exact, abs=4 * error)


def test_images_and_text_do_not_depend_on_the_batch() -> None:
    system = make_llm_diffusion()
    inputs = [{"x": text} for text in ("one", "a longer second", "three")]
    together = system.generate(inputs, [5, 6, 7])
    system.component("diffusion").batch_size = 2
    for row, alone, seed in zip(together, inputs, (5, 6, 7), strict=True):
        single = system.generate([alone], [seed])[0]
        assert single["y"] == row["y"]
        torch.testing.assert_close(single["z"], row["z"], rtol=1e-4, atol=1e-5)


def test_images_are_denoised_on_the_model_s_device() -> None:
    """The scheduler's steps lie on the CPU; on the `meta` device, as on a GPU, mixing the two is an error."""
    component: Any = make_diffusion(device="meta")
    states = torch.empty(4, 16, 8, device="meta")
    component.captions = lambda captions, device, dtype: {"encoder_hidden_states": states[: len(captions)]}
    latents = component._denoise(["a", "b"], torch.zeros(2, *component.codec.latent_shape))
    assert (latents.device.type, tuple(latents.shape)) == ("meta", (2, *component.codec.latent_shape))


@pytest.mark.parametrize("kind", ["scene", "sd", "sdxl"])
def test_every_family_draws_and_is_scored_by_the_same_code(kind: str) -> None:
    component = make_diffusion(kind=kind)
    images = component.sample([{"c": "a lake"}, {"c": "a beach"}], 2, [0, 1])
    assert [len(row) for row in images] == [2, 2]
    assert all(picture.shape == (3, 8, 8) and 0 <= picture.min() <= picture.max() <= 1 for picture in images[0])
    perturb(component)
    ratio = component.log_ratio(images[0], [{"c": "a lake"}] * 2, [3, 3])
    assert ratio.abs().min() > 0
    with component.reference():
        assert component.log_ratio(images[0], [{"c": "a lake"}] * 2, [3, 3]).tolist() == [0.0, 0.0]


def pipeline_of(component: Any, kind: str, **settings: Any) -> Any:
    """diffusers' own pipeline of a component's parts."""
    parts = {"unet": component.unet, "vae": component.codec.vae, "scheduler": component.scheduler}
    for (tokenizer, encoder), suffix in zip(component.captions.encoder.encoders, ("", "_2"), strict=False):
        tokenizer.model_max_length = encoder.config.max_position_embeddings
        parts |= {f"tokenizer{suffix}": tokenizer, f"text_encoder{suffix}": encoder}
    if kind == "sdxl":
        return StableDiffusionXLPipeline(**parts, add_watermarker=False, **settings)
    return StableDiffusionPipeline(
        **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False, **settings
    )


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_sampling_is_that_of_diffusers_own_pipeline(kind: str, guidance: float) -> None:
    """From one noise to the pixels, unguided and guided: SDXL's other side is zeros, SD's the empty text.

    The noise schedule is the published one of SD 1.5 and of SDXL, with DDIM's steps.
    """
    component: Any = make_diffusion(kind=kind, guidance_scale=guidance, num_inference_steps=4)
    published = ARCHITECTURES_FOLDER / {"sd": "sd15", "sdxl": "sdxl"}[kind] / "scheduler" / "scheduler_config.json"
    component.scheduler = DDIMScheduler.from_config(json.loads(published.read_text()))
    component.process = noise_process(component.scheduler, 0)
    captions, seeds = ["a lake", "a much longer caption of a beach"], [3, 4]
    noise = torch.stack(
        [torch.randn(component.codec.latent_shape, generator=torch.Generator().manual_seed(s)) for s in seeds]
    )
    pipeline = pipeline_of(component, kind)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        captions, num_inference_steps=4, guidance_scale=guidance, latents=noise, output_type="pt", height=8, width=8
    ).images
    ours = torch.stack([pictures[0] for pictures in component.sample([{"c": c} for c in captions], 1, seeds)])
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    component.guidance_scale = 1.5  # the two sides of guidance differ, so that the equality above says something
    other = torch.stack([pictures[0] for pictures in component.sample([{"c": c} for c in captions], 1, seeds)])
    assert (other - ours).abs().max() > 1e-4


def test_a_pipeline_that_knows_no_zeros_has_the_empty_text(tmp_path: Any) -> None:
    """`force_zeros_for_empty_prompt` is the pipeline's own; its index is read."""
    made: Any = make_diffusion(kind="sdxl", guidance_scale=4.0)
    pipeline = pipeline_of(made, "sdxl", force_zeros_for_empty_prompt=False)
    pipeline.save_pretrained(tmp_path)
    settings: Any = {"bound": {"beta": 0.1}, "dtype": "float32", "device": "cpu"}
    loaded = build_diffusion(pretrained=str(tmp_path), num_inference_steps=2, guidance_scale=4.0, **settings)
    [nothing, empty, zeros] = [
        encoder.encode(caption)
        for encoder, caption in (
            (loaded.captions.encoder, None),
            (loaded.captions.encoder, ""),
            (made.captions.encoder, None),
        )
    ]
    for name in ("encoder_hidden_states", "text_embeds"):
        assert torch.equal(nothing[name], empty[name])
        assert not zeros[name].any()
    assert torch.equal(nothing["time_ids"], zeros["time_ids"])


def test_a_trained_lora_opens_in_a_diffusers_pipeline(tmp_path: Any) -> None:
    component = make_diffusion(kind="sd", lora=LORA)
    perturb(component)
    component.save(str(tmp_path))
    pipeline = pipeline_of(make_diffusion(kind="sd"), "sd")
    pipeline.load_lora_weights(str(tmp_path))
    noisy, t = torch.randn(1, 4, 4, 4), torch.tensor([3])
    conditions = component.captions(["a lake"], torch.device("cpu"), torch.float32)
    with torch.no_grad():
        trained, opened, base = (
            unet(noisy, t, **conditions).sample
            for unet in (component.unet, pipeline.unet, make_diffusion(kind="sd").unet)
        )
    assert not torch.allclose(trained, base, atol=1e-4)
    torch.testing.assert_close(opened, trained, rtol=1e-5, atol=1e-6)


def test_fully_trained_weights_open_as_a_unet(tmp_path: Any) -> None:
    component = make_diffusion()
    perturb(component)
    component.save(str(tmp_path))
    opened = UNet2DConditionModel.from_pretrained(tmp_path, subfolder="unet")
    for own, other in zip(component.unet.parameters(), opened.parameters(), strict=True):
        assert torch.equal(own, other)
