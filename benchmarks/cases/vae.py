"""Pixels to latents and back, one clip: ours against diffusers' class in three settings."""

import copy

import torch
from torch import nn
from wan_animate.wan.model.vae import VideoVae, chunks_of
from wan_animate.wan.speed.vae_layout import use_gpu_kernels

from benchmarks.floors import vae_floors
from benchmarks.measuring import Bench, Row, relative
from benchmarks.random_models import TINY_VAE, random_vae

CHECK_FRAMES = 17  # compared with float32, which takes half a minute for a whole clip


def run(bench: Bench) -> None:
    config = TINY_VAE if bench.tiny else {}
    plain = random_vae(bench.device, torch.float32, **config)
    size, (height, width) = next(iter(bench.sizes.items()))
    generator = torch.Generator(bench.device).manual_seed(0)
    shape = (1, 3, bench.frames, height, width)
    video = torch.rand(shape, device=bench.device, generator=generator) * 2 - 1
    check = video[:, :, : min(CHECK_FRAMES, bench.frames)]
    latents = torch.randn(
        (1, 16, (bench.frames - 1) // 4 + 1, height // 8, width // 8),
        device=bench.device,
        generator=generator,
    )
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        exact_latents = encode(plain, check)
        exact = decode(plain, exact_latents)
    half = copy.deepcopy(plain).to(bench.dtype)
    variants = [
        ("ours", use_gpu_kernels(copy.deepcopy(half))),
        ("diffusers, bf16", half),
        ("diffusers, bf16, channels-last weights", channels_last(copy.deepcopy(half))),
        ("diffusers, float32 (TF32)", plain),
    ]
    for what, network in variants:
        floors = vae_floors(bench, network, size=(height, width))
        levels = (decode(network, exact_latents).float() - exact.float()).abs().mean()
        error = relative(encode(network, check), exact_latents)
        slow = network is plain
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=True):
            there = bench.time(
                "vae", f"encode: {what}", size, lambda n=network: encode(n, video),
                runs=1 if slow else 3, warm=0 if slow else 1, difference=error, floor_s=floors.encode,
                note="relative",
            )  # fmt: skip
            back = bench.time(
                "vae", f"decode: {what}", size, lambda n=network: decode(n, latents),
                runs=1 if slow else 3, warm=0 if slow else 1, difference=float(levels),
                floor_s=floors.decode, note="mean grey levels",
            )  # fmt: skip
        assert there.seconds is not None and back.seconds is not None
        bench.add(
            Row(case="vae", what=f"clip: {what}", size=size, seconds=2 * there.seconds + back.seconds,
                runs=there.runs, floor_s=floors.clip, note="two encodes and one decode")
        )  # fmt: skip
    bench.release()


def encode(network: nn.Module, video: torch.Tensor) -> torch.Tensor:
    return VideoVae(network).encode(video[:, :, part] for part in chunks_of(video.shape[2]))


def decode(network: nn.Module, latents: torch.Tensor) -> torch.Tensor:
    """As grey levels, uint8."""
    parts = VideoVae(network).decode(latents)
    return torch.cat([((part + 1) * 127.5).round().to(torch.uint8) for part in parts], dim=2)


def channels_last(network: nn.Module) -> nn.Module:
    for module in network.modules():
        if isinstance(module, nn.Conv3d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last_3d)
    return network
