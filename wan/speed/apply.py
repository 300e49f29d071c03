"""A plan carried out on loaded networks, in the one order that works: fuse, stream, compile, warm up."""

import logging
import os
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from torch import nn

from ..model.models import Models
from .attention import choose_attention
from .compiling import compile_blocks, kept_on_disk, warm_up
from .fused import fuse
from .plan import Card, Plan
from .streaming import BlockStream
from .vae_layout import use_gpu_kernels

logger = logging.getLogger(__name__)

CONTAINER_LIMITS = (  # control groups, version 2 and 1; bytes or "max"
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
WARM_UP_TOKENS = 32760  # 832 × 480, 77 frames: large enough that the compiler's choices suit all sizes


@dataclass(slots=True, kw_only=True, eq=False)
class Applied:
    """What became of a plan; it can still change its mind about the transformer."""

    models: Models
    plan: Plan
    attention: str  # the kernel in use
    cache_dir: Path | None  # keeps compiled code for the next setup

    def stream_transformer(self) -> None:
        """Move the transformer's blocks to the host, for good: a request needs the card's memory.

        `warm_up` is the caller's, once it is known which LoRAs it is to be for.
        """
        _stream_transformer(self.models, compiled=self.plan.compiled)
        self.plan = replace(self.plan, transformer="streamed")
        torch.cuda.empty_cache()

    def warm_up(self) -> None:
        """Compile now what the next clip would compile: at setup, or after LoRAs were switched."""
        if not self.plan.compiled:
            return
        transformer, device = self.models.transformer, self.models.device
        heads, head_dim = transformer.config["num_attention_heads"], transformer.config["attention_head_dim"]
        with kept_on_disk(self.cache_dir) if self.cache_dir else nullcontext():
            warm_up(
                transformer.blocks[-1],  # the last of a pass: a stream's slots are free again afterwards
                width=heads * head_dim,
                head_dim=head_dim,
                tokens=WARM_UP_TOKENS if device.type == "cuda" else 64,
                device=device,
            )


def apply_plan(models: Models, plan: Plan, *, cache_dir: Path | None = None) -> Applied:
    """Make `models` fast on their device. Networks that stream may lie in host memory; the rest is moved.

    Changes the networks in place and is done once. `cache_dir` keeps compiled code for the next setup.
    """
    device, transformer = models.device, models.transformer
    use_bf16_vae(models.vae.autoencoder, device)
    heads, head_dim = transformer.config["num_attention_heads"], transformer.config["attention_head_dim"]
    attention = choose_attention(
        plan.attention,
        device=device,
        dtype=transformer.compute_dtype,
        heads=heads,
        head_dim=head_dim,
    )
    fuse(transformer, attention=attention)
    if plan.encoders == "streamed":
        stream_encoders(models, device)
    else:
        for network in (models.text_encoder.model, models.image_encoder.model):
            nn.Module.to(network, device)
    if plan.transformer == "streamed":
        _stream_transformer(models, compiled=plan.compiled)
    else:
        nn.Module.to(transformer, device)
        if plan.compiled:
            compile_blocks(transformer.blocks)
    applied = Applied(models=models, plan=plan, attention=attention, cache_dir=cache_dir)
    applied.warm_up()
    return applied


def _stream_transformer(models: Models, *, compiled: bool) -> None:
    blocks: list[nn.Module] = list(models.transformer.blocks)
    stream = BlockStream(blocks, device=models.device)
    move_all_but(models.transformer, blocks, models.device)
    if compiled:
        compile_blocks(stream.shells)


def use_bf16_vae(autoencoder: AutoencoderKLWan, device: torch.device) -> None:
    """The VAE on its device. bf16 on a GPU: 0.7 grey levels from float32, in a quarter of the time."""
    if device.type == "cuda":
        nn.Module.to(autoencoder, device, torch.bfloat16)
        use_gpu_kernels(autoencoder)


def stream_encoders(models: Models, device: torch.device) -> None:
    """Stream the layers of both encoders; the vocabulary's table stays on the host, where it is looked up."""
    text, image = models.text_encoder.model, models.image_encoder.model
    text_blocks: list[nn.Module] = list(text.encoder.block)
    vision: Any = getattr(image, "vision_model", image)  # transformers moved it between versions
    image_blocks: list[nn.Module] = list(vision.encoder.layers)
    for blocks in (text_blocks, image_blocks):
        BlockStream(blocks, device=device)
    table = HostTable(text.encoder.embed_tokens.weight.data, device)
    text.shared = text.encoder.embed_tokens = table
    move_all_but(text, text_blocks, device)
    move_all_but(image, image_blocks, device)


class HostTable(nn.Module):
    """An embedding looked up in host memory: 2 GB of vocabulary for the few rows a prompt needs."""

    def __init__(self, weight: torch.Tensor, device: torch.device) -> None:
        super().__init__()
        # A network is taken to be where its first parameter is.
        self.anchor = nn.Parameter(weight.new_empty(0, device=device), requires_grad=False)
        self._rows = (weight.to("cpu"),)  # not a parameter: it does not move with the network

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return nn.functional.embedding(tokens.to("cpu"), self._rows[0]).to(self.anchor.device)


def move_all_but(network: nn.Module, left: list[nn.Module], device: torch.device) -> None:
    """Move a network to `device`, except for the modules named in `left`."""
    apart = {id(parameter) for module in left for parameter in module.parameters()}
    for parameter in network.parameters():
        if id(parameter) not in apart:
            parameter.data = parameter.data.to(device)
    for module in network.modules():
        for name, buffer in module.named_buffers(recurse=False):
            module.register_buffer(
                name, buffer.to(device), persistent=name not in module._non_persistent_buffers_set
            )


def this_card(device: torch.device) -> Card:
    """The card a plan is chosen for."""
    free, _ = torch.cuda.mem_get_info(device)
    return Card(
        name=torch.cuda.get_device_name(device),
        memory_bytes=free + torch.cuda.memory_reserved(device),
        host_bytes=_host_bytes(),
    )


def _host_bytes() -> float:
    """Memory of this machine, or what its container allows."""
    whole = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for limit in CONTAINER_LIMITS:
        if limit.is_file() and (said := limit.read_text().strip()).isdigit():
            whole = min(whole, float(said))
    return whole
