"""A whole clip: conditions in memory → frames in host memory, text and picture encoding included."""

import time
import traceback

import numpy as np
import torch
from wan_animate.wan.animator import Animator
from wan_animate.wan.conditions import Conditions
from wan_animate.wan.denoise import Passes, denoise
from wan_animate.wan.model.models import Models
from wan_animate.wan.model.smoke import build_smoke_models
from wan_animate.wan.runtime.job import Job
from wan_animate.wan.sampling import Sampling
from wan_animate.wan.schedule import plan_schedule
from wan_animate.wan.speed.apply import apply_plan
from wan_animate.wan.speed.plan import Plan

from benchmarks.cases.step import Clip
from benchmarks.measuring import GIB, Bench, Row, clocks
from benchmarks.random_models import build_random_14b


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
    animator = engine(bench)
    _check_for_waits(bench, animator.models)
    size, (height, width) = next(iter(bench.sizes.items()))
    source = RandomSource(frames=bench.frames, height=height, width=width)
    if not bench.tiny:
        make_clip(bench, animator, source, steps=1)  # loads kernels; what is timed has none of that
    for steps in (1,) if bench.tiny else bench.steps:
        with clocks(bench) as found:
            seconds, job, peak = make_clip(bench, animator, source, steps=steps)
        heat = ", ".join(f"{name} {value:.0f}" for name, value in found.items())
        bench.add(
            Row(case="clip", what=f"ours, streamed, {steps} steps", size=size, seconds=seconds, runs=1,
                peak_gib=peak, note=f"{stages(job)}; {heat}")
        )  # fmt: skip


def engine(bench: Bench) -> Animator:
    """The engine with everything streamed, which is the plan for a 40 GB card; tiny: the smoke engine."""
    if bench.engine is None:
        if bench.tiny:
            models = build_smoke_models(device=bench.device)
        else:
            models = build_random_14b(bench.device, bench.dtype, on_host=True)
        plan = Plan(
            attention="auto",
            compiled=bench.is_gpu,
            transformer="streamed",
            encoders="streamed",
            peak_bytes=0.0,
        )
        apply_plan(models, plan)
        bench.engine = Animator(models)
    bench.release()
    return bench.engine


def stages(job: Job) -> str:
    """Seconds a stage. The GPU works behind: what denoising has queued, decoding waits for."""
    return ", ".join(f"{name} {value:.1f}" for name, value in job.timings.items())


def _check_for_waits(bench: Bench, models: Models) -> None:
    """Denoise with every host synchronisation an error."""
    if not bench.is_gpu:
        return
    clip = Clip.random(models.transformer.config, height=256, width=256, frames=9, device=bench.device)
    passes = Passes(conditional=clip.prepare(models.transformer), unconditional=None)
    found = []
    for solver in ("dpm++", "unipc"):
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in denoise(
                models.transformer, passes, clip.latents, plan_schedule(solver, steps=4, shift=5.0)
            ):
                pass
        except RuntimeError as error:
            found.append(f"{solver}: {error}; {traceback.format_exc(limit=-2).splitlines()[-4:-1]}")
        finally:
            torch.cuda.set_sync_debug_mode("default")
    bench.add(
        Row(
            case="clip",
            what="host synchronisations in the loop",
            size="256x256",
            note="; ".join(found) or "none",
        )
    )


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
