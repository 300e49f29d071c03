"""A person's silhouette from the landmark network's segmentation: logits of crops in, (H, W) masks out. Pure.

The network segments whoever fills its crop: softly, with a little leak into neighbours of the same colour,
and where somebody stands in front, with much of that one. So logits are averaged over neighbouring frames,
and what two people claim goes to the one whose bones are nearer. S = 256 pixels, N frames.
"""

from collections import deque
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np

from ..mask_repair import BONES
from .crops import Square
from .regions import same_body
from .wholebody import BODY_FROM, Body

FAR_LOGIT: Final = -20.0  # beyond the crop nobody is
MAX_SIDE: Final = 960  # pixels in which logits are averaged; the segmentation itself is 256 × 256
NEIGHBOUR_WEIGHT: Final = 0.5  # of the frames before and after, against 1 for the frame itself
DISTINCT: Final = 0.25  # of a rival's area, that must be its alone
EDGE: Final = 0.01  # of a person's reach, by which paint goes beyond the silhouette …
AROUND: Final = 3  # … and times so much further, what its colour is taken from
SEEN: Final = 0.3  # visibility from which a joint carries a bone that claims


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Segmentation:
    """What the network says of one crop, and where the crop lies."""

    logits: np.ndarray  # (S, S) float32, > 0 = person
    square: Square
    frame_size: tuple[int, int]  # (H, W) of the picture
    body: Body  # whom it segmented


def in_picture(segmentation: Segmentation) -> np.ndarray:
    """The logits where they belong: (h, w) float32 of the whole picture, at most 960 pixels a side."""
    height, width = segmentation.frame_size
    rows, columns = _averaging_size(segmentation.frame_size)
    matrix = segmentation.square.matrix(len(segmentation.logits))  # picture → crop
    matrix[:, 0] *= width / columns
    matrix[:, 1] *= height / rows
    return cv2.warpAffine(
        segmentation.logits,
        matrix,
        (columns, rows),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=FAR_LOGIT,
    )


def nobody(frame_size: tuple[int, int]) -> np.ndarray:
    """The logits (h, w) of a picture of `frame_size` (H, W) without the person."""
    return np.full(_averaging_size(frame_size), FAR_LOGIT, np.float32)


def _averaging_size(frame_size: tuple[int, int]) -> tuple[int, int]:
    height, width = frame_size
    scale = min(MAX_SIDE / max(frame_size), 1.0)
    return max(round(height * scale), 1), max(round(width * scale), 1)


def claimed(own: Segmentation, rivals: Sequence[Segmentation]) -> np.ndarray:
    """A person's `in_picture` logits without what is rather that of `rivals` in the same picture.

    The network gives parts of whoever is in front to the one behind, too. A rival who has hardly anything
    of its own is nobody else: it is the person again, found in a bad crop.
    """
    logits = in_picture(own)
    scale = logits.shape[1] / own.frame_size[1]
    for rival in rivals:
        theirs = in_picture(rival) > 0
        contested = theirs & (logits > 0)
        alone = 1 - contested.sum() / max(theirs.sum(), 1)
        if alone < DISTINCT or same_body(own.body, rival.body) or not contested.any():
            continue
        nearer = _bone_distance(rival.body, logits.shape, scale) < _bone_distance(
            own.body, logits.shape, scale
        )
        logits = np.where(contested & nearer, -logits, logits)
    return logits


def without(picture: np.ndarray, people: Sequence[Segmentation]) -> np.ndarray:
    """A picture (H, W, 3) uint8 with people of it painted over, each in the colour around.

    What a network knows of people it then finds in whoever is left.
    """
    painted = picture.copy()
    for person in people:
        logits = in_picture(person)
        height, width = logits.shape
        edge = EDGE * float(np.hypot(*person.body.region[2:])) * width / picture.shape[1]
        silhouette = _grown((logits > 0).astype(np.uint8), edge)
        around = _grown(silhouette, AROUND * edge) - silhouette
        colour = cv2.mean(cv2.resize(painted, (width, height), interpolation=cv2.INTER_NEAREST), around)
        whole = cv2.resize(silhouette, picture.shape[1::-1], interpolation=cv2.INTER_NEAREST)
        painted[whole > 0] = colour[:3]
    return painted


def left_over(own: Segmentation, people: Sequence[Segmentation]) -> np.ndarray:
    """`in_picture` logits of somebody who was segmented `without` people: nothing under the paint is its."""
    logits = in_picture(own)
    for person in people:
        logits = np.minimum(logits, -in_picture(person))
    return logits


def _grown(mask: np.ndarray, margin: float) -> np.ndarray:
    """A mask (h, w) with a margin of so many pixels, one at least."""
    side = 2 * max(round(margin), 1) + 1
    return cv2.dilate(mask, np.ones((side, side), np.uint8))


def _bone_distance(body: Body, shape: tuple[int, ...], scale: float) -> np.ndarray:
    """How far each pixel (h, w) is from the body's bones, in sizes of the body."""
    off = np.ones(shape, np.uint8)
    joints = list(BODY_FROM)
    points = np.rint(body.points[joints] * scale).astype(int)
    seen = body.visibility[joints] >= SEEN
    for a, b in BONES:
        if seen[a] and seen[b]:
            cv2.line(off, points[a].tolist(), points[b].tolist(), 0, 1)
    size = max(float(np.hypot(*body.region[2:])) * scale, 1.0)
    return cv2.distanceTransform(off, cv2.DIST_L2, 3) / size


def steady_masks(
    logits: Iterable[np.ndarray], *, shots: np.ndarray, frame_size: tuple[int, int]
) -> Generator[np.ndarray, None, None]:
    """Masks (H, W) uint8 of 0 and 1 of frames of `frame_size`, in order, from logits (h, w) of each.

    Holds three frames. What a frame itself shows stays, or fast arms were lost; what both its neighbours
    agree on fills its holes. Nothing is averaged across the borders of `shots` (N,).
    """
    window: deque[tuple[int, np.ndarray]] = deque(maxlen=3)

    def mask(place: int) -> np.ndarray:
        index, own = window[place]
        beside = [window[other][1] for other in (place - 1, place + 1) if 0 <= other < len(window)]
        if len(beside) == 2 and shots[index - 1] == shots[index] == shots[index + 1]:
            agreed = np.minimum(*beside) > 0
            average = (own + NEIGHBOUR_WEIGHT * sum(beside)) / (1 + 2 * NEIGHBOUR_WEIGHT)
            own = np.where(agreed, np.maximum(own, average), own)
        return _at_size(own, frame_size)

    for index, one in enumerate(logits):
        window.append((index, one))
        if index > 0:
            yield mask(len(window) - 2)
    if window:
        yield mask(len(window) - 1)


def _at_size(logits: np.ndarray, frame_size: tuple[int, int]) -> np.ndarray:
    height, width = frame_size
    return (cv2.resize(logits, (width, height), interpolation=cv2.INTER_LINEAR) > 0).astype(np.uint8)
