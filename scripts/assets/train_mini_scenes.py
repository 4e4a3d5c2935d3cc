"""Train the two scene models of table 1 at `mini`: `sysdpo/assets/mini_scene_strong` and `mini_scene_weak`.

    python scripts/assets/train_mini_scenes.py strong    # draws the training pairs, as SDXL does in the paper
    python scripts/assets/train_mini_scenes.py weak      # is trained and judged, as SD1.5 is

Each is a `UNet2DConditionModel` on 4x pixel-unshuffled 32x32 renders (v-prediction, cosine betas), trained together
with a small text encoder of its own, a Llama whose last hidden states are the conditions. The weak one is a narrower
network, stopped early: the first of its checkpoints whose rank correlation reaches `WEAK_SPEARMAN`. Fixed seeds.
"""

import argparse
import copy
import json
import math
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from measure_mini_scenes import contact_sheet, measured, write_card
from mini_tokenizer import train_tokenizer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast

from sysdpo.paths import ASSETS
from sysdpo.tasks.progression.scenes import GRADES, SceneCaption, grade_of, is_held_out, render, sample_caption

WIDTH = 64
"""Of the text encoder, and of cross attention."""

TEXT: dict[str, Any] = {
    "encoder": "text_encoder",  # a folder beside this file, with its tokenizer
    "prefix": "<|im_start|>",
    "max_length": 20,
    "image_size": 32,
    "pixel_unshuffle": 4,
}
SCHEDULER: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "clip_sample": True,
}
BLOCKS = {"strong": (48, 64), "weak": (48, 48)}
WEAK_SPEARMAN = 0.7
"""Mean rank correlation of asked with measured level: clearly below the strong one's, and well above none."""


@dataclass(frozen=True)
class Plan:
    """How long a model is trained: cosine over `steps`, checkpoints every `every` of them (0: at the end)."""

    steps: int
    every: int
    batch_size: int = 32
    learning_rate: float = 2e-3
    warmup: int = 100
    ema: float = 0.995
    caption_dropout: float = 0.1
    captions: int = 4000
    seed: int = 0


PLANS = {"strong": Plan(steps=3600, every=0), "weak": Plan(steps=3600, every=100, seed=1, ema=0.98)}


class Scenes(nn.Module):
    """A denoiser and the encoder of its captions, trained as one."""

    def __init__(self, blocks: Sequence[int], vocab_size: int, padding: int) -> None:
        super().__init__()
        self.encoder = LlamaModel(
            LlamaConfig(
                vocab_size=vocab_size,
                hidden_size=WIDTH,
                intermediate_size=2 * WIDTH,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=4,
                max_position_embeddings=TEXT["max_length"],
                pad_token_id=padding,
                use_cache=False,
            )
        )
        channels = 3 * TEXT["pixel_unshuffle"] ** 2
        self.unet = UNet2DConditionModel(
            sample_size=TEXT["image_size"] // TEXT["pixel_unshuffle"],
            in_channels=channels,
            out_channels=channels,
            block_out_channels=tuple(blocks),
            layers_per_block=1,
            norm_num_groups=8,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=WIDTH,
            attention_head_dim=4,  # diffusers reads this as the number of heads
            # the pooled caption is added to the time embedding too: it then reaches every block
            addition_embed_type="text",
            addition_embed_type_num_heads=4,
        )

    def forward(self, noisy: Tensor, t: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Predicted velocity [B, C, 8, 8] at steps t [B], for tokens ids [B, L], padded on the right, mask [B, L]."""
        hidden = self.encoder(ids, attention_mask=mask).last_hidden_state * mask[..., None]
        return self.unet(noisy, t, hidden, encoder_attention_mask=mask.float(), return_dict=False)[0]


def caption_pool(count: int, rng: Random) -> list[SceneCaption]:
    """`count` distinct captions for training, none of them held out."""
    pool: dict[str, SceneCaption] = {}
    while len(pool) < count:
        drawn = sample_caption(rng)
        if not is_held_out(drawn.text):
            pool.setdefault(drawn.text, drawn)
    return list(pool.values())


def render_batch(captions: Sequence[SceneCaption], rng: np.random.Generator) -> Tensor:
    """A fresh render a caption, levels uniform inside their grades' intervals: [B, 48, 8, 8] in [-1, 1]."""
    pictures = []
    for scene in captions:
        levels = {name: rng.uniform(*GRADES[grade_of(level)]) for name, level in scene.levels.items()}
        pictures.append(render(scene.place, levels, seed=int(rng.integers(2**31))))
    pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return F.pixel_unshuffle(pixels, TEXT["pixel_unshuffle"])


def tokens(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Ids and mask [N, max_length] of prefix + text, padded on the right."""
    rows = [tokenizer(TEXT["prefix"] + text, add_special_tokens=False)["input_ids"] for text in texts]
    length = TEXT["max_length"]
    if (longest := max(map(len, rows))) > length:
        raise ValueError(f"a caption has {longest} tokens, more than max_length = {length}")
    ids = torch.full((len(rows), length), int(tokenizer.pad_token_id))
    mask = torch.zeros(len(rows), length, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
    return ids, mask


def training(
    plan: Plan, blocks: Sequence[int], pool: Sequence[SceneCaption], tokenizer: PreTrainedTokenizerFast
) -> Iterator[tuple[int, Scenes, float]]:
    """Train; yields (step, averaged model, seconds so far) at every checkpoint."""
    torch.manual_seed(plan.seed)
    ids, mask = tokens(tokenizer, [*(scene.text for scene in pool), ""])
    model = Scenes(blocks, len(tokenizer), int(tokenizer.pad_token_id))
    average = copy.deepcopy(model).requires_grad_(False)
    scheduler = DDIMScheduler(**SCHEDULER)
    optimizer = torch.optim.AdamW(model.parameters(), lr=plan.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, plan))
    seconds, recent = 0.0, []
    for step in range(plan.steps):
        began = time.perf_counter()
        rng = np.random.default_rng((plan.seed, step))
        noise_source = torch.Generator().manual_seed(plan.seed * 1_000_003 + step)
        rows = rng.integers(len(pool), size=plan.batch_size)
        clean = render_batch([pool[row] for row in rows], rng)
        rows[rng.random(plan.batch_size) < plan.caption_dropout] = len(pool)
        noise = torch.randn(clean.shape, generator=noise_source)
        # one t from each of B equal strata: the same uniform law, less variance
        strata = (torch.arange(plan.batch_size) + torch.rand(plan.batch_size, generator=noise_source)) / plan.batch_size
        t = (strata * scheduler.config.num_train_timesteps).long()
        predicted = model(scheduler.add_noise(clean, noise, t), t, ids[rows], mask[rows])
        loss = F.mse_loss(predicted, scheduler.get_velocity(clean, noise, t))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        decay = min(plan.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
        seconds += time.perf_counter() - began
        recent.append(loss.item())
        if (step + 1) % 100 == 0:
            print(f"step {step + 1} loss {np.mean(recent):.4f} seconds {seconds:.0f}", flush=True)
            recent = []
        if step + 1 == plan.steps or (plan.every and (step + 1) % plan.every == 0):
            yield step + 1, average, seconds


def _rate(step: int, plan: Plan) -> float:
    """Share of the peak learning rate: linear warm-up, then a cosine down to 0."""
    if step < plan.warmup:
        return (step + 1) / plan.warmup
    return 0.5 * (1 + math.cos(math.pi * (step - plan.warmup) / (plan.steps - plan.warmup)))


def save(model: Scenes, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """In half precision, in the layouts of diffusers and transformers."""
    shutil.rmtree(folder, ignore_errors=True)
    half: Any = copy.deepcopy(model).half()
    half.unet.save_pretrained(folder / "unet")
    half.encoder.save_pretrained(folder / "text_encoder")
    tokenizer.save_pretrained(folder / "text_encoder")
    DDIMScheduler(**SCHEDULER).save_pretrained(folder / "scheduler")
    (folder / "text.json").write_text(json.dumps(TEXT, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=tuple(PLANS))
    parser.add_argument("--steps", type=int, help="updates, where not all of the plan's are wanted")
    parser.add_argument("--output", type=Path, help="folder of the finished weights (default: sysdpo/assets/…)")
    args = parser.parse_args()
    plan = PLANS[args.which]
    if args.steps is not None:
        plan = Plan(**{**vars(plan), "steps": args.steps})
    folder = args.output or ASSETS / f"mini_scene_{args.which}"
    pool = caption_pool(plan.captions, Random(plan.seed))
    tokenizer = train_tokenizer((TEXT["prefix"] + scene.text for scene in pool), 512, TEXT["max_length"])
    path: list[dict[str, Any]] = []
    for step, model, seconds in training(plan, BLOCKS[args.which], pool, tokenizer):
        save(model, tokenizer, folder)
        found = measured(folder, per_grade=4 if plan.every else 12, seed=plan.seed + 1)
        path.append({"step": step, "spearman": found["mean_spearman"], "slope": found["mean_slope"]})
        print(json.dumps(path[-1]), flush=True)
        if plan.every and found["mean_spearman"] >= WEAK_SPEARMAN:
            break
    metrics: dict[str, Any] = {
        **vars(plan),
        "stopped_at": step,
        "train_seconds": round(seconds),
        "parameters": {
            "unet": sum(p.numel() for p in model.unet.parameters()),
            "text_encoder": sum(p.numel() for p in model.encoder.parameters()),
        },
        "checkpoints": path,
        "held_out": measured(folder, per_grade=12, seed=plan.seed + 1),
    }
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    contact_sheet(folder, folder / "contact_sheet.png")
    write_card(args.which, folder, metrics)


if __name__ == "__main__":
    main()
