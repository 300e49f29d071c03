"""Driving poses and a reference pose in, the same motion on the reference's body out. Pure; knows no picture.

Every bone of the driving person keeps its direction and takes the reference's length; the neck keeps its path,
brought to the reference's scale and set down where the reference stands. Two steps: `measure` finds the
proportions once, `apply_proportions` moves any number of poses. The rules are those of Wan2.2
wan/modules/animate/preprocess/retarget_pose.py, which measures one frame and trusts every joint; here all frames
are measured, and a joint that is not seen neither measures nor carries anything. T frames, J joints (the 133 and
three means), all coordinates in pixels, x to the right, y down.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from .keypoints import (
    BODY,
    FACE,
    HEAD,
    LEFT_ANKLE,
    LEFT_EAR,
    LEFT_ELBOW,
    LEFT_EYE,
    LEFT_HAND,
    LEFT_HIP,
    LEFT_KNEE,
    LEFT_SHOULDER,
    LEFT_WRIST,
    NOSE,
    NUM_KEYPOINTS,
    RIGHT_ANKLE,
    RIGHT_EAR,
    RIGHT_ELBOW,
    RIGHT_EYE,
    RIGHT_HAND,
    RIGHT_HIP,
    RIGHT_KNEE,
    RIGHT_SHOULDER,
    RIGHT_WRIST,
    VISIBLE,
)

# Three joints that are means of two of the 133, as in the drawn skeleton; `_joints` puts them behind the 133.
NECK: Final = NUM_KEYPOINTS
LEFT_TOES: Final = NUM_KEYPOINTS + 1
RIGHT_TOES: Final = NUM_KEYPOINTS + 2
MEANS: Final = ((LEFT_SHOULDER, RIGHT_SHOULDER), (17, 18), (20, 21))  # toes: big and small

HAND_OF: Final = {LEFT_WRIST: LEFT_HAND, RIGHT_WRIST: RIGHT_HAND}
FOOT_OF: Final = {LEFT_ANKLE: slice(17, 20), RIGHT_ANKLE: slice(20, 23)}

Bone = tuple[int, int]  # from the joint nearer to the neck to the one it moves
Height = tuple[int, tuple[int, int]]  # from a joint down to the middle of two
Size = tuple[int, int]  # height, width of a picture


@dataclass(frozen=True, slots=True, kw_only=True)
class BoneKind:
    """Bones that share one ratio: the right and the left one."""

    name: str
    bones: tuple[Bone, ...]
    # Of two sides the larger, since a picture can only shorten a bone; of the head's small and noisy bones the mean.
    merge: Callable[[np.ndarray], np.floating] = np.max


BONES: Final = (  # a parent's bone before its child's
    BoneKind(name="shoulders", bones=((NECK, RIGHT_SHOULDER), (NECK, LEFT_SHOULDER))),
    BoneKind(name="upper arms", bones=((RIGHT_SHOULDER, RIGHT_ELBOW), (LEFT_SHOULDER, LEFT_ELBOW))),
    BoneKind(name="forearms", bones=((RIGHT_ELBOW, RIGHT_WRIST), (LEFT_ELBOW, LEFT_WRIST))),
    BoneKind(name="trunk", bones=((NECK, RIGHT_HIP), (NECK, LEFT_HIP))),
    BoneKind(name="thighs", bones=((RIGHT_HIP, RIGHT_KNEE), (LEFT_HIP, LEFT_KNEE))),
    BoneKind(name="calves", bones=((RIGHT_KNEE, RIGHT_ANKLE), (LEFT_KNEE, LEFT_ANKLE))),
    BoneKind(name="feet", bones=((RIGHT_ANKLE, RIGHT_TOES), (LEFT_ANKLE, LEFT_TOES))),
    BoneKind(name="neck", bones=((NECK, NOSE),)),
    BoneKind(name="eyes", bones=((NOSE, RIGHT_EYE), (NOSE, LEFT_EYE)), merge=np.mean),
    BoneKind(name="ears", bones=((RIGHT_EYE, RIGHT_EAR), (LEFT_EYE, LEFT_EAR)), merge=np.mean),
)
KIND: Final = {kind.name: index for index, kind in enumerate(BONES)}
ALL_BONES: Final = tuple((index, *bone) for index, kind in enumerate(BONES) for bone in kind.bones)

ANKLES: Final = (LEFT_ANKLE, RIGHT_ANKLE)
HIPS: Final = (LEFT_HIP, RIGHT_HIP)
REFERENCE_HEIGHTS: Final[tuple[Height, ...]] = ((NOSE, ANKLES), (NOSE, HIPS))
HEIGHTS: Final[tuple[Height, ...]] = (*REFERENCE_HEIGHTS, (NECK, ANKLES), (NECK, HIPS))
"""What a person's size is read from, best first. The official code knows the first two and else compares the
pictures' areas, whatever size the people have in them; but somebody seen from behind has no nose."""

LANDMARKS: Final = (NECK, NOSE, RIGHT_SHOULDER, LEFT_SHOULDER, RIGHT_HIP, LEFT_HIP, RIGHT_EYE, LEFT_EYE)
"""What is put on the reference's where it does not stand in its picture, and what carries the body: best first."""

MIN_HEIGHT: Final = 0.2  # of the seen body's larger side; somebody lying across the picture has no height
MIN_LENGTH: Final = 1.0  # pixels; a shorter bone points at the camera and says nothing about its length
RATIO_LIMITS: Final = (0.25, 4.0)  # of bones at equal height; beyond it the estimate is wrong, not the body
STEADY_SHARE: Final = 0.1  # of the frames must show a height, or the next one is tried
TYPICAL: Final = 1.25  # the frame to stand on shows the person within this factor of the usual size
FOOT_TO_CALF: Final = 0.5  # longest foot; official value
SWAP_MARGIN: Final = 0.5  # hands change sides where that brings them nearer to the wrists than this share


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EditedStances:
    """Both people after an image model put them upright: lengths read from these poses are not foreshortened."""

    driving: np.ndarray  # (133, 3) float32; of the frame that `stance_frame` names
    driving_size: Size
    reference: np.ndarray  # (133, 3) float32
    reference_size: Size


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Proportions:
    """How the driving person becomes the reference."""

    lengths: np.ndarray  # (len(BONES),) float64: reference pixels to one driving pixel, of each kind of bone
    scale: float  # driving pixels to one reference pixel, of the body as a whole
    shift: np.ndarray  # (2,) float64 reference pixels, added at the end
    warnings: tuple[str, ...] = ()  # what could not be measured, in words


def retarget(
    poses: np.ndarray,
    reference: np.ndarray,
    *,
    driving_size: Size,
    reference_size: Size,
    edited: EditedStances | None = None,
) -> tuple[np.ndarray, tuple[str, ...]]:
    """The motion of `poses`, (T, 133, 3) float32, on the body of `reference`, (133, 3) float32.

    Returns poses in pixels of the reference picture, (T, 133, 3) float32, and what could not be measured, in words.
    Points that are not seen come out with score 0.
    """
    proportions = measure(
        poses, reference, driving_size=driving_size, reference_size=reference_size, edited=edited
    )
    return apply_proportions(poses, proportions), proportions.warnings


def measure(
    poses: np.ndarray,
    reference: np.ndarray,
    *,
    driving_size: Size,
    reference_size: Size,
    edited: EditedStances | None = None,
    heights: Sequence[Height] = HEIGHTS,
) -> Proportions:
    """How the person in `poses`, (T, 133, 3), becomes the one in `reference`, (133, 3).

    Lengths are medians over the frames that show them. One pose alone, with `heights=REFERENCE_HEIGHTS`, is the
    official rule. With `edited`, lengths come from the edited stances, size and place still from the originals.
    """
    driving, goal = _joints(poses), _joints(reference[None])[0]
    scales = _scales(driving, goal, driving_size, reference_size, heights)
    scale = float(np.nanmedian(scales))
    goal = _at_scale(goal, reference_size, scale)
    stance = driving[_steady_frame(driving, scales)]
    shown = _lengths(driving)
    if edited is None:
        ratios = _lengths(goal) / _median(shown * (scale / scales)[:, None])
    else:
        ratios = _edited_ratios(stance, goal, edited, heights)
    ratios, warnings = _completed(_merged(ratios), shown=_merged(_median(shown)))
    proportions = Proportions(lengths=ratios / scale, scale=scale, shift=np.zeros(2), warnings=warnings)
    shift = _shift(stance, goal, proportions, driving_size, reference_size)
    return replace(proportions, shift=shift)


def stance_frame(
    poses: np.ndarray, reference: np.ndarray, *, driving_size: Size, reference_size: Size
) -> int:
    """Number of the frame that is set down on the reference: the earliest with most of the body, at its usual size.

    It is also the one whose picture to edit for `EditedStances`.
    """
    driving, goal = _joints(poses), _joints(reference[None])[0]
    return _steady_frame(driving, _scales(driving, goal, driving_size, reference_size, HEIGHTS))


def apply_proportions(poses: np.ndarray, proportions: Proportions) -> np.ndarray:
    """Move poses, (T, 133, 3) float32 driving pixels, to the reference's body: (T, 133, 3) float32, its pixels."""
    poses = with_hands_on_their_wrists(poses)
    old = _joints(poses)
    walk = _walk(old, proportions)
    lengths = proportions.lengths
    moved = np.empty((len(poses), NUM_KEYPOINTS, 2))
    moved[:, BODY] = walk.places[:, BODY]

    def carry(points: slice, joint: int, origin: np.ndarray, factor: np.ndarray) -> None:
        """Let points go where a joint goes; their distances from `origin`, (T, 2), are scaled."""
        spread = old[:, points, :2] - origin[:, None]
        moved[:, points] = walk.held_to[:, joint, None] + factor.reshape(-1, 1, 1) * spread

    carry(FACE, NOSE, walk.held_from[:, NOSE], lengths[KIND["eyes"]])
    for ankle, foot in FOOT_OF.items():
        carry(foot, ankle, walk.held_from[:, ankle], _foot_factor(old, ankle, lengths))
    for wrist, hand in HAND_OF.items():
        root = old[:, hand.start]
        origin = np.where(root[:, 2:] >= VISIBLE, root[:, :2], walk.held_from[:, wrist])
        carry(hand, wrist, origin, lengths[KIND["shoulders"]])
    scores = np.where(poses[..., 2:] >= VISIBLE, poses[..., 2:], 0)
    return np.concatenate([moved + proportions.shift, scores], axis=2).astype(np.float32)


def with_hands_on_their_wrists(poses: np.ndarray) -> np.ndarray:
    """Exchange the hands, (T, 133, 3) → the same, of frames where the estimator took one for the other.

    Only where both wrists are seen and the seen hands lie much nearer to the other wrists than to their own. The
    official code compares one hand with both wrists, even a hand that was not found.
    """
    own, crossed = np.zeros(len(poses)), np.zeros(len(poses))
    for wrist, other in ((LEFT_WRIST, RIGHT_WRIST), (RIGHT_WRIST, LEFT_WRIST)):
        root = poses[:, HAND_OF[wrist].start]
        found = root[:, 2] >= VISIBLE
        own += np.where(found, _distance(root, poses[:, wrist]), 0)
        crossed += np.where(found, _distance(root, poses[:, other]), 0)
    both_wrists = (poses[:, [LEFT_WRIST, RIGHT_WRIST], 2] >= VISIBLE).all(axis=1)
    swapped = both_wrists & (crossed < SWAP_MARGIN * own)
    right_way = poses.copy()
    right_way[swapped, LEFT_HAND] = poses[swapped, RIGHT_HAND]
    right_way[swapped, RIGHT_HAND] = poses[swapped, LEFT_HAND]
    return right_way


# --- Joints


def _joints(poses: np.ndarray) -> np.ndarray:
    """(T, 133, 3) → (T, J, 3) float64: neck and toes added, a hidden wrist read from its hand."""
    joints = np.empty((len(poses), NUM_KEYPOINTS + len(MEANS), 3))
    joints[:, :NUM_KEYPOINTS] = poses
    for index, pair in enumerate(MEANS, start=NUM_KEYPOINTS):
        joints[:, index] = poses[:, pair].mean(axis=1)
        joints[:, index, 2] = poses[:, pair, 2].min(axis=1)
    for wrist, hand in HAND_OF.items():
        root = poses[:, hand.start]
        found = (poses[:, wrist, 2] < VISIBLE) & (root[:, 2] >= VISIBLE)
        joints[found, wrist] = root[found]
    return joints


def _distance(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.hypot(first[..., 0] - second[..., 0], first[..., 1] - second[..., 1])


def _at_scale(joints: np.ndarray, size: Size, scale: float) -> np.ndarray:
    """A reference's joints, (J, 3), in driving pixels."""
    height, width = size
    # Reference accident: its scaled picture has whole pixels, so that both axes shrink a little. Kept, it is a pixel.
    return joints * [max(int(width * scale), 1) / width, max(int(height * scale), 1) / height, 1]


# --- Measuring


def _scales(
    driving: np.ndarray, goal: np.ndarray, driving_size: Size, reference_size: Size, heights: Sequence[Height]
) -> np.ndarray:
    """Driving pixels to one reference pixel in every frame, (T,); NaN where a frame does not tell."""
    by_height = _height_scales(driving, goal, heights)
    if by_height is not None:
        return by_height
    return np.full(len(driving), np.sqrt(np.prod(driving_size) / np.prod(reference_size)))


def _height_scales(driving: np.ndarray, goal: np.ndarray, heights: Sequence[Height]) -> np.ndarray | None:
    """The same by the first height that the reference and enough frames show, None without one."""
    for height in heights:
        theirs, own = _height(driving, height), _height(goal[None], height)[0]
        if np.isfinite(own) and np.isfinite(theirs).mean() >= STEADY_SHARE:
            return theirs / own
    return None


def _height(joints: np.ndarray, height: Height) -> np.ndarray:
    """(T,) pixels from a joint down to the middle of two; NaN where hidden, or too little beside the body."""
    top, bottom = height
    rise = np.full(len(joints), np.nan)
    for frame, pose in enumerate(joints):
        seen = pose[pose[:, 2] >= VISIBLE, :2]
        if pose[[top, *bottom], 2].min() >= VISIBLE:
            down = abs(pose[list(bottom), 1].mean() - pose[top, 1])
            if down >= max(MIN_HEIGHT * np.ptp(seen, axis=0).max(), MIN_LENGTH):
                rise[frame] = down
    return rise


def _lengths(joints: np.ndarray) -> np.ndarray:
    """Lengths of all bones, (…, J, 3) → (…, len(ALL_BONES)); NaN where an end is hidden or both coincide."""
    start, end = (joints[..., [bone[side] for bone in ALL_BONES], :] for side in (1, 2))
    length = _distance(start, end)
    seen = np.minimum(start[..., 2], end[..., 2]) >= VISIBLE
    return np.where(seen & (length >= MIN_LENGTH), length, np.nan)


def _median(columns: np.ndarray) -> np.ndarray:
    """(T, n) → (n,): the median of what is there, NaN where nothing is."""
    known = [column[np.isfinite(column)] for column in columns.T]
    return np.array([np.median(column) if len(column) else np.nan for column in known])


def _merged(values: np.ndarray) -> np.ndarray:
    """A value a bone, (len(ALL_BONES),) → one a kind, (len(BONES),); NaN where neither side has one."""
    merged = np.full(len(BONES), np.nan)
    for index, kind in enumerate(BONES):
        sides = values[[bone[0] == index for bone in ALL_BONES]]
        sides = sides[np.isfinite(sides)]
        if len(sides):
            merged[index] = kind.merge(sides)
    return merged


def _completed(ratios: np.ndarray, *, shown: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """Ratios a kind within limits, unknown ones like the shoulders'; and words, where the video shows such bones."""
    unknown = ~np.isfinite(ratios)
    shoulders = ratios[KIND["shoulders"]]
    complete = np.where(unknown, shoulders if np.isfinite(shoulders) else 1.0, ratios)
    missing = [kind.name for kind, lost in zip(BONES, unknown & np.isfinite(shown), strict=True) if lost]
    warnings = (
        f"the reference picture does not show some bones clearly, their lengths follow its shoulders: "
        f"{', '.join(missing)}",
    )
    return np.clip(complete, *RATIO_LIMITS), warnings if missing else ()


def _edited_ratios(
    stance: np.ndarray, goal: np.ndarray, edited: EditedStances, heights: Sequence[Height]
) -> np.ndarray:
    """Bone ratios, (len(ALL_BONES),), from both edited stances. `stance` and `goal` are the originals, (J, 3).

    Without a height to compare, the editing model's own change of scale is read from heads and shoulders.
    """
    driving, model = _joints(edited.driving[None]), _joints(edited.reference[None])[0]
    lengths = _lengths(driving[0])
    scales = _height_scales(driving, model, heights)
    if scales is not None:
        return _lengths(_at_scale(model, edited.reference_size, float(scales[0]))) / lengths
    return _lengths(model) * _zoom(goal, model) / (lengths * _zoom(stance, driving[0]))


def _zoom(original: np.ndarray, edited: np.ndarray) -> float:
    """How much larger a person, (J, 3), is in the original than in the edited picture; 1 where nothing tells."""
    both = np.minimum(original[:, 2], edited[:, 2]) >= VISIBLE
    head = [joint for joint in range(HEAD.start, HEAD.stop) if both[joint]]
    widths = [(np.ptp(original[head, 0]), np.ptp(edited[head, 0]))] if head else []
    if both[NECK]:
        ends = [(joints[LEFT_SHOULDER], joints[RIGHT_SHOULDER]) for joints in (original, edited)]
        widths.append((_distance(*ends[0]), _distance(*ends[1])))
    return max((float(before / after) for before, after in widths if after >= MIN_LENGTH), default=1.0)


# --- Placing


def _steady_frame(driving: np.ndarray, scales: np.ndarray) -> int:
    """The earliest frame that shows most of what a body stands on, of those that show it at its usual size."""
    known = np.nan_to_num(scales, nan=np.inf)
    typical = np.abs(np.log(known / np.nanmedian(scales))) <= np.log(TYPICAL)
    if not typical.any():  # an even number of frames, half of them near and half of them far
        typical = np.isfinite(scales)
    shown = (driving[:, [NECK, *HIPS, *ANKLES], 2] >= VISIBLE).sum(axis=1)
    return int(np.argmax(np.where(typical, shown, -1)))


def _shift(
    stance: np.ndarray, goal: np.ndarray, proportions: Proportions, driving_size: Size, reference_size: Size
) -> np.ndarray:
    """What to add to the moved stance, (2,) reference pixels, so that it stands where the reference does.

    `stance` and `goal` are (J, 3) driving pixels. Feet on the same ground where both stand in their pictures, else
    neck on neck, or another landmark that both show; the pictures' middles where they share none.
    """
    moved = _walk(stance[None], proportions).places[0]
    target = goal[:, :2] / proportions.scale
    reference_height = reference_size[0] * proportions.scale
    if _stands(stance, driving_size[0]) and _stands(goal, reference_height):
        middle = target[list(HIPS), 0].mean() - moved[list(HIPS), 0].mean()
        # Reference accident: the driving ankles come down on the middle of the reference's feet. Kept.
        return np.array([middle, _ground(goal) / proportions.scale - moved[list(ANKLES), 1].max()])
    for joint in LANDMARKS:
        if min(stance[joint, 2], goal[joint, 2]) >= VISIBLE:
            return target[joint] - moved[joint]
    return np.array(reference_size[::-1]) / 2 - np.array(driving_size[::-1]) / 2 / proportions.scale


def _stands(joints: np.ndarray, height: float) -> bool:
    """Whether hips and ankles of a pose, (J, 3), are seen above the lower edge of a picture of that height."""
    needed = joints[[*HIPS, *ANKLES]]
    return bool((needed[:, 2] >= VISIBLE).all() and (needed[:, 1] <= height).all())


def _ground(joints: np.ndarray) -> float:
    """y of the lower foot of a pose, (J, 3): halfway between ankle and toes, the ankle where toes are hidden."""
    feet = []
    for ankle, toes in ((LEFT_ANKLE, LEFT_TOES), (RIGHT_ANKLE, RIGHT_TOES)):
        tip = toes if joints[toes, 2] >= VISIBLE else ankle
        feet.append((joints[ankle, 1] + joints[tip, 1]) / 2)
    return max(feet)


# --- Moving


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Walk:
    """Where joints went, reference pixels without the shift; all (T, J, 2).

    `held` is what a joint gives the next one to hang from: itself, or where it is hidden what it hangs from itself.
    """

    places: np.ndarray
    held_from: np.ndarray  # driving pixels
    held_to: np.ndarray


def _walk(old: np.ndarray, proportions: Proportions) -> _Walk:
    """From the neck outwards, each bone in its old direction at its new length. `old` is (T, J, 3)."""
    seen = old[..., 2:] >= VISIBLE  # (T, J, 1)
    here = old[..., :2]
    root = _root(old)
    places, held_from, held_to = (np.zeros_like(here) for _ in range(3))
    held_from[:, NECK] = root
    places[:, NECK] = held_to[:, NECK] = root / proportions.scale
    for kind, parent, child in ALL_BONES:
        factor = (
            _foot_factor(old, parent, proportions.lengths)[:, None]
            if kind == KIND["feet"]
            else proportions.lengths[kind]
        )
        places[:, child] = held_to[:, parent] + factor * (here[:, child] - held_from[:, parent])
        held_from[:, child] = np.where(seen[:, child], here[:, child], held_from[:, parent])
        held_to[:, child] = np.where(seen[:, child], places[:, child], held_to[:, parent])
    return _Walk(places=places, held_from=held_from, held_to=held_to)


def _root(old: np.ndarray) -> np.ndarray:
    """(T, 2): the neck, or the first landmark that a frame shows; it keeps its path."""
    landmarks = list(LANDMARKS)
    first = np.argmax(old[:, landmarks, 2] >= VISIBLE, axis=1)  # 0, the neck, where none is seen
    return old[np.arange(len(old)), np.array(landmarks)[first], :2]


def _foot_factor(old: np.ndarray, ankle: int, lengths: np.ndarray) -> np.ndarray:
    """(T,): the foot's length factor, less where the foot would come out longer than half the calf."""
    knee, toes = (LEFT_KNEE, LEFT_TOES) if ankle == LEFT_ANKLE else (RIGHT_KNEE, RIGHT_TOES)
    calf = _distance(old[:, knee], old[:, ankle]) * lengths[KIND["calves"]]
    foot = _distance(old[:, ankle], old[:, toes])
    seen = (old[:, [knee, ankle, toes], 2] >= VISIBLE).all(axis=1)
    longest = FOOT_TO_CALF * calf / np.maximum(foot, MIN_LENGTH)
    return np.where(seen, np.minimum(lengths[KIND["feet"]], longest), lengths[KIND["feet"]])
