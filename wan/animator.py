"""From conditions to finished frames, clip by clip: condition, denoise, decode, stitch.

Knows of its conditions only that a ClipSource has them, and nothing of what becomes of the frames. Holds one
clip at a time, and the conditions of the next, which are drawn in a thread meanwhile. Every stage is opened
and closed within one resumption of the generator, so the caller may open stages of its own between two clips.
"""

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch

from .clips import Clip, plan_clips
from .conditioning import (
    ClipInputs,
    MotionReader,
    Tail,
    encode_given,
    encode_pose,
    encode_reference,
    to_frames,
)
from .conditions import ClipSource, Conditions
from .denoise import Passes, denoise
from .model.models import Models
from .model.vae import VideoVae, latent_frames
from .runtime.job import Job, Stage
from .sampling import Noise, Sampling, seeded_noise
from .schedule import Schedule, plan_schedule
from .speed.plan import Load

PART = 5  # latent frames decoded at a time, 17 or 20 frames of video: half a second of a 720p clip
POLL_S = 0.05  # how often a cancellation is looked for while conditions are waited for


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Request:
    """What is computed once a request."""

    sampling: Sampling
    schedule: Schedule
    context: torch.Tensor  # (1, 769, D): prompt and picture, projected
    negative_context: torch.Tensor | None  # the same with the negative prompt; None without guidance
    reference: torch.Tensor  # (1, 20, 1, h, w): the picture as the first given frame
    motion: MotionReader
    noise: Noise


class Animator:
    """The engine. Serves one request at a time; keeps nothing of it but the models' own caches."""

    def __init__(self, models: Models) -> None:
        self.models = models

    @torch.inference_mode()
    def frames(
        self, source: ClipSource, sampling: Sampling, job: Job, *, noise: Noise | None = None
    ) -> Generator[np.ndarray, None, None]:
        """Make the video. Yields new frames in order, (n, H, W, 3) uint8 RGB: `source.num_frames` in all.

        A clip's frames come in parts of `PART` latent frames, to be written while the next are decoded.

        `noise` replays recorded noise; otherwise it is drawn from the seed. Raises Cancelled within one
        denoising step, one VAE chunk or one batch of faces; the models stay usable.
        """
        clips = plan_clips(source.num_frames, clip_len=sampling.clip_len, overlap=sampling.overlap)
        request = self._open_request(source, sampling, job, noise=noise or seeded_noise(sampling.seed))
        tail: Tail | None = None
        with _Ahead(source, [clip.frames for clip in clips]) as ahead:
            for clip in clips:
                name = f"clip {clip.index + 1}/{len(clips)}"
                with job.stage("clip.condition", total=len(clips)) as stage:
                    inputs = self._condition(ahead.take(job), source, clip, tail, request, job)
                    ahead.start()
                    stage.advance(detail=name)
                with job.stage("clip.denoise", total=len(clips) * sampling.steps) as stage:
                    latents = self._denoise(inputs, clip, request, stage, name)
                del inputs  # decoding needs the memory
                decoding = _Decoding(
                    self.models.vae, latents, clip, overlap=sampling.overlap, check=job.check
                )
                while not decoding.done:
                    with job.stage("clip.decode", total=len(clips)) as stage:
                        frames = decoding.part()
                        if decoding.done:
                            stage.advance(detail=name)
                    yield frames
                    del frames  # the caller's now: not to be held while the next are made
                tail = decoding.tail

    def announce(self, job: Job, sampling: Sampling, *, num_frames: int, height: int, width: int) -> None:
        """Tell the job what `frames` is going to do, with rough seconds. Height and width in pixels."""
        pace, passes = self.models.pace, sampling.passes
        clips = len(plan_clips(num_frames, clip_len=sampling.clip_len, overlap=sampling.overlap))
        megapixels = sampling.clip_len * height * width / 1e6
        tokens = Load(width=width, height=height, frames=sampling.clip_len).tokens
        job.expect("encode_text", passes, seconds_a_unit=pace.encode_s)
        job.expect("encode_image", 1, seconds_a_unit=pace.encode_s)
        job.expect("clip.condition", clips, seconds_a_unit=pace.condition_s * megapixels)
        job.expect("clip.denoise", clips * sampling.steps, seconds_a_unit=passes * pace.step_s(tokens))
        job.expect("clip.decode", clips, seconds_a_unit=pace.decode_s * megapixels)

    def _open_request(self, source: ClipSource, sampling: Sampling, job: Job, *, noise: Noise) -> Request:
        models, device = self.models, self.models.device
        prompts = {"input_prompt": sampling.prompt}
        if sampling.guided:
            prompts["n_prompt"] = sampling.negative_prompt
        texts = []
        with job.stage("encode_text", total=len(prompts)) as stage:
            for name, prompt in prompts.items():
                if not models.text_encoder.fits(prompt):
                    job.warn(f"{name} is longer than the 512 tokens the model reads; its end has no effect")
                texts.append(models.text_encoder(prompt).to(device))
                stage.advance()
        with job.stage("encode_image", total=1) as stage:
            image = models.image_encoder(source.reference).to(device)
            contexts = [models.transformer.embed_context(text, image) for text in texts]
            reference = encode_reference(models.vae, source.reference).to(device)
            stage.advance()
        return Request(
            sampling=sampling,
            schedule=plan_schedule(sampling.solver, steps=sampling.steps, shift=sampling.shift),
            context=contexts[0],
            negative_context=contexts[1] if sampling.guided else None,
            reference=reference,
            motion=MotionReader(models.transformer),
            noise=noise,
        )

    def _condition(
        self,
        conditions: Conditions,
        source: ClipSource,
        clip: Clip,
        tail: Tail | None,
        request: Request,
        job: Job,
    ) -> ClipInputs:
        _check_conditions(conditions, clip, source)
        vae, device = self.models.vae, self.models.device
        given = encode_given(vae, conditions.scene, tail, shape=conditions.pose.shape[:3], check=job.check)
        return ClipInputs(
            given=torch.cat([request.reference, given.to(device)], dim=2),
            pose=encode_pose(vae, conditions.pose, check=job.check).to(device),
            motion=request.motion.read(conditions.face, clip.frames, check=job.check),
        )

    def _prepare(self, inputs: ClipInputs, request: Request) -> Passes:
        transformer, guidance = self.models.transformer, request.sampling.guidance
        conditional = transformer.prepare(
            given=inputs.given, pose=inputs.pose, motion=inputs.motion, context=request.context
        )
        if request.negative_context is None:
            return Passes(conditional=conditional, unconditional=None)
        unconditional = conditional.replace(
            context=request.negative_context,
            faces=transformer.prepare_faces(request.motion.blank().expand_as(inputs.motion)),
        )
        return Passes(conditional=conditional, unconditional=unconditional, guidance=guidance)

    def _denoise(
        self, inputs: ClipInputs, clip: Clip, request: Request, stage: Stage, name: str
    ) -> torch.Tensor:
        """The clip's clean latents (1, 16, L, h, w)."""
        passes = self._prepare(inputs, request)
        _, _, frames, height, width = inputs.given.shape
        latents = request.noise(clip.index, (1, 16, frames, height, width)).to(self.models.device)
        for step in denoise(self.models.transformer, passes, latents, request.schedule):
            latents = step.latents
            stage.advance(detail=f"{name} step {step.index}/{step.total}")
        return latents[:, :, 1:]  # frame 0 is the reference picture's


class _Decoding:
    """One clip's latents → its new frames, part by part, and the tail that guides the next clip.

    A clip filled up at its end is decoded only as far as its frames are real: the VAE looks back in time.
    """

    def __init__(
        self, vae: VideoVae, latents: torch.Tensor, clip: Clip, *, overlap: int, check: Callable[[], None]
    ) -> None:
        self._chunks = vae.decode(latents[:, :, : latent_frames(clip.fresh.stop)])
        self._clip, self._overlap, self._check = clip, overlap, check
        self._decoded = 0  # frames so far, those of the overlap included
        self.tail: Tail | None = None

    @property
    def done(self) -> bool:
        """Whether every real frame was handed out."""
        return self._decoded >= self._clip.fresh.stop

    def part(self) -> np.ndarray:
        """The next new frames, (n, H, W, 3) uint8 RGB, n ≥ 1."""
        frames, start = [], self._decoded
        for pixels in islice(self._chunks, PART):
            self._check()
            frames.append(to_frames(pixels))
            known = pixels if self.tail is None else torch.cat([self.tail, pixels], dim=2)
            self.tail = known[:, :, -self._overlap :]
        made = np.concatenate(frames)
        self._decoded += len(made)
        fresh = self._clip.fresh
        return made[max(fresh.start - start, 0) : max(fresh.stop - start, 0)]


class _Ahead:
    """Conditions of clip after clip, the next ones drawn in a thread while this one is made."""

    def __init__(self, source: ClipSource, clips: Sequence[Sequence[int]]) -> None:
        """`clips` names the video frames of each."""
        self._source = source
        self._clips = iter(clips)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="conditions")
        self._next: Future[Conditions] | None = None

    def __enter__(self) -> "_Ahead":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def start(self) -> None:
        """Begin with the next clip's, if there is one."""
        frames = next(self._clips, None)
        self._next = None if frames is None else self._pool.submit(self._source.conditions, frames)

    def take(self, job: Job) -> Conditions:
        """What was begun last; nothing is held of it here. Raises what drawing it raised, and Cancelled."""
        future, self._next = self._next, None
        assert future is not None  # one `start` for every `take`
        while True:
            try:
                return future.result(timeout=POLL_S)
            except NotYet:
                job.check()


def _check_conditions(conditions: Conditions, clip: Clip, source: ClipSource) -> None:
    """Refuse conditions that are not of this clip: a mistake of whoever made the source."""
    expected = (len(clip.frames), *source.reference.shape)
    if conditions.pose.shape != expected:
        raise ValueError(f"clip {clip.index} needs pose of shape {expected}, got {conditions.pose.shape}")
    if (conditions.scene is not None) != source.replaces:
        raise ValueError(f"the source {'replaces' if source.replaces else 'animates'}, its conditions do not")
