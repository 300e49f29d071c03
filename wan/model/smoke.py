"""The engine's networks at a tiny size with seeded random weights, for machines too small for the real ones.

The classes are those of the real model and every line of code runs; the picture means nothing. Only widths
and depths differ; faces stay 512 × 512 and the prompt 512 tokens.
"""

from zlib import crc32

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from transformers import ByT5Tokenizer, CLIPVisionConfig, CLIPVisionModel, UMT5Config, UMT5EncoderModel

from .encoders import ImageEncoder, TextEncoder
from .lora import Branch, Lora, Shapes
from .models import Models, Pace
from .transformer import AnimateTransformer
from .vae import VideoVae, use_cpu_kernels

CPU = torch.device("cpu")
LORA_RANK = 4
LORA_SCALE = 0.1
MOTION_SIDES = (4, 8, 16, 32, 64, 128, 256, 512)  # pixels a side of the motion encoder's layers

# Measured on two CPU cores: 77 frames at 320 × 192 take 1.8 s to condition, 0.09 s a step, 0.6 s to decode.
PACE = Pace(encode_s=0.1, condition_s=0.4, decode_s=0.2, step_linear_s=0.003, step_quadratic_s=0.003)


def build_smoke_models(
    *, seed: int = 0, device: torch.device = CPU, dtype: torch.dtype = torch.float32
) -> Models:
    """Build the tiny engine; the same seed gives the same weights on every device.

    `dtype` is the transformer's; VAE and encoders are float32.
    """
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers are not touched
        torch.manual_seed(seed)
        transformer, vae, text, image = tiny_transformer(), tiny_vae(), tiny_text(), tiny_image()
    transformer.set_precision(dtype)
    for network in (transformer, vae, text, image):
        freeze(network, device)
    if device.type == "cpu":
        use_cpu_kernels(vae)
    return Models(
        transformer=transformer,
        vae=VideoVae(vae),
        text_encoder=TextEncoder(text, ByT5Tokenizer()),
        image_encoder=ImageEncoder(image),
        device=device,
        pace=PACE,
    )


def freeze(network: torch.nn.Module, device: torch.device) -> None:
    """Ready for use on `device`."""
    network.requires_grad_(False).eval().to(device)


def tiny_transformer() -> AnimateTransformer:
    """Two blocks, the first with a face adapter. The number of blocks must be a multiple of the distance."""
    return AnimateTransformer(
        num_attention_heads=2,
        attention_head_dim=12,
        text_dim=32,
        freq_dim=32,
        ffn_dim=48,
        num_layers=2,
        image_dim=32,
        added_kv_proj_dim=24,
        motion_encoder_channel_sizes={str(side): 4 if side < 256 else 2 for side in MOTION_SIDES},
        motion_style_dim=16,
        motion_dim=8,
        motion_encoder_dim=16,
        face_encoder_hidden_dim=16,
        inject_face_latents_blocks=2,
    )


def tiny_vae() -> AutoencoderKLWan:
    return AutoencoderKLWan(base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=0)


def tiny_text() -> UMT5EncoderModel:
    """Vocabulary of ByT5Tokenizer, which needs no file."""
    return UMT5EncoderModel(
        UMT5Config(vocab_size=384, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    )


def tiny_image() -> CLIPVisionModel:
    return CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=224,
            patch_size=14,
        )
    )


def tiny_lora(name: str, *, shapes: Shapes) -> Lora:
    """A LoRA for the tiny transformer: on every linear layer of its blocks, seeded by its name."""
    generator = torch.Generator().manual_seed(crc32(name.encode()))

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) / shape[1] ** 0.5

    return Lora(
        source=f"smoke's {name}",
        branches={
            path.removesuffix(".weight"): Branch(
                down=random(LORA_RANK, shape[1]), up=random(shape[0], LORA_RANK), scale=LORA_SCALE
            )
            for path, shape in shapes.items()
            if path.startswith("blocks.") and path.endswith(".weight") and len(shape) == 2
        },
        changes={},
    )
