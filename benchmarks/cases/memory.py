"""GPU memory of a whole request, everything streamed: encoders, transformer, VAE. Host memory: benchmarks.memory."""

from benchmarks.cases.clip import RandomSource, build, make_clip
from benchmarks.measuring import Bench, Row
from wan_animate.wan.animator import Animator

STEPS = 2  # the third step needs no more than the second


def run(bench: Bench) -> None:
    animator = Animator(build(bench, residency="streamed"))
    for size, (height, width) in bench.sizes.items():
        source = RandomSource(frames=bench.frames, height=height, width=width)
        seconds, job, peak = make_clip(bench, animator, source, steps=1 if bench.tiny else STEPS)
        stages = ", ".join(f"{name} {value:.1f}" for name, value in job.timings.items())
        bench.add(
            Row(case="memory", what="ours, everything streamed", size=size, seconds=seconds, runs=1,
                peak_gib=peak, note=f"{STEPS} steps: {stages}")
        )  # fmt: skip
