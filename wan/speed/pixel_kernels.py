"""Triton kernels for pixels, and how each is launched. Imported only where there is a GPU.

What they compute stands, in plain torch, beside their callers in `vae_layout`. A row is what lies in one
piece of memory: a pixel's channels.
"""

# Kernels have no types:
# pyright: reportIndexIssue=false, reportCallIssue=false, reportArgumentType=false
# pyright: reportGeneralTypeIssues=false
# ruff: noqa: ANN001, ANN202, N803, PLR0913, PLR0917 - a kernel's arguments are pointers and numbers, in order

import torch
import triton
import triton.language as tl

TILE = 4096  # elements a program works on: 16-byte accesses for 128 threads, four of them each


def norm_pixels(
    x: torch.Tensor,
    gamma: torch.Tensor,
    scale: float,
    *,
    out: torch.Tensor,
    old: torch.Tensor | None = None,
    new: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    silu: bool,
) -> None:
    """RMS norm over the channels of x (1, C, T, H, W), `bias` added first, SiLU after.

    With `new`, `old` (or zeros) stand in front of it in `out`, and its last frames go to `new` too, as many
    as that has. An `out` of several times C channels gets as many frames in a row to a pixel, as
    `vae_layout.norm_silu_remember` says. All channels last.
    """
    _, channels, length, height, width = x.shape
    block = triton.next_power_of_2(channels)
    tile = max(1, TILE // block)
    frame = height * width
    before = 0 if new is None else new.shape[2] * frame
    rows = before + length * frame
    _norm[(triton.cdiv(rows, tile),)](
        x, out, x if old is None else old, x if new is None else new, gamma,
        gamma if bias is None else bias, rows, before, rows - before, frame, scale,
        CHANNELS=channels, BLOCK=block, ROWS=tile, SILU=silu, OLD=old is not None, NEW=new is not None,
        BIAS=bias is not None, WINDOW=out.shape[1] // channels, num_warps=4,
    )  # fmt: skip


def add_in_place(x: torch.Tensor, other: torch.Tensor, bias: torch.Tensor) -> None:
    """x += other + bias over the channels of (1, C, T, H, W), channels last."""
    _add[(triton.cdiv(x.numel(), TILE),)](
        x, other, bias, x.numel(), CHANNELS=x.shape[1], BLOCK=TILE, num_warps=8
    )


def double_pixels(frames: torch.Tensor, *, out: torch.Tensor) -> None:
    """(T, C, H, W) → (T, C, 2 H, 2 W), channels last: a pixel read once is written four times."""
    length, channels, height, width = frames.shape
    block = triton.next_power_of_2(channels)
    tile = max(1, TILE // block)
    rows = length * height * width
    _double[(triton.cdiv(rows, tile),)](
        frames, out, rows, width, CHANNELS=channels, BLOCK=block, ROWS=tile, num_warps=4
    )


@triton.jit
def _norm(
    x, out, old, new, gamma, bias, rows, before, keep_from, frame, scale,
    CHANNELS: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, SILU: tl.constexpr,
    OLD: tl.constexpr, NEW: tl.constexpr, BIAS: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    """Rows of C channels: the first `before` come from `old`, the others are normed from `x`.

    Rows from `keep_from` on go to `new` as well. With a window, a row goes to the frames that see it.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    lane = tl.arange(0, BLOCK)[None, :]
    known = lane < CHANNELS
    inside = (row < rows) & known
    fresh = row >= before
    value = tl.load(x + (row - before) * CHANNELS + lane, mask=inside & fresh, other=0.0).to(tl.float32)
    if BIAS:
        value += tl.load(bias + lane, mask=known, other=0.0).to(tl.float32)
    length = tl.sqrt(tl.sum(value * value, axis=1))[:, None]
    weight = tl.load(gamma + lane, mask=known, other=0.0).to(tl.float32)
    value = value / tl.maximum(length, 1e-12) * scale * weight
    if SILU:
        value = value / (1.0 + tl.exp(-value))
    if NEW:
        past = tl.zeros_like(value)
        if OLD:
            earlier = inside & (row < before)
            past = tl.load(old + row * CHANNELS + lane, mask=earlier, other=0.0).to(tl.float32)
        value = tl.where(fresh, value, past)
    result = value.to(out.dtype.element_ty)
    if WINDOW == 1:
        tl.store(out + row * CHANNELS + lane, result, mask=inside)
    else:
        for ahead in tl.static_range(WINDOW):
            target = row - ahead * frame
            seen = inside & (target >= 0) & (target < rows - before)
            tl.store(out + (target * WINDOW + ahead) * CHANNELS + lane, result, mask=seen)
    if NEW:
        tl.store(new + (row - keep_from) * CHANNELS + lane, result, mask=inside & (row >= keep_from))


@triton.jit
def _add(x, other, bias, count, CHANNELS: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    value = tl.load(x + place, mask=inside).to(tl.float32)
    value += tl.load(other + place, mask=inside).to(tl.float32)
    value += tl.load(bias + place % CHANNELS, mask=inside).to(tl.float32)
    tl.store(x + place, value.to(x.dtype.element_ty), mask=inside)


@triton.jit
def _double(
    x, out, rows, width, CHANNELS: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr
):  # fmt: skip
    """Frames on end are one tall picture: no pixel crosses a frame's edge."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    lane = tl.arange(0, BLOCK)[None, :]
    inside = (row < rows) & (lane < CHANNELS)
    value = tl.load(x + row * CHANNELS + lane, mask=inside)
    first = (row // width) * 4 * width + (row % width) * 2
    for down in tl.static_range(2):
        for right in tl.static_range(2):
            target = first + down * 2 * width + right
            tl.store(out + target * CHANNELS + lane, value, mask=inside)
