"""BlazePose's 33 body points, face mesh and hands in, the 133 points of a whole body out. Pure.

Both sets name mostly the same joints in another order. What BlazePose lacks is settled here: it has no small
toe (the big toe's place is used), no jaw line of 17 points (the mesh's outline is divided evenly), and no
score for the single points of a face or hand (the whole part's is used). "Left" and "right" are the person's
own, unless said.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from ..keypoints import (
    BODY,
    FACE,
    FEET,
    HEAD,
    LEFT_ANKLE,
    LEFT_ELBOW,
    LEFT_EYE,
    LEFT_HAND,
    LEFT_KNEE,
    LEFT_WRIST,
    NOSE,
    NUM_KEYPOINTS,
    RIGHT_ANKLE,
    RIGHT_ELBOW,
    RIGHT_EYE,
    RIGHT_HAND,
    RIGHT_KNEE,
    RIGHT_WRIST,
)

BODY_POINTS: Final = 33  # mediapipe pose_landmark
MESH_POINTS: Final = 468  # mediapipe face_landmark
HAND_POINTS: Final = 21  # mediapipe hand_landmark; the same order as COCO-WholeBody's

BODY_FROM: Final = (0, 2, 5, 7, 8, 11, 12, 13, 14, 15, 16, 23, 24, 25, 26, 27, 28)
FEET_FROM: Final = (31, 31, 29, 32, 32, 30)  # "foot index" stands for both toes
SMALL_TOES: Final = (18, 21)  # of the 133
SMALL_TOE_TRUST: Final = 0.9  # its place is the big toe's; Wan's drawing uses the mean of both

UNSEEN: Final = 0.3  # score below which a joint proves nothing
LIMB_ENDS: Final = (  # end of a limb, the joint before it, and what else proves it; ankles before feet
    (LEFT_WRIST, LEFT_ELBOW, LEFT_HAND.start),
    (RIGHT_WRIST, RIGHT_ELBOW, RIGHT_HAND.start),
    (LEFT_ANKLE, LEFT_KNEE, None),
    (RIGHT_ANKLE, RIGHT_KNEE, None),
    *((point, LEFT_ANKLE, None) for point in (17, 18, 19)),
    *((point, RIGHT_ANKLE, None) for point in (20, 21, 22)),
)

BLAZE_NOSE: Final = 0  # of BlazePose's 33
TORSO: Final = (11, 12, 23, 24)  # shoulders and hips, left first
MIN_NECK_OF_WIDTH: Final = 0.3  # nose over shoulders, of their width: 0.31 to 0.8; without a head to 0.26
MIN_NECK_OF_TORSO: Final = 0.12  # the same for people seen from the side
CROWN: Final = 0.3  # of the shoulders' width, from the nose to where the head certainly goes on

# Points of the face mesh in the order of the 68 face points. Left and right halves as seen in the picture.
JAW_LEFT_HALF: Final = (127, 234, 93, 132, 58, 172, 136, 150, 149, 176, 148, 152)  # temple → chin
JAW_RIGHT_HALF: Final = (152, 377, 400, 378, 379, 365, 397, 288, 361, 323, 454, 356)  # chin → temple
JAW_POINTS_A_HALF: Final = 9  # the chin counted in both
BROWS: Final = (70, 63, 105, 66, 107, 336, 296, 334, 293, 300)
NOSE_LINE: Final = (168, 197, 5, 4, 98, 97, 2, 326, 327)
EYES: Final = (33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380)
OUTER_LIPS: Final = (61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181)
INNER_LIPS: Final = (78, 82, 13, 312, 308, 317, 14, 87)
MIDDLE_KNUCKLE: Final = 9  # of a hand's 21 points; 0 is the wrist
NEAR_WRIST: Final = 0.3  # palms between body's and hand's wrist: up to here the body's is kept, …
FAR_WRIST: Final = 0.9  # … from here on the hand's is taken
HEAD_IN_MESH: Final = [NOSE, LEFT_EYE, RIGHT_EYE]
MESH_OF_HEAD: Final = ((4,), (362, 263), (33, 133))  # tip of the nose; corners of left and right eye
INSIDE_FACE: Final = (*BROWS, *NOSE_LINE, *EYES, *OUTER_LIPS, *INNER_LIPS)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Part:
    """Some points of a body that are trusted together."""

    points: np.ndarray  # (K, 2) float32 pixels
    score: float  # 0…1 that the part is really there


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Body:
    """BlazePose's view of one person."""

    points: np.ndarray  # (33, 2) float32 pixels
    visibility: np.ndarray  # (33,) float32 0…1: inside the picture and not hidden
    presence: float  # 0…1 that there is a person at all
    region: np.ndarray  # (4,) float32: where the network itself would look next, see regions.py


def whole_body(
    body: Body,
    *,
    face: Part | None,
    left_hand: Part | None,
    right_hand: Part | None,
    frame_size: tuple[int, int],
) -> np.ndarray:
    """One person's 133 points: (133, 3) float32, x, y in pixels and score 0…1.

    A part that is None gets coordinates 0 and score 0. Points outside the picture of `frame_size`
    = (H, W) keep their coordinates and get score 0.
    """
    pose = np.zeros((NUM_KEYPOINTS, 3), np.float32)
    for target, source in ((BODY, BODY_FROM), (FEET, FEET_FROM)):
        pose[target, :2] = body.points[list(source)]
        pose[target, 2] = body.visibility[list(source)]
    pose[SMALL_TOES, 2] *= SMALL_TOE_TRUST
    if face is None and not head_is_credible(body.points, frame_size):
        pose[HEAD, 2] = 0.0
    if face is not None:
        pose[FACE, :2], pose[FACE, 2] = face_points(face.points), face.score
        # The mesh is three times as steady as the body network, and puts them at the same places.
        pose[HEAD_IN_MESH, :2] = [face.points[list(points)].mean(axis=0) for points in MESH_OF_HEAD]
    for target, wrist, hand in ((LEFT_HAND, LEFT_WRIST, left_hand), (RIGHT_HAND, RIGHT_WRIST, right_hand)):
        if hand is not None:
            pose[target, :2], pose[target, 2] = hand.points, hand.score
            pose[wrist] = _wrist(pose[wrist], hand)
    pose[~inside(pose[:, :2], frame_size), 2] = 0.0
    # A wrist whose elbow is outside the picture, without a hand on it, is a guess onto whatever lies there.
    for end, joint, proof in LIMB_ENDS:
        if pose[joint, 2] < UNSEEN and (proof is None or pose[proof, 2] < UNSEEN):
            pose[end, 2] = 0.0
    return pose


def _wrist(wrist: np.ndarray, hand: Part) -> np.ndarray:
    """The body's wrist (3,), drawn to the hand's where they lie far apart: its network sees it larger."""
    palm = max(float(np.linalg.norm(hand.points[MIDDLE_KNUCKLE] - hand.points[0])), 1e-6)
    apart = float(np.linalg.norm(hand.points[0] - wrist[:2])) / palm
    share = float(np.clip((apart - NEAR_WRIST) / (FAR_WRIST - NEAR_WRIST), 0, 1))
    place = wrist[:2] + share * (hand.points[0] - wrist[:2])
    return np.array([*place, max(wrist[2], share * hand.score)], np.float32)


def head_is_credible(points: np.ndarray, frame_size: tuple[int, int]) -> bool:
    """Whether body points (33, 2) have a head above the shoulders, and as a whole in the picture.

    Without a head in the picture the network puts one onto the chest, or along the picture's upper edge.
    """
    left, right, low_left, low_right = points[list(TORSO)]
    shoulders, hips = (left + right) / 2, (low_left + low_right) / 2
    torso = float(np.linalg.norm(shoulders - hips))
    up = (shoulders - hips) / max(torso, 1e-6)
    width = float(np.linalg.norm(left - right))
    height = float((points[BLAZE_NOSE] - shoulders) @ up)
    crown = points[BLAZE_NOSE] + CROWN * width * up
    return height >= max(MIN_NECK_OF_WIDTH * width, MIN_NECK_OF_TORSO * torso) and bool(
        inside(crown, frame_size)
    )


def face_points(mesh: np.ndarray) -> np.ndarray:
    """The 468 points of a face mesh (468, 2) → the 68 face points (68, 2): jaw, brows, nose, eyes, lips."""
    left = divide_evenly(mesh[list(JAW_LEFT_HALF)], JAW_POINTS_A_HALF)
    right = divide_evenly(mesh[list(JAW_RIGHT_HALF)], JAW_POINTS_A_HALF)
    return np.concatenate([left, right[1:], mesh[list(INSIDE_FACE)]]).astype(np.float32)


def divide_evenly(line: np.ndarray, count: int) -> np.ndarray:
    """`count` points (count, 2) at even distances along a line of points (N, 2), its ends included."""
    along = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1))])
    wanted = np.linspace(0.0, along[-1], count)
    return np.stack([np.interp(wanted, along, line[:, axis]) for axis in range(2)], axis=1)


def inside(points: np.ndarray, frame_size: tuple[int, int]) -> np.ndarray:
    """Which points (..., 2) lie in a picture of `frame_size` = (H, W): (...,) bool."""
    height, width = frame_size
    return np.all((points >= 0) & (points < (width, height)), axis=-1)
