"""Solvers of the diffusion process as tables of numbers, read off diffusers' own schedulers.

Every solver here is a linear multistep method: the next latent is a linear combination of the latent, the noise that the network
predicts, and what earlier steps left behind. So the sampling loop carries a *state* of three tensors of the latent's shape,

    latent       x, the noisy latent
    prediction   x0 = (x - sigma e) / signal of the step before: the picture that it believed in
    kept         whatever else a solver needs of its past; 0 for a solver that needs nothing

and a step is a matrix: next state = state_weights (3, 3) state + noise_weights (3) e, with e the predicted noise. Guidance is linear
too, so `guided_weights` splits the last column between the unconditional and the conditional half. One step graph, one loop in Python
and one on the page serve every solver; adding one is an entry of `config.SOLVERS` and one of `SCHEDULERS`.

For DDIM with eta 0, a and a' being the cumulative alphas at this timestep and the next, the first row is

    next = sqrt(a'/a) x + (sqrt(1 - a') - sqrt(a' (1 - a) / a)) e

Sources: DDIM, Song et al. 2021; DPM-Solver++, Lu et al. 2022; UniPC, Zhao et al. 2023; guidance in a part of the steps,
Kynkaanniemi et al. 2024.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, SchedulerMixin, UniPCMultistepScheduler
from torch import Tensor

from .. import LabError
from ..config import BETA_END, BETA_START, SOLVERS, STATE_ROWS, TRAIN_TIMESTEPS

EXACT = 1e-9  # a state that misses the scheduler's latent by more, in float64, does not describe the solver


@dataclass(frozen=True)
class Step:
    """One step of a solver: next state = state_weights state + noise_weights x predicted noise."""

    timestep: int  # 0..999
    signal: float  # sqrt(a): share of the picture in the latent at this timestep
    sigma: float  # sqrt(1 - a): share of the noise in it
    state_weights: tuple[tuple[float, ...], ...]  # (3, 3): a row for each tensor of the next state, see `STATE_ROWS`
    noise_weights: tuple[float, ...]  # (3)


_TRAINED = {
    "num_train_timesteps": TRAIN_TIMESTEPS,
    "beta_start": BETA_START,
    "beta_end": BETA_END,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
}


def ddim_scheduler() -> DDIMScheduler:
    """diffusers' scheduler with the release's settings; after the last step the cumulative alpha is 1."""
    return DDIMScheduler(**_TRAINED, clip_sample=False, set_alpha_to_one=True, steps_offset=0, timestep_spacing="leading")


SCHEDULERS: dict[str, Callable[[], SchedulerMixin]] = {
    "ddim": ddim_scheduler,
    "ddim-trailing": lambda: DPMSolverMultistepScheduler(
        **_TRAINED, algorithm_type="dpmsolver++", solver_order=1, final_sigmas_type="zero", timestep_spacing="trailing"
    ),
    "dpm++2m": lambda: DPMSolverMultistepScheduler(
        **_TRAINED, algorithm_type="dpmsolver++", solver_order=2, final_sigmas_type="zero", timestep_spacing="trailing"
    ),
    "unipc": lambda: UniPCMultistepScheduler(
        **_TRAINED, solver_order=2, final_sigmas_type="zero", timestep_spacing="trailing"
    ),
}
"""The scheduler of diffusers of each of `config.SOLVERS`, with the settings that the release's training asks for."""


def solver_steps(solver: str, steps: int, strength: float = 1.0) -> list[Step]:
    """The steps that are run: the last int(steps x strength) of a schedule of `steps`, at least one, high timesteps first.

    Args:
        solver: a name in `config.SOLVERS`.
        steps: 1..1000, length of the whole schedule.
        strength: (0, 1], the share of it that is run. The release runs none where the share is below one step.

    Raises:
        LabError: an unknown solver, a value outside its range, or fewer steps to run than the solver's order.
    """
    if solver not in SOLVERS:
        raise LabError(f"there is no solver {solver!r}; choose one of {', '.join(SOLVERS)}")
    if not 1 <= steps <= TRAIN_TIMESTEPS:
        raise LabError(f"steps must be between 1 and {TRAIN_TIMESTEPS}, not {steps}")
    if not 0 < strength <= 1:
        raise LabError(f"strength must be above 0 and at most 1, not {strength}")
    run, order = max(1, int(steps * strength)), SOLVERS[solver].order
    if run < order:
        raise LabError(
            f"{solver} needs at least {order} steps, and {run} would run: raise steps or strength, or choose ddim"
        )
    return list(_steps(solver, steps, run))


@lru_cache
def _steps(solver: str, steps: int, run: int) -> tuple[Step, ...]:
    scheduler = SCHEDULERS[solver]()
    scheduler.set_timesteps(steps)
    scheduler.timesteps = scheduler.timesteps[
        :steps
    ]  # "trailing", diffusers adds one at -1 to 62 schedules, of 61 steps first
    return tuple(read_steps(scheduler, run))


def read_steps(scheduler: SchedulerMixin, run: int) -> list[Step]:
    """Read the last `run` steps off a scheduler of diffusers whose `set_timesteps` was called.

    The scheduler runs once, on vectors of coefficients instead of tensors: the first latent and each predicted noise are unit vectors of
    one space of run + 1 dimensions. What it returns then says how every latent depends on all noises, and each step's row is solved
    from that: on latent and noise alone where that suffices, else with the previous prediction, else with `kept`, which is what the next
    latent will be apart from its own noise.

    Raises:
        LabError: the solver needs more of its past than a state holds, such as the noise of three steps before.
    """
    timesteps = scheduler.timesteps.tolist()[-run:]
    if hasattr(scheduler, "sigmas"):
        scheduler.set_begin_index(len(scheduler.timesteps) - run)
    signals, sigmas = _schedule(scheduler, timesteps)
    basis = torch.eye(run + 1, dtype=torch.float64)[:, None, None].as_subclass(_Float64)  # each (1, 1, run + 1), as a batch
    latents, predictions, kept = [basis[0]], [], [torch.zeros_like(basis[0])]
    for i, t in enumerate(timesteps):
        noise = basis[i + 1]
        predictions.append((latents[i] - sigmas[i] * noise) / signals[i])
        latents.append(scheduler.step(noise, t, latents[i]).prev_sample)
        if i > 0:
            kept.append(latents[i + 1] - latents[i + 1][..., i + 1] * noise)
    kept.append(torch.zeros_like(kept[0]))

    result, keeps = [], False
    for i in reversed(range(run)):  # whether a step has to keep something, the step after it knows
        past = [latents[i], predictions[i - 1] if i else kept[0], kept[i]]
        rows, uses_kept = [], False
        for target in (latents[i + 1], predictions[i], kept[i + 1] if keeps else kept[0] * 0):
            weights = _solve(target, basis[i + 1], past)
            uses_kept = uses_kept or weights[2] != 0
            rows.append(weights)
        keeps = uses_kept
        result.append(
            Step(
                timestep=int(timesteps[i]),
                signal=signals[i],
                sigma=sigmas[i],
                state_weights=tuple(tuple(row[:3]) for row in rows),
                noise_weights=tuple(row[3] for row in rows),
            )
        )
    return result[::-1]


def _solve(target: Tensor, noise: Tensor, past: list[Tensor]) -> list[float]:
    """Weights of latent, prediction, kept and noise whose sum is `target`, with as few of the past as will do."""
    goal = np.asarray(target).ravel()
    if not np.isfinite(goal).all():
        raise LabError("this solver's own scheduler returns numbers that are not finite: let it end at sigma_min")
    for count in range(1, len(past) + 1):
        columns = np.stack([np.asarray(vector).ravel() for vector in (*past[:count], noise)], axis=1)
        weights = np.linalg.lstsq(columns, goal, rcond=None)[0]
        if np.abs(columns @ weights - goal).max() <= EXACT * max(1.0, np.abs(goal).max()):
            return [*weights[:count].tolist(), *[0.0] * (len(past) - count), float(weights[-1])]
    raise LabError("this solver needs more of its past than latent, prediction and one more tensor: choose a lower order")


class _Float64(Tensor):
    """A float64 tensor that stays one: DPM-Solver's scheduler narrows the latent to float32 at each step."""

    def to(self, *args, **kwargs) -> Tensor:
        return self if torch.float32 in args else super().to(*args, **kwargs)


def _schedule(scheduler: SchedulerMixin, timesteps: list[int]) -> tuple[list[float], list[float]]:
    """signal and sigma at each timestep, float64; the scheduler's own copy is widened to them, which it holds in float32."""
    alphas = scheduler.alphas_cumprod.double()
    at = [float(alphas[int(t)]) for t in timesteps]
    if hasattr(scheduler, "sigmas"):
        ends_at = [1.0 if scheduler.sigmas[-1] == 0 else float(alphas[0])]
        every = [float(alphas[int(t)]) for t in scheduler.timesteps] + ends_at
        scheduler.sigmas = torch.tensor([math.sqrt((1 - a) / a) for a in every], dtype=torch.float64)
    else:
        scheduler.alphas_cumprod, scheduler.final_alpha_cumprod = alphas, scheduler.final_alpha_cumprod.double()
    return [math.sqrt(a) for a in at], [math.sqrt(1 - a) for a in at]


def guided_weights(step: Step, guidance: float) -> list[list[float]]:
    """The columns of a step's matrix for the noise of each half, (3, n): guided, n = 2, unconditional half first; 1 where guidance is 1.

    With guidance g the noise is u + g (c - u) = (1 - g) u + g c, so a row's weight w becomes w (1 - g) and w g.
    """
    if guidance == 1:
        return [[weight] for weight in step.noise_weights]
    return [[weight * (1 - guidance), weight * guidance] for weight in step.noise_weights]


def next_state(state: Tensor, noise: Tensor, state_weights: Tensor, noise_weights: Tensor) -> Tensor:
    """One step: state (3, 4, s, s), noise (n, 4, s, s), weights (3, 3) and (3, n) -> the next state (3, 4, s, s)."""
    of_state = (state_weights[:, :, None, None, None] * state).sum(dim=1)
    return of_state + (noise_weights[:, :, None, None, None] * noise).sum(dim=1)


def first_state(latent: Tensor) -> Tensor:
    """The state before the first step: latent (1, 4, s, s) and two tensors of zeros -> (3, 4, s, s)."""
    return torch.cat([latent, *[torch.zeros_like(latent)] * (len(STATE_ROWS) - 1)])


def alphas_cumprod() -> Tensor:
    """(1000,) float64: the cumulative product of 1 - beta on the "scaled_linear" schedule."""
    betas = torch.linspace(BETA_START**0.5, BETA_END**0.5, TRAIN_TIMESTEPS, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0)
