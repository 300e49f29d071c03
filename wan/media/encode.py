"""Finished frames and the source's sound in, one MP4 out: H.264 yuv420p BT.709, AAC, index in front.

Streams both: holds what the encoders look ahead, never the film or the whole sound. The file appears under
its name only when it is complete. Knows nothing about where frames come from.
"""

import errno
import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor
from pathlib import Path
from types import TracebackType
from typing import Self
from uuid import uuid4

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.container import OutputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from av.video.stream import VideoStream

from ..runtime.errors import DiskFull, InvalidInput
from .probe import VideoInfo, open_media, sound_stream

PRESET = "fast"  # 70 frames/s of 720p on 2 cores and 0.2 dB below "medium", which makes 44 (measured)
# x264's macroblock tree reads memory it never wrote: the same frames gave other B frames in 2 of 16 runs
# (measured at 240×272 over a dirtied heap). The same request must give the same file.
EXACT = "mbtree=0"
MAX_ENCODER_THREADS = 16  # x264 loses quality with more, and each holds frames
BT709 = 1  # primaries, transfer and matrix, ISO/IEC 23091-2
SCALING = Interpolation.BILINEAR | Interpolation.ACCURATE_RND  # flat colours come back within one step of 255
SOUND_RATES = (44_100, 48_000)  # kept; any other becomes the last
SOUND_BITS = 192_000  # a second
PACKET_SAMPLES = 1024  # of AAC
JUMP = Fraction(1, 20)  # seconds of gap or overlap in the source's sound times that are real, not rounding
PREROLL = Fraction(1, 2)  # seconds of sound decoded before the first kept one, to warm the decoder up
NO_ROOM = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
NO_ENTRY = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.EROFS)


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioTrack:
    """Which sound goes under a video."""

    path: Path  # file with the sound
    start_s: Fraction  # seconds on the video clock at which the output begins
    clock_zero: Fraction  # seconds on the file's own clock at which the video clock begins

    @classmethod
    def of(cls, info: VideoInfo, *, start_s: Fraction = Fraction(0)) -> "AudioTrack | None":
        """The sound of a probed video from `start_s` on; None where it has none."""
        return cls(path=info.path, start_s=start_s, clock_zero=info.start) if info.has_audio else None


class VideoWriter:
    """Write frames, in order, into an MP4.

        with VideoWriter(path, width=1280, height=720, fps=Fraction(30)) as writer:
            writer.write(frames)  # (n, H, W, 3) uint8 RGB

    Until the block ends without an error there is only a hidden file beside `path`; with an error there is
    nothing. Picture and sound end within one AAC packet of each other: the sound is cut, or filled up with
    silence. Raises DiskFull where there is no room left.
    """

    def __init__(
        self,
        path: Path,
        *,
        width: int,
        height: int,
        fps: Fraction,
        quality: int = 18,
        metadata: Mapping[str, str] | None = None,
        audio: AudioTrack | None = None,
    ) -> None:
        """`quality` is the constant rate factor, 0 (lossless) … 51; `metadata` becomes tags of the MP4.

        Opens nothing yet. Raises ValueError for odd sides or a rate that MP4 cannot hold.
        """
        if width % 2 or height % 2 or width <= 0 or height <= 0:
            raise ValueError(f"H.264 yuv420p needs even sides, got {width}×{height}")
        if fps <= 0 or max(fps.numerator, fps.denominator) >= 2**31:
            raise ValueError(f"frame rate {fps} cannot be written")
        self.path, self.width, self.height, self.fps = path, width, height, fps
        self.num_frames = 0  # written so far
        self._quality, self._metadata, self._audio = quality, dict(metadata or {}), audio
        self._partial = path.with_name(f".{path.name}.{uuid4().hex[:8]}.part")
        self._container: OutputContainer | None = None
        self._sound: _Sound | None = None
        self._converter = VideoReformatter()

    def __enter__(self) -> Self:
        try:
            with self._disk():
                self._open()
        except BaseException:
            self._discard()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._discard()
            return
        try:
            with self._disk():
                self._finish()
        except BaseException:
            self._discard()
            raise

    def write(self, frames: np.ndarray) -> None:
        """Append frames: (n, H, W, 3) uint8 RGB."""
        if frames.dtype != np.uint8 or frames.shape[1:] != (self.height, self.width, 3):
            raise ValueError(f"frames must be uint8 (n, {self.height}, {self.width}, 3), got {frames.shape}")
        with self._disk():
            for image in frames:
                self._mux(self._video.encode(self._converted(image)))
                self.num_frames += 1
                self._pump_sound()

    def _open(self) -> None:
        options = {"movflags": "+faststart+use_metadata_tags"}
        container = av.open(f"file:{self._partial}", "w", format="mp4", options=options)
        self._container = container
        container.metadata.update({key: value for key, value in self._metadata.items() if value})
        video = container.add_stream(
            "libx264",
            rate=self.fps,
            options={"crf": str(self._quality), "preset": PRESET, "x264-params": EXACT},
        )
        video.width, video.height, video.pix_fmt = self.width, self.height, "yuv420p"
        video.codec_context.thread_count = min(os.cpu_count() or 1, MAX_ENCODER_THREADS)
        video.color_primaries = video.color_trc = video.colorspace = BT709
        video.color_range = ColorRange.MPEG
        self._video: VideoStream = video
        if self._audio is not None:
            self._sound = _Sound(self._audio)
            self._aac = container.add_stream("aac", rate=self._sound.rate, layout=self._sound.layout)
            self._aac.bit_rate = SOUND_BITS
        container.start_encoding()  # opens the file: a folder that cannot be written is told now

    def _converted(self, image: np.ndarray) -> VideoFrame:
        rgb = VideoFrame.from_numpy_buffer(np.ascontiguousarray(image), format="rgb24")
        frame = self._converter.reformat(
            rgb,
            format="yuv420p",
            dst_colorspace=Colorspace.ITU709,
            dst_color_range=ColorRange.MPEG,
            interpolation=SCALING,
            threads=1,  # 1.4 ms a 720p frame; the encoder uses the other cores
        )
        frame.pts, frame.time_base = self.num_frames, 1 / self.fps
        return frame

    def _pump_sound(self, *, to_the_end: bool = False) -> None:
        """Write sound up to where the picture is, in whole packets; at the end the rest."""
        if self._sound is None:
            return
        due = ceil(self.num_frames / self.fps * self._sound.rate) - self._sound.taken
        while due >= PACKET_SAMPLES or (to_the_end and due > 0):
            count = min(due, PACKET_SAMPLES)
            self._mux(self._aac.encode(self._sound.take(count)))
            due -= count

    def _mux(self, packets: Sequence[Packet]) -> None:
        assert self._container is not None
        self._container.mux(packets)

    def _finish(self) -> None:
        if not self.num_frames:
            raise ValueError(f"no frame was written to {self.path}")
        assert self._container is not None
        self._mux(self._video.encode())
        if self._sound is not None:
            self._pump_sound(to_the_end=True)
            self._mux(self._aac.encode())
            self._sound.close()
        self._container.close()
        self._partial.replace(self.path)

    def _discard(self) -> None:
        if self._sound is not None:
            self._sound.close()
        if self._container is not None:
            with suppress(FFmpegError):
                self._container.close()
        self._partial.unlink(missing_ok=True)

    @contextmanager
    def _disk(self) -> Iterator[None]:
        """Tell a full disk and a folder that cannot be written from other errors."""
        try:
            yield
        except OSError as error:  # FFmpeg's errors with a system's error number are OSErrors too
            if error.errno in NO_ROOM:
                raise DiskFull(
                    f"no room left in {self.path.parent} after {self.num_frames} frames of {self.path.name}; "
                    "free some space or write to another disk"
                ) from error
            if error.errno in NO_ENTRY:
                raise InvalidInput(
                    f"{self.path} cannot be written ({error.strerror}); choose another output folder"
                ) from error
            raise


class _Sound:
    """The source's sound as an endless signal that begins with the output; silence where there is none."""

    def __init__(self, track: AudioTrack) -> None:
        self._blocks = _blocks(track)
        self._block = next(self._blocks, None)
        self.rate = self._block.rate if self._block else SOUND_RATES[-1]
        self.layout = self._block.layout if self._block else "stereo"
        self.taken = 0  # samples handed out

    def take(self, count: int) -> AudioFrame:
        """The next `count` samples."""
        out = np.zeros((1 if self.layout == "mono" else 2, count), np.float32)
        start, stop = self.taken, self.taken + count
        while self._block is not None and self._block.start < stop:
            low, high = max(self._block.start, start), min(self._block.stop, stop)
            if low < high:
                out[:, low - start : high - start] = self._block.samples[
                    :, low - self._block.start : high - self._block.start
                ]
            if self._block.stop > stop:
                break
            self._block = next(self._blocks, None)
        frame = AudioFrame.from_ndarray(out, format="fltp", layout=self.layout)
        frame.sample_rate, frame.pts, frame.time_base = self.rate, start, Fraction(1, self.rate)
        self.taken = stop
        return frame

    def close(self) -> None:
        """Close the source file."""
        self._blocks.close()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Block:
    """A stretch of sound on the output's clock."""

    start: int  # sample number; negative before the output begins
    samples: np.ndarray  # (channels, n) float32
    rate: int  # samples a second
    layout: str

    @property
    def stop(self) -> int:
        return self.start + self.samples.shape[1]


def _blocks(track: AudioTrack) -> Generator[_Block, None, None]:
    """Decoded and resampled sound in order of time; gaps in the source stay gaps."""
    begin = track.clock_zero + track.start_s  # on the file's clock
    run: _Run | None = None
    with closing(_sound_frames(track.path, begin)) as frames:
        for frame in frames:
            time = _time(frame) - begin
            if run is None or not run.continues(frame, time):
                if run is not None:
                    yield from run.blocks(None)
                run = _Run(frame, time, run)
            yield from run.blocks(frame)
        if run is not None:
            yield from run.blocks(None)


class _Run:
    """A stretch of sound of one kind without a gap: its resampler, and where it is on the output's clock."""

    def __init__(self, frame: AudioFrame, time: Fraction, before: "_Run | None") -> None:
        kept = frame.sample_rate if frame.sample_rate in SOUND_RATES else SOUND_RATES[-1]
        self.rate = before.rate if before else kept
        self.layout = before.layout if before else "mono" if frame.layout.nb_channels == 1 else "stereo"
        self._resampler = AudioResampler(format="fltp", layout=self.layout, rate=self.rate)
        self._kind = _kind(frame)
        self._due = time  # seconds at which the next source frame belongs
        self._position = round(time * self.rate)  # samples

    def continues(self, frame: AudioFrame, time: Fraction) -> bool:
        return _kind(frame) == self._kind and abs(time - self._due) <= JUMP

    def blocks(self, frame: AudioFrame | None) -> Iterator[_Block]:
        """What one more source frame gives; None: what the resampler still holds."""
        if frame is not None:
            self._due += Fraction(frame.samples, frame.sample_rate)
        for piece in self._resampler.resample(frame):
            yield _Block(start=self._position, samples=piece.to_ndarray(), rate=self.rate, layout=self.layout)
            self._position += piece.samples


def _sound_frames(path: Path, begin: Fraction) -> Generator[AudioFrame, None, None]:
    """Decoded sound from shortly before `begin` (seconds on the file's clock) on, without damaged packets."""
    with open_media(path) as container:
        stream = sound_stream(container)
        if stream is None:
            return
        first = stream.start_time or 0
        target = floor((begin - PREROLL) / stream.time_base) if stream.time_base else first
        if target > first:
            with suppress(FFmpegError):  # then from the beginning
                container.seek(target, stream=stream)
        with suppress(FFmpegError):  # a file that cannot be read on: silence from there
            for packet in container.demux(stream):
                with suppress(FFmpegError):
                    yield from (frame for frame in packet.decode() if frame.pts is not None)


def _time(frame: AudioFrame) -> Fraction:
    """Seconds on the file's clock; frames without a time were left out before."""
    return (frame.pts or 0) * (frame.time_base or Fraction(1, frame.sample_rate))


def _kind(frame: AudioFrame) -> tuple[int, str, str]:
    return frame.sample_rate, frame.layout.name, frame.format.name
