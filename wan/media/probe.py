"""What a video file is: a path in; size, frame times, rate, duration and sound out, or a sentence why not.

Reads every packet's time but decodes one picture only, so that long videos are quick. Knows nothing about
which frames are wanted (decode.py), nor about people or models. Clocks: file times are ticks of the stream's
time base; the *video clock* starts at 0 with the first picture.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from math import floor
from pathlib import Path

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.stream import Discard, Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from ..runtime.errors import BadMedia

MIN_SIDE = 16  # pixels; the smallest picture a size that is a multiple of 16 can be made from
MAX_SIDE = 8192  # pixels; 8K is 7680×4320

# Files are read by these demuxers only: playlists (HLS, concat) would open other files or addresses, and text
# or pictures would pass as one-frame videos.
FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,live_flv,asf,ogg,gif,nut,mxf,ivf,dv,rm,wtv,yuv4mpegpipe,"
    "h264,hevc,m4v,mpegvideo,obu,mp3,wav,w64,flac,aac,ac3,eac3,aiff,amr"
)
PICTURE_BRANDS = ("avif", "heic", "heix", "mif1", "msf1")  # stills in MP4 clothes, ISO/IEC 23008-12
HDR_TRANSFERS = (16, 18)  # SMPTE ST 2084 (PQ) and ARIB STD-B67 (HLG), numbers of ISO/IEC 23091-2
MAX_TICK_SHARE = 4  # ticks a frame below which "within one tick" says nothing; then steps must be equal
RATE_SLACK = Fraction(1, 100_000)  # how far a variable video's rate may be rounded up: 6 ms in 10 minutes
LATEST_PICTURE = 300  # packets within which the first picture must appear
LATEST_SOUND = 200  # packets within which the first sound must appear
NTSC_BASES = (12, 15, 24, 30, 48, 60, 120)
USUAL_RATES = tuple(
    sorted(
        {Fraction(n) for n in range(1, 241)}
        | {Fraction(n * 1000, 1001) for n in NTSC_BASES}
        | {Fraction(25, 2)}
    )
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VideoInfo:
    """One readable video. Sizes are as shown: turned upright, with square pixels."""

    path: Path
    stream_index: int  # of the video stream in the file
    codec: str  # decoder's name, "h264"
    width: int  # pixels, as shown
    height: int
    rotation: int  # degrees clockwise that turn a decoded picture upright: 0, 90, 180 or 270
    mirrored: bool  # whether a decoded picture is to be flipped left to right before it is turned
    times: np.ndarray  # (N,) int64, ascending: presentation times in ticks of time_base, the file's own clock
    time_base: Fraction  # seconds a tick
    rate: Fraction  # frames a second; of a variable video the average, rounded up within RATE_SLACK
    duration: Fraction  # seconds of picture, the last frame's own duration included
    constant_rate: bool  # then frame i is shown at exactly i / rate, however coarse the ticks are
    key_frames: (
        np.ndarray
    )  # (M, 2) int64, ascending: time of a picture decoding can start at; where to seek for it
    times_by_count: bool = False  # AVI: a packet's time says its rank in the file, not its picture's time
    hdr: bool = False  # PQ or HLG; decoding maps it to ordinary range
    has_audio: bool = False
    audio_offset: Fraction = Fraction(0)  # seconds from the first picture to the first sound; may be negative
    warnings: tuple[str, ...] = ()  # what a user should know, in sentences

    @property
    def num_frames(self) -> int:
        """Frames in the file, ≥ 1."""
        return len(self.times)

    @property
    def start(self) -> Fraction:
        """Seconds on the file's clock at which the video clock begins."""
        return int(self.times[0]) * self.time_base


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Packets:
    """What demuxing tells."""

    times: np.ndarray  # (N,) int64 sorted, unique
    last_ticks: int  # own duration of the packet shown last; 0 = not said
    key_frames: np.ndarray  # (M, 2) int64
    in_order: bool  # packets lie in the file in the order of their times


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Picture:
    """What the first picture tells."""

    width: int  # pixels, as decoded
    height: int
    time: int | None  # ticks
    rotation: int
    mirrored: bool
    transfer: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How fast a video runs and how long it lasts."""

    rate: Fraction
    duration: Fraction
    constant: bool


def probe_video(path: Path) -> VideoInfo:
    """Read what a video file is.

    Raises BadMedia where the file is missing, empty, cut off, not a video, without pictures or times, or of a
    size that cannot be used.
    """
    _check_file(path)
    with open_media(path) as container:
        stream = _video_stream(container, path)
        aspect = stream.sample_aspect_ratio or Fraction(1)
        time_base = stream.time_base or Fraction(1, 1000)
        declared = stream.average_rate or stream.guessed_rate
        picture = _first_picture(container, stream, path)
        by_count = "avi" in container.format.name.split(",")
        codec, index = stream.codec_context.name, stream.index
    packets = _scan(path, index)
    times = packets.times
    if picture.time is not None and times[0] < picture.time <= times[-1]:
        times = times[times >= picture.time]  # what precedes the first decodable picture can never be shown
    width, height = shown_size(picture.width, picture.height, aspect=aspect, rotation=picture.rotation)
    _check_size(width, height, path)
    timing = measure(times, time_base=time_base, last_ticks=packets.last_ticks, declared=declared)
    if timing is None:
        raise BadMedia(
            f"how long {path.name} lasts cannot be told from it; convert it to an MP4 and try again"
        )
    offset, sound_warning = _first_sound(path, int(times[0]) * time_base)
    hdr = picture.transfer in HDR_TRANSFERS
    return VideoInfo(
        path=path,
        stream_index=index,
        codec=codec,
        width=width,
        height=height,
        rotation=picture.rotation,
        mirrored=picture.mirrored,
        times=times,
        time_base=time_base,
        rate=timing.rate,
        duration=timing.duration,
        constant_rate=timing.constant,
        key_frames=packets.key_frames,
        times_by_count=by_count and packets.in_order,
        hdr=hdr,
        has_audio=offset is not None,
        audio_offset=offset or Fraction(0),
        warnings=_warnings(path, hdr, sound_warning),
    )


@contextmanager
def open_media(path: Path) -> Iterator[InputContainer]:
    """Open a media file for reading, close it behind the block. Raises BadMedia where it cannot be opened."""
    try:
        container = av.open(
            f"file:{path}",
            container_options={"format_whitelist": FORMATS, "protocol_whitelist": "file"},
            metadata_errors="replace",
        )
    except (FFmpegError, UnicodeError) as error:
        raise BadMedia(_why_not_opened(path)) from error
    with container:
        yield container


def picture_stream(container: InputContainer, index: int) -> VideoStream:
    """The video stream with this index; packets of all others are skipped while reading."""
    for other in container.streams:
        other.discard = Discard.all if other.index != index else Discard.default
    return next(stream for stream in container.streams.video if stream.index == index)


def sound_stream(container: InputContainer) -> AudioStream | None:
    """The first sound stream there is a decoder for; packets of all others are skipped while reading."""
    chosen = next((stream for stream in container.streams.audio if stream.codec_context is not None), None)
    for other in container.streams:
        other.discard = Discard.default if other is chosen else Discard.all
    return chosen


def measure(
    times: np.ndarray, *, time_base: Fraction, last_ticks: int = 0, declared: Fraction | None = None
) -> Timing | None:
    """Rate and duration from frame times; None where one frame alone gives neither.

    `times` (N,) int64 ascending ticks; `last_ticks` the last frame's own duration, 0 where the file does not
    say it; `declared` what the file calls its rate.
    """
    count = len(times)
    if count == 1:
        last = last_ticks * time_base or (1 / declared if declared else None)
        return None if last is None else Timing(rate=1 / last, duration=last, constant=True)
    rate = constant_rate(times, time_base=time_base, declared=declared)
    if rate is not None:
        # A last frame longer than the others is held on purpose; a shorter one is what careless writers make.
        last = last_ticks * time_base
        held = last if last > 1 / rate + time_base else 1 / rate
        return Timing(rate=rate, duration=(count - 1) / rate + held, constant=True)
    usual_gap = int(np.median(np.diff(times)))
    last = last_ticks if 2 * last_ticks >= usual_gap else usual_gap
    duration = (int(times[-1] - times[0]) + last) * time_base
    exact = count / duration
    ceiling = min(exact * (1 + RATE_SLACK), exact * (1 + Fraction(1, 2 * count)))  # the same number of frames
    return Timing(rate=simplest_between(exact, ceiling), duration=duration, constant=False)


def constant_rate(
    times: np.ndarray, *, time_base: Fraction, declared: Fraction | None = None
) -> Fraction | None:
    """The rate whose ideal times i / rate all lie within one tick of `times`; None if there is none.

    `times` (N,) int64 ticks, N ≥ 2. Of several such rates: the usual one next to what the file declares, else
    the simplest.
    """
    steps = np.diff(times)
    if int(np.median(steps)) < MAX_TICK_SHARE:
        return 1 / (int(steps[0]) * time_base) if (steps == steps[0]).all() else None
    elapsed = (times - times[0])[1:]
    ranks = np.arange(1, len(times))
    first, last = int(np.argmax(ranks / (elapsed + 1))), int(np.argmin(ranks / np.maximum(elapsed - 1, 1)))
    low = Fraction(first + 1, int(elapsed[first]) + 1) / time_base
    high = Fraction(last + 1, max(int(elapsed[last]) - 1, 1)) / time_base
    if low > high:
        return None
    believed = [declared] if declared is not None and low <= declared <= high else []
    hint = believed[0] if believed else len(elapsed) / (int(elapsed[-1]) * time_base)
    usual = sorted((rate for rate in USUAL_RATES if low <= rate <= high), key=lambda rate: abs(rate - hint))
    for rate in [*usual[:1], *believed, simplest_between(low, high)]:
        if _fits(elapsed, rate * time_base):
            return rate
    return None


def simplest_between(low: Fraction, high: Fraction) -> Fraction:
    """The fraction with the smallest terms in [low, high], 0 < low ≤ high (down the Stern-Brocot tree)."""
    whole = floor(low)
    if whole == low:
        return Fraction(whole)
    if whole + 1 <= high:
        return Fraction(whole + 1)
    return whole + 1 / simplest_between(1 / (high - whole), 1 / (low - whole))


def shown_size(width: int, height: int, *, aspect: Fraction, rotation: int) -> tuple[int, int]:
    """Width and height of the upright picture with square pixels; enlarges, so that nothing is lost."""
    if aspect > 1:
        width = round(width * aspect)
    elif 0 < aspect < 1:
        height = round(height / aspect)
    return (height, width) if rotation in (90, 270) else (width, height)


def orientation(matrix: np.ndarray) -> tuple[int, bool]:
    """Degrees clockwise and mirroring (done first) that a display matrix asks for.

    `matrix` (9,) int32: a b u, c d v, x y w (ISO/IEC 14496-12). Other angles go to the nearest quarter turn.
    """
    (a, b), (c, d) = matrix.reshape(3, 3)[:2, :2].astype(np.float64)
    mirrored = a * d - b * c < 0
    right = (-a, -b) if mirrored else (a, b)  # where the picture's rightward direction goes
    return round(np.degrees(np.arctan2(right[1], right[0])) / 90) % 4 * 90, mirrored


def _fits(elapsed: np.ndarray, rate: Fraction) -> bool:
    """Whether each of `elapsed` (ticks, for ranks 1…) lies within one tick of rank / rate (frames a tick)."""
    top, bottom = rate.numerator, rate.denominator
    return all(
        abs(ticks * top - rank * bottom) <= top for rank, ticks in enumerate(elapsed.tolist(), start=1)
    )


def _check_file(path: Path) -> None:
    if not path.exists():
        raise BadMedia(f"the video {path} does not exist; check the path")
    if not path.is_file():
        raise BadMedia(f"{path} is a folder, not a video file; give the path of the file itself")
    if path.stat().st_size == 0:
        raise BadMedia(f"the video {path.name} is empty (0 bytes); copy or download it again")


def _why_not_opened(path: Path) -> str:
    try:
        with path.open("rb") as file:
            kind = file.read(12)[4:8]
    except OSError as error:
        return f"the video {path} cannot be opened ({error.strerror}); check the path and its permissions"
    if kind in (b"ftyp", b"mdat", b"moov", b"free", b"wide"):
        return (
            f"the video {path.name} is cut off: its index (moov) is missing or damaged, as after a broken "
            "download; copy it again"
        )
    return (
        f"{path.name} is not a video this program can read; pass a file such as MP4, MOV, MKV, WebM or AVI, "
        "not a picture, a playlist or a text"
    )


def _video_stream(container: InputContainer, path: Path) -> VideoStream:
    """The stream that holds the film: not the cover picture of a song."""
    if container.metadata.get("major_brand", "").strip() in PICTURE_BRANDS:
        raise BadMedia(f"{path.name} is a picture, not a video; pass a video file")
    covers = Disposition.attached_pic | Disposition.timed_thumbnails
    films = [stream for stream in container.streams.video if not stream.disposition & covers]
    if not films:
        what = "sound only" if container.streams.audio else "no pictures"
        raise BadMedia(f"{path.name} holds {what}; pass a video with a picture track")
    readable = [stream for stream in films if stream.codec_context is not None]
    if not readable:
        raise BadMedia(
            f"the picture track of {path.name} has a coding unknown to this program; convert it to H.264"
        )
    return max(
        readable, key=lambda stream: (bool(stream.disposition & Disposition.default), stream.width or 0)
    )


def _scan(path: Path, index: int) -> _Packets:
    """Times of all packets that will be shown."""
    times: list[int] = []
    keys: dict[int, int] = {}
    lengths: dict[int, int] = {}
    timeless = 0
    with open_media(path) as container:
        stream = picture_stream(container, index)
        vp8 = stream.codec_context.name in ("vp8", "libvpx")
        try:
            for packet in container.demux(stream):
                if packet.size == 0 or packet.is_discard or (vp8 and _is_hidden_vp8(packet)):
                    continue
                if packet.pts is None:
                    timeless += 1
                    continue
                times.append(packet.pts)
                lengths[packet.pts] = packet.duration or 0
                if packet.is_keyframe:
                    keys[packet.pts] = packet.pts if packet.dts is None else min(packet.pts, packet.dts)
        except FFmpegError as error:
            raise BadMedia(_breaks_off(path)) from error
        _check_whole(container, stream, path, times)
    if not times:
        what = "no frame times (a raw stream?); put it into an MP4 or MKV" if timeless else "no frames"
        raise BadMedia(f"the video {path.name} holds {what}")
    ordered = np.unique(np.array(times, np.int64))
    return _Packets(
        times=ordered,
        last_ticks=lengths[int(ordered[-1])],
        key_frames=np.array(sorted(keys.items()), np.int64).reshape(-1, 2),
        in_order=all(earlier < later for earlier, later in pairwise(times)),
    )


def _is_hidden_vp8(packet: Packet) -> bool:
    """Whether a VP8 frame is only referred to, never shown (RFC 6386, 9.1: bit 4 is show_frame)."""
    return not bytes(packet)[0] & 0x10


def _check_whole(container: InputContainer, stream: VideoStream, path: Path, times: list[int]) -> None:
    """Notice a file that stops in the middle though its head promises more."""
    kind = container.format.name.split(",")[0]
    size = path.stat().st_size
    broken = kind in ("mov", "avi") and any(entry.pos + entry.size > size for entry in stream.index_entries)
    broken |= kind == "avi" and stream.frames > len(times) + max(2, len(times) // 50)
    if kind in ("matroska", "flv") and container.duration and times and stream.time_base:
        promised = container.duration / av.time_base
        until = promised - max(1.0, promised * 0.03)  # heads are not exact to the frame
        broken |= max(times) * stream.time_base < until and _sound_ends(path) < until
    if broken:
        raise BadMedia(_breaks_off(path))


def _sound_ends(path: Path) -> float:
    """Seconds at which the last sound packet begins; 0 without sound."""
    with open_media(path) as container:
        if not container.streams.audio:
            return 0.0
        begins = (
            packet.pts * packet.time_base for packet in container.demux(audio=0) if packet.pts is not None
        )
        return float(max(begins, default=0))


def _breaks_off(path: Path) -> str:
    return f"the video {path.name} breaks off in the middle: the file is incomplete or damaged; copy it again"


def _first_picture(container: InputContainer, stream: VideoStream, path: Path) -> _Picture:
    """Decode one picture: the proof that the file works."""
    _check_size(stream.codec_context.width or MIN_SIDE, stream.codec_context.height or MIN_SIDE, path)
    frame = _first_frame(container, stream, LATEST_PICTURE)
    if not isinstance(frame, VideoFrame):
        raise BadMedia(
            f"no picture of {path.name} ({stream.codec_context.name}) can be decoded: there is none, or the "
            "file is damaged or encrypted; copy it again, or convert it to H.264"
        )
    matrix = frame.side_data.get("DISPLAYMATRIX")
    turn = orientation(np.frombuffer(bytes(matrix), np.int32)[:9]) if matrix is not None else (0, False)
    return _Picture(
        width=frame.width,
        height=frame.height,
        time=frame.pts,
        rotation=turn[0],
        mirrored=turn[1],
        transfer=frame.color_trc,
    )


def _first_frame(
    container: InputContainer, stream: VideoStream | AudioStream, latest: int
) -> VideoFrame | AudioFrame | None:
    """The first frame that can be decoded from a stream's first `latest` packets."""
    with suppress(FFmpegError):
        for number, packet in enumerate(container.demux(stream)):
            with suppress(FFmpegError):
                for frame in packet.decode():
                    if isinstance(frame, VideoFrame | AudioFrame):
                        return frame
            if number >= latest:
                break
    return None


def _first_sound(path: Path, video_start: Fraction) -> tuple[Fraction | None, str]:
    """Seconds from the first picture to the first sound, or None and, where it is unreadable, a sentence."""
    with open_media(path) as container:
        if not container.streams.audio:
            return None, ""
        stream = sound_stream(container)
        frame = _first_frame(container, stream, LATEST_SOUND) if stream is not None else None
        if frame is None or frame.pts is None or frame.time_base is None:
            return None, f"the sound of {path.name} cannot be decoded; the result has none"
        return frame.pts * frame.time_base - video_start, ""


def _check_size(width: int, height: int, path: Path) -> None:
    if min(width, height) < MIN_SIDE:
        raise BadMedia(
            f"the video {path.name} is {width}×{height} pixels; at least {MIN_SIDE} a side are needed"
        )
    if max(width, height) > MAX_SIDE:
        raise BadMedia(
            f"the video {path.name} is {width}×{height} pixels; scale it to at most {MAX_SIDE} a side"
        )


def _warnings(path: Path, hdr: bool, sound: str) -> tuple[str, ...]:
    high_range = f"{path.name} is HDR; its colours were mapped to ordinary range, and highlights are clipped"
    return tuple(sentence for sentence in (high_range if hdr else "", sound) if sentence)
