"""The app as the platform drives it: setup, run as a stream of snapshots, cancel, unload. At smoke size."""

import asyncio
import contextlib
import hashlib
import tempfile
from dataclasses import replace
from pathlib import Path

import av
import pytest
from PIL import Image
from wan_animate import App, AppInput, AppOutput, AppSetup, PreviewInput, PreviewOutput
from wan_animate.inference import _request
from wan_animate.preprocess.track_cache import TrackCache
from wan_animate.wan.media.probe import probe_video
from wan_animate.wan.media.still import load_image
from wan_animate.wan.runtime.errors import (
    Cancelled,
    InvalidInput,
    NoPersonFound,
    NotAvailableYet,
    NoUsableGpu,
    SetupFailed,
)
from wan_animate.wan.runtime.job import STAGES

from .people import wallpaper

EXAMPLES = Path(__file__).parents[1] / "examples"
SMALL = {
    "driving_video": str(EXAMPLES / "driving.mp4"),
    "reference_image": str(EXAMPLES / "reference.jpg"),
    "resolution_width": 256,
    "resolution_height": 256,
    "duration_s": 0.3,  # 9 frames: two clips of 5 that share one
    "clip_len": 5,
    "sampling_steps": 2,
    "seed": 7,
}
RUN_STAGES = [name for name in STAGES if name not in ("flux", "mask", "retarget", "preview")]


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory):
    made = App()
    asyncio.run(made.setup(AppSetup(model="smoke")))
    forget_tracks(made, tmp_path_factory.mktemp("tracks"))
    yield made
    asyncio.run(made.unload())


def forget_tracks(app: App, folder: Path) -> None:
    """Give the app an empty track cache of its own: the user's is neither read nor filled by tests."""
    app._studio = replace(app._studio, track_cache=TrackCache(folder))


async def drive(app: App, **options) -> list[AppOutput]:
    return [snapshot async for snapshot in app.run(AppInput.model_validate(SMALL | options))]


def frames_of(output: AppOutput) -> str:
    return digest_of(Path(output.output_video.path))


def digest_of(video: Path) -> str:
    digest = hashlib.blake2b()
    with av.open(video) as container:
        for frame in container.decode(video=0):
            digest.update(frame.to_ndarray().tobytes())
    return digest.hexdigest()


@pytest.fixture(scope="module")
def uncancelled(app: App) -> AppOutput:
    return asyncio.run(drive(app))[-1]


def left_folders() -> set[Path]:
    return set(Path(tempfile.gettempdir()).glob("wan-animate-*/*"))


def test_the_result_is_what_was_asked_for(uncancelled: AppOutput):
    info = probe_video(Path(uncancelled.output_video.path))
    assert (info.num_frames, info.rate) == (9, 30)
    assert (info.width, info.height) == (uncancelled.width, uncancelled.height)
    assert info.width * info.height <= 256 * 256
    assert info.has_audio
    assert (uncancelled.num_frames, uncancelled.fps, uncancelled.seed) == (9, 30, 7)
    assert uncancelled.stage == "done"
    assert uncancelled.progress == 1.0
    assert set(uncancelled.timings) == set(RUN_STAGES)


def test_the_settings_are_in_the_file(uncancelled: AppOutput):
    with av.open(str(uncancelled.output_video.path)) as container:
        text = " ".join(f"{key}={value}" for key, value in container.metadata.items())
    assert "AI-generated" in text
    assert "sampling_steps" in text
    assert "7" in container.metadata["wan_animate_seed"]


def test_billing_metadata_is_measured_from_the_files(uncancelled: AppOutput):
    driving, reference = uncancelled.output_meta.inputs
    (made,) = uncancelled.output_meta.outputs
    source = probe_video(Path(SMALL["driving_video"]))
    assert (driving.width, driving.height, driving.seconds) == (
        source.width,
        source.height,
        pytest.approx(float(source.duration)),
    )
    assert reference.width > 0
    assert (made.width, made.height, made.fps) == (uncancelled.width, uncancelled.height, 30)
    assert made.seconds == pytest.approx(0.3)
    assert made.extra["clips"] == 2
    assert made.resolution == "480p"


async def test_snapshots_are_cumulative_and_only_the_last_has_files(app: App):
    snapshots = await drive(app, sampling_steps=20)  # long enough to be seen between two looks
    assert len(snapshots) > 2
    progress = [snapshot.progress for snapshot in snapshots]
    assert progress == sorted(progress)
    assert progress[0] < 0.5
    assert any(0.1 < value < 0.9 for value in progress)
    assert all(snapshot.seed == 7 for snapshot in snapshots)
    assert all(snapshot.output_video is None for snapshot in snapshots[:-1])
    assert {snapshot.stage.split()[0] for snapshot in snapshots[:-1]} <= set(STAGES)
    assert any("clip" in snapshot.stage and "step" in snapshot.stage for snapshot in snapshots)


async def test_the_same_seed_gives_the_same_video_and_another_does_not(app: App, uncancelled: AppOutput):
    same, other = (await drive(app))[-1], (await drive(app, seed=8))[-1]
    assert frames_of(same) == frames_of(uncancelled)
    assert frames_of(other) != frames_of(uncancelled)
    drawn = (await drive(app, seed=-1))[-1].seed
    assert 0 <= drawn < 2**32


class StopAt:
    """The platform's context: its flag goes up while a given stage is open."""

    def __init__(self, app: App, stage: str) -> None:
        self._app, self._stage = app, stage

    @property
    def cancel_requested(self) -> bool:
        return any(running.job.open_stage == self._stage for running in self._app._worker.running)


@pytest.mark.parametrize("stage", RUN_STAGES)
async def test_cancel_in_every_stage_leaves_nothing_and_spoils_nothing(
    app: App, uncancelled: AppOutput, tmp_path: Path, stage: str
):
    forget_tracks(app, tmp_path)
    before = left_folders()
    app.context = StopAt(app, stage)
    try:
        with pytest.raises(Cancelled):
            await drive(app)
    finally:
        del app.context
    assert left_folders() == before
    if stage in ("pose", "clip.denoise", "write"):  # the same for all; three show it
        assert frames_of((await drive(app))[-1]) == frames_of(uncancelled)


async def test_on_cancel_stops_the_run(app: App):
    before = left_folders()
    stream = app.run(AppInput.model_validate(SMALL))
    await anext(stream)
    assert await app.on_cancel()
    with pytest.raises(Cancelled):
        async for _ in stream:
            pass
    assert left_folders() == before


async def test_a_caller_that_walks_away_stops_the_work(app: App):
    before = left_folders()
    stream = app.run(AppInput.model_validate(SMALL))
    await anext(stream)
    await stream.aclose()
    assert not app._worker.running
    assert left_folders() == before


async def test_two_requests_on_one_worker_do_not_see_each_other(app: App, uncancelled: AppOutput):
    first, second = await asyncio.gather(drive(app, stepz=1), drive(app, seed=8, fps=10))
    assert frames_of(first[-1]) == frames_of(uncancelled)
    assert (first[-1].num_frames, second[-1].num_frames) == (9, 3)
    assert any("stepz" in text for text in first[-1].warnings)
    assert not any("stepz" in text for text in second[-1].warnings)
    assert {s.seed for s in first} == {7}
    assert {s.seed for s in second} == {8}


async def test_replacement_keeps_the_shape_of_the_driving_video(app: App):
    output = (await drive(app, mode="replacement", resolution_width=480, resolution_height=256))[-1]
    source = probe_video(Path(SMALL["driving_video"]))
    assert output.width / output.height == pytest.approx(source.width / source.height, rel=0.05)
    assert probe_video(Path(output.output_video.path)).num_frames == 9
    assert "mask" in output.timings
    assert output.output_meta.outputs[0].extra["mode"] == "replacement"


async def look(app: App, **options) -> list[PreviewOutput]:
    small = {k: v for k, v in SMALL.items() if k in PreviewInput.model_fields}
    return [snapshot async for snapshot in app.preview(PreviewInput.model_validate(small | options))]


@pytest.mark.parametrize("mode", ["animation", "replacement"])
async def test_a_run_after_a_preview_does_not_repeat_pass_1(app: App, tmp_path: Path, mode: str):
    forget_tracks(app, tmp_path)
    shown = (await look(app, mode=mode))[-1]
    assert {"people", "pose", "preview"} <= set(shown.timings)
    assert "clip.denoise" not in shown.timings
    made = (await drive(app, mode=mode))[-1]
    assert not {"people", "pose", "mask"} & set(made.timings)
    assert (shown.num_frames, shown.width, shown.height) == (made.num_frames, made.width, made.height)


async def test_a_preview_is_a_video_of_every_frame_and_a_sheet(app: App):
    output = (await look(app))[-1]
    info = probe_video(Path(output.preview_video.path))
    assert (info.num_frames, info.rate, info.has_audio) == (9, 30, True)
    assert load_image(Path(output.contact_sheet.path)).shape[1] <= 1920
    assert output.num_clips == 1  # at the default clip length
    assert output.output_meta.outputs[0].width == info.width


async def test_run_can_return_the_preview_with_the_result_beside_it(app: App):
    output = (await drive(app, preview=True))[-1]
    without = (await look(app))[-1]
    with_result, alone = (probe_video(Path(one.preview_video.path)) for one in (output, without))
    assert with_result.num_frames == alone.num_frames == 9
    assert with_result.height < alone.height  # one more column in the same width


async def test_turbo_is_another_video_in_four_steps_and_leaves_no_trace(app: App, uncancelled: AppOutput):
    options = AppInput.model_validate(SMALL | {"turbo": True, "sampling_steps": 20})
    sampling = _request(options, seed=7).sampling
    assert (sampling.steps, sampling.solver, sampling.shift, sampling.guidance) == (4, "euler", 5.0, 1.0)
    turbo = (await drive(app, turbo=True, sampling_steps=20))[-1]
    assert turbo.warnings[0] == (
        "turbo: its preset (4 steps of euler at shift 5) stands for the default of "
        "sampling_steps, sample_solver, shift"
    )
    assert frames_of(turbo) != frames_of((await drive(app, sampling_steps=4))[-1])
    assert frames_of((await drive(app))[-1]) == frames_of(uncancelled)


async def test_turbo_keeps_sampling_fields_that_were_set(app: App):
    changes = {"turbo": True, "sampling_steps": 2, "sample_solver": "unipc", "guide_scale": 2}
    sampling = _request(AppInput.model_validate(SMALL | changes), seed=7).sampling
    assert (sampling.steps, sampling.solver, sampling.shift, sampling.guidance) == (2, "unipc", 5.0, 2.0)
    output = (await drive(app, **changes))[-1]
    assert output.warnings[0] == (
        "turbo: its preset (4 steps of euler at shift 5) stands for the default of shift; "
        "kept as asked: sampling_steps 2, sample_solver unipc"
    )


async def test_relighting_is_on_in_replacement_unless_it_is_switched_off(app: App):
    default, on, off = [
        (await drive(app, mode="replacement", relight=relight))[-1] for relight in (None, True, False)
    ]
    assert frames_of(default) == frames_of(on) != frames_of(off)


async def test_retargeting_moves_the_skeleton_and_nothing_else(app: App, tmp_path: Path):
    forget_tracks(app, tmp_path)
    studio, app._studio = app._studio, replace(app._studio, keep_intermediates=True)
    try:
        plain, moved = (await look(app))[-1], (await look(app, retarget_flag=True))[-1]
    finally:
        app._studio = studio
    assert "people" not in moved.timings  # what is kept of the video is not retargeted
    kept = [Path(output.preview_video.path).parent / "intermediates" for output in (plain, moved)]
    poses, faces = ([digest_of(folder / f"src_{name}.mp4") for folder in kept] for name in ("pose", "face"))
    assert poses[0] != poses[1]
    assert faces[0] == faces[1]


async def test_a_retargeted_run_is_another_video(app: App, uncancelled: AppOutput):
    output = (await drive(app, retarget_flag=True))[-1]
    assert "retarget" in output.timings
    assert frames_of(output) != frames_of(uncancelled)


async def test_what_retargeting_lacks_is_told_before_the_video_is_looked_at(
    app: App, tmp_path: Path, monkeypatch
):
    forget_tracks(app, tmp_path)
    empty = tmp_path / "room.png"
    Image.fromarray(wallpaper()).save(empty)
    monkeypatch.setattr("wan_animate.preprocess.full.flux.usable_gpu", lambda: None)
    for options, error, said in (
        ({"reference_image": str(empty)}, NoPersonFound, "room.png"),
        ({"use_flux": True}, NoUsableGpu, "use_flux needs a CUDA GPU"),
    ):
        snapshots = []
        with pytest.raises(error, match=said):
            async for snapshot in app.run(AppInput.model_validate(SMALL | {"retarget_flag": True} | options)):
                snapshots.append(snapshot)
        assert {snapshot.stage.split()[0] for snapshot in snapshots} <= {"probe"}


async def test_sound_can_be_left_out(app: App):
    output = (await drive(app, keep_audio=False))[-1]
    assert not probe_video(Path(output.output_video.path)).has_audio


async def test_a_bad_file_is_one_sentence_and_leaves_nothing(app: App, tmp_path: Path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"not a video")
    before = left_folders()
    for name in ("driving_video", "reference_image"):
        with pytest.raises(InvalidInput) as caught:
            await drive(app, **{name: str(broken)})
        assert "broken.mp4" in str(caught.value)
        assert "\n" not in str(caught.value)
    assert left_folders() == before


async def test_a_run_before_setup_says_so():
    with pytest.raises(SetupFailed, match="call setup"):
        async for _ in App().run(AppInput.model_validate(SMALL)):
            pass


async def test_the_large_model_without_a_gpu_names_the_smoke_model(monkeypatch):
    monkeypatch.setattr("torch.zeros", _no_gpu)
    app = App()
    with pytest.raises(NoUsableGpu, match='"model": "smoke"'):
        await app.setup(AppSetup())
    await app.unload()


def _no_gpu(*_: object, **__: object) -> None:
    raise RuntimeError("no CUDA-capable device is detected")


@pytest.mark.parametrize("option", [{"precision": "fp8"}, {"gpus": 2}, {"step_cache": "on"}])
async def test_setup_options_of_later_versions_say_so(option):
    app = App()
    with pytest.raises(NotAvailableYet, match="not available yet"):
        await app.setup(AppSetup(model="smoke", **option))


def test_the_representation_does_not_print_the_models(app: App):
    with contextlib.suppress(AttributeError):
        assert len(repr(app)) < 500
