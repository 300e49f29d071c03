"""Clip planning: frame counts in, clip windows out. Pure integers; knows no model and no pixels.

A video is made in clips of `clip_len` frames. Each clip but the first repeats the last `overlap` frames of
the one before it, which guide it. The last clip is filled by playing the video backwards (reflection), and
what comes out is cut to the real length.
"""

import math
from dataclasses import dataclass

from .runtime.errors import InvalidInput

OVERLAPS = (1, 5)  # reference: refert_num; 1 or 5 frames are one or two latent frames of the VAE
MIN_CLIP_FRAMES = 5  # one latent frame beyond the first


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """One window over the video."""

    index: int
    frames: tuple[int, ...]  # the video frame each of the clip's frames shows; repeats where it is reflected
    fresh: (
        slice  # the clip's frames that are new and real: without the overlap, without the reflected filling
    )


def check_window(*, clip_len: int, overlap: int) -> None:
    """Refuse windows the model cannot work with. Raises InvalidInput."""
    if clip_len < MIN_CLIP_FRAMES or clip_len % 4 != 1:
        below = max((clip_len - 1) // 4 * 4 + 1, MIN_CLIP_FRAMES)
        raise InvalidInput(
            f"clip_len is {clip_len}, but clips have 4n+1 frames, at least 5; use {below} or {below + 4}"
        )
    if overlap not in OVERLAPS:
        raise InvalidInput(f"refert_num is {overlap}, but only 1 or 5 frames can guide the next clip")
    if clip_len - overlap < overlap:
        raise InvalidInput(
            f"refert_num {overlap} leaves {clip_len - overlap} new frames in a clip of {clip_len}, "
            f"fewer than the next clip is guided by; use clip_len 13 or more, or refert_num 1"
        )


def plan_clips(num_frames: int, *, clip_len: int, overlap: int) -> tuple[Clip, ...]:
    """Cut a video of `num_frames` ≥ 1 into clips, whose fresh frames are 0 … num_frames − 1, in order.

    Raises InvalidInput where the window makes no sense.
    """
    check_window(clip_len=clip_len, overlap=overlap)
    if num_frames < 1:
        raise InvalidInput("the driving video has no frames")
    stride = clip_len - overlap
    # Also right for videos no longer than the overlap: one clip, mostly filling.
    count = max(1, math.ceil((num_frames - overlap) / stride))
    return tuple(
        Clip(
            index=index,
            frames=tuple(reflect(start + offset, num_frames) for offset in range(clip_len)),
            fresh=slice(overlap if index else 0, min(clip_len, num_frames - start)),
        )
        for index, start in enumerate(range(0, count * stride, stride))
    )


def reflect(frame: int, num_frames: int) -> int:
    """The real frame shown at position `frame` ≥ 0 when the video plays forwards and backwards for ever.

    The turning points are shown once: 0 1 2 3 2 1 0 1 … for four frames. A single frame is repeated.
    """
    if num_frames == 1:
        return 0
    period = 2 * (num_frames - 1)
    phase = frame % period
    return min(phase, period - phase)
