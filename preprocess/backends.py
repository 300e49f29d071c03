"""The verbs every preprocessing backend has, what they exchange, and choice by name. Knows no model.

A backend finds people (every frame on its own) and estimates poses (of one person, where it is told to look,
and told who else is there).
Who is meant, what happens in gaps, and everything over time is shared and lies elsewhere. M people, L numbers
of looks.
"""

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

from ..wan.runtime.errors import InvalidInput, NoUsableGpu
from ..wan.runtime.weights import REGISTRY, fetch
from .keypoints import NUM_KEYPOINTS

if TYPE_CHECKING:
    from .subjects import SubjectTrack

REGION: Final = 4  # numbers that tell a backend where to look; only it knows what they mean
NOBODY_KNOWS: Final = -1  # number of somebody whom no tracker follows (yet)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class People:
    """Everybody found in one frame, in no particular order."""

    boxes: np.ndarray  # (M, 4) float32: x0, y0, x1, y1 of what is seen of the body, pixels
    scores: np.ndarray  # (M,) float32 0…1
    regions: np.ndarray  # (M, 4) float32 pixels: may be averaged and interpolated over time
    looks: np.ndarray  # (M, L) float32: what the person looks like, compare with `looks_cost`; L may be 0
    numbers: np.ndarray  # (M,) int64: the same within a shot, the same person, says the backend's own tracker

    def __post_init__(self) -> None:
        count = len(self.scores)
        shapes = (self.boxes.shape, self.regions.shape, self.looks.shape[:1], self.numbers.shape)
        if shapes != ((count, 4), (count, REGION), (count,), (count,)):
            raise ValueError(f"{count} people need boxes, regions, looks and numbers, got shapes {shapes}")

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Estimate:
    """One person's pose in one frame."""

    pose: np.ndarray  # (133, 3) float32: x, y in pixels, score 0…1 (0 = not seen)
    presence: float  # 0…1 that a person was there to estimate
    looks: np.ndarray  # (L,) float32, as in People

    def __post_init__(self) -> None:
        if self.pose.shape != (NUM_KEYPOINTS, 3) or self.pose.dtype != np.float32:
            raise ValueError(
                f"a pose is float32 ({NUM_KEYPOINTS}, 3), got {self.pose.dtype} {self.pose.shape}"
            )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sought:
    """One person in one frame: where to look, and who is not meant."""

    frame: np.ndarray  # (H, W, 3) uint8 RGB
    region: np.ndarray  # (4,) float32, as in People
    others: np.ndarray  # (K, 4) float32: regions of everybody else who was found in the frame
    accepts: Callable[[Estimate], bool]  # whether an estimate can be the person's; called from any thread


class PeopleFinder(Protocol):
    """The verb "find people"."""

    def find_people(self, frames: Iterable[np.ndarray]) -> Generator[People, None, None]:
        """Everybody in each frame, (H, W, 3) uint8 RGB, in the frames' order; close it to stop early."""
        ...


class PoseEstimator(Protocol):
    """The verb "estimate poses"."""

    def estimate_poses(self, sought: Iterable[Sought]) -> Generator[Estimate, None, None]:
        """One person's pose a frame, in order; close it to stop early.

        A backend may look again, in another way, for somebody whose estimate is not accepted.
        """
        ...

    def estimate_pose(self, picture: np.ndarray) -> np.ndarray:
        """The pose of the main person of a single picture (H, W, 3) uint8 RGB: (133, 3) float32.

        Raises NoPersonFound.
        """
        ...


class MaskTracker(Protocol):
    """The verb "track masks"."""

    def track_masks(
        self,
        frames: Iterable[np.ndarray],
        *,
        track: "SubjectTrack",
        poses: np.ndarray,
        present: np.ndarray,
        shots: np.ndarray,
    ) -> Generator[np.ndarray, None, None]:
        """One person's silhouette a frame, (H, W) uint8 of 0 and 1, in order; close it to stop early.

        `track`, `poses` (N, 133, 3) as estimated, `present` (N,) bool and `shots` (N,) cover all the
        frames there will be. In frames without the person a mask means nothing.
        """
        ...


class Backend(PeopleFinder, PoseEstimator, MaskTracker, Protocol):
    """The three verbs over one set of models."""

    @property
    def words(self) -> tuple[str, ...]:
        """Which models, and which version of what is done with them: the same words mean the same results."""
        ...

    def release(self) -> None:
        """Free the GPU memory of all networks; the next use loads them again."""
        ...


NOBODY_IN_PICTURE: Final = (
    "no person was found in the picture: use one that shows a single person with head and upper body"
)

BACKENDS: Final = ("full", "embedded")


def build_backend(name: str, *, cache_dir: Path, device: str | None = None) -> Backend:
    """Load a backend's models by its name in `BACKENDS`, fetching what is missing.

    The embedded models lie in `cache_dir`, the user's cache folder, the full ones in the hub's own. `device`
    is the GPU for the full ones ("cuda:0"), None where there is none.
    Raises ModelFilesBroken, DiskFull, and NoUsableGpu where "full" is asked for without a GPU.
    """
    if name == "embedded":
        from .embedded.backend import EmbeddedBackend  # noqa: PLC0415 - LiteRT loads only where it is used

        return EmbeddedBackend(cache_dir)
    if name == "full":
        if device is None:
            raise NoUsableGpu(
                'preprocessing "full" needs a CUDA GPU and none is usable here: choose "embedded"'
            )
        from .full.backend import FullBackend  # noqa: PLC0415 - onnxruntime and ultralytics likewise

        wanted = (REGISTRY["detector"], REGISTRY["pose"])
        folders = fetch(wanted)
        detector, pose = (folders[weights.name] / weights.patterns[0] for weights in wanted)
        backend = FullBackend(
            detector=detector,
            pose=pose.parent,
            tracker=lambda: fetch([REGISTRY["tracker"]])["tracker"],  # 0.9 GB that only replacement needs
            device=device,
        )
        backend.load()  # what cannot be loaded is told at setup, not in the middle of a request
        return backend
    raise InvalidInput(f"preprocessing must be one of {', '.join(BACKENDS)}, got {name!r}")
