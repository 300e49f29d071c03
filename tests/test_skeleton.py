"""The drawn skeleton equals the official code's, bit for bit; what is not seen is not drawn."""

import json
from pathlib import Path

import numpy as np
import pytest
from wan_animate.preprocess.geometry import pad_to_fit
from wan_animate.preprocess.keypoints import FACE, LEFT_HAND, NUM_KEYPOINTS
from wan_animate.preprocess.skeleton import (
    FINGER_BONES,
    FINGER_COLOURS,
    JOINT_COLOURS,
    LIMBS,
    PoseParts,
    draw_parts,
    draw_points,
    draw_skeleton,
    in_pixels,
    parts_from_133,
)

DATA = Path(__file__).parent / "data"
GOLDEN = Path(__file__).parents[2] / "shared" / "golden" / "preprocess"
DRAW_CASES = sorted(DATA.glob("draw/*.npz")) + sorted(GOLDEN.glob("draw/*.npz"))
RETARGET_CASES = sorted(GOLDEN.glob("retarget/*_canvas.npz"))


def some_pose(height: int = 240, width: int = 320, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    pose = generator.uniform((0, 0, 0.6), (width, height, 1), (NUM_KEYPOINTS, 3))
    return pose.astype(np.float32)


def test_own_golden_data_is_there():
    assert len(list(DATA.glob("draw/*.npz"))) == 4


@pytest.mark.parametrize("path", DRAW_CASES, ids=lambda path: path.stem)
def test_drawing_equals_the_official_one(path):
    case = np.load(path)
    parts = PoseParts(
        body=case["keypoints_body"],
        left_hand=case["keypoints_left_hand"],
        right_hand=case["keypoints_right_hand"],
        face=np.zeros((69, 3), np.float32),
    )
    drawn = draw_parts(parts, height=int(case["height"]), width=int(case["width"]))
    np.testing.assert_array_equal(drawn, case["canvas"])


@pytest.mark.parametrize("name", ["plain", "held"])
def test_conversion_from_133_points_equals_the_official_one(name):
    case = np.load(DATA / "pose" / f"kp133_{name}.npz")
    previous = None
    for frame, pose in enumerate(case["kp133"]):
        previous = parts_from_133(
            pose, height=int(case["height"]), width=int(case["width"]), previous=previous
        )
        for part in ("body", "left_hand", "right_hand", "face"):
            np.testing.assert_array_equal(getattr(previous, part), case[part][frame])


@pytest.mark.skipif(not GOLDEN.exists(), reason="the full golden set is not here")
def test_conversion_from_133_points_equals_all_official_ones():
    cases = json.loads((GOLDEN / "kp133_to_meta.json").read_text())["cases"]
    for case in cases:
        if case["metas"] is None:  # the reference raises: nothing to hold in the first frame
            continue
        previous = None
        for pose, meta in zip(case["kp133"], case["metas"], strict=True):
            points = np.array(pose, np.float32)
            previous = parts_from_133(points, height=case["height"], width=case["width"], previous=previous)
            for part in ("body", "left_hand", "right_hand", "face"):
                expected = np.array(meta[f"keypoints_{part}"], np.float32)
                np.testing.assert_array_equal(getattr(previous, part), expected)


@pytest.mark.parametrize("path", RETARGET_CASES, ids=lambda path: path.stem)
def test_drawing_from_pixels_equals_the_official_one(path):
    canvases = np.load(path)["canvas"]
    outputs = json.loads(path.with_name(path.stem.removesuffix("_canvas") + ".json").read_text())["outputs"]

    def points(output: dict, part: str) -> np.ndarray:
        xy = np.array(
            [[np.nan if value is None else value for value in row] for row in output[f"kps_{part}"]]
        )
        return np.column_stack([xy, output[f"kps_{part}_p"]])

    for canvas, output in zip(canvases, outputs, strict=False):
        height, width = canvas.shape[:2]
        parts = [points(output, part) for part in ("body", "lhand", "rhand")]
        np.testing.assert_array_equal(draw_points(*parts, height=height, width=width), canvas)


@pytest.mark.skipif(not GOLDEN.exists(), reason="the full golden set is not here")
@pytest.mark.parametrize("name", ["00_animate_plain", "02_replace", "03_replace_w10", "04_replace_it0"])
def test_canvases_of_whole_official_runs_are_equal(name):
    canvases = np.load(GOLDEN / "e2e" / f"{name}.npz")["src_pose"]
    metas = json.loads((GOLDEN / "e2e" / f"{name}.json").read_text())["metas"][-1]
    for canvas, meta in zip(canvases, metas, strict=True):
        parts = PoseParts(
            **{
                part: np.array(meta[f"keypoints_{part}"], np.float32)
                for part in ("body", "left_hand", "right_hand", "face")
            }
        )
        drawn = draw_parts(parts, height=meta["height"], width=meta["width"])
        height, width = canvas.shape[:2]
        np.testing.assert_array_equal(pad_to_fit(drawn, height=height, width=width), canvas)


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
