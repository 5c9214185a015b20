"""DDIM as the release runs it (eta 0, epsilon prediction, "leading" spacing), on diffusers' scheduler.

With eta 0 a step is linear in the latent and the predicted noise, so two numbers say all of it:

    x0   = (x - sqrt(1 - a) e) / sqrt(a)
    next = sqrt(a') x0 + sqrt(1 - a') e
         = sqrt(a'/a) x + (sqrt(1 - a') - sqrt(a' (1 - a) / a)) e

with a, a' the cumulative alphas at this timestep and the next. The page and the exported step graph use the same two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from .. import LabError
from ..config import BETA_END, BETA_START, TRAIN_TIMESTEPS


@dataclass(frozen=True)
class Step:
    """One DDIM step: next latent = latent_scale x latent + noise_scale x predicted noise."""

    timestep: int  # 0..999
    signal: float  # sqrt(a): share of the picture in the latent at this timestep
    sigma: float  # sqrt(1 - a): share of the noise in it
    latent_scale: float
    noise_scale: float


def guided_update(latents: Tensor, noise: Tensor, guidance: Tensor | float, latent_scale, noise_scale) -> Tensor:
    """The next latents (1, 4, s, s), from the noise (2, 4, s, s) of both guided halves, unconditional first."""
    u, c = noise.split(1)
    return latent_scale * latents + noise_scale * (u + guidance * (c - u))


def scheduler() -> DDIMScheduler:
    """diffusers' scheduler with the release's settings; after the last step the cumulative alpha is 1."""
    return DDIMScheduler(
        num_train_timesteps=TRAIN_TIMESTEPS, beta_start=BETA_START, beta_end=BETA_END, beta_schedule="scaled_linear",
        clip_sample=False, set_alpha_to_one=True, steps_offset=0, timestep_spacing="leading", prediction_type="epsilon",
    )  # fmt: skip


def ddim_steps(steps: int, strength: float) -> list[Step]:
    """The steps that are run: the last int(steps x strength) of a schedule of `steps`, at least one, high timesteps first.

    Args:
        steps: 1..1000, length of the whole schedule.
        strength: (0, 1], the share of it that is run. The release runs none where the share is below one step.

    Raises:
        LabError: a value outside its range.
    """
    if not 1 <= steps <= TRAIN_TIMESTEPS:
        raise LabError(f"steps must be between 1 and {TRAIN_TIMESTEPS}, not {steps}")
    if not 0 < strength <= 1:
        raise LabError(f"strength must be above 0 and at most 1, not {strength}")
    run = max(1, int(steps * strength))
    schedule = scheduler()
    schedule.set_timesteps(steps)
    alphas = schedule.alphas_cumprod.double()
    timesteps = schedule.timesteps.tolist()[steps - run :]
    result = []
    for t, following in zip(timesteps, timesteps[1:] + [None]):
        a = float(alphas[t])
        a_next = 1.0 if following is None else float(alphas[following])
        result.append(
            Step(
                timestep=t,
                signal=math.sqrt(a),
                sigma=math.sqrt(1 - a),
                latent_scale=math.sqrt(a_next / a),
                noise_scale=math.sqrt(1 - a_next) - math.sqrt(a_next * (1 - a) / a),
            )
        )
    return result


def alphas_cumprod() -> Tensor:
    """(1000,) float64: the cumulative product of 1 - beta on the "scaled_linear" schedule."""
    betas = torch.linspace(BETA_START**0.5, BETA_END**0.5, TRAIN_TIMESTEPS, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0)
