"""One clip's conditions and the end of the clip before it → what the transformer is given.

Knows the VAE and the face encoder as functions, and neither files nor sampling. Letters: T frames, H W
pixels, L = (T − 1) / 4 + 1 latent frames, h w = H W / 8; the transformer sees L + 1, the reference picture
first.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange

from .conditions import FACE_SIZE, Scene
from .model.transformer import AnimateTransformer
from .model.vae import SPACE_STRIDE, TIME_STRIDE, VideoVae, chunks_of

Check = Callable[[], None]
"""Called between chunks of work; raises to stop."""

Tail = torch.Tensor
"""The last frames of the previous clip: (1, 3, overlap, H, W) float32 in [−1, 1], as decoded, not rounded."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClipInputs:
    """What guides one clip, ready for the transformer."""

    given: torch.Tensor  # (1, 20, L + 1, h, w) float32: 4 of mask (1 = known), 16 of latents; reference: y
    pose: torch.Tensor  # (1, 16, L, h, w) float32 latents of the skeleton video
    motion: torch.Tensor  # (1, T, M) motion vectors of the faces


def to_pixels(frames: np.ndarray, device: torch.device) -> torch.Tensor:
    """(n, H, W, 3) uint8 → (1, 3, n, H, W) float32 in [−1, 1]."""
    # Copied only where read-only, which torch cannot share.
    pixels = torch.from_numpy(np.require(frames, requirements=["C", "W"])).to(device)
    return rearrange(pixels, "t h w c -> 1 c t h w").float() / 127.5 - 1


def to_frames(pixels: torch.Tensor) -> np.ndarray:
    """(1, 3, n, H, W) float32 in [−1, 1] → (n, H, W, 3) uint8, rounded."""
    levels = ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return rearrange(levels, "1 c t h w -> t h w c").cpu().numpy()


def encode_reference(vae: VideoVae, reference: np.ndarray) -> torch.Tensor:
    """The reference picture (H, W, 3) uint8 as the first given frame: (1, 20, 1, h, w). Once a request."""
    latents = vae.encode([to_pixels(reference[None], vae.device)])
    return torch.cat([torch.ones_like(latents[:, :TIME_STRIDE]), latents], dim=1)


def encode_given(
    vae: VideoVae, scene: Scene | None, tail: Tail | None, *, shape: tuple[int, int, int], check: Check
) -> torch.Tensor:
    """Mask and latents of what is known of a clip of `shape` (T, H, W) before it is made: (1, 20, L, h, w).

    Known are the tail of the previous clip and, in replacement, the background where no person is. The rest
    is mid-grey; with the tail in front it has to be encoded anew for every clip, for the VAE looks back in
    time.
    """
    num_frames, height, width = shape
    known_frames = 0 if tail is None else tail.shape[2]
    if scene is None and tail is None:
        latents = vae.encode_grey(num_frames, height=height, width=width, check=check)
    else:
        latents = vae.encode(_known_pixels(scene, tail, shape=shape, device=vae.device, check=check))
    mask = known_mask(None if scene is None else scene.mask, known_frames=known_frames, shape=shape)
    return torch.cat([mask[None].to(latents), latents], dim=1)


def encode_pose(vae: VideoVae, pose: np.ndarray, *, check: Check) -> torch.Tensor:
    """Latents of the skeleton video (T, H, W, 3) uint8: (1, 16, L, h, w)."""

    def chunks() -> Iterator[torch.Tensor]:
        for part in chunks_of(len(pose)):
            check()
            yield to_pixels(pose[part], vae.device)

    return vae.encode(chunks())


def known_mask(person: np.ndarray | None, *, known_frames: int, shape: tuple[int, int, int]) -> torch.Tensor:
    """Which latent pixels are known: (4, L, h, w) float32, 1 = known; four video frames a latent frame.

    `person` is (T, H, W) uint8, 255 = to be made; None means all is to be made. The first `known_frames` are
    known everywhere. Every eighth pixel of the mask counts, as in the published model: nearest, no averaging.
    """
    num_frames, height, width = shape
    if person is None:
        known = torch.zeros(num_frames, height // SPACE_STRIDE, width // SPACE_STRIDE)
    else:
        known = 1 - torch.from_numpy(person[:, ::SPACE_STRIDE, ::SPACE_STRIDE].copy()).float() / 255
    known[:known_frames] = 1
    # The first frame has a latent frame to itself: it fills all four channels.
    by_frame = torch.cat([known[:1].expand(TIME_STRIDE - 1, -1, -1), known])
    return rearrange(by_frame, "(l four) h w -> four l h w", four=TIME_STRIDE)


def _known_pixels(
    scene: Scene | None,
    tail: Tail | None,
    *,
    shape: tuple[int, int, int],
    device: torch.device,
    check: Check,
) -> Iterator[torch.Tensor]:
    """The tail, then the background or mid-grey, in the VAE's chunks (1, 3, n, H, W)."""
    num_frames, height, width = shape
    known_frames = 0 if tail is None else tail.shape[2]
    for part in chunks_of(num_frames):
        check()
        if scene is None:
            pixels = torch.zeros(1, 3, part.stop - part.start, height, width, device=device)
        else:
            pixels = to_pixels(scene.background[part], device)
        if tail is not None and part.start < known_frames:
            head = tail[:, :, part]
            pixels = torch.cat([head, pixels[:, :, head.shape[2] :]], dim=2)
        yield pixels


class MotionReader:
    """Motion vectors by video frame, each face encoded once: frames repeat by overlap and by reflection."""

    def __init__(self, transformer: AnimateTransformer) -> None:
        self.transformer = transformer
        self._vectors: dict[int, torch.Tensor] = {}  # of the last clip's frames, each (M,)
        self._blank: torch.Tensor | None = None

    def read(self, faces: np.ndarray, frames: Sequence[int], *, check: Check) -> torch.Tensor:
        """(T, 512, 512, 3) uint8 faces of these video frames → (1, T, M)."""
        crops = {frame: face for frame, face in zip(frames, faces, strict=True) if frame not in self._vectors}
        blank = [frame for frame, face in crops.items() if not face.any()]
        seen = [frame for frame in crops if frame not in set(blank)]
        vectors = {frame: self._vectors[frame] for frame in frames if frame in self._vectors}
        vectors |= dict.fromkeys(blank, self.blank()) if blank else {}
        size = self.transformer.motion_batch
        for start in range(0, len(seen), size):
            check()
            batch = seen[start : start + size]
            vectors |= zip(batch, self._encode(np.stack([crops[frame] for frame in batch])), strict=True)
        self._vectors = vectors
        return torch.stack([vectors[frame] for frame in frames])[None]

    def blank(self) -> torch.Tensor:
        """The motion vector of no expression: a face of −1 everywhere. (M,)"""
        if self._blank is None:
            self._blank = self._encode(np.zeros((1, FACE_SIZE, FACE_SIZE, 3), np.uint8))[0]
        return self._blank

    def _encode(self, faces: np.ndarray) -> torch.Tensor:
        pixels = to_pixels(faces, self.transformer.device)
        return self.transformer.embed_motion(rearrange(pixels, "1 c n h w -> n c h w"))
