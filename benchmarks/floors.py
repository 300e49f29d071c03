"""The least that a step, the VAE and a clip ask of a machine: operations and bytes, from shapes alone.

Knows no clock: `Bench.floor` puts the rates measured in the same run under it. What is counted is the work of
the network as published, each weight, input and output moved once; what lies between two layers is not
counted, for a better kernel would not move it.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from wan_animate.wan.model.transformer import GIVEN_CHANNELS, LATENT_CHANNELS, PICTURE_TOKENS
from wan_animate.wan.model.vae import SPACE_STRIDE, VideoVae, chunks_of, latent_frames

from benchmarks.measuring import Bench, Work

PATCH = 2  # latent pixels a side of a token


@dataclass(frozen=True, slots=True, kw_only=True)
class VaeFloors:
    """Seconds of one clip of video."""

    encode: float
    decode: float

    @property
    def clip(self) -> float:
        """What a clip needs: the pose and what is known are encoded, the result is decoded."""
        return 2 * self.encode + self.decode


def clip_floor(
    bench: Bench,
    transformer: nn.Module,
    autoencoder: AutoencoderKLWan,
    *,
    size: tuple[int, int],
    steps: int,
    streamed: bool,
) -> float:
    """Seconds of two encodes, the steps and one decode; the encoders and the faces are below 1 % of it."""
    step = bench.floor(step_work(transformer, frames=bench.frames, size=size, streamed=streamed))
    return steps * step + vae_floors(bench, autoencoder, size=size).clip


def step_work(model: nn.Module, *, frames: int, size: tuple[int, int], streamed: bool = False) -> Work:
    """One pass over a clip of `frames` at `size` (H, W). `streamed`: the blocks come from the host."""
    height, width = size
    length = latent_frames(frames) + 1  # the reference picture comes first
    pixels = length * (height // SPACE_STRIDE) * (width // SPACE_STRIDE)
    channels = LATENT_CHANNELS + GIVEN_CHANNELS + LATENT_CHANNELS + LATENT_CHANNELS  # noise, given, pose; out
    blocks = weight_bytes(model.blocks)
    return Work(
        flop=step_flop(model, tokens=pixels // PATCH**2),
        moved=blocks + weight_bytes(model.face_adapter) + 4 * channels * pixels,  # latents are float32
        copied=blocks if streamed else 0.0,
    )


def step_flop(model: nn.Module, *, tokens: int) -> float:
    """Operations of one pass over the blocks and face adapters; the rest is below 0.1 %.

    Of the context only the picture: a prompt has a dozen tokens, and its padding is one token 500 times.
    """
    config = model.config
    width = config.num_attention_heads * config.attention_head_dim
    products = 2 * tokens * (6 * width**2 + 2 * width * config.ffn_dim)
    products += 2 * PICTURE_TOKENS * 2 * width**2
    attended = 4 * tokens * (tokens + PICTURE_TOKENS) * width
    adapters = config.num_layers // config.inject_face_latents_blocks
    return config.num_layers * (products + attended) + adapters * 2 * tokens * 2 * width**2


def vae_floors(bench: Bench, autoencoder: AutoencoderKLWan, *, size: tuple[int, int]) -> VaeFloors:
    """At the rates of this run, with the weights in the type they have."""
    element = autoencoder.post_quant_conv.weight.element_size()
    height, width = size
    pixels = 3 * bench.frames * height * width
    latents = LATENT_CHANNELS * latent_frames(bench.frames) * height * width // SPACE_STRIDE**2
    flop = vae_flop(autoencoder, frames=bench.frames, size=size)
    encoder, decoder = weight_bytes(autoencoder.encoder), weight_bytes(autoencoder.decoder)
    through = element * (pixels + latents)
    return VaeFloors(
        encode=bench.floor(Work(flop=flop[0], moved=encoder + through)),
        decode=bench.floor(Work(flop=flop[1], moved=decoder + through)),
    )


def vae_flop(autoencoder: AutoencoderKLWan, *, frames: int, size: tuple[int, int]) -> tuple[float, float]:
    """Operations of encoding and of decoding a video, chunk by chunk as it is done."""
    settings = {name: value for name, value in autoencoder.config.items() if not name.startswith("_")}
    return _vae_flop(json.dumps(settings), frames, size)


@cache  # three seconds at the real size
def _vae_flop(settings: str, frames: int, size: tuple[int, int]) -> tuple[float, float]:
    """Counted on shapes, with diffusers' layers: no memory, no device."""
    height, width = size
    # The counter sees products and convolutions only where torch takes its ordinary way to them.
    with torch.inference_mode(False), torch.no_grad(), torch.device("meta"):
        vae = VideoVae(AutoencoderKLWan(**json.loads(settings)))
        video = torch.empty(1, 3, frames, height, width)
        latents = torch.empty(
            1, LATENT_CHANNELS, latent_frames(frames), height // SPACE_STRIDE, width // SPACE_STRIDE
        )
        with FlopCounterMode(display=False) as encoding:
            vae.encode(_parts(video))
        with FlopCounterMode(display=False) as decoding:
            for _ in vae.decode(latents):
                continue
    return float(encoding.get_total_flops()), float(decoding.get_total_flops())


def _parts(video: torch.Tensor) -> Iterator[torch.Tensor]:
    return (video[:, :, part] for part in chunks_of(video.shape[2]))


def weight_bytes(modules: Iterable[nn.Module] | nn.Module) -> float:
    """Bytes of all weights, each once."""
    network = modules if isinstance(modules, nn.Module) else nn.ModuleList(modules)
    return float(sum(weight.numel() * weight.element_size() for weight in network.parameters()))
