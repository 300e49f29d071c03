"""BlazePose's points become the 133 of a whole body: every one in its place, none without proof."""

import numpy as np
import pytest
from wan_animate.preprocess.embedded.wholebody import Body, Part, divide_evenly, face_points, whole_body
from wan_animate.preprocess.keypoints import (
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
    RIGHT_ANKLE,
    RIGHT_HAND,
    RIGHT_SHOULDER,
    RIGHT_WRIST,
)

SIZE = (1000, 1000)  # (H, W)

# BlazePose's 33: a person who stands, hips at the origin, in units of 100 pixels.
STANDING = {
    0: (0, -3.2), 2: (0.2, -3.4), 5: (-0.2, -3.4), 7: (0.5, -3.3), 8: (-0.5, -3.3),
    11: (1, -2.5), 12: (-1, -2.5), 13: (1.5, -1.2), 14: (-1.5, -1.2), 15: (1.6, 0), 16: (-1.6, 0),
    23: (0.5, 0), 24: (-0.5, 0), 25: (0.5, 1.8), 26: (-0.5, 1.8), 27: (0.5, 3.5), 28: (-0.5, 3.5),
    29: (0.5, 3.7), 30: (-0.5, 3.7), 31: (0.7, 3.8), 32: (-0.7, 3.8),
}  # fmt: skip


def body(*, x: float = 500, y: float = 500, **changes: tuple[float, float]) -> Body:
    """A standing person with hips at (x, y); `changes` move single points: p15=(…, …)."""
    points = np.zeros((33, 2), np.float32)
    for number, place in STANDING.items():
        points[number] = np.array(place) * 100 + (x, y)
    for name, place in changes.items():
        points[int(name[1:])] = place
    visibility = np.full(33, 0.9, np.float32)
    return Body(
        points=points, visibility=visibility, presence=1.0, region=np.array([x, y, 0, -400], np.float32)
    )


def posed(one: Body, *, face=None, left_hand=None, right_hand=None, size=SIZE) -> np.ndarray:
    return whole_body(one, face=face, left_hand=left_hand, right_hand=right_hand, frame_size=size)


def hand(x: float, y: float, *, score: float = 0.95) -> Part:
    """A hand whose wrist is at (x, y) and whose palm is 50 pixels long."""
    points = np.tile(np.array([x, y], np.float32), (21, 1))
    points[1:] += np.arange(1, 21)[:, None] * np.array([0.0, -50 / 9], np.float32)
    return Part(points=points, score=score)


def mesh(*, x: float = 500, y: float = 180) -> Part:
    """A face mesh whose point number n lies n/10 pixels to the right and n/20 below (x, y)."""
    numbers = np.arange(468, dtype=np.float32)
    return Part(points=np.stack([x + numbers / 10, y + numbers / 20], axis=1), score=0.99)


def test_joints_keep_their_places_and_sides():
    pose = posed(body())
    expected = {NOSE: 0, LEFT_EYE: 2, LEFT_EAR: 7, LEFT_SHOULDER: 11, RIGHT_SHOULDER: 12, LEFT_ELBOW: 13,
                LEFT_WRIST: 15, RIGHT_WRIST: 16, LEFT_HIP: 23, LEFT_KNEE: 25, RIGHT_ANKLE: 28,
                17: 31, 19: 29, 20: 32, 22: 30}  # fmt: skip
    for joint, source in expected.items():
        np.testing.assert_array_equal(pose[joint, :2], body().points[source], err_msg=str(joint))
    assert pose.dtype == np.float32
    np.testing.assert_allclose(pose[:23, 2], [*[0.9] * 18, 0.81, 0.9, 0.9, 0.81, 0.9], rtol=1e-6)


def test_the_small_toe_stands_where_the_big_one_does():
    pose = posed(body())
    np.testing.assert_array_equal(pose[[18, 21], :2], pose[[17, 20], :2])


def test_a_part_that_was_not_found_is_all_zero():
    pose = posed(body())
    assert not pose[FACE].any()
    assert not pose[LEFT_HAND].any()
    assert not pose[RIGHT_HAND].any()


def test_hands_go_to_their_own_sides_with_the_score_of_the_whole():
    pose = posed(body(), left_hand=hand(660, 500), right_hand=hand(340, 500, score=0.8))
    np.testing.assert_array_equal(pose[LEFT_HAND, :2], hand(660, 500).points)
    np.testing.assert_array_equal(pose[RIGHT_HAND, 0], np.full(21, 340))
    assert (pose[LEFT_HAND, 2] == np.float32(0.95)).all()
    assert (pose[RIGHT_HAND, 2] == np.float32(0.8)).all()


def test_face_points_have_their_order():
    numbers = (face_points(mesh(x=0, y=0).points)[:, 0] * 10).round().astype(int)
    assert numbers[[0, 8, 16]].tolist() == [127, 152, 356]  # temple, chin, temple
    assert numbers[17:].tolist() == [
        70, 63, 105, 66, 107, 336, 296, 334, 293, 300,  # brows
        168, 197, 5, 4, 98, 97, 2, 326, 327,  # nose
        33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380,  # eyes
        61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181, 78, 82, 13, 312, 308, 317, 14, 87,  # lips
    ]  # fmt: skip


def test_a_line_is_divided_at_even_distances():
    corner = np.array([[0.0, 0.0], [3.0, 0.0], [3.0, 3.0]])
    np.testing.assert_allclose(divide_evenly(corner, 4), [[0, 0], [2, 0], [3, 1], [3, 3]])
    np.testing.assert_allclose(divide_evenly(np.ones((3, 2)), 2), np.ones((2, 2)))


def test_nose_and_eyes_follow_the_mesh():
    points = mesh().points
    pose = posed(body(), face=mesh())
    np.testing.assert_allclose(pose[NOSE, :2], points[4])
    np.testing.assert_allclose(pose[LEFT_EYE, :2], (points[362] + points[263]) / 2)
    np.testing.assert_array_equal(pose[LEFT_EAR, :2], body().points[7])
    assert pose[NOSE, 2] == np.float32(0.9)


def test_points_outside_the_picture_keep_their_places_and_lose_their_scores():
    pose = posed(body(y=800))
    assert pose[LEFT_KNEE].tolist() == [550, 980, np.float32(0.9)]
    assert pose[LEFT_ANKLE].tolist() == [550, 1150, 0]
    assert pose[17:23, 2].tolist() == [0] * 6
    assert posed(body(x=1000))[LEFT_HIP, 2] == 0  # the edge itself is outside


@pytest.mark.parametrize(
    ("nose", "credible"),
    [((500, 180), True), ((500, 225), False), ((500, 300), False)],  # shoulders lie at 250, 200 wide
    ids=["above the shoulders", "at the shoulders", "on the chest"],
)
def test_a_head_must_be_above_the_shoulders(nose: tuple[float, float], credible: bool):
    assert (posed(body(p0=nose))[HEAD, 2] > 0).all() == credible


def test_a_head_along_the_pictures_upper_edge_is_none_unless_there_is_a_face():
    close = body(y=360)  # the nose at 40, shoulders at 110
    assert (posed(close)[HEAD, 2] == 0).all()
    assert (posed(close, face=mesh(y=20))[NOSE, 2]) > 0


def test_a_wrist_needs_an_elbow_or_a_hand():
    lost = body(p13=(1100, 380))
    assert posed(lost)[LEFT_WRIST, 2] == 0
    assert posed(lost, left_hand=hand(660, 500))[LEFT_WRIST, 2] > 0.5
    assert posed(lost)[RIGHT_WRIST, 2] > 0.5


def test_feet_need_ankles_and_ankles_knees():
    pose = posed(body(p25=(550, 1000)))
    assert pose[LEFT_ANKLE, 2] == 0
    assert (pose[17:20, 2] == 0).all()
    assert (pose[20:23, 2] > 0.5).all()


def test_a_wrist_far_from_its_hand_goes_to_the_hand():
    near, far = hand(665, 500), hand(760, 500)
    np.testing.assert_array_equal(posed(body(), left_hand=near)[LEFT_WRIST, :2], [660, 500])
    np.testing.assert_array_equal(posed(body(), left_hand=far)[LEFT_WRIST], [760, 500, np.float32(0.95)])
    between = posed(body(), left_hand=hand(690, 500))[LEFT_WRIST, 0]  # 0.6 palms
    assert 660 < between < 690
