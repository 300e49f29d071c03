"""What to ask an image-editing model for, so that a person can be measured. Pure; knows no model.

The sentences and the rule are those of Wan2.2 wan/modules/animate/preprocess/process_pipepline.py
(get_editing_prompts). What the driving video shows decides how much of a body is asked for, in both pictures;
the shape of each picture decides whether the arms fit beside the body or hang down.
"""

from typing import Final

import numpy as np

from .keypoints import (
    LEFT_ANKLE,
    LEFT_ELBOW,
    LEFT_KNEE,
    LEFT_WRIST,
    RIGHT_ANKLE,
    RIGHT_ELBOW,
    RIGHT_KNEE,
    RIGHT_WRIST,
)

CERTAIN: Final = 0.75  # score from which a joint decides; official value
ARMS: Final = (LEFT_ELBOW, RIGHT_ELBOW, LEFT_WRIST, RIGHT_WRIST)
LEGS: Final = (LEFT_KNEE, RIGHT_KNEE, LEFT_ANKLE, RIGHT_ANKLE)

FACE_ONLY: Final = "Change the person to face forward."
ARMS_OUT: Final = "Change the person to a standard T-pose (facing forward with arms extended)."
ARMS_DOWN: Final = (
    "Change the person to a standard pose with the face oriented forward and arms extending straight down "
    "by the sides."
)
WITH_HANDS: Final = "Hands are visible in the image."
STANDING: Final = "The person is standing. Feet and Hands are visible in the image."

Size = tuple[int, int]  # height, width of a picture


def editing_prompts(poses: np.ndarray, *, driving_size: Size, reference_size: Size) -> tuple[str, str]:
    """What to ask for in a frame of the driving video, and in the reference picture.

    `poses` is (T, 133, 3): x, y in pixels of the driving video, and score.
    """
    legs, arms = shows(poses, LEGS, driving_size), shows(poses, ARMS, driving_size)
    return (
        _prompt(driving_size, legs=legs, arms=arms),
        _prompt(reference_size, legs=legs, arms=arms),
    )


def shows(poses: np.ndarray, joints: tuple[int, ...], size: Size) -> bool:
    """Whether any of these joints is certain and inside the picture in any frame of (T, 133, 3)."""
    height, width = size
    x, y, score = np.moveaxis(poses[:, list(joints)], -1, 0)
    inside = (x >= 0) & (y >= 0) & (x <= width) & (y <= height)
    return bool((inside & (score >= CERTAIN)).any())


def _prompt(size: Size, *, legs: bool, arms: bool) -> str:
    if not (legs or arms):
        return FACE_ONLY
    height, width = size
    return f"{ARMS_OUT if width > height else ARMS_DOWN} {STANDING if legs else WITH_HANDS}"
