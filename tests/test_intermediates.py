"""What is kept of the conditioning, to look at: files of the official names, and edited pictures."""

from pathlib import Path

import numpy as np
import pytest
from wan_animate.preprocess.clip_source import AnimationSource, ReplacementSource
from wan_animate.preprocess.intermediates import write_intermediates
from wan_animate.preprocess.keypoints import NUM_KEYPOINTS
from wan_animate.preprocess.packed import PackedMasks
from wan_animate.wan.media.decode import open_video
from wan_animate.wan.media.probe import probe_video
from wan_animate.wan.media.still import load_image
from wan_animate.wan.runtime.job import Job

from .people import DRIVING, lone_tracks, officer

ANIMATION = {"src_pose.mp4", "src_face.mp4", "src_ref.png"}


@pytest.mark.parametrize("replaces", [False, True])
def test_every_condition_is_a_file_and_every_still_too(tmp_path: Path, replaces: bool):
    video, reference = open_video(DRIVING, duration_s=0.1), officer()[:512, :256].copy()
    tracks = lone_tracks(
        frame_size=video.size,
        poses=np.zeros((3, NUM_KEYPOINTS, 3), np.float32),
        face_boxes=np.full((3, 4), np.nan, np.float32),
    )
    masks = PackedMasks.pack(np.zeros(video.size, bool) for _ in range(3))
    source = (
        ReplacementSource(video, tracks, reference, masks=masks)
        if replaces
        else AnimationSource(video, tracks, reference)
    )
    still = np.full((20, 30, 3), 77, np.uint8)
    job = Job()
    with job.stage("preview", total=3) as stage:
        write_intermediates(tmp_path / "kept", source, stage=stage, stills={"flux_driving": still})
    kept = {path.name for path in (tmp_path / "kept").iterdir()}
    assert kept == ANIMATION | {"flux_driving.png"} | ({"src_bg.mp4", "src_mask.mp4"} if replaces else set())
    assert probe_video(tmp_path / "kept" / "src_pose.mp4").num_frames == 3
    np.testing.assert_array_equal(load_image(tmp_path / "kept" / "flux_driving.png"), still)
    np.testing.assert_array_equal(load_image(tmp_path / "kept" / "src_ref.png"), reference)
