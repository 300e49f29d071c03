"""A FLUX.1-Kontext folder as the hub has it, of tiny random networks: same files, names and classes."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.pipelines.flux import pipeline_flux_kontext
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel
from wan_animate.preprocess.full import flux

CLASSES = {
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "T5TokenizerFast"],
    "transformer": ["diffusers", "FluxTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


VAE: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (2, 2, 2, 2),
    "layers_per_block": 1,
    "norm_num_groups": 1,
    "latent_channels": 16,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "mid_block_add_attention": False,
}


def save_tiny_flux(folder: Path) -> Path:
    """Write the repository's files below `folder`, bf16 as published; returns it."""
    torch.manual_seed(0)
    words: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    networks = {
        "text_encoder": CLIPTextModel(CLIPTextConfig(**words, vocab_size=300, projection_dim=16)),
        "text_encoder_2": T5EncoderModel(
            T5Config(vocab_size=300, d_model=24, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
        ),
        "transformer": FluxTransformer2DModel(
            in_channels=64,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=24,
            pooled_projection_dim=16,
            guidance_embeds=True,
            axes_dims_rope=(2, 2, 4),
        ),
        "vae": AutoencoderKL(**VAE),
    }
    for name, network in networks.items():
        network.to(torch.bfloat16).save_pretrained(folder / name)
    FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0).save_pretrained(
        folder / "scheduler"
    )
    _save_clip_tokenizer(folder / "tokenizer")
    _save_t5_tokenizer(folder / "tokenizer_2")
    index = {"_class_name": "FluxKontextPipeline", "_diffusers_version": "0.34.0.dev0", **CLASSES}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@contextmanager
def small_pictures() -> Iterator[None]:
    """Let the pipeline work at 128 × 128 pixels instead of a megapixel."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flux, "AREA", 128 * 128)
        patch.setattr(pipeline_flux_kontext, "PREFERRED_KONTEXT_RESOLUTIONS", [(128, 128)])
        yield


def _save_clip_tokenizer(folder: Path) -> None:
    """Slow files, as published: letters and their word-ends, no merges."""
    folder.mkdir()
    letters = [chr(code) for code in range(33, 127)]
    symbols = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({symbol: i for i, symbol in enumerate(symbols)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "CLIPTokenizer",
                "bos_token": "<|startoftext|>",
                "eos_token": "<|endoftext|>",
                "unk_token": "<|endoftext|>",
                "pad_token": "<|endoftext|>",
                "model_max_length": 77,
            }
        )
    )


def _save_t5_tokenizer(folder: Path) -> None:
    """The fast file; the published folder has sentencepiece's beside it."""
    folder.mkdir()
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(chr(code), -3.0) for code in range(33, 127)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "T5Tokenizer",
                "eos_token": "</s>",
                "pad_token": "<pad>",
                "unk_token": "<unk>",
                "extra_ids": 0,
                "model_max_length": 512,
            }
        )
    )
