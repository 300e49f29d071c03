"""Triton kernels for tokens, and how each is launched. Imported only where there is a GPU.

What they compute stands, in plain torch, beside their callers in `fused`. A row is what lies in one piece of
memory: a token's width.
"""

# Kernels have no types:
# pyright: reportIndexIssue=false, reportCallIssue=false, reportArgumentType=false
# pyright: reportGeneralTypeIssues=false, reportPossiblyUnboundVariable=false
# ruff: noqa: ANN001, ANN202, N803, N806, PLR0913, PLR0917 - a kernel's arguments are pointers and numbers, in order

import math

import torch
import triton
import triton.language as tl

TILE = 4096  # elements a program works on: 16-byte accesses for 128 threads, four of them each
CONTEXT_ROWS, CONTEXT_BLOCK = 64, 64  # of queries, of keys; the fastest of nine pairs on an H100
SHORT_TAIL = 16  # keys: the fewest a matrix unit takes


def norm_and_rotate_rows(
    tokens: torch.Tensor,
    weight: torch.Tensor,
    cosines: torch.Tensor,
    sines: torch.Tensor,
    eps: float,
    *,
    out: torch.Tensor,
) -> None:
    """RMS norm over the width of tokens (B, N, D), then the rotary embedding of each head."""
    batch, length, width = tokens.shape
    block = width & -width  # the largest power of two that divides the width: no lane is idle
    _norm_and_rotate[(batch * length,)](
        tokens, weight, cosines, sines, out, length,
        WIDTH=width, HEAD=cosines.shape[-1], EPS=eps, BLOCK=block, num_warps=8,
    )  # fmt: skip


def norm_tokens(
    tokens: torch.Tensor,
    weight: torch.Tensor,
    shift: torch.Tensor,
    eps: float,
    *,
    out: torch.Tensor,
    added: torch.Tensor | None = None,
    gate: torch.Tensor | None = None,
    total: torch.Tensor | None = None,
) -> None:
    """Layer norm over the width of tokens (B, N, D), times `weight` plus `shift`, (D,) float32 each.

    With `added`, tokens + added, or tokens + gate · added, is what is normed, and goes to `total` first.
    """
    width = tokens.shape[-1]
    _norm_tokens[(tokens.numel() // width,)](
        tokens, tokens if added is None else added, weight if gate is None else gate, weight, shift,
        out if total is None else total, out,
        WIDTH=width, BLOCK=triton.next_power_of_2(width), EPS=eps,
        ADD=added is not None, GATE=gate is not None, num_warps=4,
    )  # fmt: skip


def norm_heads(x: torch.Tensor, weight: torch.Tensor, eps: float, *, out: torch.Tensor) -> None:
    """RMS norm over the last dimension of x, a power of two."""
    width = x.shape[-1]
    tile = max(1, TILE // width)
    rows = x.numel() // width
    _norm_heads[(triton.cdiv(rows, tile),)](
        x, weight, out, rows, WIDTH=width, ROWS=tile, EPS=eps, num_warps=4
    )


def attend_context(
    queries: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    text: tuple[torch.Tensor, torch.Tensor],
    picture: tuple[torch.Tensor, torch.Tensor],
    *,
    repeats: int,
    heads: int,
    out: torch.Tensor,
) -> None:
    """RMS norm over the width of queries (B, N, D), then what they see of text and picture, summed.

    Both are keys and values (B, S, D); the text's last token counts `repeats` times.
    """
    batch, length, width = queries.shape
    scales = torch.empty(batch * length, dtype=torch.float32, device=queries.device)
    _inverse_rms[(batch * length,)](queries, scales, WIDTH=width, BLOCK=width & -width, EPS=eps, num_warps=4)
    head = width // heads
    # A program's neighbours take the other heads of its rows: together they read whole tokens.
    _attend_context[(heads, triton.cdiv(length, CONTEXT_ROWS), batch)](
        queries, scales, weight, *text, *picture, out, length, text[0].shape[1], picture[0].shape[1],
        math.log2(repeats), head**-0.5 * math.log2(math.e),
        HEADS=heads, HEAD=head, ROWS=CONTEXT_ROWS, BLOCK=CONTEXT_BLOCK,
        TEXT_TAIL=_tail(text[0].shape[1]), PICTURE_TAIL=_tail(picture[0].shape[1]),
        num_warps=4, num_stages=2,
    )  # fmt: skip


def _tail(count: int) -> int:
    """Size of the last block of `count` keys, one of two: every other would be a kernel more to compile."""
    return SHORT_TAIL if (count - 1) % CONTEXT_BLOCK < SHORT_TAIL else CONTEXT_BLOCK


@triton.jit
def _norm_and_rotate(
    tokens, weight, cosines, sines, out, length,
    WIDTH: tl.constexpr, HEAD: tl.constexpr, EPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One token a program. The second loop reads the row again, from the cache."""
    row = tl.program_id(0).to(tl.int64)
    position = row % length
    lanes = tl.arange(0, BLOCK)
    scale = _inverse_rms_of(tokens + row * WIDTH, WIDTH, BLOCK, EPS)
    half = tl.arange(0, BLOCK // 2)
    for start in tl.static_range(0, WIDTH, BLOCK):
        value = tl.load(tokens + row * WIDTH + start + lanes).to(tl.float32)
        value *= scale * tl.load(weight + start + lanes).to(tl.float32)
        first, second = tl.split(tl.reshape(value, (BLOCK // 2, 2)))
        place = position * HEAD + (start + 2 * half) % HEAD
        cos = tl.load(cosines + place)
        sin = tl.load(sines + place)
        turned = tl.join(first * cos - second * sin, first * sin + second * cos)
        tl.store(out + row * WIDTH + start + lanes, tl.reshape(turned, (BLOCK,)).to(out.dtype.element_ty))


@triton.jit
def _norm_tokens(
    tokens, added, gate, weight, shift, total, out,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, EPS: tl.constexpr, ADD: tl.constexpr, GATE: tl.constexpr,
):  # fmt: skip
    """One token a program, read once and kept in registers."""
    lane = tl.arange(0, BLOCK)
    known = lane < WIDTH
    place = tl.program_id(0).to(tl.int64) * WIDTH + lane
    value = tl.load(tokens + place, mask=known, other=0.0).to(tl.float32)
    if ADD:
        more = tl.load(added + place, mask=known, other=0.0).to(tl.float32)
        if GATE:
            more *= tl.load(gate + lane, mask=known, other=0.0)
        value += more
        tl.store(total + place, value.to(total.dtype.element_ty), mask=known)
    centred = tl.where(known, value - tl.sum(value) / WIDTH, 0.0)
    normed = centred * tl.rsqrt(tl.sum(centred * centred) / WIDTH + EPS)
    normed *= tl.load(weight + lane, mask=known, other=0.0)
    normed += tl.load(shift + lane, mask=known, other=0.0)
    tl.store(out + place, normed.to(out.dtype.element_ty), mask=known)


@triton.jit
def _norm_heads(
    x, weight, out, rows, WIDTH: tl.constexpr, ROWS: tl.constexpr, EPS: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    lane = tl.arange(0, WIDTH)[None, :]
    inside = row < rows
    value = tl.load(x + row * WIDTH + lane, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(value * value, axis=1) / WIDTH + EPS)[:, None]
    value = value * scale * tl.load(weight + lane).to(tl.float32)
    tl.store(out + row * WIDTH + lane, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _inverse_rms(x, out, WIDTH: tl.constexpr, BLOCK: tl.constexpr, EPS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    tl.store(out + row, _inverse_rms_of(x + row * WIDTH, WIDTH, BLOCK, EPS))


@triton.jit
def _inverse_rms_of(start_of_row, WIDTH: tl.constexpr, BLOCK: tl.constexpr, EPS: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    squares = tl.zeros((BLOCK,), tl.float32)
    for start in tl.static_range(0, WIDTH, BLOCK):
        value = tl.load(start_of_row + start + lane).to(tl.float32)
        squares += value * value
    return tl.rsqrt(tl.sum(squares) / WIDTH + EPS)


@triton.jit
def _attend_context(
    queries, scales, weight, text_keys, text_values, picture_keys, picture_values, out,
    length, text, picture, weight_of_last, scale,
    HEADS: tl.constexpr, HEAD: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    TEXT_TAIL: tl.constexpr, PICTURE_TAIL: tl.constexpr,
):  # fmt: skip
    """One head of a few tokens a program. Logits are in powers of two."""
    WIDTH: tl.constexpr = HEADS * HEAD
    head, batch = tl.program_id(0), tl.program_id(2).to(tl.int64)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    inside = row < length
    lane = tl.arange(0, HEAD)
    token = batch * length + row
    place = token[:, None] * WIDTH + head * HEAD + lane[None, :]
    query = tl.load(queries + place, mask=inside[:, None], other=0.0).to(tl.float32)
    query *= tl.load(scales + token, mask=inside, other=0.0)[:, None]
    query *= tl.load(weight + head * HEAD + lane).to(tl.float32)[None, :]
    query = query.to(queries.dtype.element_ty)
    start = batch * picture * WIDTH + head * HEAD
    seen = _look(
        query, picture_keys + start, picture_values + start, picture, 0.0, scale,
        WIDTH, HEAD, ROWS, BLOCK, PICTURE_TAIL,
    ).to(out.dtype.element_ty)  # fmt: skip
    start = batch * text * WIDTH + head * HEAD
    read = _look(
        query, text_keys + start, text_values + start, text, weight_of_last, scale,
        WIDTH, HEAD, ROWS, BLOCK, TEXT_TAIL,
    )  # fmt: skip
    tl.store(out + place, (read + seen.to(tl.float32)).to(out.dtype.element_ty), mask=inside[:, None])


@triton.jit
def _look(
    query, keys, values, count, weight_of_last, scale,
    WIDTH: tl.constexpr, HEAD: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, TAIL: tl.constexpr,
):  # fmt: skip
    """Attention to `count` keys: full blocks, then the rest."""
    highest = tl.full((ROWS,), float("-inf"), tl.float32)
    weights = tl.zeros((ROWS,), tl.float32)
    answer = tl.zeros((ROWS, HEAD), tl.float32)
    full = (count - 1) // BLOCK
    for index in range(0, full):
        answer, highest, weights = _look_at_block(
            query, answer, highest, weights, keys, values, index * BLOCK, count, weight_of_last, scale,
            WIDTH, HEAD, BLOCK, False,
        )  # fmt: skip
    answer, highest, weights = _look_at_block(
        query, answer, highest, weights, keys, values, full * BLOCK, count, weight_of_last, scale,
        WIDTH, HEAD, TAIL, True,
    )  # fmt: skip
    return answer / weights[:, None]


@triton.jit
def _look_at_block(
    query, answer, highest, weights, keys, values, start, count, weight_of_last, scale,
    WIDTH: tl.constexpr, HEAD: tl.constexpr, BLOCK: tl.constexpr, LAST: tl.constexpr,
):  # fmt: skip
    row = start + tl.arange(0, BLOCK)
    place = row[:, None] * WIDTH + tl.arange(0, HEAD)[None, :]
    if LAST:
        inside = row < count
        key = tl.load(keys + place, mask=inside[:, None], other=0.0)
        value = tl.load(values + place, mask=inside[:, None], other=0.0)
    else:
        key = tl.load(keys + place)
        value = tl.load(values + place)
    logits = tl.dot(query, tl.trans(key)) * scale
    if LAST:
        logits += tl.where(row == count - 1, weight_of_last, 0.0)[None, :]
        logits = tl.where(inside[None, :], logits, float("-inf"))
    now = tl.maximum(highest, tl.max(logits, 1))
    shares = tl.exp2(logits - now[:, None])
    kept = tl.exp2(highest - now)
    weights = weights * kept + tl.sum(shares, 1)
    answer = tl.dot(shares.to(value.dtype), value, answer * kept[:, None])
    return answer, now, weights
