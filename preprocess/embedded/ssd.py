"""Single-shot detection arithmetic: anchors, decoding of raw outputs, weighted suppression. Pure.

BlazePose's and BlazeFace's detectors predict, for every anchor, a box and a few named points in units of the
network's input side, relative to the anchor's centre. Coordinates in and out are normalised to 0…1 of the
square input.
"""

from dataclasses import dataclass

import numpy as np
from einops import rearrange

SUPPRESSION_IOU = (
    0.3  # boxes that overlap more are one thing; mediapipe pose_detection and face_detection graphs
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Detection:
    """One thing found, in 0…1 of the square network input."""

    score: float  # 0…1
    box: np.ndarray  # (4,) float32: x0, y0, x1, y1
    points: np.ndarray  # (P, 2) float32: the network's named points


def anchor_centres(side: int, strides: tuple[int, ...], *, per_layer: int = 2) -> np.ndarray:
    """Centres of all anchors of a square network with fixed anchor sizes, in the order of its outputs.

    `strides` lists one value a layer; neighbouring layers of the same stride share a grid, whose cells
    then hold the anchors of all of them next to each other. Returns (A, 2) float32, x and y in 0…1.
    """
    grids = []
    layer = 0
    while layer < len(strides):
        stride = strides[layer]
        shared = 1
        while layer + shared < len(strides) and strides[layer + shared] == stride:
            shared += 1
        cells = -(-side // stride)
        ticks = (np.arange(cells) + 0.5) / cells
        y, x = np.meshgrid(ticks, ticks, indexing="ij")
        centres = np.stack([x, y], axis=-1).reshape(-1, 2)  # (cells², 2), row by row
        grids.append(np.repeat(centres, shared * per_layer, axis=0))
        layer += shared
    return np.concatenate(grids).astype(np.float32)


def decode_detections(
    raw: np.ndarray,  # (A, 4 + 2·P) centre, size, points, in network pixels relative to the anchor
    logits: np.ndarray,  # (A,)
    *,
    anchors: np.ndarray,  # (A, 2)
    side: int,
    threshold: float,
) -> list[Detection]:
    """Raw outputs → what was found with a score ≥ `threshold`, best first, doubles merged."""
    scores = sigmoid(logits)
    keep = scores >= threshold
    raw, scores, anchors = raw[keep] / side, scores[keep], anchors[keep]
    centre, size = raw[:, :2] + anchors, raw[:, 2:4]
    boxes = np.concatenate([centre - size / 2, centre + size / 2], axis=1)
    points = rearrange(raw[:, 4:], "n (p xy) -> n p xy", xy=2) + anchors[:, None]
    found = []
    order = np.argsort(-scores, kind="stable")
    while len(order):
        best = order[0]
        same = overlap(boxes[best], boxes[order]) > SUPPRESSION_IOU
        same[0] = True  # a box without area does not even overlap itself
        group = order[same]
        weight = scores[group] / scores[group].sum()
        found.append(
            Detection(
                score=float(scores[best]),
                # The mean over the group, not its best member: a detector's doubles scatter around the truth.
                box=(weight[:, None] * boxes[group]).sum(0).astype(np.float32),
                points=(weight[:, None, None] * points[group]).sum(0).astype(np.float32),
            )
        )
        order = order[~same]
    return found


def overlap(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Intersection over union of one box (4,) with many (N, 4) → (N,), 0 where there is no area."""
    sides = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    common = np.prod(np.clip(sides, 0, None), axis=1)
    union = np.prod(box[2:] - box[:2]) + np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) - common
    return np.where(union > 0, common / np.maximum(union, 1e-12), 0.0)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Logistic function that does not overflow; float32 in, float32 out."""
    return 0.5 * (1.0 + np.tanh(0.5 * np.asarray(logits, np.float32)))
