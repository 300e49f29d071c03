"""Frames of a video by output number: which source frame each one is (pure), and those frames, streamed.

A probed video in (probe.py), upright RGB frames out: any range, again and again, a few at a time. Knows
nothing about people or models.
"""

import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from fractions import Fraction
from math import floor, lcm
from pathlib import Path

import cv2
import numpy as np
from av.codec.context import ThreadType
from av.error import FFmpegError
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import (
    ColorPrimaries,
    ColorRange,
    Colorspace,
    ColorTrc,
    Interpolation,
    VideoReformatter,
)

from ..runtime.errors import BadMedia, InvalidInput
from .probe import NTSC_BASES, VideoInfo, open_media, picture_stream, probe_video

KEEP_RATE = -1
NTSC_TOLERANCE = 0.005  # frames/s: 23.98 and 29.97 are meant as 24000/1001 and 30000/1001
MAX_FRAMES = 2_000_000  # of output, 18 hours at 30 frames/s; more comes from broken time stamps
MAX_THREADS = 8  # for decoding and for colours; each holds a frame, and what follows is slower than 8 anyway
HD_HEIGHT = 720  # lines from which untagged video is taken as BT.709, below as BT.601 (what players do)
UNTAGGED = (2, 3)  # colour matrix "unspecified" and "reserved", ISO/IEC 23091-2
# Accurate rounding and interpolated chroma: 7 ms a 1080p frame on one core instead of 1 ms, but the plain
# converter is 1.1 steps of 255 off on average and up to 58 at coloured edges (measured on a real clip).
SCALING = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
TURNS = {90: cv2.ROTATE_90_CLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_COUNTERCLOCKWISE}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FramePlan:
    """Which source frame each output frame shows."""

    fps: Fraction  # of the output
    indices: np.ndarray  # (T,) int32, ascending: source frame of each output frame
    start_s: Fraction  # seconds on the video clock at which output frame 0 stands
    duration: Fraction  # seconds of source the output covers; T / fps is at most one frame less
    warnings: tuple[str, ...] = ()  # what was cut, in sentences

    @property
    def num_frames(self) -> int:
        """Output frames, ≥ 1."""
        return len(self.indices)


def exact_rate(fps: float | Fraction) -> Fraction:
    """The frame rate a decimal stands for: 29.97 → 30000/1001, 23.976 → 24000/1001, 12.5 → 25/2."""
    if isinstance(fps, Fraction):
        return fps
    if fps != int(fps):
        for base in NTSC_BASES:
            if abs(fps - base * 1000 / 1001) < NTSC_TOLERANCE:
                return Fraction(base * 1000, 1001)
    return Fraction(str(fps))


def plan_frames(
    info: VideoInfo,
    *,
    fps: float | Fraction = KEEP_RATE,
    start_s: float | Fraction = 0,
    duration_s: float | Fraction | None = None,
) -> FramePlan:
    """Choose the frames: T = max(1, floor(duration · fps)); frame i is the one nearest to start + i / fps.

    Ties go to the even index. `fps` −1 keeps the source's rate. A `duration_s` longer than what is left is
    cut, with a warning. Raises InvalidInput where the part begins at or behind the end, or a number makes no
    sense.
    """
    rate = info.rate if fps == KEEP_RATE else exact_rate(fps)
    start = Fraction(str(start_s))
    if rate <= 0 or start < 0 or (duration_s is not None and duration_s <= 0):
        raise InvalidInput(
            f"fps {fps}, start_s {start_s} and duration_s {duration_s} must be above zero (start_s may be 0)"
        )
    if start >= info.duration:
        raise InvalidInput(
            f"start_s {float(start):g} is at or behind the end of {info.path.name}, which lasts "
            f"{float(info.duration):.3f} s; choose an earlier start"
        )
    left = info.duration - start
    asked = left if duration_s is None else Fraction(str(duration_s))
    duration = min(asked, left)
    count = max(1, floor(duration * rate))
    if count > MAX_FRAMES:
        raise InvalidInput(
            f"{info.path.name} would give {count} frames ({float(duration):.0f} s at {float(rate):g} "
            "frames/s); choose a part with start_s and duration_s"
        )
    cut = f"duration_s {duration_s} was cut to {float(left):.3f}: {info.path.name} ends there"
    return FramePlan(
        fps=rate,
        indices=nearest_frames(info, count=count, fps=rate, start=start),
        start_s=start,
        duration=duration,
        warnings=(cut,) if asked > left else (),
    )


def nearest_frames(info: VideoInfo, *, count: int, fps: Fraction, start: Fraction) -> np.ndarray:
    """(count,) int32: the frame nearest in time to start + i / fps, ties to the even index. Exact."""
    last = info.num_frames - 1
    if info.constant_rate:  # ideal times: coarse ticks must not move a tie
        first, step = start * info.rate, info.rate / fps
        return np.array([min(round(first + i * step), last) for i in range(count)], np.int32)
    # All times as whole multiples of one unit, so that comparing is exact and quick.
    units = lcm(info.time_base.denominator, fps.numerator, start.denominator)  # a second
    tick, step, first = int(info.time_base * units), int(units / fps), int(start * units)
    times = [int(time) * tick for time in info.times - info.times[0]]
    chosen, index = [], 0
    for i in range(count):
        wanted = first + i * step
        while index < last and times[index + 1] <= wanted:
            index += 1
        before, after = wanted - times[index], (times[index + 1] - wanted) if index < last else None
        later = after is not None and (after < before or (after == before and index % 2 == 1))
        chosen.append(index + later)
    return np.array(chosen, np.int32)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SourceVideo:
    """A video as a sequence of output frames that can be read again and again, any range."""

    info: VideoInfo
    plan: FramePlan

    @property
    def num_frames(self) -> int:
        """Output frames, ≥ 1."""
        return self.plan.num_frames

    @property
    def fps(self) -> Fraction:
        """Output frames a second."""
        return self.plan.fps

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of every frame, pixels."""
        return self.info.height, self.info.width

    @property
    def indices(self) -> np.ndarray:
        """(T,) int32: source frame of each output frame."""
        return self.plan.indices

    def frames(self, start: int = 0, stop: int | None = None) -> Generator[np.ndarray, None, None]:
        """Output frames start … stop−1 in order: (H, W, 3) uint8 RGB, upright, read-only.

        A source frame shown several times is decoded once and yielded as the same array. The file is closed
        when the iterator ends or is dropped. Raises BadMedia at a frame that cannot be decoded.
        """
        stop = self.num_frames if stop is None else stop
        if not 0 <= start <= stop <= self.num_frames:
            raise ValueError(f"frames {start}…{stop} of a video of {self.num_frames}")
        picked = self.indices[start:stop]
        sources, repeats = np.unique(picked, return_counts=True)
        with closing(read_frames(self.info, sources.tolist())) as images:
            for image, times in zip(images, repeats, strict=True):
                for _ in range(times):
                    yield image


def open_video(
    path: Path,
    *,
    fps: float | Fraction = KEEP_RATE,
    start_s: float | Fraction = 0,
    duration_s: float | Fraction | None = None,
) -> SourceVideo:
    """Probe a file and plan its frames. Raises what `probe_video` and `plan_frames` raise."""
    info = probe_video(path)
    return SourceVideo(info=info, plan=plan_frames(info, fps=fps, start_s=start_s, duration_s=duration_s))


def read_frames(info: VideoInfo, sources: Sequence[int]) -> Generator[np.ndarray, None, None]:
    """Source frames by number (ascending, unique): (H, W, 3) uint8 RGB upright, read-only.

    Decoding starts at the nearest key frame before the first one. Where that does not give the frame (a key
    frame that needs earlier ones, an inexact seek), it starts further back, at last from the beginning.
    """
    done = 0
    starts = _starts(info, sources[0]) if sources else []
    for attempt, where in enumerate(starts, start=1):
        try:
            with closing(_decode(info, sources[done:], seek_to=where)) as images:
                for image in images:
                    yield image
                    done += 1
            return
        except _FrameMissingError as missing:
            if attempt == len(starts) or done:
                raise BadMedia(_undecodable(info, sources[done])) from missing


class _FrameMissingError(Exception):
    """The decoder went past a wanted frame without giving it."""


def _starts(info: VideoInfo, source: int) -> list[int | None]:
    """Where to begin decoding for a frame, best first: a time to seek, None for the file's beginning."""
    rank = int(np.searchsorted(info.key_frames[:, 0], info.times[source], side="right")) - 1
    starts: list[int | None] = [int(info.key_frames[k, 1]) for k in (rank, rank - 2) if k > 0]
    return [*starts, None]


def _decode(
    info: VideoInfo, sources: Sequence[int], *, seek_to: int | None
) -> Generator[np.ndarray, None, None]:
    """Frames `sources`, decoding from a key frame on. Raises _FrameMissingError where one does not come."""
    painter = _Painter(info)
    wanted = iter(sources)
    target = next(wanted, None)
    with closing(_numbered(info, seek_to)) as numbered:
        for number, frame in numbered:
            if target is None:
                return
            if number < target:
                continue
            if number > target:
                raise _FrameMissingError
            yield painter.paint(frame)
            target = next(wanted, None)
            if target is None:
                return
    if target is not None:
        raise _FrameMissingError


def _numbered(info: VideoInfo, seek_to: int | None) -> Generator[tuple[int, VideoFrame], None, None]:
    """Decoded frames with their numbers in the source, as they are shown; −1 for one before the first."""
    with open_media(info.path) as container:
        stream = picture_stream(container, info.stream_index)
        stream.codec_context.thread_type = ThreadType.AUTO
        stream.codec_context.thread_count = min(os.cpu_count() or 1, MAX_THREADS)
        if seek_to is not None:
            with suppress(FFmpegError):  # then from the beginning
                container.seek(seek_to, stream=stream, backward=True)
        counted: int | None = None
        for packet in _healthy(container.demux(stream)):
            if info.times_by_count and counted is None and packet.pts is not None:
                counted = int(np.searchsorted(info.times, packet.pts))
            try:
                frames = packet.decode()
            except FFmpegError:
                continue  # damaged: a wanted frame that does not come is noticed, others do not matter
            for frame in frames:
                if counted is not None:
                    yield counted, frame
                    counted += 1
                elif frame.pts is not None:
                    yield int(np.searchsorted(info.times, frame.pts, side="right")) - 1, frame


def _healthy(packets: Iterator[Packet]) -> Iterator[Packet]:
    """Packets up to where the file can no longer be read."""
    with suppress(FFmpegError):
        yield from packets


def _undecodable(info: VideoInfo, source: int) -> str:
    at = float((info.times[source] - info.times[0]) * info.time_base)
    return (
        f"frame {source} of {info.path.name}, at {at:.2f} s, cannot be decoded: the file is damaged there; "
        "trim with duration_s to the part before it, or with start_s to the part behind it"
    )


class _Painter:
    """Decoded frame → upright RGB array. Keeps one converter, so that its tables are made once."""

    def __init__(self, info: VideoInfo) -> None:
        self._info = info
        turned = info.rotation in TURNS and info.rotation != 180
        self._size = (info.height, info.width) if turned else (info.width, info.height)  # before turning
        self._converter = VideoReformatter()

    def paint(self, frame: VideoFrame) -> np.ndarray:
        """(H, W, 3) uint8 RGB, read-only."""
        info = self._info
        width, height = self._size
        guess = Colorspace.ITU709 if frame.height >= HD_HEIGHT else Colorspace.ITU601
        try:
            rgb = self._converter.reformat(
                frame,
                width=width,
                height=height,
                format="rgb24",
                src_colorspace=guess if frame.colorspace in UNTAGGED else None,
                dst_color_range=ColorRange.JPEG,
                dst_color_trc=ColorTrc.BT709 if info.hdr else None,
                dst_color_primaries=ColorPrimaries.BT709 if info.hdr else None,
                interpolation=SCALING,
                threads=min(os.cpu_count() or 1, MAX_THREADS),
            )
        except FFmpegError as error:
            raise BadMedia(
                f"the colours of {info.path.name} ({frame.format.name}) cannot be read; convert it to H.264"
            ) from error
        image = np.ascontiguousarray(rgb.to_ndarray())
        if info.mirrored:
            image = cv2.flip(image, 1)
        if info.rotation in TURNS:
            image = cv2.rotate(image, TURNS[info.rotation])
        image.flags.writeable = False
        return image
