"""The drawn skeleton equals the official code's, bit for bit; what is not seen is not drawn."""

import numpy as np
import pytest
from wan_animate.preprocess.keypoints import FACE, LEFT_HAND, NUM_KEYPOINTS
from wan_animate.preprocess.skeleton import (
    FINGER_BONES,
    FINGER_COLOURS,
    JOINT_COLOURS,
    LIMBS,
    draw_parts,
    draw_skeleton,
    in_pixels,
    parts_from_133,
)

from .parity import prove, recordings


def some_pose(height: int = 240, width: int = 320, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    pose = generator.uniform((0, 0, 0.6), (width, height, 1), (NUM_KEYPOINTS, 3))
    return pose.astype(np.float32)


@pytest.mark.parametrize("recording", recordings("preprocess/draw"))
def test_drawing_equals_the_official_one(recording):
    prove(recording)


@pytest.mark.parametrize("recording", recordings("preprocess/kp133_to_meta"))
def test_conversion_from_133_points_equals_the_official_one(recording):
    prove(recording)


def test_a_pose_is_drawn_through_the_official_conversion():
    pose = some_pose()
    parts = parts_from_133(pose, height=240, width=320)
    drawn = draw_skeleton(pose, height=240, width=320)
    assert drawn.shape == (240, 320, 3)
    assert drawn.dtype == np.uint8
    np.testing.assert_array_equal(drawn, draw_parts(parts, height=240, width=320))


def test_the_first_frame_has_no_body_to_hold():
    pose = some_pose()
    pose[:, :2] *= -1
    parts = parts_from_133(pose, height=240, width=320)
    assert parts.body[:, :2].max() < 0
    assert not draw_parts(parts, height=240, width=320).any()


def test_points_below_the_threshold_are_not_drawn():
    pose = some_pose()
    pose[:, 2] = 0.49
    assert not draw_skeleton(pose, height=240, width=320).any()
    pose[:, 2] = 0.5
    assert draw_skeleton(pose, height=240, width=320).any()


@pytest.mark.parametrize("nonsense", [np.nan, np.inf, -np.inf, 1e12, -1e12])
def test_points_nowhere_are_not_drawn(nonsense):
    pose = some_pose()
    pose[:, 0] = nonsense
    assert not draw_skeleton(pose, height=240, width=320).any()


def test_points_without_a_score_are_not_drawn():
    pose = some_pose()
    pose[:, 2] = np.nan
    assert not draw_skeleton(pose, height=240, width=320).any()


def test_face_points_are_not_drawn():
    pose = some_pose()
    pose[: FACE.start, 2] = 0
    pose[LEFT_HAND.start :, 2] = 0
    assert not draw_skeleton(pose, height=240, width=320).any()


def test_a_pose_is_not_written_to():
    pose = some_pose()
    before = pose.copy()
    draw_skeleton(pose, height=240, width=320)
    np.testing.assert_array_equal(pose, before)


def test_a_pose_of_another_size_is_refused():
    with pytest.raises(ValueError, match="133"):
        draw_skeleton(np.zeros((17, 3), np.float32), height=64, width=64)


def test_tables_belong_together():
    assert len(LIMBS) == 19
    assert len(JOINT_COLOURS) == 20
    assert len(FINGER_BONES) == len(FINGER_COLOURS) == 20
    assert FINGER_BONES[:5] == ((0, 1), (1, 2), (2, 3), (3, 4), (0, 5))
    assert {end for _, end in FINGER_BONES} == set(range(1, 21))


def test_pixels_are_float64_as_in_the_reference():
    points = np.array([[1 / 3, 0.1, 0.7]], np.float32)
    pixels = in_pixels(points, height=480, width=320)
    assert pixels.dtype == np.float64
    assert pixels[0, 0] == float(np.float32(1 / 3)) * 320
