"""The sampling loop: noise in, ever cleaner latents out. The caller owns progress, cancel and timing."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from .model.transformer import AnimateTransformer, Prepared
from .schedule import Schedule, make_solver


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Passes:
    """What the transformer is shown at every step of a clip."""

    conditional: Prepared
    unconditional: Prepared | None  # None: no guidance, one pass a step
    guidance: float = 1.0

    def __post_init__(self) -> None:
        if (self.unconditional is None) != (self.guidance == 1):
            raise ValueError(f"guidance {self.guidance} and the unconditional pass must come together")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Step:
    """One finished step; on a GPU the one before it is finished, and this one is queued."""

    index: int  # 1 … total
    total: int
    latents: torch.Tensor  # (1, 16, L + 1, h, w) float32; frame 0 is the reference picture's, not video


def denoise(
    transformer: AnimateTransformer, passes: Passes, noise: torch.Tensor, schedule: Schedule
) -> Iterator[Step]:
    """Sample one clip. `noise` is (1, 16, L + 1, h, w) float32 on the transformer's device.

    Latents and guidance stay in float32, whatever the transformer's weights are.
    """
    solver, latents = make_solver(schedule), noise
    step: Any = solver.step  # diffusers' types ask for a FloatTensor
    timesteps = torch.from_numpy(schedule.timesteps)
    pacer = _Pacer(noise.device)
    for index, timestep in enumerate(schedule.timesteps.tolist()):
        velocity = guided_velocity(transformer, passes, latents, timestep)
        latents = step(velocity, timesteps[index], latents, return_dict=False)[0]
        pacer.wait()
        yield Step(index=index + 1, total=len(timesteps), latents=latents)


class _Pacer:
    """Keeps the host one step ahead of a GPU: far enough that it never waits, near enough to count."""

    def __init__(self, device: torch.device) -> None:
        self._is_gpu = device.type == "cuda"
        self._before: torch.cuda.Event | None = None

    def wait(self) -> None:
        """Wait until all that was queued before the last call is done."""
        if not self._is_gpu:
            return
        event = torch.cuda.Event()
        event.record()
        if self._before is not None:
            self._before.synchronize()
        self._before = event


def guided_velocity(
    transformer: AnimateTransformer, passes: Passes, latents: torch.Tensor, timestep: float
) -> torch.Tensor:
    """The model's prediction at one step, guidance applied: (1, 16, L + 1, h, w) float32."""
    conditional = transformer.step(latents, timestep, passes.conditional)
    if passes.unconditional is None:
        return conditional
    unconditional = transformer.step(latents, timestep, passes.unconditional)
    return unconditional + passes.guidance * (conditional - unconditional)
