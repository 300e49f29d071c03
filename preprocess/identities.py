"""Everybody found in every frame in, who is the same person out: identities. Pure; knows no detector.

People are linked from frame to frame into strands, by place, size and looks, and by the numbers that a
backend's own tracker gives them, where it has one. Strands that a gap, a crossing or a cut tore apart are put
together into identities, by the same and by what a person can walk in the meantime.
N frames, M people in a frame, L numbers of looks.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

import numpy as np
from scipy.optimize import linear_sum_assignment

from .backends import NOBODY_KNOWS, REGION, People
from .looks import UNKNOWN, looks_cost, mean_looks

# --- Strands. Distances are in sizes of the person; looks: 0 = the same, 1 = rather two people.
MAX_COST: Final = 1.2  # of a link from frame to frame
MAX_CHANGE: Final = 0.7  # of size and direction
SAME_NUMBER: Final = 0.3  # what a tracker's word is worth, either way: two people's looks differ by more
DOUBT: Final = 0.3  # cost of a score of 0 against one of 1: a weak double must not displace the person
COAST_FRAMES: Final = 12  # looked at, for which a strand waits for its person
FORECAST_FRAMES: Final = 3  # a longer forecast of the place is worse than none
MIN_SCORE: Final = 0.35  # upper quartile of a strand's scores, or it is nobody
MAX_STRANDS: Final = 300  # the best ones; putting together takes time with the square of their number

# --- Identities
MOVE: Final = 0.4  # how far a person gets from one frame to the next, beyond what was expected …
MOVE_A_FRAME: Final = 0.12  # … and in every further frame of a gap
MAX_MOVE: Final = 6.0
BREVITY: Final = 1.0  # cost of a group of one frame: what is seen for long must gather the rest, not chance
SAME_LOOKS: Final = 0.6  # looks cost up to which strands may be one person
SHORT_GAP: Final = 15  # frames; over them a person may look different (turns around), …
SAME_LOOKS_AT_ONCE: Final = 1.0  # … up to this looks cost
SAME_LOOKS_OVER_CUT: Final = 0.4  # where place says nothing


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


def box_areas(boxes: np.ndarray) -> np.ndarray:
    """Areas (...,) of boxes (..., 4), 0 where corners are crossed."""
    return np.prod(np.clip(boxes[..., 2:] - boxes[..., :2], 0, None), axis=-1)


def box_overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes a (..., 4) and b (..., 4), 0 where neither has an area."""
    common = common_area(a, b)
    union = box_areas(a) + box_areas(b) - common
    return np.where(union > 0, common / np.maximum(union, 1e-9), 0.0)


def common_area(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Areas of the intersections of boxes a (..., 4) and b (..., 4)."""
    low, high = np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:])
    return box_areas(np.concatenate([low, high], axis=-1))


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
    first_number: int  # the tracker's first and last for the person, NOBODY_KNOWS where it gave none
    last_number: int
    size: float = 0.0  # typical, pixels: somebody half hidden shrinks for a while; known at the strand's end
    # Change of the region a frame, of late.
    pace: np.ndarray = field(default_factory=lambda: np.zeros(REGION))

    @classmethod
    def begun(cls, frame: int, found: People, member: int, *, shot: int, seen: int) -> "Strand":
        """A strand of one of the people, of whom more may follow."""
        number = int(found.numbers[member])
        return cls(
            shot=shot,
            frames=[frame],
            members=[member],
            regions=[found.regions[member].astype(np.float64)],
            looks=found.looks[member],
            seen=seen,
            first_number=number,
            last_number=number,
        )

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
        total += _number_cost(self.last_number, found.numbers)
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
        if (number := int(found.numbers[member])) != NOBODY_KNOWS:
            self.last_number = number
            if self.first_number == NOBODY_KNOWS:
                self.first_number = number


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
            waiting.append(Strand.begun(frame, found, member, shot=shot, seen=looked))
            strands.append(waiting[-1])
    for strand in strands:
        strand.size = float(np.median([_size(region) for region in strand.regions]))
    return strands


def _assign(waiting: list[Strand], frame: int, found: People) -> Iterable[tuple[Strand, int]]:
    if not waiting or not len(found):
        return
    alone = len(waiting) == 1 and len(found) == 1
    costs = np.stack([strand.costs(frame, found, alone=alone) for strand in waiting])
    # What cannot be linked costs as much as the worst link: more would tear a good link for two bad ones.
    rows, columns = linear_sum_assignment(np.where(np.isfinite(costs), costs, MAX_COST))
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
    brevity = sum(BREVITY / sum(len(strand.frames) for strand in group) for group in (one, other))
    return looks + min(seams) + brevity


def _seam_cost(before: Strand, after: Strand, looks: float) -> float | None:
    """Cost of one person being `before`, then `after`, besides its looks; None where that cannot be."""
    gap = after.frames[0] - before.frames[-1]
    if gap <= 0:
        return None
    if before.shot != after.shot:
        comparable = np.isfinite(before.looks - after.looks).any()
        return 1.0 if comparable and looks <= SAME_LOOKS_OVER_CUT else None
    move = float(np.linalg.norm(after.regions[0] - before.regions[-1])) / max(before.size, after.size)
    if move > min(MOVE + MOVE_A_FRAME * gap, MAX_MOVE):
        return None
    word = float(_number_cost(before.last_number, np.array(after.first_number)))
    if looks > (SAME_LOOKS_AT_ONCE if gap <= SHORT_GAP or word < 0 else SAME_LOOKS):
        return None
    return 0.3 * move + min(gap, 300) / 300 + word


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


def _number_cost(number: int, others: np.ndarray) -> np.ndarray:
    """What a tracker's numbers (...) say of being one person with `number`: ±SAME_NUMBER, 0 if unknown."""
    known = (number != NOBODY_KNOWS) & (others != NOBODY_KNOWS)
    return np.where(known, np.where(others == number, -SAME_NUMBER, SAME_NUMBER), 0.0)


def _size(region: np.ndarray) -> float:
    return max(float(np.hypot(*region[2:])), 1.0)
