"""Tracks over time: gaps closed, jitter removed without delay, visibility that does not flicker. Pure arrays.

The whole video is at hand, so every filter looks both ways and shifts nothing in time. Nothing is smoothed,
filled or held across a cut: `shots` (N,) numbers the shots. N frames, C coordinates.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from scipy.ndimage import binary_closing, binary_opening, median_filter

from .keypoints import (
    FACE,
    FEET,
    HEAD,
    LEFT_HAND,
    LEFT_HIP,
    LEFT_SHOULDER,
    LEFT_WRIST,
    NOSE,
    RIGHT_HAND,
    RIGHT_HIP,
    RIGHT_SHOULDER,
    RIGHT_WRIST,
    VISIBLE,
)

# Spans in seconds, so that 24 and 60 frames a second look alike. Numbers in brackets: frames at 30.
SMOOTH_S: Final = 0.11  # half width of the smoothing (3): keeps what moves at up to 9 Hz
TRUNK_SMOOTH_S: Final = 0.14  # of head, shoulders and hips, which no one moves as fast (4): up to 5 Hz
FLICKER_S: Final = 0.17  # a point hidden, or seen, for a shorter time keeps its state (5)
BRIDGE_S: Final = 0.5  # longest way from pose to pose through an absence (15)

APPEAR: Final = 0.6  # score from which a hidden point becomes visible, …
VANISH: Final = 0.4  # … and below which a visible one becomes hidden
KNOWN: Final = 0.3  # score from which a visible point's own place is used
JUST_HIDDEN: Final = VISIBLE - 0.01
MIN_TRUST: Final = 0.1  # weight of a place with a score of 0, as a score

ROBUST_ROUNDS: Final = 3
OUTLIER: Final = 4.0  # times the typical distance from the fit, from where a value counts nothing
STIFFNESS: Final = 1e-3  # against slopes and bends that few or doubtful neighbours suggest

# A hand or a face is interpolated beside the joint that carries it: an arm does not move along straight
# lines.
CARRIED: Final = ((FACE, NOSE), (LEFT_HAND, LEFT_WRIST), (RIGHT_HAND, RIGHT_WRIST))


MIN_CUT: Final = 16.0  # mean change of a thumbnail's pixels, of 255
CUT_OVER_MOTION: Final = 3.0  # times the changes around it: a fast camera changes as much, but goes on
CUT_SURROUNDINGS: Final = 3  # frames to either side


def number_shots(changes: np.ndarray) -> np.ndarray:
    """The number of the shot each frame belongs to: (N,) int64 from 0, rising at every cut.

    `changes` (N,) is how much each frame's thumbnail differs from the one before, on average, of 255. A
    cut is a change that stands alone; a flash makes two of them and is none.
    """
    cuts = np.zeros(len(changes), bool)
    for frame in np.flatnonzero(changes >= MIN_CUT).tolist():
        around = slice(max(frame - CUT_SURROUNDINGS, 1), frame + CUT_SURROUNDINGS + 1)
        others = np.delete(changes[around], frame - around.start)
        cuts[frame] = frame > 0 and changes[frame] >= CUT_OVER_MOTION * others.max(initial=0.0)
    return np.cumsum(cuts)


TRUNK: Final = frozenset(
    (
        *range(HEAD.start, HEAD.stop),
        *range(FACE.start, FACE.stop),
        LEFT_SHOULDER,
        RIGHT_SHOULDER,
        LEFT_HIP,
        RIGHT_HIP,
    )
)
CALM: Final = 0.06  # unrest up to which the spans above hold; beyond, they grow with it, …
MAX_PATIENCE: Final = 3.0  # … up to this factor: a trunk that is mostly hidden is guessed anew in every frame
EDGE: Final = 0.02  # of the longer side, by which a visible joint may leave the picture: drawn at its edge


# --- whole poses


def smooth_poses(
    poses: np.ndarray,
    present: np.ndarray,
    shots: np.ndarray,
    *,
    rate: float,
    frame_size: tuple[int, int],
    check: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """Steady poses (N, 133, 3) float32 for all frames from estimated ones, which stay as they are.

    Places: confidence-weighted parabolas over a quarter of a second. Scores: ≥ 0.5 exactly where a point
    is steadily visible, so that limbs do not flicker around the drawing's threshold; 0 outside a picture
    of `frame_size` = (H, W). Frames that are not `present` (N,) bool get stand-ins, see `find_absences`.
    `rate` is in frames a second. `check` is called now and then, and may raise to stop.
    """
    patience = 1 + np.clip(unrest(poses, present) / CALM - 1, 0, MAX_PATIENCE - 1)
    steady = np.zeros_like(poses)
    for point in range(poses.shape[1]):
        check()
        carrier = next((joint for part, joint in CARRIED if part.start <= point < part.stop), None)
        origin = None if carrier is None else steady[:, carrier, :2]
        half = round((TRUNK_SMOOTH_S if point in TRUNK else SMOOTH_S) * rate * patience)
        steady[:, point] = _smooth_point(
            poses[:, point],
            present,
            shots,
            origin=origin,
            half=half,
            flicker=round(FLICKER_S * rate * patience),
        )
    for absence in find_absences(present, shots):
        _stand_in(steady, absence, bridge=round(BRIDGE_S * rate))
    for point in range(poses.shape[1]):
        _settle_edge(steady[:, point], frame_size, is_joint=point < FEET.stop)
    return steady


def unrest(poses: np.ndarray, present: np.ndarray) -> float:
    """How much the trunk's corners shake from frame to frame, of its length: up to 0.04 if well seen."""
    corners = poses[:, [LEFT_SHOULDER, RIGHT_SHOULDER, LEFT_HIP, RIGHT_HIP], :2].astype(np.float64)
    settled = present[:-2] & present[1:-1] & present[2:]
    length = float(
        np.median(np.linalg.norm(corners[present, :2].mean(1) - corners[present, 2:].mean(1), axis=1))
    )
    if not settled.any() or length <= 0:
        return 0.0
    shake = np.abs(np.diff(corners, 2, axis=0)).mean(axis=(1, 2))
    return float(np.median(shake[settled])) / length


def _settle_edge(track: np.ndarray, frame_size: tuple[int, int], *, is_joint: bool) -> None:
    """A point (N, 3) outside the picture loses its score, but a visible joint just outside moves to the edge.

    A joint that hovers about the edge would otherwise come and go, and its limbs with it.
    """
    height, width = frame_size
    limits = np.array([width, height], track.dtype)
    if is_joint:
        inside = np.clip(track[:, :2], 0, limits - 1)
        near = np.abs(track[:, :2] - inside).max(axis=1) <= EDGE * max(frame_size)
        drawn = near & (track[:, 2] >= VISIBLE)
        track[drawn, :2] = inside[drawn]
    outside = ((track[:, :2] < 0) | (track[:, :2] >= limits)).any(axis=1)
    track[outside, 2] = 0.0


def _smooth_point(
    track: np.ndarray,
    present: np.ndarray,
    shots: np.ndarray,
    *,
    origin: np.ndarray | None,
    half: int,
    flicker: int,
) -> np.ndarray:
    """One point's (N, 3) through the video. `origin` (N, 2) is the place of the joint that carries it."""
    places, scores = track[:, :2].astype(np.float64), track[:, 2].astype(np.float64)
    placed = present & (track != 0).any(axis=1)  # hands and faces that were not found have no place at all
    if not placed.any():
        return np.zeros_like(track)
    scores = fill_gaps(scores[:, None], present, shots)[:, 0]
    visible = steady_visibility(scores, shots, flicker=flicker)
    # Where a point is visible but doubtful for a moment, its neighbours know better; where it is hidden,
    # nobody does.
    known = placed & ((scores >= KNOWN) | ~visible)
    base = np.zeros_like(places) if origin is None else origin.astype(np.float64)
    places = fill_gaps(places - base, known, shots) + base
    trust = np.where(known, np.maximum(scores, MIN_TRUST), MIN_TRUST) ** 2
    places = smooth_track(places, trust, shots, half=half)
    scores = np.where(visible, np.maximum(scores, VISIBLE), np.minimum(scores, JUST_HIDDEN))
    return np.column_stack([places, scores]).astype(track.dtype)


def steady_visibility(scores: np.ndarray, shots: np.ndarray, *, flicker: int) -> np.ndarray:
    """Where a point counts as visible: (N,) bool from its scores (N,), without short changes.

    Changes that last fewer than `flicker` frames are undone, except at the ends of a shot: there they may
    be the beginning of something.
    """
    visible = np.zeros(len(scores), bool)
    for start, stop in spans(shots):
        state = bool(scores[start] >= VISIBLE)
        for frame, score in enumerate(scores[start:stop].tolist(), start):
            state = score >= (VANISH if state else APPEAR)
            visible[frame] = state
        if flicker > 1 and stop - start >= 2 * flicker:
            visible[start:stop] = _without_short_runs(visible[start:stop], flicker)
    return visible


def _without_short_runs(visible: np.ndarray, flicker: int) -> np.ndarray:
    """(N,) bool in which every run, but for the first and the last, is at least `flicker` frames long."""
    # The majority decides first: hits that are mostly misses must not add up. What alternates evenly, which a
    # majority leaves as it is, is then visible.
    major = median_filter(visible, size=2 * flicker - 1, mode="nearest")
    padded = np.pad(major, flicker, mode="edge")
    window = np.ones(flicker, bool)
    return binary_opening(binary_closing(padded, window), window)[flicker:-flicker]


# --- absences: frames in which the person could not be estimated at all


@dataclass(frozen=True, slots=True, kw_only=True)
class Absence:
    """A run of frames without the person, and the frames whose poses stand in: at least one of the two."""

    start: int  # first frame
    stop: int  # one after the last
    before: int | None  # held from the start on; None where the shot begins with the absence
    after: int | None  # reached at the end; None where the shot ends with it


def find_absences(present: np.ndarray, shots: np.ndarray) -> list[Absence]:
    """Every run of frames without the person, shot by shot, from `present` (N,) bool.

    Shots without anybody come last: they hold the pose from before the cut, be it a stand-in itself, or
    the first pose of the video.
    """
    anybody = np.flatnonzero(present)
    if not len(anybody):
        return []
    found, empty = [], []
    for start, stop in spans(shots):
        if not present[start:stop].any():
            early = start < anybody[0]
            before, after = (None, int(anybody[0])) if early else (start - 1, None)
            empty.append(Absence(start=start, stop=stop, before=before, after=after))
            continue
        for first, last in spans(present[start:stop]):
            if not present[start + first]:
                before = start + first - 1 if first > 0 else None
                after = start + last if start + last < stop else None
                found.append(Absence(start=start + first, stop=start + last, before=before, after=after))
    return found + empty


def _stand_in(poses: np.ndarray, absence: Absence, *, bridge: int) -> None:
    """Write stand-ins into `poses`: up to `bridge` frames as a straight way from one pose to the next.

    A longer absence holds the pose before it and is bridged at its end, so that nothing jumps. With a
    pose on one side only, that one is held. Held poses have no face: there is none to be cut out of those
    frames.
    """
    start, stop = absence.start, absence.stop
    if absence.before is None or absence.after is None:
        poses[start:stop] = poses[absence.after if absence.before is None else absence.before]
        poses[start:stop, FACE, 2] = 0.0
        return
    old, new = poses[absence.before].copy(), poses[absence.after]
    steps = min(bridge, stop - start)
    if steps < stop - start:
        old[FACE, 2] = 0.0
    share = np.clip(np.arange(start, stop) - (stop - 1 - steps), 0, steps) / (steps + 1)
    poses[start:stop] = old + share[:, None, None] * (new - old)
    both = np.minimum(old[:, 2], new[:, 2])  # on the way a point shows only where it does at both ends
    poses[start:stop, :, 2] = np.where(share[:, None] > 0, both, old[:, 2])


# --- tracks of plain numbers


def smooth_track(
    values: np.ndarray, weights: np.ndarray, shots: np.ndarray, *, half: int, robust: bool = False
) -> np.ndarray:
    """Fit a parabola around every frame to its `half` neighbours on either side: (N, C) float64.

    `values` is (N, C); `weights` (N,) ≥ 0 say how far each frame is trusted. Frames of weight 0 should
    have a plausible value (`fill_gaps`): it is used where a whole window has no weight. `robust` keeps
    lone outliers from pulling the curve. With equal weights this is a Savitzky-Golay filter of degree 2,
    also at the ends.
    """
    fitted = np.array(values, np.float64)
    for start, stop in spans(shots):
        part = np.array(values[start:stop], np.float64)
        trust = np.array(weights[start:stop], np.float64)
        for _ in range(ROBUST_ROUNDS if robust else 0):
            miss = np.linalg.norm(part - _parabolas(part, trust, half), axis=1)
            weighed = weights[start:stop] > 0
            typical = float(np.median(miss[weighed])) if weighed.any() else 0.0
            credible = np.clip(1 - (miss / max(OUTLIER * typical, 1e-6)) ** 2, 0, 1) ** 2  # Tukey's biweight
            trust = weights[start:stop] * credible
        fitted[start:stop] = _parabolas(part, trust, half)
    return fitted


def _parabolas(values: np.ndarray, weights: np.ndarray, half: int) -> np.ndarray:
    """The weighted fits' values at their own centres, (N, C)."""
    count = len(values)
    half = min(half, count - 1)
    if half < 1:
        return values
    trust = weights + 1e-6  # a window without any weight would have no solution
    moments = np.zeros((5, count))
    sums = np.zeros((count, 3, values.shape[1]))
    for offset in range(-half, half + 1):
        here = slice(max(-offset, 0), count - max(offset, 0))
        there = slice(max(offset, 0), count - max(-offset, 0))
        for power in range(5):
            moments[power, here] += trust[there] * offset**power
        for power in range(3):
            sums[here, power] += (trust[there] * offset**power)[:, None] * values[there]
    matrix = np.stack([moments[row : row + 3].T for row in range(3)], axis=1)  # (N, 3, 3)
    matrix[:, 1, 1] += STIFFNESS * moments[0]
    matrix[:, 2, 2] += STIFFNESS * moments[0] * half**2
    return np.linalg.solve(matrix, sums)[:, 0]


def fill_gaps(values: np.ndarray, known: np.ndarray, shots: np.ndarray) -> np.ndarray:
    """Straight lines through the known frames' values (N, C), constant at either end of a shot.

    Returns (N, C) float64. A shot without any known frame keeps its values.
    """
    filled = np.array(values, np.float64)
    for start, stop in spans(shots):
        frames = np.arange(start, stop)
        at = frames[known[start:stop]]
        if 0 < len(at) < len(frames):
            for column in range(filled.shape[1]):
                filled[start:stop, column] = np.interp(frames, at, filled[at, column])
    return filled


def spans(labels: np.ndarray) -> Iterator[tuple[int, int]]:
    """Start and end of every run of equal labels (N,), in order."""
    edges = np.flatnonzero(labels[1:] != labels[:-1]) + 1
    bounds = [0, *edges.tolist(), len(labels)]
    yield from pairwise(bounds)
