"""The embedded backend: the three verbs of preprocessing on a CPU, from six small networks, on all cores."""

import os
from collections.abc import Generator, Iterable
from contextlib import closing
from pathlib import Path
from typing import Final

import numpy as np

from ...wan.runtime.errors import NoPersonFound
from ..backends import Estimate, People
from ..subjects import follow
from .blazepose import BlazePose
from .masks import Segmentation, steady_masks
from .models import REQUIREMENT, ensure_models
from .runner import WorkerPool

VERSION: Final = 1  # raise it when results change
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

    def find_people(self, frames: Iterable[np.ndarray]) -> Generator[People, None, None]:
        """Everybody in each frame, (H, W, 3) uint8 RGB, in the frames' order; close it to stop early."""
        return self._pool.in_order(BlazePose.find, frames)

    def estimate_poses(
        self, frames: Iterable[tuple[np.ndarray, np.ndarray]]
    ) -> Generator[Estimate, None, None]:
        """One person's pose a frame, from pairs of frame and region, in order; close it to stop early."""
        return self._pool.in_order(_estimate, frames)

    @property
    def has_masks(self) -> bool:
        """The landmark network brings them along."""
        return True

    def track_masks(
        self, frames: Iterable[np.ndarray], *, regions: np.ndarray, poses: np.ndarray, shots: np.ndarray
    ) -> Generator[np.ndarray, None, None]:
        """One person's silhouette a frame, (H, W) uint8 of 0 and 1, in order; close it to stop early."""
        with closing(self._pool.in_order(_segment, zip(frames, regions, strict=True))) as segmentations:
            yield from steady_masks(segmentations, poses=poses, shots=shots)

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


def _segment(worker: BlazePose, item: tuple[np.ndarray, np.ndarray]) -> Segmentation:
    return worker.segment(*item)


def _estimate(worker: BlazePose, item: tuple[np.ndarray, np.ndarray]) -> Estimate:
    return worker.estimate(*item)
