"""Draw with the scene diffusion model and measure it: asked against measured level, contact sheet, card.

Serves `train_scene_diffusion.py` and `train_scene_regressor.py`. How captions become conditioning and how
noise becomes a picture (`TEXT`, `SCHEDULER`) is written down here once.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from scene_models import by_attribute, card_table, save_sheet, sheet_captions
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer

from sysdpo.components.weights import pretrained_folder
from sysdpo.tasks.progression.scenes import ATTRIBUTES, GRADES, PLACES, caption, grade_center, is_held_out
from sysdpo.tasks.progression.scorers.scene import SceneScorer

TEXT: dict[str, Any] = {
    "encoder": "smollm2_135m",
    "prefix": "<|im_start|>",
    "max_length": 20,
    "padding_side": "right",
    "hidden_state": "last_hidden_state",
    "padded_positions": "zero",
    "unconditional_caption": "",
    "image_size": 32,
    "pixel_unshuffle": 2,
    "pixel_range": [-1, 1],
    "guidance_scale": 2.0,
    "num_inference_steps": 20,
}
"""What a caller must do around the UNet; written beside the weights as `text.json`."""

SCHEDULER: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "clip_sample": True,
}


@dataclass(frozen=True)
class TextFeatures:
    """Hidden states [N, L, 576], zero at padded positions, and their mask [N, L] (1 = token)."""

    hidden: Tensor
    mask: Tensor

    def __getitem__(self, rows: Any) -> "TextFeatures":
        return TextFeatures(self.hidden[rows], self.mask[rows])


@torch.no_grad()
def encode_captions(captions: Sequence[str], batch_size: int = 64) -> TextFeatures:
    """What `TEXT` describes: hidden states of "<|im_start|>" + caption, padded on the right with zeros."""
    folder = pretrained_folder(TEXT["encoder"])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    length = TEXT["max_length"]
    tokens = [tokenizer(TEXT["prefix"] + text, add_special_tokens=False).input_ids[:length] for text in captions]
    hidden = torch.zeros(len(captions), length, model.config.hidden_size)
    mask = torch.zeros(len(captions), length)
    # equal lengths go together: nothing is computed on padding
    order = sorted(range(len(tokens)), key=lambda row: len(tokens[row]))
    for count in sorted({len(ids) for ids in tokens}):
        rows = [row for row in order if len(tokens[row]) == count]
        for start in range(0, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            states = model(torch.tensor([tokens[row] for row in batch])).last_hidden_state
            hidden[batch, :count] = states
            mask[batch, :count] = 1
    return TextFeatures(hidden, mask)


@torch.no_grad()
def sample(
    unet: UNet2DConditionModel,
    features: TextFeatures,
    unconditional: TextFeatures,
    seeds: Sequence[int],
    guidance_scale: float,
    num_inference_steps: int,
) -> Tensor:
    """DDIM with classifier-free guidance: [N, 3, 32, 32] in [0, 1]; image i depends on seed i alone."""
    scheduler = DDIMScheduler(**SCHEDULER)
    scheduler.set_timesteps(num_inference_steps)
    images = []
    for start in range(0, len(seeds), 64):
        rows = slice(start, min(start + 64, len(seeds)))
        count = rows.stop - start
        x = torch.stack(
            [torch.randn(12, 16, 16, generator=torch.Generator().manual_seed(seed)) for seed in seeds[rows]]
        )
        hidden = torch.cat([features.hidden[rows], unconditional.hidden.expand(count, -1, -1)])
        mask = torch.cat([features.mask[rows], unconditional.mask.expand(count, -1)])
        for t in scheduler.timesteps:
            velocity = unet(torch.cat([x, x]), t, hidden, encoder_attention_mask=mask, return_dict=False)[0]
            named, empty = velocity.chunk(2)
            x = scheduler.step(empty + guidance_scale * (named - empty), t, x).prev_sample
        images.append(F.pixel_shuffle(x, TEXT["pixel_unshuffle"]).clamp(-1, 1) / 2 + 0.5)
    return torch.cat(images)


def held_out_captions(per_grade: int, rng: Random) -> list[tuple[str, str, str, float]]:
    """(caption, place, attribute, asked level): `per_grade` held-out captions of each attribute and grade."""
    chosen = []
    for attribute in ATTRIBUTES:
        for grade in GRADES:
            for number in range(per_grade):
                place = PLACES[(number + rng.randrange(len(PLACES))) % len(PLACES)]
                while not is_held_out(text := caption(place, attribute, grade_center(grade), rng)):
                    place = rng.choice(PLACES)
                chosen.append((text, place, attribute, grade_center(grade)))
    return chosen


def evaluate(unet: UNet2DConditionModel, guidance_scale: float, per_grade: int, seed: int) -> dict[str, Any]:
    """Asked against measured level on held-out captions: rank correlation and mean level by grade."""
    asked = held_out_captions(per_grade, Random(seed))
    features = encode_captions([row[0] for row in asked] + [TEXT["unconditional_caption"]])
    images = sample(
        unet,
        features[: len(asked)],
        features[len(asked) :],
        [seed * 100_003 + row for row in range(len(asked))],
        guidance_scale,
        TEXT["num_inference_steps"],
    )
    names = [row[2] for row in asked]
    levels = np.array([row[3] for row in asked])
    measured = SceneScorer().score(list(images), names)
    attributes = by_attribute(names, levels, np.asarray(measured))
    report: dict[str, Any] = {"guidance_scale": guidance_scale, "images": len(asked), "attributes": attributes}
    correlations = [row["spearman"] for row in attributes.values()]
    report["mean_spearman"] = round(float(np.mean(correlations)), 3)
    report["lowest_spearman"] = min(correlations)
    return report


def contact_sheet(unet: UNet2DConditionModel, guidance_scale: float, path: Path) -> None:
    """One seed a place."""
    nouns = {
        "bright": "bright light",
        "dark": "darkness",
        "warm": "warm light",
        "lush": "lush greenery",
        "sunny": "sun",
    }
    texts, seeds = sheet_captions(lambda place, name, word: f"A {place} with {word} {nouns.get(name, name)}.")
    features = encode_captions([*texts, TEXT["unconditional_caption"]])
    images = sample(
        unet,
        features[: len(texts)],
        features[len(texts) :],
        seeds,
        guidance_scale,
        TEXT["num_inference_steps"],
    )
    save_sheet(images, path)


def write_card(folder: Path, metrics: dict[str, Any]) -> None:
    """`card.md`: data, training, use and measured quality, filled from `metrics`."""
    template = (Path(__file__).parent / "scene_diffusion_card.md").read_text()
    fields = {key: value for key, value in metrics.items() if key != "held_out"}
    held_out = metrics["held_out"]
    fields |= {
        "attribute_names": ", ".join(ATTRIBUTES),
        "text": json.dumps(TEXT, indent=2),
        "images": held_out["images"],
        "per_grade": held_out["images"] // (len(ATTRIBUTES) * len(GRADES)),
        "guidance": held_out["guidance_scale"],
        "mean_spearman": held_out["mean_spearman"],
        "lowest_spearman": held_out["lowest_spearman"],
        **card_table(held_out["attributes"], ("spearman",)),
    }
    (folder / "card.md").write_text(template.format(**fields))
