"""The transformer's block with fewer trips through memory between its matrix products.

Norms, modulation, gates and residuals are left to the compiler, which fuses them well. Ours is what it does
not: the norm of queries and keys over all heads with the rotation that follows, and GELU inside the product
before it.
Letters: B batch, N tokens, D width, all heads together.
"""

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.activations import GELU
from diffusers.models.transformers.transformer_wan_animate import (
    WanAnimateTransformer3DModel,
    WanAttention,
    WanTransformerBlock,
)

from .attention import PLAIN, attend
from .lazy import kernels

TEXT_TOKENS = 512  # the context is the picture's tokens, then this many of text


def fuse(
    transformer: WanAnimateTransformer3DModel, *, attention: str, rotation: bool = True, gelu: bool = True
) -> None:
    """Let all blocks use the fused operations; `attention` names the kernel of the tokens among themselves.

    Text and picture are too few tokens for the large kernels to pay (an H200, 75,600 tokens: 3.4 ms with
    flash-attn-4, 2.7 ms with torch's own): those use plain attention. `rotation` and `gelu` False leave these
    two as diffusers has them, for measurements. Weights stay as they are.
    """
    for block in transformer.blocks:
        assert isinstance(block, WanTransformerBlock)
        for module in (block.attn1, block.attn2):
            processor: Any = FusedAttention(attention, rotation=rotation)  # diffusers lists only its own
            module.set_processor(processor)
        if gelu and isinstance(block.ffn.net[0], GELU):
            # The instance keeps its weights; only its forward changes.
            block.ffn.net[0].__class__ = FusedGelu


class FusedAttention:
    """An attention layer's forward, from projections to output. The same numbers as diffusers'."""

    _attention_backend = None  # diffusers reads and sets these on every processor
    _parallel_config = None

    def __init__(self, kernel: str, *, rotation: bool = True) -> None:
        self.kernel = kernel
        self.rotation = rotation

    def __call__(
        self,
        attn: WanAttention,
        hidden_states: torch.Tensor,  # (B, N, D)
        encoder_hidden_states: torch.Tensor | None = None,  # (B, S, D); None: the tokens look at each other
        attention_mask: torch.Tensor | None = None,
        rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,  # (1, N, 1, D / heads) float32
    ) -> torch.Tensor:
        assert attention_mask is None, "the model has no masks"
        if rotary_emb is not None:
            attended = self._among_themselves(attn, hidden_states, rotary_emb)
        else:
            assert encoder_hidden_states is not None
            attended = self._to_context(attn, hidden_states, encoder_hidden_states)
        return attn.to_out[0](attended.flatten(2))

    def _among_themselves(
        self, attn: WanAttention, tokens: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        heads = (attn.heads, -1)
        norm = norm_and_rotate if self.rotation else _norm_and_rotate_plain
        queries = norm(attn.to_q(tokens), attn.norm_q.weight, *rotary, _eps(attn.norm_q))
        keys = norm(attn.to_k(tokens), attn.norm_k.weight, *rotary, _eps(attn.norm_k))
        values = attn.to_v(tokens)
        return attend(*(part.unflatten(2, heads) for part in (queries, keys, values)), self.kernel)

    def _to_context(self, attn: WanAttention, tokens: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        heads = (attn.heads, -1)
        queries = attn.norm_q(attn.to_q(tokens)).unflatten(2, heads)
        text = context
        picture = None
        if attn.add_k_proj is not None:
            picture, text = context[:, :-TEXT_TOKENS], context[:, -TEXT_TOKENS:]
        keys = attn.norm_k(attn.to_k(text)).unflatten(2, heads)
        attended = attend(queries, keys, attn.to_v(text).unflatten(2, heads), PLAIN)
        if picture is not None and attn.add_k_proj is not None and attn.add_v_proj is not None:
            keys = attn.norm_added_k(attn.add_k_proj(picture)).unflatten(2, heads)
            values = attn.add_v_proj(picture).unflatten(2, heads)
            attended = attended + attend(queries, keys, values, PLAIN)
        return attended


class FusedGelu(GELU):
    """Linear and GELU as one matrix product: what lies between them is never written (2 GB at 720p).

    A layer that does more than its matrix product, because a LoRA is on it, is asked itself.
    """

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if type(self.proj) is not torch.nn.Linear:
            return super().forward(hidden_states)
        return linear_gelu(hidden_states, self.proj.weight, self.proj.bias)


@torch.library.custom_op("wan_animate::linear_gelu", mutates_args=())
def linear_gelu(tokens: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """GELU (its tanh form) of a linear layer: (B, N, D) → (B, N, width)."""
    if tokens.device.type == "cpu":
        return F.gelu(F.linear(tokens, weight, bias), approximate="tanh")
    flat = tokens.reshape(-1, tokens.shape[-1])
    product: Any = torch.ops.aten._addmm_activation(bias, flat, weight.t(), use_gelu=True)
    return product.view(*tokens.shape[:-1], -1)


@linear_gelu.register_fake
def _(tokens: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:  # noqa: ARG001
    return tokens.new_empty(*tokens.shape[:-1], weight.shape[0])


@torch.library.custom_op("wan_animate::norm_and_rotate", mutates_args=())
def norm_and_rotate(
    tokens: torch.Tensor, weight: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor, eps: float
) -> torch.Tensor:
    """RMS norm over all heads, then the rotary embedding of each: (B, N, D) → (B, N, D), in float32 inside.

    `cosines` and `sines` are (1, N, 1, D / heads) float32, each value twice in a row.
    """
    tokens = tokens.contiguous()
    if not tokens.is_cuda:
        return _norm_and_rotate_plain(tokens, weight, cosines, sines, eps)
    out = torch.empty_like(tokens)
    kernels().norm_and_rotate_rows(tokens, weight, cosines, sines, eps, out=out)
    return out


@norm_and_rotate.register_fake
def _(
    tokens: torch.Tensor,
    weight: torch.Tensor,  # noqa: ARG001
    cosines: torch.Tensor,  # noqa: ARG001
    sines: torch.Tensor,  # noqa: ARG001
    eps: float,  # noqa: ARG001
) -> torch.Tensor:
    return torch.empty_like(tokens, memory_format=torch.contiguous_format)


def _norm_and_rotate_plain(
    tokens: torch.Tensor, weight: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor, eps: float
) -> torch.Tensor:
    normed = F.rms_norm(tokens.float(), tokens.shape[-1:], weight.float(), eps)
    pairs = normed.unflatten(2, (-1, cosines.shape[-1] // 2, 2))
    first, second = pairs.unbind(-1)
    cos, sin = cosines[..., 0::2], sines[..., 0::2]
    rotated = torch.stack([first * cos - second * sin, first * sin + second * cos], dim=-1)
    return rotated.flatten(2).to(tokens.dtype)


def _eps(norm: torch.nn.RMSNorm) -> float:
    return torch.finfo(norm.weight.dtype).eps if norm.eps is None else norm.eps
