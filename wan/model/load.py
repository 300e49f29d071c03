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

from ..runtime.device import usable_gpu
from ..runtime.errors import ModelFilesBroken, NotAvailableYet, NoUsableGpu
from ..runtime.pretrained import explained, load_pretrained
from ..runtime.weights import FetchProgress, fetch, needed
from . import names
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

# One H200 with all of wan/speed: 10.0 s a step at 1280×720, 2.62 s at 832×480 (benchmarks/results).
PACE_14B = Pace(
    encode_s=0.5,
    condition_s=0.058,
    decode_s=0.032,
    step_linear_s=0.040,
    step_quadratic_s=0.00122,
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
    device: torch.device,
    precision: str = "auto",
    stream_transformer: bool = False,
    stream_encoders: bool = False,
    cache_dir: Path | None = None,
    endpoint: str | None = None,
    token: str | None = None,
    on_progress: OnProgress = lambda _: None,
) -> Models:
    """Load the networks of setup option `model`, after fetching what is missing of their files.

    They go to `device`, but for those that will be streamed from host memory: these are left there.
    `cache_dir`, `endpoint` and `token` are those of `fetch`. What `on_progress` raises (Cancelled) ends it;
    nothing stays in memory then.

    Raises NotAvailableYet for a precision that is still to come, ModelFilesBroken or DiskFull where the files
    cannot be had.
    """
    if name == "smoke":
        return build_smoke_models(device=device)
    dtype = read_precision(precision)

    def fetched(progress: FetchProgress) -> None:
        on_progress(LoadProgress(stage="fetch", done=progress.done, total=progress.total))

    wanted = needed(full_preprocessing=False)
    folders = fetch(wanted, cache_dir=cache_dir, endpoint=endpoint, token=token, on_progress=fetched)
    host = torch.device("cpu")
    transformer = load_transformer(
        folders["transformer"],
        device=host if stream_transformer else device,
        dtype=dtype,
        on_progress=on_progress,
    )
    encoders, place = folders["encoders"], host if stream_encoders else device
    return Models(
        transformer=transformer,
        vae=load_vae(encoders, device=device),
        text_encoder=load_text_encoder(encoders, device=place, dtype=dtype),
        image_encoder=load_image_encoder(encoders, device=place),
        device=device,
        pace=PACE_14B,
    )


def read_precision(name: str) -> torch.dtype:
    """The weights' type that setup option `precision` names. Raises NotAvailableYet for one to come."""
    if name not in PRECISIONS:
        raise NotAvailableYet(f'precision "{name}" is not available yet in this version: use "bf16"')
    return PRECISIONS[name]


def require_gpu() -> torch.device:
    """The GPU for the 14B model. Raises NoUsableGpu where there is none."""
    device = usable_gpu()
    if device is None:
        raise NoUsableGpu(
            "the 14B model needs a CUDA GPU and none is usable here: use another machine, or "
            '{"model": "smoke"} as setup to try everything at a tiny size'
        )
    return device


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
                for target, part in names.transformer_names({name: tensor}).items():
                    kept = torch.float32 if network.keeps_float32(target) else dtype
                    # A copy even where nothing changes: the tensor read is a view into the mapped file.
                    _put(network, target, part.to(device=device, dtype=kept, copy=True).contiguous())
                done += tensor.nbytes
                on_progress(LoadProgress(stage="load", done=done, total=total))
    for name, buffer in list(network.named_buffers()):
        _put(network, name, buffer.to(device))
    logger.info("transformer: %.1f GB in %d shards, %s on %s", total / 1e9, len(shards), dtype, device)
    return network.requires_grad_(False).eval()


def load_text_encoder(folder: Path, *, device: torch.device | str, dtype: torch.dtype) -> TextEncoder:
    """umT5 and its tokenizer, from the Diffusers repository's `text_encoder` and `tokenizer`."""
    with explained(folder / "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    network = load_pretrained(UMT5EncoderModel, folder / "text_encoder", dtype=dtype)
    return TextEncoder(network.to(device), tokenizer)


def load_image_encoder(folder: Path, *, device: torch.device | str) -> ImageEncoder:
    """CLIP's picture half, from the Diffusers repository's `image_encoder`."""
    return ImageEncoder(
        load_pretrained(CLIPVisionModel, folder / "image_encoder", dtype=IMAGE_ENCODER_DTYPE).to(device)
    )


def load_vae(folder: Path, *, device: torch.device | str) -> VideoVae:
    """The VAE, from the Diffusers repository's `vae`."""
    return VideoVae(load_pretrained(AutoencoderKLWan, folder / "vae", torch_dtype=VAE_DTYPE).to(device))


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
                parts = names.transformer_names({name: torch.empty(shape, device="meta")})
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
