"""Which person is meant, followed through gaps, crossings and cuts, and never mistaken for another."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from wan_animate.preprocess.backends import NOBODY_KNOWS, People
from wan_animate.preprocess.keypoints import LEFT_HAND
from wan_animate.preprocess.looks import LOOKS, body_colours, looks_cost, mean_looks
from wan_animate.preprocess.subjects import SubjectTrack, box_overlap, follow, pose_box

from .people import standing

SIZE = (540, 960)  # (H, W)
RED = np.tile([50.0, 60.0, 40.0], 3)  # Lab colours of chest, belly and thighs
BLUE = np.tile([40.0, 10.0, -50.0], 3)
ROSE = np.tile([60.0, 45.0, 20.0], 3)


@dataclass(frozen=True, kw_only=True)
class Actor:
    """Somebody made up. `at` gives the hips' place in a frame, None where nobody detects the person."""

    at: Callable[[int], tuple[float, float] | None]
    looks: np.ndarray
    size: float = 200.0
    score: float = 0.9
    head_down: bool = False
    number: Callable[[int], int] = lambda _: NOBODY_KNOWS  # what a tracker says


def still(x: float, y: float = 300) -> Callable[[int], tuple[float, float]]:
    return lambda _: (x, y)


def walk(start: float, end: float, frames: int) -> Callable[[int], tuple[float, float]]:
    return lambda frame: (start + (end - start) * frame / (frames - 1), 300.0)


def except_in(
    path: Callable[[int], tuple[float, float] | None], away: Sequence[int]
) -> Callable[[int], tuple[float, float] | None]:
    return lambda frame: None if frame in away else path(frame)


def scene(frames: int, *actors: Actor, stride: int = 1, seed: int = 0) -> list[People | None]:
    """What a detector would say: the actors in a random order, with a little noise."""
    rng = np.random.default_rng(seed)
    return [_seen(frame, actors, rng) if frame % stride == 0 else None for frame in range(frames)]


def _seen(frame: int, actors: Sequence[Actor], rng: np.random.Generator) -> People:
    here = [(actor, place) for actor in actors if (place := actor.at(frame)) is not None]
    here = [here[index] for index in rng.permutation(len(here))]
    boxes, regions, looks, scores = np.zeros((len(here), 4)), np.zeros((len(here), 4)), [], []
    for row, (actor, (x, y)) in enumerate(here):
        half = actor.size / 2
        boxes[row] = (x - half / 3, y - half, x + half / 3, y + half)
        up = half if actor.head_down else -half
        regions[row] = np.array([x, y, 0, up]) + rng.normal(0, actor.size / 100, 4)
        looks.append(actor.looks + rng.normal(0, 2, LOOKS))
        scores.append(actor.score)
    return People(
        boxes=boxes.astype(np.float32),
        scores=np.array(scores, np.float32),
        regions=regions.astype(np.float32),
        looks=np.array(looks, np.float32).reshape(len(here), LOOKS),
        numbers=np.array([actor.number(frame) for actor, _ in here], np.int64),
    )


def followed(
    people: list[People | None], *, subject: str = "largest", shots: Sequence[int] | None = None
) -> SubjectTrack:
    numbers = np.zeros(len(people), int) if shots is None else np.array(shots)
    track = follow(people, subject=subject, shots=numbers, frame_size=SIZE, half=5)
    assert track is not None
    return track


# --- choosing


@pytest.mark.parametrize(
    ("subject", "x"), [("leftmost", 150), ("center", 430), ("rightmost", 800), ("largest", 800)]
)
def test_the_asked_person_of_three_is_followed(subject: str, x: float):
    people = scene(
        20,
        Actor(at=still(150), looks=RED),
        Actor(at=still(430), looks=BLUE),
        Actor(at=still(800), looks=ROSE, size=260),
    )
    track = followed(people, subject=subject)
    assert np.abs(track.regions[:, 0] - x).max() < 10
    assert track.seen.all()


def test_the_largest_is_so_over_time_not_in_one_frame():
    people = scene(
        30,
        Actor(at=still(200), looks=RED, size=220),
        Actor(at=except_in(still(700), range(5, 30)), looks=BLUE, size=400),
    )
    assert np.abs(followed(people).regions[:, 0] - 200).max() < 10


def test_sides_are_compared_while_both_are_seen():
    """The camera pans: who stays alone at the end is furthest left then, but was not beside the other."""
    stays = Actor(at=lambda frame: (500 - 10 * max(frame - 10, 0), 300), looks=RED)
    leaves = Actor(at=except_in(still(250), range(10, 60)), looks=BLUE)
    people = scene(60, stays, leaves)
    assert followed(people, subject="leftmost").regions[5, 0] == pytest.approx(250, abs=10)


def test_passers_by_and_weak_detections_are_nobody():
    people = scene(
        40,
        Actor(at=still(600), looks=RED, size=400),
        Actor(at=except_in(still(100), range(4, 40)), looks=BLUE, size=100),
        Actor(at=still(50), looks=ROSE, size=300, score=0.4),
    )
    assert np.abs(followed(people, subject="leftmost").regions[:, 0] - 600).max() < 15


def test_the_same_person_upside_down_is_not_somebody_further_left():
    people = scene(
        20,
        Actor(at=still(400), looks=RED, size=300),
        Actor(at=still(395), looks=RED, size=300, score=0.6, head_down=True),
    )
    track = followed(people, subject="leftmost")
    assert (track.regions[:, 3] < 0).all()
    assert track.others == ()


def test_a_hand_taken_for_a_head_is_not_somebody_further_right():
    people = scene(
        20,
        Actor(at=still(400), looks=RED, size=500),
        Actor(at=still(450), looks=BLUE, size=150, score=0.6),
    )
    assert np.abs(followed(people, subject="rightmost").regions[:, 0] - 400).max() < 15


@pytest.mark.parametrize(
    "people", [[], [None] * 3, scene(5), scene(5, Actor(at=still(100), looks=RED, score=0.4))]
)
def test_nobody_is_nobody(people: list[People | None]):
    shots = np.zeros(len(people), int)
    assert follow(people, subject="largest", shots=shots, frame_size=SIZE, half=5) is None


# --- following


def test_two_who_cross_keep_their_identities():
    for seed in range(4):
        people = scene(
            60,
            Actor(at=walk(100, 800, 60), looks=RED),
            Actor(at=walk(800, 100, 60), looks=BLUE),
            seed=seed,
        )
        track = followed(people, subject="leftmost")
        first = track.regions[0, 0]
        assert abs(first - 100) < 15 or abs(first - 800) < 15  # on average both stand in the middle
        expected = np.linspace(100, 800, 60) if first < 400 else np.linspace(800, 100, 60)
        assert np.abs(track.regions[:, 0] - expected).max() < 20
        assert len(track.others) == 1


def test_one_who_is_hidden_while_crossing_is_found_again_by_looks():
    hidden = range(22, 40)
    people = scene(
        60,
        Actor(at=except_in(walk(100, 800, 60), hidden), looks=RED, size=190),
        Actor(at=walk(800, 100, 60), looks=BLUE),
    )
    blue = followed(people)
    assert blue.seen.all()
    assert np.abs(blue.regions[:, 0] - np.linspace(800, 100, 60)).max() < 20
    (red,) = blue.others
    assert red.frames.tolist() == [frame for frame in range(60) if frame not in hidden]
    assert red.boxes[-1, [0, 2]].mean() == pytest.approx(800, abs=5)


def near(x: float, direction: int) -> Callable[[int], tuple[float, float] | None]:
    """Runs up to x from one side and back, unseen for three frames while there."""
    return except_in(lambda frame: (x - direction * (15 * abs(frame - 20) + 5), 300.0), range(19, 22))


@pytest.mark.parametrize(("known", "turned_back"), [(True, True), (False, False)])
def test_a_tracker_tells_who_is_who_where_looks_cannot(known: bool, turned_back: bool):
    """Two who look alike run up to each other: all appearances say they pass, the tracker saw them turn."""
    one, two = (1, 2) if known else (NOBODY_KNOWS, NOBODY_KNOWS)
    people = scene(
        40,
        Actor(at=near(480, 1), looks=RED, size=201, number=lambda _: one),
        Actor(at=near(480, -1), looks=RED, size=200, number=lambda _: two),
    )
    first, *_, last = followed(people).regions[:, 0]
    assert ((first < 480) == (last < 480)) == turned_back


def test_a_tracker_that_mixes_two_people_up_does_not_mislead():
    people = scene(
        60,
        Actor(at=walk(100, 800, 60), looks=RED, size=201, number=lambda frame: 1 if frame < 29 else 2),
        Actor(at=walk(800, 100, 60), looks=BLUE, number=lambda frame: 2 if frame < 29 else 1),
    )
    assert np.abs(followed(people).regions[:, 0] - np.linspace(100, 800, 60)).max() < 20


def test_a_tracker_holds_on_to_somebody_who_turns_around():
    """Lost for a second, and of another colour from behind: only a tracker knows that this is one person."""
    for number, whole in ((7, True), (NOBODY_KNOWS, False)):
        front = Actor(at=except_in(still(300), range(30, 90)), looks=RED, number=lambda _, n=number: n)
        back = Actor(at=except_in(still(310), range(60)), looks=RED + 12, number=lambda _, n=number: n)
        assert followed(scene(90, front, back)).seen[[0, -1]].tolist() == [True, whole]


def test_a_good_link_is_not_torn_for_two_bad_ones():
    """A weak double comes and goes beside the person; later a hand, far from the double, is taken for one."""
    person = Actor(at=still(400), looks=RED, size=400)
    double = Actor(at=except_in(still(430), [*range(10), *range(12, 40)]), looks=RED, size=260, score=0.4)
    hand = Actor(at=except_in(still(330), [*range(14), *range(15, 40)]), looks=RED + 3, size=130, score=0.6)
    track = followed(scene(40, person, double, hand))
    assert track.seen.all()
    assert np.abs(track.regions[:, 3] + 200).max() < 10


def test_somebody_half_hidden_shrinks_for_a_while_and_is_the_same():
    """Where the other one is about to cover the rest, only the head is found, much smaller."""
    whole = Actor(at=except_in(walk(100, 800, 60), range(26, 36)), looks=RED, size=240)
    people = scene(60, whole, Actor(at=walk(800, 100, 60), looks=BLUE))
    for frame in (26, 27):
        found = people[frame]
        assert found is not None
        half = scene(60, Actor(at=walk(100, 800, 60), looks=RED, size=90))[frame]
        assert half is not None
        people[frame] = People(
            **{
                name: np.concatenate([getattr(found, name), getattr(half, name)])
                for name in ("boxes", "scores", "regions", "looks", "numbers")
            }
        )
    track = followed(people)
    assert track.seen[[0, 26, 36, 59]].all()
    assert np.abs(track.regions[:, 0] - np.linspace(100, 800, 60)).max() < 20


def test_a_gap_is_crossed_in_a_straight_line():
    away = range(20, 40)
    people = scene(60, Actor(at=except_in(walk(100, 300, 60), away), looks=RED))
    track = followed(people)
    assert np.flatnonzero(~track.seen).tolist() == list(away)
    assert np.abs(track.regions[:, 0] - np.linspace(100, 300, 60)).max() < 10


def test_who_comes_back_far_away_at_once_in_other_clothes_is_another_person():
    people = scene(
        60,
        Actor(at=except_in(still(100), range(40, 60)), looks=RED),
        Actor(at=except_in(still(850), range(41)), looks=BLUE),
    )
    track = followed(people)
    assert not track.seen[40:].any()
    assert np.abs(track.regions[40:, 0] - 100).max() < 15  # held


def test_regions_are_steadier_than_detections():
    people = scene(60, Actor(at=still(400), looks=RED))
    raw = np.array([one.regions[0] for one in people if one is not None])
    steady = followed(people).regions
    assert np.abs(np.diff(steady, 2, axis=0)).mean() < np.abs(np.diff(raw, 2, axis=0)).mean() / 5


def test_frames_nobody_looked_at_are_between_the_others():
    people = scene(60, Actor(at=walk(100, 300, 60), looks=RED), stride=10)
    track = followed(people)
    assert np.flatnonzero(track.seen).tolist() == [0, 10, 20, 30, 40, 50]
    assert np.abs(track.regions[:50, 0] - np.linspace(100, 300, 60)[:50]).max() < 12


def test_a_single_frame_is_enough():
    track = followed(scene(1, Actor(at=still(300), looks=RED)))
    assert track.seen.tolist() == [True]
    assert track.regions[0, 0] == pytest.approx(300, abs=8)


# --- cuts


def test_the_same_person_is_found_behind_a_cut_by_looks():
    people = scene(
        40,
        Actor(at=lambda frame: (100.0 if frame < 20 else 700.0, 300.0), looks=RED),
        Actor(at=lambda frame: (700.0 if frame < 20 else 100.0, 300.0), looks=BLUE, size=180),
    )
    track = followed(people, shots=[0] * 20 + [1] * 20)
    assert np.abs(track.regions[:20, 0] - 100).max() < 10
    assert np.abs(track.regions[20:, 0] - 700).max() < 10
    assert track.newcomers == ()


def test_behind_a_cut_to_other_people_the_same_rule_chooses_again():
    people = scene(
        40,
        Actor(at=except_in(still(500), range(20, 40)), looks=RED, size=300),
        Actor(at=except_in(still(200), range(20)), looks=BLUE),
        Actor(at=except_in(still(800), range(20)), looks=ROSE, size=120),
    )
    track = followed(people, subject="rightmost", shots=[0] * 20 + [1] * 20)
    assert np.abs(track.regions[20:, 0] - 800).max() < 10
    assert track.newcomers == (1,)
    np.testing.assert_allclose(track.looks[[5, 30]], [RED, ROSE], atol=3)


# --- who is there


def test_a_pose_on_somebody_else_is_not_the_subject():
    people = scene(
        60,
        Actor(at=except_in(still(200), range(20, 40)), looks=RED),
        Actor(at=still(400), looks=BLUE, size=220),
    )
    track = followed(people, subject="leftmost")
    here, there = standing(200, 300, size=200), standing(400, 300, size=220)
    assert track.is_subject(10, here, RED)
    assert not track.is_subject(10, there, RED)
    assert track.is_subject(30, here, RED)  # not detected, but there and familiar
    assert not track.is_subject(30, there, RED)
    assert not track.is_subject(30, here, BLUE)  # a thing
    assert not track.is_subject(30, here, np.full(LOOKS, np.nan))


def test_a_mixture_of_the_subject_and_somebody_beside_it_is_not_the_subject():
    people = scene(
        60,
        Actor(at=except_in(still(200), range(25, 35)), looks=RED),
        Actor(at=still(260), looks=ROSE, size=220),
    )
    track = followed(people, subject="leftmost")
    between, mixture = standing(215, 300, size=200), 0.4 * RED + 0.6 * ROSE
    assert not track.is_subject(30, between, mixture)
    assert track.is_subject(30, between, 0.6 * RED + 0.4 * ROSE)
    assert track.is_subject(30, standing(120, 300, size=200), mixture)  # touches nobody


def test_lone_matches_in_a_long_absence_are_chance():
    people = scene(60, Actor(at=except_in(still(200), range(20, 50)), looks=RED))
    present = np.ones(60, bool)
    present[24:50] = False
    present[[35, 36]] = True
    kept = followed(people).connected(present, hop=2)
    assert np.flatnonzero(kept).tolist() == [*range(24), *range(50, 60)]


def test_an_unsure_person_needs_a_face_or_a_hand_now_and_then():
    poses = np.stack([standing(200, 300, size=200)] * 20)
    shots, present = np.zeros(20, int), np.ones(20, bool)
    cushion = followed(scene(20, Actor(at=still(200), looks=RED, score=0.55)))
    assert not cushion.without_chairs(poses, present, shots).any()
    poses[::5, LEFT_HAND, 2] = 0.9
    assert cushion.without_chairs(poses, present, shots).all()
    sure = followed(scene(20, Actor(at=still(200), looks=RED, score=0.8)))
    assert sure.without_chairs(poses[1:5].repeat(5, axis=0), present, shots).all()


# --- looks and boxes


def test_looks_are_the_colours_of_shirt_and_trousers():
    picture = np.zeros((400, 400, 3), np.uint8)
    picture[:200], picture[200:] = (200, 40, 40), (40, 40, 200)
    looks = body_colours(picture, standing(200, 200, size=300)).reshape(3, 3)
    assert looks[0, 1] > 40  # red
    assert looks[2, 2] < -40  # blue
    np.testing.assert_allclose(looks[0], looks[1], atol=1)


def test_what_is_hidden_or_outside_has_no_looks():
    picture = np.zeros((400, 400, 3), np.uint8)
    assert np.isnan(body_colours(picture, standing(200, 200, size=300, score=0.2))).all()
    half = body_colours(picture, standing(200, 390, size=300)).reshape(3, 3)
    assert np.isfinite(half[0]).all()
    assert np.isnan(half[2]).all()


def test_looks_are_compared_where_both_are_known():
    unknown = RED.copy()
    unknown[3:] = np.nan
    assert looks_cost(RED, RED) == 0
    assert looks_cost(RED, unknown) == 0
    assert looks_cost(RED, BLUE) > 1
    assert 0 < looks_cost(np.full(LOOKS, np.nan), RED) < 1
    assert looks_cost(np.stack([RED, BLUE]), RED).shape == (2,)
    assert looks_cost(np.zeros((2, 0)), np.zeros(0)).tolist() == [0, 0]  # a backend without looks
    np.testing.assert_array_equal(mean_looks(unknown, RED)[3:], RED[3:])


def test_boxes():
    box = pose_box(standing(100, 100))
    np.testing.assert_allclose(box, [85, 47, 115, 150])
    assert pose_box(standing(100, 100, score=0.3)).tolist() == [0, 0, 0, 0]
    assert box_overlap(box, box) == pytest.approx(1)
    assert box_overlap(np.zeros(4), np.zeros(4)) == 0
    assert box_overlap(np.array([0.0, 0, 2, 2]), np.array([[1.0, 0, 3, 2]]))[0] == pytest.approx(1 / 3)
