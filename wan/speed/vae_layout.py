"""The VAE's networks on a GPU: channels last everywhere, and one kernel where diffusers' layers run seven.

Goes with any loop over chunks: the layers keep the memory of earlier chunks where diffusers' do. The
convolutions stay cuDNN's; where it has no good one for a width (96 channels on an H200: 257 TFLOP/s in three
dimensions, 539 in two), the three frames a pixel depends on are laid side by side as channels. In float32 the
results agree with diffusers' to rounding; in bf16 they are closer to float32 than diffusers' own bf16, which
rounds after every one of the seven.
Letters: T frames, H W pixels, C channels; one video at a time.
"""

from typing import cast

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    AutoencoderKLWan,
    WanAttentionBlock,
    WanCausalConv3d,
    WanResample,
    WanResidualBlock,
    WanRMS_norm,
    WanUpsample,
)
from einops import rearrange
from torch import nn

from .lazy import pixel_kernels

MEMORY_FRAMES = 2  # a causal convolution over three frames looks back at two
WINDOW = MEMORY_FRAMES + 1
GOOD_CHANNELS = 64  # cuDNN's three-dimensional convolutions for Hopper take multiples of this

Memory = list[torch.Tensor | str | None]
"""What diffusers' layers remember of earlier chunks, one slot a causal convolution."""


def use_gpu_kernels(autoencoder: AutoencoderKLWan) -> AutoencoderKLWan:
    """Let an autoencoder use these layers. The instances keep their weights; their layout changes."""
    for module in autoencoder.modules():
        if isinstance(module, nn.Conv3d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last_3d)
        elif isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)
    for module in list(autoencoder.modules()):
        for plain, fast in FAST.items():
            if type(module) is plain:
                module.__class__ = fast
        if isinstance(module, FastCausalConv3d) and module.is_windowed:
            flat = rearrange(module.weight.data, "o c t h w -> o (t c) h w")
            module.register_buffer(
                "flat_weight", flat.contiguous(memory_format=torch.channels_last), persistent=False
            )
    return autoencoder


class FastCausalConv3d(WanCausalConv3d):
    """Pads height and width inside the convolution, and only time by hand."""

    flat_weight: torch.Tensor  # (C', 3 C, 3, 3): the weights of a windowed one

    @property
    def is_windowed(self) -> bool:
        """Whether the three frames a pixel depends on are laid side by side as channels."""
        return self.kernel_size == (3, 3, 3) and self.in_channels % GOOD_CHANNELS != 0

    def forward(self, x: torch.Tensor, cache_x: torch.Tensor | None = None) -> torch.Tensor:
        missing = int(self._padding[4])
        if missing:
            x = with_memory(x, cache_x, frames=missing)
        if self.is_windowed:
            length = x.shape[2] - MEMORY_FRAMES
            x = torch.cat([x[:, :, ahead : ahead + length] for ahead in range(WINDOW)], dim=1)
        return self.convolve(x, self.bias)

    def convolve(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """(1, C, T + what time takes, H, W), or (1, 3 C, T, H, W) if windowed → (1, C', T, H, W)."""
        x = x.contiguous(memory_format=torch.channels_last_3d)
        if self.is_windowed:
            frames = F.conv2d(rearrange(x, "1 c t h w -> t c h w"), self.flat_weight, bias, padding=1)
            return rearrange(frames, "t c h w -> 1 c t h w")
        if self.kernel_size == (1, 1, 1):
            rows = F.linear(rearrange(x, "1 c t h w -> t h w c"), self.weight[:, :, 0, 0, 0], bias)
            return rearrange(rows, "t h w c -> 1 c t h w")
        padding = (0, int(self._padding[2]), int(self._padding[0]))
        return F.conv3d(x, self.weight, bias, self.stride, padding)


class FastRmsNorm(WanRMS_norm):
    """The norm in one kernel."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.ndim == 4:
            return norm_frames(self, x[:, :, None], silu=False)[:, :, 0]
        return norm_frames(self, x, silu=False)


class FastUpsample(WanUpsample):
    """Nearest neighbours need no float32: they are copies."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return double_size(x)


class FastResidualBlock(WanResidualBlock):
    """Norm, SiLU and the memory of earlier frames in one kernel, straight into what the convolution reads."""

    def forward(
        self, x: torch.Tensor, feat_cache: Memory | None = None, feat_idx: list[int] | None = None
    ) -> torch.Tensor:
        assert feat_cache is not None and feat_idx is not None, "the video goes through in chunks"
        x = x.contiguous(memory_format=torch.channels_last_3d)
        shortcut = self.conv_shortcut(x)
        bias = None  # cuDNN would add it in a pass of its own: whoever reads the result next adds it instead
        for norm, plain in ((self.norm1, self.conv1), (self.norm2, self.conv2)):
            convolution = cast("FastCausalConv3d", plain)
            slot = feat_idx[0]
            x, feat_cache[slot] = norm_silu_remember(
                norm, x, feat_cache[slot], bias=bias, windowed=convolution.is_windowed
            )
            x, bias = convolution.convolve(x, None), convolution.bias
            feat_idx[0] += 1
        return add_with_bias(x, shortcut, bias)


class FastResample(WanResample):
    """Keeps channels last where frames are doubled."""

    def forward(
        self, x: torch.Tensor, feat_cache: Memory | None = None, feat_idx: list[int] | None = None
    ) -> torch.Tensor:
        assert feat_cache is not None and feat_idx is not None, "the video goes through in chunks"
        if self.mode != "upsample3d":
            return super().forward(x, feat_cache=feat_cache, feat_idx=feat_idx)
        slot = feat_idx[0]
        if feat_cache[slot] is None:
            feat_cache[slot] = "Rep"  # the first latent frame is one video frame: time is not doubled
        else:
            before = feat_cache[slot]
            stacked = with_memory(
                x, before if isinstance(before, torch.Tensor) else None, frames=MEMORY_FRAMES
            )
            feat_cache[slot] = stacked[:, :, -MEMORY_FRAMES:].clone()
            time_conv = cast("FastCausalConv3d", self.time_conv)
            both = time_conv.convolve(stacked, time_conv.bias)
            x = rearrange(both, "b (two c) t h w -> b t two h w c", two=2)
            x = rearrange(x.contiguous(), "b t two h w c -> b c (t two) h w")
        feat_idx[0] += 1
        frames = self.resample(rearrange(x, "1 c t h w -> t c h w"))
        return rearrange(frames, "t c h w -> 1 c t h w")


class FastAttentionBlock(WanAttentionBlock):
    """One head over the pixels of each frame; channels last makes its projections plain matrix products."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[-2:]
        x = x.contiguous(memory_format=torch.channels_last_3d)
        rows = rearrange(norm_frames(self.norm, x, silu=False), "1 c t h w -> t (h w) c")
        projected = F.linear(rows, self.to_qkv.weight[:, :, 0, 0], self.to_qkv.bias)
        attended = attend_pixels(*projected.chunk(3, dim=-1))
        out = F.linear(attended, self.proj.weight[:, :, 0, 0], self.proj.bias)
        return x + rearrange(out, "t (h w) c -> 1 c t h w", h=height, w=width)


FAST: dict[type[nn.Module], type[nn.Module]] = {
    WanCausalConv3d: FastCausalConv3d,
    WanRMS_norm: FastRmsNorm,
    WanUpsample: FastUpsample,
    WanResidualBlock: FastResidualBlock,
    WanResample: FastResample,
    WanAttentionBlock: FastAttentionBlock,
}


def attend_pixels(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Attention of one head, (T, pixels, C) each."""
    return F.scaled_dot_product_attention(queries[:, None], keys[:, None], values[:, None])[:, 0]


def with_memory(x: torch.Tensor, before: torch.Tensor | None, *, frames: int) -> torch.Tensor:
    """`frames` earlier frames in front of (1, C, T, H, W); zeros for those that never were. Channels last."""
    _, channels, length, height, width = x.shape
    out = torch.empty(
        (1, channels, frames + length, height, width),
        dtype=x.dtype, device=x.device, memory_format=torch.channels_last_3d,
    )  # fmt: skip
    known = 0 if before is None else before.shape[2]
    out[:, :, : frames - known] = 0
    if before is not None:
        out[:, :, frames - known : frames] = before
    out[:, :, frames:] = x
    return out


def norm_frames(norm: WanRMS_norm, x: torch.Tensor, *, silu: bool) -> torch.Tensor:
    """RMS norm over the channels of (1, C, T, H, W), with or without SiLU. Channels last."""
    if not x.is_cuda:
        normed = _norm_plain(norm, x)
        return F.silu(normed) if silu else normed
    x = x.contiguous(memory_format=torch.channels_last_3d)
    out = torch.empty_like(x)
    pixel_kernels().norm_pixels(x, norm.gamma, norm.scale, out=out, silu=silu)
    return out


def norm_silu_remember(
    norm: WanRMS_norm,
    x: torch.Tensor,
    before: torch.Tensor | str | None,
    *,
    bias: torch.Tensor | None = None,
    windowed: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Norm and SiLU of (1, C, T, H, W) with `bias` (C,) added, and what the next chunk has to know of it.

    Returns (1, C, 2 + T, H, W), the two frames before it in front, or if `windowed` (1, 3 C, T, H, W), each
    frame with the two before it as channels; and the last two frames, (1, C, 2, H, W).
    """
    _, channels, length, height, width = x.shape
    old = before if isinstance(before, torch.Tensor) else None
    if not x.is_cuda:
        biased = x if bias is None else x + bias.view(1, -1, 1, 1, 1)
        stacked = with_memory(F.silu(_norm_plain(norm, biased)), old, frames=MEMORY_FRAMES)
        new = stacked[:, :, -MEMORY_FRAMES:].clone()
        if windowed:
            stacked = torch.cat([stacked[:, :, ahead : ahead + length] for ahead in range(WINDOW)], dim=1)
        return stacked, new
    like = {"dtype": x.dtype, "device": x.device, "memory_format": torch.channels_last_3d}
    shape = (WINDOW * channels, length) if windowed else (channels, MEMORY_FRAMES + length)
    out = torch.empty((1, *shape, height, width), **like)
    new = torch.empty((1, channels, MEMORY_FRAMES, height, width), **like)
    pixel_kernels().norm_pixels(x, norm.gamma, norm.scale, out=out, old=old, new=new, bias=bias, silu=True)
    return out, new


def add_with_bias(x: torch.Tensor, other: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x + other + bias, all (1, C, T, H, W) but the bias (C,). Channels last; may overwrite `x`."""
    if not x.is_cuda or bias is None:
        return x + other if bias is None else x + other + bias.view(1, -1, 1, 1, 1)
    x, other = (part.contiguous(memory_format=torch.channels_last_3d) for part in (x, other))
    pixel_kernels().add_in_place(x, other, bias)
    return x


def double_size(frames: torch.Tensor) -> torch.Tensor:
    """(T, C, H, W) → (T, C, 2 H, 2 W), every pixel four times. Channels last."""
    if not frames.is_cuda:
        return F.interpolate(frames, scale_factor=2.0, mode="nearest-exact")
    frames = frames.contiguous(memory_format=torch.channels_last)
    length, channels, height, width = frames.shape
    out = torch.empty(
        (length, channels, 2 * height, 2 * width),
        dtype=frames.dtype, device=frames.device, memory_format=torch.channels_last,
    )  # fmt: skip
    pixel_kernels().double_pixels(frames, out=out)
    return out


def _norm_plain(norm: WanRMS_norm, x: torch.Tensor) -> torch.Tensor:
    length = x.float().square().sum(dim=1, keepdim=True).sqrt().clamp_min(1e-12)
    shape = (1, -1, *[1] * (x.ndim - 2))
    return (x.float() / length * norm.scale * norm.gamma.float().view(shape)).to(x.dtype)
