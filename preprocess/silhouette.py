"""A silhouette in, the area to be generated out: grown, coarsened by a grid, cut from the picture. Pure.

Semantics of Wan2.2 wan/modules/animate/preprocess/utils.py (get_mask_body_img, get_aug_mask), where growing
hides an inexact outline and the grid hides the person's shape from the model. Masks are (H, W), any value but
0 is the person; results are new arrays of 0 and 1, arguments are never written to.
"""

from dataclasses import dataclass

import cv2
import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskShaping:
    """How a silhouette becomes the area to be generated; the request's mask fields."""

    iterations: int = 3  # passes of dilation; 0 keeps the silhouette, without a grid
    kernel_size: int = 7  # pixels a side of the dilation's square
    columns: int = 1  # cells across the silhouette's box; 1 × 1 fills the box
    rows: int = 1  # cells down the silhouette's box


def shape_mask(mask: np.ndarray, shaping: MaskShaping) -> np.ndarray:
    """Grow, then coarsen: (H, W) → (H, W) uint8 of 0 and 1. Without iterations the silhouette stays."""
    if shaping.iterations == 0:
        return _binary(mask)
    grown = grow_mask(mask, iterations=shaping.iterations, kernel_size=shaping.kernel_size)
    return coarsen_mask(grown, columns=shaping.columns, rows=shaping.rows)


def grow_mask(mask: np.ndarray, *, iterations: int, kernel_size: int) -> np.ndarray:
    """Dilate with a square of `kernel_size` pixels, `iterations` times: (H, W) → (H, W) uint8 of 0 and 1."""
    kernel = np.ones((kernel_size, kernel_size), np.uint8)
    return cv2.dilate(_binary(mask), kernel, iterations=iterations)


def coarsen_mask(mask: np.ndarray, *, columns: int, rows: int) -> np.ndarray:
    """Fill every cell of a grid over the mask's box that holds any of it: (H, W) → (H, W) uint8 of 0 and 1.

    An empty mask stays empty. Where the box has fewer pixels than cells, cells are one pixel (the reference
    crashes on both).
    """
    coarse = _binary(mask)
    filled_rows, filled_columns = np.flatnonzero(coarse.any(axis=1)), np.flatnonzero(coarse.any(axis=0))
    if not len(filled_rows):
        return coarse
    top, bottom = filled_rows[0], filled_rows[-1]
    left, right = filled_columns[0], filled_columns[-1]
    # Reference accident, kept: the box ends before its last row and column, which stay a bare silhouette.
    box = coarse[top:bottom, left:right]
    if box.size:
        tall, wide = max(box.shape[0] // rows, 1), max(box.shape[1] // columns, 1)
        cells = np.logical_or.reduceat(box, np.arange(0, box.shape[0], tall), axis=0)
        cells = np.logical_or.reduceat(cells, np.arange(0, box.shape[1], wide), axis=1)
        filled = cells.repeat(tall, axis=0).repeat(wide, axis=1)
        box[:] = filled[: box.shape[0], : box.shape[1]]
    return coarse


def cut_background(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The picture with the mask's area black: (H, W, 3) uint8 → (H, W, 3) uint8."""
    return cv2.bitwise_and(
        image, image, mask=(mask == 0).astype(np.uint8)
    )  # a tenth of the time of a product


def _binary(mask: np.ndarray) -> np.ndarray:
    return (mask != 0).astype(np.uint8)
