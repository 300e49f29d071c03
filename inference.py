"""The app as inference.sh sees it: fields with bounds and help. Translation only, no tensor in it.

Importing this module needs no GPU, no weights and next to no time: everything heavy is imported by `setup`.
"""

import os
import secrets
import urllib.parse
from collections.abc import AsyncGenerator, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from inferencesh import (
    BaseApp,
    BaseAppInput,
    BaseAppOutput,
    BaseAppSetup,
    File,
    ImageMeta,
    OutputMeta,
    VideoMeta,
)
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr, WrapValidator, model_validator
from pydantic_core import PydanticCustomError

from .wan.runtime.errors import InvalidInput, NotAvailableYet, SetupFailed
from .wan.runtime.job import Job, Progress
from .wan.runtime.worker import Running, Worker

if TYPE_CHECKING:
    from .production import Facts, Made, Request, Studio
    from .wan.engine import PresetLora
    from .wan.media.probe import VideoInfo

FILE_FIELDS = ("driving_video", "reference_image")
DONE: dict[str, Any] = {"stage": "done", "progress": 1.0, "eta_s": 0.0}
PRESET_FIELDS = ("sampling_steps", "sample_solver", "shift")  # what turbo sets
RESOLUTION_LABELS = ((480, "480p"), (720, "720p"), (1080, "1080p"), (1440, "1440p"), (float("inf"), "4k"))
"""The platform's presets by the shorter side in pixels: the smallest that holds the picture."""


def _shown(address: str) -> str:
    """An address fit for a message: no query, which may hold a signature, and no data."""
    if address.startswith("data:"):
        return "the data URI"
    parts = urllib.parse.urlsplit(address)
    return parts._replace(query="", fragment="").geturl() if parts.scheme else address


def _fetched(value: object, handler: Callable[[object], File | None]) -> File:
    """A file from a URL, a path, a data URI or {"path" | "uri": any of them}, or one sentence."""
    address = value
    if isinstance(value, dict):
        # The SDK takes {"path": "https://…"} for a local path; as an address it does what the caller means.
        address = value.get("uri") or value.get("path")
        value = {**{k: v for k, v in value.items() if k not in ("uri", "path")}, "uri": address}
    if address in (None, ""):
        raise PydanticCustomError("file_missing", "is missing: give a file, a URL or a data URI")
    shown = _shown(str(getattr(address, "uri", address)))
    try:
        file = handler(value)
    except Exception as error:  # the SDK raises whatever its download met; each becomes one sentence
        raise PydanticCustomError(
            "file_unreachable",
            "could not be fetched from {address}: {reason}; check the address and that it is public",
            {"address": shown, "reason": _reason(error)},
        ) from error
    if file is None or not file.exists():
        raise PydanticCustomError("file_missing", "is not there: {address}", {"address": shown})
    return file


def _reason(error: BaseException) -> str:
    text = str(error.__cause__ or error).split("attempts: ")[-1]
    return text.splitlines()[0][:200] if text else type(error).__name__


def _clip_len(value: int) -> int:
    if value % 4 != 1:
        lower = max(5, value - (value - 1) % 4)
        raise ValueError(f"clip_len must be 4n+1; use {lower} or {min(121, lower + 4)} instead of {value}")
    return value


def _odd(value: int) -> int:
    if value % 2 == 0:
        raise ValueError(f"mask_kernel_size must be odd; use {value - 1} or {value + 1} instead of {value}")
    return value


def _fps(value: float) -> float:
    if value != -1 and value < 1:
        raise ValueError(f"fps must be -1 (keep the source's) or between 1 and 60, not {value:g}")
    return value


# The fields that `run` and `preview` share are declared once, as types.
DrivingVideo = Annotated[
    File,
    WrapValidator(_fetched),
    Field(
        description="Driving video: whose motion is used. Raw footage of a person, with or without sound.",
        json_schema_extra={"contentMediaType": "video/*"},
    ),
]
ReferenceImage = Annotated[
    File,
    WrapValidator(_fetched),
    Field(
        description="Reference image: the character that appears in the result.",
        json_schema_extra={"contentMediaType": "image/*"},
    ),
]
Mode = Annotated[
    Literal["animation", "replacement"],
    Field(
        description="animation: the reference character performs the motion in its own picture; "
        "replacement: it takes the place of the person in the driving video."
    ),
]
Side = Annotated[
    int,
    Field(
        ge=256,
        le=1920,
        description="Asked size in pixels: width × height is the target area; the aspect ratio comes from "
        "the reference image (animation) or from the driving video (replacement).",
    ),
]
Fps = Annotated[
    float,
    Field(
        ge=-1,
        le=60,
        allow_inf_nan=False,
        description="Frames per second of processing and of the result, 1 to 60; -1 keeps the source's rate.",
    ),
    AfterValidator(_fps),
]
RetargetFlag = Annotated[
    bool,
    Field(
        description="Adapt the driving skeleton to the reference's body proportions and place (animation "
        "only): for a child, a cartoon or a figure of another build."
    ),
]
UseFlux = Annotated[
    bool,
    Field(
        description="With retarget_flag: first edit the reference and one driving frame to a neutral stance "
        "with FLUX.1-Kontext and measure proportions there (needs GPU and HF_TOKEN; not for commercial use)."
    ),
]
MaskIterations = Annotated[
    int,
    Field(
        ge=0,
        le=10,
        description="Replacement: passes of mask dilation, 0 to 10; 0 keeps the tracked silhouette.",
    ),
]
MaskKernelSize = Annotated[
    int,
    Field(ge=1, le=31, description="Replacement: dilation kernel in pixels, odd, 1 to 31."),
    AfterValidator(_odd),
]
MaskSubdivisions = Annotated[
    int,
    Field(
        ge=1,
        le=32,
        description="Replacement: cells, in this direction, of the grid that coarsens the mask, 1 to 32; "
        "1 × 1 is the bounding box, more cells keep more of the background.",
    ),
]
Subject = Annotated[
    Literal["largest", "leftmost", "rightmost", "center"],
    Field(description="Which person to follow when the driving video shows several."),
]
StartS = Annotated[
    float,
    Field(ge=0, allow_inf_nan=False, description="Start of the used part of the driving video, in seconds."),
]
DurationS = Annotated[
    float | None,
    Field(
        gt=0,
        allow_inf_nan=False,
        description="Length of the used part of the driving video, in seconds; null = to its end.",
    ),
]


def _check_conditioning(options: "_Options | _PreviewOptions") -> None:
    """The cross rules of SPEC §1 that concern preprocessing."""
    if options.use_flux and not options.retarget_flag:
        raise ValueError("use_flux needs retarget_flag: set retarget_flag to true or use_flux to false")
    if options.mode == "replacement" and (options.retarget_flag or options.use_flux):
        raise ValueError(
            "retarget_flag and use_flux are for animation only: set them to false in replacement"
        )


class LoraChoice(BaseModel):
    """A LoRA of the user's own."""

    model_config = ConfigDict(extra="forbid")

    source: str = Field(
        min_length=1,
        description="A file here, an https address of one, or owner/repository/file.safetensors on the hub.",
    )
    strength: float = Field(
        default=1.0, ge=-4, le=4, allow_inf_nan=False, description="How strongly it acts, -4 to 4."
    )


class AppSetup(BaseAppSetup):
    """What is loaded once and kept between requests; a change reloads."""

    model: Literal["wan2.2-animate-14b", "smoke"] = Field(
        default="wan2.2-animate-14b",
        description="wan2.2-animate-14b needs a CUDA GPU; smoke is the same network at a tiny size with "
        "random weights: it shows that everything works, on any machine, but paints nothing meaningful.",
    )
    preprocessing: Literal["auto", "full", "embedded"] = Field(
        default="auto",
        description="full: YOLOv10m, ViTPose-H, SAM2; embedded: small models for a CPU; "
        "auto: full with the 14B model, embedded with smoke.",
    )
    precision: Literal["auto", "bf16", "fp8"] = Field(
        default="auto", description="Number format of the transformer's weights; auto = bf16."
    )
    gpus: int = Field(default=0, ge=0, le=8, description="GPUs that work on one video; 0 = all visible.")
    compile: bool = Field(
        default=True,
        description="Compile the transformer's blocks on the GPU: a setup some seconds slower, steps a sixth "
        "faster.",
    )
    attention: str = Field(default="auto", description="Attention backend by name; auto chooses the fastest.")
    loras: list[LoraChoice] = Field(
        default_factory=list,
        description="LoRAs for every request: a list of {source, strength}; source is a file, an https "
        "address or owner/repository/file.safetensors on the hub.",
    )
    step_cache: Literal["off", "on"] = Field(
        default="off", description="Skip steps that change little: faster, not exact."
    )
    resume: bool = Field(
        default=True, description="Keep finished clips so that a repeated request goes on from them."
    )
    keep_intermediates: bool = Field(
        default=False,
        description="Also write src_pose.mp4, src_face.mp4, src_ref.png, src_bg.mp4 and src_mask.mp4, in a "
        "folder named intermediates beside the result.",
    )


class _Options(BaseAppInput):
    """Everything of a request but its files: checked before any file is fetched."""

    mode: Mode = "animation"
    resolution_width: Side = 1280
    resolution_height: Side = 720
    fps: Fps = 30
    retarget_flag: RetargetFlag = False
    use_flux: UseFlux = False
    mask_iterations: MaskIterations = 3
    mask_kernel_size: MaskKernelSize = 7
    mask_w_subdivisions: MaskSubdivisions = 1
    mask_h_subdivisions: MaskSubdivisions = 1
    clip_len: Annotated[
        int,
        Field(
            ge=5,
            le=121,
            description="Frames a clip, 5 to 121, of the form 4n+1; longer clips need more memory.",
        ),
        AfterValidator(_clip_len),
    ] = 77
    refert_num: Literal[1, 5] = Field(
        default=1,
        description="Frames of the previous clip that guide the next, 1 or 5; 5 joins clips more smoothly "
        "and needs clip_len of 13 or more.",
    )
    shift: float = Field(
        default=5.0,
        ge=1,
        le=10,
        description="Noise schedule shift, 1 to 10; higher spends more steps on structure.",
    )
    sample_solver: Literal["dpm++", "unipc"] = Field(
        default="dpm++", description="Solver of the diffusion steps."
    )
    sampling_steps: int = Field(
        default=20, ge=1, le=100, description="Diffusion steps a clip, 1 to 100; time grows in proportion."
    )
    guide_scale: float = Field(
        default=1.0,
        ge=1,
        le=10,
        description="Classifier-free guidance on face and text, 1 to 10; above 1 every step costs twice.",
    )
    input_prompt: str = Field(
        default="", description="What happens in the video; empty = the model's own default prompt."
    )
    n_prompt: str = Field(
        default="",
        description="What to avoid; used with guide_scale above 1; empty = the model's own default.",
    )
    seed: int = Field(
        default=-1, ge=-1, le=2**32 - 1, description="Random seed; -1 draws one. The seed used is returned."
    )
    offload_model: bool = Field(
        default=True, description="Free each model's GPU memory when its stage is over."
    )
    turbo: bool = Field(
        default=False,
        description="4-step distilled LoRA: about five times faster. Sampling fields at their defaults "
        "follow its preset, other values are kept.",
    )
    relight: bool | None = Field(
        default=None, description="Official relighting LoRA (replacement only); null = on in replacement."
    )
    subject: Subject = "largest"
    start_s: StartS = 0
    duration_s: DurationS = None
    keep_audio: bool = Field(
        default=True, description="Keep the driving video's sound, cut to the result's length."
    )
    quality: int = Field(
        default=18,
        ge=0,
        le=51,
        description="H.264 constant rate factor, 1 (best, largest) to 51 (worst, smallest); 0 is lossless, "
        "which many players cannot show.",
    )
    preview: bool = Field(default=False, description="Also return the conditioning side by side as a video.")

    @model_validator(mode="after")
    def _cross_rules(self) -> Self:
        _check_conditioning(self)
        if self.relight and self.mode == "animation":
            raise ValueError("relight is for replacement only: set it to null or false in animation")
        if self.refert_num == 5 and self.clip_len < 13:
            raise ValueError(
                f"refert_num 5 needs clip_len of at least 13, not {self.clip_len}: raise it or use 1"
            )
        return self


class _PreviewOptions(BaseAppInput):
    """The options that shape the conditioning, as in `AppInput`."""

    mode: Mode = "animation"
    resolution_width: Side = 1280
    resolution_height: Side = 720
    fps: Fps = 30
    retarget_flag: RetargetFlag = False
    use_flux: UseFlux = False
    mask_iterations: MaskIterations = 3
    mask_kernel_size: MaskKernelSize = 7
    mask_w_subdivisions: MaskSubdivisions = 1
    mask_h_subdivisions: MaskSubdivisions = 1
    subject: Subject = "largest"
    start_s: StartS = 0
    duration_s: DurationS = None

    @model_validator(mode="after")
    def _cross_rules(self) -> Self:
        _check_conditioning(self)
        return self


def _validate_cheap_first(cls: type[BaseAppInput], data: object, handler: Callable[[object], Any]) -> Any:  # noqa: ANN401 - pydantic's own signature
    """Check every field but the files, then fetch the files; remember names nobody knows."""
    if not isinstance(data, dict):
        return handler(data)
    cls.__bases__[0].model_validate({k: v for k, v in data.items() if k not in FILE_FIELDS})
    model = handler({**dict.fromkeys(FILE_FIELDS), **data})
    model._unknown = tuple(sorted(set(data) - set(cls.model_fields)))
    return model


class AppInput(_Options):
    """A driving video and a reference image in, a video of the reference performing the motion out."""

    driving_video: DrivingVideo
    reference_image: ReferenceImage

    _unknown: tuple[str, ...] = PrivateAttr(default=())
    _cheap_first = model_validator(mode="wrap")(_validate_cheap_first)


class PreviewInput(_PreviewOptions):
    """What shapes the conditioning: check it before paying for GPU time."""

    driving_video: DrivingVideo
    reference_image: ReferenceImage

    _unknown: tuple[str, ...] = PrivateAttr(default=())
    _cheap_first = model_validator(mode="wrap")(_validate_cheap_first)


# What `run` and `preview` both report while they work.
StageName = Annotated[
    str,
    Field(
        description="What is being done: probe, people, pose, …, clip.denoise clip 1/2 step 3/20, …, done."
    ),
]
Share = Annotated[float, Field(ge=0, le=1, description="Share of the whole request that is done, 0 to 1.")]
EtaS = Annotated[float | None, Field(description="Estimated seconds left; null while nothing was measured.")]
PreviewVideo = Annotated[
    File | None,
    Field(
        description="Source, skeleton, face and, in replacement, mask over background, side by side (MP4).",
        json_schema_extra={"contentMediaType": "video/*"},
    ),
]
NumFrames = Annotated[int, Field(description="Frames of the result; 0 until it is known.")]
RateOut = Annotated[float, Field(description="Frames per second of the result; 0 until it is known.")]
WidthOut = Annotated[int, Field(description="Width of the result in pixels; 0 until it is known.")]
HeightOut = Annotated[int, Field(description="Height of the result in pixels; 0 until it is known.")]
Sentences = Annotated[
    list[str], Field(default_factory=list, description="What was adjusted, held or ignored, in words.")
]
Timings = Annotated[dict[str, float], Field(default_factory=dict, description="Seconds a stage.")]


class AppOutput(BaseAppOutput):
    """A snapshot of the request; the last one is the result."""

    stage: StageName
    progress: Share
    eta_s: EtaS = None
    output_video: File | None = Field(
        default=None,
        description="The finished video (MP4, H.264, with the driving video's sound); null until the end.",
        json_schema_extra={"contentMediaType": "video/*"},
    )
    preview_video: PreviewVideo = None
    seed: int = Field(description="The seed used.")
    num_frames: NumFrames = 0
    fps: RateOut = 0
    width: WidthOut = 0
    height: HeightOut = 0
    warnings: Sentences
    timings: Timings


class PreviewOutput(BaseAppOutput):
    """A snapshot of the conditioning; the last one holds the files to look at."""

    stage: StageName
    progress: Share
    eta_s: EtaS = None
    preview_video: PreviewVideo = None
    contact_sheet: File | None = Field(
        default=None,
        description="Evenly spread frames of the preview in one picture (PNG).",
        json_schema_extra={"contentMediaType": "image/*"},
    )
    num_frames: NumFrames = 0
    num_clips: int = Field(
        default=0, description="Clips the result would be made of, at the default clip length."
    )
    fps: RateOut = 0
    width: WidthOut = 0
    height: HeightOut = 0
    warnings: Sentences
    timings: Timings


class App(BaseApp):
    """WAN 2.2 Animate: motion from a driving video, appearance from a reference image."""

    _studio: "Studio | None" = PrivateAttr(default=None)
    _worker: Worker | None = PrivateAttr(default=None)

    # The platform finds these by name and inspects their parameters; the base class only holds their places.
    async def setup(self, config: AppSetup) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Load the models that `config` asks for. Raises SetupFailed where that is impossible."""
        await self.unload()
        _check_setup(config)
        self._worker = Worker()

        def build(_: object) -> "Studio":
            from .production import build_studio  # noqa: PLC0415 - torch and the rest load here, not at import
            from .wan.engine import EngineSetup  # noqa: PLC0415
            from .wan.model.lora_sources import LoraSource  # noqa: PLC0415

            loras = [LoraSource(source=_local(one.source), strength=one.strength) for one in config.loras]
            return build_studio(
                EngineSetup(
                    model=config.model,
                    precision=config.precision,
                    attention=config.attention,
                    compiled=config.compile,
                    loras=tuple(loras),
                ),
                preprocessing=config.preprocessing,
                cache_dir=_cache_dir(os.environ),
                keep_intermediates=config.keep_intermediates,
            )

        self._studio = await self._worker.start(build, cancel_requested=lambda: False).result()

    async def run(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, input_data: AppInput
    ) -> AsyncGenerator[AppOutput, None]:
        """Make the video. Yields snapshots of the progress; the last one holds the files."""
        studio, worker = self._ready()
        seed = secrets.randbelow(2**32) if input_data.seed == -1 else input_data.seed
        production = studio.production(_request(input_data, seed))
        running = worker.start(production.make_video, cancel_requested=self._cancel_requested)
        _warn_unknown(input_data, running)
        if input_data.turbo:
            running.job.warn(_turbo_in_words(input_data))
        try:
            async for progress in running.updates():
                yield AppOutput(seed=seed, **_standing(progress), **_so_far(running.job, production.facts))
            made = await running.result()
        finally:
            await running.abandon()
        yield AppOutput(
            **DONE,
            output_video=_file(made.video),
            preview_video=_file(made.preview),
            seed=seed,
            **_so_far(running.job, production.facts),
            output_meta=_meta(
                made, input_data.model_dump(include={"mode", "sampling_steps"}), production.facts
            ),
        )

    async def preview(self, input_data: PreviewInput) -> AsyncGenerator[PreviewOutput, None]:
        """Make only the conditioning, to look at: skeleton, face, and in replacement mask over background."""
        studio, worker = self._ready()
        production = studio.production(_request(input_data, seed=0))
        running = worker.start(production.make_preview, cancel_requested=self._cancel_requested)
        _warn_unknown(input_data, running)
        try:
            async for progress in running.updates():
                yield PreviewOutput(**_standing(progress), **_so_far(running.job, production.facts))
            made = await running.result()
        finally:
            await running.abandon()
        yield PreviewOutput(
            **DONE,
            preview_video=_file(made.preview),
            contact_sheet=_file(made.contact_sheet),
            num_clips=production.facts.num_clips if production.facts else 0,
            **_so_far(running.job, production.facts),
            output_meta=_meta(made, input_data.model_dump(include={"mode"}), production.facts),
        )

    async def on_cancel(self) -> bool:
        """Stop what is under way; the models stay loaded."""
        if self._worker is not None:
            self._worker.cancel()
        return True

    async def unload(self) -> None:
        """Stop everything and let go of the models."""
        if self._worker is not None:
            self._worker.close()
        self._worker = self._studio = None

    def _ready(self) -> "tuple[Studio, Worker]":
        if self._studio is None or self._worker is None:
            raise SetupFailed("the app is not set up: call setup() before run()")
        return self._studio, self._worker

    def _cancel_requested(self) -> bool:
        # The platform sets this flag from a thread of its own; in a shell there is no context.
        return bool(getattr(getattr(self, "context", None), "cancel_requested", False))


def _check_setup(config: AppSetup) -> None:
    """Refuse what this version cannot do yet, rather than do something else."""
    waiting = {
        "precision": config.precision == "fp8",
        "gpus": config.gpus > 1,
        "step_cache": config.step_cache == "on",
    }
    for name, asked in waiting.items():
        if asked:
            raise NotAvailableYet(f"setup option {name} is not available yet in this version: leave it out")


def _local(source: str) -> str:
    """A LoRA's source; one behind an address that is not the hub's is fetched, and its path returned."""
    if "://" not in source or source.startswith("https://huggingface.co/"):
        return source
    try:
        return str(File(uri=source).path)
    except Exception as error:  # the SDK raises whatever its download met
        raise InvalidInput(
            f"loras: {_shown(source)} could not be fetched: {_reason(error)}; check the address"
        ) from error


def _preset_loras(options: AppInput) -> "tuple[PresetLora, ...]":
    """The published LoRAs that a request runs with."""
    relights = options.mode == "replacement" if options.relight is None else options.relight
    chosen: list[PresetLora] = []
    if options.turbo:
        chosen.append("turbo")
    if relights:
        chosen.append("relighting")
    return tuple(chosen)


def _preset_fields(options: AppInput) -> list[str]:
    """The sampling fields that follow turbo's preset: those that equal their defaults."""
    if not options.turbo:
        return []
    fields = type(options).model_fields
    return [name for name in PRESET_FIELDS if getattr(options, name) == fields[name].default]


def _turbo_in_words(options: AppInput) -> str:
    """What a turbo request runs with, where it is not what its fields say."""
    from .wan.sampling import TURBO_SHIFT, TURBO_SOLVER, TURBO_STEPS  # noqa: PLC0415 - loaded by setup

    preset = f"{TURBO_STEPS} steps of {TURBO_SOLVER} at shift {TURBO_SHIFT:g}"
    follows = _preset_fields(options)
    kept = [f"{name} {getattr(options, name)}" for name in PRESET_FIELDS if name not in follows]
    parts = []
    if follows:
        parts.append(f"its preset ({preset}) stands for the default of {', '.join(follows)}")
    if kept:
        parts.append(f"kept as asked: {', '.join(kept)}")
    return f"turbo: {'; '.join(parts)}"


def _request(options: AppInput | PreviewInput, seed: int) -> "Request":
    from .preprocess.silhouette import MaskShaping  # noqa: PLC0415 - loaded by setup already
    from .production import Request  # noqa: PLC0415
    from .wan.sampling import (  # noqa: PLC0415
        DEFAULT_NEGATIVE_PROMPT,
        DEFAULT_PROMPT,
        TURBO_SHIFT,
        TURBO_SOLVER,
        TURBO_STEPS,
        Sampling,
    )

    sampling, delivery = Sampling(seed=seed), {}
    if isinstance(options, AppInput):
        follows = _preset_fields(options)
        sampling = Sampling(
            steps=TURBO_STEPS if "sampling_steps" in follows else options.sampling_steps,
            shift=TURBO_SHIFT if "shift" in follows else options.shift,
            guidance=options.guide_scale,
            solver=TURBO_SOLVER if "sample_solver" in follows else options.sample_solver,
            seed=seed,
            clip_len=options.clip_len,
            overlap=options.refert_num,
            prompt=options.input_prompt or DEFAULT_PROMPT,
            negative_prompt=options.n_prompt or DEFAULT_NEGATIVE_PROMPT,
        )
        delivery = options.model_dump(include={"keep_audio", "quality", "preview"})
        delivery |= {"loras": _preset_loras(options), "offload": options.offload_model}
    return Request(
        driving=Path(str(options.driving_video.path)),
        reference=Path(str(options.reference_image.path)),
        replaces=options.mode == "replacement",
        width=options.resolution_width,
        height=options.resolution_height,
        fps=options.fps,
        start_s=options.start_s,
        duration_s=options.duration_s,
        subject=options.subject,
        retarget=options.retarget_flag,
        use_flux=options.use_flux,
        shaping=MaskShaping(
            iterations=options.mask_iterations,
            kernel_size=options.mask_kernel_size,
            columns=options.mask_w_subdivisions,
            rows=options.mask_h_subdivisions,
        ),
        sampling=sampling,
        settings=options.model_dump(exclude={*FILE_FIELDS, "seed"}),
        **delivery,
    )


def _file(path: Path | None) -> File | None:
    return None if path is None else File(path=str(path))


def _warn_unknown(options: AppInput | PreviewInput, running: Running) -> None:
    if options._unknown:
        running.job.warn(f"unknown fields were ignored: {', '.join(options._unknown)}")


def _standing(progress: Progress) -> dict[str, Any]:
    """The moving part of a snapshot."""
    stage = f"{progress.stage} {progress.detail}".rstrip()
    return {"stage": stage, "progress": progress.progress, "eta_s": progress.eta_s}


def _so_far(job: Job, facts: "Facts | None") -> dict[str, Any]:
    """The cumulative part of a snapshot."""
    known = {
        "warnings": list(job.warnings),
        "timings": {k: round(v, 3) for k, v in list(job.timings.items())},
    }
    if facts is None:
        return known
    return known | {
        "num_frames": facts.num_frames,
        "fps": float(facts.fps),
        "width": facts.width,
        "height": facts.height,
    }


def _meta(made: "Made", extra: dict[str, Any], facts: "Facts | None") -> OutputMeta:
    """What the platform bills by, measured from the files."""
    height, width = made.reference_size
    output = made.measured
    extra |= {"frames": output.num_frames, "clips": facts.num_clips if facts else 0}
    return OutputMeta(
        inputs=[
            _video_meta(made.driving, {}),
            ImageMeta(width=width, height=height, resolution_mp=width * height / 1e6),
        ],
        outputs=[_video_meta(output, extra)],
    )


def _video_meta(info: "VideoInfo", extra: dict[str, Any]) -> VideoMeta:
    short = min(info.width, info.height)
    label = next(name for limit, name in RESOLUTION_LABELS if short <= limit)
    return VideoMeta(
        width=info.width,
        height=info.height,
        resolution_mp=info.width * info.height / 1e6,
        resolution=label,
        seconds=float(info.duration),
        fps=round(info.rate),
        extra=extra,
    )


def _cache_dir(environment: Mapping[str, str]) -> Path:
    """The user's cache folder, as the XDG base directory specification has it."""
    return Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache")
