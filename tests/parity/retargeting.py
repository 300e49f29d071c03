"""Recordings of the official retargeting beside ours.

The official code never takes a joint for missing, and measures hidden ones too. So the two can only be equal
in points that are seen, hang from seen ones, and are measured on seen ones; the others are listed. Which ones
those are follows from the scores in the recording, not from the outcome. T frames.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from wan_animate.preprocess.keypoints import LEFT_HAND, NUM_KEYPOINTS, RIGHT_HAND, VISIBLE
from wan_animate.preprocess.retarget import EditedStances, apply_proportions, measure
from wan_animate.preprocess.skeleton import draw_points

from .findings import Check, Finding, arrays, exact, holds, within

PIXEL = 1.0
SAME = 0.01  # pixels; float32 in, float32 out
NECK, RIGHT_WRIST, LEFT_WRIST = 1, 4, 7  # of the official 20 body points

# The official 20 body points as means of two of the 133: the neck of the shoulders, the toes of two toes.
FIRST = np.array([0, 6, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3, 17, 20])
SECOND = np.array([0, 5, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3, 18, 21])

# What each body point hangs from, and its other side, whose bone has the same ratio.
PARENT = {0: 1, 2: 1, 3: 2, 4: 3, 5: 1, 6: 5, 7: 6, 8: 1, 9: 8, 10: 9, 11: 1, 12: 11, 13: 12}
PARENT |= {14: 0, 15: 0, 16: 14, 17: 15, 18: 13, 19: 10}
OTHER = {2: 5, 3: 6, 4: 7, 8: 11, 9: 12, 10: 13, 14: 15, 16: 17, 18: 19}
OTHER |= {right: left for left, right in OTHER.items()}
ANKLES, TOES = (10, 13), (18, 19)

# Numbers as in REFERENCE.
HIDDEN = "REFERENCE A11: hidden joints are measured and carry others there, never here (points {points})"
OTHER_GROUND = "REFERENCE A11: stands on toes that are hidden there, on what is seen here; moved as a whole"
OTHER_FRAME = "REFERENCE A13: frame 0 alone is set down where the measured frame stood; the same pose, moved"
OTHER_HANDS = (
    "REFERENCE A12: hands are exchanged, but each moved as the other there; on their own wrists here"
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Recording:
    """One recorded case; poses are (…, 133, 3) float32 in pixels."""

    stance: np.ndarray  # of the frame that is measured
    poses: np.ndarray  # (T, 133, 3)
    reference: np.ndarray
    driving_size: tuple[int, int]
    reference_size: tuple[int, int]
    edited: EditedStances | None
    outputs: list[dict[str, Any]]

    @staticmethod
    def load(path: Path) -> "Recording":
        recorded = json.loads(path.read_text())
        inputs = recorded["inputs"]
        stance, reference = inputs["tpl_pose_meta0"], inputs["refer_pose_meta"]
        edited = inputs["tql_edit_pose_meta0"], inputs["refer_edit_pose_meta"]
        return Recording(
            stance=_pose(stance),
            poses=np.stack([_pose(meta) for meta in inputs["tpl_pose_metas"]]),
            reference=_pose(reference),
            driving_size=_size(stance),
            reference_size=_size(reference),
            edited=EditedStances(
                driving=_pose(edited[0]),
                driving_size=_size(edited[0]),
                reference=_pose(edited[1]),
                reference_size=_size(edited[1]),
            )
            if edited[0] is not None
            else None,
            outputs=recorded["outputs"],
        )

    def recorded(self, name: str) -> np.ndarray:
        """(T, points, 2); NaN where the recording has no place."""
        return np.array([output[name] for output in self.outputs], np.float64)

    def sure(self) -> np.ndarray:
        """(T, 20): which body points have a place that nothing hidden decides."""
        measured = [self.stance, self.reference]
        if self.edited is not None:
            measured += [self.edited.driving, self.edited.reference]
        bones = np.all([_seen_chain(pose) for pose in measured], axis=0)
        both = np.array([bones[point] and bones[OTHER.get(point, point)] for point in range(20)])
        return np.stack([_seen_chain(pose) for pose in self.poses]) & both

    @property
    def guesses_the_ground(self) -> bool:
        """Whether the official figure stands on toes that are not seen."""
        scores = _scores(self.reference)
        return scores[list(ANKLES)].min() >= VISIBLE > scores[list(TOES)].min()

    @property
    def measures_another_frame(self) -> bool:
        return not np.array_equal(_body(self.stance[None]), _body(self.poses[:1]))

    @property
    def hands_exchanged(self) -> bool:
        """Whether the driving hands lie on each other's wrists."""
        roots = self.poses[:, [RIGHT_HAND.start, LEFT_HAND.start]]
        wrists = self.poses[:, [10, 9]]
        far = np.linalg.norm(roots[..., :2] - wrists[..., :2], axis=-1).sum(axis=1)
        near = np.linalg.norm(roots[:, ::-1, :2] - wrists[..., :2], axis=-1).sum(axis=1)
        return bool((roots[..., 2].min() >= VISIBLE) and (near < far).all())


def retarget(path: Path) -> Iterator[Finding]:
    """Body and hands of every frame, and how they are drawn."""
    case = Recording.load(path)
    proportions = measure(
        case.stance[None],
        case.reference,
        driving_size=case.driving_size,
        reference_size=case.reference_size,
        edited=case.edited,
        official_size=True,
    )
    moved = apply_proportions(case.poses, proportions)
    apart = _body(moved) - case.recorded("kps_body")
    sure = case.sure()
    frames = np.arange(len(moved))
    if case.measures_another_frame:
        promise = within(
            "frame 0, moved", (apart[0] - apart[0, NECK])[sure[0]], np.zeros((sure[0].sum(), 2)), PIXEL
        )
        yield Finding(part="frame 0", different=OTHER_FRAME, checks=(promise,))
        frames = frames[1:]
    shift = np.zeros((len(moved), 1, 2))
    if case.measures_another_frame or case.guesses_the_ground:
        shift = apart[:, NECK : NECK + 1]
    if not sure[frames].any():
        pass  # all is listed below
    elif case.guesses_the_ground:
        rest = (apart - shift)[sure]
        promise = within("body, moved", rest, np.zeros_like(rest), PIXEL)
        steady = within("moved the same in all frames", np.ptp(shift[frames], axis=0), [[0, 0]], SAME)
        yield Finding(part="body", different=OTHER_GROUND, checks=(promise, steady))
    else:
        rest = apart[frames][sure[frames]]
        yield Finding(part="body", checks=(within("body", rest, np.zeros_like(rest), PIXEL),))
    if not sure.all():
        points = ", ".join(str(point) for point in np.flatnonzero(~sure.all(axis=0)))
        yield Finding(part="hidden points", different=HIDDEN.format(points=points))
    yield _hands(case, moved, shift)
    canvas = path.with_name(f"{path.stem}_canvas.npz")
    if canvas.exists():
        yield Finding(part="drawn", checks=tuple(_drawings(case, arrays(canvas)["canvas"])))


def _hands(case: Recording, moved: np.ndarray, shift: np.ndarray) -> Finding:
    """The official code calls the hand on the right wrist the left one, and cuts off its fractions."""
    checks = []
    for name, hand, wrist in (("kps_lhand", RIGHT_HAND, RIGHT_WRIST), ("kps_rhand", LEFT_HAND, LEFT_WRIST)):
        ours = moved[:, hand, :2] - shift
        if case.hands_exchanged:
            own_wrist = _body(moved)[:, wrist] - shift[:, 0]
            checks.append(within(f"{name} on its wrist", ours[:, 0], own_wrist, 2 * PIXEL))
            continue
        theirs = case.recorded(name)
        known = np.isfinite(theirs[..., 0])
        checks += [
            _beyond_pixels(name, ours[known], theirs[known]),
            holds(f"{name}: the same points hidden", not (moved[:, hand, 2][~known]).any()),
        ]
    different = OTHER_HANDS if case.hands_exchanged else OTHER_GROUND if case.guesses_the_ground else ""
    return Finding(part="hands", different=different, checks=tuple(checks))


def _beyond_pixels(what: str, ours: np.ndarray, theirs: np.ndarray) -> Check:
    """How far places lie outside the whole pixels they were cut off to, which is towards 0."""
    below = theirs - (theirs <= 0) - ours
    above = ours - theirs - (theirs >= 0)
    return Check(what=what, error=float(np.maximum(below, above).max(initial=0.0)), tolerance=PIXEL)


def _drawings(case: Recording, canvases: np.ndarray) -> Iterator[Check]:
    for frame, (canvas, output) in enumerate(zip(canvases, case.outputs, strict=False)):
        parts = [
            np.column_stack([case.recorded(f"kps_{part}")[frame], output[f"kps_{part}_p"]])
            for part in ("body", "lhand", "rhand")
        ]
        height, width = canvas.shape[:2]
        yield exact(f"canvas {frame}", draw_points(*parts, height=height, width=width), canvas)


def pose_of_body(body: Any) -> np.ndarray:
    """The official 20 body points, (20, 3), among the 133: (133, 3) float32; the rest is zeros."""
    pose = np.zeros((NUM_KEYPOINTS, 3), np.float32)
    for point in set(range(20)) - {NECK}:  # the neck follows from the shoulders
        pose[FIRST[point]] = pose[SECOND[point]] = body[point]
    return pose


def _pose(meta: dict[str, Any]) -> np.ndarray:
    """(133, 3) float32 in pixels of the official body and hands, which are fractions of the picture."""
    pose = pose_of_body(meta["keypoints_body"])
    pose[LEFT_HAND], pose[RIGHT_HAND] = meta["keypoints_left_hand"], meta["keypoints_right_hand"]
    return pose * np.array([meta["width"], meta["height"], 1], np.float32)


def _body(poses: np.ndarray) -> np.ndarray:
    """(T, 133, 3) → the official 20 points, (T, 20, 2)."""
    return (poses[:, FIRST, :2].astype(np.float64) + poses[:, SECOND, :2]) / 2


def _scores(pose: np.ndarray) -> np.ndarray:
    """Of the official 20 points."""
    return np.minimum(pose[FIRST, 2], pose[SECOND, 2])


def _seen_chain(pose: np.ndarray) -> np.ndarray:
    """(20,): whether a body point and all that it hangs from is seen."""
    seen = _scores(pose) >= VISIBLE
    for point, parent in sorted(PARENT.items(), key=lambda pair: _depth(pair[0])):
        seen[point] &= seen[parent]
    return seen


def _depth(point: int) -> int:
    return 0 if point == NECK else 1 + _depth(PARENT[point])


def _size(meta: dict[str, Any]) -> tuple[int, int]:
    return meta["height"], meta["width"]
