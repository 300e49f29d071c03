"""Small real videos and sounds for tests: written with PyAV, read by the code under test.

Pictures carry their number as blocks of black and white, so that a test can say which frame it was given even
after lossy coding.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer

WIDTH, HEIGHT = 64, 48  # pixels of a test clip where a test does not say
BITS = 8  # of a frame's number
BARS = (  # R, G, B
    (255, 255, 255),
    (255, 255, 0),
    (0, 255, 255),
    (0, 255, 0),
    (255, 0, 255),
    (255, 0, 0),
    (0, 0, 255),
    (128, 128, 128),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sound:
    """Short beeps in silence."""

    seconds: float = 1.0
    start_s: float = 0.0  # on the file's clock, like the beeps
    beeps: tuple[float, ...] = ()  # seconds at which a beep of 50 ms begins
    rate: int = 48_000
    layout: str = "stereo"
    codec: str = "aac"


def numbered(number: int, *, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """(H, W, 3) uint8: the upper half tells `number` (0…255) in blocks, the lower half moves with it."""
    image = np.zeros((height, width, 3), np.uint8)
    block = width // BITS
    for bit in range(BITS):
        image[: height // 2, bit * block : (bit + 1) * block] = 255 * (number >> bit & 1)
    image[height // 2 :] = (np.arange(width)[:, None] * 3 + number * 5 + np.array([0, 40, 80])) % 256
    return image


def number_of(image: np.ndarray) -> int:
    """The number a picture made by `numbered` carries; it may have been scaled."""
    height, width = image.shape[:2]
    block = width / BITS
    row = image[height // 4, :, 1]
    return sum(int(row[int((bit + 0.5) * block)] > 127) << bit for bit in range(BITS))


def bars(*, width: int = 256, height: int = 64) -> np.ndarray:
    """(H, W, 3) uint8: eight flat colours side by side."""
    return np.repeat(np.repeat(np.array([BARS], np.uint8), width // len(BARS), 1), height, 0)


def yuv_frame(rgb: np.ndarray, *, kr: float, kb: float, full: bool) -> av.VideoFrame:
    """RGB (H, W, 3) uint8 → yuv444p by the textbook formula with these luma weights and range."""
    red, green, blue = np.moveaxis(rgb / 255, 2, 0)
    luma = kr * red + (1 - kr - kb) * green + kb * blue
    planes = [luma, (blue - luma) / (2 - 2 * kb), (red - luma) / (2 - 2 * kr)]
    low, luma_range, chroma_range = (0, 255, 255) if full else (16, 219, 224)
    scaled = [low + luma_range * planes[0], *(128 + chroma_range * plane for plane in planes[1:])]
    frame = av.VideoFrame.from_ndarray(np.clip(np.round(scaled), 0, 255).astype(np.uint8), "yuv444p")
    frame.color_range = 2 if full else 1
    return frame


def write_video(
    path: Path,
    frames: int | Iterable[np.ndarray | av.VideoFrame] = 10,
    *,
    rate: Fraction | int = 25,
    times: Sequence[int] | None = None,
    time_base: Fraction | None = None,
    codec: str = "libx264",
    format: str | None = None,
    options: Mapping[str, str] | None = None,
    muxing: Mapping[str, str] | None = None,
    pixels: str = "yuv420p",
    turn: int = 0,
    mirrored: bool = False,
    aspect: Fraction | None = None,
    colour: Mapping[str, int] | None = None,
    sound: Sound | None = None,
) -> Path:
    """Write a video file and return its path.

    `frames` are RGB pictures (or what the encoder takes), or how many numbered ones to make. `times` (ticks
    of `time_base`) make the rate variable. A player turns each picture by `turn` degrees clockwise, then
    mirrors it left to right. `colour` are tags of the codec context.
    """
    pictures = [numbered(i) for i in range(frames)] if isinstance(frames, int) else list(frames)
    first = pictures[0]
    width, height = (first.width, first.height) if isinstance(first, av.VideoFrame) else first.shape[1::-1]
    rate = Fraction(rate)
    with av.open(path, "w", format=format, options=dict(muxing or {})) as container:
        stream = container.add_stream(codec, rate=rate, options=dict(options or {}))
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        stream.codec_context.time_base = time_base or 1 / rate
        if turn or mirrored:
            stream.set_display_rotation(-turn, hflip=mirrored)
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        for tag, value in (colour or {}).items():
            setattr(stream, tag, value)
        audio = container.add_stream(sound.codec, rate=sound.rate, layout=sound.layout) if sound else None
        for number, picture in enumerate(pictures):
            frame = picture
            if isinstance(picture, np.ndarray):
                frame = av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format=pixels)
            frame.pts = number if times is None else times[number]
            frame.time_base = time_base or 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if sound is not None:
            for frame in sound_frames(sound):
                container.mux(audio.encode(frame))
            container.mux(audio.encode())
    return path


def sound_frames(sound: Sound) -> Iterable[av.AudioFrame]:
    """The sound in frames of 1024 samples, interleaved 16-bit."""
    channels = av.AudioLayout(sound.layout).nb_channels
    clock = sound.start_s + np.arange(round(sound.seconds * sound.rate)) / sound.rate
    wave = np.zeros(len(clock))
    for beep in sound.beeps:
        here = clock[(clock >= beep) & (clock < beep + 0.05)] - beep
        wave[(clock >= beep) & (clock < beep + 0.05)] = np.sin(2 * np.pi * 1000 * here)
    samples = np.repeat((wave * 16_000).astype(np.int16)[:, None], channels, 1)  # (n, channels)
    first = round(sound.start_s * sound.rate)
    for start in range(0, len(samples), 1024):
        piece = samples[start : start + 1024]
        frame = av.AudioFrame.from_ndarray(piece.reshape(1, -1).copy(), format="s16", layout=sound.layout)
        frame.sample_rate, frame.pts, frame.time_base = sound.rate, first + start, Fraction(1, sound.rate)
        yield frame


def read_sound(path: Path) -> tuple[np.ndarray, int, float]:
    """What a file sounds like: (channels, n) float32, samples a second, seconds at which it begins."""
    with av.open(path) as container:
        frames = list(container.decode(audio=0))
    plain = av.AudioResampler(format="fltp")
    samples = [piece.to_ndarray() for frame in frames for piece in plain.resample(frame)]
    return np.concatenate(samples, 1), frames[0].sample_rate, float(frames[0].time or 0)


def beeps_in(path: Path) -> list[float]:
    """Seconds on the file's clock at which beeps begin in its sound."""
    samples, rate, start = read_sound(path)
    loud = np.abs(samples).max(0) > 0.1
    onsets = [i for i in np.flatnonzero(loud) if not loud[max(i - rate // 50, 0) : i].any()]
    return [start + i / rate for i in onsets]


def packet_times(path: Path) -> list[int]:
    """Presentation times of the picture packets, ascending, as the file has them."""
    with av.open(path) as container:
        assert isinstance(container, InputContainer)
        return sorted(p.pts for p in container.demux(video=0) if p.pts is not None)


def cut_off(path: Path, *, share: float = 0.6) -> Path:
    """A copy of a file that stops in the middle."""
    data = path.read_bytes()
    short = path.with_name(f"cut_{path.name}")
    short.write_bytes(data[: int(len(data) * share)])
    return short
