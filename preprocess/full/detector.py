"""Frames in, everybody in them out, each with an identity: YOLOv10m and BoT-SORT through ultralytics.

ultralytics and the YOLOv10 weights are AGPL-3.0; nothing else in this project depends on either. The library
likes to install packages, look for updates, report its use and keep settings in the user's home, and it
changes the process it is imported into; none of that happens here (`_library`). Who is meant, and what
happens in gaps and at cuts, lies elsewhere. M people.
"""

import logging
import os
import tempfile
import warnings
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import cv2
import numpy as np
import torch
from PIL import Image

from ...wan.runtime.errors import SetupFailed
from ..backends import NOBODY_KNOWS
from .onnx_session import broken, existing, load_runtime, require_device

SIDE: Final = 640  # pixels; the network's input is square
GREY: Final = 114 / 255  # around the picture, as in the network's training
PERSON: Final = 0  # class number in COCO's order
MIN_SCORE: Final = 0.1  # from which a detection continues an identity; to begin one takes new_track_thresh
MAX_OVERLAP: Final = 0.7  # intersection over union of two people, where the file leaves doubles in
MAX_PEOPLE: Final = 30
BATCH: Final = 8  # where the file leaves it open

# BoT-SORT without camera motion compensation, ultralytics 8.4.190's values otherwise. In 576 simulated
# crossings of two people (four speeds, three sizes, merged and missed boxes, a shaking camera) it changed
# somebody's identity 70 times and mixed two people up in 12; ByteTrack 128 and 13. The compensation alone
# would cost more than everything else here.
TRACKER: Final = {
    "tracker_type": "botsort",
    "track_high_thresh": 0.25,
    "track_low_thresh": MIN_SCORE,
    "new_track_thresh": 0.25,
    "track_buffer": 30,  # frames; longer gaps are joined later, by looks
    "match_thresh": 0.8,
    "fuse_score": True,
    "gmc_method": "none",
    "proximity_thresh": 0.5,
    "appearance_thresh": 0.8,
    "with_reid": False,
    "model": "auto",
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Detections:
    """Everybody found in one frame."""

    boxes: np.ndarray  # (M, 4) float32: x0, y0, x1, y1 in pixels, inside the frame
    scores: np.ndarray  # (M,) float32 0…1


class PersonDetector:
    """The detector. Serves one thread at a time."""

    def __init__(self, path: Path, *, device: str) -> None:
        """Load a YOLO .onnx file with either output, (1, 300, 6) or (1, 84, 8400), on "cpu" or "cuda[:N]".

        Raises ModelFilesBroken where the file is missing or another network, SetupFailed where ultralytics is
        missing or the device cannot be used.
        """
        file = existing(path)
        load_runtime(device)
        self._library = _library()
        self._device = _usable(device)
        with _untouched_process():
            model = self._library.YOLO(file, task="detect")
            try:  # the session is made at the first picture
                model.predict(
                    np.zeros((SIDE, SIDE, 3), np.uint8), device=self._device, imgsz=SIDE, verbose=False
                )
            except Exception as error:  # ultralytics hands on whatever onnxruntime, torch or itself raise
                raise broken(path, error) from error
        self._network: Any = model.predictor.model
        require_device(self._network.session, device)
        self._network.session.disable_fallback()
        one_by_one = isinstance(self._network.session.get_inputs()[0].shape[0], int)
        self._batch = 1 if one_by_one else BATCH

    def __call__(self, frames: Iterable[np.ndarray]) -> Generator[Detections, None, None]:
        """Everybody in each frame, (H, W, 3) uint8 RGB, in order. Reads a batch ahead at most."""
        entries = iter(frames)
        while batch := list(islice(entries, self._batch)):
            yield from self._detect(batch)

    def _detect(self, batch: Sequence[np.ndarray]) -> Iterator[Detections]:
        pictures = np.full((len(batch), 3, SIDE, SIDE), GREY, np.float32)
        fits = [letterbox(frame, pictures[index]) for index, frame in enumerate(batch)]
        with torch.inference_mode():
            raw = self._network(torch.from_numpy(pictures).to(self._device))
            found = self._library.non_max_suppression(
                raw, MIN_SCORE, MAX_OVERLAP, classes=[PERSON], max_det=MAX_PEOPLE
            )
        for frame, fit, rows in zip(batch, fits, found, strict=True):
            people = rows.cpu().numpy()
            boxes = fit.to_frame(people[:, :4], *frame.shape[:2])
            yield Detections(boxes=boxes, scores=people[:, 4].astype(np.float32))


class IdentityTracker:
    """Identities through one video: the same number, the same person, as far as place and motion tell."""

    def __init__(self) -> None:
        library = _library()
        self._boxes = library.Boxes
        self._tracker = library.BOTSORT(SimpleNamespace(**TRACKER, device="cpu"))

    def follow(self, detections: Detections, *, height: int, width: int) -> np.ndarray:
        """Identities (M,) int64 of the next frame's people, NOBODY_KNOWS where there is none (yet)."""
        count = len(detections.scores)
        rows = np.zeros((count, 6), np.float32)  # corners, score, class
        rows[:, :4], rows[:, 4] = detections.boxes, detections.scores
        identities = np.full(count, NOBODY_KNOWS, np.int64)
        tracks = self._tracker.update(self._boxes(rows, (height, width)), None)
        if len(tracks):
            identities[tracks[:, 7].astype(int)] = tracks[:, 4]
        return identities


# --- geometry: pure


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Where a frame lies in the network's square."""

    scale: float  # the square's pixels to one of the frame
    left: int
    top: int

    def to_frame(self, boxes: np.ndarray, height: int, width: int) -> np.ndarray:
        """Boxes (M, 4) from the square to a frame of `height` × `width`, cut at its edges: float32."""
        moved = (boxes - (self.left, self.top, self.left, self.top)) / self.scale
        return np.clip(moved, 0, (width, height, width, height)).astype(np.float32)


def letterbox(frame: np.ndarray, square: np.ndarray) -> Fit:
    """Fit a frame, (H, W, 3) uint8 RGB, into the middle of `square`, (3, S, S) float32, in place, as 0…1.

    The official code stretches instead, and people become wide. Sizes and rounding are ultralytics' own.
    """
    height, width = frame.shape[:2]
    side = square.shape[1]
    scale = min(side / height, side / width)
    inner_width, inner_height = max(round(width * scale), 1), max(round(height * scale), 1)
    left, top = round((side - inner_width) / 2 - 0.1), round((side - inner_height) / 2 - 0.1)
    resized = cv2.resize(frame, (inner_width, inner_height), interpolation=cv2.INTER_LINEAR)
    for channel in range(3):  # plane by plane: three times as fast as a transposed copy
        inside = square[channel, top : top + inner_height, left : left + inner_width]
        np.multiply(cv2.extractChannel(resized, channel), np.float32(1 / 255), out=inside)
    return Fit(scale=scale, left=left, top=top)


# --- ultralytics


def _usable(device: str) -> torch.device:
    """The device for torch, which prepares the pictures and removes doubles. Raises SetupFailed."""
    usable = torch.device("cuda", 0) if device == "cuda" else torch.device(device)
    try:
        torch.zeros(1, device=usable)
    except (RuntimeError, AssertionError) as error:
        raise SetupFailed(
            f"torch cannot use {device} ({error}): see its requirements in the README"
        ) from error
    return usable


@cache
def _library() -> SimpleNamespace:
    """What is needed of ultralytics, imported without its habits. Raises SetupFailed where it is missing."""
    try:
        with tempfile.TemporaryDirectory() as settings, _untouched_process(), np.printoptions():
            os.environ.update(
                YOLO_CONFIG_DIR=settings,  # it writes its settings file on import
                YOLO_AUTOINSTALL="false",
                YOLO_OFFLINE="true",
                YOLO_VERBOSE="false",
            )
            from ultralytics import YOLO  # noqa: PLC0415 - two seconds, and only where this backend is used
            from ultralytics.engine.results import Boxes  # noqa: PLC0415
            from ultralytics.trackers.bot_sort import BOTSORT  # noqa: PLC0415
            from ultralytics.utils import checks, events  # noqa: PLC0415
            from ultralytics.utils.nms import non_max_suppression  # noqa: PLC0415
    except ImportError as error:
        raise SetupFailed(
            f"ultralytics cannot be imported ({error}): install requirements.txt afresh"
        ) from error
    torch.set_printoptions(profile="default")
    # Again, for a process that had it imported with its defaults already.
    setattr(checks, "AUTOINSTALL", False)  # noqa: B010 - not one of the module's public names
    events.events.enabled = False
    _calm(logging.getLogger("ultralytics"))
    return SimpleNamespace(YOLO=YOLO, Boxes=Boxes, BOTSORT=BOTSORT, non_max_suppression=non_max_suppression)


def _calm(log: logging.Logger) -> None:
    """Warnings go where everybody else's go, instead of to standard output."""
    for handler in list(log.handlers):
        log.removeHandler(handler)
    log.setLevel(logging.WARNING)
    log.propagate = True


@contextmanager
def _untouched_process() -> Iterator[None]:
    """Undo on leaving what ultralytics changes in the process: environment, threads, warnings, torch and PIL.

    Its Image.open wants another package where a picture is damaged, and hides what is wrong with it.
    """
    environment, save, open_image = dict(os.environ), torch.save, Image.open
    threads, torch_threads = cv2.getNumThreads(), torch.get_num_threads()
    # Or it wants the package onnx beside onnxruntime.
    os.environ["ULTRALYTICS_SKIP_REQUIREMENTS_CHECKS"] = "true"
    try:
        with warnings.catch_warnings():
            yield
    finally:
        for name in os.environ.keys() | environment.keys():
            if name not in environment:
                del os.environ[name]
            elif os.environ.get(name) != environment[name]:
                os.environ[name] = environment[name]
        cv2.setNumThreads(threads)
        torch.set_num_threads(torch_threads)
        torch.save, Image.open = save, open_image
