"""The model's traditional intermediate files, for those who want to look at them or feed another program.

In: a source. Out: `src_pose.mp4`, `src_face.mp4`, `src_ref.png`; in replacement also `src_bg.mp4`
and `src_mask.mp4`, as Wan2.2 wan/modules/animate/preprocess/process_pipepline.py names them; and the pictures
that FLUX edited, where it did. Nothing here is ever read back: what the model gets stays in memory and
lossless.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from ..wan.conditions import FACE_SIZE
from ..wan.media.encode import VideoWriter
from ..wan.runtime.job import Stage
from .clip_source import FrameView, TrackedSource

QUALITY: Final = 10  # H.264 constant rate factor: thin lines survive


def write_intermediates(
    folder: Path, source: TrackedSource, *, stage: Stage, stills: Mapping[str, np.ndarray]
) -> None:
    """Write the files into a new `folder`; advances `stage` by one a frame. Raises DiskFull, Cancelled.

    `stills` are further pictures, (h, w, 3) uint8 RGB, by the name of their file.
    """
    folder.mkdir()
    height, width = source.reference.shape[:2]
    for name, picture in {"src_ref": source.reference, **stills}.items():
        Image.fromarray(picture).save(folder / f"{name}.png")
    sizes = {"src_pose": (width, height), "src_face": (FACE_SIZE, FACE_SIZE)}
    if source.replaces:
        sizes |= {"src_bg": (width, height), "src_mask": (width, height)}
    with ExitStack() as stack:
        writers = {
            name: stack.enter_context(
                VideoWriter(folder / f"{name}.mp4", width=w, height=h, fps=source.video.fps, quality=QUALITY)
            )
            for name, (w, h) in sizes.items()
        }
        for view in source.views():
            for name, picture in _pictures(view).items():
                writers[name].write(picture[None])
            stage.advance()


def _pictures(view: FrameView) -> dict[str, np.ndarray]:
    """Each file's picture of one frame, (h, w, 3) uint8 RGB."""
    pictures = {"src_pose": view.pose, "src_face": view.face}
    if view.background is not None and view.mask is not None:
        pictures |= {"src_bg": view.background, "src_mask": np.repeat(view.mask[:, :, None], 3, axis=2)}
    return pictures
