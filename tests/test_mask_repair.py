"""Masks after the tracker: only the person's parts, and no collapse without a word."""

import numpy as np
import pytest
from wan_animate.preprocess.mask_repair import judge, own_parts, reach
from wan_animate.preprocess.preprocessor import mask_warnings

from .people import standing

SIZE = (360, 640)


def blocks(*boxes: tuple[int, int, int, int]) -> np.ndarray:
    mask = np.zeros(SIZE, np.uint8)
    for x0, y0, x1, y1 in boxes:
        mask[y0:y1, x0:x1] = 1
    return mask


BODY = (270, 60, 330, 300)
POSE = standing(300, 180, size=220)


# --- parts


def test_what_bones_touch_stays_and_what_is_far_goes():
    mask = blocks(BODY, (20, 20, 120, 120))
    np.testing.assert_array_equal(own_parts(mask, POSE, []), blocks(BODY))


def test_large_parts_beside_the_body_are_clothes():
    skirt, crumb = (336, 200, 366, 260), (336, 100, 340, 104)
    np.testing.assert_array_equal(own_parts(blocks(BODY, skirt, crumb), POSE, []), blocks(BODY, skirt))


def test_parts_beside_the_body_that_are_somebody_elses_go():
    other = (338, 200, 420, 330)
    box = np.array([332, 190, 430, 340], np.float32)
    np.testing.assert_array_equal(own_parts(blocks(BODY, other), POSE, [box]), blocks(BODY))
    both = own_parts(blocks(BODY, other), POSE, [np.array([332, 290, 430, 340], np.float32)])
    np.testing.assert_array_equal(both, blocks(BODY, other))  # hardly any of it is in the other's box


@pytest.mark.parametrize("mask", [np.zeros(SIZE, np.uint8), blocks((0, 0, 50, 50)), blocks((0, 0, 640, 360))])
def test_odd_masks_and_poses_do_no_harm(mask):
    nobody = np.zeros((133, 3), np.float32)
    beside = standing(900, -50, size=200)
    for pose in (nobody, beside, POSE):
        kept = own_parts(mask, pose, [])
        assert kept.dtype == np.uint8
        assert (kept <= mask).all()
    assert not own_parts(mask, nobody, []).any()


# --- collapses


def verdict_on(areas, *, reaches=None, present=None, shots=None):
    count = len(areas)
    return judge(
        np.array(areas, float),
        np.full(count, 5000.0) if reaches is None else np.array(reaches, float),
        np.ones(count, bool) if present is None else present,
        np.zeros(count, int) if shots is None else shots,
        rate=30.0,
    )


def said(verdict, count: int) -> list[str]:
    return mask_warnings(verdict, np.arange(count))


def test_steady_masks_are_left_alone():
    verdict = verdict_on([1000 + 30 * (frame % 5) for frame in range(60)])
    assert not verdict.stand_ins
    assert said(verdict, 60) == []


def test_a_short_collapse_is_covered_by_its_neighbours_and_said():
    areas = [1000.0] * 60
    areas[20:23] = [300, 0, 100]
    verdict = verdict_on(areas)
    assert verdict.stand_ins == dict.fromkeys((20, 21, 22), (19, 23))
    assert said(verdict, 60) == [
        "the mask lost the person for a moment in frames 20–22: the masks around stand in"
    ]


def test_a_long_collapse_is_said():
    areas = np.full(120, 1000.0)
    areas[40:80] = 0
    verdict = verdict_on(areas)
    assert not verdict.stand_ins
    (sentence,) = said(verdict, 120)
    assert sentence.startswith("the mask may miss part of the person in frames 40–79:")


def test_a_long_loss_of_most_of_the_mask_is_said_where_it_begins_and_ends():
    areas = np.full(120, 1000.0)
    areas[40:90] = 250
    (sentence,) = said(verdict_on(areas), 120)
    assert "40" in sentence
    assert "90" in sentence


def test_a_mask_may_shrink_as_its_person_does():
    shrink = np.concatenate([np.ones(30), np.geomspace(1, 0.05, 12)])  # somebody leaves the picture
    verdict = verdict_on(1000 * shrink, reaches=5000 * shrink)
    assert said(verdict, 42) == []
    assert said(verdict_on(1000 * shrink), 42) != []  # the pose is still there


def test_a_pose_that_jumps_is_no_excuse():
    areas, reaches = np.full(60, 1000.0), np.full(60, 5000.0)
    areas[20:22], reaches[20:22] = 200, 800
    assert verdict_on(areas, reaches=reaches).stand_ins == dict.fromkeys((20, 21), (19, 22))


def test_a_collapse_beside_an_absence_is_covered_from_beyond_it():
    areas, present = np.full(60, 1000.0), np.ones(60, bool)
    areas[20], present[21:24] = 100, False
    areas[21:24] = 0
    assert verdict_on(areas, present=present).stand_ins == {20: (19, 24)}


def test_nothing_stands_in_across_a_cut_and_a_new_size_there_is_no_collapse():
    shots = np.repeat([0, 1], 30)
    areas = np.repeat([1000.0, 100.0], 30)
    assert said(verdict_on(areas, shots=shots), 60) == []
    areas[29] = 0
    verdict = verdict_on(areas, shots=shots)
    assert not verdict.stand_ins
    assert "frame 29" in said(verdict, 60)[0]


def test_no_neighbours_ever_collapse_without_a_word():
    """Whatever a tracker does: after repair every abrupt loss of area is in a sentence."""
    generator = np.random.default_rng(0)
    for _ in range(50):
        areas = 1000 * generator.choice(
            [0.0, 0.1, 0.3, 0.9, 1.0, 2.5], 90, p=[0.03, 0.03, 0.04, 0.4, 0.4, 0.1]
        )
        verdict = verdict_on(areas)
        after = areas.copy()
        for frame, (before, later) in verdict.stand_ins.items():
            after[frame] = max(areas[before], areas[later], areas[frame])
        for frame in range(1, 90):
            low, high = sorted(after[frame - 1 : frame + 1])
            reasons = verdict.doubtful[frame - 1 : frame + 1].any() or {frame - 1, frame} & set(
                verdict.stand_ins
            )
            assert low >= 0.4 * high or reasons


def test_warnings_name_output_frames():
    areas = [1000.0] * 20
    areas[10] = 0
    shown = np.repeat(np.arange(20), 2)
    assert "frames 20–21" in mask_warnings(verdict_on(areas), shown)[0]


def test_the_reach_of_a_pose_is_what_the_frame_shows_of_it():
    whole = reach(standing(300, 180, size=200), SIZE)
    assert whole == pytest.approx(60 * 206, rel=0.02)
    assert 0 < reach(standing(0, 180, size=200), SIZE) < 0.6 * whole
    assert reach(np.zeros((133, 3), np.float32), SIZE) == 1.0
