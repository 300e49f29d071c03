"""Turned square crops: part of a picture in, a network's input and the way back out. Knows no model."""

from dataclasses import dataclass

import cv2
import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Square:
    """A square region of a picture, possibly turned, possibly reaching beyond its edges."""

    centre: np.ndarray  # (2,) x, y in pixels
    side: float  # pixels, > 0
    angle: float = 0.0  # radians, clockwise as seen: the direction "up" inside the square, 0 = picture's up

    def matrix(self, out: int) -> np.ndarray:
        """(2, 3) float64: picture pixels → pixels of the crop of `out` × `out`."""
        scale = out / self.side
        cosine, sine = scale * np.cos(self.angle), scale * np.sin(self.angle)
        turn = np.array([[cosine, sine], [-sine, cosine]])
        return np.column_stack([turn, out / 2 - turn @ self.centre])

    def take(self, picture: np.ndarray, out: int) -> np.ndarray:
        """(H, W, 3) uint8 → (out, out, 3) float32 0…255, black beyond the picture's edges."""
        crop = cv2.warpAffine(picture, self.matrix(out), (out, out), flags=cv2.INTER_LINEAR)
        return crop.astype(np.float32)

    def to_picture(self, points: np.ndarray, out: int) -> np.ndarray:
        """Points (..., 2) in pixels of the crop → float32 in pixels of the picture."""
        matrix = self.matrix(out)
        back = np.linalg.inv(matrix[:, :2])
        return ((points - matrix[:, 2]) @ back.T).astype(np.float32)


def up_angle(vector: np.ndarray) -> float:
    """Angle of a square whose "up" is this vector (2,) in picture pixels (y grows downwards)."""
    return float(np.arctan2(vector[0], -vector[1]))
