"""How a picture becomes noise, and what a denoiser learns of it: by diffusion, or along straight lines.

Both processes mix a picture x_0 with noise at T levels, from little noise (index 0) to much:

    x_t = a_t x_0 + s_t eps,   eps ~ N(0, 1).

Diffusion (Ho et al., 2020) has a_t^2 + s_t^2 = 1, rectified flow (Liu et al., 2022; Esser et al., 2024) a_t = 1 - s_t.
The bound of equation 17 is one and the same. Between neighbouring levels the mixing is Gaussian, with variance

    b_t = s_t^2 - (a_t / a_{t-1})^2 s_{t-1}^2          (a_0 = 1, s_0 = 0 before the first level),

and the mean of x_{t-1} given x_t and x_0 has x_0 with the coefficient a_{t-1} b_t / s_t^2. A reverse step that puts the
denoiser's guess in the place of x_0, and has the variance b_t, differs from the true one by the Gaussian divergence

    KL_t = (a_{t-1} b_t / s_t^2)^2 |x_0 - guess|^2 / (2 b_t) = a_{t-1}^2 b_t / (2 s_t^4) |x_0 - guess|^2.

The sum over t bounds -log p(x_0) up to a constant (the first level's term included, as in Ho et al., eq. 8), and a
difference of two such sums the log-ratio. What is left is how the guess comes from what the denoiser predicts:

    noise eps            guess = (x_t - s_t eps) / a_t       |x_0 - guess|^2 = (s_t / a_t)^2 |error|^2
    v = a eps - s x_0    guess = a_t x_t - s_t v             |x_0 - guess|^2 = s_t^2 |error|^2   (diffusion)
    v = eps - x_0        guess = x_t - s_t v                 |x_0 - guess|^2 = s_t^2 |error|^2   (flow)

So for a velocity, of either kind, the weight is w_t = a_{t-1}^2 b_t / (2 s_t^2). For many levels of a flow, the sum
goes to the integral of (1 - s) / s |error|^2 over s in [0, 1], which is half the change of the log signal-to-noise
ratio on the error in noise (Kingma et al., 2021).
"""

import copy
from typing import Any, Protocol

import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from sysdpo.errors import SettingError


class NoiseProcess(Protocol):
    scheduler: Any

    @property
    def steps(self) -> int:
        """T, the number of levels."""
        ...

    def noisy(self, latents: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """x_t of N latents at levels t [N]."""
        ...

    def target(self, latents: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """What the denoiser should predict there."""
        ...

    def times(self, t: Tensor) -> Tensor:
        """What the denoiser is told of levels t [N]."""
        ...

    def kl_weights(self) -> Tensor:
        """w_t that makes each squared error a Gaussian divergence: [T], fp64."""
        ...

    def path(self, steps: int, sigmas: Any = None) -> Any:
        """A scheduler of its own, ready to go from noise to a picture in that many steps."""
        ...

    def start(self, noise: Tensor, path: Any) -> Tensor:
        """Where a path begins, made of standard noise."""
        ...

    def seen(self, latents: Tensor, t: Tensor, path: Any) -> Tensor:
        """What the denoiser is shown of the latents on a path."""
        ...


def noise_process(scheduler: Any, tokens: int) -> NoiseProcess:
    """The process that a diffusers scheduler describes.

    Args:
        tokens: of a picture in a transformer, on which some flows' shift depends.
    """
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        return RectifiedFlow(scheduler, tokens)
    return Diffusing(scheduler)


class Diffusing:
    """Variance-preserving diffusion, whose denoiser predicts the noise or the velocity v."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler
        self.prediction_type = str(scheduler.config.prediction_type)
        if self.prediction_type not in ("epsilon", "v_prediction"):
            raise SettingError(f"prediction_type={self.prediction_type!r}: only epsilon and v_prediction are known.")

    @property
    def steps(self) -> int:
        return int(self.scheduler.config.num_train_timesteps)

    def noisy(self, latents: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        found: Tensor = self.scheduler.add_noise(latents, eps, t)
        return found

    def target(self, latents: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        if self.prediction_type == "epsilon":
            return eps
        velocity: Tensor = self.scheduler.get_velocity(latents, eps, t)
        return velocity

    def times(self, t: Tensor) -> Tensor:
        return t

    def kl_weights(self) -> Tensor:
        signal = self.scheduler.alphas_cumprod.double()
        weights = _on_velocity(signal.sqrt(), (1 - signal).sqrt())
        return weights if self.prediction_type == "v_prediction" else weights / signal  # error in v: a_t times that

    def path(self, steps: int, sigmas: Any = None) -> Any:
        scheduler = copy.deepcopy(self.scheduler)  # some remember their last steps
        scheduler.set_timesteps(steps)
        return scheduler

    def start(self, noise: Tensor, path: Any) -> Tensor:
        begin: Tensor = noise * path.init_noise_sigma
        return begin

    def seen(self, latents: Tensor, t: Tensor, path: Any) -> Tensor:
        scaled: Tensor = path.scale_model_input(latents, t)
        return scaled


class RectifiedFlow:
    """Straight lines from pictures to noise, whose denoiser predicts the velocity eps - x_0.

    The levels are the scheduler's, its shift included: for larger pictures it puts more of them where there is much
    noise (Esser et al., 2024, eq. 23). Levels are drawn evenly by their number, so the shift decides which are trained.
    """

    def __init__(self, scheduler: FlowMatchEulerDiscreteScheduler, tokens: int) -> None:
        self.scheduler: Any = scheduler
        config: Any = self.scheduler.config
        if config.invert_sigmas or config.shift_terminal or config.stochastic_sampling:
            raise SettingError(
                "scheduler: a flow with invert_sigmas, shift_terminal or stochastic_sampling is not known."
            )
        slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
        self.shift = config.base_shift + slope * (tokens - config.base_image_seq_len)  # of dynamic shifting
        even = torch.arange(1, self.steps + 1, dtype=torch.float64) / self.steps
        if config.use_dynamic_shifting:
            self.sigmas: Tensor = self.scheduler.time_shift(self.shift, 1.0, even)
        else:
            self.sigmas = config.shift * even / (1 + (config.shift - 1) * even)

    @property
    def steps(self) -> int:
        return int(self.scheduler.config.num_train_timesteps)

    def noisy(self, latents: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        sigma = self._at(t).view(-1, 1, 1, 1)
        return (1 - sigma) * latents + sigma * eps

    def target(self, latents: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        return eps - latents

    def times(self, t: Tensor) -> Tensor:
        return self._at(t) * self.steps

    def kl_weights(self) -> Tensor:
        return _on_velocity(1 - self.sigmas, self.sigmas)

    def path(self, steps: int, sigmas: Any = None) -> Any:
        scheduler = copy.deepcopy(self.scheduler)
        given = {} if sigmas is None else {"sigmas": sigmas}
        shift = {"mu": self.shift} if scheduler.config.use_dynamic_shifting else {}
        scheduler.set_timesteps(steps, **given, **shift)
        return scheduler

    def start(self, noise: Tensor, path: Any) -> Tensor:
        return noise

    def seen(self, latents: Tensor, t: Tensor, path: Any) -> Tensor:
        return latents

    def _at(self, t: Tensor) -> Tensor:
        return self.sigmas.float().to(t.device)[t]


def _on_velocity(signal: Tensor, noise: Tensor) -> Tensor:
    """w_t on a squared error in velocity, from a_t and s_t: [T]."""
    before, noise_before = torch.cat([signal.new_ones(1), signal[:-1]]), torch.cat([noise.new_zeros(1), noise[:-1]])
    variance = noise**2 - (signal / before) ** 2 * noise_before**2
    return before**2 * variance / (2 * noise**2)
