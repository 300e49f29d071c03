"""GPU memory of a whole request with everything streamed, beside diffusers' pipeline, offloaded or not.

diffusers' is benchmarks.peer's: everything on the card, and each network on it only while it works. Host
memory is benchmarks.memory's. The case has no floor: weights and activations can be cut ever finer, at a
price in time, so no number measured here bounds from below what a request needs.
"""

from benchmarks import peer
from benchmarks.cases.clip import engine, make_clip, stages
from benchmarks.measuring import Bench, Row
from benchmarks.source import RandomSource


def run(bench: Bench) -> None:
    peer.measure(bench)
    animator = engine(bench)
    for size, (height, width) in bench.sizes.items():
        source = RandomSource(frames=bench.frames, height=height, width=width)
        # One step: the second needs no more.
        measured, job = make_clip(bench, animator, source, steps=1)
        bench.add(
            Row(case="memory", what="ours, everything streamed", size=size, seconds=measured.seconds, runs=1,
                peak_gib=measured.peak_gib, note=f"1 step: {stages(job)}")
        )  # fmt: skip
    bench.release()
