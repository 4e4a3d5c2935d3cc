"""What the makers of the scene models share: an update of a denoiser, numbers by attribute, contact sheet, table."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from sysdpo.tasks.progression.scenes import ATTRIBUTES, GRADES, grade_center
from sysdpo.tasks.progression.scorers.scene import rank_correlation

SHEET_PLACES = ("beach", "city street", "forest")
SHEET_WORDS = ("no", "a little", "some", "heavy", "extremely heavy")


class Denoising:
    """AdamW on the squared error of the velocity, at one timestep from each of B equal strata; weights averaged.

    Args:
        average: a copy of `model` that takes the averaged weights.
        rate: update -> share of the learning rate.
        ema: the average's decay, which the first updates approach.
    """

    def __init__(
        self,
        model: nn.Module,
        average: nn.Module,
        scheduler: DDIMScheduler,
        learning_rate: float,
        rate: Callable[[int], float],
        ema: float,
    ) -> None:
        self.model, self.average, self.scheduler, self.ema = model, average, scheduler, ema
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, rate)

    def update(self, step: int, predict: Callable[[Tensor, Tensor], Tensor], clean: Tensor, seed: int) -> float:
        """One update on latents [B, C, h, w]; `predict`: (noisy, timesteps [B]) -> velocity. Returns the loss."""
        source = torch.Generator().manual_seed(seed * 1_000_003 + step)
        noise = torch.randn(clean.shape, generator=source)
        # one t from each of B equal strata: the same uniform law, less variance
        strata = (torch.arange(len(clean)) + torch.rand(len(clean), generator=source)) / len(clean)
        t = (strata * self.scheduler.config["num_train_timesteps"]).long()
        predicted = predict(self.scheduler.add_noise(clean, noise, t), t)
        loss = F.mse_loss(predicted, self.scheduler.get_velocity(clean, noise, t))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.step()
        decay = min(self.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - decay)
        return loss.item()

    def state(self) -> dict[str, Any]:
        parts = ("model", "average", "optimizer", "schedule")
        return {name: getattr(self, name).state_dict() for name in parts}

    def restore(self, state: Mapping[str, Any]) -> None:
        for name in ("model", "average", "optimizer", "schedule"):
            getattr(self, name).load_state_dict(state[name])


def by_attribute(names: Sequence[str], asked: np.ndarray, found: np.ndarray) -> dict[str, dict[str, Any]]:
    """Asked against measured levels [N] of each attribute: rank correlation, slope, error, mean level by grade."""
    figures = {}
    for name in ATTRIBUTES:
        rows = np.array([other == name for other in names])
        figures[name] = {
            "spearman": round(rank_correlation(asked[rows], found[rows]), 3),
            "slope": round(float(np.polyfit(asked[rows], found[rows], 1)[0]), 3),
            "mean_absolute_error": round(float(np.abs(asked[rows] - found[rows]).mean()), 3),
            "mean_measured_by_asked": {
                f"{grade_center(grade):g}": round(float(found[rows & (asked == grade_center(grade))].mean()), 3)
                for grade in GRADES
            },
        }
    return figures


def sheet_captions(worded: Callable[[str, str, str], str]) -> tuple[list[str], list[int]]:
    """Captions and seeds of a contact sheet; `worded`: (place, attribute, word of quantity) -> caption."""
    texts = [worded(p, a, word) for a in ATTRIBUTES for p in SHEET_PLACES for word in SHEET_WORDS]
    return texts, [seed for _ in ATTRIBUTES for seed in range(len(SHEET_PLACES)) for _ in SHEET_WORDS]


def save_sheet(images: Tensor, path: Path) -> None:
    """Rows: attributes; columns: the five grades, for three places side by side; images [N, 3, 32, 32] in [0, 1]."""
    pixels = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    across = len(SHEET_PLACES) * len(SHEET_WORDS)
    sheet = np.full((len(ATTRIBUTES) * 34, across * 34 + 8 * (len(SHEET_PLACES) - 1), 3), 255, dtype=np.uint8)
    for number, picture in enumerate(pixels):
        row, column = divmod(number, across)
        left = column * 34 + 8 * (column // len(SHEET_WORDS))
        sheet[row * 34 : row * 34 + 32, left : left + 32] = picture
    image = Image.fromarray(sheet)
    image.resize((image.width * 2, image.height * 2), Image.Resampling.NEAREST).save(path, optimize=True)


def card_table(attributes: Mapping[str, Mapping[str, Any]], columns: Sequence[str]) -> dict[str, str]:
    """Fields of a card: the heading of the grades, the rule under it, and a row an attribute, `columns` first."""
    rows = []
    for name, row in attributes.items():
        numbers = [*(row[column] for column in columns), *row["mean_measured_by_asked"].values()]
        rows.append(f"| {name} | " + " | ".join(f"{number:.2f}" for number in numbers) + " |")
    return {
        "asked": " | ".join(f"asked {grade_center(grade):.2f} ({grade})" for grade in GRADES),
        "rule": "|---" * (len(GRADES) + 1 + len(columns)) + "|",
        "rows": "\n".join(rows),
    }
