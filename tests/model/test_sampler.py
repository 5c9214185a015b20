import diffusers
import numpy as np
import pytest
import torch

from moebius_lab import LabError
from moebius_lab.inpainting.loop import Settings
from moebius_lab.model import sampler
from moebius_lab.model.sampler import SCHEDULERS, first_state, guided_weights, next_state, read_steps, solver_steps

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")
TRAILING = {**sampler._TRAINED, "timestep_spacing": "trailing"}
OTHERS = {
    "DPM-Solver++, order 3": lambda: diffusers.DPMSolverMultistepScheduler(**TRAILING, solver_order=3),
    "DPM-Solver++, leading": lambda: diffusers.DPMSolverMultistepScheduler(**sampler._TRAINED, timestep_spacing="leading"),
    "UniPC, order 1": lambda: diffusers.UniPCMultistepScheduler(**TRAILING, solver_order=1),
    "UniPC, to sigma_min": lambda: diffusers.UniPCMultistepScheduler(**TRAILING, final_sigmas_type="sigma_min"),
}


def run_theirs(make, count, run, x, noises):
    """The latents that diffusers' own scheduler goes through, in float64."""
    scheduler = make()
    scheduler.set_timesteps(count)
    timesteps = scheduler.timesteps.tolist()[-run:]
    sampler._schedule(scheduler, timesteps)
    if hasattr(scheduler, "sigmas"):
        scheduler.set_begin_index(count - run)
    seen = []
    for t, noise in zip(timesteps, noises):
        x = scheduler.step(noise.as_subclass(sampler._Float64), t, x.as_subclass(sampler._Float64)).prev_sample
        seen.append(x.as_subclass(torch.Tensor))
    return timesteps, seen


@pytest.mark.parametrize("count, run", [(2, 2), (6, 6), (20, 19), (50, 10)])
@pytest.mark.parametrize("name", [*SCHEDULERS, *OTHERS])
def test_a_table_is_diffusers_scheduler_in_float64(name, count, run):
    make = OTHERS[name] if name in OTHERS else SCHEDULERS[name]
    generator = torch.Generator().manual_seed(0)
    x, *noises = torch.randn(run + 1, 1, 4, 8, 8, generator=generator, dtype=torch.float64)
    timesteps, theirs = run_theirs(make, count, run, x, noises)
    scheduler = make()
    scheduler.set_timesteps(count)
    steps = read_steps(scheduler, run)
    assert [step.timestep for step in steps] == timesteps
    state = first_state(x)
    for step, noise, latent in zip(steps, noises, theirs):
        before = state[:1]
        weights = (
            torch.tensor(step.state_weights, dtype=torch.float64),
            torch.tensor(step.noise_weights, dtype=torch.float64),
        )
        state = next_state(state, noise, weights[0], weights[1][:, None])
        torch.testing.assert_close(state[:1], latent, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(state[1:2], (before - step.sigma * noise) / step.signal, rtol=1e-9, atol=1e-9)


def test_of_its_past_a_solver_reads_no_more_than_it_needs():
    ddim, dpm, unipc = (solver_steps(name, 6) for name in ("ddim", "dpm++2m", "unipc"))
    assert all(step.state_weights[0][1:] == (0, 0) for step in ddim)
    assert all(step.state_weights[0][2] == 0 and step.state_weights[2] == (0, 0, 0) for step in dpm)
    assert [step.state_weights[0][1] != 0 for step in dpm] == [False, True, True, True, True, False]
    assert any(step.state_weights[0][2] != 0 for step in unipc)
    for steps in (ddim, dpm, unipc):
        assert steps[0].state_weights[0][1:] == (0, 0)  # there is no past yet
        last = steps[-1]
        np.testing.assert_allclose(last.state_weights[0], last.state_weights[1])  # nothing is left of the noise


def test_a_solver_that_needs_more_of_its_past_is_refused():
    endless = diffusers.UniPCMultistepScheduler(**TRAILING, solver_type="bh1")
    endless.set_timesteps(8)
    with pytest.raises(LabError, match="not finite: let it end at sigma_min"):
        read_steps(endless, 8)
    lms = diffusers.PNDMScheduler(**sampler._TRAINED, skip_prk_steps=True)
    lms.set_timesteps(8)
    with pytest.raises(LabError, match="needs more of its past"):
        read_steps(lms, len(lms.timesteps))


def test_the_release_runs_19_of_20_steps_from_900():
    steps = Settings().schedule()
    assert [step.timestep for step in steps] == list(range(900, -1, -50))
    assert steps[0].signal == pytest.approx(0.12, abs=0.005)
    assert steps[-1].noise_weights[0] == pytest.approx(-steps[-1].sigma / steps[-1].signal)


def test_few_steps_start_from_pure_noise():
    assert [step.timestep for step in solver_steps("dpm++2m", 6)] == [999, 832, 666, 499, 332, 166]


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_schedule_has_as_many_steps_as_asked_for_down_from_its_first(name):
    for count in (61, 103, 457):  # to which diffusers' own arithmetic adds a timestep of -1
        timesteps = [step.timestep for step in solver_steps(name, count)]
        assert len(timesteps) == count and timesteps == sorted(set(timesteps), reverse=True) and timesteps[-1] >= 0


def test_at_least_one_step_is_run():
    assert solver_steps("ddim", 1, Settings().strength) == solver_steps("ddim", 1)
    assert len(solver_steps("ddim", 10, 0.01)) == 1


def test_guidance_is_in_the_weights():
    step = solver_steps("dpm++2m", 6)[2]
    u, c = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    state = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    own = torch.tensor(step.state_weights)
    for guidance in (0.0, 1.0, 2.0, 7.5):
        guided = next_state(state, u + guidance * (c - u), own, torch.tensor(step.noise_weights)[:, None])
        noise = c if guidance == 1 else torch.cat([u, c])
        got = next_state(state, noise, own, torch.tensor(guided_weights(step, guidance)))
        torch.testing.assert_close(got, guided, rtol=1e-5, atol=1e-4)
