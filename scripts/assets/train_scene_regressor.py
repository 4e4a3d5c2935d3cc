"""Train the scene regressor that ships in `sysdpo/assets/scene_regressor`: renders in, attribute levels out.

    python scripts/assets/train_scene_regressor.py                 # about five minutes on one CPU core

Mean squared error on all attributes, fresh renders every step, fixed seeds. Measured on
other renders, and compared with the exact scorer on pictures that the scene diffusion model drew.
"""

import argparse
import json
import time
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sysdpo.paths import ASSETS
from sysdpo.tasks.progression.scenes import ATTRIBUTES, PLACES, render
from sysdpo.tasks.progression.scorers.regressor import SceneRegressor
from sysdpo.tasks.progression.scorers.scene import SceneScorer, rank_correlation

RENDERS_EACH = 500
"""Renders an attribute on which the two scorers are compared."""


def draw(count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """`count` renders [N, 3, 32, 32] in [0, 1] and their levels [N, A]: at most two attributes above 0."""
    pictures, levels = [], np.zeros((count, len(ATTRIBUTES)))
    for row in range(count):
        named = rng.choice(len(ATTRIBUTES), size=int(rng.choice([0, 1, 2], p=[0.05, 0.65, 0.30])), replace=False)
        levels[row, named] = rng.random(len(named))
        asked = {ATTRIBUTES[column]: levels[row, column] for column in named}
        pictures.append(render(PLACES[rng.integers(len(PLACES))], asked, seed=int(rng.integers(2**31))))
    images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
    return images, torch.from_numpy(levels).float()


def train(args: argparse.Namespace) -> SceneRegressor:
    torch.manual_seed(args.seed)
    model = SceneRegressor(ATTRIBUTES)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.learning_rate, total_steps=args.steps)
    for step in range(args.steps):
        images, levels = draw(args.batch_size, np.random.default_rng((args.seed, step)))
        loss = F.mse_loss(model(images), levels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        if (step + 1) % 500 == 0:
            print(f"step {step + 1} loss {loss.item():.5f}", flush=True)
    return model.eval()


def compare_on_renders(model: SceneRegressor, per_attribute: int, seed: int) -> dict[str, Any]:
    """Both scorers against the true level, on renders that show one attribute at a uniform level."""
    rng = np.random.default_rng(seed)
    report: dict[str, Any] = {}
    for name in ATTRIBUTES:
        levels = rng.random(per_attribute)
        pictures = [render(str(rng.choice(PLACES)), {name: x}, int(rng.integers(2**31, 2**32))) for x in levels]
        images = [torch.from_numpy(picture).permute(2, 0, 1).float() / 255 for picture in pictures]
        report[name] = {}
        for scorer in (SceneScorer(), model):
            measured = scorer.score(images, [name])
            report[name][scorer.name] = {
                "spearman": round(rank_correlation(levels, measured), 3),
                "mean_absolute_error": round(float(np.abs(levels - measured).mean()), 3),
            }
    return report


def compare_on_generated(model: SceneRegressor, folder: Path, per_grade: int, seed: int) -> dict[str, Any]:
    """Agreement of the two scorers on generated pictures, for the attribute that was asked for."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from measure_scene_diffusion import TEXT, encode_captions, held_out_captions, sample

    asked = held_out_captions(per_grade, Random(seed))
    features = encode_captions([row[0] for row in asked] + [TEXT["unconditional_caption"]])
    images = list(
        sample(
            UNet2DConditionModel.from_pretrained(folder / "unet"),
            features[: len(asked)],
            features[len(asked) :],
            [seed * 100_003 + row for row in range(len(asked))],
            TEXT["guidance_scale"],
            TEXT["num_inference_steps"],
        )
    )
    names = [row[2] for row in asked]
    levels = np.array([row[3] for row in asked])
    exact, learned = SceneScorer().score(images, names), model.score(images, names)
    report: dict[str, Any] = {"images": len(images), "attributes": {}}
    for name in ATTRIBUTES:
        rows = np.array([other == name for other in names])
        report["attributes"][name] = {
            "spearman_of_scorers": round(rank_correlation(exact[rows], learned[rows]), 3),
            "spearman_asked_exact": round(rank_correlation(levels[rows], exact[rows]), 3),
            "spearman_asked_learned": round(rank_correlation(levels[rows], learned[rows]), 3),
            "mean_absolute_difference": round(float(np.abs(exact[rows] - learned[rows]).mean()), 3),
        }
    return report


def write_card(folder: Path, metrics: dict[str, Any]) -> None:
    """`card.md`: training and the comparison of the two scorers, filled from `metrics`."""

    def cell(row: dict[str, float]) -> str:
        return f"{row['spearman']:.3f} ({row['mean_absolute_error']:.3f})"

    renders = [f"| {name} | " + " | ".join(map(cell, row.values())) + " |" for name, row in metrics["renders"].items()]
    generated = [
        f"| {name} | " + " | ".join(f"{value:.2f}" for value in row.values()) + " |"
        for name, row in metrics["generated"]["attributes"].items()
    ]
    fields = {
        **metrics,
        "renders": "\n".join(renders),
        "renders_each": RENDERS_EACH,
        "generated": "\n".join(generated),
        "generated_images": metrics["generated"]["images"],
    }
    template = (Path(__file__).parent / "scene_regressor_card.md").read_text()
    (folder / "card.md").write_text(template.format(**fields))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3000, help="optimizer updates (default %(default)s)")
    parser.add_argument("--batch-size", type=int, default=64, help="renders a step (default %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=4e-3, help="peak of one cycle (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of everything (default %(default)s)")
    parser.add_argument("--output", type=Path, default=ASSETS / "scene_regressor", help="folder of the weights")
    parser.add_argument("--diffusion", type=Path, default=ASSETS / "scene_diffusion", help="model to compare on")
    parser.add_argument("--evaluate-only", action="store_true", help="measure the weights in --output again")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    metrics_path = args.output / "metrics.json"
    if args.evaluate_only:
        model = SceneRegressor.from_folder(args.output)
        metrics = json.loads(metrics_path.read_text())
    else:
        began = time.perf_counter()
        model = train(args)
        metrics = {
            "steps": args.steps,
            "batch_size": args.batch_size,
            "learning_rate": args.learning_rate,
            "seed": args.seed,
            "train_seconds": round(time.perf_counter() - began),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
        }
        model.save(args.output)
        metrics_path.write_text(json.dumps(metrics, indent=2) + "\n")
    metrics["renders"] = compare_on_renders(model, per_attribute=RENDERS_EACH, seed=args.seed + 1)
    metrics["generated"] = compare_on_generated(model, args.diffusion, per_grade=12, seed=args.seed + 1)
    metrics_path.write_text(json.dumps(metrics, indent=2) + "\n")
    write_card(args.output, metrics)
    print(json.dumps(metrics, indent=1))


if __name__ == "__main__":
    main()
