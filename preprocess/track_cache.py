"""Tracks kept on disk by content, so that a run after a preview does not repeat pass 1.

A key is made of the video's bytes, the frames used, the subject, the backend and this module's version: the
same key means the same tracks, whoever asks. Reads and writes whole files; knows no model and no job.
"""

import contextlib
import json
import logging
import os
import tempfile
import time
import zipfile
import zlib
from hashlib import blake2b
from pathlib import Path

import numpy as np

from .packed import PackedMasks
from .tracks import Tracks

logger = logging.getLogger(__name__)

FORMAT = 2  # raise it when what pass 1 computes changes, so that older tracks are not found
KEPT_BYTES = 256 * 2**20  # the folder is brought down to this, oldest first
CHUNK_BYTES = 2**20


class TrackCache:
    """A folder of tracks. Two processes may share it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def key(self, video: Path, *, frames: np.ndarray, words: tuple[str, ...]) -> str:
        """Name for the tracks of these source frames, (T,) int, of a video; `words` say how they are made."""
        digest = blake2b(digest_size=20)
        digest.update(json.dumps([FORMAT, *words]).encode())
        digest.update(np.ascontiguousarray(frames, dtype=np.int64).tobytes())
        with video.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
        return digest.hexdigest()

    def load(self, key: str) -> Tracks | None:
        """The tracks of that key, or None. A damaged file counts as none and is removed."""
        path = self._path(key)
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as data:
                tracks = _unpacked(data)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            logger.warning("tracks in %s are damaged and are made anew: %s", path, error)
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # last use decides what is kept
        return tracks

    def save(self, key: str, tracks: Tracks) -> None:
        """Keep tracks under a key. A full disk costs the cache entry, not the request."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self._folder, suffix=".partial")
            try:
                with os.fdopen(handle, "wb") as file:
                    np.savez_compressed(file, allow_pickle=False, **_packed(tracks))
                Path(name).replace(self._path(key))
            finally:
                Path(name).unlink(missing_ok=True)
            self._trim()
        except OSError as error:
            logger.warning("tracks could not be kept in %s: %s", self._folder, error)

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.npz"

    def _trim(self) -> None:
        entries = sorted(
            ((path.stat().st_mtime, path.stat().st_size, path) for path in self._folder.glob("*.npz")),
            reverse=True,
        )
        total = 0
        for _, size, path in entries:
            total += size
            if total > KEPT_BYTES:
                path.unlink(missing_ok=True)
        for partial in self._folder.glob("*.partial"):
            if time.time() - partial.stat().st_mtime > 3600:  # left by a process that was killed
                partial.unlink(missing_ok=True)


def _packed(tracks: Tracks) -> dict[str, np.ndarray]:
    arrays = {
        "frame_size": np.array(tracks.frame_size),
        "poses": tracks.poses,
        "face_boxes": tracks.face_boxes,
        "boxes": tracks.boxes,
        "others": tracks.others,
        "warnings": np.array(json.dumps(tracks.warnings)),
    }
    if tracks.masks is not None:
        arrays["mask_bytes"] = np.frombuffer(b"".join(tracks.masks.frames), np.uint8)
        arrays["mask_ends"] = np.cumsum([len(frame) for frame in tracks.masks.frames])
        arrays["mask_size"] = np.array(tracks.masks.size)
    return arrays


def _unpacked(data: np.lib.npyio.NpzFile) -> Tracks:
    masks = None
    if "mask_bytes" in data:
        content = data["mask_bytes"].tobytes()
        ends = data["mask_ends"].tolist()
        frames = tuple(content[start:end] for start, end in zip([0, *ends], ends, strict=False))
        height, width = data["mask_size"].tolist()
        masks = PackedMasks(size=(height, width), frames=frames)
    height, width = data["frame_size"].tolist()
    return Tracks(
        frame_size=(height, width),
        poses=data["poses"],
        face_boxes=data["face_boxes"],
        boxes=data["boxes"],
        others=data["others"],
        masks=masks,
        warnings=tuple(json.loads(str(data["warnings"]))),
    )
