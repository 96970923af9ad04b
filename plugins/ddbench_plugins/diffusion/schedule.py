"""The noise of a diffusion model by its step, and the deterministic walk of DDIM along it, in both directions."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Annotated, Any, Literal

import msgspec
import torch
from msgspec import Meta
from torch import Tensor

from ddbench.errors import ConfigError, DataError

Beta = Annotated[float, Meta(gt=0, lt=1)]
Noise = Callable[[Tensor, int], Tensor]
"""(x_t [B,C,h,w], t) -> the noise in it, as a model predicts it."""


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """What scheduler_config.json says of the noise that a model was trained with, whatever scheduler it is of; and the walk."""

    num_train_timesteps: Annotated[int, Meta(ge=1, le=100_000)] = 1000
    beta_start: Beta = 0.0001
    beta_end: Beta = 0.02
    beta_schedule: Literal["linear", "scaled_linear"] = "linear"
    prediction_type: Literal["epsilon"] = "epsilon"
    trained_betas: None = None
    rescale_betas_zero_snr: bool = False
    steps_offset: Annotated[int, Meta(ge=0, le=1000)] = 0
    set_alpha_to_one: bool = True

    def alphas(self) -> Tensor:
        """The share of the signal in x_t, the running product of 1 - beta: [T] float64."""
        power = 1.0 if self.beta_schedule == "linear" else 0.5
        first, last = self.beta_start**power, self.beta_end**power
        return (1 - torch.linspace(first, last, self.num_train_timesteps, dtype=torch.float64) ** (1 / power)).cumprod(0)

    def times(self, steps: int) -> list[int]:
        """The steps of the model that a walk of so many visits, from noise to the image. Raises ConfigError for too many."""
        if not 1 <= steps <= self.num_train_timesteps - self.steps_offset:
            most = self.num_train_timesteps - self.steps_offset
            raise ConfigError(f"'steps' must lie in 1..{most}, the steps that the model was trained with, got {steps}.")
        stride = self.num_train_timesteps // steps
        return [min(number * stride + self.steps_offset, self.num_train_timesteps - 1) for number in reversed(range(steps))]

    def _share(self, time: int) -> float:
        """Of the signal at a step; before the first there is no noise, or as much as in the first."""
        alphas = self.alphas()
        return float(alphas[time]) if time >= 0 else 1.0 if self.set_alpha_to_one else float(alphas[0])

    def noised(self, x: Tensor, noise: Tensor, time: int) -> Tensor:
        """x_t of x_0: sqrt(a) x + sqrt(1 - a) noise."""
        share = self._share(time)
        return share**0.5 * x + (1 - share) ** 0.5 * noise

    def moved(self, x: Tensor, noise: Tensor, start: int, stop: int) -> Tensor:
        """x at the step `stop` of x at `start`, where that noise is in it: DDIM with eta 0, in either direction."""
        now, then = self._share(start), self._share(stop)
        clean = (x - (1 - now) ** 0.5 * noise) / now**0.5
        return then**0.5 * clean + (1 - then) ** 0.5 * noise

    def denoised(self, x: Tensor, noise: Noise, steps: int, left: int) -> Tensor:
        """From x at the beginning of the last `left` steps of a walk to x_0."""
        stride = self.num_train_timesteps // steps
        for time in self.times(steps)[steps - left :]:
            x = self.moved(x, noise(x, time), time, time - stride)
        return x

    def inverted(self, x: Tensor, noise: Noise, steps: int, levels: int) -> Tensor:
        """From x_0 to where the last `levels` + 1 steps of a walk begin; each step with the noise that the model sees at its end.

        x_0 counts as x at the walk's last step, as D3HR's code has it.
        """
        for start, stop in pairwise(self.times(steps)[::-1][: levels + 1]):
            x = self.moved(x, noise(x, stop), start, stop)
        return x


def read_schedule(content: bytes, name: str) -> Schedule:
    """From JSON; `name` is what messages call it. What decides other schedulers than this one does not count. Raises DataError,
    one sentence, for noise of another kind."""
    try:
        schedule = msgspec.convert(msgspec.json.decode(content, type=dict[str, Any]), Schedule)
        if schedule.rescale_betas_zero_snr:
            raise ValueError("'rescale_betas_zero_snr' must be off")
        return schedule
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise DataError(f"'{name}' does not describe noise that is known here: {' '.join(str(error).split())}.") from error
