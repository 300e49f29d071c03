"""Smoothing over time: no delay, no flicker, nothing across a cut, and gaps filled as announced."""

import numpy as np
import pytest
from scipy.signal import savgol_filter
from wan_animate.preprocess.keypoints import (
    FACE,
    LEFT_ELBOW,
    LEFT_HAND,
    LEFT_KNEE,
    LEFT_WRIST,
    NOSE,
    NUM_KEYPOINTS,
    RIGHT_WRIST,
    VISIBLE,
)
from wan_animate.preprocess.smoothing import (
    fill_gaps,
    find_absences,
    number_shots,
    smooth_poses,
    smooth_track,
    spans,
    steady_visibility,
    unrest,
)

from .people import standing

SIZE = (400, 600)  # (H, W)
RATE = 30.0


def one_shot(frames: int) -> np.ndarray:
    return np.zeros(frames, int)


def smoothed(poses: np.ndarray, *, present=None, shots=None, rate: float = RATE) -> np.ndarray:
    frames = len(poses)
    return smooth_poses(
        poses.astype(np.float32),
        np.ones(frames, bool) if present is None else present,
        one_shot(frames) if shots is None else np.array(shots),
        rate=rate,
        frame_size=SIZE,
    )


def walking(frames: int, *, start: float = 150, end: float = 450) -> np.ndarray:
    """Somebody who walks to the right at an even pace: (N, 133, 3)."""
    return np.stack([standing(x, 200, size=200) for x in np.linspace(start, end, frames)])


def held_still(frames: int) -> np.ndarray:
    return np.stack([standing(300, 200, size=200)] * frames)


# --- tracks of numbers


def test_with_equal_weights_it_is_a_savitzky_golay_filter():
    values = np.random.default_rng(0).normal(size=(40, 3)).cumsum(axis=0)
    expected = savgol_filter(values, 7, 2, axis=0)
    fitted = smooth_track(values, np.ones(40), one_shot(40), half=3)
    np.testing.assert_allclose(fitted[3:-3], expected[3:-3], atol=2e-3)
    assert np.abs(fitted - values).max() < 3  # the ends, too


def test_a_throw_keeps_its_course():
    time = np.arange(30.0)
    parabola = np.stack([4 * time, 0.5 * (time - 15) ** 2], axis=1)
    fitted = smooth_track(parabola, np.ones(30), one_shot(30), half=4)
    np.testing.assert_allclose(fitted, parabola, atol=0.1)


def test_what_is_not_trusted_is_drawn_by_its_neighbours():
    line = np.arange(20.0)[:, None].repeat(2, axis=1)
    line[10] += 50
    weights = np.ones(20)
    weights[10] = 0
    np.testing.assert_allclose(smooth_track(line, weights, one_shot(20), half=3)[10], [10, 10], atol=0.1)


def test_a_lone_outlier_leaves_no_trace_if_it_should_not():
    noise = np.random.default_rng(1).normal(0, 0.1, (40, 2))
    line = np.arange(40.0)[:, None] + noise
    line[20] += 30
    fitted = smooth_track(line, np.ones(40), one_shot(40), half=5, robust=True)
    assert np.abs(fitted[:, 0] - np.arange(40)).max() < 0.5


def test_nothing_is_smoothed_across_a_cut():
    values = np.r_[np.zeros(10), np.full(10, 100.0)][:, None]
    fitted = smooth_track(values, np.ones(20), np.repeat([0, 1], 10), half=4)
    np.testing.assert_allclose(fitted, values, atol=1e-6)


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_few_frames_are_no_trouble(frames: int):
    values = np.arange(frames, dtype=float)[:, None]
    np.testing.assert_allclose(
        smooth_track(values, np.ones(frames), one_shot(frames), half=4), values, atol=0.01
    )
    np.testing.assert_allclose(
        smooth_track(values, np.zeros(frames), one_shot(frames), half=4), values, atol=0.01
    )


def test_gaps_are_filled_by_straight_lines_and_ends_by_the_nearest():
    values = np.array([9.0, 1, 9, 9, 4, 9])[:, None]
    known = np.array([False, True, False, False, True, False])
    assert fill_gaps(values, known, one_shot(6))[:, 0].tolist() == [1, 1, 2, 3, 4, 4]
    shots = np.array([0, 0, 0, 1, 1, 1])
    assert fill_gaps(values, known, shots)[:, 0].tolist() == [1, 1, 1, 4, 4, 4]
    assert fill_gaps(values, np.zeros(6, bool), shots).tolist() == values.tolist()
    assert values[0, 0] == 9  # the argument stays as it was


def test_runs_of_equal_labels():
    assert list(spans(np.array([1, 1, 0, 2, 2]))) == [(0, 2), (2, 3), (3, 5)]


# --- cuts


def changes(**single: float) -> np.ndarray:
    values = np.full(40, 3.0)
    values[0] = 0
    for name, value in single.items():
        values[int(name[1:])] = value
    return values


def test_a_cut_begins_a_shot():
    shots = number_shots(changes(f20=60))
    assert shots.tolist() == [0] * 20 + [1] * 20


@pytest.mark.parametrize(
    "motion",
    [changes(f20=60, f21=60), changes(f20=12), np.full(40, 40.0), changes(f20=40, f21=35, f22=30)],
    ids=["a flash", "a small change", "a fast camera", "a whip"],
)
def test_what_is_no_cut(motion: np.ndarray):
    assert not number_shots(motion).any()


# --- visibility


def scores(*parts: tuple[float, int]) -> np.ndarray:
    return np.concatenate([np.full(count, score) for score, count in parts])


def test_a_score_around_the_threshold_does_not_flicker():
    shaking = 0.5 + 0.08 * np.array([1, -1] * 20)
    visible = steady_visibility(shaking, one_shot(40), flicker=5)
    assert visible.all() or not visible.any()


def test_short_changes_are_undone_and_long_ones_stay():
    short = scores((0.9, 10), (0.1, 4), (0.9, 10))
    assert steady_visibility(short, one_shot(24), flicker=5).all()
    long = scores((0.9, 10), (0.1, 8), (0.9, 10))
    hidden = np.flatnonzero(~steady_visibility(long, one_shot(28), flicker=5))
    assert hidden[0] in (9, 10, 11)
    assert hidden[-1] in (16, 17, 18)
    assert (np.diff(hidden) == 1).all()
    blink = scores((0.1, 10), (0.9, 3), (0.1, 10))
    assert not steady_visibility(blink, one_shot(23), flicker=5).any()


# --- poses


def test_a_steady_walk_stays_as_it_is():
    poses = walking(40)
    steady = smoothed(poses)
    np.testing.assert_allclose(steady[..., :2], poses[..., :2], atol=0.05)
    assert (steady[:, :17, 2] >= VISIBLE).all()
    assert steady.dtype == np.float32


def test_jitter_is_removed_without_delay():
    rng = np.random.default_rng(0)
    true = walking(60)
    noisy = true.copy()
    noisy[:, :17, :2] += rng.normal(0, 2, (60, 17, 2))
    steady = smoothed(noisy)

    def jitter(poses: np.ndarray) -> float:
        return float(np.abs(np.diff(poses[:, :17, :2], 2, axis=0)).mean())

    assert jitter(steady) < jitter(noisy) / 4
    for shift in (-1, 1):
        there = np.abs(steady[5:-5, NOSE, 0] - true[5 + shift : 55 + shift, NOSE, 0]).mean()
        assert np.abs(steady[5:-5, NOSE, 0] - true[5:-5, NOSE, 0]).mean() < there


def test_a_fast_arm_keeps_its_reach():
    for per_second, least in ((2, 0.98), (3, 0.93)):
        poses = held_still(60)
        poses[:, LEFT_WRIST, 0] += 80 * np.sin(2 * np.pi * per_second * np.arange(60) / RATE)
        kept = np.ptp(smoothed(poses)[5:-5, LEFT_WRIST, 0]) / np.ptp(poses[5:-5, LEFT_WRIST, 0])
        assert kept > least


def test_the_same_motion_is_smoothed_alike_at_other_rates():
    for rate in (12.0, 24.0, 60.0):
        frames = round(2 * rate)
        poses = held_still(frames)
        poses[:, LEFT_WRIST, 0] += 50 * np.sin(2 * np.pi * 1.5 * np.arange(frames) / rate)
        steady = smoothed(poses, rate=rate)
        assert np.abs(steady[..., 0] - poses[..., 0]).max() < 3


def test_a_doubtful_place_between_good_ones_is_interpolated():
    poses = walking(30)
    poses[12:15, LEFT_ELBOW] = (10, 10, 0.1)
    steady = smoothed(poses)
    np.testing.assert_allclose(steady[10:17, LEFT_ELBOW, 0], walking(30)[10:17, LEFT_ELBOW, 0], atol=0.5)
    assert (steady[:, LEFT_ELBOW, 2] >= VISIBLE).all()


def test_a_lost_hand_stays_on_its_arm():
    poses = held_still(40)
    poses[:, LEFT_WRIST, 0] += 100 * np.sin(np.arange(40) / 6)
    poses[:, LEFT_HAND, :2] = poses[:, LEFT_WRIST, None, :2] + np.array([0, 12])
    poses[:, LEFT_HAND, 2] = 0.9
    true = poses.copy()
    poses[18:22, LEFT_HAND] = 0
    steady = smoothed(poses)
    assert np.abs(steady[:, LEFT_HAND, :2] - true[:, LEFT_HAND, :2]).max() < 2
    assert (steady[:, LEFT_HAND, 2] >= VISIBLE).all()


def test_what_was_never_found_is_zero():
    steady = smoothed(walking(20))
    assert not steady[:, FACE].any()
    assert not steady[:, LEFT_HAND].any()


def test_outside_the_picture_nothing_shows_but_a_joint_at_the_edge_does_not_flicker():
    poses = held_still(30)
    poses[:, LEFT_KNEE, 1] = 400 + 3 * np.array([-1, 1] * 15)  # the edge is at 400
    poses[:, LEFT_KNEE, 2] = np.where(poses[:, LEFT_KNEE, 1] < 400, 0.9, 0)
    poses[:, RIGHT_WRIST, :2] = (-100, 200)
    steady = smoothed(poses)
    assert np.count_nonzero(np.diff(steady[:, LEFT_KNEE, 2] >= VISIBLE)) <= 1
    assert (steady[:, RIGHT_WRIST, 2] == 0).all()
    near = held_still(30)
    near[:, LEFT_KNEE] = (300, 405, 0.9)
    steady = smoothed(near)
    assert (steady[:, LEFT_KNEE, 1] == 399).all()
    assert (steady[:, LEFT_KNEE, 2] >= VISIBLE).all()


def test_a_trunk_that_is_guessed_anew_in_every_frame_is_smoothed_longer():
    rng = np.random.default_rng(0)
    calm, wild = held_still(60), held_still(60)
    calm[:, :17, :2] += rng.normal(0, 0.5, (60, 17, 2))
    wild[:, :17, :2] += rng.normal(0, 8, (60, 17, 2))
    present = np.ones(60, bool)
    assert unrest(calm, present) < 0.04
    assert unrest(wild, present) > 0.1
    rest = np.abs(np.diff(smoothed(wild)[:, :17, :2], 2, axis=0)).mean()
    assert rest < np.abs(np.diff(wild[:, :17, :2], 2, axis=0)).mean() / 15


# --- absences


def away(frames: int, *ranges: range) -> np.ndarray:
    present = np.ones(frames, bool)
    for span in ranges:
        present[list(span)] = False
    return present


def test_absences_are_named_with_what_lies_around_them():
    present = away(20, range(2), range(8, 10), range(17, 20))
    found = [(one.start, one.stop, one.before, one.after) for one in find_absences(present, one_shot(20))]
    assert found == [(0, 2, None, 2), (8, 10, 7, 10), (17, 20, 16, None)]
    shots = np.repeat([0, 1, 2, 3], 5)
    found = [
        (one.start, one.stop, one.before, one.after)
        for one in find_absences(away(20, range(5), range(8, 15)), shots)
    ]
    assert found == [(8, 10, 7, None), (0, 5, None, 5), (10, 15, 9, None)]
    assert find_absences(np.zeros(3, bool), one_shot(3)) == []


def test_a_short_absence_is_bridged_in_a_straight_line():
    poses = walking(40)
    poses[15:25] = 0
    steady = smoothed(poses, present=away(40, range(15, 25)))
    np.testing.assert_allclose(steady[..., 0], walking(40)[..., 0], atol=1)
    assert (steady[:, :17, 2] >= VISIBLE).all()


def test_a_long_absence_is_held_and_bridged_at_its_end():
    poses = walking(90)
    poses[20:70] = 0
    steady = smoothed(poses, present=away(90, range(20, 70)))
    np.testing.assert_array_equal(steady[20:55, NOSE, 0], np.full(35, steady[19, NOSE, 0]))
    assert (np.diff(steady[54:71, NOSE, 0]) > 0).all()
    assert np.abs(np.diff(steady[:, NOSE, 0])).max() < 15  # nothing jumps


def test_before_the_first_and_after_the_last_pose_the_nearest_is_held():
    poses = walking(40)
    poses[:10] = 0
    poses[30:] = 0
    steady = smoothed(poses, present=away(40, range(10), range(30, 40)))
    assert (steady[:10] == steady[10]).all()
    assert (steady[30:] == steady[29]).all()


def test_a_shot_without_anybody_holds_the_pose_before_the_cut():
    poses = walking(30)
    poses[10:20] = 0
    shots = np.repeat([0, 1, 2], 10)
    steady = smoothed(poses, present=away(30, range(10, 20)), shots=shots)
    assert (steady[10:20] == steady[9]).all()
    np.testing.assert_allclose(steady[20:, NOSE, 0], walking(30)[20:, NOSE, 0], atol=0.05)


def test_a_held_pose_has_no_face():
    poses = walking(60)
    poses[:, FACE, :2] = poses[:, NOSE, None, :2]
    poses[:, FACE, 2] = 0.9
    poses[20:50] = 0
    steady = smoothed(poses, present=away(60, range(20, 50)))
    assert (steady[20:50, FACE, 2] == 0).all()
    assert (steady[:20, FACE, 2] >= VISIBLE).all()
    assert (steady[20:50, NOSE, 2] >= VISIBLE).all()


def test_estimates_stay_as_they_were():
    poses = walking(30).astype(np.float32)
    before = poses.copy()
    smoothed(poses, present=away(30, range(5, 9)))
    np.testing.assert_array_equal(poses, before)
    assert poses.shape[1] == NUM_KEYPOINTS
