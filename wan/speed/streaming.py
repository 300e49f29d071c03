"""Blocks that live in pinned host memory and visit the GPU when it is their turn, two at a time.

While one block computes, the next is copied over: at the model's real size a copy takes a fifteenth of the
compute it hides behind, so a card needs room for two blocks and the activations, not for forty blocks. Knows
of a block only that all have the same parameters. Blocks are still called in their old places.
"""

import copy
import logging
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

logger = logging.getLogger(__name__)

SLOTS = 2
ALIGNMENT = 256  # bytes: what a fresh allocation on the GPU guarantees


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where a parameter lies in the flat bytes of its block."""

    name: str
    shape: torch.Size
    dtype: torch.dtype
    start: int
    stop: int

    def view(self, flat: torch.Tensor) -> torch.Tensor:
        return flat[self.start : self.stop].view(self.dtype).view(self.shape)


class BlockStream:
    """Streams `blocks` through two slots on `device`.

    The blocks keep their names and parameters; the parameters' memory moves to the host, pinned. A pass calls
    them in the order of the list; calls out of order are right, but wait. The slots exist while a pass is
    under way: between two passes the memory is for whoever needs it, at the price of the first copy of a pass
    (15 ms at the real size). `shells` are what really computes: compile those. A shell does what its block's
    linear layers do by now: branches that a LoRA hung on them lie on the device and are not copied. Not for
    use from two threads.
    """

    def __init__(self, blocks: Sequence[nn.Module], *, device: torch.device) -> None:
        self.device = device
        self._places = _lay_out(blocks[0])
        for index, block in enumerate(blocks):
            if _lay_out(block) != self._places:
                raise ValueError(f"block {index} has other parameters than block 0: only equal blocks stream")
        self._size = self._places[-1].stop
        self._slots: list[torch.Tensor] = []
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._filled = [torch.cuda.Event() for _ in range(SLOTS)] if self._copies else []
        self._used = [torch.cuda.Event() for _ in range(SLOTS)] if self._copies else []
        self._held: list[int | None] = [None] * SLOTS  # which block a slot holds, or is being filled with
        self._last = SLOTS - 1  # the slot used last
        with torch.inference_mode(False):  # these tensors outlive the mode they are made in
            self.shells = [self._shell(blocks[0]) for _ in range(SLOTS)]
            self._host = [self._move_to_host(block) for block in blocks]
        self._layers = [_linear_layers(block) for block in blocks]
        self._shell_layers = [_linear_layers(shell) for shell in self.shells]
        for index, block in enumerate(blocks):
            # The instance's own forward is found before its class's. A compiled call would trace into ours.
            block._compiled_call_impl = None
            block.forward = _Turn(self, index)
        logger.info("streaming %d blocks of %.2f GB through %d slots", len(blocks), self._size / 1e9, SLOTS)

    @property
    def host_bytes(self) -> int:
        """Pinned host memory."""
        return sum(flat.numel() for flat in self._host)

    @property
    def device_bytes(self) -> int:
        """Memory of the slots, now."""
        return sum(slot.numel() for slot in self._slots)

    def run(self, index: int, *args: object, **kwargs: object) -> torch.Tensor:
        """Compute block `index`; meanwhile fetch those that follow it."""
        if not self._slots:
            self._open()
        if index not in self._held:  # the first of a pass, or out of turn
            self._fill(1 - self._last, index)
        slot = self._held.index(index)
        following = range(index + 1, min(index + SLOTS, len(self._host)))
        self._fetch(following, busy=slot)
        if self._copies:
            torch.cuda.current_stream(self.device).wait_event(self._filled[slot])
        for layer, shell_layer in zip(self._layers[index], self._shell_layers[slot], strict=True):
            shell_layer.__class__, shell_layer._buffers = layer.__class__, layer._buffers
        result = self.shells[slot](*args, **kwargs)
        if self._copies:
            self._used[slot].record(torch.cuda.current_stream(self.device))
        self._last = slot
        if index == len(self._host) - 1:
            self._close()
        else:
            self._fetch(range(index + 1, min(index + 1 + SLOTS, len(self._host))), busy=None)
        return result

    def _fetch(self, blocks: range, *, busy: int | None) -> None:
        """Fill the slots that hold none of `blocks` with those of them that are missing, nearest first."""
        for block in blocks:
            free = [slot for slot in range(SLOTS) if slot != busy and self._held[slot] not in blocks]
            if block not in self._held and free:
                self._fill(free[0], block)

    def _open(self) -> None:
        with torch.inference_mode(False):
            self._slots = [
                torch.empty(self._size, dtype=torch.uint8, device=self.device) for _ in range(SLOTS)
            ]
            for shell, slot in zip(self.shells, self._slots, strict=True):
                for place, parameter in zip(self._places, shell.parameters(), strict=True):
                    parameter.data = place.view(slot)
        if self._copies:  # what had this memory before may still be at work
            self._copies.wait_stream(torch.cuda.current_stream(self.device))

    def _close(self) -> None:
        """Give the slots back. All copies into them were waited for by the computation that is queued."""
        with torch.inference_mode(False):
            for shell in self.shells:
                for place, parameter in zip(self._places, shell.parameters(), strict=True):
                    parameter.data = torch.empty(0, dtype=place.dtype, device=self.device)
        self._slots, self._held = [], [None] * SLOTS

    def _fill(self, slot: int, index: int) -> None:
        self._held[slot] = None  # what an interrupted copy leaves is nobody's
        if self._copies is None:
            self._slots[slot].copy_(self._host[index])
        else:
            with torch.cuda.stream(self._copies):
                self._copies.wait_event(self._used[slot])
                self._slots[slot].copy_(self._host[index], non_blocking=True)
                self._filled[slot].record(self._copies)
        self._held[slot] = index

    def _shell(self, block: nn.Module) -> nn.Module:
        """A block without memory of its own: its parameters become views of a slot."""
        nothing = {
            place.name: torch.empty(0, dtype=place.dtype, device=self.device) for place in self._places
        }
        parameters = dict(block.named_parameters())
        memo = {
            id(parameters[name]): nn.Parameter(empty, requires_grad=False) for name, empty in nothing.items()
        }
        shell = copy.deepcopy(block, memo)
        for buffer in shell.buffers():
            buffer.data = buffer.data.to(self.device)
        return shell

    def _move_to_host(self, block: nn.Module) -> torch.Tensor:
        flat = torch.empty(self._size, dtype=torch.uint8)
        if self._copies:
            _pin(flat)
        parameters = dict(block.named_parameters())
        for place in self._places:
            view = place.view(flat)
            view.copy_(parameters[place.name].data)
            owner, _, leaf = place.name.rpartition(".")
            setattr(block.get_submodule(owner), leaf, nn.Parameter(view, requires_grad=False))
        return flat


@dataclass(frozen=True, slots=True, eq=False)
class _Turn:
    """A streamed block's forward."""

    stream: BlockStream
    index: int

    def __call__(self, *args: object, **kwargs: object) -> torch.Tensor:
        return self.stream.run(self.index, *args, **kwargs)


def _linear_layers(block: nn.Module) -> list[nn.Linear]:
    return [module for module in block.modules() if isinstance(module, nn.Linear)]


def _lay_out(block: nn.Module) -> list[_Place]:
    places, start = [], 0
    for name, parameter in block.named_parameters():
        stop = start + parameter.numel() * parameter.element_size()
        places.append(_Place(name=name, shape=parameter.shape, dtype=parameter.dtype, start=start, stop=stop))
        start = -(-stop // ALIGNMENT) * ALIGNMENT
    return places


def _pin(flat: torch.Tensor) -> None:
    """Pin memory in place. torch's own allocator rounds up to a power of two: 10 GB lost over 40 blocks."""
    runtime: Any = torch.cuda.cudart()
    size = flat.numel()
    error = runtime.cudaHostRegister(flat.data_ptr(), size, 0)
    if int(error) != 0:
        raise MemoryError(f"{size / 1e9:.1f} GB of host memory could not be pinned ({error})")
    weakref.finalize(flat.untyped_storage(), runtime.cudaHostUnregister, flat.data_ptr())
