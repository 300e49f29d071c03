"""What SAM2 is told: only what was well seen, on frames that show who is meant, and who is not."""

from dataclasses import replace

import numpy as np
import pytest
from wan_animate.preprocess.full.mask_prompts import CLICKABLE, Guide
from wan_animate.preprocess.keypoints import (
    LEFT_ANKLE,
    LEFT_HIP,
    LEFT_KNEE,
    RIGHT_ANKLE,
    RIGHT_HIP,
    RIGHT_KNEE,
)

from .guides import guide_of, somebody, walking

LEGS = [LEFT_HIP, RIGHT_HIP, LEFT_KNEE, RIGHT_KNEE, LEFT_ANKLE, RIGHT_ANKLE]


def scored(guide: Guide, joints: list[int], score: float, *, frames: slice = slice(None)) -> Guide:
    poses = guide.poses.copy()
    poses[frames, joints, 2] = score
    return replace(guide, poses=poses)


def positive(guide: Guide, frame: int = 0) -> np.ndarray:
    prompt = guide.prompt(frame)
    return prompt.points[prompt.labels == 1]


def negative(guide: Guide, frame: int = 0) -> np.ndarray:
    prompt = guide.prompt(frame)
    return prompt.points[prompt.labels == 0]


# --- clicks


def test_the_sure_joints_are_clicked_and_the_box_is_given():
    guide = guide_of(walking(1, start=200, step=0))
    prompt = guide.prompt(0)
    np.testing.assert_array_equal(positive(guide), guide.poses[0, list(CLICKABLE), :2])
    np.testing.assert_array_equal(prompt.box, guide.track.boxes[0])
    assert not len(negative(guide))


def test_guessed_joints_of_a_half_body_are_not_clicked():
    guide = scored(guide_of(walking(1, start=200, step=0)), LEGS, 0.3)
    np.testing.assert_array_equal(positive(guide), guide.poses[0, list(CLICKABLE[:5]), :2])


def test_joints_outside_the_frame_or_the_box_are_not_clicked():
    guide = guide_of(walking(1, start=200, step=0, top=200))  # the legs are below the frame
    clicks = positive(guide)
    assert 0 < len(clicks) < len(CLICKABLE)
    assert (clicks[:, 1] < 360 * 0.99).all()
    assert guide.prompt(0).box[3] == 360
    poses = guide.poses.copy()
    poses[0, CLICKABLE[0], :2] = (20, 20)  # inside the frame, far from the person
    assert not (positive(replace(guide, poses=poses)) == (20, 20)).all(axis=1).any()


def test_where_nobody_was_detected_the_joints_make_the_box():
    guide = guide_of(walking(1, start=200, step=0))
    lost = replace(guide, track=replace(guide.track, boxes=np.full((1, 4), np.nan, np.float32)))
    box = lost.prompt(0).box
    joints = guide.poses[0, :17, :2]
    assert (box[:2] < joints.min(axis=0)).all()
    assert (box[2:] > joints.max(axis=0)).all()
    assert np.abs(box - guide.track.boxes[0]).max() < 40


def test_others_nearby_are_clicked_as_not_the_person():
    beside = somebody(walking(1, start=300, step=0))
    guide = guide_of(walking(1, start=200, step=0), others=[beside])
    np.testing.assert_array_equal(negative(guide), [[340, 160]])  # the middle of their box
    far = guide_of(walking(1, start=20, step=0), others=[somebody(walking(1, start=520, step=0))])
    assert not len(negative(far))


def test_no_click_on_another_one_hits_the_person():
    """Their boxes overlap: the middle of the other one's is on the person's own shoulder."""
    guide = guide_of(walking(1, start=200, step=0), others=[somebody(walking(1, start=230, step=0, top=180))])
    (click,) = negative(guide)
    joints = guide.poses[0, :17, :2]
    assert np.linalg.norm(joints - click, axis=1).min() > 30
    same = guide_of(walking(1, start=200, step=0), others=[somebody(walking(1, start=200, step=0))])
    assert not len(negative(same))  # rather none than one on the person


def test_joints_that_somebody_may_hide_are_not_clicked():
    other = somebody(np.array([[180, 160, 300, 300]], np.float32))  # in front of the legs
    guide = guide_of(walking(1, start=200, step=0), others=[other])
    assert (positive(guide)[:, 1] < 160).all()


def test_somebody_who_is_not_detected_for_a_moment_is_still_there():
    boxes = walking(5, start=300, step=0)
    seen = somebody(boxes)
    gap = replace(seen, frames=np.array([0, 10, 11, 12, 13]))
    guide = guide_of(walking(14, start=200, step=0), others=[gap])
    assert len(negative(guide, 5)) == 1
    cut = replace(guide, shots=np.repeat([0, 1], 7))
    assert len(negative(cut, 5)) == 0


# --- key frames


def test_the_key_frame_is_where_others_are_far():
    crossing = somebody(walking(40, start=500, step=-12))
    guide = guide_of(walking(40, start=100, step=4), others=[crossing])
    meeting = int(np.argmin(np.abs(guide.track.boxes[:, 0] - crossing.boxes[:, 0])))
    first, later = guide.key_frame(0, 32), guide.key_frame(32, 40)
    assert first is not None
    assert later is not None
    assert abs(first - meeting) > 8
    assert guide.clarity(meeting) < 0.2 * guide.clarity(first)
    assert guide.key_frame(meeting - 2, meeting + 2, least=0.5 * guide.clarity(first)) is None
    assert guide.key_frame(meeting - 2, meeting + 2) is not None  # better than none at all


def test_the_key_frame_is_where_the_person_is_well_seen():
    guide = guide_of(walking(20, start=200, step=1))
    blurred = scored(guide, list(range(17)), 0.4)
    assert scored(blurred, list(range(17)), 0.9, frames=slice(13, 14)).key_frame(0, 20) == 13


def test_frames_without_the_person_are_no_key_frames():
    present = np.zeros(20, bool)
    present[7] = True
    guide = guide_of(walking(20, start=200, step=0), present=present)
    assert guide.key_frame(0, 20) == 7
    assert guide.key_frame(8, 20) is None
    with pytest.raises(ValueError, match="frame 8"):
        guide.prompt(8)


# --- stretches


def test_a_stretch_ends_with_the_shot_and_with_the_person():
    present, shots = np.ones(30, bool), np.repeat([0, 1], 15)
    present[[0, 1, 5, 6, 20, 21, 22, 23, 29]] = False
    guide = guide_of(walking(30, start=200, step=0), present=present, shots=shots)
    assert list(guide.stretches(bridge=2)) == [(2, 15), (15, 20), (24, 29)]
    assert list(guide.stretches(bridge=0)) == [(2, 5), (7, 15), (15, 20), (24, 29)]
    nobody = guide_of(walking(3, start=200, step=0), present=np.zeros(3, bool))
    assert list(nobody.stretches(bridge=5)) == []
