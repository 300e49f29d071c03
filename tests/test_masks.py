"""The embedded person mask: logits of crops become silhouettes of the right person, steady over time."""

from dataclasses import replace

import numpy as np
from wan_animate.preprocess.embedded.crops import Square
from wan_animate.preprocess.embedded.masks import (
    FAR_LOGIT,
    Segmentation,
    claimed,
    in_picture,
    nobody,
    steady_masks,
)
from wan_animate.preprocess.embedded.wholebody import BODY_FROM, BODY_POINTS, Body
from wan_animate.preprocess.packed import PackedMasks

from .people import standing

SIZE = (90, 120)  # (H, W)


def body_at(x: float, y: float, *, size: float = 30.0) -> Body:
    """Somebody who stands with hips at (x, y)."""
    points = np.full((BODY_POINTS, 2), (x, y), np.float32)
    points[list(BODY_FROM)] = standing(x, y, size=size)[:17, :2]
    return Body(
        points=points,
        visibility=np.ones(BODY_POINTS, np.float32),
        presence=1.0,
        region=np.array([x, y, 0, -size / 2], np.float32),
    )


def blob(*, strength: float = 5.0) -> Segmentation:
    """A crop around (60, 45), 64 pixels a side, whose middle quarter is the person."""
    logits = np.full((256, 256), -strength, np.float32)
    logits[64:192, 64:192] = strength
    square = Square(centre=np.array([60.0, 45.0]), side=64.0)
    return Segmentation(logits=logits, square=square, frame_size=SIZE, body=body_at(60, 45))


def whole_picture(left: int, right: int, *, x: float) -> Segmentation:
    """A crop of 120 × 120 whose columns from `left` to `right` are the person, whose hips are at `x`."""
    logits = np.full((256, 256), -5.0, np.float32)
    logits[:, round(left * 256 / 120) : round(right * 256 / 120)] = 5.0
    square = Square(centre=np.array([60.0, 60.0]), side=120.0)
    return Segmentation(logits=logits, square=square, frame_size=SIZE, body=body_at(x, 45, size=60))


def masks_of(segmentations: list[Segmentation], shots: list[int]) -> list[np.ndarray]:
    logits = [in_picture(one) for one in segmentations]
    return list(steady_masks(logits, shots=np.array(shots), frame_size=SIZE))


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
    turned = in_picture(replace(straight, square=square)) > 0
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
    hole = replace(blob(), logits=-np.ones((256, 256), np.float32))
    together = masks_of([blob(), hole, blob()], [0, 0, 0])
    assert together[1].sum() > 900
    cut = masks_of([blob(), hole, blob()], [0, 1, 2])
    assert cut[1].sum() == 0


def test_what_a_frame_shows_for_itself_stays():
    """A fast arm is in one frame only: its neighbours must not outvote it."""
    arm = blob().logits.copy()
    arm[100:120, 192:240] = 1.0
    masks = masks_of([blob(strength=9), replace(blob(), logits=arm), blob(strength=9)], [0, 0, 0])
    assert masks[1].sum() > masks[0].sum() + 40


def test_one_neighbour_alone_leaves_no_ghost():
    """Somebody jumps aside: where the frame before had the person is nobody any more."""
    apart = replace(blob(), logits=np.roll(blob().logits, 120, axis=1))
    unsure = replace(blob(strength=0.1), logits=np.roll(blob(strength=0.1).logits, 120, axis=1))
    masks = masks_of([blob(strength=9), unsure, apart], [0, 0, 0])
    np.testing.assert_array_equal(masks[1], masks_of([unsure], [0])[0])


def test_what_two_claim_goes_to_the_nearer_bones():
    """The one behind gets part of the one in front, whose own mask says so."""
    behind = whole_picture(20, 90, x=40)
    in_front = whole_picture(60, 110, x=85)
    mine = claimed(behind, [in_front]) > 0
    assert mine[45, 22:58].all()  # nobody else's
    assert not mine[45, 70:90].any()
    theirs = claimed(in_front, [behind]) > 0
    assert theirs[45, 70:108].all()
    np.testing.assert_array_equal(claimed(behind, []), in_picture(behind))


def test_a_rival_who_is_the_person_again_takes_nothing():
    person = whole_picture(20, 90, x=40)
    for rival in (whole_picture(20, 60, x=75), replace(whole_picture(60, 110, x=40), body=person.body)):
        np.testing.assert_array_equal(claimed(person, [rival]), in_picture(person))


def test_nobody_has_no_mask():
    (mask,) = steady_masks([nobody(SIZE)], shots=np.zeros(1, int), frame_size=SIZE)
    assert mask.shape == SIZE
    assert not mask.any()
    assert nobody((2160, 3840)).shape == (540, 960)


def test_masks_lost_for_a_moment_are_covered_by_their_neighbours():
    left, right = np.zeros(SIZE, np.uint8), np.zeros(SIZE, np.uint8)
    left[:, :40], right[:, 80:] = 1, 1
    rest = np.zeros_like(left)
    rest[40:50, 50:60] = 1
    packed = PackedMasks.pack([left, rest, right]).filled({1: (0, 2)})
    np.testing.assert_array_equal(packed.mask(1), left | rest | right)
    np.testing.assert_array_equal(packed.mask(0), left)
    shown = packed.picked(np.array([0, 0, 2]))
    np.testing.assert_array_equal(shown.mask(1), left)
    assert shown.frames[0] is shown.frames[1]
