"""What is written reads back: frames, rate, colours, sound in step, tags; and nothing half-written stays."""

import errno
import resource
import subprocess
import sys
import threading
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from wan_animate.wan.media.decode import open_video
from wan_animate.wan.media.encode import AudioTrack, VideoWriter
from wan_animate.wan.media.probe import probe_video
from wan_animate.wan.runtime.errors import Cancelled, DiskFull, InvalidInput

from .clips import Sound, bars, beeps_in, number_of, numbered, read_sound, write_video

NTSC = Fraction(30000, 1001)
PACKET = 1024  # samples of AAC


def write(path: Path, count: int = 12, *, fps=Fraction(25), quality=18, metadata=None, audio=None) -> Path:
    """A video of numbered frames, written in two batches."""
    frames = np.stack([numbered(i) for i in range(count)])
    with VideoWriter(
        path, width=64, height=48, fps=fps, quality=quality, metadata=metadata, audio=audio
    ) as writer:
        writer.write(frames[: count // 2])
        writer.write(frames[count // 2 :])
    return path


def track(path: Path, *, start_s=Fraction(0)) -> AudioTrack:
    found = AudioTrack.of(probe_video(path), start_s=Fraction(start_s))
    assert found is not None
    return found


@pytest.mark.parametrize(
    "fps", [Fraction(30), NTSC, Fraction(24000, 1001), Fraction(25, 2), Fraction(1), Fraction(2020, 93)]
)
@pytest.mark.parametrize("count", [1, 2, 77])
def test_rate_count_and_duration_are_exact(tmp_path, fps, count):
    info = probe_video(write(tmp_path / "a.mp4", count, fps=fps))
    assert (info.num_frames, info.rate, info.duration) == (count, fps, count / fps)
    assert info.constant_rate


def test_frames_come_back_in_order(tmp_path):
    video = open_video(write(tmp_path / "a.mp4", 40))
    assert [number_of(image) for image in video.frames()] == list(range(40))


def test_flat_colours_survive(tmp_path):
    with VideoWriter(tmp_path / "a.mp4", width=256, height=64, fps=Fraction(25), quality=1) as writer:
        writer.write(np.stack([bars()] * 3))
    error = np.abs(next(open_video(tmp_path / "a.mp4").frames()).astype(int) - bars())
    within = np.arange(256) % 32
    assert error[:, (within >= 6) & (within < 26)].max() <= 2  # away from edges, where chroma is shared


def test_stream_is_what_players_expect(tmp_path):
    path = write(tmp_path / "a.mp4")
    with av.open(path) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
        tags = (context.color_primaries, context.color_trc, context.colorspace, context.color_range)
        assert tags == (1, 1, 1, 1)  # BT.709, limited range
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # index in front


def test_quality_sets_the_size(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (6, 48, 64, 3), np.uint8)
    sizes = []
    for quality in (0, 18, 40):
        with VideoWriter(
            tmp_path / "a.mp4", width=64, height=48, fps=Fraction(25), quality=quality
        ) as writer:
            writer.write(noise)
        sizes.append((tmp_path / "a.mp4").stat().st_size)
    assert sizes[0] > sizes[1] > 2 * sizes[2]


def test_tags_survive(tmp_path):
    tags = {
        "comment": "AI-generated",
        "seed": "4294967295",
        "settings": '{"prompt": "视频中的人在做动作", "note": "a\nb; c=d # e\\"}',
        "long": "x" * 20_000,
        "empty": "",
    }
    path = write(tmp_path / "a.mp4", metadata=tags)
    with av.open(path) as container:
        found = dict(container.metadata)
    assert {key: found.get(key, "") for key in tags} == tags


@pytest.mark.parametrize("layout", ["mono", "stereo", "5.1", "7.1"])
@pytest.mark.parametrize("rate", [44_100, 48_000, 22_050, 96_000])
def test_any_sound_becomes_aac(tmp_path, layout, rate):
    sound = Sound(seconds=1, rate=rate, layout=layout, beeps=(0.5,), codec="pcm_s16le")
    source = write_video(tmp_path / "a.mkv", 25, sound=sound)
    path = write(tmp_path / "b.mp4", 25, audio=track(source))
    with av.open(path) as container:
        stream = container.streams.audio[0]
        assert stream.codec_context.name == "aac"
        assert stream.rate == (rate if rate in (44_100, 48_000) else 48_000)
        assert stream.layout.name == ("mono" if layout == "mono" else "stereo")
    assert beeps_in(path) == pytest.approx([0.5], abs=0.004)


@pytest.mark.parametrize("sound_s", [0.2, 1.0, 3.0])
@pytest.mark.parametrize("fps", [Fraction(25), NTSC])
@pytest.mark.parametrize("count", [1, 24, 50])
def test_sound_and_picture_end_together(tmp_path, sound_s, fps, count):
    source = write_video(tmp_path / "a.mp4", 25, sound=Sound(seconds=sound_s, beeps=(0.1,)))
    path = write(tmp_path / "b.mp4", count, fps=fps, audio=track(source))
    info = probe_video(path)
    assert info.audio_offset == 0
    with av.open(path) as container:
        stream = container.streams.audio[0]
        told = stream.duration * stream.time_base
    assert abs(told - count / fps) <= Fraction(1, 1000)  # MP4 counts the whole in milliseconds
    samples, rate, _ = read_sound(path)
    assert 0 <= samples.shape[1] / rate - float(info.duration) <= PACKET / rate + 1e-4


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.mov", "a.ts"])
@pytest.mark.parametrize("late", [0.0, 0.3])
@pytest.mark.parametrize("start", [Fraction(0), Fraction(1, 10), Fraction(11, 10)])
def test_sound_stays_in_step(tmp_path, name, late, start):
    """A late sound stays late, a trimmed start takes the sound along."""
    sound = Sound(seconds=2, start_s=late, beeps=(0.5, 1.5))
    source = write_video(tmp_path / name, 50, sound=sound)
    path = write(tmp_path / "b.mp4", 40, audio=track(source, start_s=start))
    heard = [beep - float(start) for beep in sound.beeps if beep > start]
    assert beeps_in(path) == pytest.approx([beep for beep in heard if beep < 1.6], abs=0.004)


def test_sound_that_begins_before_the_picture(tmp_path):
    times = [400 + 40 * i for i in range(25)]
    sound = Sound(seconds=1.4, beeps=(0.2, 0.9))
    source = write_video(tmp_path / "a.mkv", 25, times=times, time_base=Fraction(1, 1000), sound=sound)
    assert probe_video(source).audio_offset == Fraction(-2, 5)
    path = write(tmp_path / "b.mp4", 25, audio=track(source))
    assert beeps_in(path) == pytest.approx([0.5], abs=0.004)  # the first beep lies before the picture


def test_gap_in_the_sound_stays_a_gap(tmp_path):
    sound = Sound(seconds=2, beeps=(0.25, 1.25), codec="pcm_s16le")
    source = write_video(tmp_path / "whole.mkv", 50, sound=sound, options={"bf": "0"})
    with av.open(source) as old, av.open(tmp_path / "a.mkv", "w") as new:
        streams = [new.add_stream_from_template(stream) for stream in old.streams]
        for packet in old.demux():
            if packet.size and not (packet.stream_index == 1 and 500 < packet.pts < 1000):
                packet.stream = streams[packet.stream_index]
                new.mux(packet)
    path = write(tmp_path / "b.mp4", 50, audio=track(tmp_path / "a.mkv"))
    assert beeps_in(path) == pytest.approx([0.25, 1.25], abs=0.004)


def test_damaged_sound_is_left_out(tmp_path):
    source = write_video(tmp_path / "a.mkv", 50, sound=Sound(seconds=2, beeps=(0.25, 1.75)))
    with av.open(source) as container:
        places = [(p.pos, p.size) for p in container.demux(audio=0) if p.size and 800 < (p.pts or 0) < 1200]
    data = bytearray(source.read_bytes())
    for start, size in places:
        data[start + 8 : start + size] = b"\xff" * (size - 8)
    source.write_bytes(data)
    path = write(tmp_path / "b.mp4", 50, audio=track(source))
    heard = beeps_in(path)
    assert heard[0] == pytest.approx(0.25, abs=0.004) and heard[-1] == pytest.approx(1.75, abs=0.004)


def test_part_behind_the_end_of_the_sound_is_silent(tmp_path):
    source = write_video(tmp_path / "a.mp4", 50, sound=Sound(seconds=0.5, beeps=(0.1,)))
    path = write(tmp_path / "b.mp4", 20, audio=track(source, start_s=Fraction(1)))
    samples, rate, _ = read_sound(path)
    assert np.abs(samples).max() < 1e-3
    assert abs(samples.shape[1] / rate - 20 / 25) <= PACKET / rate


def test_silent_source_gives_no_sound(tmp_path):
    info = probe_video(write_video(tmp_path / "a.mp4", 5))
    assert AudioTrack.of(info) is None
    assert not probe_video(write(tmp_path / "b.mp4")).has_audio


def test_file_appears_only_when_complete(tmp_path):
    path = tmp_path / "a.mp4"
    with VideoWriter(path, width=64, height=48, fps=Fraction(25)) as writer:
        writer.write(numbered(0)[None])
        assert not path.exists()
        assert all(entry.name.startswith(".") for entry in tmp_path.iterdir())
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize("error", [Cancelled("stop"), RuntimeError("stop"), KeyboardInterrupt()])
def test_nothing_stays_after_an_error(tmp_path, error):
    source = write_video(tmp_path / "source.mp4", 25, sound=Sound())
    old = write(tmp_path / "a.mp4", 3)
    before = old.read_bytes()
    with (
        pytest.raises(type(error)),
        VideoWriter(old, width=64, height=48, fps=Fraction(25), audio=track(source)) as writer,
    ):
        writer.write(np.stack([numbered(i) for i in range(20)]))
        raise error
    assert old.read_bytes() == before  # an older result is not touched
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.mp4", "source.mp4"]


def test_failing_start_leaves_nothing(tmp_path):
    track_of_nothing = AudioTrack(path=tmp_path / "gone.mp4", start_s=Fraction(0), clock_zero=Fraction(0))
    with pytest.raises(InvalidInput):
        write(tmp_path / "a.mp4", audio=track_of_nothing)
    with pytest.raises(InvalidInput, match="output folder"):
        write(tmp_path / "missing" / "a.mp4")
    assert list(tmp_path.iterdir()) == []


def test_wrong_calls_are_refused(tmp_path):
    with pytest.raises(ValueError, match="even"):
        VideoWriter(tmp_path / "a.mp4", width=63, height=48, fps=Fraction(25))
    with pytest.raises(ValueError, match="rate"):
        VideoWriter(tmp_path / "a.mp4", width=64, height=48, fps=Fraction(0))
    with (
        pytest.raises(ValueError, match="uint8"),
        VideoWriter(tmp_path / "a.mp4", width=64, height=48, fps=Fraction(25)) as writer,
    ):
        writer.write(np.zeros((1, 64, 48, 3), np.uint8))
    with (
        pytest.raises(ValueError, match="no frame"),
        VideoWriter(tmp_path / "a.mp4", width=64, height=48, fps=Fraction(25)),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


@contextmanager
def room_for(size: int):
    """Files of this process cannot grow beyond `size` bytes: to the writer the same as a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [0, 20_000, 300_000])
def test_full_disk_is_one_sentence_and_leaves_nothing(tmp_path, size):
    noise = np.random.default_rng(0).integers(0, 256, (60, 128, 128, 3), np.uint8)
    with (
        room_for(size),
        pytest.raises(DiskFull, match="no room left"),
        VideoWriter(tmp_path / "a.mp4", width=128, height=128, fps=Fraction(25), quality=1) as writer,
    ):
        for image in noise:
            writer.write(image[None])
    assert list(tmp_path.iterdir()) == []


def test_disk_that_fills_at_the_very_end_is_noticed(tmp_path):
    """The index is written last and moved to the front: nothing half-written may pass for whole there."""
    size = write(tmp_path / "whole.mp4", 60, quality=1).stat().st_size
    for share in (0.3, 0.9, 0.99):
        with room_for(int(size * share)), pytest.raises(DiskFull):
            write(tmp_path / "a.mp4", 60, quality=1)
    assert [entry.name for entry in tmp_path.iterdir()] == ["whole.mp4"]
    with room_for(size):
        write(tmp_path / "a.mp4", 60, quality=1)


def test_errors_of_a_full_disk_carry_its_number(tmp_path):
    with room_for(0), pytest.raises(DiskFull) as caught:
        write(tmp_path / "a.mp4")
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno in (errno.ENOSPC, errno.EFBIG)


def test_writing_in_another_thread_than_reading(tmp_path):
    source = open_video(write_video(tmp_path / "a.mp4", 30, sound=Sound()))
    done = threading.Thread(
        target=write, args=(tmp_path / "b.mp4", 30), kwargs={"audio": track(source.info.path)}
    )
    done.start()
    assert sum(1 for _ in source.frames()) == 30
    done.join()
    assert probe_video(tmp_path / "b.mp4").num_frames == 30


def test_memory_does_not_grow_with_length(tmp_path):
    """Reading, writing and sound together hold no more after 800 frames than after 200."""
    sound = Sound(seconds=60, codec="pcm_s16le", rate=44_100)
    source = write_video(tmp_path / "a.mkv", 100, sound=sound)
    video = open_video(source)
    held = []
    with VideoWriter(tmp_path / "b.mp4", width=64, height=48, fps=video.fps, audio=track(source)) as writer:
        for _ in range(8):
            for image in video.frames():
                writer.write(image[None])
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            held.append(pages * resource.getpagesize() / 2**20)
    assert max(held[2:]) - held[1] < 8  # MB; the sound alone would be 20


SAME_FILE = """
import ctypes, hashlib, sys
from fractions import Fraction
from pathlib import Path
import numpy as np
from wan_animate.wan.media.encode import VideoWriter

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD: encoders get used memory, not fresh zeros
libc.mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD
frames = np.random.default_rng(0).integers(0, 255, (9, 272, 240, 3), dtype=np.uint8)
digests = set()
for value in (0, 255, 85, 170, 1, 128, 17, 240):
    blocks = [libc.malloc(1 << 20) for _ in range(60)]
    for block in blocks:
        ctypes.memset(block, value, 1 << 20)
    for block in blocks:
        libc.free(block)
    path = Path(sys.argv[1])
    with VideoWriter(path, width=240, height=272, fps=Fraction(30)) as writer:
        writer.write(frames)
    digests.add(hashlib.sha256(path.read_bytes()).hexdigest())
print(len(digests))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="sets glibc's allocator")
def test_the_same_frames_give_the_same_file_whatever_memory_held_before(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-c", SAME_FILE, str(tmp_path / "made.mp4")],
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "1"
