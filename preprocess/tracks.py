"""What pass 1 keeps of a driving video: a few kB a frame, whatever the video's size or length."""

from dataclasses import dataclass

import numpy as np

from .keypoints import NUM_KEYPOINTS
from .packed import PackedMasks


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tracks:
    """The subject, frame by frame, in pixels of the upright source frames. T output frames, K = 133 points.

    `face_boxes` is NaN throughout where the video shows no face: the model gets the "no expression" face.
    """

    frame_size: tuple[int, int]  # (H, W) of the source frames the coordinates refer to
    poses: np.ndarray  # (T, K, 3) float32: x, y in source pixels, score 0…1 (0 = not seen)
    face_boxes: np.ndarray  # (T, 4) float32: x0, y0, x1, y1 in source pixels
    boxes: np.ndarray  # (T, 4) float32 likewise: around what is seen of the subject, NaN where nothing is
    others: np.ndarray  # (T, P, 4) float32 likewise: P people who are left alone
    masks: PackedMasks | None = (
        None  # the subject's silhouettes at source size; only where they were asked for
    )
    warnings: tuple[str, ...] = ()  # what was held, interpolated or missing, in words

    def __post_init__(self) -> None:
        frames = len(self.poses)
        expected = (frames, NUM_KEYPOINTS, 3)
        if self.poses.shape != expected or self.poses.dtype != np.float32:
            raise ValueError(f"poses must be float32 {expected}, got {self.poses.dtype} {self.poses.shape}")
        if self.face_boxes.shape != (frames, 4) or self.face_boxes.dtype != np.float32:
            raise ValueError(f"face_boxes must be float32 ({frames}, 4), got {self.face_boxes.shape}")
        if self.boxes.shape != (frames, 4) or self.others.shape != (frames, self.others.shape[1], 4):
            raise ValueError(
                f"boxes must be ({frames}, 4) and others ({frames}, P, 4), "
                f"got {self.boxes.shape} and {self.others.shape}"
            )
        if self.masks is not None and (len(self.masks), self.masks.size) != (frames, self.frame_size):
            raise ValueError(f"masks must be {frames} of {self.frame_size}, got {len(self.masks)}")

    @property
    def num_frames(self) -> int:
        return len(self.poses)
