"""One mask a frame, kept small: 1 bit a pixel, as the difference to the row above, deflated. Knows no video.

A silhouette's rows differ from each other only along its outline, so nearly all bits of the differences are
0: about 1 kB a frame of 1920×1080 instead of 2 MB.
"""

import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PackedMasks:
    """The subject's silhouette in every frame of a video, in the order of the frames."""

    size: tuple[int, int]  # (H, W) of every mask
    frames: tuple[bytes, ...]

    @classmethod
    def pack(cls, masks: Iterable[np.ndarray]) -> "PackedMasks":
        """Pack (H, W) masks of one size, any value but 0 is the person; a generator is read one at a time."""
        iterator = iter(masks)
        first = next(iterator, None)
        if first is None:
            raise ValueError("there must be at least one mask")
        return cls(size=first.shape, frames=tuple(_packed(chain([first], iterator), first.shape)))

    def picked(self, indices: np.ndarray) -> "PackedMasks":
        """The masks of these frames, in this order; a frame picked twice is held once."""
        return replace(self, frames=tuple(self.frames[index] for index in indices.tolist()))

    def filled(self, around: Mapping[int, tuple[int, int]]) -> "PackedMasks":
        """With the masks of some frames enlarged to what covers those of two others, too."""
        frames = list(self.frames)
        for index, (before, after) in around.items():
            covering = self.mask(index) | self.mask(before) | self.mask(after)
            frames[index] = next(_packed([covering], self.size))
        return replace(self, frames=tuple(frames))

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def num_bytes(self) -> int:
        """Memory held, in bytes."""
        return sum(len(frame) for frame in self.frames)

    def mask(self, index: int) -> np.ndarray:
        """The mask of one frame: (H, W) uint8 of 0 and 1."""
        height, width = self.size
        changes = np.frombuffer(zlib.decompress(self.frames[index]), np.uint8).reshape(height, -1)
        rows = np.bitwise_xor.accumulate(changes, axis=0)
        return np.unpackbits(rows, axis=1, count=width)


def _packed(masks: Iterable[np.ndarray], size: tuple[int, ...]) -> Iterator[bytes]:
    for mask in masks:
        if mask.shape != size:
            raise ValueError(f"masks must all be {size}, got {mask.shape}")
        rows = np.packbits(mask != 0, axis=1)
        changes = rows.copy()
        changes[1:] ^= rows[:-1]
        yield zlib.compress(changes.tobytes(), level=6)
