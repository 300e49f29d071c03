"""The embedded backend: the three verbs of preprocessing on a CPU, from six small networks, on all cores."""

import os
from collections.abc import Generator, Iterable
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import Final

import numpy as np

from ...wan.runtime.errors import NoPersonFound
from ..backends import Estimate, People
from ..subjects import SubjectTrack, follow
from .blazepose import BlazePose
from .masks import claimed, nobody, steady_masks
from .models import REQUIREMENT, ensure_models
from .runner import WorkerPool

VERSION: Final = 2  # raise it when results change
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

    def estimate_poses(
        self, frames: Iterable[tuple[np.ndarray, np.ndarray]]
    ) -> Generator[Estimate, None, None]:
        """One person's pose a frame, from pairs of frame and region, in order; close it to stop early."""
        return self._pool.in_order(_estimate, frames)

    def track_masks(
        self,
        frames: Iterable[np.ndarray],
        *,
        track: SubjectTrack,
        poses: np.ndarray,  # noqa: ARG002 - the verb's signature; the network looks for itself
        present: np.ndarray,
        shots: np.ndarray,
    ) -> Generator[np.ndarray, None, None]:
        """One person's silhouette a frame, (H, W) uint8 of 0 and 1, in order; close it to stop early."""
        first = next(entries := iter(frames), None)
        if first is None:
            return
        looks = (
            (frame, _near(track, index) if present[index] else [])
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
            pose = self._pool.call(_estimate, (picture, track.regions[0])).pose
            if track.without_chairs(pose[None], np.ones(1, bool), shots).all():
                return pose
        raise NoPersonFound(
            "no person was found in the picture: use one that shows a single person with head and upper body"
        )


def _near(track: SubjectTrack, frame: int) -> list[np.ndarray]:
    """The person's region (4,), then those of everybody who may be in the same crop."""
    own = track.regions[frame]
    # Only where they were really found: in a region between two others the network finds either.
    others = [region for one in track.others for region in one.regions[one.frames == frame]]
    reach = np.hypot(*own[2:])
    near = [one for one in others if np.hypot(*(one[:2] - own[:2])) < reach + np.hypot(*one[2:])]
    return [own, *near]


def _segment(worker: BlazePose, item: tuple[np.ndarray, list[np.ndarray]]) -> np.ndarray:
    """Logits (h, w) of the first region's person; nobody's where there are no regions."""
    frame, regions = item
    if not regions:
        return nobody((frame.shape[0], frame.shape[1]))
    own, *rivals = (worker.segment(frame, region) for region in regions)
    return claimed(own, rivals)


def _estimate(worker: BlazePose, item: tuple[np.ndarray, np.ndarray]) -> Estimate:
    return worker.estimate(*item)
