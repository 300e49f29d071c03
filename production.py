"""One request from files to MP4: the only module that knows preprocessing, model and media at once.

probe → people → pose → smooth → encode_text → encode_image → per clip: condition, denoise, decode → write
"""

import errno
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .preprocess.backends import build_backend
from .preprocess.clip_source import AnimationSource
from .preprocess.geometry import fit_size, scale_and_crop
from .preprocess.preprocessor import Preprocessor
from .wan import __version__
from .wan.animator import Animator
from .wan.clips import plan_clips
from .wan.media.decode import SourceVideo, plan_frames
from .wan.media.encode import AudioTrack, VideoWriter
from .wan.media.probe import VideoInfo, probe_video
from .wan.media.still import load_image
from .wan.model.load import load_models
from .wan.runtime.errors import DiskFull, OutOfMemory
from .wan.runtime.job import Job
from .wan.sampling import Sampling

logger = logging.getLogger(__name__)

KEPT_OUTPUT_S = (
    6 * 3600.0
)  # older result folders of this program are removed: workers live long, disks are finite

PROBE_GUESS_S = 0.5
WRITE_GUESS_S = 0.02  # a 720p frame through libx264 on two cores


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is asked for, checked and free of the platform's types."""

    driving: Path
    reference: Path
    width: int
    height: int
    fps: float  # −1 keeps the source's
    start_s: float
    duration_s: float | None
    subject: str
    sampling: Sampling
    keep_audio: bool
    quality: int
    settings: Mapping[str, Any]  # as asked, for the MP4's metadata


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a request turned out to be, known after `probe`."""

    num_frames: int
    num_clips: int
    fps: Fraction
    width: int
    height: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A finished request: files, and what was measured from them."""

    video: Path
    driving: VideoInfo
    reference_size: tuple[int, int]  # (H, W) of the picture given
    output: VideoInfo


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Shot:
    """The inputs, opened and measured."""

    info: VideoInfo
    video: SourceVideo
    reference: np.ndarray  # (H, W, 3) uint8 RGB at the output's size
    reference_size: tuple[int, int]  # (H, W) as given
    facts: Facts


@dataclass(slots=True, kw_only=True)
class Production:
    """One request under way. `facts` is None until the inputs are measured."""

    request: Request
    preprocessor: Preprocessor
    animator: Animator
    facts: Facts | None = field(default=None, init=False)

    def make_video(self, job: Job) -> Made:
        """The whole request. Whatever ends it early leaves nothing on disk."""
        with _own_folder() as folder, _plain_errors():
            shot = self._open(job)
            self._announce(shot, job)
            tracks = self.preprocessor.tracks(shot.video, subject=self.request.subject, job=job)
            source = AnimationSource(video=shot.video, tracks=tracks, reference=shot.reference)
            target = folder / "output.mp4"
            with self._writer(target, shot) as writer:
                for frames in self.animator.frames(source, self.request.sampling, job):
                    with job.stage("write") as stage:
                        writer.write(frames)
                        stage.advance(len(frames))
                with job.stage("write"):
                    writer.close()
            return Made(
                video=target,
                driving=shot.info,
                reference_size=shot.reference_size,
                output=probe_video(target),
            )

    def _open(self, job: Job) -> _Shot:
        request = self.request
        job.expect("probe", 1, seconds_a_unit=PROBE_GUESS_S)
        with job.stage("probe") as stage:
            info = probe_video(request.driving)
            plan = plan_frames(info, fps=request.fps, start_s=request.start_s, duration_s=request.duration_s)
            picture = load_image(request.reference)
            width, height = fit_size(
                (picture.shape[1], picture.shape[0]), width=request.width, height=request.height
            )
            reference = scale_and_crop(picture, width=width, height=height)
            clips = plan_clips(
                len(plan.indices), clip_len=request.sampling.clip_len, overlap=request.sampling.overlap
            )
            self.facts = Facts(
                num_frames=len(plan.indices),
                num_clips=len(clips),
                fps=plan.fps,
                width=width,
                height=height,
            )
            stage.advance()
        return _Shot(
            info=info,
            video=SourceVideo(info, plan),
            reference=reference,
            reference_size=picture.shape[:2],
            facts=self.facts,
        )

    def _announce(self, shot: _Shot, job: Job) -> None:
        self.preprocessor.announce(job, shot.video)
        self.animator.announce(job, shot.facts.num_clips, self.request.sampling, shot.reference.shape[:2])
        job.expect("write", shot.facts.num_frames, seconds_a_unit=WRITE_GUESS_S)

    def _writer(self, target: Path, shot: _Shot) -> VideoWriter:
        request = self.request
        audio = None
        if request.keep_audio and shot.info.has_audio:
            audio = AudioTrack(path=shot.info.path, start_s=shot.video.start_s)
        return VideoWriter(
            target,
            width=shot.facts.width,
            height=shot.facts.height,
            fps=shot.facts.fps,
            quality=request.quality,
            metadata={
                "comment": "AI-generated video (WAN 2.2 Animate)",
                "wan_animate_version": __version__,
                "wan_animate_seed": str(request.sampling.seed),
                "wan_animate_settings": json.dumps(request.settings, ensure_ascii=False),
            },
            audio=audio,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Studio:
    """Loaded models, ready for one request after another. Holds nothing of any request."""

    preprocessor: Preprocessor
    animator: Animator

    def production(self, request: Request) -> Production:
        return Production(request=request, preprocessor=self.preprocessor, animator=self.animator)


def build_studio(
    *, model: str, preprocessing: str, options: Mapping[str, Any], cache_dir: Path, job: Job
) -> Studio:
    """Load the models. Raises SetupFailed (or NotAvailableYet) with one sentence where that is impossible."""
    models = load_models(model, options=options)
    if preprocessing == "auto":
        preprocessing = "embedded" if model == "smoke" else "full"
    backend = build_backend(preprocessing, cache_dir=cache_dir)
    return Studio(preprocessor=Preprocessor(backend), animator=Animator(models))


@contextmanager
def _own_folder() -> Iterator[Path]:
    """A new folder for one request's results, removed again if the request does not finish."""
    root = Path(tempfile.gettempdir()) / f"wan-animate-{os.getuid()}"
    root.mkdir(mode=0o700, exist_ok=True)
    _prune(root)
    folder = Path(tempfile.mkdtemp(dir=root))
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _prune(root: Path) -> None:
    """Results are handed over right after a request; a warm worker that lives for weeks must not keep them."""
    for old in root.iterdir():
        if time.time() - old.stat().st_mtime > KEPT_OUTPUT_S:
            shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Turn what the machine raises when it runs out into sentences."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        where = tempfile.gettempdir()
        raise DiskFull(
            f"the disk that holds {where} is full: free some room or set TMPDIR elsewhere"
        ) from error
    except (MemoryError, torch.OutOfMemoryError) as error:
        where = "GPU" if isinstance(error, torch.OutOfMemoryError) else "host"
        raise OutOfMemory(
            f"the {where} memory does not suffice for this size: ask for a smaller resolution or a shorter clip_len"
        ) from error
