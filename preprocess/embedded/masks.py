"""A person's silhouette from the landmark network's segmentation: logits of crops in, (H, W) masks out. Pure.

The network segments whoever fills its crop: softly, with a little leak into neighbours of the same colour. So
logits are averaged over neighbouring frames, and only what touches the person's skeleton is kept.
S = 256 pixels, N frames.
"""

from collections import deque
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np

from ..keypoints import BODY, VISIBLE
from .crops import Square

FAR_LOGIT: Final = -20.0  # beyond the crop nobody is
MAX_SIDE: Final = 960  # pixels in which logits are averaged; the segmentation itself is 256 × 256
NEIGHBOUR_WEIGHT: Final = 0.5  # of the frames before and after, against 1 for the frame itself
BONE_WIDTH: Final = 0.02  # of the picture's longer side: how near to a bone a component must come
BONES: Final = (  # pairs of COCO body points
    (0, 5), (0, 6), (5, 6), (5, 7), (7, 9), (6, 8), (8, 10), (5, 11), (6, 12), (11, 12), (11, 13), (13, 15),
    (12, 14), (14, 16),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Segmentation:
    """What the network says of one crop, and where the crop lies."""

    logits: np.ndarray  # (S, S) float32, > 0 = person
    square: Square
    frame_size: tuple[int, int]  # (H, W) of the picture


def in_picture(segmentation: Segmentation) -> np.ndarray:
    """The logits where they belong: (h, w) float32 of the whole picture, at most 960 pixels a side."""
    height, width = segmentation.frame_size
    scale = min(MAX_SIDE / max(height, width), 1.0)
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    matrix = segmentation.square.matrix(len(segmentation.logits))  # picture → crop
    matrix[:, 0] *= width / size[0]
    matrix[:, 1] *= height / size[1]
    return cv2.warpAffine(
        segmentation.logits,
        matrix,
        size,
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=FAR_LOGIT,
    )


def steady_masks(
    segmentations: Iterable[Segmentation], *, poses: np.ndarray, shots: np.ndarray
) -> Generator[np.ndarray, None, None]:
    """Masks (H, W) uint8 of 0 and 1, in the order of the frames; holds three frames.

    `poses` (N, 133, 3) say which part of a mask is the person's; nothing is averaged across the borders of
    `shots` (N,).
    """
    window: deque[tuple[int, np.ndarray, tuple[int, int]]] = deque(maxlen=3)

    def mask(place: int) -> np.ndarray:
        index, logits, frame_size = window[place]
        total, weight = logits.copy(), 1.0
        for other in (place - 1, place + 1):
            if 0 <= other < len(window) and shots[window[other][0]] == shots[index]:
                total += NEIGHBOUR_WEIGHT * window[other][1]
                weight += NEIGHBOUR_WEIGHT
        return touching(_at_size(total / weight, frame_size), poses[index])

    for index, segmentation in enumerate(segmentations):
        window.append((index, in_picture(segmentation), segmentation.frame_size))
        if index > 0:
            yield mask(len(window) - 2)
    if window:
        yield mask(len(window) - 1)


def touching(mask: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """Those parts of a mask (H, W) uint8 that a pose (133, 3) touches with a visible bone or point."""
    bones = np.zeros_like(mask)
    width = max(round(BONE_WIDTH * max(mask.shape)), 1)
    body = pose[BODY]
    visible = body[:, 2] >= VISIBLE
    points = np.rint(body[:, :2]).astype(int)
    for a, b in BONES:
        if visible[a] and visible[b]:
            cv2.line(bones, points[a].tolist(), points[b].tolist(), 1, width)
    for point in points[visible]:
        cv2.circle(bones, point.tolist(), width, 1, cv2.FILLED)
    _, labels = cv2.connectedComponents(mask, connectivity=8)
    touched = np.unique(labels[(bones > 0) & (mask > 0)])
    return np.isin(labels, touched[touched > 0]).astype(np.uint8)


def _at_size(logits: np.ndarray, frame_size: tuple[int, int]) -> np.ndarray:
    height, width = frame_size
    return (cv2.resize(logits, (width, height), interpolation=cv2.INTER_LINEAR) > 0).astype(np.uint8)
