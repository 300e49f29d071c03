"""diffusers' own pipeline on the same networks and the same pixels: the peer of the cases clip and memory.

All networks in bf16, the VAE too, as its documentation loads them; the attention kernel is the one diffusers'
class has in the case step. Both cases share one pipeline, for building it and moving it take minutes of a
card: whichever case comes first lets it measure for both, and gives its memory back before our engine is
built. A request is what ours is: pictures in host memory → frames in host memory, both encoders included.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.models.transformers.transformer_wan_animate import WanAnimateTransformer3DModel
from diffusers.pipelines.wan.pipeline_wan_animate import WanAnimatePipeline
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from PIL import Image
from transformers import ByT5Tokenizer, CLIPImageProcessor
from wan_animate.wan.model.smoke import tiny_image, tiny_text
from wan_animate.wan.sampling import DEFAULT_PROMPT

from benchmarks.floors import clip_floor
from benchmarks.measuring import Bench, Measured, Row
from benchmarks.random_models import (
    TINY_TRANSFORMER,
    TINY_VAE,
    random_encoders,
    random_transformer,
    random_vae,
)
from benchmarks.source import RandomSource

EAGER, COMPILED = "diffusers, eager", "diffusers, blocks compiled"
RESIDENT, OFFLOADED = "diffusers, resident", "diffusers, model offload"
SHIFT = 5.0
ONE_STEP = "1 step, blocks eager, VAE in bf16"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pictures:
    """A clip's conditions as the pipeline takes them."""

    reference: Image.Image
    pose: list[Image.Image]
    face: list[Image.Image]


@cache  # drawn once for all requests of a size; the pipeline copies what it is given
def pictures_of(frames: int, height: int, width: int) -> Pictures:
    """The pixels our engine is given at this size."""
    source = RandomSource(frames=frames, height=height, width=width)
    conditions = source.conditions(tuple(range(frames)))
    return Pictures(
        reference=Image.fromarray(source.reference),
        pose=[Image.fromarray(frame) for frame in conditions.pose],
        face=[Image.fromarray(frame) for frame in conditions.face],
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Peer:
    """The pipeline, and what of it the rows are about."""

    bench: Bench
    pipeline: WanAnimatePipeline
    transformer: WanAnimateTransformer3DModel
    autoencoder: AutoencoderKLWan

    @classmethod
    def build(cls, bench: Bench) -> "Peer":
        """On the device, resident."""
        device, dtype = bench.device, bench.dtype
        transformer = random_transformer(
            device, dtype, plain=True, **(TINY_TRANSFORMER if bench.tiny else {})
        )
        if bench.is_gpu:
            transformer.set_attention_backend("_native_cudnn")
        autoencoder = random_vae(device, dtype, **(TINY_VAE if bench.tiny else {}))
        text, image = (
            (tiny_text().eval(), tiny_image().eval()) if bench.tiny else random_encoders(device, dtype)
        )
        pipeline = WanAnimatePipeline(
            tokenizer=ByT5Tokenizer(),  # needs no file; its numbers are below every vocabulary
            text_encoder=text,
            vae=autoencoder,
            scheduler=UniPCMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=SHIFT
            ),
            image_processor=CLIPImageProcessor(),
            image_encoder=image,
            transformer=transformer,
        )
        pipeline.set_progress_bar_config(disable=True)
        return cls(bench=bench, pipeline=pipeline, transformer=transformer, autoencoder=autoencoder)

    def request(self, size: str, *, steps: int) -> Measured:
        """One video of random pixels, once."""
        height, width = self.bench.sizes[size]
        pictures = pictures_of(self.bench.frames, height, width)

        def make() -> None:
            frames = self.pipeline(
                image=pictures.reference,
                pose_video=pictures.pose,
                face_video=pictures.face,
                prompt=DEFAULT_PROMPT,
                height=height,
                width=width,
                segment_frame_length=self.bench.frames,
                num_inference_steps=steps,
                guidance_scale=1.0,
                generator=torch.Generator(self.bench.device).manual_seed(0),
                output_type="np",
            ).frames
            assert isinstance(frames, np.ndarray)
            assert frames.shape == (1, self.bench.frames, height, width, 3)

        return self.bench.request(make)

    def compile(self) -> Callable[[], None]:
        """As diffusers' documentation says; what is returned takes it back."""
        self.transformer.compile_repeated_blocks(fullgraph=True)

        def undo() -> None:
            for module in self.transformer.modules():
                module._compiled_call_impl = None
            torch.compiler.reset()

        return undo

    def offload(self) -> None:
        """Each network on the card only while it works, as diffusers' documentation offers it."""
        self.pipeline.enable_model_cpu_offload(device=self.bench.device)


def measure(bench: Bench) -> None:
    """Rows of the cases clip and memory, if they are wanted and not there yet. Our engine comes after this.

    The order saves time on the card: the first requests, at whose peak it is looked, load the kernels for
    those whose seconds count; moving everything to the host comes last.
    """
    if bench.pipeline_done or not bench.peer_steps:
        return
    bench.pipeline_done = True
    bench.attempt(lambda: _measure(bench))


def _measure(bench: Bench) -> None:
    assert bench.engine is None, "our engine's memory would count as the pipeline's"
    peer = Peer.build(bench)
    large = next(iter(bench.sizes))
    if "memory" in bench.cases:
        _add_peaks(peer, RESIDENT)
    elif not bench.tiny:
        peer.request(large, steps=1)  # loads kernels
    if "clip" in bench.cases:
        _add_clips(peer, EAGER, large)
        if bench.is_gpu:  # on a CPU the compiler alone would take minutes
            undo = peer.compile()
            peer.request(large, steps=1)  # compiles
            _add_clips(peer, COMPILED, large)
            undo()
    if "memory" in bench.cases:
        peer.offload()
        _add_peaks(peer, OFFLOADED)


def _add_clips(peer: Peer, what: str, size: str) -> None:
    bench = peer.bench
    for steps in (1,) if bench.tiny else bench.peer_steps:
        measured = peer.request(size, steps=steps)
        floor = clip_floor(
            bench, peer.transformer, peer.autoencoder, size=bench.sizes[size], steps=steps, streamed=False
        )
        bench.add(
            Row(case="clip", what=f"{what}, {steps} steps", size=size, seconds=measured.seconds, runs=1,
                peak_gib=measured.peak_gib, floor_s=floor,
                note="WanAnimatePipeline, everything resident, VAE in bf16, UniPC")
        )  # fmt: skip


def _add_peaks(peer: Peer, what: str) -> None:
    for size in reversed(peer.bench.sizes):  # the small one first: what loads then does so cheaply
        measured = peer.request(size, steps=1)
        peer.bench.add(
            Row(case="memory", what=what, size=size, seconds=measured.seconds, runs=1,
                peak_gib=measured.peak_gib, note=ONE_STEP)
        )  # fmt: skip
