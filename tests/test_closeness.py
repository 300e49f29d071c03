"""Whom somebody else hides in part is found and masked: that one is painted over, only where it is needed."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from wan_animate.preprocess.backends import Estimate, Sought
from wan_animate.preprocess.bystanders import regions_at
from wan_animate.preprocess.embedded.crops import Square
from wan_animate.preprocess.embedded.masks import AROUND, EDGE, Segmentation, without
from wan_animate.preprocess.embedded.wholebody import BODY_POINTS, Body
from wan_animate.preprocess.identities import Identity
from wan_animate.preprocess.keypoints import LEFT_SHOULDER, NOSE, RIGHT_SHOULDER
from wan_animate.preprocess.subjects import SubjectTrack
from wan_animate.wan.media.decode import open_video

from .guides import somebody, walking
from .hard_videos import Actor, HardVideo, play, still
from .people import backend

LEFT = Actor(at=still(0.415))
RIGHT = Actor(at=still(0.585), clothes="blue", mirrored=True)  # in front: hides a third
NEAR = 40.0  # pixels; the two are 109 apart


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pair:
    """Two people of whom the right one hides a third of the left one."""

    video: HardVideo
    frame: np.ndarray
    own: np.ndarray  # region (4,) of the left one, as found where nobody else is
    other: np.ndarray  # of the right one
    pose: np.ndarray  # (133, 3) of the left one where nobody else is

    def sought(self, accepts: Callable[[Estimate], bool], *, alone: bool = False) -> Sought:
        """The left one; `alone`: as far as is known."""
        others = np.zeros((0, 4), np.float32) if alone else self.other[None]
        return Sought(frame=self.frame, region=self.own, others=others, accepts=accepts)

    def is_left(self, estimate: Estimate) -> bool:
        """Whether an estimate is the left one's."""
        joints = [NOSE, LEFT_SHOULDER, RIGHT_SHOULDER]
        apart = np.linalg.norm(estimate.pose[joints, :2] - self.pose[joints, :2], axis=1)
        return estimate.presence >= 0.5 and float(apart.mean()) < NEAR


@cache
def pair() -> Pair:
    with TemporaryDirectory() as folder:
        video, left, right = (
            play(Path(folder) / f"{index}.mp4", cast, subject="leftmost", frames=1)
            for index, cast in enumerate(((LEFT, RIGHT), (LEFT,), (RIGHT,)))
        )
        frame, *rooms = (next(open_video(one.path).frames()) for one in (video, left, right))
    own, other = (found.regions[0] for found in backend().find_people(rooms))
    sought = Sought(frame=rooms[0], region=own, others=np.zeros((0, 4)), accepts=lambda _: True)
    (alone,) = backend().estimate_poses([sought])
    return Pair(video=video, frame=frame, own=own, other=other, pose=alone.pose)


def estimated(sought: Sought) -> Estimate:
    (estimate,) = backend().estimate_poses([sought])
    return estimate


def test_who_is_hidden_in_part_is_found_beside_the_one_in_front():
    one = pair()
    assert not one.is_left(estimated(one.sought(one.is_left, alone=True)))
    assert one.is_left(estimated(one.sought(one.is_left)))


@pytest.mark.parametrize("verdict", [True, False])
def test_the_first_look_counts_where_it_is_accepted_or_the_second_is_not(verdict: bool):
    one, asked = pair(), []

    def accepts(estimate: Estimate) -> bool:
        asked.append(estimate)
        return verdict

    estimate = estimated(one.sought(accepts))
    np.testing.assert_array_equal(estimate.pose, asked[0].pose)
    assert len(asked) == (1 if verdict else 2)
    assert estimate.presence <= asked[0].presence


def test_who_is_far_away_is_not_painted_over():
    one, asked = pair(), []
    far = one.other + np.array([2000, 0, 0, 0], np.float32)
    sought = Sought(frame=one.frame, region=one.own, others=far[None], accepts=asked.append)
    estimated(sought)
    assert asked == []


def test_the_mask_is_of_the_one_whose_pose_was_found():
    one = pair()
    track = SubjectTrack(
        regions=one.own[None],
        boxes=one.video.boxes,
        looks=np.zeros((1, 0), np.float32),
        others=(identity(one.other),),
        sure=np.ones(1, bool),
        bystanders=np.zeros((1, 0, 4), np.float32),
    )
    pose = estimated(one.sought(one.is_left)).pose
    (mask,) = backend().track_masks(
        iter([one.frame]), track=track, poses=pose[None], present=np.ones(1, bool), shots=np.zeros(1, int)
    )
    truth, theirs = one.video.masks[0], one.video.others[0]
    assert mask[truth].mean() > 0.9
    assert mask[theirs].mean() < 0.1


def identity(region: np.ndarray) -> Identity:
    """Who is in a region (4,) in the first frame."""
    return Identity(
        frames=np.zeros(1, int),
        boxes=np.zeros((1, 4), np.float32),
        scores=np.ones(1, np.float32),
        regions=region[None],
        looks=np.zeros(0, np.float32),
    )


def test_a_person_is_painted_over_in_the_colour_around():
    """Two halves of a picture in two colours; somebody in each, and paint a little beyond the outlines."""
    picture = np.full((200, 400, 3), (20, 120, 220), np.uint8)
    picture[:, 200:] = (240, 40, 90)
    people = []
    for x in (100, 300):
        picture[70:130, x - 30 : x + 30] = 255
        logits = np.full((256, 256), -5.0, np.float32)
        logits[90:166, 90:166] = 5.0  # 59 of 200 pixels
        body = Body(
            points=np.zeros((BODY_POINTS, 2), np.float32),
            visibility=np.ones(BODY_POINTS, np.float32),
            presence=1.0,
            region=np.array([x, 100, 0, -100], np.float32),
        )
        square = Square(centre=np.array([x, 100.0]), side=200.0)
        people.append(Segmentation(logits=logits, square=square, frame_size=(200, 400), body=body))
    before = picture.copy()
    painted = without(picture, people)
    np.testing.assert_array_equal(picture, before)
    np.testing.assert_allclose(painted[70:130, 70:130], np.tile((20, 120, 220), (60, 60, 1)), atol=1)
    np.testing.assert_allclose(painted[70:130, 270:330], np.tile((240, 40, 90), (60, 60, 1)), atol=1)
    reach = 30 + 2 + round((1 + AROUND) * EDGE * 100)
    np.testing.assert_array_equal(painted[: 100 - reach], before[: 100 - reach])
    np.testing.assert_array_equal(without(picture, []), picture)


def test_regions_are_told_of_those_who_were_found():
    first, second = walking(5, start=100, step=10), walking(3, start=300, step=-10)
    others = [somebody(first), somebody(second, first=2)]
    assert regions_at([], 0).shape == (0, 4)
    np.testing.assert_array_equal(regions_at(others, 1), others[0].regions[1:2])
    both = np.stack([others[0].regions[3], others[1].regions[1]])
    np.testing.assert_array_equal(regions_at(others, 3), both)
    assert regions_at(others, 5).shape == (0, 4)
