"""Noise schedules: solver, steps and shift in; sigmas, timesteps and a fresh solver out.

The numbers are those of the published model, not of diffusers' own flow schedules, which differ from them by
up to 5e-3. The solvers are diffusers', given these numbers: their steps are the published ones, to rounding.
"euler" is for distilled models: at 4 steps and shift 5 its levels are those that lightx2v's LoRA was trained
at (steps 1000, 750, 500, 250 shifted: 1000, 937.5, 833.3, 625), which are not truncated there.
"""

from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import torch
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

Solver = Literal["dpm++", "unipc", "euler"]
ORDER = 2  # of the multistep solvers, as published
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
            solver_order=ORDER,
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
        )
    else:
        solver = HostUniPC(solver_order=ORDER, prediction_type="flow_prediction", use_flow_sigmas=True)
    # A new solver is in the state set_timesteps leaves, but for these: it would only compute other sigmas.
    solver.num_inference_steps = len(schedule.timesteps)
    solver.sigmas = torch.from_numpy(schedule.sigmas)
    solver.timesteps = torch.from_numpy(schedule.timesteps)
    # Truncated timesteps can repeat (many steps, large shift): the first step must not be looked up by its
    # value.
    solver.set_begin_index(0)
    return solver


class HostUniPC(UniPCMultistepScheduler):
    """diffusers' UniPC with its few numbers kept on the host.

    diffusers computes them where the latents are, and solving two equations there makes the host wait for the
    whole step before. The numbers and their order are diffusers': the latents are the same.
    """

    def multistep_uni_p_bh_update(
        self,
        model_output: torch.Tensor,  # noqa: ARG002 - the newest of model_outputs already
        *,
        sample: torch.Tensor,
        order: int,
    ) -> torch.Tensor:
        """The prediction for the next noise level."""
        return self._advance(sample, level=self._level, order=order, arrived=None)

    def multistep_uni_c_bh_update(
        self,
        this_model_output: torch.Tensor,
        *,
        last_sample: torch.Tensor,
        this_sample: torch.Tensor,  # noqa: ARG002 - what is corrected is made anew from the one before
        order: int,
    ) -> torch.Tensor:
        """The last prediction again, now that the model has seen where it led."""
        return self._advance(last_sample, level=self._level - 1, order=order, arrived=this_model_output)

    def _advance(
        self, sample: torch.Tensor, *, level: int, order: int, arrived: torch.Tensor | None
    ) -> torch.Tensor:
        """From noise level number `level` to the next: UniPC (Zhao et al., 2302.04867) with B₂(h).

        `arrived` is what the model makes of the sample at the next level, if that is known.
        """
        alpha_to, sigma_to = self._sigma_to_alpha_sigma_t(self.sigmas[level + 1])
        _, sigma_from = self._sigma_to_alpha_sigma_t(self.sigmas[level])
        start = self._half_log_snr(level)
        step = self._half_log_snr(level + 1) - start
        outputs = cast("list[torch.Tensor]", self.model_outputs)  # as many as the order needs are there
        now, earlier = outputs[-1], outputs[-order:-1][::-1]
        places = [(self._half_log_snr(level - back) - start) / step for back in range(1, order)]
        slopes = [(before - now) / place for before, place in zip(earlier, places, strict=True)]
        grown = torch.expm1(-step)
        if arrived is None:  # order 2 has one slope, and takes half of it
            shares = torch.full((len(slopes),), 0.5)
        else:
            slopes.append(arrived - now)
            shares = _unipc_shares(torch.stack([*places, torch.ones(())]), step)
        change = sum(share * slope for share, slope in zip(shares, slopes, strict=True))
        return sigma_to / sigma_from * sample - alpha_to * grown * now - alpha_to * grown * change

    @property
    def _level(self) -> int:
        assert self.step_index is not None  # `step` sets it first
        return self.step_index

    def _half_log_snr(self, level: int) -> torch.Tensor:
        alpha, sigma = self._sigma_to_alpha_sigma_t(self.sigmas[level])
        return torch.log(alpha) - torch.log(sigma)


def _unipc_shares(places: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """How much of each slope at `places` (order,) the corrector takes: (order,), all on the host."""
    order = len(places)
    if order == 1:
        return torch.full((1,), 0.5)
    grown = torch.expm1(-step)
    phi, factorial, rows, sides = grown / -step - 1, 1, [], []
    for power in range(order):
        rows.append(torch.pow(places, power))
        sides.append(phi * factorial / grown)
        factorial *= power + 2
        phi = phi / -step - 1 / factorial
    return torch.linalg.solve(torch.stack(rows), torch.stack(sides))
