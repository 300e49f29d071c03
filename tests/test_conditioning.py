"""What the transformer is given of a clip: pixels, masks, latents, motion vectors."""

import numpy as np
import pytest
import torch
from wan_animate.wan.clips import plan_clips
from wan_animate.wan.conditioning import (
    MotionReader,
    encode_given,
    encode_pose,
    encode_reference,
    known_mask,
    to_frames,
    to_pixels,
)
from wan_animate.wan.conditions import Scene
from wan_animate.wan.model.smoke import build_smoke_models
from wan_animate.wan.model.vae import chunks_of

from .seeded import RUNS, GoldenRun, relative

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def models():
    return build_smoke_models()


def go_on() -> None:
    pass


def pictures(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.Generator(np.random.PCG64(seed)).integers(0, 256, shape, dtype=np.uint8)


def test_pixels_and_frames_are_inverse_for_every_level():
    levels = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    pixels = to_pixels(levels, CPU)
    assert pixels.shape == (1, 3, 1, 16, 16)
    assert pixels.min() == -1
    assert pixels.max() == 1
    np.testing.assert_array_equal(to_frames(pixels), levels)


def test_values_beyond_the_range_stay_within_a_byte():
    assert to_frames(torch.full((1, 3, 1, 1, 1), 1.5)).max() == 255
    assert to_frames(torch.full((1, 3, 1, 1, 1), -1.5)).min() == 0


def test_nothing_is_known_of_the_first_clip_of_an_animation():
    assert known_mask(None, known_frames=0, shape=(9, 16, 32)).abs().max() == 0


@pytest.mark.parametrize(("known_frames", "known_latents"), [(1, [[1, 1, 1, 1]]), (5, [[1, 1, 1, 1]] * 2)])
def test_the_tail_is_known_everywhere(known_frames, known_latents):
    mask = known_mask(None, known_frames=known_frames, shape=(9, 16, 32))
    assert mask.shape == (4, 3, 2, 4)
    expected = known_latents + [[0, 0, 0, 0]] * (3 - len(known_latents))
    assert mask[:, :, 0, 0].T.tolist() == expected
    assert (mask == mask[:, :, :1, :1]).all()


def test_a_person_is_unknown_and_every_eighth_pixel_counts():
    person = np.zeros((5, 16, 16), np.uint8)
    person[:, 8, 0] = 255  # the pixel that is looked at
    person[:, 1:8, 1:8] = 255  # pixels that are not
    person[2, 0, 8] = 51  # a grey value is a part
    mask = known_mask(person, known_frames=0, shape=(5, 16, 16))
    assert mask[:, :, 1, 0].abs().max() == 0
    assert mask[:, :, 0, 0].min() == 1
    torch.testing.assert_close(mask[:, 1, 0, 1], torch.tensor([1, 0.8, 1, 1]))  # frames 1 to 4
    np.testing.assert_array_equal(mask[:, 0, 0, 1], 1)  # frame 0, four times


def test_a_person_in_the_tail_is_known():
    person = np.full((9, 16, 16), 255, np.uint8)
    mask = known_mask(person, known_frames=5, shape=(9, 16, 16))
    assert mask[:, :2].min() == 1
    assert mask[:, 2].max() == 0


@pytest.mark.parametrize("overlap", [1, 5])
@pytest.mark.parametrize("replaces", [False, True])
def test_the_tail_comes_before_the_background(models, overlap, replaces):
    background = pictures(9, 32, 32, 3)
    tail = torch.rand(1, 3, overlap, 32, 32, generator=torch.Generator().manual_seed(0))
    scene = Scene(background=background, mask=np.zeros((9, 32, 32), np.uint8)) if replaces else None
    given = encode_given(models.vae, scene, tail, shape=(9, 32, 32), check=go_on)
    video = to_pixels(background, CPU) if replaces else torch.zeros(1, 3, 9, 32, 32)
    video[:, :, :overlap] = tail
    assert given.shape == (1, 20, 3, 4, 4)
    assert torch.equal(given[:, 4:], models.vae.encode(video[:, :, part] for part in chunks_of(9)))


def test_the_reference_is_known_altogether(models):
    reference = pictures(32, 48, 3)
    reference.setflags(write=False)
    given = encode_reference(models.vae, reference)
    assert given.shape == (1, 20, 1, 4, 6)
    assert given[:, :4].min() == 1


@pytest.mark.parametrize("stop_at", [1, 2, 3])
@pytest.mark.parametrize("replaces", [False, True])
def test_encoding_stops_before_the_next_chunk(models, stop_at, replaces):
    calls = []

    def check() -> None:
        calls.append(1)
        if len(calls) == stop_at:
            raise KeyboardInterrupt

    scene = (
        Scene(background=pictures(9, 32, 32, 3), mask=np.zeros((9, 32, 32), np.uint8)) if replaces else None
    )
    models.vae._grey.clear()
    with pytest.raises(KeyboardInterrupt):
        encode_given(models.vae, scene, None, shape=(9, 32, 32), check=check)
    assert len(calls) == stop_at
    calls.clear()
    with pytest.raises(KeyboardInterrupt):
        encode_pose(models.vae, pictures(9, 32, 32, 3), check=check)
    assert len(calls) == stop_at


@pytest.fixture
def encoded(models):
    """How many faces each call of the motion encoder was given."""
    counts = []
    hook = models.transformer.motion_encoder.register_forward_hook(
        lambda _module, inputs, _output: counts.append(len(inputs[0]))
    )
    yield counts
    hook.remove()


def test_a_frame_shown_twice_is_encoded_once(models, encoded):
    faces = pictures(3, 512, 512, 3)
    reader = MotionReader(models.transformer)
    vectors = reader.read(faces[[0, 1, 2, 1, 0]], (0, 1, 2, 1, 0), check=go_on)
    assert vectors.shape == (1, 5, 16)
    assert encoded == [3]
    assert torch.equal(vectors[:, :2], vectors[:, [4, 3]])
    again = reader.read(faces[[2, 1]], (2, 1), check=go_on)  # the next clip's overlap
    assert encoded == [3]
    assert torch.equal(again, vectors[:, [2, 1]])


def test_a_blank_face_is_encoded_once_a_request(models, encoded):
    reader = MotionReader(models.transformer)
    blank = np.zeros((2, 512, 512, 3), np.uint8)
    vectors = reader.read(blank, (0, 1), check=go_on)
    reader.read(blank, (2, 3), check=go_on)
    assert encoded == [1]
    assert torch.equal(vectors, reader.blank().expand(1, 2, -1))


def test_faces_are_encoded_in_batches_that_can_be_stopped(models, encoded):
    calls = []

    def check() -> None:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        MotionReader(models.transformer).read(pictures(9, 512, 512, 3), range(9), check=check)
    assert encoded == [8]


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_conditions_are_the_published_ones(path):
    run = GoldenRun.load(path)
    vae, sampling = run.models.vae, run.sampling
    reference = encode_reference(vae, run.reference)
    for clip in plan_clips(run.num_frames, clip_len=sampling.clip_len, overlap=sampling.overlap):
        conditions, recorded = run.conditions(clip.frames), run.clip(clip.index, "y")
        pose = encode_pose(vae, conditions.pose, check=go_on)
        assert relative(pose, run.clip(clip.index, "pose_latents")) < 1e-5
        given = torch.cat([reference, recorded[:, :, 1:]], dim=2)
        if clip.index == 0 or f"c{clip.index - 1}_decoded" in run.arrays:  # else the tail was not recorded
            tail = run.clip(clip.index - 1, "decoded")[:, :, -sampling.overlap :] if clip.index else None
            known = encode_given(vae, conditions.scene, tail, shape=conditions.pose.shape[:3], check=go_on)
            given = torch.cat([reference, known], dim=2)
        assert torch.equal(given[:, :4], recorded[:, :4]) or relative(given[:, :4], recorded[:, :4]) < 1e-6
        assert relative(given, recorded) < 1e-5
