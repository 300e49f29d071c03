"""The six embedded model files: fetched once into the user's cache, checked every time. Knows no network.

They lie inside the wheel of `mediapipe` on the package index (Apache-2.0). The wheel is downloaded and
unzipped, never installed or imported: its package would bring old versions of numpy and protobuf, and its own
tracking fails where ours does not. The wheel's platform does not matter, the files run everywhere.
"""

import errno
import hashlib
import importlib.util
import logging
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ...wan.runtime.errors import DiskFull, ModelFilesBroken

logger = logging.getLogger(__name__)

REQUIREMENT: Final = "mediapipe==0.10.21"  # the last version whose wheel holds all six
FOLDER: Final = "wan-animate/mediapipe-0.10.21"  # in the user's cache folder
DOWNLOAD_MB: Final = 36  # the wheel; the six files are 16.5

# One fixed wheel, whatever runs this: the same bytes everywhere, and it exists for no Python from 3.13 on.
WHEEL_TAGS: Final = ("--python-version", "3.11", "--platform", "manylinux_2_28_x86_64")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFile:
    """One file of the wheel."""

    member: str  # path inside the wheel
    sha256: str

    @property
    def name(self) -> str:
        """Its name in the cache."""
        return self.member.rpartition("/")[2]


MODEL_FILES: Final[Mapping[str, ModelFile]] = {
    "pose_detection": ModelFile(
        member="mediapipe/modules/pose_detection/pose_detection.tflite",
        sha256="9ba9dd3d42efaaba86b4ff0122b06f29c4122e756b329d89dca1e297fd8f866c",
    ),
    "pose_landmark": ModelFile(
        member="mediapipe/modules/pose_landmark/pose_landmark_full.tflite",
        sha256="e9a5c5cb17f736fafd4c2ec1da3b3d331d6edbe8a0d32395855aeb2cdfd64b9f",
    ),
    "hand_landmark": ModelFile(
        member="mediapipe/modules/hand_landmark/hand_landmark_full.tflite",
        sha256="11c272b891e1a99ab034208e23937a8008388cf11ed2a9d776ed3d01d0ba00e3",
    ),
    "hand_recrop": ModelFile(
        member="mediapipe/modules/holistic_landmark/hand_recrop.tflite",
        sha256="67d996ce96f9d36fe17d2693022c6da93168026ab2f028f9e2365398d8ac7d5d",
    ),
    "face_detection": ModelFile(
        member="mediapipe/modules/face_detection/face_detection_short_range.tflite",
        sha256="bbff11cebd1eb27a1e004cae0b0e63ec8c551cbf34a4451148b4908b8db3eca8",
    ),
    "face_landmark": ModelFile(
        member="mediapipe/modules/face_landmark/face_landmark.tflite",
        sha256="1055cb9d4a9ca8b8c688902a3a5194311138ba256bcc94e336d8373a5f30c814",
    ),
}


def ensure_models(cache_dir: Path) -> dict[str, Path]:
    """Paths of the six files by the keys of MODEL_FILES, fetched first where any is missing or damaged.

    `cache_dir` is the user's cache folder. Every file is compared with its published sha256. Several
    processes may do this at once. Raises ModelFilesBroken where the files cannot be had, DiskFull.
    """
    folder = cache_dir / FOLDER
    paths = {key: folder / file.name for key, file in MODEL_FILES.items()}
    broken = [key for key, path in paths.items() if not _is_intact(path, MODEL_FILES[key])]
    if not broken:
        return paths
    logger.info("fetching the embedded pose models (%d MB) into %s", DOWNLOAD_MB, folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Beside the target, so that the final step is a rename: others see a whole file or none.
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as scratch:
            wheel = _download_wheel(Path(scratch))
            for key in broken:
                _unpack(wheel, MODEL_FILES[key], Path(scratch)).replace(paths[key])
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise DiskFull(f"no room for the pose models in {folder}: free {2 * DOWNLOAD_MB} MB") from error
        raise ModelFilesBroken(
            f"the pose models cannot be stored in {folder} ({error.strerror}): make the folder writable, "
            "or choose another cache folder"
        ) from error
    return paths


def _is_intact(path: Path, file: ModelFile) -> bool:
    try:
        with path.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest() == file.sha256
    except OSError:
        return False


def _download_wheel(folder: Path) -> Path:
    """Fetch the wheel into `folder` with pip, which knows the user's index, proxy and certificates."""
    if importlib.util.find_spec("pip") is None:
        raise ModelFilesBroken(
            f"the pose models are fetched by pip, which {sys.executable} lacks: "
            "run `python -m ensurepip` (or `uv pip install pip`) and try again"
        )
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", *WHEEL_TAGS]
    result = subprocess.run(
        [*command, "--disable-pip-version-check", "--dest", str(folder), REQUIREMENT],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    wheels = sorted(folder.glob("*.whl"))
    if result.returncode != 0 or not wheels:
        complaint = next(
            (line for line in reversed(result.stderr.splitlines()) if line.strip()), "no wheel arrived"
        )
        raise ModelFilesBroken(
            f"pip could not download {REQUIREMENT} ({complaint.strip()}): connect to a package index and try "
            f"again, or put the six .tflite files of its wheel into {folder.parent}"
        )
    return wheels[0]


def _unpack(wheel: Path, file: ModelFile, folder: Path) -> Path:
    """Take one file out of the wheel and check it."""
    target = folder / file.name
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(file.member) as source,
            target.open("wb") as sink,
        ):
            shutil.copyfileobj(source, sink)
    except (KeyError, zipfile.BadZipFile) as error:
        raise ModelFilesBroken(
            f"the downloaded {wheel.name} is damaged or lacks {file.name}: clear pip's cache "
            "(`pip cache purge`) and try again"
        ) from error
    if not _is_intact(target, file):
        raise ModelFilesBroken(
            f"{file.name} from {wheel.name} is not the published file: check which package index pip uses"
        )
    return target
