"""The model files as they are published, at any size: names, shapes, shards, folders. Content is random."""

import json
import math
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.file_download import repo_folder_name
from safetensors.torch import save_file
from transformers import ByT5Tokenizer
from wan_animate.wan.model.load import INDEX
from wan_animate.wan.runtime.weights import Weights

from benchmarks.random_models import random_encoders, random_vae

SHARDS = 5
COMMIT = "0" * 40
REAL_CONFIG = {
    "num_heads": 40, "dim": 5120, "in_dim": 36, "out_dim": 16, "text_dim": 4096, "freq_dim": 256,
    "ffn_dim": 13824, "num_layers": 40, "eps": 1e-6, "motion_encoder_dim": 512,
}  # fmt: skip
REAL_SIZE = {"dim": 5120, "heads": 40, "ffn": 13824, "text": 4096, "freq": 256, "layers": 40}


def published_shapes(
    *, dim: int, heads: int, ffn: int, text: int, freq: int, layers: int
) -> dict[str, tuple]:
    """Names and shapes of Wan2.2-Animate's transformer as its makers' class gives them, at any size."""

    def linear(name: str, out: int, into: int) -> dict[str, tuple]:
        return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}

    shapes: dict[str, tuple] = {"patch_embedding.weight": (dim, 36, 1, 2, 2), "patch_embedding.bias": (dim,)}
    shapes |= {"pose_patch_embedding.weight": (dim, 16, 1, 2, 2), "pose_patch_embedding.bias": (dim,)}
    shapes |= linear("text_embedding.0", dim, text) | linear("text_embedding.2", dim, dim)
    shapes |= linear("time_embedding.0", dim, freq) | linear("time_embedding.2", dim, dim)
    shapes |= linear("time_projection.1", 6 * dim, dim)
    for i in range(layers):
        block = f"blocks.{i}"
        shapes[f"{block}.modulation"] = (1, 6, dim)
        for part in ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o"):
            shapes |= linear(f"{block}.{part}", dim, dim)
        for part in ("q", "k", "v", "o", "k_img", "v_img"):
            shapes |= linear(f"{block}.cross_attn.{part}", dim, dim)
        for norm in ("self_attn.norm_q", "self_attn.norm_k", "norm3", "cross_attn.norm_q"):
            shapes[f"{block}.{norm}.weight"] = (dim,)
        for norm in ("cross_attn.norm_k", "cross_attn.norm_k_img"):
            shapes[f"{block}.{norm}.weight"] = (dim,)
        shapes[f"{block}.norm3.bias"] = (dim,)
        shapes |= linear(f"{block}.ffn.0", ffn, dim) | linear(f"{block}.ffn.2", dim, ffn)
    shapes |= {"head.modulation": (1, 2, dim)} | linear("head.head", 64, dim)
    shapes |= {"img_emb.proj.0.weight": (1280,), "img_emb.proj.0.bias": (1280,)}
    shapes |= linear("img_emb.proj.1", 1280, 1280) | linear("img_emb.proj.3", dim, 1280)
    shapes |= {"img_emb.proj.4.weight": (dim,), "img_emb.proj.4.bias": (dim,)}
    shapes |= motion_encoder_shapes()
    for i in range(layers // 5):
        adapter = f"face_adapter.fuser_blocks.{i}"
        shapes |= linear(f"{adapter}.linear1_kv", 2 * dim, dim) | linear(f"{adapter}.linear1_q", dim, dim)
        shapes |= linear(f"{adapter}.linear2", dim, dim)
        shapes |= {f"{adapter}.{norm}.weight": (dim // heads,) for norm in ("q_norm", "k_norm")}
    shapes["face_encoder.padding_tokens"] = (1, 1, 1, dim)
    for conv, out, into in (("conv1_local", 4096, 512), ("conv2", 1024, 1024), ("conv3", 1024, 1024)):
        shapes |= {
            f"face_encoder.{conv}.conv.weight": (out, into, 3),
            f"face_encoder.{conv}.conv.bias": (out,),
        }
    return shapes | linear("face_encoder.out_proj", dim, 1024)


def motion_encoder_shapes() -> dict[str, tuple]:
    convs, widths = "motion_encoder.enc.net_app.convs", (32, 64, 128, 256, 512, 512, 512, 512)
    shapes: dict[str, tuple] = {f"{convs}.0.0.weight": (32, 3, 1, 1), f"{convs}.0.1.bias": (1, 32, 1, 1)}
    for i, (into, out) in enumerate(pairwise(widths), start=1):
        shapes |= {
            f"{convs}.{i}.conv1.0.weight": (into, into, 3, 3),
            f"{convs}.{i}.conv1.1.bias": (1, into, 1, 1),
            f"{convs}.{i}.conv2.0.kernel": (4, 4),
            f"{convs}.{i}.conv2.1.weight": (out, into, 3, 3),
            f"{convs}.{i}.conv2.2.bias": (1, out, 1, 1),
            f"{convs}.{i}.skip.0.kernel": (4, 4),
            f"{convs}.{i}.skip.1.weight": (out, into, 1, 1),
        }
    shapes[f"{convs}.8.weight"] = (512, 512, 4, 4)
    for i, out in enumerate((512, 512, 512, 512, 20)):
        shapes |= {f"motion_encoder.enc.fc.{i}.weight": (out, 512), f"motion_encoder.enc.fc.{i}.bias": (out,)}
    return shapes | {"motion_encoder.dec.direction.weight": (512, 20)}


def is_constant(name: str) -> bool:
    return name.endswith(".kernel")


class RandomTensors(Mapping[str, torch.Tensor]):
    """Tensors of these shapes, drawn where they are asked for: a checkpoint larger than the memory."""

    def __init__(
        self, shapes: Mapping[str, tuple], *, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        self._shapes, self._dtype, self._device = shapes, dtype, device

    def __getitem__(self, name: str) -> torch.Tensor:
        shape = self._shapes[name]
        if len(shape) == 1 and name.endswith(".weight"):  # a norm's
            return torch.ones(shape, dtype=self._dtype)
        deviation = 0.02 if len(shape) == 1 else math.prod(shape[1:]) ** -0.5
        return (torch.randn(shape, device=self._device, dtype=self._dtype) * deviation).to("cpu")

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


def write_checkpoint(folder: Path, tensors: Mapping[str, torch.Tensor], config: dict[str, Any]) -> Path:
    """In the makers' format: config, shards of consecutive tensors, index. Holds one shard at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"_class_name": "WanAnimateModel", **config}))
    order, placed, size = list(tensors), {}, 0
    for i in range(SHARDS):
        part = order[i * len(order) // SHARDS : (i + 1) * len(order) // SHARDS]
        file = f"diffusion_pytorch_model-{i + 1:05}-of-{SHARDS:05}.safetensors"
        save_file({name: tensors[name].contiguous() for name in part}, folder / file, {"format": "pt"})
        placed |= dict.fromkeys(part, file)
        size += (folder / file).stat().st_size
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": size}, "weight_map": placed}))
    return folder


def write_encoders(folder: Path, *, device: torch.device | str, dtype: torch.dtype) -> Path:
    """The Diffusers repository's folders: text and picture encoder, VAE, and a tokenizer that fits any."""
    text, image = random_encoders(device, dtype)
    text.save_pretrained(folder / "text_encoder")
    image.save_pretrained(folder / "image_encoder")
    ByT5Tokenizer().save_pretrained(folder / "tokenizer")
    random_vae(device, torch.float32).save_pretrained(folder / "vae")
    (folder / "image_processor").mkdir(exist_ok=True)
    (folder / "image_processor" / "preprocessor_config.json").write_text("{}")
    return folder


def write_lora(file: Path, shapes: Mapping[str, tuple], *, rank: int, device: torch.device | str) -> Path:
    """A small change to every linear layer of the blocks, by published names, in lightx2v's dialect."""
    tensors = {}
    for name, shape in shapes.items():
        module = name.removesuffix(".weight")
        if module == name or len(shape) != 2 or not name.startswith("blocks."):
            continue
        down = torch.randn(rank, shape[1], device=device, dtype=torch.bfloat16) * shape[1] ** -0.5
        up = torch.randn(shape[0], rank, device=device, dtype=torch.bfloat16) * 0.02
        tensors[f"diffusion_model.{module}.lora_down.weight"] = down.to("cpu")
        tensors[f"diffusion_model.{module}.lora_up.weight"] = up.to("cpu")
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".safetensors":
        save_file(tensors, file, {"format": "pt"})
    else:
        torch.save(tensors, file)
    return file


def hub_folder(cache: Path, weights: Weights) -> Path:
    """Where the hub's cache has a repository's files, made known to it as the newest commit."""
    repository = cache / repo_folder_name(repo_id=weights.repository, repo_type="model")
    (repository / "refs").mkdir(parents=True, exist_ok=True)
    (repository / "refs" / weights.revision).write_text(COMMIT)
    return repository / "snapshots" / COMMIT
