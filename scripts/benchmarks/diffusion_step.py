"""A Diffusion-DPO step of a one-component system beside the public training script's arithmetic; equal losses.

Wallace et al.'s script compares mean squared errors of one noise and one time step for both pictures of a pair, policy
minus a frozen second UNet, under beta = 5000. Here its loss is stated again with diffusers' classes. Latents and text
features are kept on both sides; all weights of the UNet are trained.
"""

from typing import Any

import torch
from side_by_side import Options, Work, check_equal, measure, memory_ratio, seconds_ratio, serve
from torch.nn import functional
from training_step import RATE, TOLERANCE

from sysdpo.components.image.diffusion import Diffusion, _draw
from sysdpo.components.image.pretrained import build_diffusion
from sysdpo.graph import SystemGraph
from sysdpo.losses import preference_loss
from sysdpo.system import CompoundSystem, Pair, _mix
from sysdpo.training.objectives import Direct

STRENGTH, BETA, PAIRS, SIZE = 2500.0, 0.1, 4, 64
ARCHITECTURE: dict[str, Any] = {
    "unet": {
        "sample_size": SIZE // 2,
        "in_channels": 12,
        "out_channels": 12,
        "block_out_channels": [64, 128],
        "layers_per_block": 2,
        "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
        "cross_attention_dim": 64,
        "attention_head_dim": 4,
    },
    "scheduler": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "pixel_unshuffle": 2,
    "language_model": {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    },
    "max_length": 40,
}
GRAPH: dict[str, dict[str, Any]] = {"x": {"role": "input"}, "y": {"role": "final", "component": "d", "parents": ["x"]}}


def build(options: Options) -> tuple[Diffusion, list[Pair]]:
    component = build_diffusion(
        pretrained=None,
        weights="random",
        architecture=ARCHITECTURE,
        dtype=options["dtype"],
        device=options["device"],
        lora=None,
        bound={"strength": STRENGTH, "beta": BETA},
        seed=0,
    )
    component.trainable(True)
    generator = torch.Generator().manual_seed(0)
    pictures = torch.rand(PAIRS, 2, 3, SIZE, SIZE, generator=generator)
    pairs = [Pair(i, {"x": f"a hill, {i} clouds"}, {"y": a}, {"y": b}) for i, (a, b) in enumerate(pictures)]
    return component, pairs


def stepping(component: Diffusion, loss_of: Any) -> Work:
    trained = [p for p in component.unet.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)

    def work() -> dict[str, float]:
        loss = loss_of()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return {"loss": float(loss.detach())}

    return work


def ours(options: Options) -> Work:
    component, pairs = build(options)
    system = CompoundSystem(SystemGraph(GRAPH, {"d": component}), {"d": component})
    seeds = [pair.index for pair in pairs]
    return stepping(component, lambda: preference_loss(Direct().compare(system, pairs, seeds).margin, BETA).mean())


def script(options: Options) -> Work:
    component, pairs = build(options)
    unet, [reference], scheduler = component.unet, component._frozen_copy, component.scheduler
    sides = [pair.row(side)["y"] for side in ("chosen", "rejected") for pair in pairs]
    with torch.no_grad():
        latents = component._latents(sides).to(unet.device)  # [2 B, C, h, w], the chosen ones first
        features = component._conditions([pair.inputs["x"] for pair in pairs] * 2)
    steps = int(scheduler.config.num_train_timesteps)
    drawn = [_draw(_mix(pair.index, 0, 0), 1, steps, component.codec.latent_shape) for pair in pairs]
    t = torch.cat([step for step, _ in drawn]).repeat(2).to(latents.device)
    noise = torch.cat([eps for _, eps in drawn]).repeat(2, 1, 1, 1).to(latents.device)
    noisy = scheduler.add_noise(latents, noise, t)

    def difference(model: Any) -> torch.Tensor:
        predicted = model(noisy.to(model.dtype), t, **features, return_dict=False)[0].float()
        chosen, rejected = (predicted - noise).pow(2).mean(dim=(1, 2, 3)).chunk(2)
        return chosen - rejected

    def loss() -> torch.Tensor:
        policy = difference(unet)
        with torch.no_grad():
            frozen = difference(reference)
        return -functional.logsigmoid(-STRENGTH * (policy - frozen)).mean()

    return stepping(component, loss)


VARIANTS = {"ours": ours, "the public script's arithmetic": script}


def run(options: Options) -> dict[str, Any]:
    turns = measure(__file__, list(VARIANTS), options, options["rounds"])
    check_equal(turns, "loss", TOLERANCE[options["dtype"]])
    figures = [
        {"name": "diffusion_step_time_vs_script", **seconds_ratio(turns, *VARIANTS)},
        {"name": "diffusion_step_memory_vs_script", **memory_ratio(turns, *VARIANTS)},
    ]
    return {"figures": figures, "turns": turns}


if __name__ == "__main__":
    serve(VARIANTS)
