"""FLUX.1-Kontext: pictures and what to change in them in, edited pictures out. Knows nobody's pose.

Loaded for one request and gone after it. The pipeline is diffusers'; what is ours is where its networks are.
Text encoders and transformer are never in GPU memory together: first all prompts are read, then all pictures
are painted. From parameter counts, in bf16: text encoders 4.9 G = 9.8 GB, transformer 11.9 G = 23.8 GB, VAE
0.2 GB; at a picture's one megapixel the activations take some 3 GB. So with 27 GB free each half is put on
the GPU whole; with less it stays in host memory and layer after layer is streamed through.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from diffusers.hooks.group_offloading import apply_group_offloading
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.pipelines.flux.pipeline_flux_kontext import FluxKontextPipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from PIL import Image
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5Tokenizer

from ...wan.runtime.device import usable_gpu
from ...wan.runtime.errors import NoUsableGpu, OutOfMemory
from ...wan.runtime.pretrained import explained, load_pretrained
from ...wan.runtime.weights import REGISTRY, OnProgress, fetch
from ..geometry import pad_to_fit

logger = logging.getLogger(__name__)

PARTS: Final = ("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "transformer")
STEPS: Final = 28  # and
GUIDANCE: Final = 2.5  # as Wan2.2 wan/modules/animate/preprocess/process_pipepline.py calls it
AREA: Final = 1024**2  # pixels that the model works at, whatever a picture's size
TEXT_BYTES: Final = 1_000_000_000  # of activations, for 512 tokens
PICTURE_BYTES: Final = 3_000_000_000  # of activations: 8,704 tokens, later the VAE's decoder

Tick = Callable[[str], None]
"""Called with words on what was just done; raises to stop."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Edit:
    """What to change in a picture."""

    picture: np.ndarray  # (h, w, 3) uint8 RGB
    prompt: str


def free_bytes(device: torch.device) -> float:
    """What a device has left; the host's memory is not counted."""
    if device.type != "cuda":
        return float("inf")
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0]


class StanceEditor:
    """The published pipeline in a folder. Holds no network between two calls."""

    def __init__(
        self,
        folder: Path,
        *,
        device: torch.device,
        steps: int = STEPS,
        free: Callable[[torch.device], float] = free_bytes,
    ) -> None:
        """`folder` is the repository's. bf16 on a GPU; on the CPU, for tiny networks in tests, float32."""
        self.steps = steps
        self._folder = folder
        self._device = device
        self._dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self._free = free

    def edit(self, edits: Sequence[Edit], *, seed: int, tick: Tick) -> list[np.ndarray]:
        """Edited pictures, each (h, w, 3) uint8 RGB of its original's size.

        The pipeline works at one megapixel; what its multiples of 16 leave over comes back as a black edge.
        `tick` is called once a step and picture. Raises ModelFilesBroken, OutOfMemory, what `tick` raises.
        """
        with _enough_memory(), torch.no_grad():
            features = self._read([edit.prompt for edit in edits])
            return self._paint(edits, features, seed=seed, tick=tick)

    def _read(self, prompts: Sequence[str]) -> list[dict[str, torch.Tensor]]:
        """Each prompt as the pipeline takes it, on the device."""
        with explained(self._folder):
            tokenizer = CLIPTokenizer.from_pretrained(self._folder / "tokenizer", local_files_only=True)
            tokenizer_2 = T5Tokenizer.from_pretrained(self._folder / "tokenizer_2", local_files_only=True)
        with (
            self._network(CLIPTextModel, "text_encoder", dtype=self._dtype) as text_encoder,
            self._network(T5EncoderModel, "text_encoder_2", dtype=self._dtype, room=TEXT_BYTES) as t5,
        ):
            pipeline = self._pipeline(
                text_encoder=text_encoder, text_encoder_2=t5, tokenizer=tokenizer, tokenizer_2=tokenizer_2
            )
            encoded = [pipeline.encode_prompt(prompt, None, device=self._device) for prompt in prompts]
        return [{"prompt_embeds": words, "pooled_prompt_embeds": pooled} for words, pooled, _ in encoded]

    def _paint(
        self, edits: Sequence[Edit], features: Sequence[dict[str, torch.Tensor]], *, seed: int, tick: Tick
    ) -> list[np.ndarray]:
        with (
            self._network(AutoencoderKL, "vae", torch_dtype=self._dtype) as vae,
            self._network(
                FluxTransformer2DModel, "transformer", torch_dtype=self._dtype, room=PICTURE_BYTES
            ) as transformer,
        ):
            pipeline = self._pipeline(vae=vae, transformer=transformer)
            painted = []
            for number, (edit, words) in enumerate(zip(edits, features, strict=True), start=1):

                def told(_: object, step: int, *__: object, number: int = number) -> dict[str, Any]:
                    tick(f"picture {number}/{len(edits)} step {step + 1}/{self.steps}")
                    return {}

                height, width = edit.picture.shape[:2]
                result = pipeline(
                    image=Image.fromarray(edit.picture),
                    **words,
                    height=height,
                    width=width,
                    max_area=AREA,
                    guidance_scale=GUIDANCE,
                    num_inference_steps=self.steps,
                    generator=torch.Generator("cpu").manual_seed(seed),
                    callback_on_step_end=told,
                )
                painted.append(pad_to_fit(np.array(result.images[0]), width=width, height=height))
        return painted

    def _pipeline(self, **parts: Any) -> Any:  # noqa: ANN401 - its annotations are wrong in many places
        """The pipeline with some of its parts; each half does without the other's."""
        every: dict[str, Any] = dict.fromkeys(PARTS)
        with explained(self._folder):
            every["scheduler"] = FlowMatchEulerDiscreteScheduler.from_pretrained(
                self._folder / "scheduler", local_files_only=True
            )
        pipeline = FluxKontextPipeline(**every | parts)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    @contextmanager
    def _network(
        self, cls: type[Any], name: str, *, room: int = 0, **precision: torch.dtype
    ) -> Iterator[Any]:
        """A network on the device while it is needed: whole where `room` bytes stay free, else streamed."""
        network = load_pretrained(cls, self._folder / name, **precision)
        size = sum(tensor.nbytes for tensor in (*network.parameters(), *network.buffers()))
        try:
            if self._free(self._device) >= size + room:
                network.to(self._device)
            else:
                logger.info("%s: %.1f GB streamed from host memory", name, size / 1e9)
                apply_group_offloading(
                    network,
                    onload_device=self._device,
                    offload_type="leaf_level",
                    use_stream=self._device.type == "cuda",
                    # Pinned a layer at a time, out of the mapped files: the generator has pinned enough.
                    low_cpu_mem_usage=self._device.type == "cuda",
                )
            yield network
        finally:
            # Whoever still holds it, such as the traceback of a cancellation, holds no memory.
            torch.nn.Module.to(network, "meta")
            if self._device.type == "cuda":
                torch.cuda.empty_cache()


def open_editor(*, on_progress: OnProgress) -> StanceEditor:
    """The published model, fetched if need be.

    Raises NoUsableGpu, DiskFull, and ModelFilesBroken, which names licence and token where those are missing.
    """
    gpu = usable_gpu()
    if gpu is None:
        raise NoUsableGpu("use_flux needs a CUDA GPU and none is usable here: set use_flux to false")
    weights = REGISTRY["flux"]
    return StanceEditor(fetch([weights], on_progress=on_progress)[weights.name], device=gpu)


@contextmanager
def _enough_memory() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(
            f"the GPU memory does not suffice for FLUX.1-Kontext, which needs {PICTURE_BYTES / 1e9:.0f} GB "
            "beside the other models: end other programs on this GPU, or set use_flux to false"
        ) from error
