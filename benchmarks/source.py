"""Conditions of random pixels, drawn before the clock starts: what a whole request is measured with."""

import numpy as np
from wan_animate.wan.conditions import FACE_SIZE, Conditions


class RandomSource:
    """The same pixels for every engine of the same size."""

    replaces = False

    def __init__(self, *, frames: int, height: int, width: int) -> None:
        random = np.random.default_rng(0)
        self.num_frames = frames
        self.reference = random.integers(0, 255, (height, width, 3), np.uint8)
        self._pose = random.integers(0, 255, (frames, height, width, 3), np.uint8)
        self._face = random.integers(0, 255, (frames, FACE_SIZE, FACE_SIZE, 3), np.uint8)

    def conditions(self, frames: tuple[int, ...]) -> Conditions:
        """Those of these frames."""
        chosen = list(frames)
        return Conditions(pose=self._pose[chosen], face=self._face[chosen], scene=None)
