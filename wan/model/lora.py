"""LoRA files → small additions to the transformer, switched from request to request without loading it again.

A file in, a Lora out (`read_lora`): what it adds, under our class's names, whatever dialect it is written in:
PEFT, diffusers, `diffusion_model.` (lightx2v, ComfyUI), musubi-tuner. Then `LoraSwitch.set` makes any number
of them active, each at a strength, and `set([])` brings back the very network that was loaded. Knows no
request and no GPU.

A linear layer gets a *side branch*, y = W x + up (down x), and W is not touched. Merging was weighed and
left: adding to bf16 weights rounds part of a small change away, taking it off again does not restore them (so
a second copy of 34.5 GB would be needed, or a reload), and fp8 weights would have to be quantised anew each
time. The branch is the same on every kind of weight and costs nothing while off: the layer is then the very
object that was loaded. While on, at rank 128, it adds 5 % to the arithmetic of the linear layers, which are a
third of a step, and reads their activations once more: by calculation 3 to 4 % of a step.

While on, a layer's class is a subclass made of its own, as torch.nn.utils.parametrize does it: its place, its
name and its identity stay, which is what streaming and quantisation hold on to; and torch.compile sees the
change, keeps one graph for each state and goes back to the first one when the branch is gone. Branches of
several LoRAs are joined to one of their summed rank, and are buffers outside the state dict.

What is no linear layer's weight (norms, modulation, convolutions) is small, and is added in place with the
original kept. So those tensors have to stay where they are while blocks are streamed.
"""

import json
import logging
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from einops import rearrange
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.nn import functional

from ..runtime.errors import ModelFilesBroken
from .names import transformer_names
from .transformer import AnimateTransformer

logger = logging.getLogger(__name__)

Shapes = Mapping[str, torch.Size]
MARK = "has_branch"  # in the dictionary of a layer that has one

PREFIXES = ("base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer.", "model.")
LOW_RANK = re.compile(
    r"(?P<module>.+?)[._]lora(?:_linear_layer)?[._](?P<side>A|B|down|up)"
    r"(?:\.(?!weight$|bias$)\w+)?"  # an adapter's name, as PEFT puts it in
    r"(?:\.(?P<leaf>weight|bias))?"
)
FULL = re.compile(r"(?P<module>.+)\.(?P<kind>diff|diff_b|diff_m)")
FULL_LEAVES = {"diff": "weight", "diff_b": "bias", "diff_m": "modulation"}  # lightx2v lora_loader.py
MUSUBI = (  # musubi-tuner writes lora_unet_blocks_0_self_attn_q
    (re.compile(r"lora_unet_blocks_(\d+)[_.](self_attn|cross_attn)[_.](\w+)"), r"blocks.\1.\2.\3"),
    (re.compile(r"lora_unet_blocks_(\d+)[_.]ffn[_.](\d)"), r"blocks.\1.ffn.\2"),
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Branch:
    """What a LoRA adds to one linear layer: scale · up (down x) + bias."""

    down: torch.Tensor  # (rank, in)
    up: torch.Tensor  # (out, rank)
    scale: float  # alpha / rank
    bias: torch.Tensor | None = None  # (out,)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Lora:
    """A LoRA in our class's names, in host memory, in the file's own precision."""

    source: str  # the file's name, for messages
    branches: Mapping[str, Branch]  # by the linear layer's path
    changes: Mapping[str, torch.Tensor]  # by the parameter's name: what is added to it, in its shape

    @property
    def branch_bytes(self) -> int:
        """What its branches take on the device, in bf16."""
        return 2 * sum(branch.down.numel() + branch.up.numel() for branch in self.branches.values())


def parameter_shapes(network: AnimateTransformer) -> Shapes:
    """Names and shapes of the network's parameters as published, whatever was done to its weights since."""
    with init_empty_weights():
        plain = AnimateTransformer.from_config(network.config)
    assert isinstance(plain, AnimateTransformer)  # diffusers' type allows for a tuple
    return {name: parameter.shape for name, parameter in plain.named_parameters()}


def read_lora(path: Path, *, shapes: Shapes) -> Lora:
    """Read a `.safetensors` file or a torch checkpoint and check it against the network.

    Torch files are opened without running any code in them. Raises ModelFilesBroken naming the file, and the
    first entry that does not belong to this network, has another size, or lacks its other half.
    """
    tensors, declared = _read(path)
    return _understood(tensors, declared, shapes=shapes, source=path.name)


def understand(tensors: Mapping[str, torch.Tensor], *, shapes: Shapes, source: str) -> Lora:
    """The same for tensors already read; `source` names them in messages."""
    return _understood(tensors, _Declared(), shapes=shapes, source=source)


def _understood(
    tensors: Mapping[str, torch.Tensor], declared: "_Declared", *, shapes: Shapes, source: str
) -> Lora:
    try:
        found = _Collector(shapes, declared)
        for key, tensor in tensors.items():
            found.add(key, tensor)
        return found.result(source)
    except _Wrong as error:
        raise ModelFilesBroken(f"{source} is not a LoRA for Wan2.2-Animate 14B: {error}") from error


class LoraSwitch:
    """Says which LoRAs a network runs with. One for a network; not for several threads at once."""

    def __init__(self, network: AnimateTransformer, *, device: torch.device | str) -> None:
        """`device` is where the network computes; weights that are streamed may lie elsewhere."""
        self.shapes = parameter_shapes(network)
        self._network = network
        self._device = torch.device(device)
        self._active: tuple[tuple[Lora, float], ...] = ()
        self._branched: list[tuple[nn.Module, type[nn.Module]]] = []  # and what they were before
        self._originals: dict[str, torch.Tensor] = {}

    @property
    def active(self) -> tuple[tuple[Lora, float], ...]:
        """What was set last, with its strengths."""
        return self._active

    @torch.no_grad()
    def set(self, wanted: Iterable[tuple[Lora, float]]) -> None:
        """Run with exactly these from now on. Nothing is done where they are active already.

        If it fails (memory), the network is left without any.
        """
        wanted = tuple((lora, strength) for lora, strength in wanted if strength)
        if self._is_active(wanted):
            return
        self._clear()
        try:
            for path, parts in _by_target((lora.branches, strength) for lora, strength in wanted):
                self._attach(path, parts)
            for name, parts in _by_target((lora.changes, strength) for lora, strength in wanted):
                self._change(name, parts)
        except BaseException:
            self._clear()
            raise
        self._active = wanted
        logger.info("LoRAs: %s", ", ".join(f"{lora.source} at {at:g}" for lora, at in wanted) or "none")

    def _is_active(self, wanted: tuple[tuple[Lora, float], ...]) -> bool:
        return len(wanted) == len(self._active) and all(
            one[0] is other[0] and one[1] == other[1] for one, other in zip(wanted, self._active, strict=True)
        )

    def _clear(self) -> None:
        for module, plain in self._branched:
            module.__class__ = plain
            del module.lora_down, module.lora_up, module.lora_bias, module.__dict__[MARK]
        for name, original in self._originals.items():
            self._network.get_parameter(name).data.copy_(original)
        self._active, self._branched, self._originals = (), [], {}

    def _attach(self, path: str, parts: Sequence[tuple[Branch, float]]) -> None:
        """Join the branches of one layer and hang the result on it."""
        kept = self._network.keeps_float32(path)
        dtype = torch.float32 if kept else self._network.compute_dtype
        # Scale and strength go into `up` before it is rounded to the type of computation.
        down = torch.cat([branch.down for branch, _ in parts])
        up = torch.cat([branch.up.float() * (branch.scale * strength) for branch, strength in parts], dim=1)
        biases = [branch.bias.float() * strength for branch, strength in parts if branch.bias is not None]
        bias = torch.stack(biases).sum(0).to(self._device, dtype) if biases else None
        module = self._network.get_submodule(path)
        module.register_buffer("lora_down", down.to(self._device, dtype), persistent=False)
        module.register_buffer("lora_up", up.to(self._device, dtype), persistent=False)
        module.register_buffer("lora_bias", bias, persistent=False)
        # Compiled code of some versions of torch (2.11) looks at a layer's class again only where the layer's
        # own dictionary has changed; buffers are in another one.
        module.__dict__[MARK] = True
        self._branched.append((module, type(module)))
        module.__class__ = _with_branch(type(module))

    def _change(self, name: str, parts: Sequence[tuple[torch.Tensor, float]]) -> None:
        """Add to one parameter in place: its memory is what compiled and streamed code knows."""
        parameter = self._network.get_parameter(name)
        self._originals[name] = parameter.data.clone()
        changed = parameter.data.float()
        for change, strength in parts:
            changed = changed + change.to(parameter.device, torch.float32) * strength
        parameter.data.copy_(changed)


@torch.library.custom_op("wan_animate::add_product", mutates_args=("whole",))
def add_product(whole: torch.Tensor, low: torch.Tensor, up: torch.Tensor) -> None:
    """Add low · upᵀ to `whole`, in place: (…, out) += (…, rank) · (out, rank)ᵀ.

    What the compiler makes of a sum writes the product first and reads both: twice the memory traffic.
    """
    whole.view(-1, whole.shape[-1]).addmm_(low.reshape(-1, low.shape[-1]), up.t())


@add_product.register_fake
def _(whole: torch.Tensor, low: torch.Tensor, up: torch.Tensor) -> None:
    pass


@cache
def _with_branch(cls: type[nn.Module]) -> type[nn.Module]:
    """The same layer with a side branch. One class for each class of layers, so that one graph serves all."""

    class Branched(cls):
        lora_down: torch.Tensor  # (rank, in)
        lora_up: torch.Tensor  # (out, rank)
        lora_bias: torch.Tensor | None  # (out,)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            whole, low = super().forward(x), functional.linear(x, self.lora_down)
            if self.lora_down.shape[0]:  # no rank: nothing but a bias
                add_product(whole, low, self.lora_up)
            return whole if self.lora_bias is None else whole + self.lora_bias

    Branched.__name__ = Branched.__qualname__ = f"Branched{cls.__name__}"
    return Branched


def _by_target(
    loras: Iterable[tuple[Mapping[str, Any], float]],
) -> Iterator[tuple[str, list[tuple[Any, float]]]]:
    """What several LoRAs add, gathered by what they add it to."""
    gathered: dict[str, list[tuple[Any, float]]] = {}
    for parts, strength in loras:
        for target, part in parts.items():
            gathered.setdefault(target, []).append((part, strength))
    yield from gathered.items()


class _Wrong(Exception):
    """What is wrong with a file, to be completed by its name."""


class _Collector:
    """Gathers a file's entries by what they add to, and checks that they fit."""

    def __init__(self, shapes: Shapes, declared: "_Declared") -> None:
        self._shapes, self._declared = shapes, declared
        self._downs: dict[str, torch.Tensor] = {}  # by the module's name in the file
        self._ups: dict[str, torch.Tensor] = {}
        self._alphas: dict[str, float] = {}
        self._up_biases: dict[str, torch.Tensor] = {}
        self._full: dict[str, torch.Tensor] = {}  # by the parameter's name in the file

    def add(self, key: str, tensor: torch.Tensor) -> None:
        """Take one entry. Raises _Wrong where it is of no kind known here."""
        name = _plain(key)
        if name.endswith(".alpha"):
            self._alphas[name.removesuffix(".alpha")] = float(tensor)
        elif match := LOW_RANK.fullmatch(name):
            module = match["module"]
            if match["leaf"] == "bias":
                self._up_biases[module] = tensor
            else:
                side = self._downs if match["side"] in ("A", "down") else self._ups
                side[module] = tensor
        elif match := FULL.fullmatch(name):
            self._full[f"{match['module']}.{FULL_LEAVES[match['kind']]}"] = tensor
        else:
            raise _Wrong(f"it holds {key}, which is no kind of LoRA known here (DoRA, LoHa and LoKr are not)")

    def result(self, source: str) -> Lora:
        """All of it in our class's names. Raises _Wrong where something does not fit."""
        if not self._ups and not self._full:
            raise _Wrong("it holds no LoRA")
        for module in self._downs.keys() ^ self._ups.keys():
            raise _Wrong(f"{module} has only one of its two halves")
        branches: dict[str, Branch] = {}
        changes: dict[str, torch.Tensor] = {}
        for module, up in self._ups.items():
            self._add_low_rank(module, up, branches, changes)
        for name in sorted(self._full, key=lambda name: name.endswith(".bias")):  # biases join branches
            self._add_full(name, self._full[name], branches, changes)
        return Lora(source=source, branches=branches, changes=changes)

    def _add_low_rank(
        self, module: str, up: torch.Tensor, branches: dict[str, Branch], changes: dict[str, torch.Tensor]
    ) -> None:
        down = self._downs[module]
        rank = down.shape[0]
        scale = self._declared.scale(module, rank=rank, alpha=self._alphas.get(module))
        if module in self._up_biases:
            self._full[f"{module}.bias"] = self._up_biases[module].float() * scale
        if up.shape[1:2] != (rank,):
            raise _Wrong(f"the halves of {module} have ranks {rank} and {list(up.shape[1:2])}")
        for target, part in self._targets(f"{module}.weight", up).items():
            shape = self._shapes[target]
            if (part.shape[0], *down.shape[1:]) != tuple(shape):
                raise _Wrong(
                    f"{module} makes {part.shape[0]} × {list(down.shape[1:])} of a weight of {list(shape)}"
                )
            if len(shape) == 2 and not target.startswith(
                "motion_encoder."
            ):  # whose layers scale their weights
                branches[target.removesuffix(".weight")] = Branch(down=down, up=part, scale=scale)
            else:
                flat = part.flatten(1).float() @ rearrange(down.float(), "r ... -> r (...)")
                changes[target] = (scale * flat).reshape(shape)

    def _add_full(
        self, name: str, change: torch.Tensor, branches: dict[str, Branch], changes: dict[str, torch.Tensor]
    ) -> None:
        parts = self._targets(name, change)
        if not change.any():  # lightx2v's files list every norm, most without a change
            return
        for target, part in parts.items():
            if part.shape != self._shapes[target]:
                raise _Wrong(f"{name} has shape {list(part.shape)} instead of {list(self._shapes[target])}")
            path, _, leaf = target.rpartition(".")
            linear = len(self._shapes.get(f"{path}.weight", ())) == 2 and not path.startswith(
                "motion_encoder."
            )
            if not linear:
                changes[target] = part
            elif leaf == "bias":
                branches[path] = _with_bias(
                    branches.get(path), part, inputs=self._shapes[f"{path}.weight"][1]
                )
            elif path in branches:
                raise _Wrong(f"it changes {path} in two ways at once")
            else:  # a whole matrix: a branch of full rank is exact on every kind of weight
                branches[path] = Branch(down=part, up=torch.eye(part.shape[0], dtype=part.dtype), scale=1.0)

    def _targets(self, name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        """A published or own parameter name in our own; two where the published one is split."""
        if name in self._shapes:
            return {name: tensor}
        try:
            targets = transformer_names({name: tensor})
        except IndexError as error:
            raise _Wrong(f"{name} has shape {list(tensor.shape)}") from error
        if not targets or not targets.keys() <= self._shapes.keys():
            raise _Wrong(f"it changes {name.rpartition('.')[0]}, which that model does not have")
        return targets


def _with_bias(branch: Branch | None, bias: torch.Tensor, *, inputs: int) -> Branch:
    if branch is None:  # nothing but a bias
        down, up, scale = bias.new_zeros(0, inputs), bias.new_zeros(len(bias), 0), 1.0
    else:
        down, up, scale = branch.down, branch.up, branch.scale
    return Branch(down=down, up=up, scale=scale, bias=bias)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Declared:
    """What a file says of itself beside its tensors. PEFT keeps alpha there."""

    alpha: float | None = None
    alphas: Mapping[str, float] = field(default_factory=dict)  # by the end of a module's name
    by_root: bool = False  # rank-stabilised: alpha / √rank

    def scale(self, module: str, *, rank: int, alpha: float | None) -> float:
        """alpha / rank; 1 where no alpha is said anywhere, as every loader of such files takes it."""
        if alpha is None:
            matching = (value for end, value in self.alphas.items() if module.endswith(end))
            alpha = next(matching, self.alpha)
        if alpha is None:
            return 1.0
        return alpha / (math.sqrt(rank) if self.by_root else rank)


def _plain(key: str) -> str:
    """A key without what the program that wrote it put in front."""
    while prefix := next((prefix for prefix in PREFIXES if key.startswith(prefix)), None):
        key = key.removeprefix(prefix)
    for pattern, replacement in MUSUBI:
        key = pattern.sub(replacement, key, count=1)
    return key


def _read(path: Path) -> tuple[dict[str, torch.Tensor], _Declared]:
    """A file's tensors, and what it declares."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt", device="cpu") as opened:
                tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118  not a dict
                return tensors, _declared(path, opened.metadata() or {})
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ModelFilesBroken(f"there is no LoRA file {path}") from error
    except Exception as error:  # torch and safetensors raise whatever a damaged file leads them to
        kind = "damaged" if isinstance(error, SafetensorError) else "damaged or holds more than tensors"
        raise ModelFilesBroken(f"{path.name} cannot be read as a LoRA: it is {kind}") from error
    content = content.get("state_dict", content) if isinstance(content, dict) else None
    if not content or not all(isinstance(tensor, torch.Tensor) for tensor in content.values()):
        raise ModelFilesBroken(f"{path.name} cannot be read as a LoRA: it holds no table of tensors")
    return content, _declared(path, {})


def _declared(path: Path, metadata: Mapping[str, str]) -> _Declared:
    """PEFT's settings: in diffusers' header, or in the file PEFT writes beside its own."""
    beside = path.with_name("adapter_config.json")
    try:
        if "lora_adapter_metadata" in metadata:
            said = json.loads(metadata["lora_adapter_metadata"])
        elif path.name.startswith("adapter_model.") and beside.is_file():
            said = json.loads(beside.read_text(encoding="utf-8"))
        else:
            said = {}
    except ValueError as error:
        raise ModelFilesBroken(f"the settings of {path.name} are damaged") from error
    said = {key.removeprefix("transformer."): value for key, value in said.items()}
    return _Declared(
        alpha=said.get("lora_alpha"),
        alphas=said.get("alpha_pattern") or {},
        by_root=bool(said.get("use_rslora")),
    )
