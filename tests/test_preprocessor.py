"""Pass 1 on real videos: who is followed, what is kept, and what the user is told."""

import threading
import tracemalloc
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from wan_animate.preprocess.backends import NOBODY_KNOWS, Backend, Estimate, People, Sought, build_backend
from wan_animate.preprocess.embedded.backend import EmbeddedBackend
from wan_animate.preprocess.keypoints import (
    FACE,
    HEAD,
    LEFT_SHOULDER,
    NOSE,
    RIGHT_SHOULDER,
    VISIBLE,
)
from wan_animate.preprocess.looks import LOOKS
from wan_animate.preprocess.preprocessor import (
    Preprocessor,
    absence_warnings,
    crowd_warnings,
    face_warnings,
    newcomer_warnings,
)
from wan_animate.preprocess.tracks import Tracks
from wan_animate.wan.media.decode import SourceVideo, open_video
from wan_animate.wan.runtime.errors import Cancelled, InvalidInput, NoPersonFound
from wan_animate.wan.runtime.job import Job

from .clips import write_video
from .people import DRIVING, SAMPLES, backend, officer, portrait, standing, wallpaper

needs_samples = pytest.mark.skipif(not SAMPLES.exists(), reason="the samples are not part of the project")


class Counting(EmbeddedBackend):
    """The real backend; counts the frames it is given."""

    def __init__(self) -> None:
        self._pool = backend()._pool
        self.looked, self.estimated = 0, 0

    def find_people(self, frames: Iterable[np.ndarray]) -> Generator[People, None, None]:
        def counted() -> Iterator[np.ndarray]:
            for frame in frames:
                self.looked += 1
                yield frame

        return super().find_people(counted())

    def estimate_poses(
        self, frames: Iterable[tuple[np.ndarray, np.ndarray]]
    ) -> Generator[Estimate, None, None]:
        def counted() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for pair in frames:
                self.estimated += 1
                yield pair

        return super().estimate_poses(counted())


def tracks_of(video: SourceVideo, *, subject: str = "largest", job: Job | None = None) -> Tracks:
    return Preprocessor(backend()).tracks(video, subject=subject, job=job or Job())


def filmed(path: Path, frames: Sequence[np.ndarray], *, rate: int = 30) -> SourceVideo:
    """A video of these pictures."""
    even = [frame[: frame.shape[0] // 2 * 2, : frame.shape[1] // 2 * 2] for frame in frames]
    return open_video(write_video(path, even, rate=rate, codec="libx264", options={"crf": "12"}))


def in_room(picture: np.ndarray, *, x: int, height: int = 300) -> np.ndarray:
    """A room of 360 × 640 with a picture of somebody standing in it."""
    room = wallpaper(360, 640)
    width = round(picture.shape[1] * height / picture.shape[0])
    room[360 - height :, x : x + width] = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
    return room


@pytest.fixture(scope="module")
def sample() -> tuple[SourceVideo, Tracks, Job]:
    video = open_video(DRIVING, fps=15)
    job = Job()
    return video, tracks_of(video, job=job), job


# --- a plain video


def test_the_sample_is_followed_from_beginning_to_end(sample):
    video, tracks, _ = sample
    assert tracks.num_frames == video.num_frames == 45
    assert tracks.frame_size == video.size
    assert (tracks.poses[:, HEAD, 2] >= VISIBLE).all()
    assert (tracks.poses[:, [LEFT_SHOULDER, RIGHT_SHOULDER], 2] >= VISIBLE).all()
    assert (tracks.poses[:, FACE, 2] >= VISIBLE).mean() > 0.95
    inside_box = (tracks.poses[:, NOSE, :2] > tracks.face_boxes[:, :2]) & (
        tracks.poses[:, NOSE, :2] < tracks.face_boxes[:, 2:]
    )
    assert inside_box.all()
    assert tracks.warnings == ()


def test_what_shows_lies_in_the_picture(sample):
    _, tracks, _ = sample
    height, width = tracks.frame_size
    outside = ((tracks.poses[..., :2] < 0) | (tracks.poses[..., :2] >= (width, height))).any(axis=-1)
    assert (tracks.poses[outside, 2] == 0).all()
    assert np.isfinite(tracks.poses).all()
    assert tracks.poses[..., 2].min() >= 0
    assert tracks.poses[..., 2].max() <= 1


def test_the_stages_are_timed_and_counted(sample):
    _, _, job = sample
    assert list(job.timings) == ["people", "pose", "smooth"]
    progress = []
    again = Job(on_progress=progress.append)
    preprocessor = Preprocessor(backend())
    short = open_video(DRIVING, fps=15, duration_s=0.4)
    preprocessor.announce(again, short)
    preprocessor.tracks(short, subject="largest", job=again)
    assert {(one.stage, one.total) for one in progress} == {("people", 6), ("pose", 6), ("smooth", 6)}
    assert progress[-1].progress == pytest.approx(1, abs=0.05)


def test_frames_shown_twice_are_looked_at_once():
    counting = Counting()
    video = open_video(DRIVING, fps=60, duration_s=0.5)
    tracks = Preprocessor(counting).tracks(video, subject="largest", job=Job())
    assert tracks.num_frames == 30
    assert (counting.looked, counting.estimated) == (15, 15)
    shown = np.unique(video.indices, return_index=True)[1]
    repeated = [frame for frame in range(30) if frame not in shown]
    assert (tracks.poses[repeated] == tracks.poses[np.array(repeated) - 1]).all()
    assert (tracks.face_boxes[repeated] == tracks.face_boxes[np.array(repeated) - 1]).all()


def test_looking_rarely_still_follows(sample):
    video, tracks, _ = sample
    counting = Counting()
    rare = Preprocessor(counting, stride=9)
    some = rare.tracks(video, subject="largest", job=Job())
    assert (counting.looked, counting.estimated) == (5, 45)
    assert np.abs(some.poses[:, NOSE, :2] - tracks.poses[:, NOSE, :2]).max() < 5
    assert rare.words != Preprocessor(counting).words


def test_a_video_of_one_frame_is_enough():
    tracks = tracks_of(open_video(DRIVING, duration_s=0.02))
    assert tracks.num_frames == 1
    assert tracks.poses[0, NOSE, 2] >= VISIBLE


# --- who


@pytest.mark.parametrize(("subject", "x"), [("leftmost", 118), ("rightmost", 490)])
def test_of_two_people_the_asked_one_is_followed(tmp_path, subject: str, x: int):
    pair = in_room(portrait(), x=10, height=280)
    pair[60:, 370:626] = cv2.resize(officer(), (256, 300), interpolation=cv2.INTER_AREA)
    tracks = tracks_of(filmed(tmp_path / "pair.mp4", [pair] * 6), subject=subject)
    assert np.abs(tracks.poses[:, NOSE, 0] - x).max() < 60
    assert tracks.warnings == (
        f"2 people were seen: the {subject} person is followed; choose another with subject",
    )
    assert (tracks.boxes[:, 0] < x).all()
    assert (tracks.boxes[:, 2] > x).all()
    assert tracks.others.shape == (6, 1, 4)
    assert (
        np.sign(tracks.others[:, 0, [0, 2]].mean(axis=1) - x) == (1 if subject == "leftmost" else -1)
    ).all()


def test_somebody_who_comes_later_stands_there_from_the_beginning_and_it_is_said(tmp_path):
    frames = [wallpaper()] * 12 + [in_room(portrait(), x=150)] * 12
    tracks = tracks_of(filmed(tmp_path / "later.mp4", frames))
    assert tracks.warnings == (
        "no person in frames 0–11: the first pose after is held",
        "no face in frames 0–11: it is cut out where it should be, by the frames around",
    )
    np.testing.assert_allclose(tracks.poses[:12, HEAD], tracks.poses[12:13, HEAD].repeat(12, axis=0))


def test_somebody_who_leaves_stays_and_it_is_said(tmp_path):
    frames = [in_room(portrait(), x=150)] * 12 + [wallpaper()] * 12
    tracks = tracks_of(filmed(tmp_path / "leaves.mp4", frames))
    assert tracks.warnings[0] == "no person in frames 12–23: the last pose before is held"
    assert (tracks.poses[12:, NOSE, 2] >= VISIBLE).all()


def test_nobody_anywhere_is_one_sentence(tmp_path):
    video = filmed(tmp_path / "empty.mp4", [wallpaper()] * 5)
    with pytest.raises(
        NoPersonFound, match=r"no person was found in the 5 frames used of empty\.mp4: use a part"
    ):
        tracks_of(video)


def test_a_cut_to_somebody_else_is_followed_and_said(tmp_path):
    frames = [in_room(portrait(), x=40)] * 8
    frames += [255 - in_room(255 - officer(), x=330)] * 8  # another room, too
    tracks = tracks_of(filmed(tmp_path / "cut.mp4", frames))
    nose = tracks.poses[:, NOSE, 0]
    assert np.ptp(nose[:8]) < 3
    assert np.ptp(nose[8:]) < 3
    assert nose[8] - nose[7] > 150
    assert len(tracks.warnings) <= 1  # their looks may or may not be alike enough
    assert all("in another shot" in warning for warning in tracks.warnings)


# --- stopping


@pytest.mark.parametrize("stage", ["people", "pose", "smooth"])
def test_a_cancelled_request_stops_and_leaves_no_thread(stage: str):
    reached = []
    job = Job(
        cancel_requested=lambda: len(reached) >= 3,
        on_progress=lambda progress: reached.append(1) if progress.stage == stage else None,
    )
    if stage == "smooth":
        reached += [1, 1]
    with pytest.raises(Cancelled):
        tracks_of(open_video(DRIVING, duration_s=0.3), job=job)
    assert len(reached) <= 4
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("embedded")]
    assert backend().estimate_pose(portrait()).shape == (133, 3)  # still usable


# --- memory


class Made:
    """A backend that makes its answers up, of the real size: memory is measured, not pictures."""

    words = ("made up",)

    def find_people(self, frames: Iterable[np.ndarray]) -> Generator[People, None, None]:
        for _ in frames:
            yield People(
                boxes=np.tile(np.array([[10, 10, 60, 60]], np.float32), (2, 1)),
                scores=np.array([0.9, 0.4], np.float32),
                regions=np.array([[30, 30, 0, -30], [50, 30, 0, -10]], np.float32),
                looks=np.zeros((2, LOOKS), np.float32),
                numbers=np.full(2, NOBODY_KNOWS),
            )

    def estimate_poses(self, sought: Iterable[Sought]) -> Generator[Estimate, None, None]:
        for _ in sought:
            yield Estimate(pose=standing(30, 30, size=40), presence=1.0, looks=np.zeros(LOOKS, np.float32))


def test_a_minute_of_video_adds_less_than_10_mb():
    def peak(seconds: float) -> int:
        video = open_video(DRIVING)
        times = np.tile(video.indices, round(seconds / 3))
        long = Looped(info=video.info, plan=video.plan, times=times)
        tracemalloc.start()
        try:
            Preprocessor(Made()).tracks(long, subject="largest", job=Job())
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(60) - peak(30) < 4e6  # and so leaves room for what others keep


class Looped:
    """A video of any length without decoding any."""

    def __init__(self, *, info, plan, times: np.ndarray) -> None:
        self.info, self.plan = info, plan
        self.indices = np.arange(len(times), dtype=np.int32)
        self.num_frames, self.fps, self.size = len(times), plan.fps, (64, 64)

    def frames(self, start: int = 0, stop: int | None = None) -> Generator[np.ndarray, None, None]:
        frame = np.zeros((64, 64, 3), np.uint8)
        for _ in range(start, self.num_frames if stop is None else stop):
            yield frame


# --- words


def test_absences_in_words():
    present = np.ones(100, bool)
    present[[*range(5), 20, 21, *range(40, 80)]] = False
    assert absence_warnings(present, np.zeros(100, int), fps=30.0) == [
        "no person in frames 0–4: the first pose after is held",
        "no person in frames 40–79: the last pose before is held",
        "the person was lost for a moment in frames 20–21: the pose is interpolated",
    ]
    assert absence_warnings(np.ones(5, bool), np.zeros(5, int), fps=30.0) == []


def test_many_absences_are_counted_not_listed():
    present = np.ones(100, bool)
    present[5::10] = False
    (sentence,) = absence_warnings(present, np.zeros(100, int), fps=30.0)
    assert sentence.startswith("the person was lost for a moment in frames 5, 15, 25, 35, 45, 55 and 4 more:")
    present[:] = True
    present[7] = False
    (sentence,) = absence_warnings(present, np.zeros(100, int), fps=30.0)
    assert "in frame 7:" in sentence


def test_missing_faces_in_words():
    poses = np.zeros((10, 133, 3), np.float32)
    assert face_warnings(poses) == [
        "no face was found in any frame: the character keeps a face without expression"
    ]
    poses[:, FACE, 2] = 0.9
    assert face_warnings(poses) == []
    poses[3:6, FACE, 2] = 0
    assert face_warnings(poses)[0].startswith("no face in frames 3–5:")


def test_another_person_in_another_shot_in_words():
    shots = np.repeat([0, 1, 2], 5)
    present = np.ones(15, bool)
    (sentence,) = newcomer_warnings([1], "center", present, shots)
    assert sentence.startswith("nobody in frames 5–9, in another shot,")
    assert "the most central person there is followed" in sentence
    present[5:10] = False
    assert newcomer_warnings([1], "center", present, shots) == []


@pytest.mark.parametrize(
    ("subject", "words"),
    [("largest", "the largest person"), ("center", "the most central person")],
)
def test_several_people_in_words(subject: str, words: str):
    boxes = np.zeros((100, 4), np.float32)
    others = np.full((100, 3, 4), np.nan, np.float32)
    assert crowd_warnings(boxes, others[:, :0], subject) == []
    others[20:23, 0] = others[30:60, 1] = 0.0
    expected = [f"2 people were seen: {words} is followed; choose another with subject"]
    assert crowd_warnings(boxes, others, subject) == expected
    others[60:90, 2] = 0.0  # who comes when another one leaves may be the same
    assert crowd_warnings(boxes, others, subject) == expected
    others[40:80, 0] = 0.0
    assert crowd_warnings(boxes, others, subject)[0].startswith("3 people were seen:")


def test_backends_are_chosen_by_name(tmp_path):
    with pytest.raises(InvalidInput, match="full, embedded"):
        build_backend("best", cache_dir=tmp_path)
    chosen: Backend = backend()
    assert chosen.words[0] == "embedded"


# --- the samples


@needs_samples
def test_the_cartoon_boy_walks_up_the_right_way_up():
    tracks = tracks_of(open_video(SAMPLES / "replace-video.mp4", duration_s=0.7))
    assert (tracks.poses[:, NOSE, 1] < tracks.poses[:, LEFT_SHOULDER, 1] - 60).all()
    assert (tracks.poses[:, LEFT_SHOULDER, 0] > tracks.poses[:, RIGHT_SHOULDER, 0]).all()
    assert (tracks.poses[:, FACE, 2] >= VISIBLE).all()
    assert tracks.warnings == ()


@needs_samples
def test_a_torso_without_a_head_has_arms_and_no_head():
    tracks = tracks_of(open_video(SAMPLES / "no-face.mp4", fps=10, duration_s=1.5))
    assert (tracks.poses[:, HEAD, 2] < VISIBLE).all()
    assert (tracks.poses[:, [LEFT_SHOULDER, RIGHT_SHOULDER], 2] >= VISIBLE).all()
    shoulders = tracks.poses[:, LEFT_SHOULDER, 0] - tracks.poses[:, RIGHT_SHOULDER, 0]
    assert shoulders.min() > 300
    assert np.isnan(tracks.face_boxes).all()
    assert "no face was found in any frame" in tracks.warnings[-1]


@needs_samples
@pytest.mark.parametrize(("subject", "right"), [("leftmost", 200), ("rightmost", 960)])
def test_of_two_children_one_is_followed(subject: str, right: int):
    """The last two seconds: the boy stands at the left, the girl jumps in the middle."""
    tracks = tracks_of(open_video(SAMPLES / "two-people.mp4", fps=15, start_s=5.2), subject=subject)
    middle = tracks.poses[:, [LEFT_SHOULDER, RIGHT_SHOULDER], 0].mean(axis=1)
    assert (middle < right).all()
    assert subject == "leftmost" or (middle > 250).all()
