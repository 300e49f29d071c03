"""The embedded backend: the three verbs of preprocessing on a CPU, from six small networks, on all cores."""

import os
from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Final

import numpy as np

from ...wan.runtime.errors import NoPersonFound
from ..backends import NOBODY_IN_PICTURE, Estimate, People, Sought
from ..bystanders import regions_at
from ..subjects import SubjectTrack, follow
from .blazepose import MIN_PRESENCE, BlazePose
from .masks import claimed, left_over, nobody, steady_masks
from .models import REQUIREMENT, ensure_models
from .regions import is_pose_of
from .runner import WorkerPool

VERSION: Final = 3  # raise it when results change
MAX_WORKERS: Final = 8  # each holds about 60 MB of networks; decoding is the limit beyond


class EmbeddedBackend:
    """A `Backend` that needs neither a GPU nor a model hub."""

    def __init__(self, cache_dir: Path, *, workers: int | None = None) -> None:
        """Load the models for `workers` threads (all cores); what the user's `cache_dir` lacks is fetched.

        Raises ModelFilesBroken, DiskFull.
        """
        files = ensure_models(cache_dir)
        count = workers or min(os.cpu_count() or 1, MAX_WORKERS)
        self._pool = WorkerPool([BlazePose(files) for _ in range(count)])

    @property
    def words(self) -> tuple[str, ...]:
        """The models and this code's version."""
        return ("embedded", REQUIREMENT, f"version {VERSION}")

    def release(self) -> None:
        """Nothing: these networks are small and use no GPU."""

    def find_people(self, frames: Iterable[np.ndarray]) -> Generator[People, None, None]:
        """Everybody in each frame, (H, W, 3) uint8 RGB, in the frames' order; close it to stop early."""
        return self._pool.in_order(BlazePose.find, frames)

    def estimate_poses(self, sought: Iterable[Sought]) -> Generator[Estimate, None, None]:
        """One person's pose a frame, in order; close it to stop early.

        Who is not found because somebody stands so near that the landmark network takes that one, or a
        mixture of both, is looked for again with the others painted over.
        """
        return self._pool.in_order(_estimate, sought)

    def track_masks(
        self,
        frames: Iterable[np.ndarray],
        *,
        track: SubjectTrack,
        poses: np.ndarray,
        present: np.ndarray,
        shots: np.ndarray,
    ) -> Generator[np.ndarray, None, None]:
        """One person's silhouette a frame, (H, W) uint8 of 0 and 1, in order; close it to stop early."""
        first = next(entries := iter(frames), None)
        if first is None:
            return
        looks = (
            _Look(
                frame=frame,
                region=track.regions[index],
                others=_near(track.regions[index], regions_at(track.others, index)),
                pose=poses[index] if present[index] else None,
            )
            for index, frame in enumerate(chain([first], entries))
        )
        size = (first.shape[0], first.shape[1])
        with closing(self._pool.in_order(_segment, looks)) as logits:
            yield from steady_masks(logits, shots=shots, frame_size=size)

    def estimate_pose(self, picture: np.ndarray) -> np.ndarray:
        """The pose of the largest person of a picture (H, W, 3) uint8 RGB: (133, 3) float32.

        Raises NoPersonFound.
        """
        people = self._pool.call(BlazePose.find, picture)
        shots = np.zeros(1, int)
        size = (picture.shape[0], picture.shape[1])
        track = follow([people], subject="largest", shots=shots, frame_size=size, half=0)
        if track is not None:
            sought = Sought(
                frame=picture,
                region=track.regions[0],
                others=regions_at(track.others, 0),
                accepts=lambda estimate: track.is_subject(0, estimate.pose, estimate.looks),
            )
            pose = self._pool.call(_estimate, sought).pose
            if track.without_chairs(pose[None], np.ones(1, bool), shots).all():
                return pose
        raise NoPersonFound(NOBODY_IN_PICTURE)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Look:
    """Where a person's silhouette is in one frame."""

    frame: np.ndarray  # (H, W, 3) uint8 RGB
    region: np.ndarray  # (4,)
    others: list[np.ndarray]  # regions (4,) of those who may be in the same crop
    pose: np.ndarray | None  # (133, 3) as estimated; None: the person is away


def _near(region: np.ndarray, others: np.ndarray) -> list[np.ndarray]:
    """Those of the regions `others` (K, 4) who may be in the same crop as the person of a region (4,)."""
    reach = np.hypot(*region[2:])
    return [one for one in others if np.hypot(*(one[:2] - region[:2])) < reach + np.hypot(*one[2:])]


def _estimate(worker: BlazePose, sought: Sought) -> Estimate:
    body, estimate = worker.examine(sought.frame, sought.region)
    others = _near(sought.region, sought.others)
    if not others or (body.presence >= MIN_PRESENCE and sought.accepts(estimate)):
        return estimate
    beside = worker.estimate_beside(sought.frame, sought.region, others)
    if not sought.accepts(beside):
        # A face or a hand alone is no proof where it may be somebody else's.
        return replace(estimate, presence=body.presence)
    return estimate if sought.accepts(estimate) else beside


def _segment(worker: BlazePose, look: _Look) -> np.ndarray:
    """Logits (h, w) of the person; nobody's where the person is away."""
    if look.pose is None:
        return nobody((look.frame.shape[0], look.frame.shape[1]))
    own = worker.segment(look.frame, look.region)
    rivals = [worker.segment(look.frame, region) for region in look.others]
    if rivals and not is_pose_of(own.body, look.pose):
        # The pose was not found that way either, see `_estimate`.
        beside = worker.segment_beside(look.frame, look.region, rivals)
        if is_pose_of(beside.body, look.pose):
            return left_over(beside, rivals)
    return claimed(own, rivals)
