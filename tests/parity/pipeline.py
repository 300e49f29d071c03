"""Recordings of the official `generate` beside our engine: schedules, solvers, clip plans, whole videos."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from wan_animate.preprocess.geometry import pad_to_fit
from wan_animate.wan.animator import Animator
from wan_animate.wan.clips import Clip, plan_clips
from wan_animate.wan.conditioning import known_mask
from wan_animate.wan.conditions import Conditions, Scene
from wan_animate.wan.model.models import Models
from wan_animate.wan.model.smoke import PACE
from wan_animate.wan.model.transformer import AnimateTransformer, Prepared
from wan_animate.wan.model.vae import VideoVae
from wan_animate.wan.runtime.job import Job
from wan_animate.wan.sampling import Sampling
from wan_animate.wan.schedule import make_solver, plan_schedule

from ..seeded import enlarge, pad_text
from . import networks
from .findings import Check, Compare, Finding, arrays, exact, relative_l2, relative_largest, within
from .model import GREY_LEVEL, NETWORK, TRANSFORMER

SOLVER_ROUNDING = (
    1e-6  # of latents up to 4: the torch of the recordings gives equal bits, later ones round exp otherwise
)
MASK_ROUNDING = 1e-6  # of grey mask values; 0 and 255 are exact
ON_AN_EDGE = 1e-3  # share of values that lie between two grey levels and fall to the other side; 1e-4 is seen
PROMPT, NEGATIVE = "prompt", "negative prompt"


def schedules(path: Path) -> Iterator[Finding]:
    """Noise levels and times of every solver, number of steps and shift, exactly."""
    for case in json.loads(path.read_text())["cases"]:
        plan = plan_schedule(case["solver"], steps=case["steps"], shift=case["shift"])
        yield Finding(
            part=f"[{case['solver']} {case['steps']} {case['shift']}]",
            checks=(
                exact("timesteps", plan.timesteps, case["timesteps"]),
                exact("sigmas", plan.sigmas, np.array(case["sigmas"], np.float32)),
            ),
        )


def trace(path: Path) -> Iterator[Finding]:
    """A solver's every step, when the model says what it said."""
    _, name, steps, shift = path.stem.split("_")
    case = arrays(path)
    plan = plan_schedule("dpm++" if name == "dpmpp" else "unipc", steps=int(steps), shift=float(shift))
    solver, latents, seen = make_solver(plan), torch.from_numpy(case["noise"]), []
    for timestep, output in zip(solver.timesteps, torch.from_numpy(case["model_outputs"]), strict=True):
        latents = solver.step(output, timestep, latents, return_dict=False)[0]
        seen.append(latents.numpy())
    yield Finding(
        checks=(
            exact("timesteps", plan.timesteps, case["timesteps"]),
            exact("sigmas", plan.sigmas, case["sigmas"]),
            within("latents", np.stack(seen), case["latents"], SOLVER_ROUNDING),
        )
    )


def pipeline(path: Path) -> Iterator[Finding]:
    """A whole run: what is cheap first."""
    yield from plans(path)
    yield from video(path)


def plans(path: Path) -> Iterator[Finding]:
    """What a run does without any network: windows, times, masks, the reference picture."""
    run = Run.load(path)
    about, sampling, clips = run.about, run.sampling, run.clips
    laid_out = [frame for clip in clips for frame in clip.frames[sampling.overlap if clip.index else 0 :]]
    plan = plan_schedule(sampling.solver, steps=sampling.steps, shift=sampling.shift)
    kinds = ("cond", "uncond") if sampling.guided else ("cond",)
    calls = [[int(timestep), kind] for timestep in plan.timesteps for kind in kinds]
    stride = sampling.clip_len - sampling.overlap
    checks = [
        exact("clips", len(clips), about["n_clips"]),
        exact("padded_index", laid_out, about["padded_index"]),
    ]
    for clip in clips:
        recorded = about[f"c{clip.index}"]
        checks += [
            exact(f"c{clip.index} start", clip.index * stride, recorded["start"]),
            exact(f"c{clip.index} model_calls", float(calls != recorded["model_calls"]), 0),
            *run.stored(clip, "timesteps", lambda what, theirs: exact(what, plan.timesteps, theirs)),
            *run.stored(clip, "sigmas", lambda what, theirs: exact(what, plan.sigmas, theirs)),
        ]
    yield Finding(part="plan", checks=tuple(checks))
    height, width = run.size
    fitted = pad_to_fit(run.shared[f"ref_{height}x{width}"], height=height, width=width)
    yield Finding(part="reference", checks=(exact("ref_resized", fitted, run.arrays["ref_resized"]),))
    masks = tuple(check for clip in clips for check in run.stored(clip, "y", run.mask_check(clip)))
    if masks:
        yield Finding(part="masks", checks=masks)


def video(path: Path) -> Iterator[Finding]:
    """The engine from conditions to frames with the recorded noise, and what passes through it on the way."""
    run = Run.load(path)
    yield Finding(part="weights", checks=run.weights)
    transformer, vae = WatchedTransformer(run.transformer), WatchedVae(run.autoencoder)
    models = Models(
        transformer=transformer,  # pyright: ignore[reportArgumentType] - the same methods
        vae=vae,
        text_encoder=RecordedText(
            contexts={PROMPT: run.shared["context"], NEGATIVE: run.shared["context_null"]}
        ),  # pyright: ignore[reportArgumentType]
        image_encoder=lambda _: networks.clip_features(run.shared),  # pyright: ignore[reportArgumentType]
        device=torch.device("cpu"),
        pace=PACE,
    )
    frames = np.concatenate(list(Animator(models).frames(run, run.sampling, Job(), noise=run.noise)))
    theirs = rearrange(run.arrays["final_video_u8"], "c t h w -> t h w c").astype(np.int16)
    off = float((frames != theirs).mean()) if frames.shape == theirs.shape else 1.0
    yield Finding(
        part="video",
        checks=(
            within("frames", frames, theirs, GREY_LEVEL),
            Check(what="share of values a level off", error=off, tolerance=ON_AN_EDGE),
        ),
    )
    conditions = [check for clip in run.clips for check in _conditions(run, clip, transformer)]
    if conditions:
        yield Finding(part="conditions", checks=tuple(conditions))
    passes = [check for clip in run.clips for check in _passes(run, clip, transformer, vae)]
    count = exact("passes", len(transformer.said), run.passes * len(run.clips))
    yield Finding(part="passes and latents", checks=(*passes, count))


def _conditions(run: "Run", clip: Clip, transformer: "WatchedTransformer") -> Iterator[Check]:
    """What the transformer was given of a clip: its pose, and what is known of it, the tail included."""
    prepared = transformer.prepared[clip.index]
    yield from run.compared(clip, "pose_latents", prepared["pose"][0], relative_largest, NETWORK)
    yield from run.compared(clip, "y", prepared["given"][0], relative_largest, NETWORK)


def _passes(run: "Run", clip: Clip, transformer: "WatchedTransformer", vae: "WatchedVae") -> Iterator[Check]:
    """What the transformer said first, and what came out in the end."""
    said = transformer.said[clip.index * run.passes :]
    yield from run.compared(clip, "step0_cond", said[0][0], relative_l2, TRANSFORMER)
    if run.sampling.guided:
        yield from run.compared(clip, "step0_uncond", said[1][0], relative_l2, TRANSFORMER)
    ours = vae.given[clip.index][0]  # without the reference picture's, and only as far as they are shown
    last = slice(1, ours.shape[1] + 1)
    yield from run.stored(
        clip, "latents", lambda what, theirs: relative_l2(what, ours, theirs[-1][:, last], TRANSFORMER)
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Run:
    """One recorded run, as a ClipSource."""

    folder: Path
    about: dict[str, Any]
    arrays: dict[str, np.ndarray]  # this run's
    shared: dict[str, np.ndarray]  # all runs'
    config: dict[str, Any]

    @staticmethod
    def load(path: Path) -> "Run":
        return Run(
            folder=path.parent,
            about=json.loads(path.read_text()),
            arrays=arrays(path.with_suffix(".npz")),
            shared=arrays(path.parent / "shared.npz"),
            config=json.loads((path.parent / "config.json").read_text()),
        )

    @property
    def sampling(self) -> Sampling:
        return Sampling(
            seed=0,
            steps=self.about["sampling_steps"],
            shift=self.about["shift"],
            guidance=self.about["guide_scale"],
            solver=self.about["solver"],
            clip_len=self.about["clip_len"],
            overlap=self.about["refert_num"],
            prompt=PROMPT,
            negative_prompt=NEGATIVE,
        )

    @property
    def passes(self) -> int:
        """Of the transformer, a clip."""
        return self.sampling.steps * (2 if self.sampling.guided else 1)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.about["H"], self.about["W"]

    @property
    def clips(self) -> tuple[Clip, ...]:
        return plan_clips(self.num_frames, clip_len=self.sampling.clip_len, overlap=self.sampling.overlap)

    @property
    def weights(self) -> tuple[Check, ...]:
        checks = [self.folder / f"weights_check_{network}.json" for network in ("dit", "vae")]
        return tuple(c for check in checks for c in networks.check_weights(check, salt=self.config["salt"]))

    @property
    def transformer(self) -> AnimateTransformer:
        check = self.folder / "weights_check_dit.json"
        return networks.transformer(self.config["dit"], check, salt=self.config["salt"])

    @property
    def autoencoder(self) -> torch.nn.Module:
        check = self.folder / "weights_check_vae.json"
        return networks.autoencoder(self.config["vae"], check, salt=self.config["salt"])

    # As a ClipSource

    @property
    def num_frames(self) -> int:
        return self.about["real_frame_len"]

    @property
    def replaces(self) -> bool:
        return self.about["mode"] == "replace"

    @property
    def reference(self) -> np.ndarray:
        return self.arrays["ref_resized"]

    def conditions(self, frames: Sequence[int]) -> Conditions:
        size, numbers = "{}x{}".format(*self.size), list(frames)
        scene = None
        if self.replaces:
            scene = Scene(
                background=self.shared[f"bg_{size}"][numbers], mask=self.shared[f"mask_{size}"][numbers]
            )
        return Conditions(
            pose=self.shared[f"pose_{size}"][numbers],
            face=enlarge(self.shared["face_base_u8"][numbers]),
            scene=scene,
        )

    def noise(self, clip_index: int, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.from_numpy(self.arrays["noise"][clip_index]).reshape(shape)

    # Of one clip

    def stored(self, clip: Clip, name: str, check: Any) -> Iterator[Check]:
        """A check of an array that not every recording has."""
        key = f"c{clip.index}_{name}"
        if key in self.arrays:
            yield check(key, self.arrays[key])

    def compared(
        self, clip: Clip, name: str, ours: torch.Tensor, measure: Any, tolerance: float
    ) -> Iterator[Check]:
        yield from self.stored(clip, name, lambda what, theirs: measure(what, ours, theirs, tolerance))

    def mask_check(self, clip: Clip) -> Any:
        """The four mask channels: the reference picture's, then the clip's."""
        height, width = self.size
        person = self.conditions(clip.frames).scene.mask if self.replaces else None
        mask = known_mask(
            person,
            known_frames=self.sampling.overlap if clip.index else 0,
            shape=(self.sampling.clip_len, height, width),
        )
        whole = torch.cat([torch.ones_like(mask[:, :1]), mask], dim=1)
        return lambda what, theirs: within(f"{what} mask", whole, theirs[:4], MASK_ROUNDING)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedText:
    """In the text encoder's place: recorded features by prompt."""

    contexts: dict[str, np.ndarray]

    def __call__(self, prompt: str) -> torch.Tensor:
        return pad_text(self.contexts[prompt])

    def fits(self, prompt: str) -> bool:
        return prompt in self.contexts


class WatchedVae(VideoVae):
    """The VAE, which also remembers the latents it was given to decode, a clip each."""

    def __init__(self, autoencoder: torch.nn.Module) -> None:
        super().__init__(autoencoder)  # pyright: ignore[reportArgumentType]
        self.given: list[torch.Tensor] = []

    def decode(self, latents: torch.Tensor) -> Iterator[torch.Tensor]:
        self.given.append(latents)
        return super().decode(latents)


@dataclass(slots=True)
class WatchedTransformer:
    """The transformer, which also remembers what was prepared of each clip, and what it said in each pass."""

    network: AnimateTransformer
    prepared: list[dict[str, torch.Tensor]] = field(default_factory=list)
    said: list[torch.Tensor] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.network, name)

    def prepare(self, **clip: torch.Tensor) -> Prepared:
        self.prepared.append(clip)
        return self.network.prepare(**clip)

    def step(self, latents: torch.Tensor, timestep: int, prepared: Prepared) -> torch.Tensor:
        self.said.append(self.network.step(latents, timestep, prepared))
        return self.said[-1]


COMPARE: dict[str, Compare] = {
    "pipeline": pipeline,
    "pipeline/schedules": schedules,
    "pipeline/schedules/trace": trace,
}
