"""What the image-editing model is asked for equals the official code's choice."""

import json
from pathlib import Path

import numpy as np
import pytest
from wan_animate.preprocess.keypoints import LEFT_ANKLE, LEFT_WRIST, NUM_KEYPOINTS, RIGHT_ELBOW
from wan_animate.preprocess.stance_prompts import (
    ARMS_DOWN,
    ARMS_OUT,
    FACE_ONLY,
    STANDING,
    WITH_HANDS,
    editing_prompts,
)

DATA = Path(__file__).parent / "data" / "pose" / "editing_prompts.npz"
GOLDEN = Path(__file__).parents[2] / "shared" / "golden" / "preprocess" / "editing_prompts.json"
BODY_20 = (
    0,
    0,
    6,
    8,
    10,
    5,
    7,
    9,
    12,
    14,
    16,
    11,
    13,
    15,
    2,
    1,
    4,
    3,
)  # the second, the neck, decides nothing
NECK = 1


def whole_bodies(bodies: np.ndarray, width: int, height: int) -> np.ndarray:
    """(T, 133, 3) in pixels from the official (T, 20, 3) in fractions of the picture."""
    poses = np.zeros((len(bodies), NUM_KEYPOINTS, 3), np.float32)
    for point, joint in enumerate(BODY_20):
        if point != NECK:
            poses[:, joint] = bodies[:, point] * (width, height, 1)
    return poses


def check(
    bodies: np.ndarray, driving: tuple[int, int], reference: tuple[int, int], expected: tuple[str, str]
):
    (width, height), (reference_width, reference_height) = driving, reference
    assert expected == editing_prompts(
        whole_bodies(bodies, width, height),
        driving_size=(height, width),
        reference_size=(reference_height, reference_width),
    )


@pytest.mark.parametrize("index", range(14))
def test_prompts_equal_the_official_ones(index):
    case = np.load(DATA)
    driving, reference = (tuple(case[f"{name}_wh"][index].tolist()) for name in ("driving", "reference"))
    expected = str(case["driving_prompt"][index]), str(case["reference_prompt"][index])
    check(case["bodies"][index], driving, reference, expected)


@pytest.mark.skipif(not GOLDEN.exists(), reason="the whole set of goldens is not here")
def test_prompts_equal_all_of_the_official_ones():
    for case in json.loads(GOLDEN.read_text())["cases"]:
        bodies = np.array(case["tpl_bodies"], np.float32)
        check(bodies, case["tpl_wh"], case["refer_wh"], (case["tpl_prompt"], case["refer_prompt"]))


@pytest.mark.parametrize(
    ("joint", "place", "score", "expected"),
    [
        (LEFT_ANKLE, (10, 10), 0.75, f"{ARMS_OUT} {STANDING}"),
        (RIGHT_ELBOW, (10, 10), 0.75, f"{ARMS_OUT} {WITH_HANDS}"),
        (LEFT_WRIST, (10, 10), 0.74, FACE_ONLY),
        (LEFT_ANKLE, (10, 201), 0.9, FACE_ONLY),
        (LEFT_ANKLE, (-1, 10), 0.9, FACE_ONLY),
    ],
)
def test_one_certain_joint_in_one_frame_decides(joint, place, score, expected):
    poses = np.zeros((5, NUM_KEYPOINTS, 3), np.float32)
    poses[3, joint] = *place, score
    driving, reference = editing_prompts(poses, driving_size=(200, 300), reference_size=(300, 200))
    assert driving == expected
    assert reference == expected.replace(ARMS_OUT, ARMS_DOWN)  # a tall picture has no room for stretched arms
