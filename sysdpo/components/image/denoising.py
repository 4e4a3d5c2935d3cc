"""How the bound on a diffusion model's log-ratio is estimated (eq. 15 to 17), and what is watched while it is."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sysdpo.components.image.noise import NoiseProcess
from sysdpo.errors import SettingError
from sysdpo.limits import check_fields
from sysdpo.losses import Reduction

Weighting = Literal["uniform", "exact"]
BINS = 4


@dataclass(frozen=True)
class Bound:
    """The estimate T * w_t * (reference error - policy error), averaged over draws of (t, noise).

    Args:
        num_timesteps: T; None takes the scheduler's number of training steps.
        strength: fixes beta * T at this number instead, as implementations of Diffusion-DPO do (2500 on a mean).
        beta: the loss's, needed by `strength` and `describe` only.
        reduction: of squared errors over C, h, w. The paper's norm is `sum`; beta must fit: see `describe`.
        weighting: `uniform`: w_t = 1 on the error of what the denoiser predicts (Wallace et al., 2023; of a flow's
            velocity, Liu et al., 2025). `exact`: the weight that makes each term a difference of Gaussian KLs, with
            the forward step's variance in the reverse process (`noise`); exact with reduction=sum.
        draws: draws of (t, noise) an image and update.
    """

    num_timesteps: int | None = None
    strength: float | None = None
    beta: float | None = None
    reduction: Reduction = "mean"
    weighting: Weighting = "uniform"
    draws: int = 1

    def __post_init__(self) -> None:
        check_fields(self, "bound.")
        if self.strength is not None and (self.num_timesteps is not None or not self.beta):
            raise SettingError("bound.strength fixes beta * T: set bound.beta with it and leave num_timesteps null.")

    def timesteps(self, training_steps: int) -> int:
        """T of equation 17; `strength` has it in its weight."""
        if self.strength is not None:
            return 1
        return self.num_timesteps if self.num_timesteps is not None else training_steps

    def weight(self, process: NoiseProcess, t: Tensor) -> Tensor:
        """w_t for levels t [N]: [N], fp32."""
        scale = self.strength / self.beta if self.strength is not None and self.beta else 1.0
        if self.weighting == "uniform":
            return torch.full(t.shape, scale, device=t.device)
        return (scale * process.kl_weights()).float().to(t.device)[t]

    def describe(self, training_steps: int, latent_shape: tuple[int, int, int], mean_weight: float = 1.0) -> str:
        """The coefficient that the errors meet in the loss, in both of the ways in which it is quoted.

        mean_weight: of `weight` over the steps.
        """
        size = latent_shape[0] * latent_shape[1] * latent_shape[2]
        steps = self.timesteps(training_steps)
        if self.beta is None:
            return f"denoising bound: T = {steps} on the {self.reduction}, weighting {self.weighting}"
        total = self.beta * steps * mean_weight
        on_mean, on_sum = (total, total / size) if self.reduction == "mean" else (total * size, total)
        factors = "beta x T" if self.weighting == "uniform" else "beta x T x w_t, averaged over t,"
        return (
            f"denoising bound: {factors} = {on_mean:.4g} on the mean squared error of {size} elements "
            f"({on_sum:.4g} on their sum), weighting {self.weighting}"
        )


def mean_by_name(
    seeds: Sequence[int], t: Tensor, policy: Tensor, reference: Tensor, training_steps: int
) -> Iterator[tuple[str, float]]:
    """What to watch of a batch of B images with D draws each: t, policy and reference mean squared errors [B, D].

    Images with one seed were compared, the first half of them preferred (a pair that is there twice: four). A loss over
    random t hides progress, so errors are reported for each side against the reference, and the share of right
    comparisons for each quarter of the steps.
    """
    half = {seed: (times + 1) // 2 for seed, times in Counter(seeds).items()}
    rows: dict[int, list[int]] = {seed: [] for seed in half}
    for row, seed in enumerate(seeds):
        rows[seed].append(row)
        place = len(rows[seed]) - 1 - half[seed]
        side = "chosen" if place < 0 else "rejected"
        yield f"denoising_error/{side}", float(policy[row].mean())
        yield f"denoising_error/{side}_reference", float(reference[row].mean())
        if side == "chosen":
            continue
        gain = reference - policy
        for draw, step in enumerate(t[row].tolist()):
            low = step * BINS // training_steps * training_steps // BINS
            better = gain[rows[seed][place], draw] > gain[row, draw]
            yield f"accuracy/t{low:04d}", float(better)
