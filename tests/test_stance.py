"""Retargeting as a request goes through it: the reference read first, both people edited, then the motion."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from wan_animate.preprocess.full.flux import Edit, StanceEditor, Tick
from wan_animate.preprocess.preprocessor import Preprocessor
from wan_animate.preprocess.retarget import stance_frame
from wan_animate.preprocess.stance import EDIT_SEED, Retargeting, room_warnings
from wan_animate.preprocess.stance_prompts import editing_prompts
from wan_animate.preprocess.tracks import Tracks
from wan_animate.wan.media.decode import SourceVideo, open_video
from wan_animate.wan.runtime.errors import Cancelled, NoPersonFound
from wan_animate.wan.runtime.job import Job

from .people import DRIVING, backend, officer, standing, wallpaper
from .tiny_flux import save_tiny_flux, small_pictures


@pytest.fixture(scope="module")
def video() -> SourceVideo:
    return open_video(DRIVING, duration_s=0.2)


@pytest.fixture(scope="module")
def tracks(video: SourceVideo) -> Tracks:
    return Preprocessor(backend()).tracks(video, subject="largest", job=Job())


class Idle(StanceEditor):
    """Gives every picture back as it came, and remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__(Path(), device=torch.device("cpu"), steps=2)
        self.asked: list[Edit] = []

    def edit(self, edits: Sequence[Edit], *, seed: int, tick: Tick) -> list[np.ndarray]:
        assert seed == EDIT_SEED
        self.asked += edits
        for number in range(len(edits) * self.steps):
            tick(str(number))
        return [edit.picture for edit in edits]


def retargeting(editor: StanceEditor | None = None) -> Retargeting:
    return Retargeting.of(
        officer(),
        preprocessor=Preprocessor(backend()),
        path=Path("officer.jpg"),
        editor=(lambda: editor) if editor else None,
    )


def test_a_reference_without_a_person_is_told_before_the_editor_is_fetched():
    with pytest.raises(NoPersonFound, match=r"no person .* in wall\.png.* or set retarget_flag to false"):
        Retargeting.of(
            wallpaper(),
            preprocessor=Preprocessor(backend()),
            path=Path("wall.png"),
            editor=lambda: pytest.fail("the editor is opened"),
        )


def test_the_motion_stands_where_the_reference_does(video, tracks):
    job, prepared = Job(), retargeting()
    prepared.announce(job, tracks.num_frames)
    retargeted = prepared.apply(video, tracks, job)
    assert set(job.timings) == {"retarget"}
    assert retargeted.poses.shape == tracks.poses.shape
    assert not retargeted.stills
    shoulders = retargeted.poses[:, 5:7, :2].mean(axis=1)
    np.testing.assert_allclose(np.median(shoulders, axis=0), prepared.body[5:7, :2].mean(axis=0), atol=2)
    assert any("upper arms" in sentence for sentence in job.warnings)


@pytest.mark.parametrize(("away", "expected"), [(0, 0), (1, 0), (30, 1)])
def test_leaving_the_picture_is_told(away: int, expected: int):
    poses = np.tile(standing(200, 200), (100, 1, 1))
    poses[:away, :, 0] += 300
    warnings = room_warnings(poses, (400, 400))
    assert len(warnings) == expected
    assert all(f"in {away} of 100 frames" in sentence for sentence in warnings)


def test_the_edited_pictures_are_the_measured_frame_and_the_reference(video, tracks):
    editor, job = Idle(), Job()
    prepared = retargeting(editor)
    prepared.announce(job, tracks.num_frames)
    retargeted = prepared.apply(video, tracks, job)
    frame = stance_frame(tracks.poses, prepared.body)
    asked = [edit.picture for edit in editor.asked]
    np.testing.assert_array_equal(asked[0], next(video.frames(frame, frame + 1)))
    np.testing.assert_array_equal(asked[1], officer())
    assert tuple(edit.prompt for edit in editor.asked) == editing_prompts(
        tracks.poses, driving_size=video.size, reference_size=officer().shape[:2]
    )
    assert dict(retargeted.stills) == {"flux_driving": asked[0], "flux_reference": asked[1]}
    assert set(job.timings) == {"flux", "retarget"}
    # Nothing was edited: what is measured is nearly what is measured without.
    unedited = retargeting().apply(video, tracks, Job())
    seen = (retargeted.poses[..., 2] >= 0.5)[:, :7]
    apart = np.linalg.norm((retargeted.poses - unedited.poses)[:, :7, :2], axis=-1)
    assert 0 < apart[seen].max() < 0.1 * officer().shape[1]


def test_an_edit_without_a_person_is_one_sentence(video, tracks, tmp_path):
    flux = StanceEditor(save_tiny_flux(tmp_path / "flux"), device=torch.device("cpu"), steps=1)
    with (
        small_pictures(),
        pytest.raises(NoPersonFound, match=r"FLUX.*another reference picture, or set use_flux to false"),
    ):
        retargeting(flux).apply(video, tracks, Job())


def test_cancelling_stops_the_editor_between_two_steps(video, tracks):
    editor = Idle()
    job = Job(cancel_requested=lambda: bool(editor.asked))
    with pytest.raises(Cancelled):
        retargeting(editor).apply(video, tracks, job)
    assert set(job.timings) == {"flux"}
