"""Train the two scene models of table 1 at `mini`: `sysdpo/assets/mini_scene_weak` and `mini_scene_strong`.

    python scripts/assets/train_mini_scenes.py

One training makes both. On pictures with right captions it makes the strong model, which draws the training pairs (as
SDXL in the paper). It goes on for a while with careless captions: in a share of them the word of quantity is drawn at
random. What comes out is the weak model, the one that table 1 trains and judges (as SD1.5): it draws as well as the
strong one, but a caption fixes the level only in part.

Each is a `UNet2DConditionModel` on principal components of the 4x4 patches of 32x32 renders (v-prediction, cosine
betas), trained together with a text encoder of its own, a Llama whose last hidden states are the conditions.
"""

import argparse
import copy
import json
import math
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from measure_mini_scenes import contact_sheet, measured, write_card
from mini_captions import WORDS, worded
from mini_tokenizer import train_tokenizer
from safetensors.torch import save_file
from scene_models import Denoising
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast

from sysdpo.components.image.latents import PatchComponents
from sysdpo.paths import ASSETS
from sysdpo.tasks.progression.scenes import ATTRIBUTES, GRADES, PLACES, is_held_out, render

PATCH, CHANNELS = 4, 16
"""Latents: the leading principal components of patches of so many pixels a side."""

WIDTH = 64
"""Of the text encoder, and of cross attention."""

TEXT: dict[str, Any] = {
    "encoder": "text_encoder",  # a folder beside this file, with its tokenizer
    "prefix": "<|im_start|>",
    "max_length": 16,
    "image_size": 32,
}
SCHEDULER: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "clip_sample": False,
}


@dataclass(frozen=True)
class Schedule:
    """Constant rate, then over the last 40 % of the strong model's steps a cosine down to 0; anew for the weak."""

    strong_steps: int = 1200
    weak_steps: int = 300
    """More steps, from the strong model on, with careless captions."""
    careless: float = 0.5
    """Share of captions, in `weak_steps`, whose word of quantity is drawn at random from all grades."""
    weak_rate: float = 0.3
    """Share of the learning rate at which these steps begin; a cosine down to 0."""
    batch_size: int = 16
    learning_rate: float = 1.5e-3
    warmup: int = 100
    ema: float = 0.99
    renders: int = 10
    """Pictures of each place, attribute and grade."""
    seed: int = 0


class Scenes(nn.Module):
    """A denoiser and the encoder of its captions, trained as one."""

    def __init__(self, vocab_size: int, padding: int) -> None:
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
        self.unet = UNet2DConditionModel(
            sample_size=TEXT["image_size"] // PATCH,
            in_channels=CHANNELS,
            out_channels=CHANNELS,
            block_out_channels=(64, 64),
            layers_per_block=1,
            norm_num_groups=8,
            down_block_types=("DownBlock2D", "DownBlock2D"),
            mid_block_type="UNetMidBlock2DCrossAttn",
            up_block_types=("UpBlock2D", "UpBlock2D"),
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


@dataclass(frozen=True)
class Pictures:
    """N renders: pixels [N, 3, 32, 32] in [0, 1], and of each its (place, attribute, grade)."""

    pixels: Tensor
    scenes: list[tuple[str, str, str]]


def rendered(count: int, seed: int) -> Pictures:
    """`count` pictures of each place, attribute and grade, levels uniform inside the grade's interval."""
    rng = np.random.default_rng(seed)
    scenes = [(p, a, g) for p in PLACES for a in ATTRIBUTES for g in GRADES for _ in range(count)]
    pictures = [
        render(place, {attribute: rng.uniform(*GRADES[grade])}, seed=int(rng.integers(2**31)))
        for place, attribute, grade in scenes
    ]
    return Pictures(torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255, scenes)


def components(pixels: Tensor) -> dict[str, Tensor]:
    """The patches' mean, leading principal components, and a scale that half evens out their spread."""
    patches = F.pixel_unshuffle(pixels * 2 - 1, PATCH).permute(0, 2, 3, 1).flatten(0, 2).double()  # [N * 64, 48]
    mean = patches.mean(0)
    variances, basis = torch.linalg.eigh(torch.cov((patches - mean).T))
    variances, basis = variances.flip(0)[:CHANNELS], basis.flip(1)[:, :CHANNELS]
    scale = variances**0.25
    scale = scale * (variances / scale**2).mean().sqrt()  # latents of unit variance on average
    return {"mean": mean.float(), "basis": basis.float().contiguous(), "scale": scale.float()}


def captions(scenes: Sequence[tuple[str, str, str]], careless: float, rng: np.random.Generator) -> list[str]:
    """A caption of each scene, none of them held out; a share of `careless` with a word of quantity at random."""
    grades, texts = list(GRADES), []
    for place, attribute, grade in scenes:
        named = grades[rng.integers(len(grades))] if rng.random() < careless else grade
        fitting = [t for word in WORDS[named] if not is_held_out(t := worded(place, attribute, word))]
        texts.append(fitting[rng.integers(len(fitting))] if fitting else worded(place, attribute, WORDS[named][0]))
    return texts


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
    schedule: Schedule, tokenizer: PreTrainedTokenizerFast
) -> Iterator[tuple[str, Scenes, dict[str, Tensor], int]]:
    """Train; yields ("strong" | "weak", averaged model, its patches, CPU seconds so far)."""
    torch.manual_seed(schedule.seed)
    began = time.process_time()
    pictures = rendered(schedule.renders, schedule.seed)
    patches = components(pictures.pixels)
    latents = PatchComponents(TEXT["image_size"], **patches).encode(pictures.pixels)
    model = Scenes(len(tokenizer), int(tokenizer.pad_token_id))
    average = copy.deepcopy(model).requires_grad_(False)
    rate = partial(_rate, schedule=schedule)
    denoising = Denoising(model, average, DDIMScheduler(**SCHEDULER), schedule.learning_rate, rate, schedule.ema)
    recent = []
    for step in range(schedule.strong_steps + schedule.weak_steps):
        rng = np.random.default_rng((schedule.seed, step))
        rows = rng.integers(len(pictures.scenes), size=schedule.batch_size)
        careless = schedule.careless if step >= schedule.strong_steps else 0.0
        ids, mask = tokens(tokenizer, captions([pictures.scenes[row] for row in rows], careless, rng))
        recent.append(denoising.update(step, partial(model, ids=ids, mask=mask), latents[rows], schedule.seed))
        if (step + 1) % 100 == 0:
            print(f"step {step + 1} loss {np.mean(recent):.4f} CPU s {time.process_time() - began:.0f}", flush=True)
            recent = []
        if step + 1 == schedule.strong_steps:
            yield "strong", average, patches, round(time.process_time() - began)
    yield "weak", average, patches, round(time.process_time() - began)


def _rate(step: int, schedule: Schedule) -> float:
    """Share of the peak learning rate."""
    if step >= schedule.strong_steps:
        return schedule.weak_rate * _cosine((step - schedule.strong_steps) / schedule.weak_steps)
    if step < schedule.warmup:
        return (step + 1) / schedule.warmup
    return _cosine((step / schedule.strong_steps - 0.6) / 0.4)


def _cosine(share: float) -> float:
    """From 1 at a share of 0 (or less) to 0 at 1."""
    return 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, share))))


def save(model: Scenes, patches: dict[str, Tensor], tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """In half precision, in the layouts of diffusers and transformers."""
    shutil.rmtree(folder, ignore_errors=True)
    half: Any = copy.deepcopy(model).half()
    half.unet.save_pretrained(folder / "unet")
    half.encoder.save_pretrained(folder / "text_encoder")
    tokenizer.save_pretrained(folder / "text_encoder")
    DDIMScheduler(**SCHEDULER).save_pretrained(folder / "scheduler")
    save_file(patches, folder / "patches.safetensors")
    (folder / "text.json").write_text(json.dumps(TEXT, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, help="updates of the strong model, in place of the schedule's")
    parser.add_argument("--output", type=Path, default=ASSETS, help="folder of the two models' folders")
    args = parser.parse_args()
    schedule = Schedule() if args.steps is None else Schedule(strong_steps=args.steps)
    every = [worded(p, a, word) for p in PLACES for a in ATTRIBUTES for words in WORDS.values() for word in words]
    tokenizer = train_tokenizer((TEXT["prefix"] + text for text in every), 384, TEXT["max_length"])
    for which, model, patches, seconds in training(schedule, tokenizer):
        folder = args.output / f"mini_scene_{which}"
        save(model, patches, tokenizer, folder)
        metrics: dict[str, Any] = {
            **vars(schedule),
            "train_seconds": seconds,
            "parameters": {
                "unet": sum(p.numel() for p in model.unet.parameters()),
                "text_encoder": sum(p.numel() for p in model.encoder.parameters()),
            },
            "measured": measured(folder, per_grade=18, seed=schedule.seed + 1),
        }
        (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
        found = metrics["measured"]
        print(json.dumps({key: value for key, value in found.items() if key != "attributes"}), flush=True)
        contact_sheet(folder, folder / "contact_sheet.png")
        write_card(which, folder, metrics)


if __name__ == "__main__":
    main()
