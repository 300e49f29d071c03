"""One denoising step: the whole 14B network once. Ours against diffusers' own, and each technique alone."""

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from wan_animate.wan.model.transformer import AnimateTransformer, Prepared
from wan_animate.wan.speed.attention import choose_attention
from wan_animate.wan.speed.compiling import compile_blocks
from wan_animate.wan.speed.fused import fuse
from wan_animate.wan.speed.streaming import BlockStream

from benchmarks.floors import step_work
from benchmarks.measuring import Bench, Row, Work, clocks, relative
from benchmarks.random_models import TINY_TRANSFORMER, random_transformer

TIMESTEP = 500
PROMPT_TOKENS = 12  # about what the default prompt has; the encoder fills up to 512 with zeros
SWITCHES = ("rotation", "gelu", "norms", "context")  # of `fuse`
LIBRARY = {"flash4-shared": "flash4"}  # ours, and what it is made from
CHECK_FRAMES = 9  # of the clip on which float32 is affordable
WIDTHS = {"motion_encoder_size": 512, "text_dim": 4096, "image_dim": 1280}  # the 14B model's


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Clip:
    """Random inputs of one clip."""

    latents: torch.Tensor
    given: torch.Tensor
    pose: torch.Tensor
    faces: torch.Tensor  # (1, 3, T, 512, 512)
    text: torch.Tensor
    image: torch.Tensor

    @classmethod
    def random(
        cls, config: Mapping[str, int], *, height: int, width: int, frames: int, device: torch.device
    ) -> "Clip":
        """The same for every model on the same device."""
        generator = torch.Generator(device).manual_seed(1)
        length, h, w = (frames - 1) // 4 + 1, height // 8, width // 8

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, device=device, generator=generator)

        side = config["motion_encoder_size"]
        text = normal(1, 512, config["text_dim"])
        text[:, PROMPT_TOKENS:] = 0
        return cls(
            latents=normal(1, 16, length + 1, h, w),
            given=normal(1, 20, length + 1, h, w),
            pose=normal(1, 16, length, h, w),
            faces=torch.rand((1, 3, frames, side, side), device=device, generator=generator) * 2 - 1,
            text=text,
            image=normal(1, 257, config["image_dim"]),
        )

    def prepare(self, model: AnimateTransformer) -> Prepared:
        faces = self.faces[0].transpose(0, 1)
        motion = torch.cat([model.embed_motion(part) for part in faces.split(8)])[None]
        context = model.embed_context(self.text, self.image)
        return model.prepare(given=self.given, pose=self.pose, motion=motion, context=context)

    def forward(self, model: torch.nn.Module) -> torch.Tensor:
        """diffusers' own forward: everything, every step."""
        dtype = model.patch_embedding.weight.dtype
        return model(
            hidden_states=torch.cat([self.latents, self.given], dim=1).to(dtype),
            timestep=torch.tensor([TIMESTEP], device=self.latents.device),
            encoder_hidden_states=self.text.to(dtype),
            encoder_hidden_states_image=self.image.to(dtype),
            pose_hidden_states=self.pose.to(dtype),
            face_pixel_values=self.faces.to(dtype),
            return_dict=False,
        )[0]


def run(bench: Bench) -> None:
    config: dict[str, Any] = TINY_TRANSFORMER if bench.tiny else {}
    check = _check_clip(bench, config)
    exact = check.forward(random_transformer(bench.device, torch.float32, plain=True, **config))
    bench.release()
    peers(bench, config, check, exact)
    bench.release()
    techniques(bench, config, check, exact)
    bench.release()


def _check_clip(bench: Bench, config: dict[str, Any]) -> Clip:
    height, width = list(bench.sizes.values())[-1]
    widths = WIDTHS | {name: config[name] for name in WIDTHS if name in config}
    return Clip.random(
        widths, height=height, width=width, frames=min(CHECK_FRAMES, bench.frames), device=bench.device
    )


def peers(bench: Bench, config: dict[str, Any], check: Clip, exact: torch.Tensor) -> None:
    """diffusers' class as it comes, and compiled as its documentation says."""
    model = random_transformer(bench.device, bench.dtype, plain=True, **config)
    if bench.is_gpu:
        model.set_attention_backend("_native_cudnn")
    variants: list[tuple[str, Callable[[], None]]] = [("diffusers, eager", lambda: None)]
    if bench.is_gpu:  # on a CPU the compiler alone would take minutes
        variants.append(("diffusers, blocks compiled", lambda: model.compile_repeated_blocks(fullgraph=True)))
    for what, change in variants:
        change()
        error = relative(check.forward(model), exact)
        for size, clip in _clips(bench, model):
            bench.time(
                "step", what, size, lambda c=clip: c.forward(model), runs=2,
                warm=0 if what.endswith("eager") and size == "1280x720" else 1,
                floor_s=bench.floor(_work(bench, model, size)), difference=error, note=DIFFERENCE,
            )  # fmt: skip
    torch.compiler.reset()


DIFFERENCE = f"difference: relative to float32, {CHECK_FRAMES} frames"


def techniques(bench: Bench, config: dict[str, Any], check: Clip, exact: torch.Tensor) -> None:
    """Each technique on top of those before it at the small size; the end result at all sizes."""
    model = random_transformer(bench.device, bench.dtype, **config)
    dim = model.config.attention_head_dim
    kernel = choose_attention(
        "auto", device=bench.device, dtype=bench.dtype, heads=model.config.num_attention_heads, head_dim=dim
    )
    small = list(bench.sizes)[-1]
    library = LIBRARY.get(kernel, kernel)

    def fused(*names: str, attention: str = library) -> None:
        fuse(model, attention=attention, **{name: name in names for name in SWITCHES})

    if bench.is_gpu:
        model.set_attention_backend("_native_cudnn")
    changes: list[tuple[str, Callable[[], None]]] = [
        ("1 constants prepared", lambda: None),
        (f"2 + attention: {library}", fused),
    ]
    if bench.is_gpu:
        changes.append(("3 + blocks compiled", lambda: compile_blocks(model.blocks)))
    changes += [
        ("4 + norm and rotation in one kernel", lambda: fused("rotation")),
        ("5 + GELU in the product", lambda: fused("rotation", "gelu")),
        ("6 + sums and norms in one kernel", lambda: fused("rotation", "gelu", "norms")),
        ("7 + text and picture in one, padding once", lambda: fused(*SWITCHES)),
    ]
    if kernel != library:
        changes.append((f"8 + attention: {kernel}", lambda: fused(*SWITCHES, attention=kernel)))
    for what, change in changes:
        torch.compiler.reset()
        change()
        error = _check(check, model, exact)
        for size, clip in _clips(bench, model, only=small):
            _time(bench, model, clip, what, size, error, runs=2)
    with clocks(bench) as found:
        for size, clip in _clips(bench, model):
            _time(bench, model, clip, "ours", size, error, runs=3)
    for name, value in found.items():
        bench.add(Row(case="step", what=f"while ours runs: {name}", size="all", note=f"{value:.0f}"))
    if bench.is_gpu:
        _new_size(bench, model)
    _guidance(bench, model, small)
    stream = BlockStream(list(model.blocks), device=bench.device)
    if bench.is_gpu:
        compile_blocks(stream.shells)
    bench.release()
    error = _check(check, model, exact)
    for size, clip in _clips(bench, model):
        _time(bench, model, clip, "ours, streamed", size, error, runs=2, streamed=True)


def _work(bench: Bench, model: torch.nn.Module, size: str, *, streamed: bool = False) -> Work:
    return step_work(model, frames=bench.frames, size=bench.sizes[size], streamed=streamed)


def _clips(bench: Bench, model: torch.nn.Module, *, only: str | None = None) -> list[tuple[str, Clip]]:
    """Smallest first: what warms up does so cheaply."""
    return [
        (size, Clip.random(model.config, height=h, width=w, frames=bench.frames, device=bench.device))
        for size, (h, w) in reversed(bench.sizes.items())
        if only in (None, size)
    ]


def _check(check: Clip, model: AnimateTransformer, exact: torch.Tensor) -> float:
    return relative(model.step(check.latents, TIMESTEP, check.prepare(model)), exact)


def _time(
    bench: Bench,
    model: AnimateTransformer,
    clip: Clip,
    what: str,
    size: str,
    error: float,
    *,
    runs: int,
    streamed: bool = False,
) -> None:
    prepared = clip.prepare(model)
    bench.time(
        "step", what, size, lambda: model.step(clip.latents, TIMESTEP, prepared), runs=runs,
        floor_s=bench.floor(_work(bench, model, size, streamed=streamed)), difference=error, note=DIFFERENCE,
    )  # fmt: skip


def _new_size(bench: Bench, model: AnimateTransformer) -> None:
    """What a size that was never seen costs at its first step."""
    clip = Clip.random(model.config, height=640, width=448, frames=49, device=bench.device)
    prepared = clip.prepare(model)
    bench.synchronize()
    for what in ("ours, first step at a new size", "ours, second step at it"):
        started = time.perf_counter()
        model.step(clip.latents, TIMESTEP, prepared)
        bench.synchronize()
        seconds = time.perf_counter() - started
        bench.add(Row(case="step", what=what, size="448x640", seconds=seconds, runs=1, note="49 frames"))


def _guidance(bench: Bench, model: AnimateTransformer, size: str) -> None:
    """Guidance: two passes, or one of twice the batch."""
    ((_, clip),) = _clips(bench, model, only=size)
    one = clip.prepare(model)
    both = copy.copy(clip)
    doubled = {
        name: getattr(clip, name).expand(2, *[-1] * (getattr(clip, name).ndim - 1))
        for name in ("given", "pose")
    }
    motion = torch.cat([model.embed_motion(part) for part in clip.faces[0].transpose(0, 1).split(8)])[None]
    two = model.prepare(
        **doubled,
        motion=motion.expand(2, -1, -1),
        context=model.embed_context(both.text, both.image).expand(2, -1, -1),
    )
    latents = clip.latents.expand(2, -1, -1, -1, -1)

    def in_turn() -> None:
        for _ in range(2):
            model.step(clip.latents, TIMESTEP, one)

    floor = 2 * bench.floor(_work(bench, model, size))
    bench.time("step", "guided, two passes", size, in_turn, runs=1, warm=0, floor_s=floor)
    bench.time(
        "step", "guided, one batch of two", size, lambda: model.step(latents, TIMESTEP, two), runs=1,
        floor_s=floor,
    )  # fmt: skip
