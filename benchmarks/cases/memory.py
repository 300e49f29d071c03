"""GPU memory of a whole request with everything streamed. Host memory is benchmarks.memory's."""

from benchmarks.cases.clip import RandomSource, engine, make_clip, stages
from benchmarks.measuring import Bench, Row


def run(bench: Bench) -> None:
    animator = engine(bench)
    for size, (height, width) in bench.sizes.items():
        source = RandomSource(frames=bench.frames, height=height, width=width)
        # One step: the second needs no more.
        seconds, job, peak = make_clip(bench, animator, source, steps=1)
        bench.add(
            Row(case="memory", what="ours, everything streamed", size=size, seconds=seconds, runs=1,
                peak_gib=peak, note=f"1 step: {stages(job)}")
        )  # fmt: skip
    bench.release()
