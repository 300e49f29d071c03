"""Where everybody else is in a frame: identities in, their places out. Pure; knows no detector.

Somebody who is not detected for a few frames has not gone: places are interpolated over short gaps.
"""

from collections.abc import Sequence

import numpy as np

from .backends import REGION
from .identities import SHORT_GAP, Identity


def boxes_at(others: Sequence[Identity], frame: int, shots: np.ndarray) -> list[np.ndarray]:
    """Boxes (4,) of those who are in a frame; `shots` (N,) numbers the shots."""
    places = (_box_at(one, frame, shots) for one in others)
    return [box for box in places if box is not None]


def regions_at(others: Sequence[Identity], frame: int) -> np.ndarray:
    """Regions (K, 4) of those who were found in a frame.

    Only of those: in a region between two others, a network finds either.
    """
    found = [one.regions[one.frames == frame] for one in others]
    return np.concatenate([np.zeros((0, REGION), np.float32), *found])


def _box_at(one: Identity, frame: int, shots: np.ndarray) -> np.ndarray | None:
    after = int(np.searchsorted(one.frames, frame))
    if after < len(one.frames) and one.frames[after] == frame:
        return one.boxes[after]
    if not 0 < after < len(one.frames):
        return None
    first, last = int(one.frames[after - 1]), int(one.frames[after])
    if last - first > SHORT_GAP or shots[first] != shots[last]:
        return None
    share = (frame - first) / (last - first)
    return (1 - share) * one.boxes[after - 1] + share * one.boxes[after]
