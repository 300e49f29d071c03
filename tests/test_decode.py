"""Frames are chosen by time stamp; any range reads the same pixels; colours and orientation are right."""

import gc
import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from wan_animate.wan.media.decode import (
    SourceVideo,
    exact_rate,
    nearest_frames,
    open_video,
    plan_frames,
    read_frames,
)
from wan_animate.wan.media.probe import VideoInfo, probe_video
from wan_animate.wan.runtime.errors import BadMedia, InvalidInput

from .clips import bars, number_of, numbered, write_video, yuv_frame

OWN = Path(__file__).parent / "data" / "frame_indices.json"
SHARED = Path(__file__).parents[2] / "shared" / "golden" / "preprocess" / "frame_indices.json"
NTSC = Fraction(30000, 1001)
MS = Fraction(1, 1000)
# Where Wan2.2's floats lose a frame of a source that keeps its rate (REFERENCE A16): frames, rate.
FLOAT_LOSSES = {(110, 23.976), (58, 25.0)}


def steady(count: int, rate: Fraction) -> VideoInfo:
    """A video of constant rate that exists in words only."""
    return made_up(np.arange(count), 1 / rate, rate=rate, duration=count / rate, constant=True)


def uneven(times: list[int], last: int) -> VideoInfo:
    """A variable video with times in milliseconds, its last frame shown for `last`."""
    duration = (times[-1] - times[0] + last) * MS
    return made_up(np.array(times), MS, rate=len(times) / duration, duration=duration, constant=False)


def made_up(times, time_base, *, rate, duration, constant) -> VideoInfo:
    return VideoInfo(
        path=Path("made-up.mp4"),
        stream_index=0,
        codec="none",
        width=64,
        height=48,
        rotation=0,
        mirrored=False,
        times=times,
        time_base=time_base,
        rate=rate,
        duration=duration,
        constant_rate=constant,
        key_frames=np.zeros((0, 2), np.int64),
    )


def golden_cases():
    own = json.loads(OWN.read_text())["cases"]
    return json.loads(SHARED.read_text())["cases"] if SHARED.exists() else own


@pytest.mark.parametrize(
    ("decimal", "rate"),
    [
        (30, Fraction(30)),
        (30.0, Fraction(30)),
        (29.97, NTSC),
        (29.97002997002997, NTSC),
        (23.976, Fraction(24000, 1001)),
        (23.98, Fraction(24000, 1001)),
        (59.94, Fraction(60000, 1001)),
        (12.5, Fraction(25, 2)),
        (29.5, Fraction(59, 2)),
        (Fraction(7, 3), Fraction(7, 3)),
    ],
)
def test_decimals_stand_for_exact_rates(decimal, rate):
    assert exact_rate(decimal) == rate


def test_choice_equals_the_reference():
    """Count and choice as in Wan2.2, but for what its floats do: lost frames, an empty list, exact ties."""
    losses, ties = set(), 0
    for case in golden_cases():
        info = steady(case["frame_num"], exact_rate(case["video_fps"]))
        plan = plan_frames(info, fps=case["fps_arg"])
        if plan.num_frames != case["target_num"]:
            losses.add((case["frame_num"], case["video_fps"]))
            assert plan.num_frames == case["target_num"] + 1
            continue
        for i in np.flatnonzero(plan.indices != case["indices"]):
            exact = (
                i * info.rate / plan.fps
            )  # between two frames: the reference rounds it after a float error
            assert exact.denominator == 2 and plan.indices[i] % 2 == 0
            ties += 1
    empty = {(1, 72.622)}  # 0.33 frames: the reference gives none, we give one
    assert losses == FLOAT_LOSSES | empty
    assert ties <= 6


def test_own_subset_has_what_differs():
    cases = {(case["frame_num"], case["video_fps"]) for case in json.loads(OWN.read_text())["cases"]}
    assert cases >= FLOAT_LOSSES | {(1, 72.622), (100, 25)}


@pytest.mark.parametrize("rate", [NTSC, Fraction(24000, 1001), Fraction(25), Fraction(60000, 1001)])
def test_kept_rate_keeps_every_frame(rate):
    for count in range(1, 2000, 37):
        plan = plan_frames(steady(count, rate), fps=-1)
        assert plan.fps == rate
        np.testing.assert_array_equal(plan.indices, np.arange(count))


def test_ties_go_to_the_even_index():
    np.testing.assert_array_equal(
        plan_frames(steady(6, Fraction(20)), fps=40).indices[:8], [0, 0, 1, 2, 2, 2, 3, 4]
    )
    np.testing.assert_array_equal(
        plan_frames(uneven([0, 50, 100, 150], 50), fps=40).indices, [0, 0, 1, 2, 2, 2, 3, 3]
    )


def test_variable_times_are_followed():
    info = uneven([0, 10, 20, 500, 510, 900], 100)
    np.testing.assert_array_equal(
        plan_frames(info, fps=10).indices,
        [0, 2, 2, 3, 3, 3, 4, 4, 5, 5],  # 0, 100, 200 … ms; 200 is nearer to 20
    )


def test_variable_choice_is_the_nearest_by_brute_force():
    rng = np.random.default_rng(0)
    for _ in range(30):
        times = np.unique(rng.integers(0, 3000, 60)).tolist()
        info = uneven(times, 30)
        fps, start = Fraction(int(rng.integers(1, 61))), Fraction(int(rng.integers(0, 900)), 1000)
        plan = plan_frames(info, fps=fps, start_s=start)
        for i, chosen in enumerate(plan.indices.tolist()):
            wanted = (start + i / fps) / MS + times[0]
            assert chosen == min(range(len(times)), key=lambda k: (abs(times[k] - wanted), k % 2))


def test_steady_times_in_ticks_and_ideal_ones_agree_where_ticks_are_fine():
    info = steady(200, Fraction(25))
    ticks = made_up(np.arange(200) * 40, MS, rate=info.rate, duration=info.duration, constant=False)
    for fps in (12, 16, 24, 30, 60):
        arguments = {"count": 90, "fps": Fraction(fps), "start": Fraction(1, 7)}
        np.testing.assert_array_equal(nearest_frames(info, **arguments), nearest_frames(ticks, **arguments))


def test_trimming():
    info = steady(300, Fraction(30))
    plan = plan_frames(info, fps=30, start_s=2, duration_s=1.5)
    np.testing.assert_array_equal(plan.indices, np.arange(60, 105))
    assert (plan.start_s, plan.duration, plan.warnings) == (2, Fraction(3, 2), ())
    np.testing.assert_array_equal(plan_frames(info, fps=15, start_s=0.1).indices[:3], [3, 5, 7])
    assert plan_frames(info, fps=30, start_s=9.99).num_frames == 1


def test_longer_part_than_there_is_is_cut_and_told():
    plan = plan_frames(steady(300, Fraction(30)), fps=30, start_s=8, duration_s=5)
    assert (plan.num_frames, plan.duration) == (60, 2)
    assert "cut to 2.000" in plan.warnings[0]


@pytest.mark.parametrize(
    "arguments", [{"start_s": 10}, {"start_s": 11.5}, {"start_s": -1}, {"duration_s": 0}, {"fps": 0}]
)
def test_impossible_parts_are_refused(arguments):
    with pytest.raises(InvalidInput):
        plan_frames(steady(300, Fraction(30)), **arguments)


def test_absurd_length_is_refused():
    with pytest.raises(InvalidInput, match="duration_s"):
        plan_frames(uneven([0, 10**12], 10), fps=30)


def seams(count: int) -> list[tuple[int, int]]:
    return [(0, 3), (7, 14), (19, 21), (20, 29), (39, 40), (41, count), (count - 1, count), (5, 5)]


LONG = {"g": "20", "bf": "3", "sc_threshold": "0"}
KINDS = {
    "h264": ("a.mp4", {"options": LONG}),
    "open": ("a.mp4", {"options": LONG | {"x264-params": "open-gop=1"}}),
    "refresh": ("a.ts", {"options": LONG | {"x264-params": "intra-refresh=1"}}),
    "matroska": ("a.mkv", {"options": LONG}),
    "transport": ("a.ts", {"options": LONG}),
    "h265": ("a.mp4", {"codec": "libx265", "options": {"x265-params": "log-level=none:keyint=20"}}),
    "vp9": (
        "a.webm",
        {"codec": "libvpx-vp9", "options": {"g": "20", "cpu-used": "8", "lag-in-frames": "12"}},
    ),
    "avi": ("a.avi", {"options": LONG}),
    "avi-mpeg4": ("a.avi", {"codec": "mpeg4", "options": {"g": "20", "bf": "2"}}),
    "fragments": ("a.mp4", {"options": LONG, "muxing": {"movflags": "frag_keyframe+empty_moov"}}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_any_range_reads_the_same_pixels(tmp_path, kind):
    name, coding = KINDS[kind]
    video = open_video(write_video(tmp_path / name, 60, **coding))
    whole = list(video.frames())
    assert [number_of(image) for image in whole] == list(range(60))
    assert len(video.info.key_frames) > 1
    for start, stop in seams(60):
        part = list(video.frames(start, stop))
        assert len(part) == stop - start
        assert all(np.array_equal(a, b) for a, b in zip(part, whole[start:stop], strict=True))


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_any_range_of_a_variable_video(tmp_path, name):
    times = np.cumsum(np.random.default_rng(0).integers(10, 90, 60)).tolist()
    path = write_video(tmp_path / name, 60, times=times, time_base=MS, options=LONG)
    video = open_video(path, fps=30)
    whole = list(video.frames())
    assert [number_of(image) for image in whole] == video.indices.tolist()
    for start, stop in seams(video.num_frames):
        part = list(video.frames(start, stop))
        assert all(np.array_equal(a, b) for a, b in zip(part, whole[start:stop], strict=True))


def test_repeated_source_frame_is_one_array(tmp_path):
    video = open_video(write_video(tmp_path / "a.mp4", 4, rate=10), fps=20)
    frames = list(video.frames())
    assert video.num_frames == 8 and video.indices.tolist() == [0, 0, 1, 2, 2, 2, 3, 3]
    assert frames[3] is frames[4] is frames[5]
    with pytest.raises(ValueError, match="read-only"):
        frames[0][:] = 0


def test_frames_are_c_contiguous_at_any_width(tmp_path):
    for width in (64, 65, 66, 71):
        pictures = [numbered(i, width=width, height=47) for i in range(3)]
        video = open_video(write_video(tmp_path / "a.mkv", pictures, codec="ffv1", pixels="yuv444p"))
        assert video.size == (47, width)
        for image in video.frames():
            assert image.shape == (47, width, 3) and image.flags.c_contiguous and image.dtype == np.uint8


def test_ranges_outside_are_refused(tmp_path):
    video = open_video(write_video(tmp_path / "a.mp4", 4))
    for start, stop in ((-1, 2), (3, 2), (0, 5)):
        with pytest.raises(ValueError, match="of a video of 4"):
            next(video.frames(start, stop))


@pytest.mark.parametrize("turn", [0, 90, 180, 270])
@pytest.mark.parametrize("mirrored", [False, True])
def test_frames_are_upright(tmp_path, turn, mirrored):
    stored = bars(width=64, height=48).copy()
    stored[:16, :16] = (255, 0, 0)
    coding = {"pixels": "yuv444p", "options": {"qp": "0"}}
    path = write_video(tmp_path / "a.mp4", [stored] * 2, turn=turn, mirrored=mirrored, **coding)
    shown = np.rot90(stored, -turn // 90)
    shown = shown[:, ::-1] if mirrored else shown
    image = next(open_video(path).frames())
    assert image.shape == shown.shape
    assert np.abs(image.astype(int) - shown).max() <= 3


def test_pixels_become_square(tmp_path):
    path = write_video(tmp_path / "a.mp4", [numbered(9)] * 2, aspect=Fraction(3, 2))
    image = next(open_video(path).frames())
    assert image.shape == (48, 96, 3)
    assert number_of(image) == 9


MATRICES = {1: (0.2126, 0.0722), 6: (0.299, 0.114), 5: (0.299, 0.114), 9: (0.2627, 0.0593)}  # tag: kr, kb


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("full", [False, True])
def test_colours_follow_the_tags(tmp_path, matrix, full):
    kr, kb = MATRICES[matrix]
    tags = {"colorspace": matrix, "color_range": 2 if full else 1}
    frames = [yuv_frame(bars(), kr=kr, kb=kb, full=full)] * 2
    path = write_video(tmp_path / "a.mkv", frames, options={"qp": "0"}, pixels="yuv444p", colour=tags)
    assert np.abs(next(open_video(path).frames()).astype(int) - bars()).max() <= 1


@pytest.mark.parametrize(("height", "matrix"), [(64, 6), (720, 1)])
def test_untagged_colours_are_guessed_by_height(tmp_path, height, matrix):
    kr, kb = MATRICES[matrix]
    frames = [yuv_frame(bars(height=height), kr=kr, kb=kb, full=False)] * 2
    path = write_video(tmp_path / "a.mkv", frames, options={"qp": "0"}, pixels="yuv444p")
    assert np.abs(next(open_video(path).frames()).astype(int) - bars(height=height)).max() <= 1


def perceptual(nits: np.ndarray) -> np.ndarray:
    """SMPTE ST 2084: light in cd/m² → code value 0…1."""
    power = (nits / 10_000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375


def test_hdr_is_mapped_to_ordinary_range(tmp_path):
    """White at 203 cd/m² (ITU-R BT.2408) becomes white, what is brighter stays white, mid-grey stays grey."""
    nits = np.repeat([0.0, 20.0, 203.0, 1000.0], 16)
    luma = np.round(64 + 876 * perceptual(nits)).astype(np.uint16)[None].repeat(48, 0)
    planes = np.concatenate([luma, np.full((24, 64), 512, np.uint16)])  # grey
    frame = av.VideoFrame.from_ndarray(planes, "yuv420p10le")
    tags = {"color_primaries": 9, "color_trc": 16, "colorspace": 9, "color_range": 1}
    path = write_video(
        tmp_path / "a.mp4", [frame] * 2, pixels="yuv420p10le", options={"qp": "0"}, colour=tags
    )
    row = next(open_video(path).frames())[24, 8::16].astype(int)
    assert (row[0] <= 2).all()
    assert (np.abs(row[1] - 98) <= 6).all()  # 0.0985 of white, BT.1886: 255 · 0.0985^(1/2.4)
    assert (row[2:] >= 252).all()


def test_file_is_closed_when_reading_is_given_up(tmp_path):
    path = write_video(tmp_path / "a.mp4", 60)
    video = open_video(path)

    def open_files() -> int:
        return sum(
            link.resolve() == path.resolve() for link in Path("/proc/self/fd").iterdir() if link.exists()
        )

    reading = video.frames()
    next(reading)
    assert open_files() == 1
    reading.close()
    assert open_files() == 0
    reading = video.frames()
    next(reading)
    del reading
    gc.collect()
    assert open_files() == 0
    with pytest.raises(RuntimeError, match="stop"):
        for _ in video.frames():
            raise RuntimeError("stop")
    gc.collect()
    assert open_files() == 0


def test_two_readers_do_not_disturb_each_other(tmp_path):
    video = open_video(write_video(tmp_path / "a.mp4", 30, options=LONG))
    pairs = zip(video.frames(0, 20), video.frames(10, 30), strict=True)
    assert [(number_of(a), number_of(b)) for a, b in pairs] == [(i, i + 10) for i in range(20)]


def test_damaged_frame_is_named(tmp_path):
    path = write_video(tmp_path / "a.mp4", 60, options=LONG | {"bf": "0"})
    video = open_video(path)
    with av.open(path) as container:
        places = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    data = bytearray(path.read_bytes())
    for start, size in places[40:60]:
        data[start : start + size] = b"\xff" * size
    path.write_bytes(data)
    reading = video.frames()
    for i in range(40):
        assert number_of(next(reading)) == i
    with pytest.raises(BadMedia, match=r"frame 40 .* at 1\.60 s, .*duration_s"):
        list(reading)
    assert len(list(open_video(path, duration_s=1.6).frames())) == 40  # the advice works


def test_file_that_changed_behind_our_back(tmp_path):
    path = write_video(tmp_path / "a.mp4", 30)
    video = open_video(path)
    write_video(path, 10)
    with pytest.raises(BadMedia, match="frame 10"):
        list(video.frames())
    path.unlink()
    with pytest.raises(BadMedia):
        list(video.frames())


def test_source_frames_by_number(tmp_path):
    info = probe_video(write_video(tmp_path / "a.mp4", 60, options=LONG))
    assert [number_of(image) for image in read_frames(info, [3, 17, 44, 59])] == [3, 17, 44, 59]
    assert list(read_frames(info, [])) == []


def test_video_is_a_plain_value(tmp_path):
    info = probe_video(write_video(tmp_path / "a.mp4", 5))
    video = SourceVideo(info=info, plan=plan_frames(info))
    assert (video.num_frames, video.fps, video.size) == (5, 25, (48, 64))
