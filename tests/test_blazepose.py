"""BlazePose on LiteRT: its arithmetic, real people in real pictures, and the pool of workers."""

import threading
from contextlib import closing

import cv2
import numpy as np
import pytest
from wan_animate.preprocess.embedded.blazepose import BlazePose, refine_by_heatmap
from wan_animate.preprocess.embedded.crops import Square, up_angle
from wan_animate.preprocess.embedded.models import ensure_models
from wan_animate.preprocess.embedded.regions import (
    Sighting,
    hand_square,
    merge_sightings,
    mesh_square,
    square_views,
)
from wan_animate.preprocess.embedded.runner import Network, WorkerPool
from wan_animate.preprocess.embedded.ssd import anchor_centres, decode_detections, overlap, sigmoid
from wan_animate.preprocess.keypoints import (
    FACE,
    HEAD,
    LEFT_EAR,
    LEFT_EYE,
    LEFT_SHOULDER,
    LEFT_WRIST,
    NOSE,
    RIGHT_EAR,
    RIGHT_EYE,
    RIGHT_SHOULDER,
    RIGHT_WRIST,
    VISIBLE,
)
from wan_animate.wan.media.still import load_image
from wan_animate.wan.runtime.errors import ModelFilesBroken, NoPersonFound

from .people import SAMPLES, backend, officer, portrait, user_cache, wallpaper

needs_samples = pytest.mark.skipif(not SAMPLES.exists(), reason="the samples are not part of the project")


@pytest.fixture(scope="module")
def blazepose() -> BlazePose:
    return BlazePose(ensure_models(user_cache()))


# --- detection arithmetic


def test_anchors_lie_in_the_middle_of_their_cells_and_equal_strides_share_a_grid():
    anchors = anchor_centres(224, (8, 16, 32, 32, 32))
    assert anchors.shape == (2254, 2)
    np.testing.assert_allclose(anchors[0], [0.5 / 28, 0.5 / 28])
    np.testing.assert_allclose(anchors[2], [1.5 / 28, 0.5 / 28])  # two in a cell, then one cell to the right
    last_grid = anchors[-7 * 7 * 6 :]
    np.testing.assert_allclose(last_grid[:6], np.tile([0.5 / 7, 0.5 / 7], (6, 1)))


def test_detections_of_one_thing_are_merged_by_their_scores():
    anchors = np.array([[0.5, 0.5], [0.5, 0.5], [0.1, 0.1]], np.float32)
    raw = np.array([[0, 0, 40, 40, 0, 10], [10, 0, 40, 40, 0, 20], [0, 0, 10, 10, 5, 5]], np.float32)
    found = decode_detections(raw, np.array([2.0, 0.0, 1.0]), anchors=anchors, side=100, threshold=0.5)
    assert [round(one.score, 3) for one in found] == [0.881, 0.731]
    pull = 0.5 / (0.5 + found[0].score)  # of the weaker one
    np.testing.assert_allclose(found[0].box, [0.3 + 0.1 * pull, 0.3, 0.7 + 0.1 * pull, 0.7], atol=1e-6)
    np.testing.assert_allclose(found[0].points, [[0.5, 0.6 + 0.1 * pull]], atol=1e-6)


def test_nothing_above_the_threshold_is_no_detection():
    anchors = np.zeros((2, 2), np.float32)
    raw = np.zeros((2, 12), np.float32)
    assert decode_detections(raw, np.full(2, -5.0), anchors=anchors, side=224, threshold=0.5) == []


def test_overlap_of_boxes_without_area_is_none():
    assert overlap(np.array([1.0, 1, 1, 1]), np.array([[1.0, 1, 1, 1], [0, 0, 2, 2]])).tolist() == [0, 0]


def test_sigmoid_does_not_overflow():
    np.testing.assert_allclose(sigmoid(np.array([-1e4, 0.0, 1e4])), [0, 0.5, 1])


# --- geometry


def test_points_find_their_way_back_from_a_turned_crop():
    square = Square(centre=np.array([70.0, 40.0]), side=50.0, angle=0.6)
    corners = square.to_picture(np.array([[32.0, 32.0], [32.0, 0.0]]), 64)
    np.testing.assert_allclose(corners[0], [70, 40], atol=1e-4)
    assert up_angle(corners[1] - corners[0]) == pytest.approx(0.6, abs=1e-4)
    assert np.linalg.norm(corners[1] - corners[0]) == pytest.approx(25, abs=1e-4)


def test_a_crop_beyond_the_picture_is_black_there():
    picture = np.full((20, 20, 3), 200, np.uint8)
    crop = Square(centre=np.array([0.0, 10.0]), side=20.0).take(picture, 20)
    assert crop.dtype == np.float32
    assert crop[10, 2].tolist() == [0, 0, 0]
    assert crop[10, 17].tolist() == [200, 200, 200]


@pytest.mark.parametrize(
    ("height", "width", "count"), [(512, 512, 1), (528, 512, 1), (720, 1280, 4), (1280, 720, 4)]
)
def test_long_pictures_are_searched_in_parts_too(height: int, width: int, count: int):
    views = square_views(height, width)
    assert len(views) == count
    assert views[0].side == max(height, width)
    for view in views[1:]:
        assert view.side == min(height, width)
        assert (view.centre >= view.side / 2).all()
        assert (view.centre <= np.array([width, height]) - view.side / 2).all()


def sighting(x: float, y: float, up: tuple[float, float] = (0, -100), score: float = 0.9) -> Sighting:
    return Sighting(region=np.array([x, y, *up], float), face=np.array([x, y - 50.0]), score=score)


def test_one_person_in_two_views_is_one_sighting_between_them():
    (merged,) = merge_sightings([sighting(100, 200, score=0.6), sighting(110, 200, score=0.9)])
    assert merged.score == 0.9
    assert merged.region[0] == pytest.approx(106)
    assert merged.face[0] == pytest.approx(106)


def test_neighbours_other_sizes_and_other_directions_stay_apart():
    others = [sighting(190, 200), sighting(100, 200, (0, -40)), sighting(100, 200, (0, 100))]
    assert len(merge_sightings([sighting(100, 200), *others])) == 4


def test_turning_a_sighting_over_exchanges_head_and_hips():
    inverted = sighting(100, 100, (10, 80))
    assert inverted.is_inverted
    assert inverted.turned_over().region.tolist() == [110, 180, -10, -80]
    assert not sighting(100, 100, (80, 60)).is_inverted  # lies on the side


def test_a_hand_is_looked_for_in_the_direction_of_its_fingers():
    square = hand_square(np.array([[100.0, 100.0], [100.0, 80.0], [100.0, 80.0]]))
    assert square is not None
    assert square.angle == pytest.approx(0)
    np.testing.assert_allclose(square.centre, [100, 76])
    assert square.side == pytest.approx(108)
    assert hand_square(np.array([[5.0, 5.0]] * 3)) is None


def test_a_mesh_is_framed_level_with_its_eyes():
    mesh = np.random.default_rng(0).uniform(-40, 40, (468, 2))
    mesh[33], mesh[263] = (-30, -10), (30, -10)
    turn = np.array([[0.8, 0.6], [-0.6, 0.8]])  # rows are images of the axes: clockwise in the picture
    straight, turned = mesh_square(mesh + 200), mesh_square(mesh @ turn + 200)
    assert turned.side == pytest.approx(straight.side, rel=1e-6)
    assert turned.angle == pytest.approx(straight.angle + np.arcsin(0.6))
    np.testing.assert_allclose(turned.centre, (straight.centre - 200) @ turn + 200, atol=1e-9)


def test_points_move_to_the_middle_of_a_sure_heatmap_only():
    heatmap = np.full((64, 64, 2), -20.0, np.float32)
    heatmap[10, 20:22, 0] = 5.0
    heatmap[10, 20:22, 1] = -1.0
    refined = refine_by_heatmap(np.array([[78.0, 42.0], [78.0, 42.0]], np.float32), heatmap)
    np.testing.assert_allclose(refined, [[82, 40], [78, 42]], atol=0.01)


# --- real networks on real pictures


def test_a_portrait_has_its_points_where_they_are():
    pose = backend().estimate_pose(portrait())
    expected = {  # read off the picture
        NOSE: (261, 179), LEFT_EYE: (283, 148), RIGHT_EYE: (237, 150), LEFT_EAR: (318, 163),
        RIGHT_EAR: (217, 160), LEFT_SHOULDER: (360, 312), RIGHT_SHOULDER: (145, 275),
    }  # fmt: skip
    for joint, place in expected.items():
        assert pose[joint, 2] >= VISIBLE
        assert np.linalg.norm(pose[joint, :2] - place) < 20, joint
    assert (pose[FACE, 2] > 0.9).all()
    assert pose[LEFT_SHOULDER, 0] > pose[RIGHT_SHOULDER, 0]  # the person's left


def test_what_is_outside_the_picture_has_no_score():
    pose = backend().estimate_pose(officer())
    outside = ((pose[:, :2] < 0) | (pose[:, :2] >= (512, 600))).any(axis=1)
    assert outside[13:23].all()  # knees, ankles, feet
    assert (pose[outside, 2] == 0).all()
    assert (pose[[LEFT_WRIST, RIGHT_WRIST], 2] < VISIBLE).all()  # no elbow, no hand: no wrist on the lapel


def test_a_picture_upside_down_gives_the_pose_upside_down():
    height, width = portrait().shape[:2]
    upright = backend().estimate_pose(portrait())
    turned = backend().estimate_pose(np.ascontiguousarray(portrait()[::-1, ::-1]))
    back = np.array([width, height]) - turned[:, :2]
    assert np.linalg.norm(back - upright[:, :2], axis=1)[HEAD].max() < 15
    assert np.linalg.norm(back - upright[:, :2], axis=1)[[LEFT_SHOULDER, RIGHT_SHOULDER]].max() < 40
    assert np.abs(turned[:5, 2] - upright[:5, 2]).max() < 0.2


def test_a_small_person_in_a_wide_picture_is_found():
    room = wallpaper(360, 640)
    room[150:348, 20:212] = cv2.resize(portrait(), (192, 198), interpolation=cv2.INTER_AREA)
    pose = backend().estimate_pose(room)
    assert np.linalg.norm(pose[NOSE, :2] - (20 + 261 * 0.375, 150 + 179 * 0.375)) < 10


def test_two_people_are_two(blazepose: BlazePose):
    pair = np.concatenate([portrait(), officer()[:528]], axis=1)
    people = blazepose.find(pair)
    sure = people.boxes[people.scores > 0.5]
    assert len(sure) == 2
    assert sorted((sure[:, [0, 2]].mean(axis=1) > 512).tolist()) == [False, True]


@pytest.mark.parametrize("seed", range(3))
def test_nobody_is_found_where_nobody_is(seed: int):
    rng = np.random.default_rng(seed)
    pictures = [
        np.zeros((240, 320, 3), np.uint8),
        wallpaper(),
        cv2.GaussianBlur(rng.integers(0, 256, (240, 320, 3), np.uint8), (0, 0), 6 * seed + 1),
    ]
    with pytest.raises(NoPersonFound, match="head and upper body"):
        backend().estimate_pose(pictures[seed])


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (9, 400), (400, 9)])
def test_tiny_and_thin_pictures_are_nobody_rather_than_a_crash(size: tuple[int, int]):
    with pytest.raises(NoPersonFound):
        backend().estimate_pose(np.full((*size, 3), 90, np.uint8))


@needs_samples
def test_the_reference_pictures_have_body_face_and_both_hands():
    for name in ("animate-image.jpeg", "replace-image.jpeg"):
        pose = backend().estimate_pose(load_image(SAMPLES / name))
        assert (pose[[*range(11), 50, 91, 112], 2] >= VISIBLE).all(), name
        for wrist, hand in ((LEFT_WRIST, 91), (RIGHT_WRIST, 112)):
            assert np.linalg.norm(pose[wrist, :2] - pose[hand, :2]) < 40


# --- workers


def test_results_come_in_order_and_only_a_few_items_are_taken_ahead():
    taken = []

    def items():
        for number in range(20):
            taken.append(number)
            yield number

    turn = threading.Event()

    def slow_for_even(worker: str, number: int) -> tuple[str, int]:
        if number % 2 == 0:
            turn.wait(0.005)
        return worker, number

    with closing(WorkerPool(["a", "b"]).in_order(slow_for_even, items())) as results:
        for expected, (worker, number) in enumerate(results):
            assert number == expected
            assert worker in "ab"
            assert len(taken) <= expected + 6
    assert len(taken) == 20


def test_leaving_early_leaves_no_thread():
    pool = WorkerPool([1, 2])
    with closing(pool.in_order(divmod, range(1, 1000))) as results:
        assert next(results) in ((1, 0), (2, 0))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("embedded")]
    assert {pool.call(min, 3) for _ in range(2)} == {1, 2}  # both workers are back


def test_an_error_in_a_worker_comes_out():
    results = WorkerPool([1, 2]).in_order(divmod, [3, 2, 1, 0, 1])
    with pytest.raises(ZeroDivisionError), closing(results):
        list(results)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("embedded")]


def test_a_file_that_is_no_network_is_one_sentence(tmp_path):
    (tmp_path / "pose.tflite").write_bytes(b"not a network" * 100)
    with pytest.raises(ModelFilesBroken, match=r"pose\.tflite cannot be loaded .* delete it"):
        Network(tmp_path / "pose.tflite")
