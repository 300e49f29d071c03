"""Sizes and shapes of pictures: fit to an area, fill a frame, pad to a frame. Pure: no files, no models.

Sizes are (width, height) in pixels, pictures (H, W, C) uint8; what comes in is never written to.
"""

from fractions import Fraction
from math import ceil, floor

import cv2
import numpy as np

from ..wan.runtime.errors import InvalidInput

GRID = 16  # pixels; the VAE's 8 times the transformer's patch of 2
SAME_SHAPE = Fraction(3, 100)  # aspect ratios this close are the same
LEAST_AREA = Fraction(93, 100)  # share of the asked area that the output keeps at least
MAX_ASPECT = 4  # longer side to shorter; the model has seen nothing beyond


def fit_size(aspect_wh: tuple[int, int], *, width: int, height: int) -> tuple[int, int]:
    """The output's (width, height), multiples of 16, for a source of this shape and an asked size.

    A source shaped like the asked size, or like it turned by a quarter, gets just that size. Any other gets,
    of the sizes with 93 … 100 % of the asked area, the one shaped most like it; of equal ones the larger.
    Raises InvalidInput where the source is longer than 4:1 or the asked size too small for its shape.
    """
    source_w, source_h = aspect_wh
    if min(source_w, source_h, width, height) <= 0:
        raise InvalidInput(f"sizes must be above zero, got {source_w}×{source_h} and {width}×{height}")
    if max(source_w, source_h) > MAX_ASPECT * min(source_w, source_h):
        raise InvalidInput(
            f"the source is {source_w}×{source_h} pixels, longer than {MAX_ASPECT}:1; crop it first"
        )
    aspect = Fraction(source_w, source_h)
    for asked_w, asked_h in ((width, height), (height, width)):
        if abs(aspect / Fraction(asked_w, asked_h) - 1) <= SAME_SHAPE:
            return _on_grid(asked_w), _on_grid(asked_h)
    sizes = _sizes_of_area(width * height)
    if not sizes:
        raise InvalidInput(
            f"{width}×{height} is too small for a source of {source_w}×{source_h}; ask for more"
        )
    return min(sizes, key=lambda size: (_distortion(size, aspect_wh), -size[0] * size[1]))


def scale_and_crop(image: np.ndarray, *, width: int, height: int) -> np.ndarray:
    """Fill (height, width) with the picture: scaled evenly, what is left over cropped evenly from both sides.

    Shrinks by area averaging, enlarges bicubically. A picture that fits already comes back as it is.
    """
    old_h, old_w = image.shape[:2]
    if (old_w, old_h) == (width, height):
        return image
    scale = max(Fraction(width, old_w), Fraction(height, old_h))
    new_w, new_h = max(round(old_w * scale), width), max(round(old_h * scale), height)
    scaled = cv2.resize(image, (new_w, new_h), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    left, top = (new_w - width) // 2, (new_h - height) // 2
    return np.ascontiguousarray(scaled[top : top + height, left : left + width])


def pad_to_fit(
    image: np.ndarray, *, width: int, height: int, interpolation: int = cv2.INTER_LINEAR
) -> np.ndarray:
    """The whole picture inside (height, width), centred on black: Wan2.2's padding_resize, bit for bit.

    Sides are cut to whole pixels downwards in floating point, as there: the model has been trained with it.
    """
    old_h, old_w = image.shape[:2]
    if old_h / old_w > height / width:
        new_w, new_h = max(int(height / old_h * old_w), 1), height
    else:
        new_w, new_h = width, max(int(width / old_w * old_h), 1)
    left, top = (width - new_w) // 2, (height - new_h) // 2
    padded = np.zeros((height, width, *image.shape[2:]), image.dtype)
    scaled = cv2.resize(image, (new_w, new_h), interpolation=interpolation)
    padded[top : top + new_h, left : left + new_w] = scaled.reshape(new_h, new_w, *image.shape[2:])
    return padded


def _on_grid(side: int) -> int:
    """The nearest multiple of 16, halves upwards."""
    return max(GRID, floor(Fraction(side, GRID) + Fraction(1, 2)) * GRID)


def _sizes_of_area(area: int) -> list[tuple[int, int]]:
    """All (width, height) on the grid whose area is 93 … 100 % of `area`."""
    most = area // GRID**2  # cells of the grid; W · H is whole cells, so this loses nothing
    least = ceil(LEAST_AREA * area / GRID**2)
    return [
        (columns * GRID, rows * GRID)
        for columns in range(1, most + 1)
        for rows in range(-(-least // columns), most // columns + 1)
    ]


def _distortion(size: tuple[int, int], shape: tuple[int, int]) -> float:
    """How far a size is from a shape, ≥ 1: exp |ln(W / H ÷ aspect)|; equal shapes give equal floats."""
    wide, high = size[0] * shape[1], size[1] * shape[0]
    return max(wide / high, high / wide)
