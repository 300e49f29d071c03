"""Tracks survive on disk, are found by content, and a damaged file is as good as none."""

import os
from pathlib import Path

import numpy as np
import pytest
from wan_animate.preprocess import track_cache
from wan_animate.preprocess.keypoints import NUM_KEYPOINTS
from wan_animate.preprocess.packed import PackedMasks
from wan_animate.preprocess.track_cache import TrackCache
from wan_animate.preprocess.tracks import Tracks

FRAMES = np.arange(3)


def make_tracks(*, masks: bool) -> Tracks:
    rng = np.random.default_rng(0)
    silhouettes = PackedMasks.pack(rng.integers(0, 2, (3, 20, 30), np.uint8)) if masks else None
    return Tracks(
        frame_size=(20, 30),
        poses=rng.random((3, NUM_KEYPOINTS, 3), np.float32),
        face_boxes=np.full((3, 4), np.nan, np.float32),
        boxes=rng.random((3, 4), np.float32),
        others=rng.random((3, 2, 4), np.float32),
        masks=silhouettes,
        warnings=("no face was found", "frames 1–2 …"),
    )


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "video.mp4"
    path.write_bytes(b"frames")
    return path


@pytest.mark.parametrize("masks", [False, True])
def test_what_is_saved_is_loaded(tmp_path: Path, masks: bool):
    cache, tracks = TrackCache(tmp_path / "cache"), make_tracks(masks=masks)
    cache.save("key", tracks)
    loaded = cache.load("key")
    assert loaded is not None
    np.testing.assert_array_equal(loaded.poses, tracks.poses)
    np.testing.assert_array_equal(loaded.face_boxes, tracks.face_boxes)
    np.testing.assert_array_equal(loaded.boxes, tracks.boxes)
    np.testing.assert_array_equal(loaded.others, tracks.others)
    assert (loaded.frame_size, loaded.warnings) == (tracks.frame_size, tracks.warnings)
    if tracks.masks is None:
        assert loaded.masks is None
    else:
        assert loaded.masks is not None
        for index in range(3):
            np.testing.assert_array_equal(loaded.masks.mask(index), tracks.masks.mask(index))


def test_the_key_is_the_content_not_the_name(tmp_path: Path, video: Path):
    cache = TrackCache(tmp_path)
    key = cache.key(video, frames=FRAMES, words=("largest",))
    renamed = video.rename(tmp_path / "other.mp4")
    assert cache.key(renamed, frames=FRAMES, words=("largest",)) == key
    assert cache.key(renamed, frames=FRAMES[:2], words=("largest",)) != key
    assert cache.key(renamed, frames=FRAMES, words=("leftmost",)) != key
    renamed.write_bytes(b"other frames")
    assert cache.key(renamed, frames=FRAMES, words=("largest",)) != key


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 broken", b"not a zip"])
def test_a_damaged_file_counts_as_none_and_goes(tmp_path: Path, content: bytes):
    cache = TrackCache(tmp_path)
    cache.save("key", make_tracks(masks=True))
    path = tmp_path / "key.npz"
    path.write_bytes(content)
    assert cache.load("key") is None
    assert not path.exists()


def test_a_truncated_file_counts_as_none(tmp_path: Path):
    cache = TrackCache(tmp_path)
    cache.save("key", make_tracks(masks=True))
    path = tmp_path / "key.npz"
    path.write_bytes(path.read_bytes()[:-200])
    assert cache.load("key") is None


def test_nothing_there_is_none(tmp_path: Path):
    assert TrackCache(tmp_path / "nowhere").load("key") is None


def test_the_folder_stays_small_and_loses_the_oldest_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cache = TrackCache(tmp_path)
    for number, key in enumerate(("a", "b", "c")):
        cache.save(key, make_tracks(masks=False))
        os.utime(tmp_path / f"{key}.npz", (number, number))
    size = (tmp_path / "a.npz").stat().st_size
    monkeypatch.setattr(track_cache, "KEPT_BYTES", int(2.5 * size))
    assert cache.load("a") is not None  # used last, so it stays
    cache.save("d", make_tracks(masks=False))
    assert sorted(path.stem for path in tmp_path.glob("*.npz")) == ["a", "d"]


def test_a_folder_that_cannot_be_written_costs_the_entry_only(tmp_path: Path):
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    cache = TrackCache(blocked / "cache")
    cache.save("key", make_tracks(masks=False))
    assert cache.load("key") is None
