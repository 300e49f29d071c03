"""How to sample: the settings of one request, checked once. Knows no model and no pixels."""

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from typing import get_args

import torch

from .clips import check_window
from .runtime.errors import InvalidInput
from .schedule import Solver

DEFAULT_PROMPT = "视频中的人在做动作"  # Wan2.2 wan/configs/wan_animate_14B.py prompt
DEFAULT_NEGATIVE_PROMPT = (  # Wan2.2 wan/configs/shared_config.py sample_neg_prompt
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，"
    "JPEG压缩残留，丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，"
    "形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"
)

Noise = Callable[[int, tuple[int, ...]], torch.Tensor]
"""(clip index, shape) → float32 noise on the CPU: where a clip's starting noise comes from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """What one request asks of the engine. Raises InvalidInput where a number cannot be used."""

    seed: int
    steps: int = 20
    shift: float = 5.0
    guidance: float = 1.0  # > 1: a second pass a step, with the negative prompt and an expressionless face
    solver: Solver = "dpm++"
    clip_len: int = 77  # frames a clip, 4n+1; Wan2.2 wan/configs/wan_animate_14B.py frame_num
    overlap: int = 1  # frames of a clip that guide the next; reference: refert_num
    prompt: str = DEFAULT_PROMPT
    negative_prompt: str = DEFAULT_NEGATIVE_PROMPT

    def __post_init__(self) -> None:
        check_window(clip_len=self.clip_len, overlap=self.overlap)
        if self.solver not in get_args(Solver):
            raise InvalidInput(f"sample_solver is {self.solver!r}; use 'dpm++' or 'unipc'")
        if self.steps < 1:
            raise InvalidInput(f"sampling_steps is {self.steps}; at least 1 step is needed")
        if self.shift <= 0:
            raise InvalidInput(f"shift is {self.shift}; it must be above 0, usually 1 to 10")
        if self.guidance < 1:
            raise InvalidInput(f"guide_scale is {self.guidance}; use 1 (no guidance) or more")

    @property
    def guided(self) -> bool:
        """Whether every step needs a second pass."""
        return self.guidance > 1

    @property
    def passes(self) -> int:
        """Passes a step."""
        return 2 if self.guided else 1


# What the 4-step LoRA was made for: denoising_step_list and sample_shift of lightx2v's configs/distill. Its
# scheduler (lightx2v/models/schedulers/wan/step_distill) has two rules: fresh noise after every step, and
# Euler's step. The second is used here: it needs no other source of noise.
TURBO_STEPS = 4
TURBO_SHIFT = 5.0
TURBO_SOLVER: Solver = "euler"


def seeded_noise(seed: int) -> Noise:
    """Noise of (seed, clip index) alone: the same on every device, and any clip can be redone alone."""

    def draw(clip_index: int, shape: tuple[int, ...]) -> torch.Tensor:
        key = blake2b(f"{seed}/{clip_index}".encode(), digest_size=8).digest()
        # 63 bits: the CPU generator takes seeds below 2^63 on every platform.
        generator = torch.Generator("cpu").manual_seed(int.from_bytes(key, "little") >> 1)
        return torch.randn(shape, generator=generator, dtype=torch.float32)

    return draw
