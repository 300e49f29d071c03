"""Everybody found in every frame in, one person followed through the whole video out. Pure; knows no detector.

People are linked from frame to frame into strands by place, size and looks; strands that a gap or a crossing tore apart
are joined into identities, mostly by looks; one identity is chosen. N frames looked at, M people in a frame.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import cv2
import numpy as np
from scipy.optimize import linear_sum_assignment

from .backends import REGION, People
from .keypoints import (
    LEFT_HIP,
    LEFT_KNEE,
    LEFT_SHOULDER,
    RIGHT_HIP,
    RIGHT_KNEE,
    RIGHT_SHOULDER,
    VISIBLE,
)
from .smoothing import fill_gaps, smooth_track

Subject = Literal["largest", "leftmost", "rightmost", "center"]

# --- What somebody looks like: the median colour of three patches, so that turning around or blur changes little.
PATCHES: Final = (  # corners in a pose, and from where to where between the upper and the lower pair
    ((LEFT_SHOULDER, RIGHT_SHOULDER, LEFT_HIP, RIGHT_HIP), (0.1, 0.5)),  # chest
    ((LEFT_SHOULDER, RIGHT_SHOULDER, LEFT_HIP, RIGHT_HIP), (0.5, 0.9)),  # belly
    ((LEFT_HIP, RIGHT_HIP, LEFT_KNEE, RIGHT_KNEE), (0.1, 0.7)),  # thighs, or a skirt
)
LOOKS: Final = 3 * len(PATCHES)  # numbers
PATCH_STEPS: Final = 9  # samples along either direction of a patch
MIN_PATCH: Final = 0.4  # share of a patch that must lie in the picture
LIGHTNESS_WEIGHT: Final = 0.5  # against colour: shadows change it most

# --- Linking. Distances are in sizes of the person, looks in steps of just another person.
OTHER_LOOKS: Final = 20.0  # weighted Lab distance from which two people are rather not the same; measured: 5 and 25
UNKNOWN_LOOKS: Final = 0.4  # cost where looks cannot be compared, in the same steps
DOUBT: Final = 0.3  # cost of a score of 0 against one of 1
MAX_LINK: Final = 1.2  # cost of a link from frame to frame
MAX_CHANGE: Final = 0.7  # of size and direction, in sizes
IMPOSSIBLE: Final = 1e6
MAX_MOVE: Final = 0.5  # sizes beyond the expected place, from one frame to the next
MOVE_A_FRAME: Final = 0.08  # sizes more a frame of gap
COAST_FRAMES: Final = 12  # frames a strand waits for its person; longer gaps are joined later
JOIN_LOOKS: Final = 0.6  # largest looks cost with which strands are joined
JOIN_LOOKS_OVER_CUT: Final = 0.4
JOIN_MOVE: Final = 1.0  # sizes between the ends of strands that are joined, plus MOVE_A_FRAME a frame
MAX_JOIN_MOVE: Final = 6.0

# --- Choosing
STRONG: Final = 0.5  # score that an identity must reach in a tenth of its frames
MIN_FRAMES: Final = 3
MIN_WEIGHT: Final = 0.05  # of the heaviest identity's area × score × time
DOUBLE_OVERLAP: Final = 0.5  # intersection over union from which two boxes are one person


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Identity:
    """One person through a video: where in the lists of people it is."""

    frames: np.ndarray  # (n,) int64, ascending
    members: np.ndarray  # (n,) int64: which of that frame's people


def body_colours(frame: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """What a person looks like: (LOOKS,) float32, Lab colours of chest, belly and thighs, NaN where one is not seen.

    `frame` is (H, W, 3) uint8 RGB, `pose` (133, 3) in its pixels. Only the upper corners of a patch must be seen: hips
    are often hidden by an arm, or below the picture's edge, while the cloth above them shows.
    """
    looks = np.full((len(PATCHES), 3), np.nan, np.float32)
    for row, (corners, (top, bottom)) in enumerate(PATCHES):
        if pose[list(corners[:2]), 2].min() < VISIBLE:
            continue
        left, right, low_left, low_right = pose[list(corners), :2]
        down = np.linspace(top, bottom, PATCH_STEPS)[:, None, None]
        across = np.linspace(0.2, 0.8, PATCH_STEPS)[None, :, None]  # not the outline
        upper, lower = left + across * (right - left), low_left + across * (low_right - low_left)
        x, y = np.rint(upper + down * (lower - upper)).astype(int).reshape(-1, 2).T
        seen = (x >= 0) & (y >= 0) & (x < frame.shape[1]) & (y < frame.shape[0])
        if seen.mean() >= MIN_PATCH:
            colours = frame[y[seen], x[seen]][None].astype(np.float32) / 255  # (1, n, 3)
            looks[row] = np.median(cv2.cvtColor(colours, cv2.COLOR_RGB2LAB)[0], axis=0)
    return looks.ravel()


def looks_cost(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """How different two people look: 0 = the same, 1 = rather two people. a (..., L), b (..., L) → (...)."""
    if a.shape[-1] == 0:
        return np.zeros(np.broadcast_shapes(a.shape, b.shape)[:-1])
    step = (a - b).reshape(*np.broadcast_shapes(a.shape, b.shape)[:-1], -1, 3)
    distance = np.sqrt((step**2 * (LIGHTNESS_WEIGHT**2, 1, 1)).sum(axis=-1))  # (..., patches)
    known = np.isfinite(distance)
    total = np.where(known, distance, 0.0).sum(axis=-1) / np.maximum(known.sum(axis=-1), 1)
    return np.where(known.any(axis=-1), total / OTHER_LOOKS, UNKNOWN_LOOKS)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SubjectTrack:
    """Where to look for the chosen person, in every frame."""

    regions: np.ndarray  # (N, 4) float32, as in People; gaps are closed, jitter is gone
    seen: np.ndarray  # (N,) bool: the person was found there
    looks: np.ndarray  # (N, L) float32: what the person of that shot looks like
    newcomers: tuple[int, ...]  # first frames of shots in which another person had to be taken


def follow(
    people: Sequence[People | None], *, subject: Subject, shots: np.ndarray, frame_size: tuple[int, int], half: int
) -> SubjectTrack | None:
    """Follow one person; None where there is nobody.

    `people` has an entry a frame, None where nobody looked. `shots` (N,) numbers the shots: nothing is linked by place
    across a cut. `frame_size` is (H, W). `half` is the half width, in frames, of the smoothing of the regions.
    """
    identities = link_people(people, shots)
    chosen = choose(identities, people, subject=subject, frame_size=frame_size)
    if chosen is None:
        return None
    parts, newcomers = [chosen], []
    for shot in np.unique(shots):
        first = int(np.flatnonzero(shots == shot)[0])
        if (shots[chosen.frames] == shot).any():
            continue
        here = [_within(identity, shots == shot) for identity in identities]
        other = choose([one for one in here if len(one.frames)], people, subject=subject, frame_size=frame_size)
        if other is not None:
            parts.append(other)
            newcomers.append(first)
    return _track(parts, people, shots=shots, half=half, newcomers=tuple(newcomers))


# --- choosing


def choose(
    identities: Sequence[Identity],
    people: Sequence[People | None],
    *,
    subject: Subject,
    frame_size: tuple[int, int],
) -> Identity | None:
    """The identity that is meant; None where none can be trusted.

    "largest": area × score, summed over time. Otherwise whose middle lies furthest left, furthest right, or nearest to
    the picture's, on average over the frames in which several of them are seen. Passers-by do not count: an identity
    needs a twentieth of the heaviest one's weight.
    """
    trusted = [one for one in identities if _is_trusted(one, people)]
    if not trusted:
        return None
    weights = np.array([_weight(one, people) for one in trusted])
    order = np.argsort(-weights, kind="stable")
    serious: list[Identity] = []
    for index in order:
        if weights[index] < MIN_WEIGHT * weights[order[0]]:
            break
        # The same person found twice, upside down for instance, would be "leftmost" by a pixel.
        if not any(_is_double(trusted[index], one, people) for one in serious):
            serious.append(trusted[index])
    if subject == "largest":
        return serious[0]
    counts = np.bincount(np.concatenate([one.frames for one in serious]), minlength=len(people))
    crowded = np.flatnonzero(counts > 1)
    middles = [_middle(one, people, crowded) for one in serious]
    width = frame_size[1]
    keys = {
        "leftmost": lambda middle: middle,
        "rightmost": lambda middle: -middle,
        "center": lambda middle: abs(middle - width / 2),
    }
    return serious[int(np.argmin([keys[subject](middle) for middle in middles]))]


def _scores(identity: Identity, people: Sequence[People | None]) -> np.ndarray:
    return np.array([_of(people, frame).scores[member] for frame, member in _places(identity)])


def _boxes(identity: Identity, people: Sequence[People | None]) -> np.ndarray:
    return np.array([_of(people, frame).boxes[member] for frame, member in _places(identity)])


def _places(identity: Identity) -> zip:
    return zip(identity.frames.tolist(), identity.members.tolist(), strict=True)


def _of(people: Sequence[People | None], frame: int) -> People:
    found = people[frame]
    assert found is not None  # an identity only names frames that were looked at
    return found


def _is_trusted(identity: Identity, people: Sequence[People | None]) -> bool:
    return float(np.quantile(_scores(identity, people), 0.9)) >= STRONG


def _weight(identity: Identity, people: Sequence[People | None]) -> float:
    boxes = _boxes(identity, people)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    return float((areas * _scores(identity, people)).sum())


def _is_double(one: Identity, other: Identity, people: Sequence[People | None]) -> bool:
    """Whether two identities mostly cover the same body at the same time."""
    common, mine, theirs = np.intersect1d(one.frames, other.frames, assume_unique=True, return_indices=True)
    if 2 * len(common) < len(one.frames):
        return False
    a, b = _boxes(one, people)[mine], _boxes(other, people)[theirs]
    sides = np.clip(np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]), 0, None)
    shared = np.prod(sides, axis=1)
    union = np.prod(a[:, 2:] - a[:, :2], axis=1) + np.prod(b[:, 2:] - b[:, :2], axis=1) - shared
    return float(np.mean(shared > DOUBLE_OVERLAP * union)) > 0.5


def _middle(identity: Identity, people: Sequence[People | None], crowded: np.ndarray) -> float:
    boxes = _boxes(identity, people)
    together = np.isin(identity.frames, crowded)
    return float(boxes[together if together.any() else slice(None)][:, [0, 2]].mean())


# --- linking


@dataclass(slots=True, eq=False)
class _Strand:
    """A person followed from frame to frame without doubt."""

    shot: int
    frames: list[int]
    members: list[int]
    first: np.ndarray  # (4,) region in its first frame
    last: np.ndarray  # (4,) region in its latest frame
    looks: np.ndarray  # (L,) running mean
    pace: np.ndarray  # (4,) change of the region a frame, of late

    def costs(self, frame: int, found: People) -> np.ndarray:
        """How badly each of the people (M,) fits as the continuation; infinite where it cannot be."""
        gap = frame - self.frames[-1]
        expected = self.last + self.pace * min(gap, 3)  # a longer forecast is worse than none
        size = _size(self.last)
        move = np.linalg.norm(found.regions[:, :2] - expected[:2], axis=1) / size
        change = np.linalg.norm(found.regions[:, 2:] - expected[2:], axis=1) / size
        looks = looks_cost(found.looks, self.looks)
        total = move + change / 2 + looks + DOUBT * (1 - found.scores)
        possible = (move <= MAX_MOVE + MOVE_A_FRAME * (gap - 1)) & (change <= MAX_CHANGE) & (total <= MAX_LINK)
        return np.where(possible, total, np.inf)

    def add(self, frame: int, found: People, member: int) -> None:
        region = found.regions[member]
        step = (region - self.last) / (frame - self.frames[-1])
        self.pace = 0.5 * self.pace + 0.5 * step
        self.last = region
        self.looks = _mean_looks(self.looks, found.looks[member])
        self.frames.append(frame)
        self.members.append(member)


def link_people(people: Sequence[People | None], shots: np.ndarray) -> list[Identity]:
    """Who is the same person: identities through gaps, crossings and cuts, in no particular order."""
    strands = [strand for strand in _strands(people, shots) if len(strand.frames) > 1]
    if not strands:  # a single frame, or frames looked at so rarely that nothing links
        strands = _strands(people, shots)
    return [
        Identity(
            frames=np.concatenate([np.array(strand.frames) for strand in chain]),
            members=np.concatenate([np.array(strand.members) for strand in chain]),
        )
        for chain in _chains(strands)
    ]


def _strands(people: Sequence[People | None], shots: np.ndarray) -> list[_Strand]:
    """Links from frame to frame, best total first; a strand waits through short gaps."""
    strands: list[_Strand] = []
    looked = 0
    waiting: list[tuple[int, _Strand]] = []  # when last seen, counted in frames looked at
    for frame, found in enumerate(people):
        if found is None:
            continue
        looked += 1
        shot = int(shots[frame])
        waiting = [(seen, one) for seen, one in waiting if one.shot == shot and looked - seen <= COAST_FRAMES]
        free = set(range(len(found)))
        if waiting and free:
            costs = np.stack([one.costs(frame, found) for _, one in waiting])
            rows, columns = linear_sum_assignment(np.where(np.isfinite(costs), costs, IMPOSSIBLE))
            for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
                if np.isfinite(costs[row, column]):
                    waiting[row][1].add(frame, found, column)
                    waiting[row] = (looked, waiting[row][1])
                    free.discard(column)
        for member in sorted(free):
            region = found.regions[member].astype(np.float64)
            strand = _Strand(shot, [frame], [member], region, region, found.looks[member], np.zeros(4))
            strands.append(strand)
            waiting.append((looked, strand))
    return strands


def _chains(strands: list[_Strand]) -> list[list[_Strand]]:
    """Strands joined end to beginning, best fit first; each has one successor and one predecessor at most."""
    pairs = []
    for i, one in enumerate(strands):
        for j, other in enumerate(strands):
            cost = _join_cost(one, other)
            if np.isfinite(cost):
                pairs.append((cost, i, j))
    after: dict[int, int] = {}
    before: dict[int, int] = {}
    for _, i, j in sorted(pairs):
        if i not in after and j not in before:
            after[i], before[j] = j, i
    chains = []
    for start in range(len(strands)):
        if start in before:
            continue
        chain, at = [strands[start]], start
        while at in after:
            at = after[at]
            chain.append(strands[at])
        chains.append(chain)
    return chains


def _join_cost(one: _Strand, other: _Strand) -> float:
    gap = other.frames[0] - one.frames[-1]
    if gap <= 0:
        return np.inf
    looks = float(looks_cost(one.looks, other.looks))
    comparable = bool(np.isfinite(one.looks - other.looks).any())
    if one.shot != other.shot:
        return looks + 1 if comparable and looks <= JOIN_LOOKS_OVER_CUT else np.inf
    size = (_size(one.last) + _size(other.first)) / 2
    move = float(np.linalg.norm(other.first - one.last)) / size
    if looks > JOIN_LOOKS or move > min(JOIN_MOVE + MOVE_A_FRAME * gap, MAX_JOIN_MOVE):
        return np.inf
    return looks + 0.3 * move + gap / 300


def _size(region: np.ndarray) -> float:
    return max(float(np.hypot(*region[2:])), 1.0)


def _mean_looks(mean: np.ndarray, looks: np.ndarray) -> np.ndarray:
    """Running mean of ten or so; what was unknown so far is taken over."""
    mixed = 0.9 * mean + 0.1 * looks
    return np.where(np.isfinite(mixed), mixed, np.where(np.isfinite(mean), mean, looks))


def _within(identity: Identity, mask: np.ndarray) -> Identity:
    keep = mask[identity.frames]
    return Identity(frames=identity.frames[keep], members=identity.members[keep])


# --- the track


def _track(
    parts: list[Identity],
    people: Sequence[People | None],
    *,
    shots: np.ndarray,
    half: int,
    newcomers: tuple[int, ...],
) -> SubjectTrack:
    count = len(people)
    regions = np.zeros((count, REGION))
    weights = np.zeros(count)
    looks = np.tile(_part_looks(parts[0], people), (count, 1))
    for part in parts:
        for frame, member in _places(part):
            found = _of(people, frame)
            regions[frame], weights[frame] = found.regions[member], found.scores[member]
        looks[np.isin(shots, shots[part.frames])] = _part_looks(part, people)
    seen = weights > 0
    regions = fill_gaps(regions, seen, np.zeros(count))  # across cuts too: a shot without anybody needs some place
    regions = fill_gaps(regions, seen, shots)
    regions = smooth_track(regions, weights, shots, half=half, robust=True)
    return SubjectTrack(regions=regions.astype(np.float32), seen=seen, looks=looks, newcomers=newcomers)


def _part_looks(part: Identity, people: Sequence[People | None]) -> np.ndarray:
    """Median looks (L,) of an identity, NaN where never known."""
    looks = np.array([_of(people, frame).looks[member] for frame, member in _places(part)])
    known = np.isfinite(looks)
    return np.array(
        [np.median(column[good]) if good.any() else np.nan for column, good in zip(looks.T, known.T, strict=True)],
        np.float32,
    )
