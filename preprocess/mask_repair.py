"""What a tracker gives, made whole: which parts are the person's, in which frames it lost the person. Pure.

A tracker errs for a frame or two, and keeps what is not the person: a cushion of the same colour, a piece of
somebody else. What belongs together is decided here, after either backend. N frames, (H, W) masks.
"""

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from scipy.ndimage import median_filter

from .keypoints import BODY, FEET, VISIBLE
from .smoothing import spans

BONES: Final = (  # pairs of COCO body points
    (0, 5), (0, 6), (5, 6), (5, 7), (7, 9), (6, 8), (8, 10), (5, 11), (6, 12), (11, 12), (11, 13), (13, 15),
    (12, 14), (14, 16),
)  # fmt: skip
BONE_WIDTH: Final = 0.02  # of the picture's longer side: how near to a bone a part must come
NEAR: Final = 0.06  # of the person's size, within which a part that no bone touches may be clothes or hair …
SUBSTANTIAL: Final = 0.01  # … if it has so much of the area that bones touch
WHERE_THEY_ARE: Final = 0.5  # of such a part's area in somebody else's box, from which it is that one's

COLLAPSED: Final = 0.4  # of the area around it in time, below which a mask lost the person
AROUND_S: Final = 0.5  # seconds to either side that count as around
EXCUSE_S: Final = 0.2  # longer than this must a pose be smaller for its mask to be so, too
LONGEST_REPAIR_S: Final = 0.5  # frames further apart show the person elsewhere


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Verdict:
    """What is wrong with the masks of a video."""

    stand_ins: dict[int, tuple[int, int]]  # frame → the frames whose masks cover what its own has lost
    doubtful: np.ndarray  # (N,) bool: lost or changed abruptly, and nothing around can stand in


def own_parts(mask: np.ndarray, pose: np.ndarray, others: list[np.ndarray]) -> np.ndarray:
    """Those parts of a mask (H, W) uint8 that are the person's: (H, W) uint8 of 0 and 1.

    A part is the person's if the pose (133, 3) touches it with a visible bone or point. So is one of some
    size beside such parts, if it is not in the boxes (4,) of `others`: clothes and hair reach beyond bones.
    """
    own = np.zeros_like(mask)
    x, y, wide, high = cv2.boundingRect(mask)
    if wide:
        here = np.s_[y : y + high, x : x + wide]
        corner = np.array([x, y, 0], pose.dtype)
        boxes = [box - np.array([x, y, x, y]) for box in others]
        reach = max(round(BONE_WIDTH * max(mask.shape)), 1)
        own[here] = _own_parts(mask[here], pose - corner, boxes, reach=reach)
    return own


def _own_parts(mask: np.ndarray, pose: np.ndarray, others: list[np.ndarray], *, reach: int) -> np.ndarray:
    """`own_parts`, where bones are `reach` pixels wide."""
    labels, areas = _parts(mask)
    kept = np.zeros(len(areas), bool)
    kept[np.unique(labels[_drawn(pose, mask.shape, reach) > 0])] = True
    kept[0] = False  # the background
    candidates = ~kept & (areas >= SUBSTANTIAL * areas[kept].sum())
    if kept.any() and candidates[1:].any():
        distance = cv2.distanceTransform((~kept).astype(np.uint8)[labels], cv2.DIST_L2, 3)
        for part in (np.flatnonzero(candidates[1:]) + 1).tolist():
            here = labels == part
            inside = max((here[_rows_and_columns(box, mask.shape)].sum() for box in others), default=0)
            theirs = inside >= WHERE_THEY_ARE * areas[part]
            kept[part] = not theirs and distance[here].min() <= NEAR * _size(pose)
    return (mask != 0).astype(np.uint8) if kept[1:].all() else kept.astype(np.uint8)[labels]


def _parts(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The number of the part that each pixel (H, W) belongs to, 0 = none, and the parts' areas (P,)."""
    _, labels, statistics, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    return np.asarray(labels), np.asarray(statistics)[:, cv2.CC_STAT_AREA]


def judge(
    areas: np.ndarray, reaches: np.ndarray, present: np.ndarray, shots: np.ndarray, *, rate: float
) -> Verdict:
    """Find the frames in which masks lost the person.

    `areas` (N,) are those of the masks, `reaches` (N,) those of the boxes around the poses, in pixels: a
    mask may shrink as the pose does. `present` (N,) bool and `shots` (N,) as in Tracks' making; `rate` in
    frames a second.
    """
    reaches = _lasting(reaches, present, shots, half=round(EXCUSE_S * rate))
    lost = _collapsed(areas, reaches, present, shots, half=max(round(AROUND_S * rate), 1))
    longest = max(round(LONGEST_REPAIR_S * rate), 1)
    good = present & ~lost
    stand_ins: dict[int, tuple[int, int]] = {}
    for start, stop in spans(shots):
        for first, last in spans(good[start:stop]):
            before, after = start + first - 1, start + last
            between = first > 0 and after < stop and last - first <= longest
            if not good[start + first] and between:
                stand_ins |= {frame: (before, after) for frame in range(before + 1, after) if lost[frame]}
    doubtful = lost.copy()
    doubtful[list(stand_ins)] = False
    steady = present[1:] & present[:-1] & (shots[1:] == shots[:-1]) & ~lost[1:] & ~lost[:-1]
    jumps = _ratio(areas) < COLLAPSED * _ratio(reaches)
    doubtful[1:] |= steady & jumps
    return Verdict(stand_ins=stand_ins, doubtful=doubtful)


def reach(pose: np.ndarray, frame_size: tuple[int, int]) -> float:
    """The area of the box around what a pose (133, 3) shows inside a frame of (H, W): pixels, at least 1."""
    points = pose[: FEET.stop][pose[: FEET.stop, 2] >= VISIBLE, :2]
    if not len(points):
        return 1.0
    inside = np.clip(points, 0, np.array(frame_size[::-1]))
    return max(float(np.prod(np.ptp(inside, axis=0))), 1.0)


def _lasting(values: np.ndarray, present: np.ndarray, shots: np.ndarray, *, half: int) -> np.ndarray:
    """`values` (N,) without what lasts up to `half` frames: a pose that jumps is no person who shrinks."""
    lasting = values.copy()
    for start, stop in spans(shots):
        there = np.flatnonzero(present[start:stop]) + start
        if len(there):
            lasting[there] = median_filter(values[there], size=2 * half + 1, mode="nearest")
    return lasting


def _collapsed(
    areas: np.ndarray, reaches: np.ndarray, present: np.ndarray, shots: np.ndarray, *, half: int
) -> np.ndarray:
    lost = np.zeros(len(areas), bool)
    for start, stop in spans(shots):
        there = np.flatnonzero(present[start:stop]) + start
        for frame in there.tolist():
            low, high = np.searchsorted(there, (frame - half, frame + half + 1))
            around = there[low:high]
            shrunk = min(reaches[frame] / np.median(reaches[around]), 1.0)
            lost[frame] = areas[frame] == 0 or areas[frame] < COLLAPSED * shrunk * np.median(areas[around])
    return lost


def _ratio(values: np.ndarray) -> np.ndarray:
    """(N − 1,) of neighbours, the smaller to the larger one."""
    low, high = np.minimum(values[1:], values[:-1]), np.maximum(values[1:], values[:-1])
    return low / np.maximum(high, 1)


def _drawn(pose: np.ndarray, shape: tuple[int, ...], width: int) -> np.ndarray:
    """The visible bones and points of a pose (133, 3), `width` pixels thick: (H, W) uint8."""
    drawn = np.zeros(shape, np.uint8)
    body = pose[BODY]
    visible = body[:, 2] >= VISIBLE
    points = np.rint(body[:, :2]).astype(int)
    for a, b in BONES:
        if visible[a] and visible[b]:
            cv2.line(drawn, points[a].tolist(), points[b].tolist(), 1, width)
    for point in points[visible]:
        cv2.circle(drawn, point.tolist(), width, 1, cv2.FILLED)
    return drawn


def _size(pose: np.ndarray) -> float:
    """The diagonal of the box around the visible body, pixels."""
    points = pose[BODY][pose[BODY, 2] >= VISIBLE, :2]
    return float(np.hypot(*np.ptp(points, axis=0))) if len(points) else 0.0


def _rows_and_columns(box: np.ndarray, shape: tuple[int, ...]) -> tuple[slice, slice]:
    height, width = shape
    x0, y0, x1, y1 = np.clip(np.rint(box), 0, (width, height, width, height)).astype(int).tolist()
    return slice(y0, y1), slice(x0, x1)
