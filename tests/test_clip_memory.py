"""Twenty clips need no more host memory than three."""

import subprocess
import sys
import textwrap
from pathlib import Path

RUN = """
    from pathlib import Path
    import numpy as np
    import torch
    from wan_animate.wan.animator import Animator
    from wan_animate.wan.conditions import Conditions
    from wan_animate.wan.model.smoke import build_smoke_models
    from wan_animate.wan.runtime.job import Job
    from wan_animate.wan.sampling import Sampling

    torch.set_num_threads(1)
    random = np.random.default_rng(0)

    class Source:
        num_frames = 20 * 12 + 1
        replaces = False
        reference = random.integers(0, 255, (64, 64, 3), np.uint8)

        def conditions(self, frames):
            return Conditions(
                pose=random.integers(0, 255, (len(frames), 64, 64, 3), np.uint8),
                face=np.zeros((len(frames), 512, 512, 3), np.uint8),
            )

    def resident() -> float:
        status = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmRSS"))

    clips = Animator(build_smoke_models()).frames(Source(), Sampling(seed=0, steps=2, clip_len=13), Job())
    for made, _ in enumerate(clips, start=1):
        print(made, resident(), flush=True)
"""


def test_memory_after_twenty_clips_is_that_after_three():
    package = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(RUN)],
        capture_output=True,
        text=True,
        check=True,
        cwd=package.parent,
    )
    resident = {int(clip): float(mb) for clip, mb in (line.split() for line in done.stdout.splitlines())}
    assert len(resident) == 20
    assert abs(resident[20] - resident[3]) < 20  # MB
