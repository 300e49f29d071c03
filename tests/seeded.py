"""Networks with the goldens' weights, for tests.

Every parameter is drawn from its published name and a salt, so that no weights have to be stored; what is
stored is each network's table of published names and shapes (`data/engine/networks.json`).
"""

import hashlib
import json
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from transformers import CLIPVisionConfig, CLIPVisionModel, UMT5Config, UMT5EncoderModel
from wan_animate.wan.conditions import Conditions, Scene
from wan_animate.wan.model import names
from wan_animate.wan.model.models import Models
from wan_animate.wan.model.smoke import PACE
from wan_animate.wan.model.transformer import AnimateTransformer
from wan_animate.wan.model.vae import VideoVae, use_cpu_kernels
from wan_animate.wan.sampling import Sampling

DATA = Path(__file__).parent / "data" / "engine"
GOLDEN = (
    Path(__file__).parents[2] / "shared" / "golden"
)  # the official code's outputs, where they are at hand


def draw(name: str, shape: tuple[int, ...], *, salt: str) -> torch.Tensor:
    """One parameter, float32, by its published name."""
    seed = zlib.crc32(f"{salt}/{name}".encode())
    normal = np.random.Generator(np.random.PCG64(seed)).standard_normal(shape, dtype=np.float32)
    if name.startswith("motion_encoder."):
        drawn = np.float32(0.1) * normal if name.endswith(".bias") else normal
    elif name.endswith("modulation"):
        drawn = normal * np.float32(shape[-1] ** -0.5)
    elif name.endswith(("padding_tokens", "cls_embedding", "pos_embedding")):
        drawn = np.float32(0.5) * normal
    elif name.endswith(".gamma") or (name.endswith(".weight") and len(shape) == 1):
        drawn = 1 + np.float32(0.1) * normal
    elif name.endswith(".bias") or len(shape) < 2:
        drawn = np.float32(0.05) * normal
    else:
        drawn = normal * np.float32(float(math.prod(shape[1:])) ** -0.5)
    return torch.from_numpy(np.asarray(drawn, np.float32))


@cache
def networks() -> dict[str, dict[str, Any]]:
    """By case: "config" of the published class, "salt", and "shapes" of its parameters by published name."""
    return json.loads((DATA / "networks.json").read_text())


def published(case: str) -> dict[str, torch.Tensor]:
    """A checkpoint in the published names."""
    network = networks()[case]
    return {name: draw(name, tuple(shape), salt=network["salt"]) for name, shape in network["shapes"].items()}


Config = dict[str, Any]
Weights = dict[str, torch.Tensor]


def build_transformer(config: Config, weights: Weights) -> AnimateTransformer:
    """WanAnimateModel, from its own config and names."""
    network = AnimateTransformer(**names.transformer_config(config))
    network.load_state_dict(names.transformer_names(weights), strict=True)
    return network.requires_grad_(False).eval()


def build_autoencoder(config: Config, weights: Weights) -> AutoencoderKLWan:
    """WanVAE_."""
    taken = ("z_dim", "dim_mult", "num_res_blocks", "temperal_downsample", "latents_mean", "latents_std")
    network = AutoencoderKLWan(base_dim=config["dim"], **{key: config[key] for key in taken})
    network.load_state_dict(names.vae_names(weights), strict=True)
    return network.requires_grad_(False).eval()


def build_text_encoder(config: Config, weights: Weights) -> UMT5EncoderModel:
    """T5Encoder; `config` with its vocabulary's size."""
    network = UMT5EncoderModel(
        UMT5Config(
            vocab_size=config["vocab"],
            d_model=config["dim"],
            d_kv=config["dim_attn"] // config["num_heads"],
            d_ff=config["dim_ffn"],
            num_layers=config["num_layers"],
            num_heads=config["num_heads"],
            relative_attention_num_buckets=config["num_buckets"],
        )
    )
    renamed = names.text_encoder_names(weights)
    # One tensor under two names in the class.
    network.load_state_dict(renamed | {"encoder.embed_tokens.weight": renamed["shared.weight"]}, strict=True)
    return network.requires_grad_(False).eval()


def build_image_encoder(config: Config, weights: Weights) -> CLIPVisionModel:
    """The picture half of XLMRobertaCLIP."""
    network = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=config["vision_dim"],
            intermediate_size=config["vision_dim"] * config["vision_mlp_ratio"],
            num_hidden_layers=config["vision_layers"],
            num_attention_heads=config["vision_heads"],
            image_size=config["image_size"],
            patch_size=config["patch_size"],
            hidden_act=config["activation"],
        )
    )
    network.load_state_dict(names.image_encoder_names(weights), strict=True)
    return network.requires_grad_(False).eval()


@cache
def transformer(case: str) -> AnimateTransformer:
    return build_transformer(networks()[case]["config"], published(case))


@cache
def autoencoder(case: str) -> AutoencoderKLWan:
    return build_autoencoder(networks()[case]["config"], published(case))


@cache
def text_encoder(case: str) -> UMT5EncoderModel:
    return build_text_encoder(networks()[case]["config"], published(case))


@cache
def image_encoder(case: str) -> CLIPVisionModel:
    return build_image_encoder(networks()[case]["config"], published(case))


def relative(ours: torch.Tensor, theirs: torch.Tensor | np.ndarray) -> float:
    """Largest difference over largest value."""
    expected = torch.as_tensor(theirs)
    return float((ours - expected).abs().max() / expected.abs().max())


class KnownFaces(torch.nn.Module):
    """A motion encoder that remembers faces by content: 1 s a face on a CPU is too slow for a test.

    Starts out with what the real one was recorded to give (`data/engine/motion.npz`);
    `encoder` is asked for others.
    """

    def __init__(self, encoder: torch.nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        recorded = np.load(DATA / "motion.npz")
        self.vectors = {
            key.tobytes(): torch.from_numpy(vector)
            for key, vector in zip(recorded["keys"], recorded["vectors"], strict=True)
        }

    def forward(self, faces: torch.Tensor) -> torch.Tensor:
        return torch.stack([self._vector(face) for face in faces])

    def _vector(self, face: torch.Tensor) -> torch.Tensor:
        key = self.key(face)
        if key not in self.vectors:
            self.vectors[key] = self.encoder(face[None])[0]
        return self.vectors[key]

    @staticmethod
    def key(face: torch.Tensor) -> bytes:
        """Of a (3, 512, 512) face made by `enlarge`."""
        return hashlib.blake2b(face[:, ::16, ::16].contiguous().numpy().tobytes(), digest_size=8).digest()


def enlarge(faces: np.ndarray) -> np.ndarray:
    """(n, 32, 32, 3) → (n, 512, 512, 3), each pixel 16 × 16 times: how the goldens store faces."""
    return faces.repeat(16, axis=1).repeat(16, axis=2)


def pad_text(context: np.ndarray) -> torch.Tensor:
    """Recorded text features (n, D) → (1, 512, D)."""
    return torch.nn.functional.pad(torch.from_numpy(context), (0, 0, 0, 512 - len(context)))[None]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedText:
    """In a text encoder's place: recorded features by prompt."""

    contexts: dict[str, np.ndarray]

    def __call__(self, prompt: str) -> torch.Tensor:
        return pad_text(self.contexts[prompt])

    def fits(self, prompt: str) -> bool:
        return prompt in self.contexts


def pipeline_models(contexts: dict[str, np.ndarray], clip_features: np.ndarray) -> Models:
    """The pipeline goldens' networks; text and picture features as recorded."""
    network = transformer("pipeline_dit")
    if not isinstance(network.motion_encoder, KnownFaces):
        network.motion_encoder = KnownFaces(network.motion_encoder)
    return Models(
        transformer=network,
        vae=VideoVae(use_cpu_kernels(autoencoder("pipeline_vae"))),
        text_encoder=RecordedText(contexts=contexts),
        image_encoder=lambda _: torch.from_numpy(clip_features),
        device=torch.device("cpu"),
        pace=PACE,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenRun:
    """One recorded run of the published `generate`, as a ClipSource."""

    config: dict[str, Any]
    arrays: Any  # the run's npz
    shared: Any  # the arrays all runs share

    @staticmethod
    def load(path: Path) -> "GoldenRun":
        return GoldenRun(
            config=json.loads(path.read_text()),
            arrays=np.load(path.with_suffix(".npz")),
            shared=np.load(path.parent / "shared.npz"),
        )

    @property
    def num_frames(self) -> int:
        return self.config["real_frame_len"]

    @property
    def replaces(self) -> bool:
        return self.config["mode"] == "replace"

    @property
    def reference(self) -> np.ndarray:
        return self.arrays["ref_resized"]

    def conditions(self, frames: Sequence[int]) -> Conditions:
        assert max(frames) < self.num_frames
        size, numbers = f"{self.config['H']}x{self.config['W']}", list(frames)
        scene = None
        if self.replaces:
            scene = Scene(
                background=self.shared[f"bg_{size}"][numbers], mask=self.shared[f"mask_{size}"][numbers]
            )
        return Conditions(
            pose=self.shared[f"pose_{size}"][numbers],
            face=enlarge(self.shared["face_base_u8"][numbers]),
            scene=scene,
        )

    @property
    def sampling(self) -> Sampling:
        return Sampling(
            seed=0,
            steps=self.config["sampling_steps"],
            shift=self.config["shift"],
            guidance=self.config["guide_scale"],
            solver=self.config["solver"],
            clip_len=self.config["clip_len"],
            overlap=self.config["refert_num"],
            prompt="prompt",
            negative_prompt="negative",
        )

    @property
    def models(self) -> Models:
        contexts = {"prompt": self.shared["context"], "negative": self.shared["context_null"]}
        return pipeline_models(contexts, self.shared["clip_fea_int8"].astype(np.float32) / 8)

    def noise(self, clip_index: int, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.from_numpy(self.arrays["noise"][clip_index]).reshape(shape)

    def clip(self, index: int, name: str) -> torch.Tensor:
        """A recorded array of one clip, with a batch axis."""
        return torch.from_numpy(self.arrays[f"c{index}_{name}"])[None]


RUNS = sorted(GOLDEN.glob("pipeline/0*.json"))
