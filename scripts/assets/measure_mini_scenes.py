"""Draw with a scene model of `mini` and measure it: asked against measured level, contact sheet, card."""

from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from mini_captions import phrase, worded
from scene_models import by_attribute, card_table, save_sheet, sheet_captions

from sysdpo.components.image.pretrained import build_diffusion
from sysdpo.tasks.progression.scenes import ATTRIBUTES, GRADES, PLACES, grade_center, is_held_out
from sysdpo.tasks.progression.scorers.scene import SceneScorer, rank_correlation

NUM_INFERENCE_STEPS = 8
GUIDANCE_SCALE = 1.0


def draw(folder: Path, captions: list[str], seeds: list[int], steps: int, guidance: float) -> list[torch.Tensor]:
    """A picture [3, 32, 32] in [0, 1] a caption, by this project's own component."""
    model = build_diffusion(
        bound={},
        pretrained=str(folder),
        dtype="float32",
        device="cpu",
        num_inference_steps=steps,
        guidance_scale=guidance,
    )
    return [row[0] for row in model.sample([{"caption": text} for text in captions], 1, seeds)]


def captions(per_grade: int, rng: Random) -> list[tuple[str, str, float]]:
    """(caption, attribute, asked level): `per_grade` captions of each attribute and grade, at random places."""
    return [
        (phrase(rng.choice(PLACES), attribute, grade, rng), attribute, grade_center(grade))
        for attribute in ATTRIBUTES
        for grade in GRADES
        for _ in range(per_grade)
    ]


def measured(
    folder: Path,
    per_grade: int,
    seed: int,
    steps: int = NUM_INFERENCE_STEPS,
    guidance: float = GUIDANCE_SCALE,
) -> dict[str, Any]:
    """Asked against measured level: rank correlation, slope, mean level by grade, and the same for unseen captions."""
    asked = captions(per_grade, Random(seed))
    names = [attribute for _, attribute, _ in asked]
    levels = np.array([level for _, _, level in asked])
    seeds = [seed * 100_003 + row for row in range(len(asked))]
    images = draw(folder, [text for text, _, _ in asked], seeds, steps, guidance)
    found = SceneScorer().score(images, names)
    unseen = np.array([is_held_out(text) for text, _, _ in asked])
    attributes = by_attribute(names, levels, found)
    return {
        "images": len(asked),
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "mean_spearman": round(float(np.nanmean([row["spearman"] for row in attributes.values()])), 3),
        "spearman_of_all": round(rank_correlation(levels, found), 3),
        "held_out_spearman": round(rank_correlation(levels[unseen], found[unseen]), 3),
        "mean_slope": round(float(np.mean([row["slope"] for row in attributes.values()])), 3),
        "attributes": attributes,
    }


def contact_sheet(folder: Path, path: Path) -> None:
    """One seed a place."""
    images = draw(folder, *sheet_captions(worded), NUM_INFERENCE_STEPS, GUIDANCE_SCALE)
    save_sheet(torch.stack(images), path)


def write_card(which: str, folder: Path, metrics: dict[str, Any]) -> None:
    """`card.md`: data, training, use and measured quality, filled from `metrics`."""
    found = metrics["measured"]
    fields = {key: value for key, value in {**metrics, **found}.items() if not isinstance(value, dict)}
    fields |= {
        "unet": f"{metrics['parameters']['unet']:,}",
        "text_encoder": f"{metrics['parameters']['text_encoder']:,}",
        **card_table(found["attributes"], ("spearman", "slope")),
    }
    template = Path(__file__).with_name(f"mini_scene_{which}_card.md")
    (folder / "card.md").write_text(template.read_text(encoding="utf-8").format(**fields), encoding="utf-8")
