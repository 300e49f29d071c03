"""Pixels ↔ latents, a few frames at a time. The network is diffusers' AutoencoderKLWan; the loop over time is ours.

Both directions work through the video in chunks (one frame, then four at a time) and carry the network's memory of
earlier chunks along, so memory is bounded by one chunk and a caller can stop between two. The numbers are bit for bit
those of AutoencoderKLWan.encode and .decode. Letters: T frames, H W pixels; L = (T − 1) / 4 + 1, h w = H W / 8.
"""

from collections.abc import Iterable, Iterator

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan, WanCausalConv3d

TIME_STRIDE = 4  # video frames a latent frame, but the first stands for one
SPACE_STRIDE = 8  # pixels a latent pixel, each way


class VideoVae:
    """The VAE with normalised latents. Holds no state between calls but latents of black video."""

    def __init__(self, autoencoder: AutoencoderKLWan) -> None:
        self.autoencoder = autoencoder
        self._grey: dict[tuple[int, int, int], torch.Tensor] = {}

    @property
    def device(self) -> torch.device:
        return self.autoencoder.device

    @property
    def dtype(self) -> torch.dtype:
        return self.autoencoder.dtype

    def encode(self, chunks: Iterable[torch.Tensor]) -> torch.Tensor:
        """Normalised latents (1, 16, L, h, w) float32 of a video in [−1, 1], handed over in chunks.

        The chunks are (1, 3, n, H, W) with n = 1, 4, 4, …, as `chunks_of` cuts them. Stop by raising from the iterator.
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

    def encode_grey(self, num_frames: int, *, height: int, width: int) -> torch.Tensor:
        """Latents of an all-zero video: (1, 16, L, h, w) float32. Computed once for a size and length.

        Zeros are mid-grey pixels, and their latents are far from zero: they have to be encoded.
        """
        key = (num_frames, height, width)
        if key not in self._grey:
            grey = torch.zeros(1, 3, TIME_STRIDE, height, width, device=self.device, dtype=self.dtype)
            self._grey = {key: self.encode(grey[:, :, : _length(part)] for part in chunks_of(num_frames))}
        return self._grey[key]

    def _statistics(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and deviation a channel, (1, 16, 1, 1, 1) float32."""
        config = self.autoencoder.config
        mean = torch.tensor(config.latents_mean, device=self.device).view(1, -1, 1, 1, 1)
        return mean, torch.tensor(config.latents_std, device=self.device).view(1, -1, 1, 1, 1)


def chunks_of(num_frames: int) -> Iterator[slice]:
    """How a video of 4n+1 frames is cut for encoding: one frame, then four at a time."""
    yield slice(0, 1)
    for start in range(1, num_frames, TIME_STRIDE):
        yield slice(start, start + TIME_STRIDE)


def latent_frames(num_frames: int) -> int:
    """Latent frames that cover the first `num_frames` ≥ 1 video frames."""
    return -(-(num_frames - 1) // TIME_STRIDE) + 1


def new_memory(network: torch.nn.Module) -> list[torch.Tensor | str | None]:
    """An empty memory of earlier chunks: one slot a causal convolution. diffusers' layers fill it in place."""
    return [None] * sum(isinstance(module, WanCausalConv3d) for module in network.modules())


def _length(part: slice) -> int:
    return part.stop - part.start
