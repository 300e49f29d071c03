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
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch

from .preprocess.backends import build_backend
from .preprocess.clip_source import AnimationSource, ReplacementSource, TrackedSource
from .preprocess.geometry import fit_size, pad_to_fit, scale_and_crop
from .preprocess.intermediates import write_intermediates
from .preprocess.preprocessor import Preprocessor
from .preprocess.preview import write_contact_sheet, write_preview
from .preprocess.silhouette import MaskShaping
from .preprocess.stance import Retargeted, Retargeting
from .preprocess.subjects import Subject
from .preprocess.track_cache import TrackCache
from .preprocess.tracks import Tracks
from .wan import __version__
from .wan.clips import plan_clips
from .wan.engine import SMOKE, Engine, EngineSetup, PresetLora, open_engine
from .wan.media.decode import SourceVideo, open_video
from .wan.media.encode import AudioTrack, VideoWriter
from .wan.media.probe import VideoInfo, probe_video
from .wan.media.still import load_image
from .wan.model.load import LoadProgress, require_gpu
from .wan.runtime.device import usable_gpu
from .wan.runtime.errors import DiskFull, OutOfMemory
from .wan.runtime.job import Job, Stage
from .wan.runtime.weights import FetchProgress
from .wan.sampling import Sampling
from .wan.speed.plan import Load

if TYPE_CHECKING:
    from .preprocess.full.flux import StanceEditor

logger = logging.getLogger(__name__)

KEPT_OUTPUT_S = (
    6 * 3600.0
)  # older result folders of this program are removed: workers live long, disks are finite

LOADING_LOG_S = 10.0
PROBE_GUESS_S = 0.5
WRITE_GUESS_S = 0.02  # a 720p frame through libx264 on two cores
PREVIEW_GUESS_S = 0.06  # a frame decoded, drawn, laid out and encoded

LABEL = {"comment": "AI-generated video, made with WAN 2.2 Animate", "wan_animate_version": __version__}
"""What every file we make says of itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is asked for, checked and free of the platform's types."""

    driving: Path
    reference: Path
    replaces: bool  # replacement; False: animation
    width: int
    height: int
    fps: float  # −1 keeps the source's
    start_s: float
    duration_s: float | None
    subject: Subject
    retarget: bool = False  # animation only
    use_flux: bool = False  # with `retarget` only
    shaping: MaskShaping
    sampling: Sampling
    loras: tuple[PresetLora, ...] = ()  # beside those of the setup
    offload: bool = True  # let go of each model when its stage is over
    keep_audio: bool = True
    quality: int = 18
    preview: bool = False
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

    video: Path | None  # None: only the preview was asked for
    preview: Path | None
    contact_sheet: Path | None
    driving: VideoInfo
    reference_size: tuple[int, int]  # (H, W) of the picture given

    @property
    def measured(self) -> VideoInfo:
        """The video that was made, read back from its file."""
        path = self.video or self.preview
        assert path is not None  # one of the two is always made
        return probe_video(path)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Shot:
    """The inputs, opened and measured."""

    video: SourceVideo
    reference: np.ndarray  # (H, W, 3) uint8 RGB at the output's size
    reference_size: tuple[int, int]  # (H, W) as given
    retargeting: Retargeting | None  # None where it was not asked for


@dataclass(slots=True, kw_only=True)
class Production:
    """One request under way. `facts` is None until the inputs are measured."""

    request: Request
    preprocessor: Preprocessor
    engine: Engine
    track_cache: TrackCache
    keep_intermediates: bool = False
    facts: Facts | None = field(default=None, init=False)

    def make_video(self, job: Job) -> Made:
        """The whole request. Whatever ends it early leaves nothing on disk."""
        with _own_folder() as folder, self._plain_errors():
            shot, facts = self._open(job)
            self._ready_engine(facts, job)
            source = self._directed(shot, folder, job, then=lambda: self._announce_clips(facts, job))
            target = folder / "output.mp4"
            with (
                self._writer(target, shot, facts) as writer,
                _Behind(writer) as behind,
                closing(self.engine.animator.frames(source, self.request.sampling, job)) as made,
            ):
                for frames in made:
                    with job.stage("write") as stage:
                        behind.write(frames)
                        stage.advance(len(frames))
                    del frames
                with job.stage("write"):
                    behind.finish()
            preview, sheet = None, None
            if self.request.preview:
                finished = open_video(target)
                preview, sheet = self._show(folder, source, job, finished=finished)
            return Made(
                video=target,
                preview=preview,
                contact_sheet=sheet,
                driving=shot.video.info,
                reference_size=shot.reference_size,
            )

    def make_preview(self, job: Job) -> Made:
        """Only the conditioning, to look at."""
        with _own_folder() as folder, self._plain_errors():
            shot, facts = self._open(job)
            source = self._directed(
                shot, folder, job, then=lambda: self._announce_looks(facts, job, previews=1)
            )
            preview, sheet = self._show(folder, source, job, finished=None)
            return Made(
                video=None,
                preview=preview,
                contact_sheet=sheet,
                driving=shot.video.info,
                reference_size=shot.reference_size,
            )

    def _open(self, job: Job) -> tuple[_Shot, Facts]:
        request = self.request
        job.expect("probe", 1, seconds_a_unit=PROBE_GUESS_S)
        with job.stage("probe") as stage:
            video = open_video(
                request.driving, fps=request.fps, start_s=request.start_s, duration_s=request.duration_s
            )
            for sentence in (*video.info.warnings, *video.plan.warnings):
                job.warn(sentence)
            picture = load_image(request.reference)
            shape = video.size if request.replaces else picture.shape[:2]
            width, height = fit_size((shape[1], shape[0]), width=request.width, height=request.height)
            if request.replaces:  # the model expects the character whole, on black, in the video's shape
                reference = pad_to_fit(picture, width=width, height=height, interpolation=cv2.INTER_LINEAR)
            else:
                reference = scale_and_crop(picture, width=width, height=height)
            retargeting = self._retargeting(reference, stage)
            sampling = request.sampling
            clips = plan_clips(video.num_frames, clip_len=sampling.clip_len, overlap=sampling.overlap)
            self.facts = Facts(
                num_frames=video.num_frames,
                num_clips=len(clips),
                fps=video.fps,
                width=width,
                height=height,
            )
            stage.advance()
        size = (picture.shape[0], picture.shape[1])
        shot = _Shot(video=video, reference=reference, reference_size=size, retargeting=retargeting)
        return shot, self.facts

    def _ready_engine(self, facts: Facts, job: Job) -> None:
        """Fetch and switch on LoRAs, make room: what fails here fails before the video is looked at."""
        request = self.request
        with job.stage("probe") as stage:

            def fetched(progress: FetchProgress) -> None:
                stage.advance(0, detail=f"fetching LoRAs, {progress}")

            self.engine.fetch_presets(request.loras, on_progress=fetched)
            self.engine.make_ready(_load(facts, request.sampling), presets=request.loras)

    def _directed(self, shot: _Shot, folder: Path, job: Job, *, then: Callable[[], None]) -> TrackedSource:
        """All that is known of the driving video, as what guides the model; `then` is that of `_tracks`."""
        tracks = self._tracks(shot, job, then=then)
        retargeted = self._retargeted(shot, tracks, job)
        source = self._source(shot, tracks, retargeted)
        self._keep(folder, source, retargeted, job)
        return source

    def _tracks(self, shot: _Shot, job: Job, *, then: Callable[[], None]) -> Tracks:
        """Pass 1, or what it left behind for the same video; `then` announces the stages that follow."""
        request = self.request
        words = (request.subject, "masks" if request.replaces else "", *self.preprocessor.words)
        key = self.track_cache.key(shot.video.info.path, frames=shot.video.indices, words=words)
        tracks = self.track_cache.load(key)
        if tracks is None:
            self.preprocessor.announce(job, shot.video, masks=request.replaces)
        if shot.retargeting is not None:
            shot.retargeting.announce(job, shot.video.num_frames)
        then()
        if tracks is None:
            tracks = self.preprocessor.tracks(
                shot.video, subject=request.subject, masks=request.replaces, job=job
            )
            self.track_cache.save(key, tracks)
            if request.offload:
                self.preprocessor.release()
        for sentence in tracks.warnings:
            job.warn(sentence)
        return tracks

    def _retargeting(self, reference: np.ndarray, stage: Stage) -> Retargeting | None:
        """What retargeting needs, if asked for: what could fail in it fails before the video is looked at."""
        request = self.request
        if not request.retarget:
            return None

        def editor() -> "StanceEditor":
            from .preprocess.full.flux import open_editor  # noqa: PLC0415 - loads only where it is used

            return open_editor(on_progress=lambda done: stage.advance(0, detail=f"fetching FLUX, {done}"))

        return Retargeting.of(
            reference,
            preprocessor=self.preprocessor,
            path=request.reference,
            editor=editor if request.use_flux else None,
        )

    def _retargeted(self, shot: _Shot, tracks: Tracks, job: Job) -> Retargeted | None:
        """The tracked poses on the reference's body, if asked for."""
        if shot.retargeting is None:
            return None
        retargeted = shot.retargeting.apply(shot.video, tracks, job)
        if self.request.offload:
            self.preprocessor.release()
        return retargeted

    def _source(self, shot: _Shot, tracks: Tracks, retargeted: Retargeted | None) -> TrackedSource:
        if not self.request.replaces:
            poses = retargeted.poses if retargeted else None
            return AnimationSource(shot.video, tracks, shot.reference, retargeted=poses)
        assert tracks.masks is not None  # asked for in `_tracks`
        return ReplacementSource(
            shot.video, tracks, shot.reference, masks=tracks.masks, shaping=self.request.shaping
        )

    def _announce_clips(self, facts: Facts, job: Job) -> None:
        self.engine.animator.announce(
            job,
            self.request.sampling,
            num_frames=facts.num_frames,
            height=facts.height,
            width=facts.width,
        )
        job.expect("write", facts.num_frames, seconds_a_unit=WRITE_GUESS_S)
        self._announce_looks(facts, job, previews=int(self.request.preview))

    def _announce_looks(self, facts: Facts, job: Job, *, previews: int) -> None:
        passes = previews + int(self.keep_intermediates)
        if passes:
            job.expect("preview", passes * facts.num_frames, seconds_a_unit=PREVIEW_GUESS_S)

    def _show(
        self, folder: Path, source: TrackedSource, job: Job, *, finished: SourceVideo | None
    ) -> tuple[Path, Path]:
        """The side-by-side video and, of the same name, the contact sheet."""
        video, sheet = folder / "preview.mp4", folder / "preview.png"
        with job.stage("preview") as stage:
            write_preview(
                video, source, stage=stage, finished=finished, audio=self._audio(source.video), metadata=LABEL
            )
            write_contact_sheet(sheet, source, finished=finished)
        return video, sheet

    def _keep(self, folder: Path, source: TrackedSource, retargeted: Retargeted | None, job: Job) -> None:
        """Write the intermediate files beside the result, where setup asks for them."""
        if self.keep_intermediates:
            with job.stage("preview") as stage:
                stills = retargeted.stills if retargeted else {}
                write_intermediates(folder / "intermediates", source, stage=stage, stills=stills)

    @contextmanager
    def _plain_errors(self) -> Iterator[None]:
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
        except torch.OutOfMemoryError as error:
            load = _load(self.facts, self.request.sampling) if self.facts else None
            raise OutOfMemory(self.engine.out_of_memory(load)) from error
        except MemoryError as error:
            raise OutOfMemory(
                "the host memory does not suffice: ask for a smaller resolution or a shorter clip_len"
            ) from error

    def _audio(self, video: SourceVideo) -> AudioTrack | None:
        return AudioTrack.of(video.info, start_s=video.plan.start_s) if self.request.keep_audio else None

    def _writer(self, target: Path, shot: _Shot, facts: Facts) -> VideoWriter:
        request = self.request
        return VideoWriter(
            target,
            width=facts.width,
            height=facts.height,
            fps=facts.fps,
            quality=request.quality,
            metadata=LABEL
            | {
                "wan_animate_seed": str(request.sampling.seed),
                "wan_animate_settings": json.dumps(request.settings, ensure_ascii=False),
            },
            audio=self._audio(shot.video),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Studio:
    """Loaded models, ready for one request after another. Holds nothing of any request."""

    preprocessor: Preprocessor
    engine: Engine
    track_cache: TrackCache
    keep_intermediates: bool = False

    def production(self, request: Request) -> Production:
        """A request, ready to be made."""
        return Production(
            request=request,
            preprocessor=self.preprocessor,
            engine=self.engine,
            track_cache=self.track_cache,
            keep_intermediates=self.keep_intermediates,
        )


def build_studio(
    setup: EngineSetup, *, preprocessing: str, cache_dir: Path, keep_intermediates: bool = False
) -> Studio:
    """Load the models. Raises SetupFailed, NotAvailableYet or OutOfMemory where that is impossible.

    `cache_dir` is the user's cache folder; ours is below it.
    """
    is_smoke = setup.model == SMOKE
    if preprocessing == "auto":
        preprocessing = "embedded" if is_smoke else "full"
    gpu = usable_gpu() if is_smoke else require_gpu()
    ours = cache_dir / "wan-animate"
    # The small files first: what they lack is told before tens of gigabytes are moved.
    backend = build_backend(preprocessing, cache_dir=cache_dir, device=str(gpu) if gpu else None)
    return Studio(
        preprocessor=Preprocessor(backend),
        engine=open_engine(setup, cache_dir=ours / "compiled", on_progress=_loading()),
        track_cache=TrackCache(ours / "tracks"),
        keep_intermediates=keep_intermediates,
    )


def _loading() -> Callable[[LoadProgress], None]:
    """Log lines on how far fetching and loading are, a few a minute."""
    told_at = time.monotonic()

    def tell(progress: LoadProgress) -> None:
        nonlocal told_at
        if time.monotonic() - told_at >= LOADING_LOG_S:
            told_at = time.monotonic()
            logger.info("%s", progress)

    return tell


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
    """Results are handed over right after a request; a worker that lives for weeks must not keep them."""
    for old in root.iterdir():
        if time.time() - old.stat().st_mtime > KEPT_OUTPUT_S:
            shutil.rmtree(old, ignore_errors=True)


class _Behind:
    """Writes frames in a thread while the next are made; holds no more than was handed over last."""

    def __init__(self, writer: VideoWriter) -> None:
        self._writer = writer
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._pending: Future[None] | None = None

    def __enter__(self) -> "_Behind":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def write(self, frames: np.ndarray) -> None:
        """Append frames, (n, H, W, 3) uint8 RGB, after those before. Raises what writing those raised."""
        self.finish()
        self._pending = self._pool.submit(self._writer.write, frames)

    def finish(self) -> None:
        """Wait until everything is written."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()


def _load(facts: Facts, sampling: Sampling) -> Load:
    """A clip of the request, as the memory plan knows it."""
    return Load(width=facts.width, height=facts.height, frames=sampling.clip_len, passes=sampling.passes)
