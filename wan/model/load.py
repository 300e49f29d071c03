"""Published files → the networks of an engine, on their device and in their precision.

A setup's name in, Models out; or a folder in, one network out. Which files those are and how they get here is
`runtime.weights`' matter, what a tensor is called there is `names`'.

The transformer is read tensor by tensor from its own makers' shards, straight to where it stays: what lies
in host memory at any time is the shard being read (mapped, so the system may drop it) and one tensor. What
is wrong with the files is found in their headers, before the first tensor is moved.
"""

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import init_empty_weights
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from safetensors import SafetensorError, safe_open
from transformers import AutoTokenizer, CLIPVisionModel, UMT5EncoderModel
from transformers.utils import logging as transformers_logging

from ..runtime.errors import ModelFilesBroken, NotAvailableYet, NoUsableGpu
from ..runtime.weights import FetchProgress, fetch, needed
from . import names
from .device import usable_gpu
from .encoders import ImageEncoder, TextEncoder
from .models import Models, Pace
from .smoke import build_smoke_models
from .transformer import AnimateTransformer
from .vae import VideoVae

logger = logging.getLogger(__name__)

INDEX = "diffusion_pytorch_model.safetensors.index.json"
PRECISIONS = {"auto": torch.bfloat16, "bf16": torch.bfloat16}  # of the transformer and the text encoder
# The published program computes both in float32 or a mixture of float16 and it; they are 2 % of a request.
IMAGE_ENCODER_DTYPE = torch.float32
VAE_DTYPE = torch.float32
TRANSFORMER_BYTES = 34.6e9  # bf16, on the GPU as a whole
TEXT_ENCODER_BYTES = 11.4e9  # bf16
LEAST_WORKING_BYTES = 3e9  # activations of a 77-frame 832×480 clip, the other networks
WORKING_BYTES = 10e9  # the same at 1280×720

# One H100 80 GB, diffusers' layers uncompiled with cuDNN attention: 12.5 s a step at 1280×720, 3.48 s at
# 832×480.
PACE_14B = Pace(
    encode_s=0.5,
    condition_s=0.15,  # two encodes of 77 frames, float32
    decode_s=0.09,
    step_linear_s=0.061,
    step_quadratic_s=0.00138,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadProgress:
    """Where a setup stands: first files are fetched, then networks loaded. Bytes."""

    stage: Literal["fetch", "load"]
    done: int
    total: int

    def __str__(self) -> str:
        return f"{self.stage} {self.done / 1e9:.1f} of {self.total / 1e9:.1f} GB"


OnProgress = Callable[[LoadProgress], None]


def load_models(
    name: str,
    *,
    precision: str = "auto",
    cache_dir: Path | None = None,
    endpoint: str | None = None,
    token: str | None = None,
    device: torch.device | None = None,
    on_progress: OnProgress = lambda _: None,
) -> Models:
    """Load the networks of setup option `model`, after fetching what is missing of their files.

    `device` None is the usable GPU; `cache_dir`, `endpoint` and `token` are those of `fetch`. What
    `on_progress` raises (Cancelled) ends it; nothing stays in memory then.

    Raises NoUsableGpu where the 14B model is asked for on a machine that cannot hold it, NotAvailableYet for
    a precision that is still to come, ModelFilesBroken or DiskFull where the files cannot be had.
    """
    if name == "smoke":
        return build_smoke_models()
    device = device or require_gpu()
    if precision not in PRECISIONS:
        raise NotAvailableYet(f'precision "{precision}" is not available yet in this version: use "bf16"')
    dtype = PRECISIONS[precision]

    def fetched(progress: FetchProgress) -> None:
        on_progress(LoadProgress(stage="fetch", done=progress.done, total=progress.total))

    wanted = needed(full_preprocessing=False)
    folders = fetch(wanted, cache_dir=cache_dir, endpoint=endpoint, token=token, on_progress=fetched)
    transformer = load_transformer(
        folders["transformer"], device=device, dtype=dtype, on_progress=on_progress
    )
    encoders = folders["encoders"]
    return Models(
        transformer=transformer,
        vae=load_vae(encoders, device=device),
        text_encoder=load_text_encoder(encoders, device=_place_of_text_encoder(device), dtype=dtype),
        image_encoder=load_image_encoder(encoders, device=device),
        device=device,
        pace=PACE_14B,
    )


def require_gpu() -> torch.device:
    """The GPU for the 14B model. Raises NoUsableGpu where there is none, or none that can hold it."""
    device = usable_gpu()
    if device is None:
        raise NoUsableGpu(
            "the 14B model needs a CUDA GPU and none is usable here: use another machine, or "
            '{"model": "smoke"} as setup to try everything at a tiny size'
        )
    properties = torch.cuda.get_device_properties(device)
    check_gpu(properties.total_memory, name=properties.name)
    return device


def check_gpu(memory: int, *, name: str) -> None:
    """Raise NoUsableGpu where a GPU of so many bytes cannot hold the 14B model."""
    needed_bytes = TRANSFORMER_BYTES + LEAST_WORKING_BYTES
    if memory < needed_bytes:
        raise NoUsableGpu(
            f"the 14B model needs a GPU of {needed_bytes / 1e9:.0f} GB and the {name} has "
            f"{memory / 1e9:.0f} GB: use a larger one, or "
            '{"model": "smoke"} as setup to try everything at a tiny size'
        )


def load_transformer(
    folder: Path,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    on_progress: OnProgress = lambda _: None,
) -> AnimateTransformer:
    """The transformer of the original repository, frozen and in evaluation mode.

    Reads `config.json`, the index and the shards it names. Weights are cast to `dtype`, but for those that
    AnimateTransformer keeps in float32; its rotary tables are computed here, in float32. Beyond the result,
    host memory holds at most one shard.

    Raises ModelFilesBroken naming the file and the tensor: missing, left over, of another shape, cut short.
    """
    config = _read_json(folder / "config.json")
    try:
        with init_empty_weights():  # parameters without memory; buffers (rotary tables, blur) are computed
            network = AnimateTransformer(**names.transformer_config(config))
    except KeyError as error:
        raise ModelFilesBroken(
            f"{folder / 'config.json'} says nothing of {error}: it is not Wan2.2-Animate's; fetch it anew"
        ) from error
    shards = _read_headers(folder)
    _check_fit(network, shards, folder)
    total = sum(shard.stat().st_size for shard in shards)
    done = 0
    for shard in shards:
        with _opened(shard) as tensors:
            for name in tensors.keys():  # noqa: SIM118  not a dict
                tensor = tensors.get_tensor(name)
                for target, part in converted(name, tensor).items():
                    kept = torch.float32 if network.keeps_float32(target) else dtype
                    # A copy even where nothing changes: the tensor read is a view into the mapped file.
                    _put(network, target, part.to(device=device, dtype=kept, copy=True).contiguous())
                done += tensor.nbytes
                on_progress(LoadProgress(stage="load", done=done, total=total))
    for name, buffer in list(network.named_buffers()):
        _put(network, name, buffer.to(device))
    logger.info("transformer: %.1f GB in %d shards, %s on %s", total / 1e9, len(shards), dtype, device)
    return network.requires_grad_(False).eval()


def converted(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """One published tensor in our class's names: one, two where it is split, none if it is a constant."""
    # diffusers looks for this word anywhere among the names before it renames the face encoder's.
    hint = "face_adapter"
    renamed = names.transformer_names({name: tensor, hint: tensor})
    renamed.pop(hint)
    return renamed


def load_text_encoder(folder: Path, *, device: torch.device | str, dtype: torch.dtype) -> TextEncoder:
    """umT5 and its tokenizer, from the Diffusers repository's `text_encoder` and `tokenizer`."""
    with _sentence(folder / "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    network = _pretrained(UMT5EncoderModel, folder / "text_encoder", dtype=dtype)
    return TextEncoder(network.to(device), tokenizer)


def load_image_encoder(folder: Path, *, device: torch.device | str) -> ImageEncoder:
    """CLIP's picture half, from the Diffusers repository's `image_encoder`."""
    return ImageEncoder(
        _pretrained(CLIPVisionModel, folder / "image_encoder", dtype=IMAGE_ENCODER_DTYPE).to(device)
    )


def load_vae(folder: Path, *, device: torch.device | str) -> VideoVae:
    """The VAE, from the Diffusers repository's `vae`."""
    return VideoVae(_pretrained(AutoencoderKLWan, folder / "vae", torch_dtype=VAE_DTYPE).to(device))


def _place_of_text_encoder(device: torch.device) -> torch.device:
    """Beside the transformer where the memory left suffices, else in host memory: it runs once a request."""
    if device.type != "cuda":
        return device
    free, _ = torch.cuda.mem_get_info(device)
    return device if free > TEXT_ENCODER_BYTES + WORKING_BYTES else torch.device("cpu")


def _pretrained(cls: type[Any], folder: Path, **precision: torch.dtype) -> Any:  # noqa: ANN401
    """One network of the Diffusers repository, with nothing missing. Both libraries would only warn."""
    with _sentence(folder), _no_bars():
        network, report = cls.from_pretrained(
            folder, local_files_only=True, output_loading_info=True, **precision
        )
    lost = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
    if lost:
        raise ModelFilesBroken(
            f"{folder} lacks {len(lost)} tensors of {cls.__name__}, such as {lost[0]}: delete it, fetch "
            "it anew"
        )
    if report["unexpected_keys"]:
        logger.warning("%s: not used: %s", folder, sorted(report["unexpected_keys"])[:5])
    return network.requires_grad_(False).eval()


@contextmanager
def _sentence(folder: Path) -> Iterator[None]:
    """Turn what a library says of damaged files into one sentence."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelFilesBroken(
            f"{folder} cannot be loaded ({reason[:200]}): delete it and fetch it anew"
        ) from error


@contextmanager
def _no_bars() -> Iterator[None]:
    """transformers draws a bar of its own for each network."""
    drawn = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if drawn:
            transformers_logging.enable_progress_bar()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelFilesBroken(f"{path.name} is missing in {path.parent}: fetch it anew") from error
    except ValueError as error:
        raise ModelFilesBroken(f"{path} is damaged: delete it and fetch it anew") from error


@contextmanager
def _opened(shard: Path) -> Iterator[Any]:
    """A safetensors file, its header checked against its length."""
    try:
        tensors = safe_open(shard, framework="pt", device="cpu")
    except FileNotFoundError as error:
        raise ModelFilesBroken(f"{shard.name} is missing in {shard.parent}: fetch it anew") from error
    except (SafetensorError, OSError) as error:
        raise ModelFilesBroken(
            f"{shard} is damaged or cut short ({error}): delete it and fetch it anew"
        ) from error
    with tensors as opened:
        yield opened


def _read_headers(folder: Path) -> dict[Path, dict[str, list[int]]]:
    """Names and shapes by shard, in the index's order. Raises where index and shards disagree."""
    listed = _read_json(folder / INDEX).get("weight_map")
    if not listed:
        raise ModelFilesBroken(f"{folder / INDEX} lists no tensors: delete it and fetch it anew")
    shards: dict[Path, dict[str, list[int]]] = {}
    for file in dict.fromkeys(listed.values()):
        with _opened(folder / file) as tensors:
            shapes = {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118
        promised = {name for name, place in listed.items() if place == file}
        if promised != shapes.keys():
            name = min(promised ^ shapes.keys())
            what = "is not in it" if name in promised else "is in it but not in the index"
            raise ModelFilesBroken(
                f"{folder / file}: tensor {name} {what}; the shards are not of one model, fetch them anew"
            )
        shards[folder / file] = shapes
    return shards


def _check_fit(
    network: AnimateTransformer, shards: Mapping[Path, Mapping[str, list[int]]], folder: Path
) -> None:
    """Raise where the tensors are not exactly the network's parameters."""
    wanted = {name: parameter.shape for name, parameter in network.named_parameters()}
    for shard, shapes in shards.items():
        for name, shape in shapes.items():
            tensor = f"{shard}: tensor {name} of shape {shape}"
            try:
                parts = converted(name, torch.empty(shape, device="meta"))
            except IndexError as error:
                raise ModelFilesBroken(f"{tensor} has too few sides; fetch it anew") from error
            for target, part in parts.items():
                if target not in wanted:
                    raise ModelFilesBroken(
                        f"{tensor} is unknown to Wan2.2-Animate as config.json describes it; the files are "
                        "another model's"
                    )
                if part.shape != wanted[target]:
                    raise ModelFilesBroken(
                        f"{tensor} does not make {target} of shape {list(wanted[target])}; the files are "
                        "another model's"
                    )
                del wanted[target]
    if wanted:
        raise ModelFilesBroken(
            f"{folder} lacks {len(wanted)} of Wan2.2-Animate's tensors, such as {min(wanted)}; fetch it anew"
        )


def _put(network: torch.nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Set a parameter or buffer by its dotted name."""
    owner, _, leaf = name.rpartition(".")
    module = network.get_submodule(owner)
    if leaf in module._parameters:
        module._parameters[leaf] = torch.nn.Parameter(tensor, requires_grad=False)
    else:
        module._buffers[leaf] = tensor
