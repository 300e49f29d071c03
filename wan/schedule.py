"""Noise schedules: solver, steps and shift in; sigmas, timesteps and a fresh solver out.

The numbers are those of the published model, not of diffusers' own flow schedules, which differ from them by
up to 5e-3. The solvers are diffusers', given these numbers: their steps are the published ones, to rounding.
"euler" is for distilled models: at 4 steps and shift 5 its levels are those that lightx2v's LoRA was trained
at (steps 1000, 750, 500, 250 shifted: 1000, 937.5, 833.3, 625), which are not truncated there.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

Solver = Literal["dpm++", "unipc", "euler"]
AnySolver = DPMSolverMultistepScheduler | UniPCMultistepScheduler | FlowMatchEulerDiscreteScheduler

TRAIN_TIMESTEPS = 1000  # Wan2.2 wan/configs/shared_config.py num_train_timesteps
UNIPC_START = float(
    np.float32(1 - 1 / TRAIN_TIMESTEPS)
)  # largest training sigma, as float32; the others start at 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Schedule:
    """The noise levels of one clip."""

    solver: Solver
    sigmas: np.ndarray  # (steps + 1,) float32, falling from about 1 to exactly 0
    timesteps: np.ndarray  # (steps,) sigma · 1000: int64, truncated; float64 with euler


def plan_schedule(solver: Solver, *, steps: int, shift: float) -> Schedule:
    """Noise levels of `steps` ≥ 1 steps: evenly spaced, then shifted once towards the noisy end."""
    start = UNIPC_START if solver == "unipc" else 1.0
    even = np.linspace(start, 0.0, steps + 1)[:-1]  # float64: the truncation below depends on it
    shifted = shift * even / (1 + (shift - 1) * even)
    exact = shifted * TRAIN_TIMESTEPS
    return Schedule(
        solver=solver,
        sigmas=np.append(shifted, 0.0).astype(np.float32),
        timesteps=exact if solver == "euler" else exact.astype(np.int64),
    )


def make_solver(schedule: Schedule) -> AnySolver:
    """A solver at the first step of `schedule`. It remembers earlier steps: make a new one for every clip."""
    solver: AnySolver
    if schedule.solver == "euler":
        solver = FlowMatchEulerDiscreteScheduler()
    elif schedule.solver == "dpm++":
        solver = DPMSolverMultistepScheduler(
            algorithm_type="dpmsolver++",
            solver_order=2,
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
        )
    else:
        solver = UniPCMultistepScheduler(
            solver_order=2, prediction_type="flow_prediction", use_flow_sigmas=True
        )
    # A new solver is in the state set_timesteps leaves, but for these: it would only compute other sigmas.
    solver.num_inference_steps = len(schedule.timesteps)
    solver.sigmas = torch.from_numpy(schedule.sigmas)
    solver.timesteps = torch.from_numpy(schedule.timesteps)
    # Truncated timesteps can repeat (many steps, large shift): the first step must not be looked up by its
    # value.
    solver.set_begin_index(0)
    return solver
