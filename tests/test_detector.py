"""People are found in real files' formats, keep their identity, and the library behind it keeps to itself."""

import inspect
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from wan_animate.preprocess.backends import PeopleFinder, PoseEstimator, Sought
from wan_animate.preprocess.face import smooth_face_boxes
from wan_animate.preprocess.full.backend import (
    FullBackend,
    box_colours,
    box_of,
    presence_of,
    region_of,
)
from wan_animate.preprocess.full.detector import (
    NOBODY_KNOWS,
    SIDE,
    Detections,
    IdentityTracker,
    PersonDetector,
    letterbox,
)
from wan_animate.preprocess.looks import looks_cost
from wan_animate.preprocess.preprocessor import Preprocessor
from wan_animate.preprocess.smoothing import smooth_poses
from wan_animate.preprocess.subjects import follow
from wan_animate.wan.media.decode import open_video
from wan_animate.wan.runtime.errors import Cancelled, ModelFilesBroken, NoPersonFound, SetupFailed
from wan_animate.wan.runtime.job import Job

from .clips import write_video
from .tiny_onnx import SCORES, fixed_people, write_detector, write_fixed, write_pose_network

logger = logging.getLogger(__name__)

RED, GREEN, BLUE = (200, 0, 0), (0, 200, 0), (0, 0, 200)
METADATA = {  # as ultralytics' export of yolov10m writes it, in short
    "description": "Ultralytics YOLOv10m model",
    "task": "detect",
    "stride": "32",
    "batch": "1",
    "imgsz": "[640, 640]",
    "names": "{0: 'person', 1: 'bicycle'}",
}

Box = tuple[int, int, int, int]
Colour = tuple[int, int, int]


@pytest.fixture(scope="module")
def detector_file(tmp_path_factory) -> Path:
    return write_detector(tmp_path_factory.mktemp("detector") / "tiny.onnx")


@pytest.fixture(scope="module")
def detector(detector_file) -> PersonDetector:
    return PersonDetector(detector_file, device="cpu")


@pytest.fixture(scope="module")
def backend(detector_file, tmp_path_factory) -> FullBackend:
    pose = write_pose_network(tmp_path_factory.mktemp("pose"))
    return FullBackend(detector=detector_file, pose=pose, tracker=lambda: pose, device="cpu")


def scene(*things: tuple[Box, Colour], height: int = 360, width: int = 640) -> np.ndarray:
    """Coloured boxes on dark grey, the later ones in front; each with a white spot in its upper part."""
    picture = np.full((height, width, 3), 20, np.uint8)
    for (x0, y0, x1, y1), colour in things:
        picture[y0:y1, x0:x1] = colour
        middle, down = (x0 + x1) // 2, y0 + (y1 - y0) // 3
        cv2.circle(picture, (middle, down), 8, (255, 255, 255), -1)
    return picture


def crossing(frames: int = 40) -> Iterator[np.ndarray]:
    """A red person walks to the right in front of a blue one who walks to the left."""
    for frame in range(frames):
        at = frame * 440 // (frames - 1)
        yield scene(((520 - at, 80, 600 - at, 320), BLUE), ((40 + at, 60, 140 + at, 340), RED))


# --- detecting


@pytest.mark.parametrize("raw", [False, True], ids=["end-to-end", "raw"])
@pytest.mark.parametrize("batch", [1, None])
@pytest.mark.parametrize("metadata", [None, METADATA], ids=["bare", "exported"])
@pytest.mark.parametrize("size", [(360, 640), (800, 500), (97, 151)])
def test_people_are_where_they_are(tmp_path, raw, batch, metadata, size):
    height, width = size
    file = write_detector(tmp_path / "yolo.onnx", raw=raw, batch=batch, metadata=metadata)
    boxes = [
        (width // 8, height // 5, width // 3, height),
        (width // 2, height // 3, width - 9, height * 4 // 5),
    ]
    frames = [scene((boxes[0], RED), (boxes[1], BLUE), height=height, width=width)] * 3
    frames[1] = np.full_like(frames[1], 20)
    found = list(PersonDetector(file, device="cpu")(frames))
    assert [len(detections.scores) for detections in found] == [2, 0, 2]
    pixel = max(height, width) / SIDE
    for detections in (found[0], found[2]):
        np.testing.assert_allclose(detections.boxes, boxes, atol=1.5 * max(pixel, 1))
        np.testing.assert_allclose(detections.scores, [SCORES[0], SCORES[2]], atol=1e-6)
        assert detections.boxes.dtype == detections.scores.dtype == np.float32


def test_only_people_count(tmp_path):
    rows = fixed_people(
        (10, 150, 100, 300, 0.9, 0), (200, 150, 300, 300, 0.9, 1), (400, 150, 500, 300, 0.05, 0)
    )
    file = write_fixed(tmp_path / "yolo.onnx", input_shape=(1, 3, SIDE, SIDE), result=rows)
    (found,) = PersonDetector(file, device="cpu")([scene()])
    assert len(found.scores) == 1


def test_boxes_equal_what_the_library_itself_returns(detector_file, detector):
    frame = scene(((101, 33, 222, 299), RED), ((399, 77, 477, 350), GREEN))
    (found,) = detector([frame])
    library = detector._library.YOLO(str(detector_file), task="detect")
    (result,) = library.predict(frame[..., ::-1].copy(), device="cpu", conf=0.1, classes=[0], verbose=False)
    np.testing.assert_allclose(found.boxes, result.boxes.xyxy.numpy(), atol=1e-3)
    np.testing.assert_allclose(found.scores, result.boxes.conf.numpy(), atol=1e-6)


@pytest.mark.parametrize("size", [(720, 1280), (1280, 720), (97, 151), (640, 640), (2, 5000)])
def test_letterbox_keeps_shapes_and_boxes_come_back(size):
    height, width = size
    square = np.full((3, SIDE, SIDE), 0.25, np.float32)
    frame = np.full((height, width, 3), 255, np.uint8)
    fit = letterbox(frame, square)
    filled = np.argwhere(square[0] == 1)
    (top, left), (bottom, right) = filled.min(axis=0), filled.max(axis=0) + 1
    assert (right - left) == pytest.approx(width * fit.scale, abs=1)
    assert (bottom - top) == pytest.approx(height * fit.scale, abs=1)
    back = fit.to_frame(np.array([[left, top, right, bottom]]), height, width)
    np.testing.assert_allclose(back, [[0, 0, width, height]], atol=1 / fit.scale)


def test_boxes_end_at_the_frame():
    square = np.zeros((3, SIDE, SIDE), np.float32)
    fit = letterbox(scene(), square)
    np.testing.assert_array_equal(
        fit.to_frame(np.array([[-50.0, 0, 700, 640]]), 360, 640), [[0, 0, 640, 360]]
    )


def test_frames_are_read_one_by_one_and_can_be_read_only(detector):
    read = []

    def frames():
        for index in range(100):
            frame = scene()
            frame.flags.writeable = False
            read.append(index)
            yield frame

    with closing(detector(frames())) as found:
        list(islice(found, 3))
    assert len(read) == 3


# --- identities


def test_identities_survive_a_crossing():
    tracker, seen = IdentityTracker(), []
    generator = np.random.default_rng(0)
    for frame in range(80):
        at = frame * 8
        boxes = np.array([[40 + at, 60, 160 + at, 340], [600 - at, 80, 700 - at, 330]], np.float32)
        boxes += generator.normal(0, 2, boxes.shape).astype(np.float32)
        overlap = min(boxes[0, 2], boxes[1, 2]) - max(boxes[0, 0], boxes[1, 0])
        count = 1 if overlap > 60 else 2  # the one behind is not found
        people = Detections(boxes=boxes[:count], scores=np.array([0.9, 0.8], np.float32)[:count])
        seen.append(tracker.follow(people, height=400, width=800))
    front, behind = [ids[0] for ids in seen], [ids[1] for ids in seen if len(ids) > 1]
    assert len(behind) < 75
    assert set(front) == {seen[0][0]}
    assert set(behind) == {seen[0][1]}


def test_an_identity_begins_with_a_second_look():
    tracker = IdentityTracker()
    one = Detections(boxes=np.array([[10, 10, 60, 200]], np.float32), scores=np.array([0.8], np.float32))
    assert tracker.follow(one, height=360, width=640) != NOBODY_KNOWS  # in the first frame at once
    boxes = np.float32([[10, 10, 60, 200], [310, 10, 360, 200]])
    two = Detections(boxes=boxes, scores=np.array([0.8, 0.7], np.float32))
    known = [tracker.follow(two, height=360, width=640) for _ in range(2)]
    assert known[0][1] == NOBODY_KNOWS
    assert known[1][0] == known[0][0] != known[1][1] != NOBODY_KNOWS


def test_every_video_has_its_own_identities():
    people = Detections(boxes=np.array([[10, 10, 60, 200]], np.float32), scores=np.array([0.8], np.float32))
    trackers = [IdentityTracker(), IdentityTracker()]
    assert [tracker.follow(people, height=360, width=640).tolist() for tracker in trackers] == [[1], [1]]


def test_nobody_is_no_error():
    nobody = Detections(boxes=np.zeros((0, 4), np.float32), scores=np.zeros(0, np.float32))
    tracker = IdentityTracker()
    assert [len(tracker.follow(nobody, height=360, width=640)) for _ in range(3)] == [0, 0, 0]


# --- files, devices, and what the library does to a process


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ModelFilesBroken, match=r"yolov10m\.onnx is missing"):
        PersonDetector(tmp_path / "yolov10m.onnx", device="cpu")


def test_a_damaged_file_is_named(tmp_path):
    file = tmp_path / "yolov10m.onnx"
    file.write_bytes(b"not a network")
    with pytest.raises(ModelFilesBroken, match=r"yolov10m\.onnx.*delete them and set up again"):
        PersonDetector(file, device="cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_a_gpu_that_cannot_be_used_is_an_error(detector_file, device):
    with pytest.raises(SetupFailed, match=device):
        PersonDetector(detector_file, device=device)


@pytest.mark.gpu
def test_the_detector_runs_on_the_gpu(detector_file, detector):
    frames = list(crossing(5))
    for ours, theirs in zip(
        PersonDetector(detector_file, device="cuda")(frames), detector(frames), strict=True
    ):
        np.testing.assert_allclose(ours.boxes, theirs.boxes, atol=1)


def test_the_library_leaves_the_process_and_the_home_alone(tmp_path, detector_file):
    code = f"""
import os, socket, subprocess, sys, threading, warnings
from pathlib import Path
import cv2, numpy as np, torch
from PIL import Image
def forbidden(*args, **kwargs):
    raise AssertionError("the library goes out")
socket.socket.connect = socket.getaddrinfo = subprocess.Popen.__init__ = forbidden
def state():
    return (dict(os.environ), cv2.getNumThreads(), torch.get_num_threads(), repr(np.get_printoptions()),
            list(warnings.filters), torch.save, Image.open, threading.active_count(), sorted(os.listdir()))
before = state()
from wan_animate.preprocess.full.detector import IdentityTracker, PersonDetector
assert "ultralytics" not in sys.modules and "onnxruntime" not in sys.modules
detector = PersonDetector(Path({str(detector_file)!r}), device="cpu")
list(detector([np.zeros((90, 160, 3), np.uint8)] * 40))
IdentityTracker()
assert os.environ.pop("ORT_DISABLE_TELEMETRY") == "1"  # the one thing that stays
for name, was, now in zip("environ cv2 torch numpy filters save open threads files".split(), before, state()):
    assert was == now, (name, was, now)
from ultralytics.utils import checks, events
assert not events.events.enabled and not checks.AUTOINSTALL
"""
    home = tmp_path / "home"
    home.mkdir()
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("YOLO", "PYTEST", "XDG", "ORT", "CI"))
    }
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=home,
        env=environment | {"HOME": str(home), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == ""
    assert list(home.rglob("*")) == []


# --- the backend


def sought(frame: np.ndarray, region: np.ndarray) -> Sought:
    """Somebody beside whom nobody is."""
    return Sought(frame=frame, region=region, others=np.zeros((0, 4), np.float32), accepts=lambda _: True)


def test_the_backend_has_the_verbs_of_every_backend(backend):
    for verb in (PeopleFinder.find_people, PoseEstimator.estimate_poses, PoseEstimator.estimate_pose):
        ours = getattr(FullBackend, verb.__name__)
        assert inspect.signature(ours) == inspect.signature(verb)
    assert backend.words[0] == "full"


def test_the_one_in_front_is_followed_through_a_crossing(backend):
    people = list(backend.find_people(crossing()))
    assert {int(found.numbers[0]) for found in people} == {1}
    track = follow(people, subject="largest", shots=np.zeros(40, int), frame_size=(360, 640), half=2)
    expected = 90 + np.arange(40) * 440 // 39
    np.testing.assert_allclose(track.regions[:, 0], expected, atol=6)


@pytest.mark.parametrize(("subject", "x"), [("leftmost", 110), ("rightmost", 545), ("largest", 330)])
def test_any_subject_can_be_chosen(backend, subject, x):
    still = scene(((60, 100, 160, 340), RED), ((270, 40, 390, 350), GREEN), ((500, 120, 590, 330), BLUE))
    people = list(backend.find_people([still] * 6))
    track = follow(people, subject=subject, shots=np.zeros(6, int), frame_size=(360, 640), half=0)
    np.testing.assert_allclose(track.regions[:, 0], x, atol=2)


def test_poses_come_from_the_region(backend):
    frames = list(crossing(10))
    middles = [90 + i * 440 // 9 for i in range(10)]
    regions = [np.array([middle, 200, 50, 140], np.float32) for middle in middles]
    estimates = list(backend.estimate_poses(map(sought, frames, regions)))
    spots = np.array([[middle, 60 + 280 // 3] for middle in middles])
    found = np.array([estimate.pose[:49, :2].mean(axis=0) for estimate in estimates])
    np.testing.assert_allclose(found, spots, atol=8)
    assert all(estimate.presence > 0.5 for estimate in estimates)
    assert estimates[0].looks.shape == (9,)


def test_looks_tell_people_apart():
    red, blue = scene(((60, 100, 160, 340), RED)), scene(((60, 100, 160, 340), BLUE))
    box = np.array([60, 100, 160, 340])
    assert looks_cost(box_colours(red, box), box_colours(red, box + 3)) < 0.1
    assert looks_cost(box_colours(red, box), box_colours(blue, box)) > 1


def test_regions_are_boxes():
    box = np.array([10, 20, 110, 320], np.float32)
    np.testing.assert_array_equal(region_of(box), [60, 170, 50, 150])
    np.testing.assert_array_equal(box_of(region_of(box)), box)


def test_presence_is_what_the_surest_points_say():
    pose = np.zeros((133, 3), np.float32)
    assert presence_of(pose) == 0
    pose[:7, 2] = 0.9  # head and shoulders
    assert presence_of(pose) == pytest.approx(0.9)
    pose[:, 2] = 1.2  # heatmaps can exceed 1
    assert presence_of(pose) == 1


def test_a_picture_gives_the_pose_of_its_largest_person(backend):
    pose = backend.estimate_pose(scene(((60, 140, 120, 300), RED), ((300, 20, 420, 350), BLUE)))
    np.testing.assert_allclose(pose[:49, :2].mean(axis=0), (360, 20 + 110), atol=8)


def test_a_picture_without_anybody_says_so(backend):
    with pytest.raises(NoPersonFound, match="head and upper body"):
        backend.estimate_pose(scene())


def test_networks_can_be_released_and_come_back(backend):
    before = backend.estimate_pose(scene(((300, 20, 420, 350), BLUE)))
    backend.release()
    np.testing.assert_array_equal(backend.estimate_pose(scene(((300, 20, 420, 350), BLUE))), before)


def test_a_video_becomes_tracks(backend, tmp_path):
    file = write_video(tmp_path / "crossing.mp4", crossing(30))
    tracks = Preprocessor(backend).tracks(open_video(file), subject="largest", job=Job())
    assert tracks.poses.shape == (30, 133, 3)
    np.testing.assert_allclose(tracks.poses[:, :49, 0].mean(axis=1), 90 + np.arange(30) * 440 // 29, atol=12)


def test_a_cancelled_video_stops_within_a_frame(backend, tmp_path):
    file = write_video(tmp_path / "crossing.mp4", crossing(30))
    done = []
    job = Job(
        cancel_requested=lambda: len(done) >= 5, on_progress=lambda progress: done.append(progress.done)
    )
    with pytest.raises(Cancelled):
        Preprocessor(backend).tracks(open_video(file), subject="largest", job=job)
    assert max(done) <= 5


@pytest.mark.slow
def test_our_own_code_costs_less_than_5_ms_a_frame(tmp_path):
    """At 1280 × 720, three people, networks that cost nothing; each stage's best time of many."""
    rows = fixed_people(
        (100, 160, 200, 500, 0.9, 0), (300, 150, 420, 500, 0.8, 0), (450, 170, 520, 480, 0.6, 0)
    )
    down, across = np.mgrid[:64, :48]
    bump = np.exp(-((across - 20.4) ** 2 + (down - 30.7) ** 2) / 8).astype(np.float32)
    pose = np.tile(bump, (1, 133, 1, 1))
    backend = FullBackend(
        detector=write_fixed(tmp_path / "yolo.onnx", input_shape=(1, 3, SIDE, SIDE), result=rows),
        pose=write_fixed(tmp_path / "pose.onnx", input_shape=(1, 3, 256, 192), result=pose),
        tracker=lambda: tmp_path,
        device="cpu",
    )
    backend.load()
    frame = np.random.default_rng(0).integers(0, 255, (720, 1280, 3), np.uint8)
    region = region_of(np.array([600, 60, 840, 720], np.float32))
    people = list(backend.find_people([frame] * 32))
    shots = np.zeros(32, int)
    poses = np.array([one.pose for one in backend.estimate_poses([sought(frame, region)] * 32)])
    stages = (  # work, and for how many frames
        (lambda: list(backend.find_people([frame])), 1),
        (lambda: list(backend.estimate_poses([sought(frame, region)])), 1),
        (lambda: follow(people, subject="largest", shots=shots, frame_size=(720, 1280), half=2), 32),
        (lambda: _smoothed(poses, shots), 32),
    )
    threads = cv2.getNumThreads(), torch.get_num_threads()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    try:
        costs = [min(_spent(stage) for _ in range(200)) / count for stage, count in stages]
    finally:
        cv2.setNumThreads(threads[0])
        torch.set_num_threads(threads[1])
    logger.info("people, pose, tracks, smoothing: %s ms", [round(1000 * cost, 2) for cost in costs])
    assert sum(costs) < 0.005, costs


def _smoothed(poses: np.ndarray, shots: np.ndarray) -> np.ndarray:
    steady = smooth_poses(poses, np.ones(32, bool), shots, rate=30.0, frame_size=(720, 1280))
    return smooth_face_boxes(steady, (720, 1280))


def _spent(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
