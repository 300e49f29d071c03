"""Masks of hard videos, with the real embedded networks: the right person's, whole, or it is said."""

import threading
from pathlib import Path

import numpy as np
import pytest
from wan_animate.preprocess.preprocessor import Preprocessor
from wan_animate.preprocess.smoothing import BRIDGE_S
from wan_animate.preprocess.tracks import Tracks
from wan_animate.wan.media.decode import open_video
from wan_animate.wan.runtime.errors import Cancelled
from wan_animate.wan.runtime.job import Job

from .hard_videos import (
    FRAMES,
    RATE,
    HardVideo,
    crossing,
    cut,
    half_body,
    leaving,
    portrait_format,
    turning,
    twins,
    ultra_hd,
)
from .people import DRIVING, SAMPLES, backend

needs_samples = pytest.mark.skipif(not SAMPLES.exists(), reason="the samples are not part of the project")

# Whose recording shows how well, over the frames in which the person is followed: the median of what mask and
# person share, and the least share of the person that is covered.
HARD = {
    "crossing": (crossing, 0.93, 0.75),
    "behind": (lambda folder: crossing(folder, behind=True), 0.93, 0.75),
    "leaving": (leaving, 0.88, 0.9),
    "turning": (turning, 0.95, 0.95),
    "half_body": (half_body, 0.95, 0.95),
    "cut": (cut, 0.95, 0.95),
    "ultra_hd": (ultra_hd, 0.95, 0.95),
    "portrait": (portrait_format, 0.8, 0.5),  # 40 pixels between two heads: crops hold both
    "twins": (twins, 0.95, 0.95),
}
QUICK = ("crossing", "cut")


def masked(path: Path, subject: str) -> Tracks:
    return Preprocessor(backend()).tracks(open_video(path), subject=subject, job=Job(), masks=True)


def areas_of(tracks: Tracks) -> np.ndarray:
    assert tracks.masks is not None
    return np.array([tracks.masks.mask(index).sum() for index in range(len(tracks.masks))], float)


def silent_collapses(tracks: Tracks) -> list[int]:
    """Frames that lose most of the mask of the frame before or after, without any warning about it."""
    areas = areas_of(tracks)
    low, high = np.minimum(areas[1:], areas[:-1]), np.maximum(areas[1:], areas[:-1])
    collapsed = (np.flatnonzero(low < 0.4 * high) + 1).tolist()
    words = ("mask", "no person", "lost for a moment", "another shot")
    said = " ".join(sentence for sentence in tracks.warnings if any(word in sentence for word in words))
    return [frame for frame in collapsed if not said]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in HARD]
)
def test_the_mask_is_the_persons(name: str, tmp_path):
    make, like, covered = HARD[name]
    video: HardVideo = make(tmp_path)
    tracks = masked(video.path, video.subject)
    assert tracks.masks is not None
    followed = np.isfinite(tracks.boxes[:, 0]) & video.seen
    assert followed.sum() >= 0.5 * video.seen.sum()  # how long, tests of hard videos say
    shares, parts = [], []
    for index in np.flatnonzero(followed).tolist():
        mask, truth = tracks.masks.mask(index) > 0, video.masks[index]
        shares.append((mask & truth).sum() / (mask | truth).sum())
        parts.append((mask & truth).sum() / truth.sum())
        y, x = np.argwhere(mask).mean(axis=0)
        x0, y0, x1, y1 = video.boxes[index]
        assert x0 <= x <= x1, f"frame {index}: another person's"
        assert y0 <= y <= y1, f"frame {index}: another person's"
    assert np.median(shares) >= like
    assert min(parts) >= covered
    assert silent_collapses(tracks) == []
    # Away for longer than the masks around stand in: the mask is empty.
    away = np.flatnonzero(~video.seen)
    if len(away) > BRIDGE_S * RATE and len(away) < FRAMES:
        assert not areas_of(tracks)[away[len(away) // 2]]


def test_a_cancelled_request_stops_within_a_frame_and_leaves_no_thread():
    reached = []
    job = Job(
        cancel_requested=lambda: len(reached) >= 3,
        on_progress=lambda progress: reached.append(1) if progress.stage == "mask" else None,
    )
    with pytest.raises(Cancelled):
        video = open_video(DRIVING, duration_s=0.5)
        Preprocessor(backend()).tracks(video, subject="largest", job=job, masks=True)
    assert len(reached) <= 4
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("embedded")]


@needs_samples
@pytest.mark.slow
@pytest.mark.parametrize("subject", ["largest", "leftmost", "rightmost"])
def test_of_two_children_one_is_masked(subject: str):
    """The girl's skirt is blue, the boy wears white and black: her mask always has blue in it, his never."""
    video = open_video(SAMPLES / "two-people.mp4")
    tracks = masked(SAMPLES / "two-people.mp4", subject)
    assert tracks.masks is not None
    blue = []
    for index, frame in enumerate(video.frames()):
        mask = tracks.masks.mask(index) > 0
        if mask.any() and np.isfinite(tracks.boxes[index, 0]):
            red, _, cold = np.moveaxis(frame[mask].astype(int), -1, 0)
            blue.append(float(((cold - red) > 15).mean()))
    if subject == "leftmost":  # through the crossing, where she covers him, he gets some of her
        assert np.quantile(blue, 0.9) < 0.12
    else:
        assert np.quantile(blue, 0.1) > 0.12
    assert silent_collapses(tracks) == []
