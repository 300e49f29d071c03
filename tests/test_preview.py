"""The preview shows each frame's conditions beside its source, at a bounded size, and stops when asked."""

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from wan_animate.preprocess.clip_source import AnimationSource, ReplacementSource, TrackedSource
from wan_animate.preprocess.keypoints import NUM_KEYPOINTS
from wan_animate.preprocess.packed import PackedMasks
from wan_animate.preprocess.preview import (
    contact_sheet,
    marked_people,
    plan_layout,
    write_contact_sheet,
    write_preview,
)
from wan_animate.wan.media.decode import open_video
from wan_animate.wan.runtime.errors import Cancelled
from wan_animate.wan.runtime.job import Job

from .people import lone_tracks

FRAMES = 10
SIZE = (96, 160)  # H, W of the driving video
OUTPUT = (128, 80)  # H, W of the output
PAPER = np.array((20, 22, 26))


def write_video(path: Path, size: tuple[int, int]) -> Path:
    """Frames of one colour each, brighter from frame to frame."""
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(25))
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        for number in range(FRAMES):
            frame = np.full((*size, 3), 60 + 15 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def driving(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("preview") / "driving.mp4", SIZE)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("preview") / "finished.mp4", OUTPUT)


@pytest.fixture(scope="module")
def make(driving: Path) -> Callable[[str], TrackedSource]:
    generator = np.random.default_rng(1)
    poses = generator.uniform((30, 10, 0.6), (120, 90, 1), (FRAMES, NUM_KEYPOINTS, 3)).astype(np.float32)
    boxes = np.tile(np.array([60, 10, 100, 50], np.float32), (FRAMES, 1))
    tracks = lone_tracks(frame_size=SIZE, poses=poses, face_boxes=boxes)
    reference = np.zeros((*OUTPUT, 3), np.uint8)
    mask = np.zeros(SIZE, bool)
    mask[20:80, 60:100] = True

    def of_mode(mode: str) -> TrackedSource:
        video = open_video(driving)
        if mode == "animation":
            return AnimationSource(video, tracks, reference)
        masks = PackedMasks.pack(mask for _ in range(FRAMES))
        return ReplacementSource(video, tracks, reference, masks=masks)

    return of_mode


@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize(
    "aspects", [(16 / 9, 16 / 9, 9 / 16, 1.0), (1.0, 1.0, 1.0, 1.0, 1.0, 1.0), (0.25,) * 4, (4.0,) * 6]
)
@pytest.mark.parametrize("multiple", [1, 16])
def test_layout_is_even_and_bounded(aspects, rows, multiple):
    layout = plan_layout(aspects, rows=rows, tile_height=480, multiple=multiple)
    assert layout.width <= 1920
    assert layout.width % multiple == 0
    assert layout.height % multiple == 0
    assert len(layout.tiles) == rows
    for row in layout.tiles:
        assert len({(box.y, box.height) for box in row}) == 1
        for box, aspect in zip(row, aspects, strict=True):
            assert abs(box.width - aspect * box.height) <= 1
            assert box.x >= 0
            assert box.x + box.width <= layout.width
        gaps = [right.x - left.x - left.width for left, right in pairwise(row)]
        assert set(gaps) == {8}
    lines = [row[0] for row in layout.tiles]
    assert {below.y - above.y - above.height for above, below in pairwise(lines)} <= {8}
    assert lines[-1].y + lines[-1].height <= layout.height


@pytest.mark.parametrize(
    ("mode", "with_result", "columns"), [("animation", False, 4), ("replacement", True, 6)]
)
def test_contact_sheet_has_a_row_a_frame_and_a_column_a_kind(make, finished, mode, with_result, columns):
    job = Job()
    with job.stage("write", total=4) as stage:
        sheet = contact_sheet(
            make(mode), stage=stage, rows=4, finished=open_video(finished) if with_result else None
        )
    before, after = SIZE[1] / SIZE[0], OUTPUT[1] / OUTPUT[0]
    aspects = [before, before, after, 1.0, after, after][:columns]
    layout = plan_layout(aspects, rows=4, tile_height=216)
    assert sheet.shape == (layout.height, layout.width, 3)
    for row, number in zip(layout.tiles, (0, 3, 6, 9), strict=True):
        source = row[0]
        tile = sheet[source.y : source.y + source.height, source.x : source.x + source.width]
        np.testing.assert_allclose(tile.astype(int), 60 + 15 * number, atol=3)
        if with_result:
            result = row[-1]
            tile = sheet[result.y : result.y + result.height, result.x : result.x + result.width]
            np.testing.assert_allclose(tile.astype(int), 60 + 15 * number, atol=3)
        between = sheet[source.y : source.y + source.height, source.x + source.width + 1 : row[1].x - 1]
        assert (between == PAPER).all()
    labels = sheet[: layout.tiles[0][0].y - 1]
    assert (labels.max(axis=2) > 150).any()


def test_a_frame_without_a_face_says_so(make):
    source = make("animation")
    faceless = lone_tracks(
        frame_size=SIZE, poses=source.tracks.poses, face_boxes=np.full_like(source.tracks.face_boxes, np.nan)
    )
    sheet = contact_sheet(AnimationSource(source.video, faceless, source.reference), rows=1)
    box = plan_layout([SIZE[1] / SIZE[0]] * 2 + [OUTPUT[1] / OUTPUT[0], 1.0], rows=1, tile_height=216).tiles[
        0
    ][3]
    tile = sheet[box.y : box.y + box.height, box.x : box.x + box.width]
    assert 0.001 < (tile.max(axis=2) > 60).mean() < 0.1


def test_among_several_people_one_is_framed_and_the_others_are_grey():
    """The subject's box covers half of the other's: the rest of that loses its colour, nothing else does."""
    poses = np.zeros((FRAMES, NUM_KEYPOINTS, 3), np.float32)
    alone = lone_tracks(frame_size=SIZE, poses=poses, face_boxes=np.full((FRAMES, 4), np.nan, np.float32))
    subject, other = (np.array(box, np.float32) for box in ((20, 20, 80, 80), (50, 20, 110, 80)))
    tracks = replace(alone, boxes=np.tile(subject, (FRAMES, 1)), others=np.tile(other, (FRAMES, 1, 1)))
    red = np.zeros((*SIZE, 3), np.uint8) + np.array((200, 40, 40), np.uint8)
    marked = marked_people(red, tracks, 0, tile_height=SIZE[0])
    assert (marked[50, 30] == red[50, 30]).all()  # the subject
    assert (marked[50, 70] == red[50, 70]).all()  # both
    assert np.ptp(marked[50, 100]) == 0  # the other
    assert marked[50, 100].max() < red[50, 100].mean()
    assert (marked[50, 150] == red[50, 150]).all()  # nobody
    frame = np.flatnonzero((marked[50] != red[50]).any(axis=1))
    assert frame[0] in range(8, 21)  # a line around the subject, a little outside the box
    nobody = replace(tracks, boxes=np.full((FRAMES, 4), np.nan, np.float32), others=alone.others)
    assert (marked_people(red, nobody, 0, tile_height=SIZE[0]) == red).all()


def test_short_videos_give_fewer_rows(make):
    with Job().stage("write") as stage:
        sheet = contact_sheet(make("animation"), stage=stage, rows=50)
    before, after = SIZE[1] / SIZE[0], OUTPUT[1] / OUTPUT[0]
    assert sheet.shape[0] == plan_layout([before, before, after, 1.0], rows=FRAMES, tile_height=216).height


def test_contact_sheet_is_written_as_a_png(make, tmp_path):
    path = tmp_path / "sheet.png"
    with Job().stage("write") as stage:
        write_contact_sheet(path, make("animation"), stage=stage, rows=2)
    picture = cv2.imread(path)
    assert picture is not None
    assert picture.shape[1] <= 1920
    assert [entry.name for entry in tmp_path.iterdir()] == ["sheet.png"]


@pytest.mark.parametrize(("mode", "with_result"), [("animation", False), ("replacement", True)])
def test_preview_video_has_every_frame(make, finished, tmp_path, mode, with_result):
    path = tmp_path / "preview.mp4"
    job = Job()
    with job.stage("write", total=FRAMES) as stage:
        write_preview(path, make(mode), stage=stage, finished=open_video(finished) if with_result else None)
    written = open_video(path)
    assert written.num_frames == FRAMES
    assert written.fps == 25
    height, width = written.size
    assert width <= 1920
    assert width % 16 == height % 16 == 0
    assert [entry.name for entry in tmp_path.iterdir()] == ["preview.mp4"]


def test_cancelling_leaves_no_file(make, tmp_path):
    asked = iter([False] * 4 + [True] * 100)
    job = Job(cancel_requested=lambda: next(asked))
    with pytest.raises(Cancelled), job.stage("write") as stage:
        write_preview(tmp_path / "preview.mp4", make("animation"), stage=stage)
    asked = iter([False] * 2 + [True] * 100)
    with pytest.raises(Cancelled), job.stage("write") as stage:
        write_contact_sheet(tmp_path / "sheet.png", make("animation"), stage=stage)
    assert list(tmp_path.iterdir()) == []
