"""One picture in, everybody in it or one person's points out: BlazePose, its face mesh and its hands.

Knows single pictures only: who is meant, and what happens over time, lies elsewhere. The way through the
networks is that of mediapipe 0.10.21's graphs, but for the rules that are explained here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from ..backends import NOBODY_KNOWS, Estimate, People
from ..looks import LOOKS, body_colours
from .crops import Square, up_angle
from .masks import Segmentation, without
from .regions import (
    MIN_SIDE,
    Sighting,
    body_box,
    face_square,
    hand_square,
    head_angle,
    merge_sightings,
    mesh_square,
    region_square,
    same_body,
    same_hand,
    square_views,
)
from .runner import Network
from .ssd import Detection, anchor_centres, decode_detections, sigmoid
from .wholebody import BODY_POINTS, HAND_POINTS, MESH_POINTS, Body, Part, whole_body

# Sides of the networks' inputs, pixels.
DETECTOR_SIDE: Final = 224
BODY_SIDE: Final = 256
HEATMAP_SIDE: Final = 64  # an output
FACE_DETECTOR_SIDE: Final = 128
MESH_SIDE: Final = 192
RECROP_SIDE: Final = 256
HAND_SIDE: Final = 224

MIN_DETECTION: Final = 0.3  # a weak detection counts beside strong ones of the same person in other frames
MIN_FACE: Final = 0.05  # of a face that is only compared with another one
MIN_PRESENCE: Final = 0.5  # of a body, face or hand; mediapipe's threshold
MAX_PEOPLE: Final = 6  # a frame; each costs a run of the landmark network
SURE: Final = 0.7  # score of a person beside whom none is guessed: heads reach 0.8, a bare hand 0.72
# Where hips may be, of the height, and the reach, of the shorter side.
GUESSES: Final = ((0.75, 1.4), (0.6, 1.0))

NOD: Final = 0.6  # radians by which a head may be turned in the face detector's crop
UPSIDE_DOWN_SURPLUS: Final = 0.1  # by which a face upside down must beat the upright one; seen: 0.2, −0.3
UPSIDE_DOWN_TRUST: Final = 0.5  # of the way up that lost; its neighbours in time may still want it

MIN_REFINED: Final = 0.5  # heatmap peak from which it refines a point
REFINE_REACH: Final = 3  # heatmap cells to each side

# BlazePose's points. Behind the 33 come two that make the next region.
HEAD: Final = slice(0, 11)
EYES: Final = [5, 2]  # right, left
ARM_ENDS: Final = {False: [15, 19, 17], True: [16, 20, 18]}  # wrist, index, little finger; True: right
CENTRE: Final = BODY_POINTS
TOP: Final = BODY_POINTS + 1

FAR_WRIST: Final = 0.2  # of the hand's crop, between the body's wrist and the hand's; own hands: to 0.15
SURE_WRIST: Final = 0.7  # visibility
WRONG_SIDE: Final = 0.8  # probability of being the other hand


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
        bodies = without_doubles(found)
        if not any(score >= SURE for _, score in found):
            # Whom the detector sees, it places better than a guess does, however sure that is.
            guesses = self._guessed(frame)
            bodies += [guess for guess in guesses if not any(same_body(guess[0], body) for body, _ in bodies)]
        size = (frame.shape[0], frame.shape[1])
        poses = [
            whole_body(body, face=None, left_hand=None, right_hand=None, frame_size=size)
            for body, _ in bodies
        ]
        return People(
            boxes=_rows([body_box(body, size) for body, _ in bodies], 4),
            scores=np.array([score for _, score in bodies], np.float32),
            regions=_rows([body.region for body, _ in bodies], 4),
            looks=_rows([body_colours(frame, pose) for pose in poses], LOOKS),
            numbers=np.full(len(bodies), NOBODY_KNOWS),
        )

    def examine(self, frame: np.ndarray, region: np.ndarray) -> tuple[Body, Estimate]:
        """The body of the person in a region (4,) of a picture (H, W, 3) uint8 RGB, and the whole pose."""
        body = self.body(frame, region)
        face, left, right = parts = self._parts(frame, body)
        size = (frame.shape[0], frame.shape[1])
        pose = whole_body(body, face=face, left_hand=left, right_hand=right, frame_size=size)
        # A face or a hand where the body has one proves the body better than the body network itself.
        presence = max(body.presence, *(part.score if part else 0.0 for part in parts))
        return body, Estimate(pose=pose, presence=presence, looks=body_colours(frame, pose))

    def estimate_beside(
        self, frame: np.ndarray, region: np.ndarray, others: Sequence[np.ndarray]
    ) -> Estimate:
        """The pose with the people of the regions (4,) `others` painted over."""
        alone = without(frame, [self.segment(frame, other) for other in others])
        body, estimate = self.examine(alone, self._lead(alone, region))
        # How the paint looks says nothing: a body that is guessed under it must not be believed.
        return replace(estimate, presence=body.presence, looks=body_colours(frame, estimate.pose))

    # --- people

    def _detected(self, frame: np.ndarray) -> list[tuple[Body, float]]:
        """People of the detector whom the landmark network confirms, with scores."""
        sightings = [
            either for one in self._sightings(frame)[:MAX_PEOPLE] for either in self._right_way_up(frame, one)
        ]
        bodies = [(self.body(frame, one.region), one.score) for one in sightings]
        return [(body, score * body.presence) for body, score in bodies if body.presence >= MIN_PRESENCE]

    def _sightings(self, frame: np.ndarray) -> list[Sighting]:
        """What the detector finds in all views, best first."""
        found = []
        for view in square_views(frame.shape[0], frame.shape[1]):
            raw, logits = self._detector(view.take(frame, DETECTOR_SIDE) / 127.5 - 1.0)
            for one in decode_detections(
                raw, logits[:, 0], anchors=self._body_anchors, side=DETECTOR_SIDE, threshold=MIN_DETECTION
            ):
                box, points = (
                    view.to_picture(places * DETECTOR_SIDE, DETECTOR_SIDE)
                    for places in (one.box.reshape(2, 2), one.points[:2])
                )
                region = np.concatenate([points[0], points[1] - points[0]])
                found.append(Sighting(region=region, face=box.mean(axis=0), score=one.score))
        return merge_sightings(found)

    def _right_way_up(self, frame: np.ndarray, sighting: Sighting) -> list[Sighting]:
        """The sighting, and where the detector has somebody upside down, both ways up, the likelier first.

        The detector takes some upright people for upside-down ones (a cartoon boy under a large cap),
        and the landmark network believes either. The face detector tells: it scores a face higher the
        right way up.
        """
        if not sighting.is_inverted:
            return [sighting]
        around = Square(centre=sighting.face, side=sighting.reach)
        upright, inverted = (
            max((face.score for face in self._faces(frame, square)), default=0.0)
            for square in (around, Square(centre=around.centre, side=around.side, angle=np.pi))
        )
        both = [sighting.turned_over(), sighting]
        likely, other = both[::-1] if inverted > upright + UPSIDE_DOWN_SURPLUS else both
        doubtful = Sighting(region=other.region, face=other.face, score=other.score * UPSIDE_DOWN_TRUST)
        return [likely, doubtful]

    def _guessed(self, frame: np.ndarray) -> list[tuple[Body, float]]:
        """Somebody whose head is outside the picture; the detector, which looks for heads, sees none of them.

        The landmark network sees a person in a coffee cup, too. A guess counts only where looking
        again from its own region finds the same body, and a face or a hand is where that body has
        one: those networks are hard to fool.
        """
        height, width = frame.shape[:2]
        for down, reach in GUESSES:
            start = np.array([width / 2, down * height, 0.0, -reach * min(height, width)])
            first = self.body(frame, start)
            if first.presence < MIN_PRESENCE:
                continue
            body = self.body(frame, first.region)
            if body.presence < MIN_PRESENCE or not same_body(first, body):
                continue
            proof = max(part.score if part else 0.0 for part in self._parts(frame, body))
            if proof > 0:
                return [(body, body.presence * proof)]
        return []

    def body(self, frame: np.ndarray, region: np.ndarray) -> Body:
        """The body's points in a region (4,)."""
        return self.segment(frame, region).body

    def segment(self, frame: np.ndarray, region: np.ndarray) -> Segmentation:
        """The body in a region (4,) of a picture (H, W, 3) uint8 RGB, and which pixels are its."""
        square = region_square(region)
        landmarks, presence, mask, heatmap, _world = self._body(square.take(frame, BODY_SIDE) / 255.0)
        landmarks = landmarks.reshape(-1, 5)  # x, y, z in crop pixels, logits of visibility and of presence
        points = square.to_picture(refine_by_heatmap(landmarks[:, :2], heatmap), BODY_SIDE)
        body = Body(
            points=points[:BODY_POINTS],
            visibility=sigmoid(landmarks[:BODY_POINTS, 3:].min(axis=1)),
            presence=float(presence[0]),
            region=np.concatenate([points[CENTRE], points[TOP] - points[CENTRE]]),
        )
        height, width = frame.shape[:2]
        return Segmentation(logits=mask[:, :, 0], square=square, frame_size=(height, width), body=body)

    def segment_beside(
        self, frame: np.ndarray, region: np.ndarray, rivals: Sequence[Segmentation]
    ) -> Segmentation:
        """The body in a region (4,), and its pixels, with `rivals` painted over."""
        alone = without(frame, rivals)
        return self.segment(alone, self._lead(alone, region))

    def _lead(self, alone: np.ndarray, region: np.ndarray) -> np.ndarray:
        """The better region (4,) to which one leads; who is hidden is seldom found, so that it is old."""
        return self.body(alone, region).region

    # --- faces and hands

    def _parts(self, frame: np.ndarray, body: Body) -> tuple[Part | None, Part | None, Part | None]:
        """Face, left hand and right hand of a body."""
        left, right = self.hand(frame, body, is_right=False), self.hand(frame, body, is_right=True)
        if left is not None and right is not None and same_hand(left, right):
            # One hand in both crops: it belongs to the wrist it is nearer to.
            apart_left, apart_right = (
                float(np.linalg.norm(hand.points[0] - body.points[ARM_ENDS[is_right][0]]))
                for hand, is_right in ((left, False), (right, True))
            )
            left, right = (left, None) if apart_left < apart_right else (None, right)
        return self.face(frame, body), left, right

    def face(self, frame: np.ndarray, body: Body) -> Part | None:
        """The 468 points of a body's face, or None."""
        square = self._face_square(frame, body)
        if square is None:
            return None
        first = self._mesh_in(frame, square)
        again = self._mesh_in(frame, mesh_square(first.points))  # the mesh's own square sits better
        return again if again.score >= MIN_PRESENCE else None

    def _face_square(self, frame: np.ndarray, body: Body) -> Square | None:
        """Where the face is, by the face detector, or by the body's head points where that finds none."""
        head = body.points[HEAD]
        low, high = head.min(axis=0), head.max(axis=0)
        size = float((high - low).max())
        if size < MIN_SIDE:
            return None
        angle = head_angle(body.points[EYES], body.region)
        # The detector wants heads upright, but to turn the crop with every nod would only add unrest.
        upright = 0.0 if abs(angle) < NOD else angle
        around = Square(centre=(low + high) / 2, side=3 * size, angle=upright)
        faces = [face for face in self._faces(frame, around) if face.score >= MIN_PRESENCE]
        if not faces:
            return Square(centre=around.centre, side=2 * size, angle=angle)
        nearest = min(faces, key=lambda face: float(np.linalg.norm(face.points.mean(axis=0) - 0.5)))
        return face_square(nearest.box, nearest.points[:2], inside=around)

    def _faces(self, frame: np.ndarray, square: Square) -> list[Detection]:
        """Faces in a square, down to low scores; their points begin with the right and the left eye."""
        raw, logits = self._face_detector(square.take(frame, FACE_DETECTOR_SIDE) / 127.5 - 1.0)
        return decode_detections(
            raw, logits[:, 0], anchors=self._face_anchors, side=FACE_DETECTOR_SIDE, threshold=MIN_FACE
        )

    def _mesh_in(self, frame: np.ndarray, square: Square) -> Part:
        mesh, logit = self._mesh(square.take(frame, MESH_SIDE) / 255.0)
        points = square.to_picture(mesh.reshape(MESH_POINTS, 3)[:, :2], MESH_SIDE)
        return Part(points=points, score=float(sigmoid(logit).item()))

    def hand(self, frame: np.ndarray, body: Body, *, is_right: bool) -> Part | None:
        """The 21 points of a body's left or right hand, or None."""
        arm_end = body.points[ARM_ENDS[is_right]]
        rough = hand_square(arm_end)
        if rough is None:
            return None
        (ends,) = self._recrop(rough.take(frame, RECROP_SIDE) / 255.0)
        centre, below = rough.to_picture(ends.reshape(2, 2), RECROP_SIDE)
        side = 2 * float(np.linalg.norm(centre - below))
        if side < MIN_SIDE:
            return None
        square = Square(centre=centre, side=side, angle=up_angle(centre - below))
        points, presence, rightness, _world = self._hand(square.take(frame, HAND_SIDE) / 255.0)
        if presence[0] < MIN_PRESENCE:
            return None
        points = square.to_picture(points.reshape(HAND_POINTS, 3)[:, :2], HAND_SIDE)
        # A hidden wrist is guessed, often onto the other hand: then the network's own view of the
        # side decides.
        apart = float(np.linalg.norm(points[0] - arm_end[0]))
        doubtful = apart > FAR_WRIST * side or body.visibility[ARM_ENDS[is_right][0]] < SURE_WRIST
        wrong = float(1 - rightness[0] if is_right else rightness[0])
        if doubtful and wrong > WRONG_SIDE:
            return None
        return Part(points=points, score=float(presence[0]))


def refine_by_heatmap(points: np.ndarray, heatmap: np.ndarray) -> np.ndarray:
    """Points (P, 2) in pixels of the body's crop, moved to where their heatmaps have them.

    `heatmap` is (64, 64, P) logits. A point goes to the centre of mass of the cells around it.
    """
    refined = points.copy()
    scale = BODY_SIDE / HEATMAP_SIDE
    for index, (x, y) in enumerate(np.floor(points / scale).astype(int).tolist()):
        if not (0 <= x < HEATMAP_SIDE and 0 <= y < HEATMAP_SIDE):
            continue
        x0, y0 = max(x - REFINE_REACH, 0), max(y - REFINE_REACH, 0)
        weights = sigmoid(heatmap[y0 : y + REFINE_REACH + 1, x0 : x + REFINE_REACH + 1, index])
        if weights.max() >= MIN_REFINED:
            rows, columns = np.indices(weights.shape)
            centre = np.array([(columns * weights).sum(), (rows * weights).sum()]) / weights.sum()
            refined[index] = (centre + np.array([x0, y0])) * scale
    return refined


def without_doubles(found: list[tuple[Body, float]]) -> list[tuple[Body, float]]:
    """Bodies with their scores, best first, without those whose limbs lie on a better one's."""
    kept: list[tuple[Body, float]] = []
    for body, score in sorted(found, key=lambda entry: -entry[1]):
        if not any(same_body(body, better) for better, _ in kept):
            kept.append((body, score))
    return kept


def _rows(rows: list[np.ndarray], width: int) -> np.ndarray:
    return np.array(rows, np.float32).reshape(len(rows), width)
