"""Attention among all tokens of a clip, kernel against kernel."""

from functools import partial

import torch
from wan_animate.wan.speed.attention import PLAIN, attend, choose_attention, usable_kernels

from benchmarks.measuring import Bench, Work, relative

HEADS, HEAD_DIM = 40, 128
CHECKED = 256  # queries compared with float32


def run(bench: Bench) -> None:
    heads = 2 if bench.tiny else HEADS
    names = usable_kernels(device=bench.device, dtype=bench.dtype, head_dim=HEAD_DIM)
    for size, (height, width) in bench.sizes.items():
        tokens = ((bench.frames - 1) // 4 + 2) * (height // 16) * (width // 16)
        shape = (1, tokens, heads, HEAD_DIM)
        queries, keys, values = (torch.randn(shape, device=bench.device, dtype=bench.dtype) for _ in range(3))
        few = [part[:, :, :2].float() for part in (queries[:, :CHECKED], keys, values)]
        exact = attend(*few, PLAIN)
        work = Work(
            flop=4 * tokens**2 * heads * HEAD_DIM,
            moved=4 * queries.numel() * queries.element_size(),  # three in, one out
        )
        for name in names:
            result = attend(queries, keys, values, name)
            error = relative(result[:, :CHECKED, :2], exact)
            bench.time(
                "attention", name, size, partial(attend, queries, keys, values, name),
                floor_s=bench.floor(work), difference=error,
                note=f"{tokens} tokens; difference relative to float32",
            )  # fmt: skip
    choose_attention("auto", device=bench.device, dtype=bench.dtype, heads=heads, head_dim=HEAD_DIM)
