"""The contract between preprocessing and the model: one clip's conditions, and where they come from.

`preprocess` makes these, `wan` eats them; neither knows how the other works. Everything is uint8 and
lossless: what the skeleton drawing paints is, byte for byte, what the model sees. T frames, H W pixels
(multiples of 16).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

FACE_SIZE = 512  # pixels a side; the motion encoder's input, Wan2.2 wan/modules/animate/motion_encoder.py


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scene:
    """What stays of the driving video in replacement: everything but the person."""

    background: np.ndarray  # (T, H, W, 3) uint8 RGB, the person's area black
    mask: np.ndarray  # (T, H, W) uint8, 255 = person to be generated, 0 = background to keep


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Conditions:
    """What guides one clip."""

    pose: np.ndarray  # (T, H, W, 3) uint8 RGB, skeleton on black
    face: np.ndarray  # (T, 512, 512, 3) uint8 RGB; all zeros means "no expression" (−1 in the model's range)
    scene: Scene | None = None  # None: animation

    def __post_init__(self) -> None:
        frames, height, width, channels = _shape(self.pose, 4, "pose")
        if channels != 3 or height % 16 or width % 16:
            raise ValueError(f"pose must be (T, H, W, 3) with H and W multiples of 16, got {self.pose.shape}")
        if self.face.dtype != np.uint8 or self.face.shape != (frames, FACE_SIZE, FACE_SIZE, 3):
            raise ValueError(f"face must be uint8 {(frames, FACE_SIZE, FACE_SIZE, 3)}, got {self.face.shape}")
        if self.scene is not None:
            if _shape(self.scene.background, 4, "background") != self.pose.shape:
                raise ValueError(f"background must be {self.pose.shape}, got {self.scene.background.shape}")
            if _shape(self.scene.mask, 3, "mask") != (frames, height, width):
                raise ValueError(f"mask must be {(frames, height, width)}, got {self.scene.mask.shape}")


class ClipSource(Protocol):
    """Where the engine gets its conditions from, one clip at a time; the whole video is never held."""

    @property
    def num_frames(self) -> int:
        """Frames of the finished video, ≥ 1."""
        ...

    @property
    def reference(self) -> np.ndarray:
        """The reference picture at the output's size: (H, W, 3) uint8 RGB."""
        ...

    @property
    def replaces(self) -> bool:
        """Whether conditions carry a scene (replacement) or not (animation)."""
        ...

    def conditions(self, frames: Sequence[int]) -> Conditions:
        """Conditions for these frames, in this order; they may repeat and run backwards (reflection)."""
        ...


def _shape(array: np.ndarray, ndim: int, name: str) -> tuple[int, ...]:
    if array.dtype != np.uint8 or array.ndim != ndim:
        raise ValueError(f"{name} must be uint8 with {ndim} axes, got {array.dtype} {array.shape}")
    return array.shape
