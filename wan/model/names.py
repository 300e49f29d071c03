"""Names in the published files → those of the classes we run. Dicts in and out; no files.

Every function takes a part of a checkpoint as well as the whole (one shard after another), never changes its
argument, and shares the tensors' memory except where a projection has to be split in two or three (views).
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from diffusers.loaders.single_file_utils import (
    convert_wan_transformer_to_diffusers,
    convert_wan_vae_to_diffusers,
)

StateDict = dict[str, torch.Tensor]
Renames = tuple[tuple[str, str], ...]
"""(pattern, replacement), tried in order; the first that matches the whole name wins."""

TEXT_ENCODER: Renames = (
    (r"token_embedding\.weight", r"shared.weight"),
    (r"norm\.weight", r"encoder.final_layer_norm.weight"),
    (r"blocks\.(\d+)\.norm1\.weight", r"encoder.block.\1.layer.0.layer_norm.weight"),
    (r"blocks\.(\d+)\.norm2\.weight", r"encoder.block.\1.layer.1.layer_norm.weight"),
    (r"blocks\.(\d+)\.attn\.([qkvo])\.weight", r"encoder.block.\1.layer.0.SelfAttention.\2.weight"),
    (
        r"blocks\.(\d+)\.pos_embedding\.embedding\.weight",
        r"encoder.block.\1.layer.0.SelfAttention.relative_attention_bias.weight",
    ),
    (r"blocks\.(\d+)\.ffn\.gate\.0\.weight", r"encoder.block.\1.layer.1.DenseReluDense.wi_0.weight"),
    (r"blocks\.(\d+)\.ffn\.fc1\.weight", r"encoder.block.\1.layer.1.DenseReluDense.wi_1.weight"),
    (r"blocks\.(\d+)\.ffn\.fc2\.weight", r"encoder.block.\1.layer.1.DenseReluDense.wo.weight"),
)
IMAGE_ENCODER: Renames = (
    (r"visual\.cls_embedding", r"embeddings.class_embedding"),
    (r"visual\.pos_embedding", r"embeddings.position_embedding.weight"),
    (r"visual\.patch_embedding\.weight", r"embeddings.patch_embedding.weight"),
    (r"visual\.pre_norm\.(\w+)", r"pre_layrnorm.\1"),
    (r"visual\.post_norm\.(\w+)", r"post_layernorm.\1"),
    (r"visual\.transformer\.(\d+)\.norm([12])\.(\w+)", r"encoder.layers.\1.layer_norm\2.\3"),
    (r"visual\.transformer\.(\d+)\.attn\.to_qkv\.(\w+)", r"encoder.layers.\1.self_attn.{}_proj.\2"),
    (r"visual\.transformer\.(\d+)\.attn\.proj\.(\w+)", r"encoder.layers.\1.self_attn.out_proj.\2"),
    (r"visual\.transformer\.(\d+)\.mlp\.0\.(\w+)", r"encoder.layers.\1.mlp.fc1.\2"),
    (r"visual\.transformer\.(\d+)\.mlp\.2\.(\w+)", r"encoder.layers.\1.mlp.fc2.\2"),
)
NOT_WEIGHTS = re.compile(r".*\.kernel")  # the motion encoder's blur: a constant the class builds itself

FACE_ADAPTER = "face_adapter"


def transformer_names(tensors: Mapping[str, torch.Tensor]) -> StateDict:
    """Wan2.2-Animate's own names → AnimateTransformer's. Raises IndexError where a split one has no sides."""
    weights = {name: tensor for name, tensor in tensors.items() if not NOT_WEIGHTS.fullmatch(name)}
    # diffusers renames the face encoder only where it sees a face adapter: a part may hold none.
    converted = convert_wan_transformer_to_diffusers({**weights, FACE_ADAPTER: torch.empty(0)})
    converted.pop(FACE_ADAPTER)
    return converted


def transformer_config(published: Mapping[str, Any]) -> dict[str, Any]:
    """Wan2.2-Animate's own config.json → AnimateTransformer's arguments."""
    heads, width = published["num_heads"], published["dim"]
    return {
        "num_attention_heads": heads,
        "attention_head_dim": width // heads,
        "in_channels": published["in_dim"],
        "latent_channels": published["out_dim"],
        "out_channels": published["out_dim"],
        "text_dim": published["text_dim"],
        "freq_dim": published["freq_dim"],
        "ffn_dim": published["ffn_dim"],
        "num_layers": published["num_layers"],
        "eps": published["eps"],
        "cross_attn_norm": True,
        "qk_norm": "rms_norm_across_heads",
        "image_dim": 1280,  # CLIP ViT-H; hard-coded in the published class
        "added_kv_proj_dim": width,  # diffusers' default, None, would drop the picture
        "motion_encoder_dim": published["motion_encoder_dim"],
    }


def vae_names(tensors: Mapping[str, torch.Tensor]) -> StateDict:
    """Wan2.1_VAE.pth → AutoencoderKLWan."""
    return convert_wan_vae_to_diffusers(dict(tensors))


def text_encoder_names(tensors: Mapping[str, torch.Tensor]) -> StateDict:
    """models_t5_umt5-xxl-enc-bf16.pth → UMT5EncoderModel. Raises KeyError for a name that is not of it."""
    return {rename(name, TEXT_ENCODER): tensor for name, tensor in tensors.items()}


def image_encoder_names(tensors: Mapping[str, torch.Tensor]) -> StateDict:
    """The picture half of models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth → CLIPVisionModel.

    The text half and the final projection are left out. Raises KeyError for an unknown name of the picture
    half.
    """
    converted: StateDict = {}
    for name, tensor in tensors.items():
        if not name.startswith("visual.") or name == "visual.head":
            continue
        target = rename(name, IMAGE_ENCODER)
        if "{}" in target:
            converted |= {
                target.format(part): piece for part, piece in zip("qkv", tensor.chunk(3), strict=True)
            }
        elif name == "visual.cls_embedding":
            converted[target] = tensor[0, 0]
        elif name == "visual.pos_embedding":
            converted[target] = tensor[0]
        else:
            converted[target] = tensor
    return converted


def rename(name: str, renames: Renames) -> str:
    """The new name of one tensor. Raises KeyError where no rule knows it."""
    for pattern, replacement in renames:
        match = re.fullmatch(pattern, name)
        if match:
            return match.expand(replacement)
    raise KeyError(name)
