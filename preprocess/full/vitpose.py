"""Pictures with a box each in, 133 points a picture out: ViTPose-H on onnxruntime. Knows no video.

Geometry and normalisation are those of Wan2.2 wan/modules/animate/preprocess/pose2d.py (ViTPose.preprocess),
but for the colours: the official code hands its network BGR by mistake, it was trained on RGB.
"""

from collections.abc import Generator, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Final

import cv2
import numpy as np

from ...wan.runtime.errors import ModelFilesBroken
from ..keypoints import NUM_KEYPOINTS
from .heatmap import decode_heatmaps
from .onnx_session import OnnxNetwork

HEIGHT: Final = 256  # pixels of the network's input
WIDTH: Final = 192
ENLARGED: Final = 1.25  # the crop over the box; official value
MIN_SIDE: Final = 10  # pixels of a box, below which the whole picture is used; official value
MEAN: Final = 255 * np.array([0.485, 0.456, 0.406], np.float32)  # ImageNet, RGB
DEVIATION: Final = 255 * np.array([0.229, 0.224, 0.225], np.float32)
BATCH: Final = 8  # where the file leaves it open; ViTPose-H fills a GPU with that
FILE_NAME: Final = "end2end.onnx"  # in the folder that the checkpoint publishes


class VitPose:
    """The whole-body pose network. Serves one thread at a time."""

    def __init__(self, path: Path, *, device: str) -> None:
        """`path`: the .onnx file, or the folder that holds it as end2end.onnx; `device`: "cpu" or "cuda[:N]".

        Raises ModelFilesBroken and SetupFailed, as OnnxNetwork does.
        """
        file = path / FILE_NAME if path.is_dir() else path
        self._network = OnnxNetwork(file, device=device)
        if self._network.input_shape[1:] != (3, HEIGHT, WIDTH):
            shape = self._network.input_shape
            raise ModelFilesBroken(
                f"{file} takes {shape}, not (N, 3, {HEIGHT}, {WIDTH}): it is another network"
            )
        self._batch = self._network.input_shape[0] or BATCH

    def __call__(
        self, pictures: Iterable[tuple[np.ndarray, np.ndarray | None]]
    ) -> Generator[np.ndarray, None, None]:
        """Points of each picture's person, in order: (133, 3) float32, x, y in pixels, score about 0…1.

        Each entry is a picture, (H, W, 3) uint8 RGB, and a box, (4,) x0, y0, x1, y1, or None for the whole
        picture. Reads a batch ahead at most.
        """
        entries = iter(pictures)
        while batch := list(islice(entries, self._batch)):
            yield from self._estimate(batch)

    def _estimate(self, batch: Sequence[tuple[np.ndarray, np.ndarray | None]]) -> np.ndarray:
        inputs = np.empty((len(batch), 3, HEIGHT, WIDTH), np.float32)
        centres, sizes = np.empty((len(batch), 2)), np.empty((len(batch), 2))
        for index, (picture, box) in enumerate(batch):
            centres[index], sizes[index] = crop_box(box, *picture.shape[:2])
            inputs[index] = crop_person(picture, centre=centres[index], size=sizes[index])
        heatmaps = self._network(inputs)
        if heatmaps.shape[1] != NUM_KEYPOINTS:
            raise ModelFilesBroken(
                f"the pose network gives {heatmaps.shape[1]} points instead of {NUM_KEYPOINTS}"
            )
        return decode_heatmaps(heatmaps, centres=centres, sizes=sizes)


def crop_box(box: np.ndarray | None, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Centre (x, y) and size (width, height) in pixels of the crop around a box (4,), in the network's shape.

    None, or a box too small to see anything in, means the whole picture of `height` × `width`.
    """
    x0, y0, x1, y1 = (0, 0, width, height) if box is None else (float(value) for value in box)
    if x1 - x0 < MIN_SIDE or y1 - y0 < MIN_SIDE:
        x0, y0, x1, y1 = 0, 0, width, height
    tall = max((x1 - x0) * HEIGHT / WIDTH, y1 - y0) * ENLARGED
    return np.array([(x0 + x1) / 2, (y0 + y1) / 2]), np.array([tall * WIDTH / HEIGHT, tall])


def crop_person(picture: np.ndarray, *, centre: np.ndarray, size: np.ndarray) -> np.ndarray:
    """The network's input for one crop: (3, 256, 192) float32 normalised RGB; black beyond the picture."""
    (left, top), (right, bottom) = whole_pixels(centre, size)
    height, width = picture.shape[:2]
    crop = np.zeros((bottom - top, right - left, 3), np.float32)
    rows = slice(max(top, 0), min(bottom, height))
    columns = slice(max(left, 0), min(right, width))
    if rows.start < rows.stop and columns.start < columns.stop:
        inside = slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left)
        crop[inside] = picture[rows, columns]
    resized = cv2.resize(crop, (WIDTH, HEIGHT))
    planes = np.empty((3, HEIGHT, WIDTH), np.float32)
    for channel in range(3):
        np.subtract(cv2.extractChannel(resized, channel), MEAN[channel], out=planes[channel])
        planes[channel] /= DEVIATION[channel]
    return planes


def whole_pixels(centre: np.ndarray, size: np.ndarray) -> tuple[tuple[int, int], tuple[int, int]]:
    """The crop's corners in whole pixels: (left, top) inclusive, (right, bottom) exclusive.

    The points are mapped back with the unrounded box; half a pixel between the two is the official rounding.
    """
    side = np.array([WIDTH, HEIGHT])
    # Through the map from picture to crop, as officially: a tie between two pixels then falls the same way.
    stretch, offset = side / size, side * (0.5 - centre / size)
    corners = np.rint([-offset / stretch, (side - offset) / stretch]).astype(int)
    (left, top), (right, bottom) = corners.tolist()
    return (left, top), (max(right, left + 1), max(bottom, top + 1))
