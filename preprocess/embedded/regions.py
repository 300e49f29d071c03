"""Where the embedded networks look: views of a picture, regions of people, squares of faces and hands. Pure.

A region is four numbers in pixels: the middle of the hips, and the vector from there to the top of a circle
around the whole body (its length is called reach). Numbers without a reason are mediapipe 0.10.21's
(pose_landmark, holistic_landmark and face_landmark graphs).
"""

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from ..keypoints import BODY
from .crops import Square, up_angle
from .wholebody import BODY_FROM, Body, Part, inside

VIEW_OVERLAP: Final = 0.5  # of neighbouring views along the picture's longer side
SLACK: Final = 0.1  # of a view's side by which the picture may be longer without needing a further one

REGION_GROWTH: Final = 1.25  # crop over the circle
SAME_PLACE: Final = 0.5  # reaches between the hips of what may be one sighting
SAME_SIZE: Final = 1.7  # ratio of their reaches
SAME_DIRECTION: Final = 0.5  # cosine

MAIN_JOINTS: Final = [
    0,
    11,
    12,
    13,
    14,
    15,
    16,
    23,
    24,
    25,
    26,
]  # nose, shoulders to wrists, hips, knees; of the 33
SAME_BODY: Final = 0.2  # reaches between half of them
SAME_POSE: Final = 0.02  # reaches likewise: the network says the same of the same crop
SAME_HAND: Final = 0.3  # hand sizes between the middles of two hands

FACE_GROWTH: Final = 1.5
BACK: Final = -0.2  # cosine between the head's up and the body's from which the eyes are wrong
MESH_EYES: Final = [33, 263]  # outer corners, right and left eye, of the 468
HAND_GROWTH: Final = 2.7
HAND_SHIFT: Final = 0.1  # of the hand's length, towards the fingers
MIN_SIDE: Final = 6.0  # pixels of a face or hand; nothing can be read from less


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sighting:
    """A person as the detector sees one."""

    region: np.ndarray  # (4,)
    face: np.ndarray  # (2,) its middle
    score: float  # 0…1

    @property
    def reach(self) -> float:
        """Radius of the circle around the body, pixels."""
        return float(np.hypot(*self.region[2:]))

    @property
    def is_inverted(self) -> bool:
        """Whether the head lies below the hips."""
        return bool(self.region[3] > abs(self.region[2]))

    def turned_over(self) -> "Sighting":
        """The same circle with head and hips exchanged."""
        region = np.concatenate([self.region[:2] + self.region[2:], -self.region[2:]])
        return replace(self, region=region)


def square_views(height: int, width: int) -> list[Square]:
    """The squares in which people are looked for: the whole picture and, where it is long, its parts.

    The detector shrinks what it sees to 224 pixels: a child in a wide picture is found in the parts only.
    """
    long, short = max(height, width), min(height, width)
    views = [Square(centre=np.array([width / 2, height / 2]), side=float(long))]
    parts = 1 + int(np.ceil((long / short - 1) / (1 - VIEW_OVERLAP) - SLACK))
    if parts > 1:
        for place in np.linspace(short / 2, long - short / 2, parts):
            centre = (place, height / 2) if width >= height else (width / 2, place)
            views.append(Square(centre=np.array(centre), side=float(short)))
    return views


def region_square(region: np.ndarray) -> Square:
    """The crop that the landmark network wants for a region (4,)."""
    reach = max(float(np.hypot(*region[2:])), 1.0)
    return Square(centre=region[:2], side=2 * reach * REGION_GROWTH, angle=up_angle(region[2:]))


def merge_sightings(found: list[Sighting]) -> list[Sighting]:
    """One a person from what several views found: the weighted mean, with the best score; best first."""
    merged = []
    left = sorted(found, key=lambda one: -one.score)
    while left:
        best = left[0]
        group = [one for one in left if _same_sighting(best, one)]
        left = [one for one in left if not _same_sighting(best, one)]
        weights = [one.score for one in group]
        region, face = (
            np.average(values, axis=0, weights=weights)
            for values in ([one.region for one in group], [one.face for one in group])
        )
        merged.append(Sighting(region=region, face=face, score=best.score))
    return merged


def _same_sighting(a: Sighting, b: Sighting) -> bool:
    if a is b:
        return True
    small, large = sorted((a.reach, b.reach))
    near = np.hypot(*(a.region[:2] - b.region[:2])) < SAME_PLACE * small
    return bool(
        near and large < SAME_SIZE * small and a.region[2:] @ b.region[2:] > SAME_DIRECTION * small * large
    )


def same_body(a: Body, b: Body) -> bool:
    """Whether two views show one person: half of the main joints nearly coincide."""
    apart = np.linalg.norm(a.points[MAIN_JOINTS] - b.points[MAIN_JOINTS], axis=1)
    reach = min(np.hypot(*a.region[2:]), np.hypot(*b.region[2:]))
    return bool(np.median(apart) < SAME_BODY * reach)


def is_pose_of(body: Body, pose: np.ndarray) -> bool:
    """Whether a pose (133, 3) was made of a body, but for joints that face and hands place better."""
    apart = np.linalg.norm(body.points[list(BODY_FROM)] - pose[BODY, :2], axis=1)
    return bool(np.median(apart) < SAME_POSE * np.hypot(*body.region[2:]))


def same_hand(a: Part, b: Part) -> bool:
    """Whether two hands' points (21, 2) lie on one another."""
    size = float(np.ptp(a.points, axis=0).max())
    return float(np.linalg.norm(a.points.mean(axis=0) - b.points.mean(axis=0))) < SAME_HAND * size


def body_box(body: Body, frame_size: tuple[int, int]) -> np.ndarray:
    """The box (4,) float32 around what can be seen of a body; without area where nothing can."""
    seen = body.points[(body.visibility >= 0.5) & inside(body.points, frame_size)]
    if not len(seen):
        return np.tile(np.clip(body.region[:2], 0, frame_size[::-1]), 2).astype(np.float32)
    return np.concatenate([seen.min(axis=0), seen.max(axis=0)]).astype(np.float32)


def face_square(box: np.ndarray, eyes: np.ndarray, *, inside: Square) -> Square:
    """The mesh's square for a face detected `inside` another: box (4,), right and left eye (2, 2), in 0…1."""
    (centre,) = inside.to_picture((box[None, :2] + box[None, 2:]) / 2, 1)
    side = FACE_GROWTH * float((box[2:] - box[:2]).max()) * inside.side
    return Square(centre=centre, side=side, angle=level_angle(inside.to_picture(eyes, 1)))


def mesh_square(mesh: np.ndarray) -> Square:
    """The square around a face mesh (468, 2), level with its eyes."""
    angle = level_angle(mesh[MESH_EYES])
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    turned = mesh @ turn.T
    low, high = turned.min(axis=0), turned.max(axis=0)
    return Square(centre=(low + high) / 2 @ turn, side=FACE_GROWTH * float((high - low).max()), angle=angle)


def head_angle(eyes: np.ndarray, region: np.ndarray) -> float:
    """How far a head is turned in the picture, radians, by its right and left eye (2, 2) in a region (4,).

    Eyes that the body contradicts, as those of somebody seen from behind do, leave it to the body.
    """
    by_eyes, by_body = level_angle(eyes), up_angle(region[2:])
    return by_eyes if np.cos(by_eyes - by_body) > BACK else by_body


def level_angle(eyes: np.ndarray) -> float:
    """How far a head is turned in the picture, radians clockwise, from its right and left eye (2, 2)."""
    across = eyes[1] - eyes[0]
    return float(np.arctan2(across[1], across[0]))


def hand_square(arm_end: np.ndarray) -> Square | None:
    """Roughly where a hand is, from wrist, index and little finger (3, 2); None where they coincide."""
    wrist, index, little = arm_end
    knuckles = (2 * index + little) / 3
    along = knuckles - wrist
    length = 2 * float(np.hypot(*along))
    if length * HAND_GROWTH < MIN_SIDE:
        return None
    centre = knuckles + along * (2 * HAND_SHIFT)
    return Square(centre=centre, side=length * HAND_GROWTH, angle=up_angle(along))
