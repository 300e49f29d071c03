"""How steady real tracks are, and that steadiness costs neither delay nor reach: numbers, not opinions.

`-m slow --log-cli-level=INFO` tells the numbers.
"""

import logging
from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from wan_animate.preprocess.backends import Estimate, Sought
from wan_animate.preprocess.embedded.backend import EmbeddedBackend
from wan_animate.preprocess.keypoints import (
    FACE,
    LEFT_ELBOW,
    LEFT_SHOULDER,
    LEFT_WRIST,
    NOSE,
    RIGHT_ELBOW,
    RIGHT_SHOULDER,
    RIGHT_WRIST,
    VISIBLE,
)
from wan_animate.preprocess.preprocessor import Preprocessor
from wan_animate.preprocess.tracks import Tracks
from wan_animate.wan.media.decode import open_video
from wan_animate.wan.runtime.job import Job

from .people import DRIVING, SAMPLES, backend

logger = logging.getLogger(__name__)

SHOULDERS = (LEFT_SHOULDER, RIGHT_SHOULDER)
ELBOWS = (LEFT_ELBOW, RIGHT_ELBOW)
WRISTS = (LEFT_WRIST, RIGHT_WRIST)
STROKE = 5  # frames, a sixth of a second: of shorter ways, most is the estimator's noise
MAX_LAG = 4  # frames looked at to either side
SAME_SCALE = 0.02  # change of a face's own size from frame to frame, below which its box must keep its sides


class Recording(EmbeddedBackend):
    """The real backend; keeps the poses as they were estimated."""

    def __init__(self) -> None:
        self._pool = backend()._pool
        self.poses: list[np.ndarray] = []

    def estimate_poses(self, sought: Iterable[Sought]) -> Generator[Estimate, None, None]:
        with closing(super().estimate_poses(sought)) as estimates:
            for estimate in estimates:
                self.poses.append(estimate.pose)
                yield estimate


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Measured:
    """A video's poses as estimated, (T, 133, 3), and what became of them."""

    raw: np.ndarray
    tracks: Tracks

    @property
    def steady(self) -> np.ndarray:
        return self.tracks.poses

    def jitter(self, *points: int) -> float:
        """Mean second difference along either axis, pixels, where the points show."""
        change = np.abs(np.diff(self.steady[:, points, :2], 2, axis=0)).mean(axis=-1)
        return float(change[self._shown(points, 3)].mean())

    def lag(self, *points: int) -> int:
        """Frames by which the steady points come after the estimated ones: the shift that fits best."""
        quick, slow = (np.diff(poses[:, points, :2], axis=0) for poses in (self.raw, self.steady))
        inner = slice(MAX_LAG, len(quick) - MAX_LAG)
        fits = {
            shift: float((slow[inner] * np.roll(quick, shift, axis=0)[inner]).sum())
            for shift in range(-MAX_LAG, MAX_LAG + 1)
        }
        return max(fits, key=lambda shift: fits[shift])

    def reach(self, *points: int, over: int = STROKE) -> tuple[float, float]:
        """95th percentile of the way made `over` some frames, pixels: as estimated, and steady."""
        shown = self.steady[:, points, 2] >= VISIBLE
        both = shown[over:] & shown[:-over]
        raw, steady = (
            np.quantile(np.linalg.norm(track[over:] - track[:-over], axis=-1)[both], 0.95)
            for track in (poses[:, points, :2] for poses in (self.raw, self.steady))
        )
        return float(raw), float(steady)

    def pumping(self) -> float:
        """Largest relative change of a face box's side in a frame in which the face keeps its size."""
        boxes, face = self.tracks.face_boxes, self.steady[:, FACE, :2]
        sides = boxes[:, 2:] - boxes[:, :2]
        scale = np.linalg.norm(face - face.mean(axis=1, keepdims=True), axis=-1).mean(axis=1)
        kept = np.abs(np.diff(np.log(scale))) < SAME_SCALE
        return float(np.abs(np.diff(np.log(sides), axis=0))[kept].max())

    def _shown(self, points: tuple[int, ...], frames: int) -> np.ndarray:
        """(T - frames + 1, P) bool: a point shows in so many frames in a row."""
        shown = self.steady[:, points, 2] >= VISIBLE
        return np.all([shown[start : len(shown) - frames + 1 + start] for start in range(frames)], axis=0)


def measured(path: Path, *, duration_s: float | None = None) -> Measured:
    recording = Recording()
    tracks = Preprocessor(recording).tracks(
        open_video(path, duration_s=duration_s), subject="largest", job=Job()
    )
    return Measured(raw=np.array(recording.poses), tracks=tracks)


def test_a_portrait_is_steady_without_delay():
    sample = measured(DRIVING, duration_s=2.0)
    assert sample.jitter(NOSE) < 1
    assert sample.jitter(*SHOULDERS) < 1.5
    assert sample.lag(NOSE, *SHOULDERS) == 0
    raw, steady = sample.reach(NOSE)
    assert steady > 0.8 * raw
    assert sample.pumping() < 0.02


@pytest.mark.slow
@pytest.mark.skipif(not SAMPLES.exists(), reason="the samples are not part of the project")
def test_fast_arms_are_steady_and_keep_their_reach():
    sample = measured(SAMPLES / "animate-video.mp4")
    limits = (("nose", (NOSE,), 1.3), ("shoulders", SHOULDERS, 1.6), ("elbows", ELBOWS, 5.4))
    for name, points, limit in limits:
        logger.info("jitter of the %s: %.2f px", name, sample.jitter(*points))
        assert sample.jitter(*points) < limit
    for name, points in (("elbows", ELBOWS), ("wrists", WRISTS)):
        for over in (1, STROKE):
            raw, steady = sample.reach(*points, over=over)
            logger.info("95th percentile of the %s: %.1f → %.1f px in %d frames", name, raw, steady, over)
        assert steady > 0.95 * raw
        assert sample.lag(*points) == 0
    logger.info("face box's sides: %.2f %% at most", 100 * sample.pumping())
    assert sample.pumping() < 0.02
