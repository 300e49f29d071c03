"""Blocks that live in pinned host memory and visit the GPU when it is their turn, two at a time.

While one block computes, the next is copied over: at the model's real size a copy takes a fifteenth of the compute
it hides behind, so a card needs room for two blocks and the activations, not for forty blocks. Knows of a block
only that all have the same parameters. Nothing about a block's use changes: it is still called in its old place.
"""

import copy
import logging
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

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

    The blocks keep their names and parameters; the parameters' memory moves to the host, pinned. Calls may come in
    any order; in the order of the list, again and again, the copies are hidden. `shells` are what really computes:
    compile those. Not for use from two threads.
    """

    def __init__(self, blocks: Sequence[nn.Module], *, device: torch.device) -> None:
        self.device = device
        self._places = _lay_out(blocks[0])
        for index, block in enumerate(blocks):
            if _lay_out(block) != self._places:
                raise ValueError(f"block {index} has other parameters than block 0: only equal blocks stream")
        size = self._places[-1].stop
        self._slots = [torch.empty(size, dtype=torch.uint8, device=device) for _ in range(SLOTS)]
        self.shells = [self._shell(blocks[0], slot) for slot in self._slots]
        self._host = [self._move_to_host(block) for block in blocks]
        self._held: list[int | None] = [None] * SLOTS  # which block a slot holds, or is being filled with
        self._last = 0  # the slot used last
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._filled = [torch.cuda.Event() for _ in range(SLOTS)] if self._copies else []
        self._used = [torch.cuda.Event() for _ in range(SLOTS)] if self._copies else []
        for index, block in enumerate(blocks):
            # The instance's own forward is found before its class's. A compiled call would trace into ours.
            block._compiled_call_impl = None
            block.forward = _Turn(self, index)
        logger.info("streaming %d blocks of %.2f GB through %d slots", len(blocks), size / 1e9, SLOTS)

    @property
    def host_bytes(self) -> int:
        """Pinned host memory."""
        return sum(flat.numel() for flat in self._host)

    @property
    def device_bytes(self) -> int:
        """Memory of the slots."""
        return sum(slot.numel() for slot in self._slots)

    def run(self, index: int, *args: object, **kwargs: object) -> torch.Tensor:
        """Compute block `index`; meanwhile fetch the one that follows the one after it."""
        slot = self._slot_of(index)
        stream = torch.cuda.current_stream(self.device) if self._copies else None
        if stream:
            stream.wait_event(self._filled[slot])
        result = self.shells[slot](*args, **kwargs)
        if stream:
            self._used[slot].record(stream)
        self._last = slot
        following = [(index + ahead) % len(self._host) for ahead in range(1, SLOTS + 1)]
        for block in following:  # the nearest first: the last slot is free only now
            if block not in self._held:
                self._fill(self._spare(keep=following), block)
        return result

    def _slot_of(self, index: int) -> int:
        if index not in self._held:  # the first call, or out of turn
            self._fill(1 - self._last, index)
        return self._held.index(index)

    def _spare(self, *, keep: list[int]) -> int:
        free = [slot for slot in range(SLOTS) if self._held[slot] not in keep]
        return free[0] if free else self._last

    def _fill(self, slot: int, index: int) -> None:
        self._held[slot] = None  # what an interrupted copy leaves is nobody's
        if self._copies is None:
            self._slots[slot].copy_(self._host[index])
        else:
            with torch.cuda.stream(self._copies):
                # A first use, too: the weights' own memory may still be read by what was queued before.
                self._copies.wait_event(self._used[slot])
                self._slots[slot].copy_(self._host[index], non_blocking=True)
                self._filled[slot].record(self._copies)
        self._held[slot] = index

    def _shell(self, block: nn.Module, slot: torch.Tensor) -> nn.Module:
        """A block without memory of its own: its parameters are views of the slot."""
        memo = {id(parameter): nn.Parameter(parameter.data[:0], False) for parameter in block.parameters()}
        shell = copy.deepcopy(block, memo)
        for place in self._places:
            owner, _, leaf = place.name.rpartition(".")
            setattr(shell.get_submodule(owner), leaf, nn.Parameter(place.view(slot), requires_grad=False))
        return shell

    def _move_to_host(self, block: nn.Module) -> torch.Tensor:
        flat = torch.empty(self._places[-1].stop, dtype=torch.uint8)
        if self.device.type == "cuda":
            _pin(flat)
        parameters = dict(block.named_parameters())
        for place in self._places:
            view = place.view(flat)
            view.copy_(parameters[place.name].data)
            parameters[place.name].data = view
        return flat


@dataclass(frozen=True, slots=True, eq=False)
class _Turn:
    """A streamed block's forward."""

    stream: BlockStream
    index: int

    def __call__(self, *args: object, **kwargs: object) -> torch.Tensor:
        return self.stream.run(self.index, *args, **kwargs)


def _lay_out(block: nn.Module) -> list[_Place]:
    places, start = [], 0
    for name, parameter in block.named_parameters():
        stop = start + parameter.numel() * parameter.element_size()
        places.append(_Place(name=name, shape=parameter.shape, dtype=parameter.dtype, start=start, stop=stop))
        start = -(-stop // ALIGNMENT) * ALIGNMENT
    return places


def _pin(flat: torch.Tensor) -> None:
    """Pin memory in place. torch's own allocator rounds up to a power of two: 10 GB lost over 40 blocks."""
    runtime = torch.cuda.cudart()
    size = flat.numel()
    error = runtime.cudaHostRegister(flat.data_ptr(), size, 0)
    if int(error) != 0:
        raise MemoryError(f"{size / 1e9:.1f} GB of host memory could not be pinned ({error})")
    weakref.finalize(flat.untyped_storage(), runtime.cudaHostUnregister, flat.data_ptr())
