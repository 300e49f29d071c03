"""The transformer's block with fewer trips through memory between its matrix products.

Four operations are ours, and each can be left out: the norm of queries and keys over all heads with the
rotation that follows; GELU inside the product before it; norms, each together with the residual sum it reads;
the look at text and picture, from unnormed queries to the sum of both. What is left between the products is
the compiler's.
Letters: B batch, N tokens, S tokens that are looked at, D width, all heads together.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from diffusers.models.activations import GELU
from diffusers.models.transformers.transformer_wan_animate import (
    WanAttention,
    WanTransformerBlock,
)

from ..model.transformer import PICTURE_TOKENS, TEXT_TOKENS, AnimateTransformer
from .attention import PLAIN, attend
from .lazy import token_kernels


def fuse(
    transformer: AnimateTransformer,
    *,
    attention: str,
    rotation: bool = True,
    gelu: bool = True,
    norms: bool = True,
    context: bool = True,
) -> None:
    """Let all blocks use the fused operations; `attention` names the kernel of the tokens among themselves.

    The four switches leave what diffusers has in place of an operation, for measurements. Weights stay as
    they are.
    """
    for block in transformer.blocks:
        assert isinstance(block, WanTransformerBlock)
        for module in (block.attn1, block.attn2):
            # diffusers lists only its own
            processor: Any = FusedAttention(attention, rotation=rotation, context=context)
            module.set_processor(processor)
        # The instances keep their weights; only their forward changes.
        if gelu and isinstance(block.ffn.net[0], GELU):
            block.ffn.net[0].__class__ = FusedGelu
        if norms:
            block.__class__ = FusedBlock
    if norms:
        for adapter in transformer.adapters:
            adapter.norm_q.__class__ = FusedHeadNorm
    transformer.folds_padding = context


class FusedBlock(WanTransformerBlock):
    """A block that reads and writes its tokens once a norm."""

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride] - diffusers calls the pair a Tensor
        self,
        hidden_states: torch.Tensor,  # (B, N, D)
        encoder_hidden_states: torch.Tensor,  # (B, S, D)
        temb: torch.Tensor,  # (1, 6, D) float32
        rotary_emb: tuple[torch.Tensor, torch.Tensor],
    ) -> torch.Tensor:
        modulation = (self.scale_shift_table + temb.float())[0]
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = modulation.unbind(0)
        norm2 = cast("torch.nn.LayerNorm", self.norm2)
        normed = norm_tokens(hidden_states, 1 + scale, shift, self.norm1.eps)
        attended = self.attn1(normed, None, None, rotary_emb)
        tokens, normed = add_and_norm(
            hidden_states, attended, gate, norm2.weight.float(), norm2.bias.float(), norm2.eps
        )
        attended = self.attn2(normed, encoder_hidden_states, None, None)
        tokens, normed = add_and_norm(tokens, attended, None, 1 + ffn_scale, ffn_shift, self.norm3.eps)
        return (tokens.float() + self.ffn(normed).float() * ffn_gate).type_as(tokens)


class FusedAttention:
    """An attention layer's forward, from projections to output. The same numbers as diffusers'."""

    _attention_backend = None  # diffusers reads and sets these on every processor
    _parallel_config = None

    def __init__(self, kernel: str, *, rotation: bool, context: bool) -> None:
        self.kernel = kernel
        self.rotation = rotation
        self.context = context

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
        return attn.to_out[0](attended)

    def _among_themselves(
        self, attn: WanAttention, tokens: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        heads = (attn.heads, -1)
        norm = norm_and_rotate if self.rotation else _norm_and_rotate_plain
        queries = norm(attn.to_q(tokens), attn.norm_q.weight, *rotary, _eps(attn.norm_q))
        keys = norm(attn.to_k(tokens), attn.norm_k.weight, *rotary, _eps(attn.norm_k))
        values = attn.to_v(tokens)
        attended = attend(*(part.unflatten(2, heads) for part in (queries, keys, values)), self.kernel)
        return attended.flatten(2)

    def _to_context(self, attn: WanAttention, tokens: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        # Animate's models look at a picture.
        assert attn.add_k_proj is not None and attn.add_v_proj is not None
        picture, text = context[:, :PICTURE_TOKENS], context[:, PICTURE_TOKENS:]
        queries = attn.to_q(tokens)
        texts = attn.norm_k(attn.to_k(text)), attn.to_v(text)
        pictures = attn.norm_added_k(attn.add_k_proj(picture)), attn.add_v_proj(picture)
        weight, eps = attn.norm_q.weight, _eps(attn.norm_q)
        if self.context:
            return attend_context(queries, weight, eps, *texts, *pictures, attn.heads)
        return _attend_context_plain(queries, weight, eps, texts, pictures, attn.heads)


class FusedGelu(GELU):
    """Linear and GELU as one matrix product: what lies between them is never written (2 GB at 720p).

    A layer that does more than its matrix product, because a LoRA is on it, is asked itself.
    """

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if type(self.proj) is not torch.nn.Linear:
            return super().forward(hidden_states)
        return linear_gelu(hidden_states, self.proj.weight, self.proj.bias)


class FusedHeadNorm(torch.nn.RMSNorm):
    """The norm of one head's queries in one kernel; torch's own takes four times as long for short rows."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not x.is_cuda:
            return super().forward(x)
        x = x.contiguous()
        out = torch.empty_like(x)
        token_kernels().norm_heads(x, self.weight, _eps(self), out=out)
        return out


def _like_the_first(first: torch.Tensor, *_: object) -> torch.Tensor:
    """What the compiler is told of an operation whose result has the form of its first argument."""
    return torch.empty_like(first, memory_format=torch.contiguous_format)


@torch.library.custom_op("wan_animate::norm_tokens", mutates_args=())
def norm_tokens(tokens: torch.Tensor, weight: torch.Tensor, shift: torch.Tensor, eps: float) -> torch.Tensor:
    """Layer norm over the width of tokens (B, N, D), times `weight` plus `shift`, (D,) float32 each."""
    if not tokens.is_cuda:
        return F.layer_norm(tokens.float(), tokens.shape[-1:], weight, shift, eps).to(tokens.dtype)
    tokens = tokens.contiguous()
    out = torch.empty_like(tokens)
    token_kernels().norm_tokens(tokens, weight.contiguous(), shift.contiguous(), eps, out=out)
    return out


norm_tokens.register_fake(_like_the_first)


@torch.library.custom_op("wan_animate::add_and_norm", mutates_args=())
def add_and_norm(
    tokens: torch.Tensor,
    added: torch.Tensor,
    gate: torch.Tensor | None,
    weight: torch.Tensor,
    shift: torch.Tensor,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """tokens + gate · added, and `norm_tokens` of that: (B, N, D) both; `gate` is (D,) float32, None for 1.

    The norm is of the sum in float32, not of what it is rounded to for the next block: as compiled diffusers
    does it, where eager diffusers rounds twice.
    """
    if not tokens.is_cuda:
        total = tokens.float() + added.float() * (1.0 if gate is None else gate)
        normed = F.layer_norm(total, total.shape[-1:], weight, shift, eps)
        return total.to(tokens.dtype), normed.to(tokens.dtype)
    tokens, added = tokens.contiguous(), added.contiguous()
    total, out = torch.empty_like(tokens), torch.empty_like(tokens)
    token_kernels().norm_tokens(
        tokens, weight.contiguous(), shift.contiguous(), eps,
        out=out, added=added, gate=None if gate is None else gate.contiguous(), total=total,
    )  # fmt: skip
    return total, out


@add_and_norm.register_fake
def _(tokens: torch.Tensor, *_: object) -> tuple[torch.Tensor, torch.Tensor]:
    return _like_the_first(tokens), _like_the_first(tokens)


@torch.library.custom_op("wan_animate::attend_context", mutates_args=())
def attend_context(
    queries: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    text_keys: torch.Tensor,
    text_values: torch.Tensor,
    picture_keys: torch.Tensor,
    picture_values: torch.Tensor,
    heads: int,
) -> torch.Tensor:
    """What tokens see of the text and of the picture, summed: (B, N, D), from queries not normed yet.

    Keys and values are (B, S, D). The text always stands for 512 tokens: where it has fewer, its last one is
    the padding, and counts for all of it. Equal keys get equal shares, so that is exact.
    """
    text = text_keys.contiguous(), text_values.contiguous()
    picture = picture_keys.contiguous(), picture_values.contiguous()
    if not queries.is_cuda:
        return _attend_context_plain(queries, weight, eps, text, picture, heads)
    queries = queries.contiguous()
    out = torch.empty_like(queries)
    token_kernels().attend_context(
        queries, weight, eps, text, picture,
        repeats=TEXT_TOKENS + 1 - text_keys.shape[1], heads=heads, out=out,
    )  # fmt: skip
    return out


attend_context.register_fake(_like_the_first)


def _attend_context_plain(
    queries: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    text: tuple[torch.Tensor, torch.Tensor],
    picture: tuple[torch.Tensor, torch.Tensor],
    heads: int,
) -> torch.Tensor:
    normed = F.rms_norm(queries, queries.shape[-1:], weight, eps)
    # The padding is spelled out: torch's attention has no weights for keys.
    padding = TEXT_TOKENS - text[0].shape[1]
    whole = (torch.cat([part, part[:, -1:].expand(-1, padding, -1)], dim=1) for part in text)
    read, seen = (
        attend(*(part.unflatten(2, (heads, -1)) for part in (normed, *pair)), PLAIN)
        for pair in (whole, picture)
    )
    return (read + seen).flatten(2)


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
    token_kernels().norm_and_rotate_rows(tokens, weight, cosines, sines, eps, out=out)
    return out


norm_and_rotate.register_fake(_like_the_first)


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
