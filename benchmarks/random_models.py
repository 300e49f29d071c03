"""The engine's networks at their real size with seeded random weights: the real cost, not the picture.

Weights are drawn so that activations stay of order one, which keeps differences between two ways of computing
the same thing meaningful.
"""

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.models.transformers.transformer_wan_animate import (
    WanAnimateTransformer3DModel,
    WanRotaryPosEmbed,
)
from torch import nn
from transformers import ByT5Tokenizer, CLIPVisionConfig, CLIPVisionModel, UMT5Config, UMT5EncoderModel
from wan_animate.wan.model.encoders import ImageEncoder, TextEncoder
from wan_animate.wan.model.models import Models, Pace
from wan_animate.wan.model.transformer import AnimateTransformer
from wan_animate.wan.model.vae import VideoVae

TRANSFORMER = {"added_kv_proj_dim": 5120}  # diffusers' defaults are the 14B model's otherwise
TINY_TRANSFORMER = {
    "num_attention_heads": 2, "attention_head_dim": 16, "added_kv_proj_dim": 32, "ffn_dim": 64,
    "text_dim": 32, "freq_dim": 32, "image_dim": 32, "num_layers": 4, "inject_face_latents_blocks": 2,
    "motion_encoder_channel_sizes": {str(2**power): 2 for power in range(2, 10)},
    "motion_encoder_size": 32, "motion_style_dim": 16, "motion_dim": 4, "motion_encoder_dim": 16,
    "face_encoder_hidden_dim": 16,
}  # fmt: skip
TINY_VAE = {"base_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}
TEXT = {
    "vocab_size": 256384, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}  # fmt: skip
IMAGE = {
    "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16,
    "image_size": 224, "patch_size": 14, "hidden_act": "gelu",
}  # fmt: skip
PACE = Pace(encode_s=0.5, condition_s=0.05, decode_s=0.04, step_linear_s=0.035, step_quadratic_s=0.0012)


def build_random_14b(
    device: torch.device | str, dtype: torch.dtype = torch.bfloat16, seed: int = 0
) -> Models:
    """All networks of the 14B engine on `device`, of random weights: about 48 GB in bf16.

    A plan that streams them takes them from there: into pinned memory that is faster than through the host's.
    """
    device = torch.device(device)
    transformer = random_transformer(device, dtype, seed=seed)
    vae = random_vae(device, dtype, seed=seed)
    text, image = random_encoders(device, dtype, seed=seed)
    return Models(
        transformer=transformer,
        vae=VideoVae(vae),
        text_encoder=TextEncoder(text, ByT5Tokenizer()),
        image_encoder=ImageEncoder(image),
        device=device,
        pace=PACE,
    )


def random_encoders(
    device: torch.device | str, dtype: torch.dtype, *, seed: int = 0
) -> tuple[UMT5EncoderModel, CLIPVisionModel]:
    """Text and picture encoder at their real size."""
    with torch.device("meta"):
        text = UMT5EncoderModel(UMT5Config(**TEXT))
        image = CLIPVisionModel(CLIPVisionConfig(**IMAGE))
    text, image = text.to(dtype).to_empty(device=device), image.to(dtype).to_empty(device=device)
    positions = image.vision_model.embeddings if hasattr(image, "vision_model") else image.embeddings
    positions.position_ids = torch.arange(positions.num_positions, device=device)[None]
    text.encoder.embed_tokens.weight = text.shared.weight  # tied; lost on the way from "meta"
    for network in (text, image):
        fill(network, seed=seed)
        network.requires_grad_(False).eval()
    return text, image


def random_transformer(
    device: torch.device | str,
    dtype: torch.dtype = torch.bfloat16,
    *,
    seed: int = 0,
    plain: bool = False,
    **changes: object,
) -> AnimateTransformer:
    """The 14B transformer, or with `changes` to its configuration a smaller one; `plain`: diffusers' class.

    The same seed gives the same weights to both classes. Float32 stays where the product keeps it.
    """
    with torch.device("meta"):
        settings = TRANSFORMER | changes
        model = (WanAnimateTransformer3DModel if plain else AnimateTransformer)(**settings)
    AnimateTransformer.set_precision(model, dtype) if not plain else set_precision(model, dtype)
    model.to_empty(device=device)
    fill(model, seed=seed)
    config = model.config
    with torch.device("cpu"):
        rotary = WanRotaryPosEmbed(config.attention_head_dim, config.patch_size, config.rope_max_seq_len)
        encoder = type(model.motion_encoder)(
            size=config.motion_encoder_size,
            style_dim=config.motion_style_dim,
            motion_dim=config.motion_dim,
            out_dim=config.motion_encoder_dim,
            channels=config.motion_encoder_channel_sizes,
        )
    known = {f"rope.{name}": value for name, value in rotary.named_buffers()}
    known |= {f"motion_encoder.{name}": value for name, value in encoder.named_buffers()}
    for name, buffer in model.named_buffers():
        owner, _, leaf = name.rpartition(".")
        value = known[name].to(device=device, dtype=torch.float32 if owner == "rope" else dtype)
        assert value.shape == buffer.shape
        setattr(model.get_submodule(owner), leaf, value)
    return model.eval().requires_grad_(False)


def set_precision(model: WanAnimateTransformer3DModel, dtype: torch.dtype) -> None:
    """Cast weights as diffusers' own loading does: float32 stays where its class says."""
    kept = set(type(model)._keep_in_fp32_modules)
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(torch.float32 if kept & set(name.split(".")) else dtype)


def random_vae(
    device: torch.device | str, dtype: torch.dtype, *, seed: int = 0, **changes: object
) -> AutoencoderKLWan:
    """The VAE with its published configuration, or with `changes` to it."""
    with torch.device("meta"):
        vae = AutoencoderKLWan(**changes)
    vae = vae.to(dtype).to_empty(device=device)
    fill(vae, seed=seed)
    return vae.requires_grad_(False).eval()


@torch.no_grad()
def fill(network: nn.Module, *, seed: int) -> None:
    """Seeded normals of deviation 1/√fan-in; norms' weights are 1, biases small."""
    generators: dict[torch.device, torch.Generator] = {}
    for name, parameter in network.named_parameters():
        if parameter.device not in generators:
            generators[parameter.device] = torch.Generator(parameter.device).manual_seed(seed)
        generator = generators[parameter.device]
        leaf = name.rpartition(".")[2]
        if leaf == "gamma" or (leaf == "weight" and parameter.ndim == 1):
            parameter.fill_(1.0)
        elif leaf == "bias":
            parameter.normal_(0.0, 0.02, generator=generator)
        else:
            fan_in = max(parameter[0].numel(), 1) if parameter.ndim > 1 else parameter.numel()
            parameter.normal_(0.0, fan_in**-0.5, generator=generator)
