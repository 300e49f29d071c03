"""Everybody found in every frame in, one person followed through the video out. Pure; knows no detector.

People are linked from frame to frame into strands, by place, size and looks. Strands that a gap, a crossing
or a cut tore apart are put together into identities, by looks and by what a person can walk in the meantime.
One identity is chosen. N frames, M people in a frame, L numbers of looks.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final, Literal

import numpy as np
from scipy.ndimage import binary_closing
from scipy.optimize import linear_sum_assignment

from .backends import REGION, People
from .keypoints import FACE, FEET, LEFT_HAND, RIGHT_HAND, VISIBLE
from .looks import UNKNOWN, looks_cost, mean_looks
from .smoothing import fill_gaps, smooth_track, spans

Subject = Literal["largest", "leftmost", "rightmost", "center"]

# --- Strands. Distances are in sizes of the person; looks: 0 = the same, 1 = rather two people.
MAX_COST: Final = 1.2  # of a link from frame to frame
MAX_CHANGE: Final = 0.7  # of size and direction
DOUBT: Final = 0.3  # cost of a score of 0 against one of 1: a weak double must not displace the person
COAST_FRAMES: Final = 12  # looked at, for which a strand waits for its person
FORECAST_FRAMES: Final = 3  # a longer forecast of the place is worse than none
MIN_SCORE: Final = 0.35  # upper quartile of a strand's scores, or it is nobody
MAX_STRANDS: Final = 300  # the best ones; putting together takes time with the square of their number

# --- Identities
MOVE: Final = 0.4  # how far a person gets from one frame to the next, beyond what was expected …
MOVE_A_FRAME: Final = 0.12  # … and in every further frame of a gap
MAX_MOVE: Final = 6.0
BREVITY: Final = 0.5  # cost of a group of one frame: chance detections must not come first
SAME_LOOKS: Final = 0.6  # looks cost up to which strands may be one person
SHORT_GAP: Final = 15  # frames; over them a person may look different (turns around), …
SAME_LOOKS_AT_ONCE: Final = 1.0  # … up to this looks cost
SAME_LOOKS_OVER_CUT: Final = 0.4  # where place says nothing

# --- Choosing
TRUSTED: Final = 0.5  # score that an identity must reach in a tenth of its frames
SURE: Final = 0.7  # score that needs no proof by a face or a hand
MIN_PROVEN: Final = 0.1  # of a shot's frames with a face or a hand, or somebody unsure is a cushion
PROOFS: Final = [FACE.start + 30, LEFT_HAND.start, RIGHT_HAND.start]  # tip of the nose, wrists; of the 133
MIN_WEIGHT: Final = 0.05  # of the heaviest identity's area × score × time, or it is a passer-by
DOUBLE_OVERLAP: Final = 0.5  # intersection over union from which two boxes are one person

GAP_TRUST: Final = 0.1  # score of a region in a gap: enough to keep a curve from running on into it
IMPOSSIBLE: Final = 1e6  # stands for infinity in an assignment, which needs finite costs


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Identity:
    """One person through a video: what was found of it, in n ascending frames."""

    frames: np.ndarray  # (n,) int64
    boxes: np.ndarray  # (n, 4) float32
    scores: np.ndarray  # (n,) float32
    regions: np.ndarray  # (n, 4) float32
    looks: np.ndarray  # (L,) typical, NaN where never known

    @property
    def weight(self) -> float:
        """Area × score, summed over time."""
        return float((box_areas(self.boxes) * self.scores).sum())

    @property
    def strength(self) -> float:
        """The score that it reaches in a tenth of its frames."""
        return float(np.quantile(self.scores, 0.9))

    def within(self, mask: np.ndarray) -> "Identity | None":
        """What of it lies in the frames of a mask (N,) bool; None where nothing does."""
        keep = mask[self.frames]
        if not keep.any():
            return None
        return Identity(
            frames=self.frames[keep],
            boxes=self.boxes[keep],
            scores=self.scores[keep],
            regions=self.regions[keep],
            looks=self.looks,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SubjectTrack:
    """Where the chosen person is to be looked for, in every frame."""

    regions: np.ndarray  # (N, 4) float32, as in People: gaps closed, jitter removed
    boxes: np.ndarray  # (N, 4) float32, NaN in frames where the person was not found
    looks: np.ndarray  # (N, L) float32: how the person of that shot looks
    others: tuple[Identity, ...]  # everybody else of importance, so as not to be taken for the person
    sure: np.ndarray  # (N,) bool: detected so clearly that no face or hand is needed to prove the person
    newcomers: tuple[int, ...] = ()  # numbers of the shots in which another person had to be taken

    @property
    def seen(self) -> np.ndarray:
        """(N,) bool: where the person was found."""
        return np.isfinite(self.boxes[:, 0])

    def is_subject(self, frame: int, pose: np.ndarray, looks: np.ndarray) -> bool:
        """Whether a pose (133, 3) estimated in a frame's region is the person, not somebody else or a thing.

        Where the person was found, it must lie there rather than on another one. Elsewhere nobody
        known may be, and it must look like the person: a network that is shown a chair finds a person
        in it.
        """
        box = pose_box(pose)
        theirs = [one.boxes[one.frames == frame] for one in self.others]
        rival = max((float(box_overlap(box, boxes[0])) for boxes in theirs if len(boxes)), default=0.0)
        if self.seen[frame]:
            return rival <= max(DOUBLE_OVERLAP, float(box_overlap(box, self.boxes[frame])))
        if rival > DOUBLE_OVERLAP or (len(looks) and not np.isfinite(looks - self.looks[frame]).any()):
            return False
        near = self.seen[max(frame - SHORT_GAP, 0) : frame + SHORT_GAP + 1].any()
        return float(looks_cost(looks, self.looks[frame])) <= (SAME_LOOKS_AT_ONCE if near else SAME_LOOKS)

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
    return _track(parts, shots, half=half, others=others, newcomers=tuple(newcomers))


# --- choosing


def choose(identities: Sequence[Identity], *, subject: Subject, width: int) -> Identity | None:
    """The identity that is meant in a picture of `width` pixels; None where there is none.

    "largest": area × score, summed over time. Otherwise whose middle lies furthest left, furthest right,
    or nearest to the picture's middle, on average over the frames in which several people are seen.
    Passers-by do not count.
    """
    ranked = sorted(identities, key=lambda one: -one.weight)
    serious: list[Identity] = []
    for one in ranked:
        # The same person found twice, upside down for instance, would be "leftmost" by a pixel.
        if one.weight >= MIN_WEIGHT * ranked[0].weight and not any(
            _is_double(one, other) for other in serious
        ):
            serious.append(one)
    if not serious or subject == "largest":
        return serious[0] if serious else None
    frames, counts = np.unique(np.concatenate([one.frames for one in serious]), return_counts=True)
    middles = np.array([_middle(one, frames[counts > 1]) for one in serious])
    distance = {"leftmost": middles, "rightmost": -middles, "center": np.abs(middles - width / 2)}[subject]
    return serious[int(np.argmin(distance))]


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


def pose_box(pose: np.ndarray) -> np.ndarray:
    """The box (4,) around the visible body and feet of a pose (133, 3); without area where none is."""
    points = pose[: FEET.stop][pose[: FEET.stop, 2] >= VISIBLE, :2]
    return np.concatenate([points.min(axis=0), points.max(axis=0)]) if len(points) else np.zeros(4)


def box_areas(boxes: np.ndarray) -> np.ndarray:
    """Areas (...,) of boxes (..., 4), 0 where corners are crossed."""
    return np.prod(np.clip(boxes[..., 2:] - boxes[..., :2], 0, None), axis=-1)


def box_overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes a (..., 4) and b (..., 4), 0 where neither has an area."""
    common = box_areas(
        np.concatenate([np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:])], axis=-1)
    )
    union = box_areas(a) + box_areas(b) - common
    return np.where(union > 0, common / np.maximum(union, 1e-9), 0.0)


# --- strands


@dataclass(slots=True, eq=False)
class Strand:
    """A person followed from frame to frame without doubt."""

    shot: int
    frames: list[int]
    members: list[int]
    regions: list[np.ndarray]  # (4,) each
    looks: np.ndarray  # (L,) running mean
    seen: int  # when last seen, counted in frames looked at
    # Change of the region a frame, of late.
    pace: np.ndarray = field(default_factory=lambda: np.zeros(REGION))

    def costs(self, frame: int, found: People, *, alone: bool) -> np.ndarray:
        """How badly each of the people fits as the continuation, (M,); infinite where it cannot be.

        `alone`: nobody else is about, so that looks, which a turn or a patterned suit changes, decide
        nothing.
        """
        gap = frame - self.frames[-1]
        expected = self.regions[-1] + self.pace * min(gap, FORECAST_FRAMES)
        size = _size(self.regions[-1])
        move = np.linalg.norm(found.regions[:, :2] - expected[:2], axis=1) / size
        change = np.linalg.norm(found.regions[:, 2:] - expected[2:], axis=1) / size
        looks = looks_cost(found.looks, self.looks)
        if alone:
            looks = np.minimum(looks, UNKNOWN)
        total = move + change / 2 + looks + DOUBT * (1 - found.scores)
        possible = (move <= MOVE + MOVE_A_FRAME * (gap - 1)) & (change <= MAX_CHANGE) & (total <= MAX_COST)
        return np.where(possible, total, np.inf)

    def add(self, frame: int, found: People, member: int, *, seen: int) -> None:
        """Continue with one of the people."""
        region = found.regions[member].astype(np.float64)
        step = (region - self.regions[-1]) / (frame - self.frames[-1])
        self.pace = (self.pace + step) / 2
        self.looks = mean_looks(self.looks, found.looks[member])
        self.frames.append(frame)
        self.members.append(member)
        self.regions.append(region)
        self.seen = seen


def find_strands(people: Sequence[People | None], shots: np.ndarray) -> list[Strand]:
    """Links from frame to frame, by the least total cost; a strand waits through short gaps."""
    strands: list[Strand] = []
    waiting: list[Strand] = []
    looked = 0
    for frame, found in enumerate(people):
        if found is None:
            continue
        looked += 1
        shot = int(shots[frame])
        waiting = [one for one in waiting if one.shot == shot and looked - one.seen <= COAST_FRAMES]
        taken = set()
        for strand, member in _assign(waiting, frame, found):
            strand.add(frame, found, member, seen=looked)
            taken.add(member)
        for member in set(range(len(found))) - taken:
            region = found.regions[member].astype(np.float64)
            waiting.append(Strand(shot, [frame], [member], [region], found.looks[member], looked))
            strands.append(waiting[-1])
    return strands


def _assign(waiting: list[Strand], frame: int, found: People) -> Iterable[tuple[Strand, int]]:
    if not waiting or not len(found):
        return
    alone = len(waiting) == 1 and len(found) == 1
    costs = np.stack([strand.costs(frame, found, alone=alone) for strand in waiting])
    rows, columns = linear_sum_assignment(np.where(np.isfinite(costs), costs, IMPOSSIBLE))
    for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
        if np.isfinite(costs[row, column]):
            yield waiting[row], column


# --- identities


def find_identities(people: Sequence[People | None], shots: np.ndarray) -> list[Identity]:
    """Who is the same person, through gaps, crossings and cuts; in no particular order."""
    strands = find_strands(people, shots)
    looked = sum(found is not None for found in people)
    scores = [_scores(strand, people) for strand in strands]
    kept = [
        (float(score.sum()), strand)
        for score, strand in zip(scores, strands, strict=True)
        if np.quantile(score, 0.75) >= MIN_SCORE and len(score) >= min(2, looked)
    ]
    kept = sorted(kept, key=lambda entry: -entry[0])[:MAX_STRANDS]
    return [_identity(group, people) for group in put_together([strand for _, strand in kept])]


def put_together(strands: Sequence[Strand]) -> list[list[Strand]]:
    """Groups of strands that are one person each, in order of time: again and again the likeliest pair."""
    groups: dict[int, list[Strand]] = {number: [strand] for number, strand in enumerate(strands)}
    costs = {
        (a, b): cost
        for a in groups
        for b in groups
        if a < b and (cost := _group_cost(groups[a], groups[b])) is not None
    }
    while costs:
        a, b = min(costs, key=lambda pair: costs[pair])
        groups[a] = sorted(groups[a] + groups.pop(b), key=lambda strand: strand.frames[0])
        costs = {pair: cost for pair, cost in costs.items() if a not in pair and b not in pair}
        for other, group in groups.items():
            if other != a and (cost := _group_cost(groups[a], group)) is not None:
                costs[min(a, other), max(a, other)] = cost
    return list(groups.values())


def _group_cost(one: list[Strand], other: list[Strand]) -> float | None:
    """How little two groups fit together as one person; None where they cannot be."""
    looks = float(looks_cost(_group_looks(one), _group_looks(other)))
    mixed = sorted(
        [(s.frames[0], 0, s) for s in one] + [(s.frames[0], 1, s) for s in other], key=lambda e: e[:2]
    )
    seams = []
    for (_, side, strand), (_, next_side, after) in pairwise(mixed):
        if side != next_side:
            seam = _seam_cost(strand, after, looks)
            if seam is None:
                return None
            seams.append(seam)
    fewest = min(sum(len(strand.frames) for strand in group) for group in (one, other))
    return looks + min(seams) + BREVITY / fewest


def _seam_cost(before: Strand, after: Strand, looks: float) -> float | None:
    """Cost of one person being `before`, then `after`, besides its looks; None where that cannot be."""
    gap = after.frames[0] - before.frames[-1]
    if gap <= 0:
        return None
    if before.shot != after.shot:
        comparable = np.isfinite(before.looks - after.looks).any()
        return 1.0 if comparable and looks <= SAME_LOOKS_OVER_CUT else None
    move = float(np.linalg.norm(after.regions[0] - before.regions[-1])) / _size(before.regions[-1])
    if move > min(MOVE + MOVE_A_FRAME * gap, MAX_MOVE):
        return None
    if looks > (SAME_LOOKS_AT_ONCE if gap <= SHORT_GAP else SAME_LOOKS):
        return None
    return 0.3 * move + min(gap, 300) / 300


def _group_looks(group: list[Strand]) -> np.ndarray:
    looks = np.array([strand.looks for strand in group])  # (S, L)
    weights = np.array([float(len(strand.frames)) for strand in group])[:, None] * np.isfinite(looks)
    total = weights.sum(axis=0)
    mean = (np.nan_to_num(looks) * weights).sum(axis=0) / np.maximum(total, 1)
    return np.where(total > 0, mean, np.nan)


def _identity(group: list[Strand], people: Sequence[People | None]) -> Identity:
    places = [place for strand in group for place in zip(strand.frames, strand.members, strict=True)]
    found = [(_of(people, frame), member) for frame, member in places]
    return Identity(
        frames=np.array([frame for frame, _ in places]),
        boxes=np.array([one.boxes[member] for one, member in found]),
        scores=np.array([one.scores[member] for one, member in found]),
        regions=np.array([one.regions[member] for one, member in found]),
        looks=_group_looks(group).astype(np.float32),
    )


def _scores(strand: Strand, people: Sequence[People | None]) -> np.ndarray:
    places = zip(strand.frames, strand.members, strict=True)
    return np.array([_of(people, frame).scores[member] for frame, member in places])


def _of(people: Sequence[People | None], frame: int) -> People:
    found = people[frame]
    assert found is not None  # strands only name frames that were looked at
    return found


def _size(region: np.ndarray) -> float:
    return max(float(np.hypot(*region[2:])), 1.0)


# --- the track


def _track(
    parts: Sequence[Identity],
    shots: np.ndarray,
    *,
    half: int,
    others: tuple[Identity, ...],
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
        newcomers=newcomers,
    )
