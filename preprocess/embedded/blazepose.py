"""One picture in, everybody in it or one person's points out: BlazePose, its face mesh and its hands on LiteRT.

Knows single pictures only: who is meant, and what happens over time, lies elsewhere. A region is four numbers in pixels:
the middle of the hips, and the vector from there to the top of a circle around the whole body. Geometry and thresholds
are those of mediapipe 0.10.21's graphs (pose_detection, pose_landmark, holistic_landmark, face_landmark), but for the
rules that are explained here. M people.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np

from ..backends import Estimate, People
from ..looks import LOOKS, body_colours
from .crops import Square, up_angle
from .runner import Network
from .ssd import Detection, anchor_centres, decode_detections, sigmoid
from .wholebody import HAND_POINTS, MESH_POINTS, Body, Part, inside, whole_body

DETECTOR_SIDE: Final = 224  # pixels, as all the sides below
BODY_SIDE: Final = 256
HEATMAP_SIDE: Final = 64
FACE_DETECTOR_SIDE: Final = 128
MESH_SIDE: Final = 192
RECROP_SIDE: Final = 256
HAND_SIDE: Final = 224

MIN_DETECTION: Final = 0.3  # a weak detection counts beside strong ones of the same person in other frames
MIN_PRESENCE: Final = 0.5  # of any landmark network; mediapipe's threshold
UPSIDE_DOWN_TRUST: Final = 0.5  # of a detection; most are mistakes
DOUBLE_DISTANCE: Final = 0.2  # of the reach
SURE: Final = 0.7  # score of a person beside whom no guess is made; heads the detector sees reach 0.8, hands 0.72
GUESSES: Final = ((0.6, 1.0), (0.75, 1.4))  # hips: share of the height; reach: of the picture's shorter side
MAX_PEOPLE: Final = 6  # a frame; each costs one run of the landmark network
VIEW_OVERLAP: Final = 0.5  # of neighbouring square views along the picture's longer side

REGION_MARGIN: Final = 1.25  # crop over the circle
MIN_REFINED: Final = 0.5  # heatmap peak from which it refines a point
REFINE_REACH: Final = 3  # heatmap cells to each side: a 7 × 7 window

# BlazePose's 33 points: the ones named here.
HEAD: Final = slice(0, 11)
LEFT_EYE, RIGHT_EYE = 2, 5
LEFT_ARM_END: Final = (15, 19, 17)  # wrist, index, little finger
RIGHT_ARM_END: Final = (16, 20, 18)
MAIN_JOINTS: Final = [0, 11, 12, 13, 14, 15, 16, 23, 24, 25, 26]  # nose, shoulders to wrists, hips, knees
CENTRE, TOP = 33, 34  # two further points: the region for the next frame

MESH_EYES: Final = (33, 263)  # outer corners, right and left eye
FACE_GROWTH: Final = 1.5
HAND_GROWTH: Final = 2.7
HAND_SHIFT: Final = 0.1  # of the hand's length, towards the fingers
FAR_WRIST: Final = 0.2  # of the hand's crop, between the body's wrist and the hand's: right hands lie within 0.15
SURE_WRIST: Final = 0.7  # visibility
WRONG_SIDE: Final = 0.8  # probability of the other side
SAME_HAND: Final = 0.3  # of a hand's size
MIN_FACE_SIDE: Final = 8.0  # pixels; nothing can be read from less
MIN_HAND_SIDE: Final = 6.0


class BlazePose:
    """Six networks and the two verbs for one picture. Serves one thread at a time."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        """`files`: paths by the keys of models.MODEL_FILES. Raises ModelFilesBroken."""
        self._detector = Network(files["pose_detection"])
        self._body = Network(files["pose_landmark"])
        self._face_detector = Network(files["face_detection"])
        self._mesh = Network(files["face_landmark"])
        self._recrop = Network(files["hand_recrop"])
        self._hand = Network(files["hand_landmark"])
        self._body_anchors = anchor_centres(DETECTOR_SIDE, (8, 16, 32, 32, 32))
        self._face_anchors = anchor_centres(FACE_DETECTOR_SIDE, (8, 16, 16, 16))

    def find(self, frame: np.ndarray) -> People:
        """Everybody in a picture (H, W, 3) uint8 RGB whom the landmark network confirms."""
        found = self._detected(frame)
        if not any(score >= SURE for _, score in found):
            found += self._guessed(frame)
        return _people(frame, without_doubles(found))

    def estimate(self, frame: np.ndarray, region: np.ndarray) -> Estimate:
        """The pose of the person in a region (4,) of a picture (H, W, 3) uint8 RGB."""
        body = self.body(frame, region)
        face, left, right = self._parts(frame, body)
        pose = whole_body(body, face=face, left_hand=left, right_hand=right, frame_size=frame.shape[:2])
        # A face or a hand where the body has one proves the body better than the body network itself.
        presence = max(body.presence, *(part.score for part in (face, left, right) if part), 0.0)
        return Estimate(pose=pose, presence=presence, looks=body_colours(frame, pose))

    # --- people

    def _regions(self, frame: np.ndarray) -> list[tuple[np.ndarray, float]]:
        """Where people might be, best first: regions (4,) and detection scores 0…1."""
        found: list[tuple[np.ndarray, float]] = []
        for view in square_views(*frame.shape[:2]):
            crop = view.take(frame, DETECTOR_SIDE) / 127.5 - 1.0
            raw, logits = self._detector(crop)
            for detection in decode_detections(
                raw, logits[:, 0], anchors=self._body_anchors, side=DETECTOR_SIDE, threshold=MIN_DETECTION
            ):
                points = view.to_picture(detection.points[:2] * DETECTOR_SIDE, DETECTOR_SIDE)
                found.append((np.concatenate([points[0], points[1] - points[0]]), detection.score))
        merged = merge_regions(found)
        return [choice for region, score in merged[:MAX_PEOPLE] for choice in with_upright(region, score)]

    def _detected(self, frame: np.ndarray) -> list[tuple[Body, float]]:
        """People of the detector whom the landmark network confirms, with scores."""
        bodies = [(self.body(frame, region), score) for region, score in self._regions(frame)]
        return [(body, score * body.presence) for body, score in bodies if body.presence >= MIN_PRESENCE]

    def _guessed(self, frame: np.ndarray) -> list[tuple[Body, float]]:
        """Somebody so close that the head is outside the picture: the detector, which looks for heads, is blind to them.

        The landmark network sees a person in a coffee cup, too. A guess counts only where looking again from its own
        region finds the same body, and a face or a hand is where that body has one: those networks are hard to fool.
        """
        height, width = frame.shape[:2]
        found = []
        for down, reach in GUESSES:
            start = np.array([width / 2, down * height, 0.0, -reach * min(height, width)])
            first = self.body(frame, start)
            if first.presence < MIN_PRESENCE:
                continue
            body = self.body(frame, first.region)
            if body.presence < MIN_PRESENCE or not same_body(first, body):
                continue
            proof = max(self._parts(frame, body), key=lambda part: part.score if part else 0.0)
            if proof is not None:
                found.append((body, body.presence * proof.score))
        return found

    def _parts(self, frame: np.ndarray, body: Body) -> tuple[Part | None, Part | None, Part | None]:
        """Face, left hand and right hand of a body."""
        left, right = self.hand(frame, body, is_right=False), self.hand(frame, body, is_right=True)
        if left is not None and right is not None and same_hand(left, right):
            # One hand in the other's crop: it belongs to the wrist it is nearer to.
            apart = [
                float(np.linalg.norm(hand.points[0] - body.points[end[0]]))
                for hand, end in ((left, LEFT_ARM_END), (right, RIGHT_ARM_END))
            ]
            left, right = (left, None) if apart[0] < apart[1] else (None, right)
        return self.face(frame, body), left, right

    def body(self, frame: np.ndarray, region: np.ndarray) -> Body:
        """The body's points in a region (4,)."""
        square = region_square(region)
        landmarks, presence, _mask, heatmap, _world = self._body(square.take(frame, BODY_SIDE) / 255.0)
        landmarks = landmarks.reshape(-1, 5)  # x, y, z in crop pixels, logits of visibility and of presence
        refined = refine_by_heatmap(landmarks[:, :2], heatmap)
        points = square.to_picture(refined, BODY_SIDE)
        return Body(
            points=points[:CENTRE],
            visibility=sigmoid(landmarks[:CENTRE, 3:].min(axis=1)),
            presence=float(presence[0]),
            region=np.concatenate([points[CENTRE], points[TOP] - points[CENTRE]]),
        )

    # --- face

    def face(self, frame: np.ndarray, body: Body) -> Part | None:
        """The 468 points of the face that belongs to a body, or None."""
        square = self._face_square(frame, body)
        face = None
        for _ in range(2):  # the second crop follows from the first mesh and sits better
            if square is None:
                return None
            face = self._mesh_in(frame, square)
            square = mesh_square(face.points)
        return face if face is not None and face.score >= MIN_PRESENCE else None

    def _face_square(self, frame: np.ndarray, body: Body) -> Square | None:
        """Where the face is, by the face detector, or by the body's head points where that finds none."""
        head = body.points[HEAD]
        low, high = head.min(axis=0), head.max(axis=0)
        size = float((high - low).max())
        if size * 2 < MIN_FACE_SIDE:
            return None
        around = Square(centre=(low + high) / 2, side=3 * size)
        raw, logits = self._face_detector(around.take(frame, FACE_DETECTOR_SIDE) / 127.5 - 1.0)
        found = decode_detections(
            raw, logits[:, 0], anchors=self._face_anchors, side=FACE_DETECTOR_SIDE, threshold=MIN_PRESENCE
        )
        if not found:
            eyes = body.points[[RIGHT_EYE, LEFT_EYE]]
            return Square(centre=around.centre, side=2 * size, angle=_level_angle(*eyes))
        nearest = min(found, key=lambda face: float(np.linalg.norm(face.points.mean(axis=0) - 0.5)))
        corners, eyes = (
            around.to_picture(points * FACE_DETECTOR_SIDE, FACE_DETECTOR_SIDE)
            for points in (nearest.box.reshape(2, 2), nearest.points[:2])
        )
        side = FACE_GROWTH * float((corners[1] - corners[0]).max())
        return Square(centre=corners.mean(axis=0), side=side, angle=_level_angle(*eyes))

    def _mesh_in(self, frame: np.ndarray, square: Square) -> Part:
        mesh, logit = self._mesh(square.take(frame, MESH_SIDE) / 255.0)
        points = square.to_picture(mesh.reshape(MESH_POINTS, 3)[:, :2], MESH_SIDE)
        return Part(points=points, score=float(sigmoid(logit.ravel()[0])))

    # --- hands

    def hand(self, frame: np.ndarray, body: Body, *, is_right: bool) -> Part | None:
        """The 21 points of a body's left or right hand, or None."""
        arm_end = list(RIGHT_ARM_END if is_right else LEFT_ARM_END)
        rough = hand_square(body.points[arm_end])
        if rough is None:
            return None
        (ends,) = self._recrop(rough.take(frame, RECROP_SIDE) / 255.0)
        centre, below = rough.to_picture(ends.reshape(2, 2), RECROP_SIDE)
        side = 2 * float(np.linalg.norm(centre - below))
        if side < MIN_HAND_SIDE:
            return None
        square = Square(centre=centre, side=side, angle=up_angle(centre - below))
        points, presence, rightness, _world = self._hand(square.take(frame, HAND_SIDE) / 255.0)
        if presence[0] < MIN_PRESENCE:
            return None
        points = square.to_picture(points.reshape(HAND_POINTS, 3)[:, :2], HAND_SIDE)
        # A wrist that is hidden is guessed, often onto the other hand; then the network's own view of the side decides.
        wrist, visibility = body.points[arm_end[0]], body.visibility[arm_end[0]]
        doubtful = np.linalg.norm(points[0] - wrist) > FAR_WRIST * side or visibility < SURE_WRIST
        wrong = rightness[0] if not is_right else 1 - rightness[0]
        if doubtful and wrong > WRONG_SIDE:
            return None
        return Part(points=points, score=float(presence[0]))


# --- geometry: pure


def square_views(height: int, width: int) -> list[Square]:
    """The squares in which people are looked for: the whole picture, and where it is long, its parts at full height.

    The detector shrinks what it sees to 224 pixels: a child in a 16:9 picture is found in the parts only.
    """
    long, short = max(height, width), min(height, width)
    views = [Square(centre=np.array([width / 2, height / 2]), side=float(long))]
    parts = 1 + int(np.ceil((long / short - 1) / (1 - VIEW_OVERLAP) - 0.1))  # a few pixels over are no further part
    if parts > 1:
        for place in np.linspace(short / 2, long - short / 2, parts):
            centre = (place, height / 2) if width >= height else (width / 2, place)
            views.append(Square(centre=np.array(centre), side=float(short)))
    return views


def region_square(region: np.ndarray) -> Square:
    """The crop that the landmark network wants for a region (4,)."""
    reach = float(np.hypot(*region[2:]))
    return Square(centre=region[:2], side=2 * reach * REGION_MARGIN, angle=up_angle(region[2:]))


def merge_regions(found: list[tuple[np.ndarray, float]]) -> list[tuple[np.ndarray, float]]:
    """One entry a person from what several views found: the weighted mean region and the best score, best first."""
    merged = []
    left = sorted(found, key=lambda entry: -entry[1])
    while left:
        group = [entry for entry in left if same_region(left[0][0], entry[0])]
        left = [entry for entry in left if not same_region(group[0][0], entry[0])]
        weights = np.array([score for _, score in group])
        merged.append((np.average([region for region, _ in group], axis=0, weights=weights), group[0][1]))
    return merged


def same_region(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two regions (4,) are one person: near, alike in size, alike in direction."""
    reach_a, reach_b = np.hypot(*a[2:]), np.hypot(*b[2:])
    near = np.hypot(*(a[:2] - b[:2])) < 0.5 * min(reach_a, reach_b)
    alike = max(reach_a, reach_b) < 1.7 * min(reach_a, reach_b)
    return bool(near and alike and a[2:] @ b[2:] > 0.5 * reach_a * reach_b)


def with_upright(region: np.ndarray, score: float) -> list[tuple[np.ndarray, float]]:
    """The region, and where the detector has somebody upside down, first of all the same person upright.

    The detector takes some upright people for upside-down ones (a cartoon face under a large cap), and the landmark
    network believes either. Both are handed on: over time the right one fits its neighbours.
    """
    if region[3] <= abs(region[2]):  # "up" points up or sideways
        return [(region, score)]
    upright = np.concatenate([region[:2] + region[2:], -region[2:]])
    return [(upright, score), (region, score * UPSIDE_DOWN_TRUST)]


def refine_by_heatmap(points: np.ndarray, heatmap: np.ndarray) -> np.ndarray:
    """Points (P, 2) in crop pixels moved to the centre of mass of their heatmaps (64, 64, P) logits, where confident."""
    refined = points.copy()
    scale = BODY_SIDE / HEATMAP_SIDE
    cells = np.floor(points / scale).astype(int)
    for index, (x, y) in enumerate(cells):
        if not (0 <= x < HEATMAP_SIDE and 0 <= y < HEATMAP_SIDE):
            continue
        x0, y0 = max(x - REFINE_REACH, 0), max(y - REFINE_REACH, 0)
        weights = sigmoid(heatmap[y0 : y + REFINE_REACH + 1, x0 : x + REFINE_REACH + 1, index])
        if weights.max() < MIN_REFINED:
            continue
        rows, columns = np.mgrid[: weights.shape[0], : weights.shape[1]]
        centre = np.array([(columns * weights).sum(), (rows * weights).sum()]) / weights.sum()
        refined[index] = (centre + (x0, y0)) * scale
    return refined


def hand_square(arm_end: np.ndarray) -> Square | None:
    """Roughly where a hand is, from wrist, index and little finger (3, 2); None where they coincide."""
    wrist, index, little = arm_end
    knuckles = (2 * index + little) / 3
    along = knuckles - wrist
    side = 2 * float(np.hypot(*along))
    if side < MIN_HAND_SIDE / HAND_GROWTH:
        return None
    centre = knuckles + along / np.hypot(*along) * HAND_SHIFT * side
    return Square(centre=centre, side=side * HAND_GROWTH, angle=up_angle(along))


def same_hand(a: Part, b: Part) -> bool:
    """Whether two hands' points (21, 2) lie on one another."""
    size = float(np.ptp(a.points, axis=0).max())
    return float(np.linalg.norm(a.points.mean(axis=0) - b.points.mean(axis=0))) < SAME_HAND * size


def mesh_square(mesh: np.ndarray) -> Square:
    """The square around a face mesh (468, 2), level with its eyes."""
    angle = _level_angle(*mesh[list(MESH_EYES)])
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    turned = mesh @ turn.T
    low, high = turned.min(axis=0), turned.max(axis=0)
    return Square(centre=(low + high) / 2 @ turn, side=FACE_GROWTH * float((high - low).max()), angle=angle)


def _level_angle(right_eye: np.ndarray, left_eye: np.ndarray) -> float:
    across = left_eye - right_eye
    return float(np.arctan2(across[1], across[0]))


def without_doubles(found: list[tuple[Body, float]]) -> list[tuple[Body, float]]:
    """Bodies with their scores, best first, without those whose limbs lie on a better one's."""
    kept: list[tuple[Body, float]] = []
    for body, score in sorted(found, key=lambda entry: -entry[1]):
        if not any(same_body(body, better) for better, _ in kept):
            kept.append((body, score))
    return kept


def same_body(a: Body, b: Body) -> bool:
    """Whether two views show one person: half of the main joints nearly coincide."""
    apart = np.linalg.norm(a.points[MAIN_JOINTS] - b.points[MAIN_JOINTS], axis=1)
    reach = min(np.hypot(*a.region[2:]), np.hypot(*b.region[2:]))
    return bool(np.median(apart) < DOUBLE_DISTANCE * reach)


def _people(frame: np.ndarray, found: list[tuple[Body, float]]) -> People:
    size = frame.shape[:2]
    bodies = [body for body, _ in found]
    poses = [whole_body(body, face=None, left_hand=None, right_hand=None, frame_size=size) for body in bodies]
    return People(
        boxes=_stack([body_box(body, size) for body in bodies], 4),
        scores=np.array([score for _, score in found], np.float32),
        regions=_stack([body.region for body in bodies], 4),
        looks=_stack([body_colours(frame, pose) for pose in poses], LOOKS),
    )


def body_box(body: Body, frame_size: tuple[int, int]) -> np.ndarray:
    """The box (4,) float32 around what can be seen of a body; without area where nothing can."""
    seen = body.points[(body.visibility >= MIN_PRESENCE) & inside(body.points, frame_size)]
    if not len(seen):
        return np.tile(np.clip(body.region[:2], 0, frame_size[::-1]), 2).astype(np.float32)
    return np.concatenate([seen.min(axis=0), seen.max(axis=0)]).astype(np.float32)


def _stack(rows: list[np.ndarray], width: int) -> np.ndarray:
    return np.array(rows, np.float32).reshape(len(rows), width)
