"""Driving poses and a reference pose in, the same motion on the reference's body out. Pure; knows no picture.

Every bone of the driving person keeps its direction and takes the reference's length; the neck keeps its
path, brought to the reference's scale and set down where the reference stands. Two steps: `measure` finds
the proportions once, `apply_proportions` moves any number of poses. The rules are those of Wan2.2
wan/modules/animate/preprocess/retarget_pose.py, which measures one frame and trusts every joint; here all
frames are measured, and a joint that is not seen neither measures nor carries anything. T frames, J joints
(the body's 17 and three means), B bones; all coordinates in pixels, x to the right, y down.
"""

from collections.abc import Sequence
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

# Three joints that are means of two of the 133, as in the drawn skeleton; `_joints` puts them behind the 17.
NECK: Final = BODY.stop
LEFT_TOES: Final = BODY.stop + 1
RIGHT_TOES: Final = BODY.stop + 2
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
    # A picture can only shorten a limb: the longest it gets over time is its length, and of two sides the
    # larger ratio counts, as officially. A head that turns also lengthens its bones: there it is the usual
    # length, and the mean.
    head: bool = False


BONES: Final = (  # a parent's bone before its child's
    BoneKind(name="shoulders", bones=((NECK, RIGHT_SHOULDER), (NECK, LEFT_SHOULDER))),
    BoneKind(name="upper arms", bones=((RIGHT_SHOULDER, RIGHT_ELBOW), (LEFT_SHOULDER, LEFT_ELBOW))),
    BoneKind(name="forearms", bones=((RIGHT_ELBOW, RIGHT_WRIST), (LEFT_ELBOW, LEFT_WRIST))),
    BoneKind(name="trunk", bones=((NECK, RIGHT_HIP), (NECK, LEFT_HIP))),
    BoneKind(name="thighs", bones=((RIGHT_HIP, RIGHT_KNEE), (LEFT_HIP, LEFT_KNEE))),
    BoneKind(name="calves", bones=((RIGHT_KNEE, RIGHT_ANKLE), (LEFT_KNEE, LEFT_ANKLE))),
    BoneKind(name="feet", bones=((RIGHT_ANKLE, RIGHT_TOES), (LEFT_ANKLE, LEFT_TOES))),
    BoneKind(name="neck", bones=((NECK, NOSE),)),
    BoneKind(name="eyes", bones=((NOSE, RIGHT_EYE), (NOSE, LEFT_EYE)), head=True),
    BoneKind(name="ears", bones=((RIGHT_EYE, RIGHT_EAR), (LEFT_EYE, LEFT_EAR)), head=True),
)
KIND: Final = {kind.name: index for index, kind in enumerate(BONES)}
ALL_BONES: Final = tuple((index, *bone) for index, kind in enumerate(BONES) for bone in kind.bones)
HEAD_BONES: Final = np.array([BONES[kind].head for kind, _, _ in ALL_BONES])
SIZE_BONES: Final = np.array([not BONES[kind].head and kind != KIND["feet"] for kind, _, _ in ALL_BONES])

ANKLES: Final = (LEFT_ANKLE, RIGHT_ANKLE)
HIPS: Final = (LEFT_HIP, RIGHT_HIP)
OFFICIAL_HEIGHTS: Final[tuple[Height, ...]] = ((NOSE, ANKLES), (NOSE, HIPS))
HEIGHTS: Final[tuple[Height, ...]] = (*OFFICIAL_HEIGHTS, (NECK, ANKLES), (NECK, HIPS))
"""What two people's sizes are compared by, best first; without one that both show, by the bones that both
show. The official code knows the first two (but somebody seen from behind has no nose), and else compares
the pictures' areas, whatever size the people have in them."""

LANDMARKS: Final = (NECK, NOSE, RIGHT_SHOULDER, LEFT_SHOULDER, RIGHT_HIP, LEFT_HIP, RIGHT_EYE, LEFT_EYE)
"""Best first: what is put on the reference's where feet cannot be, and what carries the body."""

UPRIGHT: Final = 0.5  # share of the way between its ends that a height must rise; who lies down has none
MIN_LENGTH: Final = 1.0  # pixels; a shorter bone points at the camera and says nothing about its length
LONGEST: Final = 0.9  # quantile over time that counts as a limb's length, and as a height
# Of the bones' lengths in one frame, against their longest: what counts as the body's size there. Some bones
# are always foreshortened.
SIZE_QUANTILE: Final = 0.75
RATIO_LIMITS: Final = (1 / 3, 3.0)  # of bones at equal height; beyond it the estimate is wrong, not the body
STEADY_SHARE: Final = 0.1  # of the frames must show a height or a landmark, or the next one is tried
TYPICAL: Final = 1.25  # the frame to edit shows the person within this factor of the usual size
FOOT_TO_CALF: Final = 0.5  # longest foot; official value
BLOCK: Final = 1000  # frames moved at once
SWAP_MARGIN: Final = 0.5  # hands change sides where that brings them nearer to the wrists than this share


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EditedStances:
    """Both people after an image model put them upright: lengths read from these are not foreshortened."""

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

    Returns poses in pixels of the reference picture, (T, 133, 3) float32, and in words what could not be
    measured. Points that are not seen come out with score 0.
    """
    proportions = measure(
        poses, reference, driving_size=driving_size, reference_size=reference_size, edited=edited
    )
    moved = np.empty_like(poses)
    for start in range(0, len(poses), BLOCK):  # what is worked with is many times the poses
        moved[start : start + BLOCK] = apply_proportions(poses[start : start + BLOCK], proportions)
    return moved, proportions.warnings


def measure(
    poses: np.ndarray,
    reference: np.ndarray,
    *,
    driving_size: Size,
    reference_size: Size,
    edited: EditedStances | None = None,
    official_size: bool = False,
) -> Proportions:
    """How the person in `poses`, (T, 133, 3), becomes the one in `reference`, (133, 3).

    One pose alone with `official_size` is the official rule. With `edited`, lengths come from the edited
    stances, size and place still from the originals.
    """
    driving, goal = _joints(poses), _joints(reference[None])[0]
    shown = _lengths(driving)
    sizes = _sizes(shown)
    lengths = _typical(shown / sizes[:, None])
    scale = _scale_by_height(driving, goal, sizes, heights=OFFICIAL_HEIGHTS if official_size else HEIGHTS)
    if scale is None:
        scale = None if official_size else _scale_by_bones(lengths, _lengths(goal))
    if scale is None:
        scale = _scale_by_area(driving_size, reference_size)
    goal = _at_scale(goal, reference_size, scale)
    if edited is None:
        ratios = _lengths(goal) / lengths
    else:
        ratios = _edited_ratios(driving[_steady_frame(driving, goal, sizes)], goal, edited)
    ratios, warnings = _completed(_merged(ratios), shown=_merged(lengths))
    proportions = Proportions(lengths=ratios / scale, scale=scale, shift=np.zeros(2), warnings=warnings)
    shift = _shift(driving, goal, proportions, driving_size, reference_size)
    return replace(proportions, shift=shift)


def stance_frame(poses: np.ndarray, reference: np.ndarray) -> int:
    """Number of the frame, of (T, 133, 3), to edit for `EditedStances`.

    It is the earliest of those that show most of what the reference shows of the body, at its usual size.
    """
    driving = _joints(poses)
    return _steady_frame(driving, _joints(reference[None])[0], _sizes(_lengths(driving)))


def apply_proportions(poses: np.ndarray, proportions: Proportions) -> np.ndarray:
    """Move poses, (T, 133, 3) float32 driving pixels, to the reference's body: (T, 133, 3), its pixels."""
    poses = with_hands_on_their_wrists(poses)
    old = _joints(poses)
    walk = _walk(old, proportions)
    lengths = proportions.lengths
    moved = np.empty((len(poses), NUM_KEYPOINTS, 2))
    moved[:, BODY] = walk.places[:, BODY]

    def carry(points: slice, joint: int, origin: np.ndarray, factor: np.ndarray) -> None:
        """Let points go where a joint goes; their distances from `origin`, (T, 2), are scaled."""
        spread = poses[:, points, :2] - origin[:, None]
        moved[:, points] = walk.held_to[:, joint, None] + factor.reshape(-1, 1, 1) * spread

    carry(FACE, NOSE, walk.held_from[:, NOSE], lengths[KIND["eyes"]])
    for ankle, foot in FOOT_OF.items():
        carry(foot, ankle, walk.held_from[:, ankle], _foot_factor(old, ankle, lengths))
    for wrist, hand in HAND_OF.items():
        root = poses[:, hand.start]
        origin = np.where(root[:, 2:] >= VISIBLE, root[:, :2], walk.held_from[:, wrist])
        carry(hand, wrist, origin, lengths[KIND["shoulders"]])
    scores = np.where(poses[..., 2:] >= VISIBLE, poses[..., 2:], 0)
    return np.concatenate([moved + proportions.shift, scores], axis=2).astype(np.float32)


def with_hands_on_their_wrists(poses: np.ndarray) -> np.ndarray:
    """Exchange the hands, (T, 133, 3) → the same, of frames where the estimator took one for the other.

    Only where both wrists are seen and the seen hands lie much nearer to the other wrists than to their own.
    The official code compares one hand with both wrists, even a hand that was not found.
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
    """(T, 133, 3) → (T, J, 3) float64: the body, neck and toes; a hidden wrist is read from its hand."""
    joints = np.empty((len(poses), BODY.stop + len(MEANS), 3))
    joints[:, BODY] = poses[:, BODY]
    for index, pair in enumerate(MEANS, start=BODY.stop):
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
    # Reference accident: its scaled picture has whole pixels, so both axes shrink a little. Kept: a pixel.
    return joints * [max(int(width * scale), 1) / width, max(int(height * scale), 1) / height, 1]


# --- Measuring


def _sizes(shown: np.ndarray) -> np.ndarray:
    """How large the driving person appears in every frame, (T,), beside the usual; NaN where no bone tells.

    `shown` is (T, B) lengths. Somebody may come nearer, but also crouch: that does not count.
    """
    bones = shown[:, SIZE_BONES] if np.isfinite(shown[:, SIZE_BONES]).any() else shown
    share = bones / _quantile(bones, LONGEST)
    sizes = _quantile(share.T, SIZE_QUANTILE)
    if not np.isfinite(sizes).any():
        return np.ones(len(shown))
    return sizes / np.nanmedian(sizes)


def _typical(lengths: np.ndarray) -> np.ndarray:
    """(T, B) lengths at one size → (B,) what counts as each bone's length; NaN where it is never shown."""
    return np.where(HEAD_BONES, _quantile(lengths, 0.5), _quantile(lengths, LONGEST))


def _quantile(columns: np.ndarray, share: float) -> np.ndarray:
    """(T, n) → (n,): a quantile of what is there, NaN where nothing is."""
    known = [column[np.isfinite(column)] for column in columns.T]
    return np.array([np.quantile(column, share) if len(column) else np.nan for column in known])


def _scale_by_height(
    driving: np.ndarray, goal: np.ndarray, sizes: np.ndarray, *, heights: Sequence[Height]
) -> float | None:
    """Driving pixels to one reference pixel, by the first height that both show often enough."""
    for height in heights:
        theirs, own = _height(driving, height) / sizes, _height(goal[None], height)[0]
        if np.isfinite(own) and np.isfinite(theirs).mean() >= STEADY_SHARE:
            return float(_quantile(theirs[:, None], LONGEST)[0] / own)
    return None


def _scale_by_bones(driving: np.ndarray, goal: np.ndarray) -> float | None:
    """The same by the bones, (B,), that both show."""
    scales = driving / goal
    return float(np.nanmedian(scales)) if np.isfinite(scales).any() else None


def _scale_by_area(driving_size: Size, reference_size: Size) -> float:
    """The same by the pictures' areas, which is a guess."""
    return float(np.sqrt(np.prod(driving_size) / np.prod(reference_size)))


def _height(joints: np.ndarray, height: Height) -> np.ndarray:
    """(T,) pixels from a joint down to the middle of two; NaN where hidden, or more across than down."""
    top, (first, second) = height
    middle = (joints[:, first] + joints[:, second]) / 2
    rise = np.abs(middle[:, 1] - joints[:, top, 1])
    seen = (joints[:, [top, first, second], 2] >= VISIBLE).all(axis=1)
    upright = rise >= np.maximum(UPRIGHT * _distance(middle, joints[:, top]), MIN_LENGTH)
    return np.where(seen & upright, rise, np.nan)


def _lengths(joints: np.ndarray) -> np.ndarray:
    """Lengths of all bones, (…, J, 3) → (…, B); NaN where an end is hidden or both coincide."""
    start, end = (joints[..., [bone[side] for bone in ALL_BONES], :] for side in (1, 2))
    length = _distance(start, end)
    seen = np.minimum(start[..., 2], end[..., 2]) >= VISIBLE
    return np.where(seen & (length >= MIN_LENGTH), length, np.nan)


def _merged(values: np.ndarray) -> np.ndarray:
    """A value a bone, (B,) → one a kind, (len(BONES),); NaN where neither side has one."""
    merged = np.full(len(BONES), np.nan)
    for index, kind in enumerate(BONES):
        sides = values[[bone[0] == index for bone in ALL_BONES]]
        sides = sides[np.isfinite(sides)]
        if len(sides):
            merged[index] = sides.mean() if kind.head else sides.max()
    return merged


def _completed(ratios: np.ndarray, *, shown: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """Ratios within limits, unknown ones like the shoulders'; and words, where the video shows such bones."""
    unknown = ~np.isfinite(ratios)
    shoulders = ratios[KIND["shoulders"]]
    complete = np.where(unknown, shoulders if np.isfinite(shoulders) else 1.0, ratios)
    missing = [kind.name for kind, lost in zip(BONES, unknown & np.isfinite(shown), strict=True) if lost]
    names = ", ".join(missing)
    warning = f"the reference picture does not show {names} clearly: their lengths follow its shoulders"
    return np.clip(complete, *RATIO_LIMITS), (warning,) if missing else ()


def _edited_ratios(stance: np.ndarray, goal: np.ndarray, edited: EditedStances) -> np.ndarray:
    """Bone ratios, (B,), from both edited stances. `stance` and `goal`, (J, 3) driving pixels, are unedited.

    Without an official height to compare, the editing model's own change of scale is read from heads and
    shoulders.
    """
    driving, model = _joints(edited.driving[None]), _joints(edited.reference[None])[0]
    lengths = _lengths(driving[0])
    scale = _scale_by_height(driving, model, np.ones(1), heights=OFFICIAL_HEIGHTS)
    if scale is not None:
        return _lengths(_at_scale(model, edited.reference_size, scale)) / lengths
    return _lengths(model) * _zoom(goal, model) / (lengths * _zoom(stance, driving[0]))


def _zoom(original: np.ndarray, edited: np.ndarray) -> float:
    """How much larger a person, (J, 3), is in the original than after editing; 1 where nothing tells."""
    both = np.minimum(original[:, 2], edited[:, 2]) >= VISIBLE
    head = [joint for joint in range(HEAD.start, HEAD.stop) if both[joint]]
    widths = [(np.ptp(original[head, 0]), np.ptp(edited[head, 0]))] if head else []
    if both[NECK]:
        ends = [(joints[LEFT_SHOULDER], joints[RIGHT_SHOULDER]) for joints in (original, edited)]
        widths.append((_distance(*ends[0]), _distance(*ends[1])))
    return max((float(before / after) for before, after in widths if after >= MIN_LENGTH), default=1.0)


# --- Placing


def _steady_frame(driving: np.ndarray, goal: np.ndarray, sizes: np.ndarray) -> int:
    """The earliest frame that shows most of what the reference shows of a body, at its usual size."""
    typical = np.abs(np.log(np.nan_to_num(sizes, nan=np.inf))) <= np.log(TYPICAL)
    if not typical.any():  # an even number of frames, half of them near and half of them far
        typical = np.isfinite(sizes)
    needed = [joint for joint in (NECK, *HIPS, *ANKLES) if goal[joint, 2] >= VISIBLE]
    shown = (driving[:, needed, 2] >= VISIBLE).sum(axis=1)
    return int(np.argmax(np.where(typical, shown, -1)))


def _shift(
    driving: np.ndarray, goal: np.ndarray, proportions: Proportions, driving_size: Size, reference_size: Size
) -> np.ndarray:
    """What to add to moved poses, (2,) reference pixels, so that they stand where the reference does.

    `driving` (T, J, 3) and `goal` (J, 3) are in driving pixels. Feet on the same ground where both stand in
    their pictures, else neck on neck, or another landmark that both show; the pictures' middles where they
    share none. It is the median over time: the official code does it by the first frame alone, and who walks
    on from there leaves the picture.
    """
    moved = _walk(driving, proportions).places
    target = goal[:, :2] / proportions.scale
    standing = _stands(driving, driving_size[0])
    if _stands(goal[None], reference_size[0] * proportions.scale)[0] and standing.mean() >= STEADY_SHARE:
        across = target[list(HIPS), 0].mean() - moved[standing][:, HIPS, 0].mean(axis=1)
        # Reference accident: the driving ankles come down on the middle of the reference's feet. Kept.
        down = _ground(goal) / proportions.scale - moved[standing][:, ANKLES, 1].max(axis=1)
        return np.array([np.median(across), np.median(down)])
    for joint in LANDMARKS:
        seen = driving[:, joint, 2] >= VISIBLE
        if goal[joint, 2] >= VISIBLE and seen.mean() >= STEADY_SHARE:
            return np.median(target[joint] - moved[seen, joint], axis=0)
    return np.array(reference_size[::-1]) / 2 - np.array(driving_size[::-1]) / 2 / proportions.scale


def _stands(joints: np.ndarray, height: float) -> np.ndarray:
    """(T,) whether hips and ankles of poses, (T, J, 3), are seen in a picture of that height."""
    needed = joints[:, [*HIPS, *ANKLES]]
    return np.logical_and.reduce((needed[..., 2] >= VISIBLE) & (needed[..., 1] <= height), axis=1)


def _ground(joints: np.ndarray) -> float:
    """y of a pose's lower foot, (J, 3): halfway from ankle to toes, or the ankle where toes are hidden."""
    feet = []
    for ankle, toes in ((LEFT_ANKLE, LEFT_TOES), (RIGHT_ANKLE, RIGHT_TOES)):
        tip = toes if joints[toes, 2] >= VISIBLE else ankle
        feet.append((joints[ankle, 1] + joints[tip, 1]) / 2)
    return max(feet)


# --- Moving


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Walk:
    """Where joints went, reference pixels without the shift; all (T, J, 2).

    `held` is what a joint gives the next one to hang from: itself, or where it is hidden, what it hangs from.
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
