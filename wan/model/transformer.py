"""The 14B network in two halves: `prepare` once a clip, `step` at every step. The network is diffusers'.

diffusers' forward() encodes the faces, the pose, the text and the picture anew at every step, and twice with
guidance. Here all that is constant is computed once: over a request (`embed_context`, `embed_motion` of a
blank face) or over a clip (`embed_motion`, `prepare`). In float32 the results agree with forward() to
rounding.

Precision: with bf16 weights the time embedding, the modulation, the norms and the rotary tables stay float32,
and the prediction leaves as float32. Legend: B batch, L latent frames of the video (the network sees L + 1:
the reference picture comes first), h w latent size, T video frames, N tokens, D width, M motion width.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, cast

import torch
from diffusers.models.transformers.transformer_wan_animate import (
    WanAnimateFaceBlockCrossAttention,
    WanAnimateTransformer3DModel,
)
from einops import rearrange
from torch.nn import functional

TEXT_TOKENS = 512  # Wan2.2 wan/configs/shared_config.py text_len; diffusers' attention relies on it
PICTURE_TOKENS = 257  # CLIP ViT-H/14 at 224 × 224: 16 × 16 patches and the class token
LATENT_CHANNELS = 16
GIVEN_CHANNELS = 20  # 4 of mask, 16 of latents

FaceTables = tuple[torch.Tensor, torch.Tensor]
"""What one adapter knows of the faces of all latent frames: keys (B · (L + 1), tokens, heads, D / heads), and
answers (B · (L + 1), heads · tokens, D), projected already: 43 MB an adapter at the real size."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prepared:
    """All the network needs of one clip besides the noisy latents and the time."""

    given: torch.Tensor  # (B, 20, L + 1, h, w): mask and latents of what is already known
    pose: torch.Tensor  # (B, N_video, D): the pose video's tokens, added to all tokens but the reference's
    rotary: tuple[torch.Tensor, torch.Tensor]  # cosines and sines, (1, N, 1, D / heads) float32
    context: torch.Tensor  # (B, 257 + S, D): projected picture and text, from embed_context
    faces: tuple[FaceTables, ...]  # one pair an adapter

    def replace(self, *, context: torch.Tensor, faces: tuple[FaceTables, ...]) -> "Prepared":
        """The same clip under another text and other faces; all else is shared, not copied."""
        return replace(self, context=context, faces=faces)


class AnimateTransformer(WanAnimateTransformer3DModel):
    """diffusers' class, with what it computes split by how often it changes."""

    folds_padding: bool = False
    """Whether the blocks take a text whose padding is one token; diffusers' own take 512 tokens."""

    # time_proj joins diffusers' list: the published model computes the modulation in float32 throughout.
    _keep_in_fp32_modules: ClassVar[list[str]] = [
        *WanAnimateTransformer3DModel._keep_in_fp32_modules,
        "time_proj",
    ]

    @property
    def compute_dtype(self) -> torch.dtype:
        """The type tokens are computed in."""
        return self.patch_embedding.weight.dtype

    @property
    def motion_batch(self) -> int:
        """Faces `embed_motion` should be given at once."""
        return self.config["motion_encoder_batch_size"]

    @property
    def adapters(self) -> list[WanAnimateFaceBlockCrossAttention]:
        """The face adapters, in order."""
        return cast("list[WanAnimateFaceBlockCrossAttention]", list(self.face_adapter))

    @classmethod
    def keeps_float32(cls, name: str) -> bool:
        """Whether the parameter or buffer of this name stays float32 whatever the model's precision."""
        return not set(cls._keep_in_fp32_modules).isdisjoint(name.split("."))

    def set_precision(self, dtype: torch.dtype) -> "AnimateTransformer":
        """Cast the weights, but for those that must stay float32; `.to(dtype)` would cast those too."""
        for name, parameter in self.named_parameters():
            parameter.data = parameter.data.to(torch.float32 if self.keeps_float32(name) else dtype)
        return self

    def embed_context(self, text: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        """Picture (B, 257, image width) and text (B, 512, text width) → (B, 257 + S, D). Once a request.

        Text is zero beyond the prompt, so all of its padding is one token, over and over. Blocks that fold it
        are given that one once: S is the prompt's tokens and one more. For others S is 512.

        The blocks' own keys and values of it are not kept: at the real size they would take 0.6 GB a pass to
        save 3 of a step's 7,000 TFLOP.
        """
        embed_text, embed_image = (
            self.condition_embedder.text_embedder,
            self.condition_embedder.image_embedder,
        )
        assert embed_image is not None  # Animate's transformers have an image_dim
        if self.folds_padding:
            text = text[:, : prompt_tokens(text) + 1]
        return torch.cat(
            [embed_image(image.to(self.compute_dtype)), embed_text(text.to(self.compute_dtype))], dim=1
        )

    def embed_motion(self, faces: torch.Tensor) -> torch.Tensor:
        """Motion vectors (n, M) of face crops (n, 3, 512, 512) in [−1, 1]; each face stands for itself.

        Takes one batch: the caller splits long videos, at `motion_batch`.
        """
        return self.motion_encoder(faces.to(self.compute_dtype))

    def prepare(
        self,
        *,
        given: torch.Tensor,  # (B, 20, L + 1, h, w)
        pose: torch.Tensor,  # (B, 16, L, h, w) latents
        motion: torch.Tensor,  # (B, T, M), T = 4 L − 3
        context: torch.Tensor,  # (B, 257 + S, D), from embed_context
    ) -> Prepared:
        """Compute all that is constant over a clip's steps. Raises ValueError where the shapes do not fit."""
        batch, channels, frames, height, width = given.shape
        if channels != GIVEN_CHANNELS or pose.shape != (batch, LATENT_CHANNELS, frames - 1, height, width):
            raise ValueError(f"given {tuple(given.shape)} and pose {tuple(pose.shape)} are not of one clip")
        if motion.shape[:2] != (batch, 4 * (frames - 2) + 1):
            raise ValueError(f"{frames - 1} latent frames need {4 * frames - 7} faces, got {motion.shape[1]}")
        pose_tokens = self.pose_patch_embedding(pose.to(self.compute_dtype))
        return Prepared(
            given=given.to(self.compute_dtype),
            pose=rearrange(pose_tokens, "b d t h w -> b (t h w) d").contiguous(),
            rotary=self.rope(given),
            context=context,
            faces=self.prepare_faces(motion),
        )

    def prepare_faces(self, motion: torch.Tensor) -> tuple[FaceTables, ...]:
        """Motion vectors (B, T, M) → keys and answers, one pair a face adapter."""
        tokens = self.face_encoder(motion.to(self.compute_dtype))  # (B, L, tokens, D)
        # The reference picture has no expression of its own: zeros, for the first latent frame.
        tokens = functional.pad(tokens, (0, 0, 0, 0, 1, 0))
        return tuple(face_tables(adapter, tokens) for adapter in self.adapters)

    def step(self, latents: torch.Tensor, timestep: float, prepared: Prepared) -> torch.Tensor:
        """Predict the velocity at `timestep` (0 … 1000): (B, 16, L + 1, h, w) float32 → the same, float32."""
        time_embedding, modulation = self.embed_time(timestep)
        patches = self.patch_embedding(torch.cat([latents.to(self.compute_dtype), prepared.given], dim=1))
        tokens = rearrange(patches, "b d t h w -> b (t h w) d").contiguous()
        # Not `+=`, which copies the slice onto itself afterwards.
        tokens[:, -prepared.pose.shape[1] :].add_(prepared.pose)
        distance = self.config["inject_face_latents_blocks"]
        faces = zip(self.adapters, prepared.faces, strict=True)
        for index, block in enumerate(self.blocks):
            tokens = block(tokens, prepared.context, modulation, prepared.rotary)
            if index % distance == 0:
                adapter, tables = next(faces)
                tokens = add_faces(adapter, tokens, tables)
        return self._predict(tokens, time_embedding, patches.shape[2:])

    def embed_time(self, timestep: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Time embedding (1, D) and the blocks' modulation (1, 6, D), both float32."""
        embedder = self.condition_embedder
        waves = time_waves(timestep, self.config["freq_dim"], self.scale_shift_table.device)
        embedding = embedder.time_embedder(waves)
        return embedding, rearrange(
            embedder.time_proj(embedder.act_fn(embedding)), "b (six d) -> b six d", six=6
        )

    def _predict(self, tokens: torch.Tensor, time_embedding: torch.Tensor, grid: torch.Size) -> torch.Tensor:
        """Tokens (B, N, D) → velocity (B, 16, L + 1, h, w) float32."""
        shift, scale = (self.scale_shift_table + time_embedding[:, None]).chunk(2, dim=1)
        normed = (self.norm_out(tokens.float()) * (1 + scale) + shift).to(tokens.dtype)
        (t, h, w), (pt, ph, pw) = grid, self.config["patch_size"]
        return rearrange(
            self.proj_out(normed),
            "b (t h w) (pt ph pw c) -> b c (t pt) (h ph) (w pw)",
            t=t, h=h, w=w, pt=pt, ph=ph, pw=pw,
        ).float()  # fmt: skip


def prompt_tokens(text: torch.Tensor) -> int:
    """How many tokens of (B, 512, W) are not padding."""
    used = text.ne(0).any(dim=2).any(dim=0).nonzero()
    return int(used[-1]) + 1 if len(used) else 0


def time_waves(timestep: float, width: int, device: torch.device) -> torch.Tensor:
    """Sinusoids of the time: (1, width) float32, cosines first.

    Computed in float64 as the published model does; diffusers' float32 is the larger part of its difference
    from it.
    """
    half = width // 2
    frequencies = 10000.0 ** (-torch.arange(half, dtype=torch.float64, device=device) / half)
    angles = timestep * frequencies
    return torch.cat([angles.cos(), angles.sin()])[None].float()


def face_tables(adapter: WanAnimateFaceBlockCrossAttention, face_tokens: torch.Tensor) -> FaceTables:
    """Keys and answers of face tokens (B, L + 1, tokens, D).

    A frame has a handful of face tokens and thousands of tokens that look at them. So the values go through
    the adapter's output projection here, once a clip, and not what every token makes of them, at every step:
    half the adapter's arithmetic. The projection's bias is spread over the heads, whose shares each sum to 1.
    """
    normed = adapter.pre_norm_kv(face_tokens)
    keys = rearrange(adapter.to_k(normed), "b t n (heads d) -> (b t) n heads d", heads=adapter.heads)
    values = rearrange(adapter.to_v(normed), "b t n (heads d) -> (b t) n heads d", heads=adapter.heads)
    bias = adapter.to_out(values.new_zeros(1, adapter.inner_dim)).float()
    answers = adapter.to_out(head_by_head(values)).float() - bias * (1 - 1 / adapter.heads)
    return adapter.norm_k(keys), answers.to(values.dtype)


def head_by_head(parts: torch.Tensor) -> torch.Tensor:
    """(F, tokens, heads, d) → (F, heads · tokens, heads · d): each head apart, zeros in others' places."""
    apart = torch.diag_embed(rearrange(parts, "f n heads d -> f n d heads"))
    return rearrange(apart, "f n d heads place -> f (heads n) (place d)").contiguous()


def add_faces(
    adapter: WanAnimateFaceBlockCrossAttention, tokens: torch.Tensor, tables: FaceTables
) -> torch.Tensor:
    """The tokens (B, N, D), changed in place, with what faces add: each sees its own frame's face only."""
    keys, answers = tables
    batch, frames = tokens.shape[0], keys.shape[0] // tokens.shape[0]
    queries = adapter.to_q(adapter.pre_norm_q(tokens)).unflatten(2, (adapter.heads, -1))
    queries = rearrange(adapter.norm_q(queries), "b (t n) heads d -> (b t) n (heads d)", t=frames)
    # One dense product with zeros in it instead of forty narrow ones: 0.2 TFLOP at the real size.
    logits = float32_products(queries, head_by_head(keys).transpose(1, 2)).unflatten(2, (adapter.heads, -1))
    shares = (logits * (adapter.inner_dim // adapter.heads) ** -0.5).softmax(dim=-1).to(tokens.dtype)
    added_to = rearrange(tokens, "b (t n) d -> (b t) n d", t=frames)
    added_to.baddbmm_(shares.flatten(2), answers)
    return rearrange(added_to, "(b t) n d -> b (t n) d", b=batch)


def float32_products(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Batched matrix products that leave in float32, whatever type they come in."""
    if a.is_cuda and a.dtype != torch.float32:
        return torch.bmm(a, b, out_dtype=torch.float32)
    return torch.bmm(a.float(), b.float())
