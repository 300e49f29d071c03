"""Face boxes are the reference's, steady over time, inside the picture; crops are cut without fail."""

import cv2
import numpy as np
import pytest
from wan_animate.preprocess.face import crop_face, face_box, smooth_face_boxes
from wan_animate.preprocess.keypoints import FACE, HEAD, NUM_KEYPOINTS

from .parity import prove, recordings

SIZE = (720, 1280)  # H, W of the made-up videos
FRAMES = 120


def moving_face(
    *,
    x: np.ndarray | float = 600.0,
    y: np.ndarray | float = 300.0,
    scale: np.ndarray | float = 1.0,
    noise: float = 0.0,
) -> np.ndarray:
    """(T, 133, 3) poses whose face points, 90 × 70 px at scale 1, move and grow; scores 0.9."""
    generator = np.random.default_rng(0)
    shape = generator.uniform(-1, 1, (68, 2)) * (35, 45)
    poses = np.zeros((FRAMES, NUM_KEYPOINTS, 3), np.float32)
    centres = np.stack(np.broadcast_arrays(x, y, np.zeros(FRAMES))[:2], axis=1)
    scales = np.broadcast_to(scale, FRAMES)[:, None, None]
    poses[:, FACE, :2] = centres[:, None] + shape * scales + generator.normal(0, noise, (FRAMES, 68, 2))
    poses[:, FACE, 2] = 0.9
    return poses


def sides(boxes: np.ndarray) -> np.ndarray:
    return boxes[:, 2:] - boxes[:, :2]


def centres(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2:] + boxes[:, :2]) / 2


def side_changes(boxes: np.ndarray) -> np.ndarray:
    return np.abs(np.diff(np.log(sides(boxes)), axis=0))


def reference_box(pose: np.ndarray) -> np.ndarray:
    return face_box(pose[FACE, :2], height=SIZE[0], width=SIZE[1])


@pytest.mark.parametrize("recording", recordings("preprocess/face_bboxes"))
def test_boxes_equal_the_official_ones(recording):
    prove(recording)


def test_a_flat_face_gives_a_finite_box():
    same = np.full((68, 2), 50.0)
    assert face_box(same, height=100, width=100).tolist() == [50, 50, 50, 50]
    line = np.column_stack([np.linspace(20, 60, 68), np.full(68, 50.0)])
    assert np.isfinite(face_box(line, height=100, width=100)).all()


@pytest.mark.parametrize("place", [(600, 300), (10, 300), (1275, 300), (600, 5), (5, 715)])
def test_a_still_face_keeps_the_reference_box(place):
    poses = moving_face(x=place[0], y=place[1])
    boxes = smooth_face_boxes(poses, SIZE)
    assert boxes.shape == (FRAMES, 4)
    assert boxes.dtype == np.float32
    np.testing.assert_allclose(boxes, np.tile(reference_box(poses[0]), (FRAMES, 1)), atol=1e-3)


@pytest.mark.parametrize("noise", [0.5, 2.0])
def test_jitter_does_not_pump_the_box(noise):
    poses = moving_face(noise=noise)
    raw = np.stack([reference_box(pose) for pose in poses])
    boxes = smooth_face_boxes(poses, SIZE)
    assert side_changes(boxes).max() < 0.005
    assert side_changes(raw).max() > 3 * side_changes(boxes).max()
    assert np.abs(np.diff(centres(boxes), axis=0)).max() < np.abs(np.diff(centres(raw), axis=0)).max() / 3


def test_the_box_follows_a_moving_and_growing_face():
    time = np.arange(FRAMES)
    poses = moving_face(x=300 + 5 * time, y=300 + 15 * np.sin(time / 4), scale=np.exp(0.01 * time), noise=0.5)
    boxes = smooth_face_boxes(poses, SIZE)
    raw = np.stack([reference_box(pose) for pose in poses])
    inner = slice(10, -10)
    assert side_changes(boxes).max() < 0.02
    assert np.abs(sides(boxes) / sides(raw) - 1)[inner].max() < 0.1
    assert (np.abs(centres(boxes) - centres(raw)) / sides(raw))[inner].max() < 0.08


@pytest.mark.parametrize("speed", [-12.0, 12.0])
def test_a_face_that_crosses_the_edge_does_not_pump_the_box(speed):
    start = 700.0 if speed < 0 else 500.0
    poses = moving_face(x=start + speed * np.arange(FRAMES), noise=0.5)
    boxes = smooth_face_boxes(poses, SIZE)
    assert side_changes(boxes).max() < 0.02
    assert (boxes >= 0).all()
    assert (boxes[:, 2] <= SIZE[1]).all()


def test_boxes_stay_inside_the_picture():
    poses = moving_face(x=20.0, y=700.0, scale=np.linspace(0.5, 9, FRAMES), noise=3)
    boxes = smooth_face_boxes(poses, SIZE)
    assert (boxes >= 0).all()
    assert (boxes <= (SIZE[1], SIZE[0], SIZE[1], SIZE[0])).all()
    assert (sides(boxes) > 1).all()


def test_a_gap_is_bridged_and_the_ends_are_held():
    time = np.arange(FRAMES)
    poses = moving_face(x=300 + 2.0 * time)
    full = smooth_face_boxes(poses, SIZE)
    gap = slice(40, 60)
    poses[gap, FACE] = 0  # not seen: no score, no place
    bridged = smooth_face_boxes(poses, SIZE)
    np.testing.assert_allclose(bridged[10:-10], full[10:-10], atol=0.5)
    poses[:30, FACE, 2] = 0.1  # there, but not believable
    poses[100:, FACE, :2] = np.nan
    held = smooth_face_boxes(poses, SIZE)
    assert np.isfinite(held).all()
    np.testing.assert_allclose(held[:20], np.tile(held[0], (20, 1)), atol=0.5)
    np.testing.assert_allclose(held[-10:], np.tile(held[-1], (10, 1)), atol=0.5)
    np.testing.assert_allclose(held[35:95], full[35:95], atol=8)


def test_in_a_gap_the_box_follows_the_head():
    time = np.arange(FRAMES)
    poses = moving_face(x=300 + 200 * np.sin(time / 15), y=300.0)
    poses[:, HEAD] = poses[:, FACE.start : FACE.start + 5]
    full = smooth_face_boxes(poses, SIZE)
    poses[30:, FACE] = 0  # the face turns away, the head stays in the picture
    followed = smooth_face_boxes(poses, SIZE)
    assert np.ptp(followed[30:, 0]) > 300
    np.testing.assert_allclose(followed, full, atol=3)


def test_nothing_is_smoothed_across_a_cut():
    poses = moving_face(noise=0.5)
    poses[60:, :, :2] = poses[60:, :, :2] * 2 - 300
    shots = (np.arange(FRAMES) >= 60).astype(int)
    boxes = smooth_face_boxes(poses, SIZE, shots=shots)
    np.testing.assert_array_equal(boxes[:60], smooth_face_boxes(poses[:60], SIZE))
    np.testing.assert_array_equal(boxes[60:], smooth_face_boxes(poses[60:], SIZE))


def test_a_shot_without_a_face_keeps_the_last_box():
    poses = moving_face(noise=0.5)
    poses[:30, FACE] = 0
    poses[60:90, FACE] = 0
    boxes = smooth_face_boxes(poses, SIZE, shots=np.arange(FRAMES) // 30)
    assert np.isfinite(boxes).all()
    assert (boxes[:30] == boxes[30]).all()
    assert (boxes[60:90] == boxes[59]).all()


@pytest.mark.parametrize("rate", [1.0, 12.0, 60.0])
def test_smoothing_is_a_matter_of_seconds(rate):
    time = np.arange(FRAMES) / rate
    poses = moving_face(x=600 + 60 * np.sin(time * 3), scale=np.exp(0.1 * np.sin(time)), noise=0.5)
    boxes = smooth_face_boxes(poses, SIZE, rate=rate)
    raw = np.stack([reference_box(pose) for pose in poses])
    assert (np.abs(centres(boxes) - centres(raw)) / sides(raw)).max() < 0.06
    assert np.abs(sides(boxes) / sides(raw) - 1).max() < 0.06


def test_one_wrong_frame_leaves_no_trace():
    poses = moving_face()
    wrong = poses.copy()
    wrong[50:52, FACE, :2] = wrong[50:52, FACE, :2] * 3 - 500
    np.testing.assert_allclose(smooth_face_boxes(wrong, SIZE), smooth_face_boxes(poses, SIZE), atol=1e-3)


@pytest.mark.parametrize("hidden", ["no score", "no place", "outside"])
def test_no_face_anywhere_gives_no_box_anywhere(hidden):
    poses = moving_face(x=-400.0 if hidden == "outside" else 600.0)
    if hidden == "no score":
        poses[:, FACE, 2] = 0
    if hidden == "no place":
        poses[:, FACE, :2] = np.nan
    boxes = smooth_face_boxes(poses, SIZE)
    assert boxes.shape == (FRAMES, 4)
    assert boxes.dtype == np.float32
    assert np.isnan(boxes).all()


def test_half_a_face_outside_keeps_its_size():
    poses = moving_face(x=10.0)
    outside = poses[:, FACE, 0] < 0
    assert 0.2 < outside.mean() < 0.5
    scores = poses[:, FACE, 2]
    scores[outside] = 0.0  # as estimators do for points outside the picture
    boxes = smooth_face_boxes(poses, SIZE)
    np.testing.assert_allclose(boxes[0], reference_box(poses[0]), atol=1e-3)


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_short_videos_are_fine(frames):
    boxes = smooth_face_boxes(moving_face()[:frames], SIZE)
    assert boxes.shape == (frames, 4)
    assert np.isfinite(boxes).all()


def test_poses_are_not_written_to():
    poses = moving_face(noise=1)
    before = poses.copy()
    smooth_face_boxes(poses, SIZE)
    np.testing.assert_array_equal(poses, before)


def picture(height: int = 90, width: int = 120) -> np.ndarray:
    generator = np.random.default_rng(1)
    small = generator.integers(0, 256, (9, 12, 3), np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def test_a_whole_box_is_cut_out_and_stretched_as_officially():
    frame = picture()
    official = cv2.resize(frame[20:60, 30:80], (512, 512))
    np.testing.assert_array_equal(crop_face(frame, np.array([30, 20, 80, 60])), official)


def test_a_fractional_box_samples_what_a_whole_one_does():
    frame = picture()
    whole = crop_face(frame, np.array([30, 20, 80, 60]))
    nearly = crop_face(frame, np.array([30 + 1e-4, 20, 80, 60]))
    inner = slice(8, -8)  # at its rim a whole box repeats its own edge, a fractional one sees the next pixel
    assert np.abs(whole[inner, inner].astype(int) - nearly[inner, inner]).max() <= 2


def test_a_slowly_moving_box_moves_the_crop_slowly():
    frame = picture()
    crops = [
        crop_face(frame, np.array([30 + shift, 20, 80 + shift, 60])).astype(int) for shift in (0.1, 0.2, 1.1)
    ]
    assert np.abs(crops[1] - crops[0]).mean() < np.abs(crops[2] - crops[0]).mean() / 4


@pytest.mark.parametrize(
    "box",
    [
        (50, 40, 50, 40),
        (50, 40, 40, 30),
        (-80, -80, -20, -20),
        (500, 500, 600, 600),
        (-10, -10, 200, 200),
        (119.6, 89.7, 120, 90),
        (0, 20, 1e-3, 60),
    ],
)
def test_degenerate_boxes_and_boxes_outside_give_a_crop(box):
    frame = picture()
    before = frame.copy()
    crop = crop_face(frame, np.array(box, np.float32))
    assert crop.shape == (512, 512, 3)
    assert crop.dtype == np.uint8
    np.testing.assert_array_equal(frame, before)


def test_a_read_only_frame_can_be_cropped():
    frame = picture()
    frame.flags.writeable = False
    assert crop_face(frame, np.array([10.5, 10, 40, 40])).shape == (512, 512, 3)
