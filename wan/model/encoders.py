"""Words and the reference picture → the features the transformer reads. One call each a request.

Features are kept, in host memory, for the prompts and pictures seen last: a second request with the same ones
does not need the networks.

The networks are transformers' umT5 encoder and CLIP vision tower. What is ours is how the published model
feeds them.
"""

import html
import re
from collections.abc import Callable
from hashlib import blake2b

import ftfy
import numpy as np
import torch
from einops import rearrange
from torch.nn import functional
from transformers import CLIPVisionModel, PreTrainedTokenizerBase, UMT5EncoderModel

from .transformer import TEXT_TOKENS

KEPT = 8  # features a kind: 4 MB a prompt, 1 MB a picture
CLIP_SIZE = 224  # pixels a side; Wan2.2 wan/modules/animate/clip.py image_size
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # openai/clip-vit preprocessor_config.json, R G B in 0 … 1
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class TextEncoder:
    """A prompt → (1, 512, D) features, zero beyond the prompt's own tokens."""

    def __init__(self, model: UMT5EncoderModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self._kept = _Kept()

    def __call__(self, prompt: str) -> torch.Tensor:
        """Features (1, 512, D) of the cleaned prompt, in the model's type. Tokens beyond 512 are cut off."""
        return self._kept.get(clean_prompt(prompt).encode(), lambda: self._encode(prompt), self.model.device)

    def _encode(self, prompt: str) -> torch.Tensor:
        tokens = self.tokenizer(
            clean_prompt(prompt),
            padding="max_length",
            truncation=True,
            max_length=TEXT_TOKENS,
            return_attention_mask=True,
            return_tensors="pt",
        )
        mask = tokens["attention_mask"].to(self.model.device)
        hidden = self.model(tokens["input_ids"].to(self.model.device), mask).last_hidden_state
        # The transformer has no text mask: padding has to be zero, not what the encoder makes of it.
        return hidden * mask[..., None].to(hidden.dtype)

    def fits(self, prompt: str) -> bool:
        """Whether the whole prompt is read."""
        return len(self.tokenizer(clean_prompt(prompt))["input_ids"]) <= TEXT_TOKENS


class ImageEncoder:
    """The reference picture → (1, 257, D) features: CLIP's last hidden state but one."""

    def __init__(self, model: CLIPVisionModel) -> None:
        self.model = model
        self._kept = _Kept()

    def __call__(self, reference: np.ndarray) -> torch.Tensor:
        """Features (1, 257, D) of (H, W, 3) uint8, in the model's type."""
        key = blake2b(reference.tobytes(), person=str(reference.shape).encode()).digest()
        return self._kept.get(key, lambda: self._encode(reference), self.model.device)

    def _encode(self, reference: np.ndarray) -> torch.Tensor:
        pixels = clip_pixels(reference).to(self.model.device, self.model.dtype)
        hidden_states = self.model(pixels, output_hidden_states=True).hidden_states
        return hidden_states[-2]


class _Kept:
    """The features of the contents seen last."""

    def __init__(self) -> None:
        self._features: dict[bytes, torch.Tensor] = {}  # by content, the latest last

    def get(self, key: bytes, make: Callable[[], torch.Tensor], device: torch.device) -> torch.Tensor:
        features = self._features.pop(key, None)
        made = make() if features is None else features.to(device)
        self._features[key] = made.to("cpu") if features is None else features
        while len(self._features) > KEPT:
            self._features.pop(next(iter(self._features)))
        return made


def clean_prompt(prompt: str) -> str:
    """The published model's cleaning: mended Unicode, HTML entities resolved (twice), single spaces."""
    fixed = ftfy.fix_text(prompt)
    mended = html.unescape(html.unescape(fixed))
    return re.sub(r"\s+", " ", mended).strip()


def clip_pixels(reference: np.ndarray) -> torch.Tensor:
    """(H, W, 3) uint8 → (1, 3, 224, 224) float32 as CLIP reads it.

    Squashed, not cropped, and without antialiasing: so the published model was trained. Its range before
    resizing is [−1, 1], and bicubic overshoot is kept.
    """
    levels = torch.from_numpy(np.require(reference, requirements=["C", "W"]))
    pixels = rearrange(levels, "h w c -> 1 c h w").float() / 127.5 - 1
    squashed = functional.interpolate(
        pixels, size=(CLIP_SIZE, CLIP_SIZE), mode="bicubic", align_corners=False
    )
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    return (squashed * 0.5 + 0.5 - mean) / std
