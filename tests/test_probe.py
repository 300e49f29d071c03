"""Size, times, rate, duration and sound are told exactly; what is no usable video gets a sentence."""

import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from wan_animate.wan.media.decode import open_video
from wan_animate.wan.media.probe import constant_rate, measure, orientation, probe_video, simplest_between
from wan_animate.wan.runtime.errors import BadMedia

from .clips import Sound, cut_off, numbered, packet_times, write_video

SAMPLES = Path(__file__).parents[2] / "shared" / "samples"
NTSC = Fraction(30000, 1001)
FILM = Fraction(24000, 1001)
MS = Fraction(1, 1000)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi", "a.ts", "a.flv", "a.gif", "a.mov"])
def test_common_containers(tmp_path, name):
    coding = {"codec": "gif", "pixels": "rgb8"} if name.endswith("gif") else {}
    info = probe_video(write_video(tmp_path / name, 12, rate=25, **coding))
    assert (info.width, info.height, info.num_frames) == (64, 48, 12)
    assert (info.rate, info.duration, info.constant_rate) == (25, Fraction(12, 25), True)
    assert (info.has_audio, info.hdr, info.warnings) == (False, False, ())


def test_times_are_the_packets_own(tmp_path):
    path = write_video(tmp_path / "a.mp4", 9, times=[0, 40, 50, 200, 210, 300, 420, 500, 510], time_base=MS)
    info = probe_video(path)
    assert not info.constant_rate
    assert info.times.tolist() == packet_times(path)
    np.testing.assert_array_equal(
        (info.times - info.times[0]) * info.time_base,
        np.array([0, 40, 50, 200, 210, 300, 420, 500, 510]) * MS,
    )


@pytest.mark.parametrize("rate", [NTSC, FILM, Fraction(60000, 1001), Fraction(30), Fraction(25, 2)])
def test_rate_survives_millisecond_ticks(tmp_path, rate):
    info = probe_video(write_video(tmp_path / "a.mkv", 100, rate=rate))
    assert info.time_base == MS
    assert (info.rate, info.constant_rate, info.duration) == (rate, True, 100 / rate)


@pytest.mark.parametrize("count", [2, 3, 5, 30, 500, 20_000])
@pytest.mark.parametrize("rate", [NTSC, FILM, Fraction(30), Fraction(24), Fraction(25, 2)])
def test_constant_rate_is_found_from_rounded_times(rate, count):
    times = np.array([round(i / rate / MS) for i in range(count)])
    assert constant_rate(times, time_base=MS, declared=rate) == rate
    if count >= 500:  # long enough to tell without the file's own word, and against it
        assert constant_rate(times, time_base=MS) == rate
        assert constant_rate(times, time_base=MS, declared=Fraction(90000)) == rate


def test_one_missing_frame_makes_the_rate_variable():
    times = np.array([round(i / NTSC / MS) for i in range(100) if i != 50])
    assert constant_rate(times, time_base=MS, declared=NTSC) is None
    coarse = np.array([i for i in range(100) if i != 50])  # AVI: a tick is a frame
    assert constant_rate(coarse, time_base=Fraction(1, 25)) is None
    assert constant_rate(np.arange(100), time_base=Fraction(1, 25)) == 25


def test_duration_includes_the_last_frame():
    steady = np.arange(10) * 40
    assert measure(steady, time_base=MS, last_ticks=40).duration == Fraction(2, 5)
    assert measure(steady, time_base=MS, last_ticks=0).duration == Fraction(2, 5)  # not said: like the others
    assert measure(steady, time_base=MS, last_ticks=1).duration == Fraction(2, 5)  # a careless writer
    assert measure(steady, time_base=MS, last_ticks=2000).duration == Fraction(9 * 40 + 2000, 1000)  # held
    uneven = np.array([0, 40, 100, 130])
    assert measure(uneven, time_base=MS, last_ticks=70).duration == Fraction(200, 1000)
    assert measure(uneven, time_base=MS, last_ticks=0).duration == Fraction(170, 1000)  # the median gap


def test_variable_rate_loses_no_frame_and_keeps_small_terms():
    rng = np.random.default_rng(0)
    for count in (7, 100, 18_000):
        times = np.cumsum(rng.integers(5_000, 90_000, count))
        timing = measure(times, time_base=Fraction(1, 1_000_000), last_ticks=33_367)
        assert not timing.constant
        assert int(timing.duration * timing.rate) == count
        assert timing.rate.denominator < 100_000
        assert abs(timing.rate * timing.duration / count - 1) <= Fraction(1, 100_000)


def test_single_frame_lasts_as_the_file_says():
    one = np.array([0])
    assert measure(one, time_base=MS, last_ticks=40).duration == Fraction(1, 25)
    assert measure(one, time_base=MS, declared=Fraction(30)).duration == Fraction(1, 30)
    assert measure(one, time_base=MS) is None


def test_one_frame_video(tmp_path):
    info = probe_video(write_video(tmp_path / "a.mp4", 1, rate=25))
    assert (info.num_frames, info.duration) == (1, Fraction(1, 25))


def test_simplest_fraction():
    assert simplest_between(Fraction(29), Fraction(31)) == 29
    assert simplest_between(Fraction(29_969, 1000), Fraction(29_971, 1000)) == Fraction(989, 33)
    assert simplest_between(Fraction(1, 3), Fraction(1, 2)) == Fraction(1, 2)
    assert simplest_between(Fraction(22, 7), Fraction(22, 7)) == Fraction(22, 7)


@pytest.mark.parametrize("turn", [0, 90, 180, 270])
def test_rotation_and_pixel_shape(tmp_path, turn):
    info = probe_video(write_video(tmp_path / "a.mp4", 3, turn=turn))
    assert (info.rotation, info.mirrored) == (turn, False)
    assert (info.width, info.height) == ((48, 64) if turn in (90, 270) else (64, 48))
    wide = probe_video(write_video(tmp_path / "b.mp4", 3, turn=turn, aspect=Fraction(3, 2)))
    assert (wide.width, wide.height) == ((48, 96) if turn in (90, 270) else (96, 48))
    tall = probe_video(write_video(tmp_path / "c.mp4", 3, aspect=Fraction(2, 3)))
    assert (tall.width, tall.height) == (64, 72)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ((1, 0, 0, 1), (0, False)),
        ((0, 1, -1, 0), (90, False)),  # a phone held upright
        ((-1, 0, 0, -1), (180, False)),
        ((0, -1, 1, 0), (270, False)),
        ((-1, 0, 0, 1), (0, True)),
        ((1, 0, 0, -1), (180, True)),  # upside down by a mirror: mirrored, then turned
        ((0.9, 0.1, -0.1, 0.9), (0, False)),
    ],
)
def test_display_matrix(rows, expected):
    a, b, c, d = (round(value * 65536) for value in rows)
    assert orientation(np.array([a, b, 0, c, d, 0, 0, 0, 1 << 30], np.int32)) == expected


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4", "a.mov"])
@pytest.mark.parametrize("start", [0.0, 0.3])
def test_sound_and_its_offset(tmp_path, name, start):
    info = probe_video(write_video(tmp_path / name, 20, sound=Sound(seconds=0.5, start_s=start)))
    assert info.has_audio
    # MP4 keeps the AAC encoder's 1024 samples of run-up before a late start.
    assert abs(float(info.audio_offset) - start) <= 1024 / 48_000 + 1e-3


def test_video_that_starts_late_has_its_own_clock(tmp_path):
    path = write_video(tmp_path / "a.mkv", 10, times=[400 + 40 * i for i in range(10)], time_base=MS)
    info = probe_video(path)
    assert (info.start, info.duration) == (Fraction(2, 5), Fraction(2, 5))


def test_cover_picture_is_no_video(tmp_path):
    with av.open(tmp_path / "song.mp4", "w") as container:
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 64, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        audio = container.add_stream("aac", rate=48_000, layout="stereo")
        for packet in cover.encode(av.VideoFrame.from_ndarray(numbered(1, width=64, height=64), "rgb24")):
            container.mux(packet)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 2048), np.int16), format="s16", layout="stereo")
        silence.sample_rate = 48_000
        container.mux(audio.encode(silence))
        container.mux(audio.encode())
        container.mux(cover.encode())
    with pytest.raises(BadMedia, match="sound only"):
        probe_video(tmp_path / "song.mp4")


def test_sound_only_file(tmp_path):
    with av.open(tmp_path / "a.wav", "w") as container:
        audio = container.add_stream("pcm_s16le", rate=48_000, layout="mono")
        noise = av.AudioFrame.from_ndarray(np.ones((1, 4800), np.int16), format="s16", layout="mono")
        noise.sample_rate = 48_000
        container.mux(audio.encode(noise))
        container.mux(audio.encode())
    with pytest.raises(BadMedia, match="sound only"):
        probe_video(tmp_path / "a.wav")


def test_what_is_no_video_gets_a_sentence(tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("this is a text\n" * 100)
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\na.mp4\n")
    Image.new("RGB", (64, 64)).save(tmp_path / "picture.png")
    Image.new("RGB", (64, 64)).save(tmp_path / "picture.jpg")
    Image.new("RGB", (64, 64)).save(tmp_path / "picture.avif")
    for name, words in {
        "missing.mp4": "does not exist",
        "empty.mp4": "empty",
        "text.mp4": "not a video",
        "noise.mp4": "not a video",
        "list.m3u8": "not a video",
        "picture.png": "not a video",
        "picture.jpg": "not a video",
        "picture.avif": "picture, not a video",
        ".": "folder",
    }.items():
        with pytest.raises(BadMedia, match=words):
            probe_video(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "muxing"),
    [
        ("a.mp4", {}),  # index at the end: lost
        ("a.mp4", {"movflags": "faststart"}),  # index in front: promises more than there is
        ("a.mp4", {"movflags": "frag_keyframe+empty_moov"}),
        ("a.mkv", {}),
        ("a.avi", {}),
    ],
)
def test_file_that_stops_in_the_middle(tmp_path, name, muxing):
    noise = np.random.default_rng(0).integers(0, 256, (60, 48, 64, 3), np.uint8)
    path = write_video(tmp_path / name, noise, rate=10, muxing=muxing, options={"g": "10"})
    assert probe_video(path).num_frames == 60
    with pytest.raises(BadMedia, match=r"cut off|breaks off"):
        probe_video(cut_off(path))


def test_longer_sound_does_not_look_like_a_broken_file(tmp_path):
    info = probe_video(write_video(tmp_path / "a.mkv", 20, sound=Sound(seconds=6)))
    assert info.duration == Fraction(20, 25)


def test_video_without_frames(tmp_path):
    with av.open(tmp_path / "a.mp4", "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()
    with pytest.raises(BadMedia):
        probe_video(tmp_path / "a.mp4")


def test_stream_without_times(tmp_path):
    with pytest.raises(BadMedia, match="no frame times"):
        probe_video(write_video(tmp_path / "a.h264", 10, format="h264"))


def test_sizes_out_of_bounds(tmp_path):
    small = [numbered(0, width=14, height=14)] * 2
    with pytest.raises(BadMedia, match="14×14"):
        probe_video(write_video(tmp_path / "a.mp4", small))
    assert probe_video(write_video(tmp_path / "b.mp4", [numbered(0, width=16, height=16)] * 2)).width == 16
    stretched = write_video(tmp_path / "c.mp4", [numbered(0, width=640)] * 2, aspect=Fraction(20))
    with pytest.raises(BadMedia, match="12800×48"):
        probe_video(stretched)
    wide = np.zeros((16, 8208, 3), np.uint8)
    with pytest.raises(BadMedia, match="8208×16"):
        probe_video(write_video(tmp_path / "d.mkv", [wide] * 2))


def test_undecodable_sound_is_told(tmp_path):
    path = write_video(tmp_path / "a.mkv", 20, sound=Sound(seconds=0.5, codec="mp2", rate=44_100))
    data = bytearray(path.read_bytes())
    with av.open(path) as container:
        places = [(p.pos, p.size) for p in container.demux(audio=0) if p.pos is not None and p.size]
    for start, size in places:
        data[start : start + size + 8] = bytes(size + 8)
    path.write_bytes(data)
    info = probe_video(path)
    assert not info.has_audio
    assert "cannot be decoded" in info.warnings[0]


def test_hdr_is_told(tmp_path):
    for transfer in (16, 18):
        tags = {"color_primaries": 9, "color_trc": transfer, "colorspace": 9, "color_range": 1}
        info = probe_video(write_video(tmp_path / "a.mp4", 3, pixels="yuv420p10le", colour=tags))
        assert info.hdr
        assert "HDR" in info.warnings[0]


def test_leading_pictures_that_cannot_be_decoded_do_not_count(tmp_path):
    """A recording cut within a group of pictures: nothing can be shown before the next key frame."""
    path = write_video(tmp_path / "a.mkv", 40, options={"g": "20", "bf": "0", "sc_threshold": "0"})
    with av.open(path) as source, av.open(tmp_path / "b.mkv", "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None and packet.pts >= 400:
                packet.stream = stream
                target.mux(packet)
    info = probe_video(tmp_path / "b.mkv")
    assert info.num_frames == 20
    assert info.start == Fraction(800, 1000)


def test_pictures_that_are_never_shown_do_not_count(tmp_path):
    """VP8 keeps pictures in the file that are only referred to."""
    path = write_video(tmp_path / "a.webm", 20, codec="libvpx", options={"deadline": "realtime"})
    with av.open(path) as source, av.open(tmp_path / "b.webm", "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if not packet.size:
                continue
            hidden = av.Packet(bytes([bytes(packet)[0] & ~0x10]) + bytes(packet)[1:])
            hidden.pts = hidden.dts = packet.pts + 7
            hidden.time_base, hidden.stream = packet.time_base, stream
            shown = not packet.is_keyframe
            packet.stream = stream
            target.mux(packet)
            if shown:
                target.mux(hidden)
    assert len(packet_times(tmp_path / "b.webm")) > 20
    video = open_video(tmp_path / "b.webm")
    assert (video.info.num_frames, video.info.rate) == (20, 25)
    assert len(list(video.frames())) == 20


@pytest.mark.skipif(not SAMPLES.exists(), reason="the samples are not beside this checkout")
@pytest.mark.parametrize(
    ("name", "size", "rate", "frames", "sound"),
    [
        ("animate-video.mp4", (1920, 1080), 30, 106, True),
        ("replace-video.mp4", (1280, 720), 24, 164, True),
        ("two-people.mp4", (960, 540), 30, 200, False),
        ("no-face.mp4", (1280, 720), NTSC, 287, True),
    ],
)
def test_real_samples(name, size, rate, frames, sound):
    began = time.perf_counter()
    info = probe_video(SAMPLES / name)
    assert time.perf_counter() - began < 5
    assert ((info.width, info.height), info.rate, info.num_frames, info.has_audio) == (
        size,
        rate,
        frames,
        sound,
    )
    assert info.duration == frames / Fraction(rate)
