"""Train the scene diffusion model that ships in `sysdpo/assets/scene_diffusion` (table 1 at `laptop`).

    python scripts/assets/train_scene_diffusion.py                      # the shipped weights, from scratch
    python scripts/assets/train_scene_diffusion.py --evaluate-only      # metrics, contact sheet and card again

A small `UNet2DConditionModel` on 2x pixel-unshuffled 32x32 renders, v-prediction, cosine betas, conditioned
on the frozen last hidden states of SmolLM2-135M-Instruct. Fixed seeds; resumes from its work folder.
"""

import argparse
import copy
import hashlib
import json
import math
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from measure_scene_diffusion import SCHEDULER, TEXT, contact_sheet, encode_captions, evaluate, write_card
from scene_models import Denoising
from torch import Tensor
from torch.nn import functional as F

from sysdpo.paths import ASSETS
from sysdpo.tasks.progression.scenes import GRADES, SceneCaption, grade_of, is_held_out, render, sample_caption

FOLDER = ASSETS / "scene_diffusion"
UNET: dict[str, Any] = {
    "sample_size": 16,
    "in_channels": 12,
    "out_channels": 12,
    "block_out_channels": (48, 64),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 64,
    "attention_head_dim": 4,  # diffusers reads this as the number of heads
    "encoder_hid_dim": 576,
    "encoder_hid_dim_type": "text_proj",
    # the pooled caption is added to the time embedding too: it then reaches every block
    "addition_embed_type": "text",
    "addition_embed_type_num_heads": 8,
}


def caption_pool(count: int, rng: Random) -> list[SceneCaption]:
    """`count` distinct captions for training, none of them held out."""
    pool: dict[str, SceneCaption] = {}
    while len(pool) < count:
        drawn = sample_caption(rng)
        if not is_held_out(drawn.text):
            pool.setdefault(drawn.text, drawn)
    return list(pool.values())


def render_batch(captions: Sequence[SceneCaption], rng: np.random.Generator) -> Tensor:
    """A fresh render a caption, levels uniform inside their grades' intervals: [B, 12, 16, 16] in [-1, 1]."""
    pictures = []
    for scene in captions:
        levels = {name: rng.uniform(*GRADES[grade_of(level)]) for name, level in scene.levels.items()}
        pictures.append(render(scene.place, levels, seed=int(rng.integers(2**31))))
    pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return F.pixel_unshuffle(pixels, TEXT["pixel_unshuffle"])


def train(args: argparse.Namespace) -> tuple[UNet2DConditionModel, float]:
    """Train to `args.steps`; returns the averaged (EMA) model and the seconds that training took."""
    torch.manual_seed(args.seed)
    pool = caption_pool(args.captions, Random(args.seed))
    args.work.mkdir(parents=True, exist_ok=True)
    texts = [scene.text for scene in pool] + [TEXT["unconditional_caption"]]
    digest = hashlib.sha256("\n".join([json.dumps(TEXT), *texts]).encode()).hexdigest()
    cached = args.work / f"text_features-{digest[:12]}.pt"
    if not cached.exists():
        features = encode_captions(texts)
        torch.save((features.hidden.half(), features.mask), cached.with_suffix(".partial"))
        cached.with_suffix(".partial").rename(cached)
        print(f"encoded {len(pool)} captions", flush=True)
    hidden, mask = torch.load(cached)

    model = UNet2DConditionModel(**UNET)
    average = copy.deepcopy(model).requires_grad_(False)
    rate = partial(_rate, args=args)
    denoising = Denoising(model, average, DDIMScheduler(**SCHEDULER), args.learning_rate, rate, args.ema)
    start, seconds = 0, 0.0
    checkpoint = args.work / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint)
        denoising.restore(state)
        start, seconds = state["step"], state["seconds"]
        print(f"resumed at step {start}", flush=True)

    began, recent = time.perf_counter() - seconds, []
    for step in range(start, args.steps):
        # every step has its own streams, so that a resumed run sees what an uninterrupted one would have seen
        rng = np.random.default_rng((args.seed, step))
        rows = rng.integers(len(pool), size=args.batch_size)
        clean = render_batch([pool[row] for row in rows], rng)
        rows[rng.random(args.batch_size) < args.caption_dropout] = len(pool)
        predict = partial(_velocity, model, hidden[rows].float(), mask[rows])
        recent.append(denoising.update(step, predict, clean, args.seed))
        if (step + 1) % 100 == 0:
            seconds = time.perf_counter() - began
            print(f"step {step + 1} loss {np.mean(recent):.4f} seconds {seconds:.0f}", flush=True)
            recent = []
        if (step + 1) % args.save_every == 0 or step + 1 == args.steps:
            state = {**denoising.state(), "step": step + 1, "seconds": time.perf_counter() - began}
            torch.save(state, checkpoint.with_suffix(".partial"))
            checkpoint.with_suffix(".partial").rename(checkpoint)
    return average, time.perf_counter() - began


def _velocity(model: UNet2DConditionModel, hidden: Tensor, mask: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
    return model(noisy, t, hidden, encoder_attention_mask=mask, return_dict=False)[0]


def _rate(step: int, args: argparse.Namespace) -> float:
    """Share of the peak learning rate: linear warm-up, cosine over the horizon, linear cool-down at the end."""
    if step < args.warmup:
        return (step + 1) / args.warmup
    share = min(1.0, (step - args.warmup) / (args.horizon - args.warmup))
    cooldown = min(1.0, (args.steps - step) / args.cooldown)
    return (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share))) * cooldown


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4500, help="optimizer updates (default %(default)s)")
    parser.add_argument("--horizon", type=int, default=7000, help="steps of the whole cosine (default %(default)s)")
    parser.add_argument("--cooldown", type=int, default=1500, help="steps of linear cool-down (default %(default)s)")
    parser.add_argument("--batch-size", type=int, default=32, help="renders a step (default %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="AdamW's peak (default %(default)s)")
    parser.add_argument("--warmup", type=int, default=200, help="steps of linear warm-up (default %(default)s)")
    parser.add_argument("--ema", type=float, default=0.998, help="decay of the averaged weights (default %(default)s)")
    parser.add_argument(
        "--caption-dropout", type=float, default=0.1, help="share of empty captions (default %(default)s)"
    )
    parser.add_argument("--captions", type=int, default=4000, help="distinct training captions (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of everything (default %(default)s)")
    parser.add_argument("--save-every", type=int, default=500, help="steps between checkpoints (default %(default)s)")
    parser.add_argument("--per-grade", type=int, default=12, help="held-out captions an attribute and grade")
    parser.add_argument("--work", type=Path, default=Path("outputs/scene_diffusion"), help="checkpoint, text features")
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder of the finished weights")
    parser.add_argument("--evaluate-only", action="store_true", help="measure the weights in --output again")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    metrics_path = args.output / "metrics.json"
    if args.evaluate_only:
        unet = UNet2DConditionModel.from_pretrained(args.output / "unet")
        metrics = json.loads(metrics_path.read_text())
    else:
        unet, seconds = train(args)
        unet.half().save_pretrained(args.output / "unet")
        unet.float()
        DDIMScheduler(**SCHEDULER).save_pretrained(args.output / "scheduler")
        (args.output / "text.json").write_text(json.dumps(TEXT, indent=2) + "\n")
        metrics = {
            "steps": args.steps,
            "horizon": args.horizon,
            "cooldown": args.cooldown,
            "batch_size": args.batch_size,
            "learning_rate": args.learning_rate,
            "captions": args.captions,
            "seed": args.seed,
            "train_seconds": round(seconds),
            "parameters": sum(parameter.numel() for parameter in unet.parameters()),
        }
        metrics_path.write_text(json.dumps(metrics, indent=2) + "\n")
    metrics["held_out"] = evaluate(unet, TEXT["guidance_scale"], args.per_grade, seed=args.seed + 1)
    metrics_path.write_text(json.dumps(metrics, indent=2) + "\n")
    contact_sheet(unet, TEXT["guidance_scale"], args.output / "contact_sheet.png")
    write_card(args.output, metrics)
    print(json.dumps(metrics["held_out"], indent=1))


if __name__ == "__main__":
    main()
