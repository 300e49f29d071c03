"""What tests of preprocessing share: the real backend, real pictures of people, made-up people in numbers."""

import os
from contextlib import closing
from functools import cache
from pathlib import Path

import numpy as np
from wan_animate.preprocess.embedded.backend import EmbeddedBackend
from wan_animate.preprocess.keypoints import NUM_KEYPOINTS
from wan_animate.preprocess.subjects import pose_box
from wan_animate.preprocess.tracks import Tracks
from wan_animate.wan.media.decode import open_video
from wan_animate.wan.media.still import load_image

EXAMPLES = Path(__file__).parents[1] / "examples"
DRIVING = EXAMPLES / "driving.mp4"  # a portrait in motion, 512 × 528, 90 frames
SAMPLES = Path(__file__).parents[2] / "shared" / "samples"  # only where they were handed out


def user_cache() -> Path:
    """The user's cache folder: the model files are fetched once, not once a test run."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


@cache
def backend() -> EmbeddedBackend:
    """The embedded backend on two threads, loaded once."""
    return EmbeddedBackend(user_cache(), workers=2)


@cache
def portrait() -> np.ndarray:
    """The first frame of the driving sample: (528, 512, 3) uint8 RGB, read-only."""
    with closing(open_video(DRIVING).frames(0, 1)) as frames:
        return next(frames)


@cache
def officer() -> np.ndarray:
    """The reference sample: (600, 512, 3) uint8 RGB."""
    picture = load_image(EXAMPLES / "reference.jpg")
    picture.flags.writeable = False
    return picture


def wallpaper(height: int = 360, width: int = 640) -> np.ndarray:
    """A room without anybody: stripes, a shelf and a cushion, (H, W, 3) uint8."""
    y, x = np.mgrid[:height, :width]
    room = np.stack([200 + 20 * (x // 40 % 2), 190 + 15 * (x // 40 % 2), 195 + 0 * x], axis=-1)
    room[height // 3 : height // 3 + 12, width // 4 : width // 2] = 240
    room[((x - width * 0.7) / 90) ** 2 + ((y - height * 0.75) / 50) ** 2 < 1] = (210, 160, 150)
    return room.astype(np.uint8)


def standing(x: float, y: float, *, size: float = 100.0, score: float = 0.9) -> np.ndarray:
    """A whole body of `size` pixels with hips at (x, y), arms down: (133, 3) float32; no face, no hands."""
    pose = np.zeros((NUM_KEYPOINTS, 3), np.float32)
    joints = {
        0: (0, -0.5), 1: (0.02, -0.53), 2: (-0.02, -0.53), 3: (0.05, -0.52), 4: (-0.05, -0.52),
        5: (0.1, -0.35), 6: (-0.1, -0.35), 7: (0.14, -0.18), 8: (-0.14, -0.18), 9: (0.15, 0), 10: (-0.15, 0),
        11: (0.06, 0), 12: (-0.06, 0), 13: (0.06, 0.25), 14: (-0.06, 0.25), 15: (0.06, 0.5), 16: (-0.06, 0.5),
    }  # fmt: skip
    for joint, (across, down) in joints.items():
        pose[joint] = (x + across * size, y + down * size, score)
    return pose


def lone_tracks(*, frame_size: tuple[int, int], poses: np.ndarray, face_boxes: np.ndarray) -> Tracks:
    """Tracks of somebody beside whom nobody is."""
    return Tracks(
        frame_size=frame_size,
        poses=poses,
        face_boxes=face_boxes,
        boxes=np.array([pose_box(pose) for pose in poses], np.float32),
        others=np.zeros((len(poses), 0, 4), np.float32),
    )
