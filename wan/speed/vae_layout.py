"""The VAE's networks on a GPU: channels last everywhere, and one kernel where diffusers' layers run seven.

Goes with any loop over chunks: the layers keep the memory of earlier chunks where diffusers' do, in their order. The
convolutions stay cuDNN's. In float32 the results agree with diffusers' to rounding; in bf16 they are closer to
float32 than diffusers' own bf16, which rounds after every one of the seven.
Letters: T frames, H W pixels, C channels; one video at a time.
"""

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

try:
    import triton
    import triton.language as tl
except ImportError:  # a torch without it: the plain functions serve
    triton = None

MEMORY_FRAMES = 2  # a causal convolution over three frames looks back at two
TILE = 4096  # elements a program works on: 16-byte accesses for 128 threads, four of them each

Memory = list[torch.Tensor | str | None]
"""What diffusers' layers remember of earlier chunks, one slot a causal convolution."""


def use_gpu_kernels(autoencoder: AutoencoderKLWan) -> AutoencoderKLWan:
    """Let an autoencoder use these layers. The instances keep their weights, whose layout in memory changes."""
    for module in autoencoder.modules():
        if isinstance(module, nn.Conv3d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last_3d)
        elif isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)
    for module in list(autoencoder.modules()):
        for plain, fast in FAST.items():
            if type(module) is plain:
                module.__class__ = fast
    return autoencoder


class FastCausalConv3d(WanCausalConv3d):
    """Pads height and width inside the convolution, and only time by hand."""

    def forward(self, x: torch.Tensor, cache_x: torch.Tensor | None = None) -> torch.Tensor:
        missing = self._padding[4]
        if missing:
            x = with_memory(x, cache_x, frames=missing)
        return self.convolve(x)

    def convolve(self, x: torch.Tensor) -> torch.Tensor:
        """(1, C, T + what time takes, H, W) → (1, C', T, H, W), channels last."""
        x = x.contiguous(memory_format=torch.channels_last_3d)
        return F.conv3d(x, self.weight, self.bias, self.stride, (0, self._padding[2], self._padding[0]))


class FastRmsNorm(WanRMS_norm):
    """The norm in one kernel."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.ndim == 4:
            return norm_frames(self, x[:, :, None], silu=False)[:, :, 0]
        return norm_frames(self, x, silu=False)


class FastUpsample(WanUpsample):
    """Nearest neighbours need no float32: they are copies."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.Upsample.forward(self, x)


class FastResidualBlock(WanResidualBlock):
    """Norm, SiLU and the memory of earlier frames in one kernel, straight into what the convolution reads."""

    def forward(
        self, x: torch.Tensor, feat_cache: Memory | None = None, feat_idx: list[int] | None = None
    ) -> torch.Tensor:
        assert feat_cache is not None and feat_idx is not None, "the video goes through in chunks"
        x = x.contiguous(memory_format=torch.channels_last_3d)
        shortcut = self.conv_shortcut(x)
        for norm, convolution in ((self.norm1, self.conv1), (self.norm2, self.conv2)):
            slot = feat_idx[0]
            x, feat_cache[slot] = norm_silu_remember(norm, x, feat_cache[slot])
            x = convolution.convolve(x)
            feat_idx[0] += 1
        return x.add_(shortcut)


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
            stacked = with_memory(x, before if isinstance(before, torch.Tensor) else None, frames=MEMORY_FRAMES)
            feat_cache[slot] = stacked[:, :, -MEMORY_FRAMES:].clone()
            both = self.time_conv.convolve(stacked)
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
    if x.device.type == "cpu" or triton is None:
        normed = _norm_plain(norm, x)
        return F.silu(normed) if silu else normed
    x = x.contiguous(memory_format=torch.channels_last_3d)
    out = torch.empty_like(x)
    _launch(x, norm, out=out, old=None, new=None, frame_rows=0, silu=silu)
    return out


def norm_silu_remember(
    norm: WanRMS_norm, x: torch.Tensor, before: torch.Tensor | str | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Norm and SiLU of (1, C, T, H, W), two earlier frames in front; and its last two frames, for the next chunk."""
    _, channels, length, height, width = x.shape
    old = before if isinstance(before, torch.Tensor) else None
    if x.device.type == "cpu" or triton is None:
        stacked = with_memory(F.silu(_norm_plain(norm, x)), old, frames=MEMORY_FRAMES)
        return stacked, stacked[:, :, -MEMORY_FRAMES:].clone()
    like = {"dtype": x.dtype, "device": x.device, "memory_format": torch.channels_last_3d}
    out = torch.empty((1, channels, MEMORY_FRAMES + length, height, width), **like)
    new = torch.empty((1, channels, MEMORY_FRAMES, height, width), **like)
    _launch(x, norm, out=out, old=old, new=new, frame_rows=height * width, silu=True)
    return out, new


def _norm_plain(norm: WanRMS_norm, x: torch.Tensor) -> torch.Tensor:
    length = x.float().square().sum(dim=1, keepdim=True).sqrt().clamp_min(1e-12)
    shape = (1, -1, *[1] * (x.ndim - 2))
    return (x.float() / length * norm.scale * norm.gamma.float().view(shape)).to(x.dtype)


def _launch(
    x: torch.Tensor,
    norm: WanRMS_norm,
    *,
    out: torch.Tensor,
    old: torch.Tensor | None,
    new: torch.Tensor | None,
    frame_rows: int,
    silu: bool,
) -> None:
    channels = x.shape[1]
    block = triton.next_power_of_2(channels)
    tile = max(1, TILE // block)
    rows = out.numel() // channels
    _norm_kernel[(triton.cdiv(rows, tile),)](
        x, out, x if old is None else old, x if new is None else new, norm.gamma,
        rows, MEMORY_FRAMES * frame_rows, rows - MEMORY_FRAMES * frame_rows, norm.scale,
        CHANNELS=channels, BLOCK=block, ROWS=tile, SILU=silu,
        OLD=old is not None, NEW=new is not None, num_warps=4,
    )  # fmt: skip


if triton is not None:

    @triton.jit
    def _norm_kernel(  # noqa: ANN202, PLR0913  a kernel's arguments are pointers and numbers
        x, out, old, new, gamma, rows, before, keep_from, scale,  # noqa: ANN001
        CHANNELS: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, SILU: tl.constexpr,  # noqa: N803
        OLD: tl.constexpr, NEW: tl.constexpr,  # noqa: N803
    ):  # fmt: skip
        """Rows of pixels, C channels each: the first `before` come from `old`, the others are normed from `x`.

        Rows from `keep_from` on are written to `new` as well.
        """
        row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
        lane = tl.arange(0, BLOCK)[None, :]
        inside = (row < rows) & (lane < CHANNELS)
        fresh = row >= before
        value = tl.load(x + (row - before) * CHANNELS + lane, mask=inside & fresh, other=0.0).to(tl.float32)
        length = tl.sqrt(tl.sum(value * value, axis=1))[:, None]
        weight = tl.load(gamma + lane, mask=lane < CHANNELS, other=0.0).to(tl.float32)
        value = value / tl.maximum(length, 1e-12) * scale * weight
        if SILU:
            value = value / (1.0 + tl.exp(-value))
        if OLD:
            past = tl.load(old + row * CHANNELS + lane, mask=inside & (row < before), other=0.0).to(tl.float32)
            value = tl.where(fresh, value, past)
        result = value.to(out.dtype.element_ty)
        tl.store(out + row * CHANNELS + lane, result, mask=inside)
        if NEW:
            tl.store(new + (row - keep_from) * CHANNELS + lane, result, mask=inside & (row >= keep_from))
