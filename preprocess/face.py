"""Face points in, steady face boxes and 512×512 crops out. Pure; knows no video and no detector.

The box is the reference's (Wan2.2 wan/modules/animate/preprocess/utils.py, get_face_bboxes). The reference
boxes every frame on its own; the model then sees the estimator's jitter as a moving head. Here centre and
sides are smoothed over time, sides much more than the centre: a head moves fast, but does not change size
fast. Boxes are x0, y0, x1, y1 in pixels. T frames, H W pixels.
"""

from typing import Final

import cv2
import numpy as np
from scipy.ndimage import gaussian_filter1d, median_filter

from ..wan.conditions import FACE_SIZE
from .keypoints import FACE, HEAD, VISIBLE
from .smoothing import spans

AREA_SCALE: Final = 1.3  # box area over the face points' area; the reference's value
ABOVE: Final = 3  # of the added height, parts above the brows to one below the chin; the reference's value

MIN_SHARE: Final = 0.5  # of the 68 points that must be visible, or the frame has no face
MIN_VISIBLE: Final = 0.2  # of either side inside the picture, or the frame has no face
MIN_SIDE: Final = 2.0  # pixels of either side, or there is nothing to see

OUTLIER_S: Final = 0.07  # seconds; at 30 frames/s one or two wrong frames in a row leave no trace
CENTRE_SIGMA_S: Final = 0.05  # seconds; a nod at 2 Hz keeps 82 % of its way
SIDE_SIGMA_S: Final = 0.27  # seconds; a head turn takes about this long
CUT_SLEW: Final = 0.01  # a side cut by the picture's edge comes and goes by at most this much a frame


def face_box(points: np.ndarray, *, height: int, width: int) -> np.ndarray:
    """The reference's face box, before it truncates to whole pixels: (4,) float64, clamped to the picture.

    `points` is (K, 2): the face points in pixels of a picture of `height` × `width`. A face outside the
    picture gives a box without area on its edge (the reference gives crossed corners and crashes on them).
    """
    box = _unclamped_box(points)
    return np.clip(box, 0.0, (width, height, width, height))


def smooth_face_boxes(
    poses: np.ndarray,
    frame_size: tuple[int, int],
    *,
    rate: float = 30.0,
    shots: np.ndarray | None = None,
) -> np.ndarray:
    """Steady boxes of the face through a video: (T, 4) float32 in pixels, inside the picture.

    `poses` is (T, 133, 3) float32 in pixels of pictures of `frame_size` = (H, W), with scores; `rate` is in
    frames a second. `shots` (T,) numbers the shots: nothing is smoothed across a cut.
    Frames without a confident face get a box between their neighbours', or the nearest one's at either end,
    that follows the head where it is still seen; a shot without any face keeps the last box before it. All
    rows are NaN where no frame has a face.
    """
    height, width = frame_size
    found = np.stack([_confident_box(pose, height=height, width=width) for pose in poses])
    shots = np.zeros(len(poses), int) if shots is None else shots
    boxes = np.concatenate(
        [
            _steady_boxes(found[start:stop], _head_track(poses[start:stop]), frame_size=frame_size, rate=rate)
            for start, stop in spans(shots)
        ]
    )
    known = np.isfinite(boxes[:, 0])
    if not known.any():
        return boxes.astype(np.float32)
    latest = np.maximum.accumulate(np.where(known, np.arange(len(boxes)), known.argmax()))
    return boxes[latest].astype(np.float32)


def crop_face(frame: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Cut a box out of a picture, (H, W, 3) uint8, and stretch it to (512, 512, 3) as the reference does.

    A box of whole pixels is exactly the reference's slice and resize; a fractional one is sampled between the
    pixels, so that a slowly moving box does not jump from pixel to pixel. Parts of a box outside the picture
    repeat its edge; a box thinner than a pixel is widened to one.
    """
    height, width = frame.shape[:2]
    x0, y0, x1, y1 = (float(value) for value in box)
    x0, x1 = _at_least_a_pixel(x0, x1, limit=width)
    y0, y1 = _at_least_a_pixel(y0, y1, limit=height)
    inside = x0 >= 0 and y0 >= 0 and x1 <= width and y1 <= height
    if inside and all(value.is_integer() for value in (x0, y0, x1, y1)):
        return cv2.resize(frame[int(y0) : int(y1), int(x0) : int(x1)], (FACE_SIZE, FACE_SIZE))
    step_x, step_y = (x1 - x0) / FACE_SIZE, (y1 - y0) / FACE_SIZE
    to_source = np.array(  # centre of a crop's pixel → centre of a source pixel
        [[step_x, 0.0, x0 + step_x / 2 - 0.5], [0.0, step_y, y0 + step_y / 2 - 0.5]]
    )
    return cv2.warpAffine(
        frame,
        to_source,
        (FACE_SIZE, FACE_SIZE),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )


def _unclamped_box(points: np.ndarray) -> np.ndarray:
    x0, y0 = points.min(axis=0).astype(np.float64)
    x1, y1 = points.max(axis=0).astype(np.float64)
    width, height = x1 - x0, y1 - y0
    if width > 0 and height > 0:
        # Written as the reference writes it: √1.3 times the side, but the last bit decides a truncation now
        # and then.
        area = width * height * AREA_SCALE
        grown_width, grown_height = np.sqrt(area * (width / height)), np.sqrt(area * (height / width))
    else:
        grown_width, grown_height = width * np.sqrt(AREA_SCALE), height * np.sqrt(AREA_SCALE)
    aside = (grown_width - width) / 2
    below = (grown_height - height) / (ABOVE + 1)
    return np.array([x0 - aside, y0 - ABOVE * below, x1 + aside, y1 + below])


def _confident_box(pose: np.ndarray, *, height: int, width: int) -> np.ndarray:
    """The unclamped box of one pose's face, or NaN where the face cannot be trusted or seen."""
    points, scores = pose[FACE, :2], pose[FACE, 2]
    known = (scores >= VISIBLE) & np.isfinite(points).all(axis=1)
    nowhere = np.full(4, np.nan)
    if known.mean() < MIN_SHARE:
        return nowhere
    # Estimators give a point outside the picture no score, yet it says how large a half-seen face is.
    beyond = ((points < 0) | (points >= (width, height))).any(axis=1)
    box = _unclamped_box(points[known | beyond])
    sides = box[2:] - box[:2]
    limits = (width, height)
    visible = np.minimum(box[2:], limits) - np.maximum(box[:2], 0.0)
    if (sides < MIN_SIDE).any() or (visible < MIN_VISIBLE * sides).any():
        return nowhere
    return box


def _steady_boxes(
    found: np.ndarray, heads: np.ndarray, *, frame_size: tuple[int, int], rate: float
) -> np.ndarray:
    """One shot's boxes (T, 4) from unclamped ones, NaN where there was none, and the head's track (2, T)."""
    seen = np.isfinite(found[:, 0])
    if not seen.any():
        return found
    # In a gap the box keeps its place on the head, which moves on. Sides are logarithms: growing and
    # shrinking by the same factor are then the same step.
    centres = _without_gaps((found[:, :2] + found[:, 2:]).T / 2 - heads, seen) + heads  # (2, T)
    sides = _without_gaps(np.log(found[:, 2:] - found[:, :2]).T, seen)
    centres = _smoothed(centres, sigma_s=CENTRE_SIGMA_S, rate=rate)
    sides = np.exp(_smoothed(sides, sigma_s=SIDE_SIGMA_S, rate=rate))
    height, width = frame_size
    x0, x1 = _clamped_steadily(centres[0], sides[0], limit=width)
    y0, y1 = _clamped_steadily(centres[1], sides[1], limit=height)
    return np.stack([x0, y0, x1, y1], axis=1)


def _head_track(poses: np.ndarray) -> np.ndarray:
    """Where the head is without its face points, from nose, eyes and ears: (2, T), zeros where never seen."""
    points, scores = poses[:, HEAD, :2], poses[:, HEAD, 2]
    known = (scores >= VISIBLE) & np.isfinite(points).all(axis=2)
    counts = known.sum(axis=1)
    if not counts.any():
        return np.zeros((2, len(poses)))
    sums = np.where(known[:, :, None], points, 0.0).sum(axis=1, dtype=np.float64)
    return _without_gaps((sums / np.maximum(counts, 1)[:, None]).T, counts > 0)


def _without_gaps(tracks: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Linear over the frames that were not seen, constant before the first and after the last."""
    frames = np.arange(tracks.shape[1])
    return np.stack([np.interp(frames, frames[seen], track[seen]) for track in tracks])


def _smoothed(tracks: np.ndarray, *, sigma_s: float, rate: float) -> np.ndarray:
    """Tracks (N, T) without outliers and jitter; zero-phase, so that nothing lags."""
    kept = median_filter(tracks, size=(1, 2 * round(OUTLIER_S * rate) + 1), mode="nearest")
    return gaussian_filter1d(kept, sigma_s * rate, axis=1, mode="nearest")


def _clamped_steadily(centre: np.ndarray, side: np.ndarray, *, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Intervals of one axis, inside 0…limit: (T,) starts and ends.

    A face that stays at the picture's edge is cut, as in the reference. One that crosses the edge would
    shrink its box within a few frames: there the box keeps its size for longer and moves inside instead, so
    that it does not pump.
    """
    start, end = centre - side / 2, centre + side / 2
    inside = np.minimum(end, limit) - np.maximum(start, 0.0)
    cut = np.log(np.maximum(inside, MIN_VISIBLE * side) / side)  # 0 = whole
    for order in (range(1, len(cut)), range(len(cut) - 2, -1, -1)):
        step = order.step
        for frame in order:
            cut[frame] = max(cut[frame], cut[frame - step] - CUT_SLEW)
    length = np.minimum(side * np.exp(cut), limit)
    start = np.clip(start, 0.0, limit - length)
    return start, np.minimum(start + length, limit)


def _at_least_a_pixel(start: float, end: float, *, limit: int) -> tuple[float, float]:
    """The interval where it is a pixel long or longer; else the pixel of the picture next to it."""
    if end - start >= 1:
        return start, end
    first = float(min(max(int(min(start, end)), 0), limit - 1))
    return first, first + 1
