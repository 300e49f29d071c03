"""The networks of one engine, together. Made by `smoke` or by loading published weights; knows neither."""

from dataclasses import dataclass

import torch

from .encoders import ImageEncoder, TextEncoder
from .transformer import AnimateTransformer
from .vae import VideoVae


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Rough seconds, for a first guess of the time left; measured speed replaces them as a request runs."""

    encode_s: float  # text, or picture
    condition_s: float  # a million pixels of a clip's frames
    decode_s: float  # the same
    step_linear_s: float  # a thousand tokens, one pass
    step_quadratic_s: float  # a million pairs of tokens, one pass

    def step_s(self, tokens: int) -> float:
        """Seconds of one pass over `tokens` tokens."""
        return self.step_linear_s * tokens / 1e3 + self.step_quadratic_s * tokens**2 / 1e6


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Models:
    """All an Animator needs. Parameters are frozen, in evaluation mode; each network knows its own type."""

    transformer: AnimateTransformer
    vae: VideoVae
    text_encoder: TextEncoder
    image_encoder: ImageEncoder
    device: torch.device  # where clips are made; features and latents are moved there
    pace: Pace
