"""One pose in, one drawn picture out: the skeleton the model was trained on, bit for bit. Pure.

The model reads limbs by colour, width and order of painting, so all three are tables here. Facts from Wan2.2
wan/modules/animate/preprocess/human_visualization.py (draw_aapose_by_meta_new) and pose2d_utils.py; face
points are not drawn. Letters: H W pixels; x to the right, y down.
"""

import math
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np

from .keypoints import LEFT_HAND, NUM_KEYPOINTS, RIGHT_HAND, VISIBLE

LIMB_SHADE: Final = 0.6  # limbs are painted darker than the joints at their ends
FAR_AWAY: Final = 1e6  # pixels; a coordinate beyond it is not a place, and OpenCV's integers would overflow

# The 20 drawn body points are means of two of the 133: a point with itself, but for the neck (shoulders) and
# the toes (big and small). Order: nose, neck, right arm, left arm, right leg, left leg, eyes, ears (right
# first), toes (left first).
_FIRST: Final = np.array([0, 6, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3, 17, 20])
_SECOND: Final = np.array([0, 5, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3, 18, 21])
_FACE_WITH_ROW_0: Final = slice(22, 91)  # the reference keeps the right heel in front of the 68 face points

Colour = tuple[int, int, int]  # RGB

JOINT_COLOURS: Final[tuple[Colour, ...]] = (
    (255, 0, 0),
    (255, 85, 0),
    (255, 170, 0),
    (255, 255, 0),
    (170, 255, 0),
    (85, 255, 0),
    (0, 255, 0),
    (0, 255, 85),
    (0, 255, 170),
    (0, 255, 255),
    (0, 170, 255),
    (0, 85, 255),
    (0, 0, 255),
    (85, 0, 255),
    (170, 0, 255),
    (255, 0, 255),
    (255, 0, 170),
    (255, 0, 85),
    (200, 200, 0),
    (100, 100, 0),
)
"""One a body point; limb number i is painted in colour i, shaded."""

LIMBS: Final[tuple[tuple[int, int], ...]] = (
    (1, 2),  # neck to right shoulder
    (1, 5),  # neck to left shoulder
    (2, 3),
    (3, 4),  # right arm
    (5, 6),
    (6, 7),  # left arm
    (1, 8),
    (8, 9),
    (9, 10),  # right leg
    (1, 11),
    (11, 12),
    (12, 13),  # left leg
    (1, 0),  # neck to nose
    (0, 14),
    (14, 16),  # right eye, right ear
    (0, 15),
    (15, 17),  # left eye, left ear
    (13, 18),  # left foot
    (10, 19),  # right foot
)
"""Pairs of body points, in the order of painting."""

FINGER_COLOURS: Final[tuple[Colour, ...]] = (
    (255, 0, 0),
    (255, 77, 0),
    (255, 153, 0),
    (255, 229, 0),
    (204, 255, 0),
    (128, 255, 0),
    (51, 255, 0),
    (0, 255, 25),
    (0, 255, 102),
    (0, 255, 179),
    (0, 255, 255),
    (0, 178, 255),
    (0, 102, 255),
    (0, 25, 255),
    (51, 0, 255),
    (128, 0, 255),
    (204, 0, 255),
    (255, 0, 230),
    (255, 0, 153),
    (255, 0, 77),
)
"""Twenty hues around the circle, rounded as the reference's float colours are when painted."""

FINGER_BONES: Final[tuple[tuple[int, int], ...]] = tuple(
    (0 if bone == 0 else first + bone - 1, first + bone) for first in (1, 5, 9, 13, 17) for bone in range(4)
)
"""Wrist (0) to tip for thumb, index, middle, ring and little finger."""

HAND_JOINT_COLOUR: Final[Colour] = (0, 0, 255)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PoseParts:
    """A pose as the reference passes it on: x and y as fractions of the picture, then score."""

    body: np.ndarray  # (20, 3) float32
    left_hand: np.ndarray  # (21, 3) float32, wrist first
    right_hand: np.ndarray  # (21, 3) float32
    face: np.ndarray  # (69, 3) float32; row 0 is no face point, the reference carries it along


def parts_from_133(
    pose: np.ndarray, *, height: int, width: int, previous: PoseParts | None = None
) -> PoseParts:
    """The reference's conversion of 133 points to its 20 body points, hands and face.

    `pose` is (133, 3) float32: x, y in pixels of a picture of `height` × `width`, and score. Where every body
    point lies left of or above the picture, the body of `previous` is kept, as the reference does.
    """
    if pose.shape != (NUM_KEYPOINTS, 3):
        raise ValueError(f"a pose is ({NUM_KEYPOINTS}, 3), got {pose.shape}")
    # In float32 and in this order: truncation to whole pixels, later, would show any other rounding.
    scaled = pose.astype(np.float32)
    scaled[:, 0] /= width
    scaled[:, 1] /= height
    body = (scaled[_FIRST] + scaled[_SECOND]) / 2
    if previous is not None and body[:, :2].min(axis=1).max() < 0:
        body = previous.body
    return PoseParts(
        body=body,
        left_hand=scaled[LEFT_HAND],
        right_hand=scaled[RIGHT_HAND],
        face=scaled[_FACE_WITH_ROW_0],
    )


def draw_skeleton(pose: np.ndarray, *, height: int, width: int) -> np.ndarray:
    """Draw one pose, (133, 3) float32 in pixels with scores, on black: (height, width, 3) uint8 RGB."""
    return draw_parts(parts_from_133(pose, height=height, width=width), height=height, width=width)


def draw_parts(parts: PoseParts, *, height: int, width: int) -> np.ndarray:
    """Draw the reference's own form of a pose on black: (height, width, 3) uint8 RGB."""
    body, left, right = (
        in_pixels(points, height=height, width=width)
        for points in (parts.body, parts.left_hand, parts.right_hand)
    )
    return draw_points(body, left, right, height=height, width=width)


def draw_points(
    body: np.ndarray, left_hand: np.ndarray, right_hand: np.ndarray, *, height: int, width: int
) -> np.ndarray:
    """Draw body (20, 3) and hands (21, 3), float64 pixels and scores, on black: (height, width, 3) uint8 RGB.

    Points that are not finite are not drawn, whatever their score.
    """
    canvas = np.zeros((height, width, 3), np.uint8)
    stick = max(min(height, width) // 200 - 1, 1)
    _draw_body(canvas, _visible(body), stick)
    for hand in (left_hand, right_hand):
        _draw_hand(canvas, _visible(hand), max(stick // 2, 1))
    return canvas


def in_pixels(points: np.ndarray, *, height: int, width: int) -> np.ndarray:
    """Rows of x, y as fractions of the picture, and score → the same in pixels, float64 as officially."""
    pixels = points.astype(np.float64)
    pixels[:, 0] *= width
    pixels[:, 1] *= height
    return pixels


def _visible(points: np.ndarray) -> list[tuple[float, float] | None]:
    """Plain floats, None where there is nothing to draw: looping over numpy rows costs more than painting."""
    return [
        (x, y) if score >= VISIBLE and abs(x) < FAR_AWAY and abs(y) < FAR_AWAY else None
        for x, y, score in points.tolist()
    ]


def _draw_body(canvas: np.ndarray, points: list[tuple[float, float] | None], stick: int) -> None:
    for (start, end), (red, green, blue) in zip(LIMBS, JOINT_COLOURS, strict=False):
        a, b = points[start], points[end]
        if a is not None and b is not None:
            shade = (int(red * LIMB_SHADE), int(green * LIMB_SHADE), int(blue * LIMB_SHADE))
            cv2.fillConvexPoly(canvas, _limb(a, b, stick), shade)
    for point, colour in zip(points, JOINT_COLOURS, strict=True):
        if point is not None:
            cv2.circle(canvas, (int(point[0]), int(point[1])), stick, colour, thickness=-1)


def _limb(a: tuple[float, float], b: tuple[float, float], stick: int) -> np.ndarray:
    """A thin ellipse from a to b, as a polygon of one point a degree; all of it truncated to integers."""
    along, across = a[0] - b[0], a[1] - b[1]
    centre = (int((a[0] + b[0]) / 2), int((a[1] + b[1]) / 2))
    half_length = int((across**2 + along**2) ** 0.5 / 2)
    angle = int(math.degrees(math.atan2(across, along)))
    return np.asarray(cv2.ellipse2Poly(centre, (half_length, stick), angle, 0, 360, 1))


def _draw_hand(canvas: np.ndarray, points: list[tuple[float, float] | None], stick: int) -> None:
    # Reference accident: a point in the first row or column, or beyond, counts as missing; for the body it
    # does not.
    places = [
        (int(point[0]), int(point[1])) if point is not None and point[0] >= 1 and point[1] >= 1 else None
        for point in points
    ]
    for (start, end), colour in zip(FINGER_BONES, FINGER_COLOURS, strict=True):
        a, b = places[start], places[end]
        if a is not None and b is not None:
            cv2.line(canvas, a, b, colour, thickness=stick)
    for place in places:
        if place is not None:
            cv2.circle(canvas, place, stick, HAND_JOINT_COLOUR, thickness=-1)
