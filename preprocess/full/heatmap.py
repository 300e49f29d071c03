"""Heatmaps in, points in the picture out: every map's peak, refined below its grid. Pure; knows no model.

DARK decoding (Zhang et al. 2020, "Distribution-Aware Coordinate Representation"): the map is blurred with the
Gaussian it was trained on, and a parabola through the logarithm of its peak's neighbours gives the place
between the cells. The numbers are those of Wan2.2 wan/modules/animate/preprocess/pose2d_utils.py
(keypoints_from_heatmaps, unbiased), which blurs whole maps; a peak needs 15 × 15 of their cells. N people, K
points, h w cells.
"""

from typing import Final

import cv2
import numpy as np
from einops import rearrange

KERNEL: Final = 11  # cells; the Gaussian of the training targets, sigma 2
SIGMA: Final = 0.3 * ((KERNEL - 1) * 0.5 - 1) + 0.8  # OpenCV's rule
RADIUS: Final = KERNEL // 2
REACH: Final = 2  # cells to each side of a peak that the parabola uses
MIN_VALUE: Final = 1e-10  # of a blurred map scaled to its old peak, before the logarithm


def decode_heatmaps(heatmaps: np.ndarray, *, centres: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Points of N people: (N, K, 3) float32, x, y in pixels of the picture and the peak's height as score.

    `heatmaps` is (N, K, h, w) float32; map n covers the box of `sizes[n]` = (width, height) around
    `centres[n]` = (x, y). A map without anything above 0 gives cell (−1, −1), outside its box; score ≤ 0.
    """
    height, width = heatmaps.shape[2:]
    cells, scores = _peaks(heatmaps)
    cells += _offsets(heatmaps, cells.astype(np.intp))
    step = sizes / (width, height)  # pixels a cell
    points = cells * step[:, None] + (centres - sizes / 2)[:, None]
    return np.concatenate([points, scores[..., None]], axis=2).astype(np.float32)


def _peaks(heatmaps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every map's highest cell, x and y (N, K, 2), −1 without anything above 0, and its height (N, K)."""
    flat = rearrange(heatmaps, "n k h w -> n k (h w)")
    best = flat.argmax(axis=2)
    scores = np.take_along_axis(flat, best[..., None], axis=2)[..., 0]
    cells = np.stack(np.divmod(best, heatmaps.shape[3])[::-1], axis=-1).astype(np.float64)
    cells[scores <= 0] = -1
    return cells, scores


def _offsets(heatmaps: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """From each peak's cell to its parabola's top: (N, K, 2); 0 for a peak at the edge or on a plateau."""
    height, width = heatmaps.shape[2:]
    offsets = np.zeros(cells.shape)
    inside = ((cells > 1) & (cells < (width - REACH, height - REACH))).all(axis=2)
    people, points = np.nonzero(inside)
    if not len(people):
        return offsets
    # (n, 5, 5), the peak in the middle
    logs = np.log(_blurred_peaks(heatmaps, people, points, cells[inside]))
    here = logs[:, 2, 2]
    dx = (logs[:, 2, 3] - logs[:, 2, 1]) / 2
    dy = (logs[:, 3, 2] - logs[:, 1, 2]) / 2
    dxx = (logs[:, 2, 4] - 2 * here + logs[:, 2, 0]) / 4
    dyy = (logs[:, 4, 2] - 2 * here + logs[:, 0, 2]) / 4
    dxy = (logs[:, 3, 3] - logs[:, 1, 3] - logs[:, 3, 1] + logs[:, 1, 1]) / 4
    determinant = dxx * dyy - dxy**2
    curved = determinant != 0
    determinant = np.where(curved, determinant, 1)
    found = np.stack([dxy * dy - dyy * dx, dxy * dx - dxx * dy], axis=-1) / determinant[:, None]
    offsets[people, points] = np.where(curved[:, None], found, 0)
    return offsets


def _blurred_peaks(
    heatmaps: np.ndarray, people: np.ndarray, points: np.ndarray, cells: np.ndarray
) -> np.ndarray:
    """The blurred maps around n peaks, (n, 5, 5) float64, up to a factor and ≥ MIN_VALUE.

    The reference scales every blurred map back to its old peak. A factor does not move the parabola's top, so
    it only matters where the lower limit cuts in; there the whole map is blurred.
    """
    height, width = heatmaps.shape[2:]
    window = np.arange(-RADIUS - REACH, RADIUS + REACH + 1)
    rows, columns = cells[:, 1, None] + window, cells[:, 0, None] + window  # (n, 15)
    maps = rearrange(heatmaps, "n k h w -> (n k h) w")
    first_row = (people * heatmaps.shape[1] + points)[:, None] * height
    lines = (first_row + np.clip(rows, 0, height - 1))[:, :, None]
    patches = maps[lines, np.clip(columns, 0, width - 1)[:, None]].astype(np.float64)  # (n, 15, 15)
    patches *= ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None]
    taps = _taps()
    blurred = taps @ patches @ taps.T  # (n, 5, 5)
    for index in np.flatnonzero(blurred.min(axis=(1, 2)) < 2 * MIN_VALUE):
        whole = heatmaps[people[index], points[index]]
        smooth = cv2.GaussianBlur(np.pad(whole, RADIUS), (KERNEL, KERNEL), 0)[RADIUS:-RADIUS, RADIUS:-RADIUS]
        blurred[index] = np.maximum(blurred[index] * (whole.max() / smooth.max()), MIN_VALUE)
    return blurred


def _taps() -> np.ndarray:
    """The blur along one axis as a matrix, (5, 15): each row the same Gaussian, one cell further."""
    kernel = cv2.getGaussianKernel(KERNEL, SIGMA)[:, 0]
    taps = np.zeros((2 * REACH + 1, 2 * (RADIUS + REACH) + 1))
    for row in range(len(taps)):
        taps[row, row : row + KERNEL] = kernel
    return taps
