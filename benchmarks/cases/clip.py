"""A whole clip: conditions in memory → frames in host memory, text and picture encoding included.

Ours with everything streamed, beside diffusers' own pipeline (benchmarks.peer) with everything on the card.
"""

import traceback
from typing import get_args

import torch
from wan_animate.wan.animator import Animator
from wan_animate.wan.denoise import Passes, denoise
from wan_animate.wan.model.models import Models
from wan_animate.wan.model.smoke import build_smoke_models
from wan_animate.wan.runtime.job import Job
from wan_animate.wan.sampling import Sampling
from wan_animate.wan.schedule import Solver, plan_schedule
from wan_animate.wan.speed.apply import apply_plan
from wan_animate.wan.speed.plan import Plan

from benchmarks import peer
from benchmarks.cases.step import Clip
from benchmarks.floors import clip_floor
from benchmarks.measuring import Bench, Measured, Row, clocks
from benchmarks.random_models import build_random_14b
from benchmarks.source import RandomSource


def run(bench: Bench) -> None:
    peer.measure(bench)
    animator = engine(bench)
    models = animator.models
    _check_for_waits(bench, models)
    size, (height, width) = next(iter(bench.sizes.items()))
    source = RandomSource(frames=bench.frames, height=height, width=width)
    if not bench.tiny:
        make_clip(bench, animator, source, steps=1)  # loads kernels; what is timed has none of that
    for steps in (1,) if bench.tiny else bench.steps:
        with clocks(bench) as found:
            measured, job = make_clip(bench, animator, source, steps=steps)
        heat = ", ".join(f"{name} {value:.0f}" for name, value in found.items())
        floor = clip_floor(
            bench, models.transformer, models.vae.autoencoder,
            size=(height, width), steps=steps, streamed=True,
        )  # fmt: skip
        bench.add(
            Row(case="clip", what=f"ours, streamed, {steps} steps", size=size, seconds=measured.seconds,
                runs=1, peak_gib=measured.peak_gib, floor_s=floor, note=f"{stages(job)}; {heat}")
        )  # fmt: skip


def engine(bench: Bench) -> Animator:
    """The engine with everything streamed, which is the plan for a 40 GB card; tiny: the smoke engine."""
    if bench.engine is None:
        if bench.tiny:
            models = build_smoke_models(device=bench.device)
        else:
            models = build_random_14b(bench.device, bench.dtype)
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
    for solver in get_args(Solver):
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


def make_clip(bench: Bench, animator: Animator, source: RandomSource, *, steps: int) -> tuple[Measured, Job]:
    """What one request took, and the job with its timings."""
    animator.models.vae._grey.clear()  # kept from one request to the next: a first request has not got it
    job = Job()

    def make() -> None:
        made = list(animator.frames(source, Sampling(seed=0, steps=steps), job))
        assert sum(len(part) for part in made) == source.num_frames

    return bench.request(make), job
