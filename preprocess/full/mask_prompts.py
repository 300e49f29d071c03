"""Where a person was tracked in, what SAM2 is told out: key frames, and clicks and a box on each. Pure.

Only what was well seen is clicked: the official code clicks eight joints whatever their scores, so that the
guessed hips of a half body select the sofa. Knows no network. N frames, pixels of the video's frames.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from ..bystanders import boxes_at
from ..identities import box_areas, common_area
from ..keypoints import (
    BODY,
    LEFT_ANKLE,
    LEFT_ELBOW,
    LEFT_HIP,
    LEFT_KNEE,
    LEFT_SHOULDER,
    NOSE,
    RIGHT_ANKLE,
    RIGHT_ELBOW,
    RIGHT_HIP,
    RIGHT_KNEE,
    RIGHT_SHOULDER,
)
from ..smoothing import spans
from ..subjects import SubjectTrack

CLICKABLE: Final = (  # well inside a body; wrists and toes are a few pixels wide, and fast
    NOSE, LEFT_SHOULDER, RIGHT_SHOULDER, LEFT_ELBOW, RIGHT_ELBOW, LEFT_HIP, RIGHT_HIP, LEFT_KNEE, RIGHT_KNEE,
    LEFT_ANKLE, RIGHT_ANKLE,
)  # fmt: skip
SURE: Final = 0.6  # score of a point that may be clicked
SEEN: Final = 0.3  # score from which a point counts for the box where the person was not detected
EDGE: Final = 0.01  # of the longer side of the picture, within which a point is not clicked
BOX_MARGIN: Final = 0.15  # of its sides, by which a box around joints grows to hold the flesh around them
OUTSIDE: Final = 0.05  # of its sides, by which a joint may lie outside the detected box

NEAR: Final = 0.5  # of the person's size, up to which somebody else is told apart by a click
OTHER_HEIGHTS: Final = (0.5, 0.35, 0.65, 0.2, 0.8)  # places down the middle of a box that show its person
CLEAR_OF_LIMBS: Final = 0.15  # of the person's size, that a click on somebody else keeps from the own joints

UNDETECTED: Final = 0.7  # clarity of a frame whose box is only known from joints, against a detected one's
BOX_ONLY: Final = 0.05  # clarity of a frame with a box but nothing to click
COVERED: Final = 0.05  # clarity where somebody's box covers the person's, against that with nobody near
CROWDED: Final = 0.6  # clarity beside somebody, against that with one's own size in between


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prompt:
    """What SAM2 is told about one frame."""

    points: np.ndarray  # (P, 2) float32 x, y; P may be 0
    labels: np.ndarray  # (P,) int64: 1 = on the person, 0 = on somebody else
    box: np.ndarray  # (4,) float32 x0, y0, x1, y1 of the person, inside the frame


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Guide:
    """All that is known of where the person is."""

    track: SubjectTrack
    poses: np.ndarray  # (N, 133, 3) float32, as estimated
    present: np.ndarray  # (N,) bool
    shots: np.ndarray  # (N,) numbers of shots
    size: tuple[int, int]  # (H, W) of the frames

    def stretches(self, *, bridge: int) -> Iterator[tuple[int, int]]:
        """First and last-plus-one frames of every time the person is there, in order.

        Absences of up to `bridge` frames within a shot are part of it.
        """
        for start, stop in spans(self.shots):
            there = np.flatnonzero(self.present[start:stop]) + start
            if len(there):
                breaks = np.flatnonzero(np.diff(there) > bridge + 1)
                firsts, lasts = there[np.r_[0, breaks + 1]], there[np.r_[breaks, len(there) - 1]]
                yield from zip(firsts.tolist(), (lasts + 1).tolist(), strict=True)

    def key_frame(self, start: int, stop: int, *, least: float = 0.0) -> int | None:
        """The frame of a range in which the person is best told from everything else.

        None where the person is in none of them, or none is as clear as `least`.
        """
        clarity = [self.clarity(frame) for frame in range(start, stop)]
        best = int(np.argmax(clarity))
        return start + best if clarity[best] > 0 and clarity[best] >= least else None

    def clarity(self, frame: int) -> float:
        """How well a frame shows who is meant, 0…1: sure joints, no one near. 0 without the person."""
        box = self.box(frame)
        if box is None:
            return 0.0
        sure = self._sure(frame, box)
        clear = max(float(self.poses[frame, sure, 2].sum()) / len(CLICKABLE), BOX_ONLY)
        if not self.track.seen[frame]:
            clear *= UNDETECTED
        for other in boxes_at(self.track.others, frame, self.shots):
            covered = float(common_area(box, other) / box_areas(box))
            apart = float(np.clip(_distance(box, other) / _diagonal(box), 0, 1))
            clear *= max(1 - covered, COVERED) * (CROWDED + (1 - CROWDED) * apart)
        return clear

    def prompt(self, frame: int) -> Prompt:
        """What to tell about a frame with the person, a `key_frame`.

        Its sure joints, others' middles where they are near, and the box.
        """
        box = self.box(frame)
        if box is None:
            raise ValueError(f"the person is not in frame {frame}")
        others = boxes_at(self.track.others, frame, self.shots)
        sure = self._sure(frame, box)
        joints = self.poses[frame, sure, :2]
        # Somebody may be in front. Joints outside of the others' boxes are surely the person's own.
        free = np.array([not any(_inside(joint, other) for other in others) for joint in joints], bool)
        own = joints[free] if free.any() else joints
        near = [other for other in others if _distance(box, other) <= NEAR * _diagonal(box)]
        foreign = [click for other in near if (click := self._click_on(other, frame, box)) is not None]
        points = np.array([*own, *foreign], np.float32).reshape(-1, 2)
        labels = np.array([1] * len(own) + [0] * len(foreign), np.int64)
        return Prompt(points=points, labels=labels, box=box)

    def box(self, frame: int) -> np.ndarray | None:
        """The person's box (4,) in a frame, clipped to it; None where the person is not there.

        Around the joints seen where nobody was detected.
        """
        if not self.present[frame]:
            return None
        box = self.track.boxes[frame]
        if not np.isfinite(box).all():
            body = self.poses[frame, BODY]
            joints = body[body[:, 2] >= SEEN, :2]
            if len(joints) < 2:  # a box needs two corners
                return None
            box = np.concatenate([joints.min(axis=0), joints.max(axis=0)])
            box = _grown(box, BOX_MARGIN)
        limits = np.tile(np.array(self.size[::-1], np.float32), 2)
        box = np.clip(box, 0, limits).astype(np.float32)
        return box if box_areas(box) > 0 else None

    def _sure(self, frame: int, box: np.ndarray) -> list[int]:
        """Joints that may be clicked: well seen, inside the picture, inside the box (4,)."""
        height, width = self.size
        margin = EDGE * max(self.size)
        x, y, score = self.poses[frame].T
        inside = (x >= margin) & (x < width - margin) & (y >= margin) & (y < height - margin)
        around = _grown(box, OUTSIDE)
        inside &= (x >= around[0]) & (x <= around[2]) & (y >= around[1]) & (y <= around[3])
        return [joint for joint in CLICKABLE if inside[joint] and score[joint] >= SURE]

    def _click_on(self, other: np.ndarray, frame: int, box: np.ndarray) -> np.ndarray | None:
        """A place (2,) on somebody else's box (4,) that is not on the person; None where there is none."""
        body = self.poses[frame, BODY]
        joints = body[body[:, 2] >= SEEN, :2]
        for down in OTHER_HEIGHTS:
            place = np.array([(other[0] + other[2]) / 2, other[1] + down * (other[3] - other[1])], np.float32)
            if not _inside(place, np.array([0, 0, self.size[1] - 1, self.size[0] - 1])):
                continue
            if not _inside(place, box):
                return place
            reach = np.linalg.norm(joints - place, axis=1).min() if len(joints) else 0.0
            if reach > CLEAR_OF_LIMBS * _diagonal(box):
                return place
        return None


def _grown(box: np.ndarray, share: float) -> np.ndarray:
    margin = share * np.tile(box[2:] - box[:2], 2) * np.array([-1, -1, 1, 1])
    return box + margin


def _inside(place: np.ndarray, box: np.ndarray) -> bool:
    return bool((place >= box[:2]).all() and (place <= box[2:]).all())


def _diagonal(box: np.ndarray) -> float:
    return max(float(np.hypot(*(box[2:] - box[:2]))), 1.0)


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    """Pixels between two boxes (4,), 0 where they touch."""
    gap = np.maximum(np.maximum(a[:2] - b[2:], b[:2] - a[2:]), 0)
    return float(np.hypot(*gap))
