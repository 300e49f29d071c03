"""What somebody looks like, as a few numbers, and how different two people look. Pure; knows no detector.

Looks are the mean colours of chest, belly and thighs: few enough to keep for every person in every frame, and
steady under motion blur and over patterns, where medians jump from one of the pattern's colours to another. A
patch that is not seen is NaN. L = 9 numbers.
"""

from typing import Final

import cv2
import numpy as np

from .keypoints import (
    LEFT_HIP,
    LEFT_KNEE,
    LEFT_SHOULDER,
    RIGHT_HIP,
    RIGHT_KNEE,
    RIGHT_SHOULDER,
    VISIBLE,
)

_TORSO: Final = (LEFT_SHOULDER, RIGHT_SHOULDER, LEFT_HIP, RIGHT_HIP)
_THIGHS: Final = (LEFT_HIP, RIGHT_HIP, LEFT_KNEE, RIGHT_KNEE)
PATCHES: Final = (  # corners in a pose, upper pair first; from where to where between upper and lower pair
    (_TORSO, (0.1, 0.5)),
    (_TORSO, (0.5, 0.9)),
    (_THIGHS, (0.1, 0.7)),  # or a skirt
)
LOOKS: Final = 3 * len(PATCHES)
SAMPLES: Final = 9  # along either direction of a patch
MIN_PATCH: Final = 0.4  # share of a patch that must lie in the picture

LIGHTNESS_WEIGHT: Final = 0.5  # against the two colour axes: light changes it most
ANOTHER_PERSON: Final = 20.0  # weighted Lab distance; measured: 2 to 10 for one person, 13 to 50 for two
UNKNOWN: Final = 0.4  # cost where nothing can be compared
MEMORY: Final = 0.9  # share of the past in a running mean


def body_colours(frame: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """Looks of a person: (L,) float32, Lab colours of the three patches.

    `frame` is (H, W, 3) uint8 RGB, `pose` (133, 3) in its pixels. Only a patch's upper corners must be
    visible: hips are often hidden by an arm or lie below the picture, while the cloth above them shows.
    """
    looks = np.full((len(PATCHES), 3), np.nan, np.float32)
    for row, (corners, (top, bottom)) in enumerate(PATCHES):
        if pose[list(corners[:2]), 2].min() < VISIBLE:
            continue
        left, right, low_left, low_right = pose[list(corners), :2]
        down = np.linspace(top, bottom, SAMPLES)[:, None, None]
        across = np.linspace(0.2, 0.8, SAMPLES)[None, :, None]  # not the outline
        upper, lower = left + across * (right - left), low_left + across * (low_right - low_left)
        x, y = np.rint(upper + down * (lower - upper)).astype(int).reshape(-1, 2).T
        seen = (x >= 0) & (y >= 0) & (x < frame.shape[1]) & (y < frame.shape[0])
        if seen.mean() >= MIN_PATCH:
            colours = frame[y[seen], x[seen]][None].astype(np.float32) / 255  # (1, n, 3)
            looks[row] = cv2.cvtColor(colours, cv2.COLOR_RGB2LAB)[0].mean(axis=0)
    return looks.ravel()


def looks_cost(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """How different two people look: 0 = the same, 1 = rather two people. a (..., L), b (..., L) → (...).

    L may be 0, for backends that follow people by other means: then nothing is different.
    """
    difference = a - b
    if difference.shape[-1] == 0:
        return np.zeros(difference.shape[:-1])
    patches = difference.reshape(*difference.shape[:-1], -1, 3)
    distance = np.sqrt((patches**2 * (LIGHTNESS_WEIGHT**2, 1.0, 1.0)).sum(axis=-1))  # (..., patches)
    known = np.isfinite(distance)
    mean = np.where(known, distance, 0.0).sum(axis=-1) / np.maximum(known.sum(axis=-1), 1)
    return np.where(known.any(axis=-1), mean / ANOTHER_PERSON, UNKNOWN)


def mean_looks(mean: np.ndarray, looks: np.ndarray) -> np.ndarray:
    """A running mean (L,) with one more person's looks (L,) in it; what was unknown is taken over."""
    mixed = MEMORY * mean + (1 - MEMORY) * looks
    return np.where(np.isfinite(mixed), mixed, np.where(np.isfinite(mean), mean, looks))
