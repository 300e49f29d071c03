"""The recordings' networks: our classes with the weights that the recordings were made with.

Weights are not stored but drawn from each parameter's published name (`tests.seeded.draw`); which parameters
there are, with their shapes, stands in the `weights_check*.json` beside a recording. Equal networks are built
once.
"""

import hashlib
import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from transformers import CLIPVisionModel, UMT5EncoderModel
from wan_animate.wan.model.transformer import AnimateTransformer

from ..seeded import (
    Config,
    Weights,
    build_autoencoder,
    build_image_encoder,
    build_text_encoder,
    build_transformer,
    draw,
)
from .findings import Check, relative_largest

SUM_ROUNDING = 1e-9  # of float64 sums, whose order is free

_networks: dict[str, torch.nn.Module] = {}  # by what makes them


def drawn_weights(check: Path, *, salt: str) -> Weights:
    """The parameters that a `weights_check*.json` lists, by published name."""
    return _drawn(check.read_text(), salt)


@lru_cache(maxsize=1)  # to check them and to build with them
def _drawn(check: str, salt: str) -> Weights:
    table = json.loads(check)
    return {name: draw(name, tuple(entry["shape"]), salt=salt) for name, entry in table.items()}


def check_weights(check: Path, *, salt: str) -> tuple[Check, ...]:
    """Whether the random numbers are still those of the recordings: first values and sums."""
    return _checked(check.read_text(), salt)


@lru_cache
def _checked(check: str, salt: str) -> tuple[Check, ...]:
    ours = _drawn(check, salt)
    table = {name: entry for name, entry in json.loads(check).items() if "first" in entry}
    first = [value for name in table for value in ours[name].flatten()[:3].tolist()]
    sums = [float(ours[name].double().sum()) for name in table]
    return (
        relative_largest("first values", first, [v for entry in table.values() for v in entry["first"]], 0.0),
        relative_largest("sums", sums, [entry["sum"] for entry in table.values()], SUM_ROUNDING),
    )


def transformer(config: Config, check: Path, *, salt: str) -> AnimateTransformer:
    """WanAnimateModel. Its motion encoder remembers faces."""

    def build(config: Config, weights: Weights) -> AnimateTransformer:
        network = build_transformer(config, weights)
        network.motion_encoder = RememberedFaces(network.motion_encoder)
        return network

    return _once(build, config, check, salt)


def autoencoder(config: Config, check: Path, *, salt: str) -> AutoencoderKLWan:
    """WanVAE_."""
    return _once(build_autoencoder, config, check, salt)


def text_encoder(config: Config, check: Path, *, salt: str) -> UMT5EncoderModel:
    """T5Encoder; `config` with its vocabulary's size."""
    return _once(build_text_encoder, config, check, salt)


def image_encoder(config: Config, check: Path, *, salt: str) -> CLIPVisionModel:
    """The picture half of XLMRobertaCLIP."""
    return _once(build_image_encoder, config, check, salt)


class RememberedFaces(torch.nn.Module):
    """The motion encoder, asked once a face, whatever the recording: a face takes a second on a CPU."""

    def __init__(self, encoder: torch.nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.vectors: dict[bytes, torch.Tensor] = {}

    def forward(self, faces: torch.Tensor) -> torch.Tensor:
        """(n, 3, 512, 512) → (n, M), one face at a time as the recordings were made."""
        return torch.stack([self._vector(face) for face in faces])

    def _vector(self, face: torch.Tensor) -> torch.Tensor:
        key = hashlib.blake2b(face.contiguous().numpy().tobytes()).digest()
        if key not in self.vectors:
            self.vectors[key] = self.encoder(face[None])[0]
        return self.vectors[key]


def clip_features(case: dict[str, np.ndarray]) -> torch.Tensor:
    """Recorded picture features (1, 257, 1280)."""
    return torch.from_numpy(case["clip_fea_int8"].astype(np.float32) / 8)


def _once(build: Callable[[Config, Weights], Any], config: Config, check: Path, salt: str) -> Any:
    # Not by the whole list: our own set has fewer values in it, and equal networks share their faces.
    shapes = {name: entry["shape"] for name, entry in json.loads(check.read_text()).items()}
    key = json.dumps([build.__qualname__, config, salt, shapes])
    if key not in _networks:
        _networks[key] = build(config, drawn_weights(check, salt=salt))
    return _networks[key]
