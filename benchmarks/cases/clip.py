"""A whole clip: conditions in memory → frames in host memory, text and picture encoding included."""

import time

import numpy as np
import torch

from benchmarks.measuring import GIB, Bench, Row, clocks
from benchmarks.random_models import build_random_14b
from wan_animate.wan.animator import Animator
from wan_animate.wan.conditions import Conditions
from wan_animate.wan.model.models import Models
from wan_animate.wan.model.smoke import build_smoke_models
from wan_animate.wan.runtime.job import Job
from wan_animate.wan.sampling import Sampling
from wan_animate.wan.speed.apply import apply_plan
from wan_animate.wan.speed.plan import Plan, Residency

STEPS = (20, 4)


class RandomSource:
    """Conditions of random pixels, drawn before the clock starts."""

    replaces = False

    def __init__(self, *, frames: int, height: int, width: int) -> None:
        random = np.random.default_rng(0)
        self.num_frames = frames
        self.reference = random.integers(0, 255, (height, width, 3), np.uint8)
        self._pose = random.integers(0, 255, (frames, height, width, 3), np.uint8)
        self._face = random.integers(0, 255, (frames, 512, 512, 3), np.uint8)

    def conditions(self, frames: tuple[int, ...]) -> Conditions:
        chosen = list(frames)
        return Conditions(pose=self._pose[chosen], face=self._face[chosen], scene=None)


def run(bench: Bench) -> None:
    animator = Animator(build(bench, residency="resident"))
    size, (height, width) = next(iter(bench.sizes.items()))
    source = RandomSource(frames=bench.frames, height=height, width=width)
    make_clip(bench, animator, source, steps=1)  # loads kernels; what is timed has none of that
    for steps in (1,) if bench.tiny else STEPS:
        with clocks(bench) as found:
            seconds, job, peak = make_clip(bench, animator, source, steps=steps)
        stages = ", ".join(f"{name} {value:.1f}" for name, value in job.timings.items())
        heat = ", ".join(f"{name} {value:.0f}" for name, value in found.items())
        bench.add(
            Row(case="clip", what=f"ours, {steps} steps", size=size, seconds=seconds, spread=0.0, runs=1,
                peak_gib=peak, note=f"{stages}; {heat}")
        )  # fmt: skip


def build(bench: Bench, *, residency: Residency) -> Models:
    """The engine with its plan applied; tiny: the smoke engine."""
    device = bench.device
    on_host = residency == "streamed" and bench.is_gpu
    models = (
        build_smoke_models(device=device) if bench.tiny else build_random_14b(device, bench.dtype, on_host=on_host)
    )
    plan = Plan(
        attention="auto", compiled=bench.is_gpu, transformer=residency, encoders=residency, peak_bytes=0.0
    )
    apply_plan(models, plan)
    bench.release()
    return models


def make_clip(
    bench: Bench, animator: Animator, source: RandomSource, *, steps: int
) -> tuple[float, Job, float | None]:
    """Seconds, the job with its timings, and the peak in GiB."""
    animator.models.vae._grey.clear()  # kept from one request to the next: a first request has not got it
    bench.release()
    job = Job()
    bench.synchronize()
    started = time.perf_counter()
    made = list(animator.frames(source, Sampling(seed=0, steps=steps), job))
    seconds = time.perf_counter() - started
    assert sum(len(part) for part in made) == source.num_frames
    return seconds, job, torch.cuda.max_memory_allocated() / GIB if bench.is_gpu else None
