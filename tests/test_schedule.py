"""Noise schedules and solvers, against what the published code computes."""

import json

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from wan_animate.wan.schedule import make_solver, plan_schedule

from .seeded import DATA, GOLDEN

ROUNDING = 1e-6  # of latents up to 4: torch 2.13 gives the published bits, 2.14 rounds log and exp otherwise
CASES = json.loads((DATA / "schedules.json").read_text())


def replay(solver, steps, shift, trace) -> list[np.ndarray]:
    """Latents after each step, when the model says what it said in the trace."""
    schedule = plan_schedule(solver, steps=steps, shift=shift)
    stepper = make_solver(schedule)
    latents, seen = torch.from_numpy(trace["noise"]), []
    for timestep, output in zip(stepper.timesteps, torch.from_numpy(trace["model_outputs"]), strict=True):
        latents = stepper.step(output, timestep, latents, return_dict=False)[0]
        seen.append(latents.numpy())
    return seen


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['solver']}-{case['steps']}-{case['shift']}")
def test_sigmas_and_timesteps_are_the_published_ones_exactly(case):
    schedule = plan_schedule(case["solver"], steps=case["steps"], shift=case["shift"])
    np.testing.assert_array_equal(schedule.sigmas, np.array(case["sigmas"], np.float32))
    np.testing.assert_array_equal(schedule.timesteps, case["timesteps"])
    assert schedule.sigmas.dtype == np.float32


@pytest.mark.parametrize("solver", ["dpm++", "unipc"])
@pytest.mark.parametrize(("steps", "shift"), [(4, 5.0), (10, 3.0)])
def test_every_step_is_the_published_one(solver, steps, shift):
    prefix = f"{solver.replace('+', 'p')}_{steps}_{shift}_"
    recorded = np.load(DATA / "traces.npz")
    trace = {name.removeprefix(prefix): recorded[name] for name in recorded if name.startswith(prefix)}
    np.testing.assert_allclose(replay(solver, steps, shift, trace), trace["latents"], rtol=0, atol=ROUNDING)


@pytest.mark.parametrize(
    "path", sorted(GOLDEN.glob("pipeline/schedules/trace_*.npz")), ids=lambda path: path.stem
)
def test_all_recorded_traces_are_replayed(path):
    _, name, steps, shift = path.stem.split("_")
    trace = np.load(path)
    solver = "dpm++" if name == "dpmpp" else "unipc"
    ours = replay(solver, int(steps), float(shift), trace)
    np.testing.assert_allclose(ours, trace["latents"], rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("solver", ["dpm++", "unipc"])
@pytest.mark.parametrize(("steps", "shift"), [(1, 5.0), (2, 5.0), (100, 10.0), (100, 1.0)])
def test_a_perfect_model_is_followed_to_the_clean_latents(solver, steps, shift):
    """With the velocity that leads straight from noise to the target, any solver ends at the target."""
    generator = torch.Generator().manual_seed(0)
    noise, target = torch.randn(2, 1, 4, 2, 4, 4, generator=generator)
    stepper = make_solver(plan_schedule(solver, steps=steps, shift=shift))
    latents = noise
    for timestep in stepper.timesteps:
        latents = stepper.step(noise - target, timestep, latents, return_dict=False)[0]
    # unipc starts just below sigma 1, as published: it misses by up to 2e-4 of the noise.
    torch.testing.assert_close(latents, target, atol=5e-3 if solver == "unipc" else 1e-4, rtol=0)


def test_timesteps_that_repeat_by_truncation_do_not_confuse_the_solver():
    schedule = plan_schedule("dpm++", steps=100, shift=50.0)
    assert len(set(schedule.timesteps.tolist())) < len(schedule.timesteps)
    stepper = make_solver(schedule)
    latents = torch.zeros(1)
    for timestep in stepper.timesteps:
        latents = stepper.step(torch.zeros(1), timestep, latents, return_dict=False)[0]
    assert stepper.step_index == 100


@pytest.mark.parametrize(("steps", "shift"), [(1, 5.0), (2, 5.0), (4, 5.0), (30, 7.0)])
def test_unipc_on_the_host_is_diffusers_to_the_bit(steps, shift):
    schedule = plan_schedule("unipc", steps=steps, shift=shift)
    ours = make_solver(schedule)
    theirs = UniPCMultistepScheduler(solver_order=2, prediction_type="flow_prediction", use_flow_sigmas=True)
    theirs.num_inference_steps, theirs.sigmas, theirs.timesteps = steps, ours.sigmas, ours.timesteps
    theirs.set_begin_index(0)
    generator = torch.Generator().manual_seed(0)
    latents = [torch.randn(1, 4, 2, 4, 4, generator=generator)] * 2
    for timestep in ours.timesteps:
        said = torch.randn(1, 4, 2, 4, 4, generator=generator)
        latents = [
            solver.step(said, timestep, one, return_dict=False)[0]
            for solver, one in zip((ours, theirs), latents, strict=True)
        ]
        assert torch.equal(*latents)
