"""Clip windows: what they show, what is new in them, and which are refused."""

from itertools import pairwise

import pytest
from wan_animate.wan.clips import Clip, plan_clips, reflect
from wan_animate.wan.runtime.errors import InvalidInput

FORTH_AND_BACK = {  # num_frames, clip_len, overlap → the frames of all clips laid over each other
    (19, 9, 1): [*range(19), 17, 16, 15, 14, 13, 12],
    (18, 9, 1): [*range(18), 16, 15, 14, 13, 12, 11, 10],
    (24, 13, 5): [*range(24), 22, 21, 20, 19, 18],
}


def fresh_frames(clips: tuple[Clip, ...]) -> list[int]:
    return [frame for clip in clips for frame in clip.frames[clip.fresh]]


@pytest.mark.parametrize(("case", "timeline"), FORTH_AND_BACK.items())
def test_the_last_clip_is_filled_by_reflection(case, timeline):
    num_frames, clip_len, overlap = case
    clips = plan_clips(num_frames, clip_len=clip_len, overlap=overlap)
    laid_out = [frame for clip in clips for frame in clip.frames[overlap if clip.index else 0 :]]
    assert laid_out == timeline


@pytest.mark.parametrize(("clip_len", "overlap"), [(5, 1), (9, 1), (77, 1), (13, 5), (77, 5), (121, 5)])
@pytest.mark.parametrize("num_frames", [*range(1, 32), 76, 77, 78, 153, 154, 1800])
def test_fresh_frames_are_the_video_once_and_in_order(num_frames, clip_len, overlap):
    clips = plan_clips(num_frames, clip_len=clip_len, overlap=overlap)
    assert fresh_frames(clips) == list(range(num_frames))
    assert [clip.index for clip in clips] == list(range(len(clips)))
    assert all(len(clip.frames) == clip_len for clip in clips)
    assert all(clip.fresh.start < clip.fresh.stop <= clip_len for clip in clips)  # no clip for nothing


@pytest.mark.parametrize("overlap", [1, 5])
def test_every_clip_starts_with_the_end_of_the_one_before(overlap):
    clips = plan_clips(100, clip_len=13, overlap=overlap)
    for earlier, later in pairwise(clips):
        assert later.frames[:overlap] == earlier.frames[-overlap:]


def test_one_frame_fills_a_whole_clip():
    (clip,) = plan_clips(1, clip_len=77, overlap=1)
    assert set(clip.frames) == {0}
    assert clip.fresh == slice(0, 1)


def test_a_video_shorter_than_the_overlap_is_one_clip():
    (clip,) = plan_clips(3, clip_len=13, overlap=5)
    assert clip.frames == (0, 1, 2, 1, 0, 1, 2, 1, 0, 1, 2, 1, 0)
    assert clip.fresh == slice(0, 3)


def test_exactly_one_clip_needs_no_second():
    assert len(plan_clips(77, clip_len=77, overlap=1)) == 1
    assert len(plan_clips(78, clip_len=77, overlap=1)) == 2


def test_reflection_shows_the_turning_points_once():
    assert [reflect(position, 4) for position in range(9)] == [0, 1, 2, 3, 2, 1, 0, 1, 2]


@pytest.mark.parametrize(
    ("clip_len", "overlap", "sentence"),
    [
        (76, 1, "clip_len is 76, but clips have 4n+1 frames, at least 5; use 73 or 77"),
        (1, 1, "use 5 or 9"),
        (77, 3, "refert_num is 3, but only 1 or 5"),
        (9, 5, "use clip_len 13 or more, or refert_num 1"),
    ],
)
def test_impossible_windows_are_refused_with_what_to_change(clip_len, overlap, sentence):
    with pytest.raises(InvalidInput, match=sentence.replace("+", r"\+")):
        plan_clips(10, clip_len=clip_len, overlap=overlap)


def test_a_video_without_frames_is_refused():
    with pytest.raises(InvalidInput, match="no frames"):
        plan_clips(0, clip_len=77, overlap=1)
