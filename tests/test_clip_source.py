"""A clip's conditions are cut from the right frames, in the asked order, and decoded no more than needed."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from wan_animate.preprocess.clip_source import AnimationSource, ReplacementSource
from wan_animate.preprocess.face import crop_face
from wan_animate.preprocess.geometry import pad_to_fit, scale_and_crop
from wan_animate.preprocess.keypoints import LEFT_HAND, NUM_KEYPOINTS
from wan_animate.preprocess.packed import PackedMasks
from wan_animate.preprocess.silhouette import MaskShaping, shape_mask
from wan_animate.preprocess.skeleton import draw_skeleton
from wan_animate.preprocess.tracks import Tracks
from wan_animate.wan.conditions import ClipSource
from wan_animate.wan.media.decode import SourceVideo, open_video

from .parity import prove, recordings
from .people import lone_tracks

FRAMES = 12
SIZE = (96, 160)  # H, W of the driving video
OUTPUT = (80, 64)  # H, W of the output


@pytest.fixture(scope="module")
def video_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("driving") / "driving.mp4"
    generator = np.random.default_rng(0)
    height, width = SIZE
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(30))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for _ in range(FRAMES):  # every frame its own picture, smooth enough for the codec
            small = generator.integers(0, 256, (6, 10, 3), np.uint8)
            frame = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def video(video_path: Path) -> SourceVideo:
    return open_video(video_path)


@pytest.fixture(scope="module")
def tracks() -> Tracks:
    generator = np.random.default_rng(1)
    poses = generator.uniform((0, 0, 0.6), (SIZE[1], SIZE[0], 1), (FRAMES, NUM_KEYPOINTS, 3)).astype(
        np.float32
    )
    corners = generator.uniform((5, 5), (60, 30), (FRAMES, 2))
    boxes = np.concatenate([corners, corners + generator.uniform(20, 60, (FRAMES, 2))], axis=1).astype(
        np.float32
    )
    return lone_tracks(frame_size=SIZE, poses=poses, face_boxes=boxes)


@pytest.fixture(scope="module")
def reference() -> np.ndarray:
    return np.random.default_rng(2).integers(0, 256, (*OUTPUT, 3), np.uint8)


@pytest.fixture(scope="module")
def masks() -> PackedMasks:
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    return PackedMasks.pack(
        ((rows - 50) / 24) ** 2 + ((columns - 70 - 2 * frame) / 12) ** 2 < 1 for frame in range(FRAMES)
    )


class CountingVideo(SourceVideo):
    """The real thing, which also remembers what was asked of it."""

    __slots__ = ()
    asked: list[tuple[int, int | None]] = []  # noqa: RUF012 - emptied by each test that looks at it

    def frames(self, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
        self.asked.append((start, stop))
        return SourceVideo.frames(self, start, stop)


def without_faces(tracks: Tracks) -> Tracks:
    boxes = np.full_like(tracks.face_boxes, np.nan)
    return lone_tracks(frame_size=tracks.frame_size, poses=tracks.poses, face_boxes=boxes)


@pytest.mark.parametrize("recording", recordings("preprocess/e2e"))
def test_conditions_of_whole_official_runs_are_equal_where_they_are_meant_to_be(recording):
    prove(recording)


def test_sources_are_clip_sources(video, tracks, reference, masks):
    animation: ClipSource = AnimationSource(video, tracks, reference)
    replacement: ClipSource = ReplacementSource(video, tracks, reference, masks=masks)
    for source, replaces in ((animation, False), (replacement, True)):
        assert source.num_frames == FRAMES
        assert source.replaces is replaces
        assert source.reference is reference


def test_skeleton_and_face_are_those_of_the_asked_frames(video, tracks, reference):
    numbers = [3, 4, 5]
    conditions = AnimationSource(video, tracks, reference).conditions(numbers)
    assert conditions.scene is None
    frames = list(video.frames())
    for place, number in enumerate(numbers):
        drawn = draw_skeleton(tracks.poses[number], height=SIZE[0], width=SIZE[1])
        padded = pad_to_fit(drawn, width=OUTPUT[1], height=OUTPUT[0], interpolation=cv2.INTER_LINEAR)
        np.testing.assert_array_equal(conditions.pose[place], padded)
        np.testing.assert_array_equal(
            conditions.face[place], crop_face(frames[number], tracks.face_boxes[number])
        )


def test_retargeted_poses_are_drawn_at_the_outputs_size_and_faces_stay_those_of_the_tracks(
    video, tracks, reference
):
    moved = tracks.poses * np.float32((0.3, 0.5, 1))
    numbers = [3, 4, 5]
    conditions = AnimationSource(video, tracks, reference, retargeted=moved).conditions(numbers)
    for place, number in enumerate(numbers):
        drawn = draw_skeleton(moved[number], height=OUTPUT[0], width=OUTPUT[1])
        np.testing.assert_array_equal(conditions.pose[place], drawn)
    np.testing.assert_array_equal(
        conditions.face, AnimationSource(video, tracks, reference).conditions(numbers).face
    )
    with pytest.raises(ValueError, match="retargeted poses must be"):
        AnimationSource(video, tracks, reference, retargeted=moved[:-1])


@pytest.mark.parametrize("mode", ["animation", "replacement"])
def test_frames_may_repeat_and_run_backwards(video, tracks, reference, masks, mode):
    source = (
        AnimationSource(video, tracks, reference)
        if mode == "animation"
        else ReplacementSource(video, tracks, reference, masks=masks)
    )
    forward = source.conditions(range(8, 12))
    reflected = source.conditions([8, 9, 10, 11, 10, 9, 8, 8])
    order = [0, 1, 2, 3, 2, 1, 0, 0]
    np.testing.assert_array_equal(reflected.pose, forward.pose[order])
    np.testing.assert_array_equal(reflected.face, forward.face[order])
    if mode == "replacement":
        np.testing.assert_array_equal(reflected.scene.background, forward.scene.background[order])
        np.testing.assert_array_equal(reflected.scene.mask, forward.scene.mask[order])


def test_just_the_needed_range_is_decoded_once(video, tracks, reference):
    counting = CountingVideo(info=video.info, plan=video.plan)
    CountingVideo.asked.clear()
    AnimationSource(counting, tracks, reference).conditions([7, 6, 5, 5, 6, 7, 8])
    assert CountingVideo.asked == [(5, 9)]


def test_nothing_is_decoded_where_no_face_needs_pixels(video_path, tracks, reference, tmp_path):
    copy = tmp_path / "copy.mp4"
    copy.write_bytes(video_path.read_bytes())
    source = AnimationSource(open_video(copy), without_faces(tracks), reference)
    copy.unlink()
    conditions = source.conditions(range(FRAMES))
    assert conditions.pose.any()
    assert not conditions.face.any()


def test_frames_without_a_box_get_the_blank_face(video, tracks, reference):
    boxes = tracks.face_boxes.copy()
    boxes[4] = np.nan
    partly = lone_tracks(frame_size=SIZE, poses=tracks.poses, face_boxes=boxes)
    conditions = AnimationSource(video, partly, reference).conditions([3, 4, 5])
    assert [bool(face.any()) for face in conditions.face] == [True, False, True]


def test_replacement_keeps_the_background_and_cuts_the_person(video, tracks, reference, masks):
    shaping = MaskShaping(iterations=1, kernel_size=3, columns=4, rows=4)
    source = ReplacementSource(video, tracks, reference, masks=masks, shaping=shaping)
    conditions = source.conditions([2, 9])
    scene = conditions.scene
    assert set(np.unique(scene.mask)) == {0, 255}
    frames = list(video.frames())
    for place, number in enumerate([2, 9]):
        scenery = scale_and_crop(frames[number], width=OUTPUT[1], height=OUTPUT[0])
        person = scene.mask[place] == 255
        assert 0.05 < person.mean() < 0.6
        assert not scene.background[place][person].any()
        np.testing.assert_array_equal(scene.background[place][~person], scenery[~person])
        np.testing.assert_array_equal(
            conditions.face[place], crop_face(frames[number], tracks.face_boxes[number])
        )


def test_replacement_without_growth_keeps_the_silhouette(video, tracks, reference, masks):
    source = ReplacementSource(video, tracks, reference, masks=masks, shaping=MaskShaping(iterations=0))
    silhouette = source.conditions([0]).scene.mask[0] > 0
    expected = shape_mask(
        scale_and_crop(masks.mask(0) * np.uint8(255), width=OUTPUT[1], height=OUTPUT[0]) >= 128,
        MaskShaping(iterations=0),
    )
    assert (silhouette != expected).mean() < 0.01
    assert 0.02 < silhouette.mean() < 0.5


def test_an_empty_mask_keeps_the_whole_picture(video, tracks, reference):
    nobody = PackedMasks.pack(np.zeros(SIZE, bool) for _ in range(FRAMES))
    scene = ReplacementSource(video, tracks, reference, masks=nobody).conditions([0]).scene
    assert not scene.mask.any()
    np.testing.assert_array_equal(
        scene.background[0], scale_and_crop(next(video.frames()), width=64, height=80)
    )


def test_replacement_draws_the_skeleton_where_the_person_is(video, tracks, reference):
    point = (SIZE[1] / 2 + 12, SIZE[0] / 2 - 20)  # x, y in the source; stays inside the crop
    poses = np.zeros_like(tracks.poses)
    poses[:, LEFT_HAND] = (*point, 1.0)
    still = lone_tracks(frame_size=SIZE, poses=poses, face_boxes=tracks.face_boxes)
    marked = np.zeros(SIZE, bool)
    marked[int(point[1]) - 2 : int(point[1]) + 3, int(point[0]) - 2 : int(point[0]) + 3] = True
    masks = PackedMasks.pack(marked for _ in range(FRAMES))
    source = ReplacementSource(video, still, reference, masks=masks, shaping=MaskShaping(iterations=0))
    conditions = source.conditions([0])
    drawn = np.argwhere(conditions.pose[0].any(axis=2)).mean(axis=0)
    seen = np.argwhere(conditions.scene.mask[0] > 0).mean(axis=0)
    assert np.abs(drawn - seen).max() < 1.0


@pytest.mark.parametrize("mode", ["animation", "replacement"])
def test_views_are_the_conditions_with_their_pictures(video, tracks, reference, masks, mode):
    source = (
        AnimationSource(video, without_faces(tracks), reference)
        if mode == "animation"
        else ReplacementSource(video, tracks, reference, masks=masks)
    )
    conditions = source.conditions(range(4, 8))
    views = list(source.views(4, 8))
    assert [view.number for view in views] == [4, 5, 6, 7]
    for place, (view, frame) in enumerate(zip(views, video.frames(4, 8), strict=True)):
        np.testing.assert_array_equal(view.picture, frame)
        np.testing.assert_array_equal(view.pose, conditions.pose[place])
        np.testing.assert_array_equal(view.face, conditions.face[place])
        if mode == "replacement":
            np.testing.assert_array_equal(view.background, conditions.scene.background[place])
            np.testing.assert_array_equal(view.mask, conditions.scene.mask[place])
    assert len(list(source.views())) == FRAMES


@pytest.mark.parametrize("numbers", [[], [-1, 0], [FRAMES]])
def test_frames_that_do_not_exist_are_refused(video, tracks, reference, numbers):
    with pytest.raises(ValueError, match="frames must be"):
        AnimationSource(video, tracks, reference).conditions(numbers)


def test_tracks_of_another_video_are_refused(video, tracks, reference):
    shorter = lone_tracks(frame_size=SIZE, poses=tracks.poses[:-1], face_boxes=tracks.face_boxes[:-1])
    with pytest.raises(ValueError, match="do not belong"):
        AnimationSource(video, shorter, reference)
    turned = lone_tracks(frame_size=SIZE[::-1], poses=tracks.poses, face_boxes=tracks.face_boxes)
    with pytest.raises(ValueError, match="do not belong"):
        AnimationSource(video, turned, reference)
