"""What tests of masks share: people in boxes, as a track and poses."""

from collections.abc import Sequence

import numpy as np
from wan_animate.preprocess.full.mask_prompts import Guide
from wan_animate.preprocess.identities import Identity
from wan_animate.preprocess.subjects import SubjectTrack

from .people import standing


def walking(count: int, *, start: float, step: float, top: float = 60.0, size: float = 200.0) -> np.ndarray:
    """Boxes (N, 4) float32 of somebody of `size` pixels who walks `step` pixels a frame."""
    left = start + step * np.arange(count)
    return np.stack([left, 0 * left + top, left + 0.4 * size, 0 * left + top + size], -1).astype(np.float32)


def somebody(boxes: np.ndarray, *, first: int = 0) -> Identity:
    """Who is in these boxes (n, 4), from a frame on."""
    middle, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    return Identity(
        frames=np.arange(first, first + len(boxes)),
        boxes=boxes,
        scores=np.full(len(boxes), 0.9, np.float32),
        regions=np.concatenate([middle, half], axis=1),
        looks=np.zeros(0, np.float32),
    )


def guide_of(
    boxes: np.ndarray,
    *,
    size: tuple[int, int] = (360, 640),
    present: np.ndarray | None = None,
    shots: np.ndarray | None = None,
    others: Sequence[Identity] = (),
) -> Guide:
    """Somebody who stands in these boxes (N, 4), beside others."""
    count = len(boxes)
    middle, tall = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 3] - boxes[:, 1]
    poses = [standing(x, y, size=0.9 * high) for (x, y), high in zip(middle, tall, strict=True)]
    track = SubjectTrack(
        regions=np.concatenate([middle, (boxes[:, 2:] - boxes[:, :2]) / 2], axis=1),
        boxes=boxes,
        looks=np.zeros((count, 0), np.float32),
        others=tuple(others),
        sure=np.ones(count, bool),
        bystanders=np.zeros((count, 0, 4), np.float32),
    )
    return Guide(
        track=track,
        poses=np.stack(poses),
        present=np.ones(count, bool) if present is None else present,
        shots=np.zeros(count, int) if shots is None else shots,
        size=size,
    )
