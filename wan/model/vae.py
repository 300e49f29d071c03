"""Pixels ↔ latents, a few frames at a time. The network is diffusers' AutoencoderKLWan, the loop is ours.

Both directions work through the video in chunks (one frame, then four at a time) and carry the network's
memory of earlier chunks along, so memory is bounded by one chunk and a caller can stop between two. The
numbers are bit for bit those of AutoencoderKLWan.encode and .decode. Letters: T frames, H W pixels; L = (T −
1) / 4 + 1, h w = H W / 8.
"""

from collections.abc import Callable, Iterable, Iterator

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan, WanCausalConv3d, WanRMS_norm
from torch.nn import functional

TIME_STRIDE = 4  # video frames a latent frame, but the first stands for one
SPACE_STRIDE = 8  # pixels a latent pixel, each way


class VideoVae:
    """The VAE with normalised latents. Keeps nothing between calls but the latents of a grey video."""

    def __init__(self, autoencoder: AutoencoderKLWan) -> None:
        self.autoencoder = autoencoder
        self._grey: dict[tuple[int, int, int], torch.Tensor] = {}

    @property
    def device(self) -> torch.device:
        return self.autoencoder.post_quant_conv.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What pixels and latents are computed in; both leave as float32."""
        return self.autoencoder.post_quant_conv.weight.dtype

    def encode(self, chunks: Iterable[torch.Tensor]) -> torch.Tensor:
        """Normalised latents (1, 16, L, h, w) float32 of a video in [−1, 1], handed over in chunks.

        The chunks are (1, 3, n, H, W) with n = 1, 4, 4, …, as `chunks_of` cuts them. Stop by raising from the
        iterator.
        """
        memory = new_memory(self.autoencoder.encoder)
        encoded = [
            self.autoencoder.encoder(chunk.to(self.device, self.dtype), feat_cache=memory, feat_idx=[0])
            for chunk in chunks
        ]
        # Once over all of it, as diffusers does: the rounding may depend on the size.
        moments = self.autoencoder.quant_conv(torch.cat(encoded, dim=2))
        mean, deviation = self._statistics()
        return (moments.chunk(2, dim=1)[0].float() - mean) * (1.0 / deviation)

    def decode(self, latents: torch.Tensor) -> Iterator[torch.Tensor]:
        """Video in [−1, 1] of normalised latents (1, 16, L, h, w), as chunks (1, 3, 1 or 4, H, W) float32."""
        mean, deviation = self._statistics()
        raw = (latents.to(self.device).float() / (1.0 / deviation) + mean).to(self.dtype)
        features = self.autoencoder.post_quant_conv(raw)
        memory = new_memory(self.autoencoder.decoder)
        for index in range(features.shape[2]):
            pixels = self.autoencoder.decoder(
                features[:, :, index : index + 1], feat_cache=memory, feat_idx=[0], first_chunk=index == 0
            )
            yield pixels.clamp(-1.0, 1.0).float()

    def encode_grey(
        self, num_frames: int, *, height: int, width: int, check: Callable[[], None]
    ) -> torch.Tensor:
        """Latents of an all-zero video: (1, 16, L, h, w) float32. Kept for the last size and length.

        Zeros are mid-grey pixels, and their latents are far from zero: they have to be encoded. `check` is
        called before every chunk and may raise.
        """

        def chunks() -> Iterator[torch.Tensor]:
            for part in chunks_of(num_frames):
                check()
                yield torch.zeros(1, 3, part.stop - part.start, height, width)

        key = (num_frames, height, width)
        if key not in self._grey:
            self._grey = {key: self.encode(chunks())}
        return self._grey[key]

    def _statistics(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and deviation a channel, (1, 16, 1, 1, 1) float32."""
        config = self.autoencoder.config
        mean = torch.tensor(config["latents_mean"], device=self.device).view(1, -1, 1, 1, 1)
        return mean, torch.tensor(config["latents_std"], device=self.device).view(1, -1, 1, 1, 1)


def chunks_of(num_frames: int) -> Iterator[slice]:
    """How a video of 4n+1 frames is cut for encoding: one frame, then four at a time."""
    yield slice(0, 1)
    for start in range(1, num_frames, TIME_STRIDE):
        yield slice(start, start + TIME_STRIDE)


def latent_frames(num_frames: int) -> int:
    """Latent frames that cover the first `num_frames` ≥ 1 video frames."""
    return -(-(num_frames - 1) // TIME_STRIDE) + 1


def new_memory(network: torch.nn.Module) -> list[torch.Tensor | str | None]:
    """An empty memory of earlier chunks: a slot a convolution, filled in place by diffusers' layers."""
    return [None] * sum(isinstance(module, WanCausalConv3d) for module in network.modules())


class CpuCausalConv3d(WanCausalConv3d):
    """The same convolution through oneDNN.

    torch chooses oneDNN by a size that leaves out narrow networks, and is 20 times slower without (measured:
    4 channels, 320 × 192).
    """

    def _conv_forward(
        self,
        input: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        return functional.conv3d(input.to_mkldnn(), weight, bias, self.stride).to_dense()


class CpuRmsNorm(WanRMS_norm):
    """The same norm as plain sums: torch's norm over channels is 60 times slower on a CPU (measured)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        length = x.square().sum(dim=1, keepdim=True).sqrt()
        return x / length.clamp_min(1e-12) * self.scale * self.gamma + self.bias


def use_cpu_kernels(autoencoder: AutoencoderKLWan) -> AutoencoderKLWan:
    """Let a float32 autoencoder on the CPU use the fast kernels. Changes results by rounding only."""
    for module in autoencoder.modules():
        # The instances keep their weights and hooks; only their forward changes.
        if isinstance(module, WanCausalConv3d):
            module.__class__ = CpuCausalConv3d
        elif isinstance(module, WanRMS_norm) and module.channel_first:
            module.__class__ = CpuRmsNorm
    return autoencoder
