"""Identities in, the one that is meant, followed through the whole video, out. Pure; knows no detector.

One identity is chosen by size or side. Where it is not found it still may be there: what is estimated in its
gaps must be told from other people, and from things. N frames, M people in a frame, L numbers of looks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from scipy.ndimage import binary_closing

from .backends import REGION, People
from .identities import (
    SAME_LOOKS,
    SAME_LOOKS_AT_ONCE,
    SHORT_GAP,
    Identity,
    box_areas,
    box_overlap,
    common_area,
    find_identities,
)
from .keypoints import FACE, FEET, LEFT_HAND, RIGHT_HAND, VISIBLE
from .looks import looks_cost
from .smoothing import fill_gaps, smooth_track, spans

Subject = Literal["largest", "leftmost", "rightmost", "center"]

TRUSTED: Final = 0.5  # score that an identity must reach in a tenth of its frames
SURE: Final = 0.7  # score that needs no proof by a face or a hand
MIN_PROVEN: Final = 0.1  # of a shot's frames with a face or a hand, or somebody unsure is a cushion
PROOFS: Final = [FACE.start + 30, LEFT_HAND.start, RIGHT_HAND.start]  # tip of the nose, wrists; of the 133
MIN_WEIGHT: Final = 0.05  # of the heaviest identity's area × score × time, or it is a passer-by
DOUBLE_OVERLAP: Final = 0.5  # intersection over union from which two boxes are one person

GAP_TRUST: Final = 0.1  # score of a region in a gap: enough to keep a curve from running on into it


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SubjectTrack:
    """Where the chosen person is to be looked for, in every frame."""

    regions: np.ndarray  # (N, 4) float32, as in People: gaps closed, jitter removed
    boxes: np.ndarray  # (N, 4) float32, NaN in frames where the person was not found
    looks: np.ndarray  # (N, L) float32: how the person of that shot looks
    others: tuple[Identity, ...]  # everybody else of importance, so as not to be taken for the person
    sure: np.ndarray  # (N,) bool: detected so clearly that no face or hand is needed to prove the person
    bystanders: np.ndarray  # (N, P, 4) float32: boxes of those surely people who could be meant, or NaN
    newcomers: tuple[int, ...] = ()  # numbers of the shots in which another person had to be taken

    @property
    def seen(self) -> np.ndarray:
        """(N,) bool: where the person was found."""
        return np.isfinite(self.boxes[:, 0])

    def is_subject(self, frame: int, pose: np.ndarray, looks: np.ndarray) -> bool:
        """Whether a pose (133, 3) estimated in a frame's region is the person, not somebody else or a thing.

        Where the person was found, it must lie there rather than on another one. Elsewhere nobody
        known may be, and it must look like the person, and more so than like anybody whom it touches: a
        network that is shown a chair finds a person in it, and one that is shown two people, a mixture.
        """
        box = pose_box(pose)
        rivals = [
            (one, float(box_overlap(box, one.boxes[at[0]])))
            for one in self.others
            if len(at := np.flatnonzero(one.frames == frame))
        ]
        rival = max((overlap for _, overlap in rivals), default=0.0)
        if self.seen[frame]:
            return rival <= max(DOUBLE_OVERLAP, float(box_overlap(box, self.boxes[frame])))
        if rival > DOUBLE_OVERLAP or (len(looks) and not np.isfinite(looks - self.looks[frame]).any()):
            return False
        near = self.seen[max(frame - SHORT_GAP, 0) : frame + SHORT_GAP + 1].any()
        limits = [
            float(looks_cost(looks, one.looks)) for one, overlap in rivals if overlap > 0 and len(looks)
        ]
        limit = min([SAME_LOOKS_AT_ONCE if near else SAME_LOOKS, *limits])
        return float(looks_cost(looks, self.looks[frame])) <= limit

    def without_chairs(self, poses: np.ndarray, present: np.ndarray, shots: np.ndarray) -> np.ndarray:
        """`present` (N,) without the shots in which the person is neither sure nor shows a face or a hand.

        Cushions and chairs are found with such scores, frame after frame; their poses are in `poses`
        (N, 133, 3).
        """
        proven = self.sure | (poses[:, PROOFS, 2] >= VISIBLE).any(axis=1)
        kept = present.copy()
        for shot in np.unique(shots[present]):
            here = present & (shots == shot)
            if proven[here].mean() < MIN_PROVEN:
                kept[here] = False
        return kept

    def connected(self, present: np.ndarray, *, hop: int) -> np.ndarray:
        """`present` (N,) without runs that lead to no frame in which the person was found.

        A lone match in the middle of a long absence is chance. Runs that are up to `hop` frames apart
        belong together.
        """
        linked = binary_closing(present, np.ones(2 * hop + 1)) | present if hop else present
        kept = np.zeros_like(present)
        for start, stop in spans(linked):
            kept[start:stop] = self.seen[start:stop].any()
        return kept & present


def follow(
    people: Sequence[People | None],
    *,
    subject: Subject,
    shots: np.ndarray,
    frame_size: tuple[int, int],
    half: int,
) -> SubjectTrack | None:
    """Follow one person; None where there is nobody.

    `people` has an entry a frame, None where nobody looked. `shots` (N,) numbers the shots: nothing is
    linked by place across a cut. `frame_size` is (H, W). `half` is the half width, in frames, of the
    smoothing of the regions.
    """
    identities = [one for one in find_identities(people, shots) if one.strength >= TRUSTED]
    if not identities:
        return None
    # "Largest" is said of the whole video; left and right change their meaning at a cut, so of its beginning.
    beginning = shots == shots[min(int(one.frames[0]) for one in identities)]
    scope = np.ones(len(shots), bool) if subject == "largest" else beginning
    chosen = _choose_within(scope, identities, subject=subject, width=frame_size[1])
    assert chosen is not None  # the scope holds at least one of them
    parts, newcomers = [chosen], []
    for shot in np.unique(shots):
        here = shots == shot
        if chosen.within(here) is None:
            other = _choose_within(here, identities, subject=subject, width=frame_size[1])
            if other is not None and (part := other.within(here)) is not None:
                parts.append(part)
                newcomers.append(int(shot))
    others = tuple(one for one in identities if not any(_is_double(one, part) for part in parts))
    bystanders = [
        one
        for one in serious_people(identities)
        if one.strength >= SURE and any(one is other for other in others)
    ]
    return _track(parts, shots, half=half, others=others, bystanders=bystanders, newcomers=tuple(newcomers))


def choose(identities: Sequence[Identity], *, subject: Subject, width: int) -> Identity | None:
    """The identity that is meant in a picture of `width` pixels; None where there is none.

    "largest": area × score, summed over time. Otherwise whose middle lies furthest left, furthest right,
    or nearest to the picture's middle, on average over the frames in which several people are seen.
    Passers-by do not count.
    """
    serious = serious_people(identities)
    if not serious or subject == "largest":
        return serious[0] if serious else None
    frames, counts = np.unique(np.concatenate([one.frames for one in serious]), return_counts=True)
    middles = np.array([_middle(one, frames[counts > 1]) for one in serious])
    distance = {"leftmost": middles, "rightmost": -middles, "center": np.abs(middles - width / 2)}[subject]
    return serious[int(np.argmin(distance))]


def serious_people(identities: Sequence[Identity]) -> list[Identity]:
    """Those who can be meant, the heaviest first: no passers-by, and nobody twice."""
    ranked = sorted(identities, key=lambda one: -one.weight)
    serious: list[Identity] = []
    for one in ranked:
        # The same person found twice, upside down for instance, would be "leftmost" by a pixel, and a hand
        # that the detector takes for a head would be by an arm's length.
        known = any(_is_double(one, other) or _is_part(one, other) for other in serious)
        if one.weight >= MIN_WEIGHT * ranked[0].weight and not known:
            serious.append(one)
    return serious


def _choose_within(
    mask: np.ndarray, identities: Sequence[Identity], *, subject: Subject, width: int
) -> Identity | None:
    """The identity that is meant in the frames of a mask (N,), as a whole; None where nobody is in them."""
    parts = [(part, one) for one in identities if (part := one.within(mask)) is not None]
    chosen = choose([part for part, _ in parts], subject=subject, width=width)
    return next((one for part, one in parts if part is chosen), None)


def _middle(identity: Identity, crowded: np.ndarray) -> float:
    together = np.isin(identity.frames, crowded)
    return float(identity.boxes[together if together.any() else slice(None)][:, [0, 2]].mean())


def _is_double(one: Identity, other: Identity) -> bool:
    """Whether `one` mostly is where `other` is."""
    common, mine, theirs = np.intersect1d(one.frames, other.frames, assume_unique=True, return_indices=True)
    if 2 * len(common) < len(one.frames):
        return False
    overlaps = box_overlap(one.boxes[mine], other.boxes[theirs])
    return bool(np.mean(overlaps > DOUBLE_OVERLAP) > 0.5)


def _is_part(one: Identity, other: Identity) -> bool:
    """Whether `one`, of whom nobody is sure, mostly lies inside `other`."""
    common, mine, theirs = np.intersect1d(one.frames, other.frames, assume_unique=True, return_indices=True)
    if one.strength >= SURE or not len(common):
        return False
    inside = common_area(one.boxes[mine], other.boxes[theirs]).sum()
    return bool(inside > 0.5 * box_areas(one.boxes[mine]).sum())


def pose_box(pose: np.ndarray) -> np.ndarray:
    """The box (4,) around the visible body and feet of a pose (133, 3); without area where none is."""
    points = pose[: FEET.stop][pose[: FEET.stop, 2] >= VISIBLE, :2]
    return np.concatenate([points.min(axis=0), points.max(axis=0)]) if len(points) else np.zeros(4)


# --- the track


def _track(
    parts: Sequence[Identity],
    shots: np.ndarray,
    *,
    half: int,
    others: tuple[Identity, ...],
    bystanders: Sequence[Identity],
    newcomers: tuple[int, ...],
) -> SubjectTrack:
    count = len(shots)
    regions, weights = np.zeros((count, REGION)), np.zeros(count)
    boxes = np.full((count, 4), np.nan, np.float32)
    looks, sure = np.tile(parts[0].looks, (count, 1)), np.zeros(count, bool)
    for part in parts:
        regions[part.frames], weights[part.frames] = part.regions, part.scores
        boxes[part.frames] = part.boxes
        here = np.isin(shots, shots[part.frames])
        looks[here], sure[here] = part.looks, part.strength >= SURE
    seen = weights > 0
    regions = fill_gaps(regions, seen, np.zeros(count, int))  # a shot without anybody needs some place, too
    regions = fill_gaps(regions, seen, shots)
    regions = smooth_track(regions, np.maximum(weights, GAP_TRUST), shots, half=half, robust=True)
    return SubjectTrack(
        regions=regions.astype(np.float32),
        boxes=boxes,
        looks=looks,
        others=others,
        sure=sure,
        bystanders=_bystanders(bystanders, boxes),
        newcomers=newcomers,
    )


def _bystanders(people: Sequence[Identity], subject: np.ndarray) -> np.ndarray:
    """Boxes (N, P, 4) of people, NaN where one is not found, or is the person of the boxes (N, 4) there."""
    boxes = np.full((len(subject), len(people), 4), np.nan, np.float32)
    for place, one in enumerate(people):
        boxes[one.frames, place] = one.boxes
    boxes[box_overlap(boxes, subject[:, None]) > DOUBLE_OVERLAP] = np.nan
    return boxes
