"""On hard videos the right person is followed, nothing breaks, and what is said about it is right."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from wan_animate.preprocess.keypoints import FACE, LEFT_SHOULDER, NOSE, RIGHT_SHOULDER, VISIBLE
from wan_animate.preprocess.preprocessor import Preprocessor
from wan_animate.preprocess.tracks import Tracks
from wan_animate.wan.media.decode import open_video
from wan_animate.wan.runtime.errors import NoPersonFound
from wan_animate.wan.runtime.job import Job

from .hard_videos import (
    FRAMES,
    PAUSE,
    SIZE,
    HardVideo,
    crossing,
    cut,
    half_body,
    leaving,
    meeting,
    portrait_format,
    speck,
    speck_beside,
    turning,
    twins,
    ultra_hd,
)
from .people import SAMPLES, backend

TWO = "2 people were seen: the {} person is followed; choose another with subject"


def followed(video: HardVideo) -> Tracks:
    return Preprocessor(backend()).tracks(open_video(video.path), subject=video.subject, job=Job())


def share_on(masks: np.ndarray, tracks: Tracks) -> np.ndarray:
    """Share of each frame's drawn points (T,) that lie on masks (T, H, W)."""
    limits = np.array(masks.shape[:0:-1]) - 1
    shares = []
    for mask, pose in zip(masks, tracks.poses, strict=True):
        x, y = np.clip(pose[pose[:, 2] >= VISIBLE, :2].round().astype(int), 0, limits).T
        shares.append(mask[y, x].mean())
    return np.array(shares)


def share_seen(video: HardVideo) -> np.ndarray:
    """Share (T,) of the person that is neither hidden nor outside the picture."""
    areas = video.masks.sum(axis=(1, 2))
    return areas / areas.max()


def crowded(video: HardVideo) -> np.ndarray:
    """(T,) bool: somebody else reaches into the person's box."""
    boxes = video.boxes.astype(int)
    return np.array(
        [
            other[y0:y1, x0:x1].any()
            for other, (x0, y0, x1, y1) in zip(video.others, boxes.tolist(), strict=True)
        ]
    )


# --- several people


@pytest.mark.parametrize("behind", [False, True])
def test_of_two_who_cross_the_same_is_followed_to_the_end(tmp_path: Path, behind: bool):
    video = crossing(tmp_path, behind=behind)
    tracks = followed(video)
    apart = ~crowded(video)
    assert apart[[0, -1]].all()
    assert not apart.all()
    assert (share_on(video.masks, tracks)[apart] > 0.9).all()
    assert (share_on(video.others, tracks)[apart] == 0).all()
    assert np.median(share_on(video.masks, tracks)) > 0.95
    assert tracks.warnings[0] == TWO.format("leftmost")
    assert any("lost for a moment" in warning for warning in tracks.warnings) == behind


def test_in_a_portrait_format_too(tmp_path: Path):
    video = portrait_format(tmp_path)
    tracks = followed(video)
    assert (share_on(video.masks, tracks) > 0.9).all()
    assert tracks.warnings[0] == TWO.format("largest")


def test_somebody_is_found_again_behind_a_cut_on_the_other_side(tmp_path: Path):
    video = cut(tmp_path)
    tracks = followed(video)
    assert (share_on(video.masks, tracks) > 0.9).all()
    assert tracks.warnings == (TWO.format("leftmost"),)


def test_a_mirrored_copy_beside_somebody_changes_nothing(tmp_path: Path):
    video = twins(tmp_path)
    tracks = followed(video)
    assert (share_on(video.masks, tracks) > 0.9).all()
    assert tracks.warnings == (TWO.format("leftmost"),)


def test_four_times_full_hd(tmp_path: Path):
    video = ultra_hd(tmp_path)
    tracks = followed(video)
    assert tracks.frame_size == (2160, 3840)
    assert (share_on(video.masks, tracks) > 0.9).all()
    assert tracks.warnings == (TWO.format("leftmost"),)


def test_a_speck_is_nobody_to_choose(tmp_path: Path):
    video = speck_beside(tmp_path)
    tracks = followed(video)
    assert (share_on(video.masks, tracks) > 0.9).all()
    assert tracks.warnings == ()


needs_samples = pytest.mark.skipif(not SAMPLES.exists(), reason="the samples are not part of the project")


@pytest.mark.slow
@needs_samples
def test_two_strangers_pass_each_other(tmp_path: Path):
    video = meeting(tmp_path, SAMPLES / "animate-video.mp4")
    tracks = followed(video)
    apart = ~crowded(video)
    assert apart[:PAUSE].all()
    assert apart[-1]
    assert (share_on(video.masks, tracks)[apart] > 0.9).all()
    assert tracks.warnings[0] == TWO.format("leftmost")


@pytest.mark.slow
@needs_samples
@pytest.mark.parametrize("subject", ["largest", "leftmost", "rightmost", "center"])
def test_two_children_jump_about_and_the_same_is_followed(subject: str):
    """A boy and a girl; he kneels at her left, is hidden behind her for long, and comes out at her left."""
    tracks = Preprocessor(backend()).tracks(
        open_video(SAMPLES / "two-people.mp4"), subject=subject, job=Job()
    )
    x = tracks.poses[:, [LEFT_SHOULDER, RIGHT_SHOULDER], 0].mean(axis=1)
    assert tracks.others.shape == (200, 1, 4)
    if subject != "leftmost":
        assert tracks.warnings[0] == TWO.format("most central" if subject == "center" else subject)
        assert not any("person in" in warning or "lost" in warning for warning in tracks.warnings)
        assert (x[:9] > 340).all()
        assert (x[124:] > 220).all()
        return
    assert tracks.warnings[0] == TWO.format(subject)
    (held,) = (re.search(r"no person in frames (\d+)–(\d+):", text) for text in tracks.warnings[1:2])
    assert held is not None
    first, last = (int(number) for number in held.groups())
    assert 17 <= first < last <= 104  # to 17 and from 109 he can be seen beside her
    lost = np.isnan(tracks.boxes[:, 0])
    assert not lost[109:143].any()
    assert lost.sum() <= 96
    assert (x[:9] < 300).all()
    assert (x[124:] < 220).all()


# --- one person


def test_a_speck_alone_is_one_sentence(tmp_path: Path):
    with pytest.raises(NoPersonFound, match=r"no person was found in the 6 frames used of speck\.mp4: use"):
        followed(speck(tmp_path))


def test_somebody_leaves_and_comes_back(tmp_path: Path):
    video = leaving(tmp_path)
    tracks = followed(video)
    away = np.flatnonzero(~video.seen)
    assert len(away) == 8
    assert (share_on(video.masks, tracks)[share_seen(video) > 0.8] > 0.8).all()
    assert np.isnan(tracks.boxes[away]).all()
    said = re.match(r"no person in frames (\d+)–(\d+): the last pose before is held", tracks.warnings[0])
    assert said is not None
    first, last = (int(number) for number in said.groups())
    assert first in range(away[0] - 2, away[0] + 1)  # a shoulder is not enough
    assert last in range(away[-1], away[-1] + 3)
    assert (np.abs(np.diff(tracks.poses[:, NOSE, 0])) < 0.15 * SIZE[1]).all()  # no jumps


def test_who_turns_the_face_away_is_followed_without_one(tmp_path: Path):
    video = turning(tmp_path)
    tracks = followed(video)
    assert (share_on(video.masks, tracks) > 0.85).all()
    assert (share_on(video.others, tracks) == 0).all()
    hidden = range(FRAMES // 3, 2 * FRAMES // 3)
    assert tracks.warnings == (
        TWO.format("leftmost"),
        f"no face in frames {hidden[0]}–{hidden[-1]}: it is cut out where it should be, by the frames around",
    )
    shows_face = (tracks.poses[:, FACE, 2] >= VISIBLE).all(axis=1)
    assert np.flatnonzero(~shows_face).tolist() == list(hidden)


def test_head_and_shoulders_half_out_of_the_picture(tmp_path: Path):
    video = half_body(tmp_path)
    tracks = followed(video)
    assert (share_on(video.masks, tracks) > 0.95).all()
    assert tracks.warnings == ()


# --- the videos themselves: what all who test with them rely on


@pytest.mark.parametrize("make", [partial(crossing, behind=True), cut, leaving])
def test_the_truth_is_consistent(tmp_path: Path, make: Callable[[Path], HardVideo]):
    video = make(tmp_path)
    assert len(video) == open_video(video.path).num_frames == FRAMES
    assert not (video.masks & video.others).any()
    assert (video.masks.any(axis=(1, 2)) == video.seen).all()
    for mask, box in zip(video.masks[video.seen], video.boxes[video.seen], strict=True):
        x0, y0, x1, y1 = box.astype(int)
        assert mask[y0:y1, x0:x1].sum() == mask.sum()
