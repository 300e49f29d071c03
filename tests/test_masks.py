"""The embedded person mask: logits of crops become silhouettes of the right person, steady over time."""

import numpy as np
from wan_animate.preprocess.embedded.crops import Square
from wan_animate.preprocess.embedded.masks import FAR_LOGIT, Segmentation, in_picture, steady_masks, touching
from wan_animate.preprocess.keypoints import LEFT_SHOULDER, NUM_KEYPOINTS, RIGHT_SHOULDER
from wan_animate.preprocess.packed import PackedMasks

SIZE = (90, 120)  # (H, W)


def blob(*, strength: float = 5.0) -> Segmentation:
    """A crop around (60, 45), 64 pixels a side, whose middle quarter is the person."""
    logits = np.full((256, 256), -strength, np.float32)
    logits[64:192, 64:192] = strength
    return Segmentation(
        logits=logits, square=Square(centre=np.array([60.0, 45.0]), side=64.0), frame_size=SIZE
    )


def standing(x: float, y: float) -> np.ndarray:
    pose = np.zeros((NUM_KEYPOINTS, 3), np.float32)
    pose[LEFT_SHOULDER], pose[RIGHT_SHOULDER] = (x + 3, y, 1), (x - 3, y, 1)
    return pose


def masks_of(segmentations: list[Segmentation], shots: list[int]) -> list[np.ndarray]:
    poses = np.stack([standing(60, 45)] * len(segmentations))
    return list(steady_masks(segmentations, poses=poses, shots=np.array(shots)))


def test_logits_land_where_the_crop_was_taken():
    logits = in_picture(blob())
    assert logits.shape == SIZE
    person = np.argwhere(logits > 0)
    np.testing.assert_allclose(person.min(axis=0), [45 - 16, 60 - 16], atol=1)
    np.testing.assert_allclose(person.max(axis=0), [45 + 15, 60 + 15], atol=1)
    assert logits[0, 0] == FAR_LOGIT


def test_a_turned_crop_lands_turned():
    straight = blob()
    square = Square(centre=straight.square.centre, side=64.0, angle=np.pi / 4)
    turned = in_picture(Segmentation(logits=straight.logits, square=square, frame_size=SIZE)) > 0
    assert turned[45, 60 + 20]  # a corner of the turned square
    assert not (in_picture(straight) > 0)[45, 60 + 20]
    assert abs(int(turned.sum()) - 32 * 32) < 80


def test_every_frame_gets_its_mask_in_order():
    for count in (1, 2, 3, 5):
        masks = masks_of([blob()] * count, [0] * count)
        assert len(masks) == count
        assert all(mask.shape == SIZE and mask.dtype == np.uint8 for mask in masks)
        assert all(abs(int(mask.sum()) - 32 * 32) < 40 for mask in masks)


def test_one_bad_frame_is_outvoted_but_not_across_a_cut():
    hole = Segmentation(logits=-np.ones((256, 256), np.float32), square=blob().square, frame_size=SIZE)
    together = masks_of([blob(), hole, blob()], [0, 0, 0])
    assert together[1].sum() > 900
    cut = masks_of([blob(), hole, blob()], [0, 1, 2])
    assert cut[1].sum() == 0


def test_only_what_touches_the_skeleton_stays():
    mask = np.zeros(SIZE, np.uint8)
    mask[30:60, 45:75] = 1  # the person
    mask[5:15, 5:15] = 1  # somebody else
    kept = touching(mask, standing(60, 45))
    assert kept[45, 60] == 1
    assert kept[10, 10] == 0
    assert kept.sum() == 900


def test_a_mask_nobody_touches_is_empty():
    mask = np.ones((20, 20), np.uint8)
    assert touching(mask, np.zeros((NUM_KEYPOINTS, 3), np.float32)).sum() == 0


def test_masks_lost_for_a_moment_are_covered_by_their_neighbours():
    left, right = np.zeros(SIZE, np.uint8), np.zeros(SIZE, np.uint8)
    left[:, :40], right[:, 80:] = 1, 1
    packed = PackedMasks.pack([left, np.zeros_like(left), right]).filled({1: (0, 2)})
    np.testing.assert_array_equal(packed.mask(1), left | right)
    np.testing.assert_array_equal(packed.mask(0), left)
    shown = packed.picked(np.array([0, 0, 2]))
    np.testing.assert_array_equal(shown.mask(1), left)
    assert shown.frames[0] is shown.frames[1]
