"""SAM2 through transformers: published files load or are refused, videos stream through in bounded memory."""

import gc
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Sam2VideoInferenceSession
from wan_animate.preprocess.full import sam2
from wan_animate.preprocess.full.backend import FullBackend
from wan_animate.preprocess.full.mask_prompts import Guide
from wan_animate.preprocess.full.sam2 import BLOCK, Sam2Tracker
from wan_animate.preprocess.packed import PackedMasks
from wan_animate.preprocess.preprocessor import Preprocessor
from wan_animate.wan.media.decode import open_video
from wan_animate.wan.runtime.errors import Cancelled, ModelFilesBroken
from wan_animate.wan.runtime.job import Job, peak_memory_mb

from .clips import write_video
from .guides import guide_of, somebody, walking
from .people import DRIVING
from .test_detector import crossing
from .tiny_onnx import write_detector, write_pose_network
from .tiny_sam2 import random_network, red_network, save

SIZE = (180, 320)


@pytest.fixture(scope="module")
def red_folder(tmp_path_factory) -> Path:
    return save(red_network(), tmp_path_factory.mktemp("red"))


@pytest.fixture(scope="module")
def random_folder(tmp_path_factory) -> Path:
    return save(random_network(), tmp_path_factory.mktemp("random"))


@pytest.fixture(scope="module")
def red(red_folder) -> Sam2Tracker:
    return Sam2Tracker(red_folder, device="cpu")


@pytest.fixture(scope="module")
def arbitrary(random_folder) -> Sam2Tracker:
    """Random weights: its masks mean nothing, but everything it is told and remembers changes them."""
    return Sam2Tracker(random_folder, device="cpu")


def boxes_of(count: int, *, step: float = 1.0) -> np.ndarray:
    return walking(count, start=60, step=step, top=30, size=120)


def filmed(boxes: np.ndarray) -> Iterator[np.ndarray]:
    """A red box that walks through a grey room; frames are read-only, as decoded ones are."""
    for x0, y0, x1, y1 in np.rint(boxes).astype(int):
        frame = np.full((*SIZE, 3), 120, np.uint8)
        frame[y0:y1, x0:x1] = (230, 20, 20)
        frame.flags.writeable = False
        yield frame


def truth(box: np.ndarray) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    x0, y0, x1, y1 = np.rint(box).astype(int)
    mask[y0:y1, x0:x1] = True
    return mask


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / max((a | b).sum(), 1))


def masks_of(tracker: Sam2Tracker, guide: Guide) -> list[np.ndarray]:
    return list(tracker(filmed(guide.track.boxes), guide))


def sessions() -> int:
    gc.collect()
    return sum(type(thing) is Sam2VideoInferenceSession for thing in gc.get_objects())


# --- masks


def test_the_backend_masks_every_frame(red_folder):
    asked = []

    def folder() -> Path:
        asked.append(1)
        return red_folder

    backend = FullBackend(detector=Path("none"), pose=Path("none"), tracker=folder, device="cpu")
    assert not asked  # 0.9 GB that animation does not need
    boxes = boxes_of(40, step=2)
    guide = guide_of(boxes, size=SIZE)
    masks = list(
        backend.track_masks(
            filmed(boxes), track=guide.track, poses=guide.poses, present=guide.present, shots=guide.shots
        )
    )
    assert len(masks) == 40
    assert all(mask.shape == SIZE and mask.dtype == np.uint8 for mask in masks)
    assert min(overlap(mask > 0, truth(box)) for mask, box in zip(masks, boxes, strict=True)) > 0.8
    backend.release()
    assert sessions() == 0
    assert backend._tracker is None


def test_real_frames_of_any_size_pass_through(arbitrary):
    video = open_video(DRIVING, duration_s=0.2)
    box = np.array([[120, 40, 400, 528]], np.float32).repeat(video.num_frames, axis=0)
    with closing(video.frames()) as frames:
        masks = list(arbitrary(frames, guide_of(box, size=video.size)))
    assert [mask.shape for mask in masks] == [video.size] * video.num_frames
    assert masks[0].max() == 1


def test_no_frames_no_masks(red_folder):
    guide = guide_of(boxes_of(1), size=SIZE)
    backend = FullBackend(detector=Path("none"), pose=Path("none"), tracker=lambda: red_folder, device="cpu")
    empty = backend.track_masks(
        [], track=guide.track, poses=guide.poses, present=guide.present, shots=guide.shots
    )
    assert list(empty) == []


def test_where_the_person_is_not_the_mask_is_empty(red):
    """Although the network would find it: the red thing is in every frame."""
    present = np.ones(30, bool)
    present[[*range(4), *range(12, 20), 25, 29]] = False
    masks = masks_of(red, guide_of(boxes_of(30), size=SIZE, present=present))
    tracked = present.copy()
    tracked[25] = True  # a moment, through which the session lasts
    np.testing.assert_array_equal([mask.any() for mask in masks], tracked)
    nobody = guide_of(boxes_of(3), size=SIZE, present=np.zeros(3, bool))
    assert not any(mask.any() for mask in masks_of(red, nobody))


def test_a_session_ends_with_its_shot(arbitrary):
    """What came before a cut, or before a long absence, changes nothing behind it."""
    boxes = boxes_of(12)
    guide = guide_of(boxes, size=SIZE, shots=np.repeat([0, 1], 6))
    alone = guide_of(boxes[6:], size=SIZE)
    np.testing.assert_array_equal(masks_of(arbitrary, guide)[6:], masks_of(arbitrary, alone))
    without_cut = masks_of(arbitrary, guide_of(boxes, size=SIZE))[6:]
    assert any((a != b).any() for a, b in zip(without_cut, masks_of(arbitrary, alone), strict=True))


def test_the_same_twice(arbitrary):
    guide = guide_of(boxes_of(6), size=SIZE)
    np.testing.assert_array_equal(masks_of(arbitrary, guide), masks_of(arbitrary, guide))


def test_the_network_hears_of_others(arbitrary):
    boxes = boxes_of(2)
    alone = masks_of(arbitrary, guide_of(boxes, size=SIZE))
    beside = guide_of(boxes, size=SIZE, others=[somebody(boxes + np.array([70, 0, 70, 0], np.float32))])
    assert (masks_of(arbitrary, beside)[0] != alone[0]).any()


# --- the whole of pass 1


@pytest.fixture(scope="module")
def full(tmp_path_factory, red_folder) -> FullBackend:
    """A detector that finds coloured things, poses at white spots, masks of what is red."""
    folder = tmp_path_factory.mktemp("full")
    return FullBackend(
        detector=write_detector(folder / "yolo.onnx"),
        pose=write_pose_network(folder),
        tracker=lambda: red_folder,
        device="cpu",
    )


def test_pass_one_ends_with_the_persons_masks(full, tmp_path):
    """The one in red walks in front of the one in blue."""
    file = write_video(tmp_path / "crossing.mp4", list(crossing()))
    tracks = Preprocessor(full).tracks(open_video(file), subject="largest", job=Job(), masks=True)
    assert tracks.masks is not None
    for index in range(40):
        at = index * 440 // 39
        mask = tracks.masks.mask(index) > 0
        whole = np.zeros((360, 640), bool)
        whole[60:340, 40 + at : 140 + at] = True
        assert overlap(mask, whole) > 0.65, index  # a mask's pixel is 20 × 11 here
        assert mask[70:330, 50 + at : 130 + at].mean() > 0.95, index
    assert not [sentence for sentence in tracks.warnings if "mask" in sentence]
    full.release()


def test_a_cancelled_request_stops_and_frees_the_session(full, tmp_path):
    file = write_video(tmp_path / "crossing.mp4", list(crossing()))
    reached = []
    job = Job(
        cancel_requested=lambda: len(reached) >= 3,
        on_progress=lambda progress: reached.append(1) if progress.stage == "mask" else None,
    )
    with pytest.raises(Cancelled):
        Preprocessor(full).tracks(open_video(file), subject="largest", job=job, masks=True)
    assert len(reached) <= 4
    assert sessions() == 0
    full.release()


def test_bfloat16_gives_the_same_masks(arbitrary, red, monkeypatch):
    """As on a GPU, where autocast is on: here it is the CPU's."""
    guide = guide_of(boxes_of(BLOCK + 4), size=SIZE)
    exact = {tracker: masks_of(tracker, guide) for tracker in (red, arbitrary)}
    monkeypatch.setattr(sam2._Memory, "_precision", lambda _: torch.autocast("cpu", dtype=torch.bfloat16))
    rounded = {tracker: masks_of(tracker, guide) for tracker in (red, arbitrary)}
    pairs = zip(exact[red], rounded[red], strict=True)
    assert min(overlap(a > 0, b > 0) for a, b in pairs) > 0.95
    assert any((a != b).any() for a, b in zip(exact[arbitrary], rounded[arbitrary], strict=True))  # it was on


# --- memory of what was


def blurred_but(frame: int, guide: Guide) -> Guide:
    """With joints worth a click in one frame only."""
    poses = guide.poses.copy()
    poses[..., 2] = 0.4
    poses[frame] = guide.poses[frame]
    return replace(guide, poses=poses)


def test_streaming_equals_the_library_with_the_whole_video_in_memory(arbitrary):
    """One key frame, backwards from it, then forwards over two blocks: transformers' own loop, to the bit."""
    count, told = BLOCK + 12, 5
    guide = blurred_but(told, guide_of(boxes_of(count), size=SIZE))
    ours = masks_of(arbitrary, guide)

    processor, network = arbitrary._processor, arbitrary._network
    frames = [frame.copy() for frame in filmed(guide.track.boxes)]
    inputs = processor(images=frames, return_tensors="pt")["pixel_values"]
    session = Sam2VideoInferenceSession(
        video=inputs, video_height=SIZE[0], video_width=SIZE[1], dtype=torch.float32
    )
    prompt = guide.prompt(told)
    processor.add_inputs_to_inference_session(
        session,
        frame_idx=told,
        obj_ids=1,
        input_points=[[prompt.points.tolist()]],
        input_labels=[[prompt.labels.tolist()]],
        input_boxes=[[prompt.box.tolist()]],
    )
    logits = {told: network(session, frame_idx=told).pred_masks}
    for reverse in (True, False):
        for output in network.propagate_in_video_iterator(session, start_frame_idx=told, reverse=reverse):
            logits[output.frame_idx] = output.pred_masks
    for index, mask in enumerate(ours):
        (theirs,) = processor.post_process_masks([logits[index]], original_sizes=[list(SIZE)])
        np.testing.assert_array_equal(mask, theirs[0, 0].numpy())


def test_forgetting_changes_nothing(arbitrary, monkeypatch):
    """Over three blocks with a key frame each: the network does not look back further than is kept."""
    guide = guide_of(boxes_of(2 * BLOCK + 8, step=0.5), size=SIZE)
    kept = masks_of(arbitrary, guide)
    monkeypatch.setattr(sam2._Memory, "_forget", lambda *_, **__: None)
    np.testing.assert_array_equal(kept, masks_of(arbitrary, guide))


def test_memory_does_not_grow(arbitrary, monkeypatch):
    held = []
    forget = sam2._Memory._forget

    def counted(memory: sam2._Memory, *, before: int) -> None:
        forget(memory, before=before)
        session = memory._session
        stores = [*session.output_dict_per_obj[0].values(), session.point_inputs_per_obj[0]]
        stores += [session.frames_tracked_per_obj[0], session.processed_frames or {}]
        held.append(sum(map(len, stores)))

    monkeypatch.setattr(sam2._Memory, "_forget", counted)
    count = 4 * BLOCK
    masks_of(arbitrary, guide_of(boxes_of(count, step=0.2), size=SIZE))
    assert max(held) < 2 * (BLOCK + 16) + 8  # while the first block is tracked from its middle
    assert max(held[count // 2 :]) < 2 * (16 + 1) + 8


def test_no_more_than_a_block_is_read_ahead(red):
    boxes, taken = boxes_of(3 * BLOCK, step=0.5), []

    def counted() -> Iterator[np.ndarray]:
        for frame in filmed(boxes):
            taken.append(1)
            yield frame

    with closing(red(counted(), guide_of(boxes, size=SIZE))) as masks:
        for number, _ in enumerate(masks, 1):
            assert len(taken) <= max(BLOCK, number)


def test_closing_frees_the_session(red):
    masks = red(filmed(boxes_of(60)), guide_of(boxes_of(60), size=SIZE))
    for _ in range(40):
        next(masks)
    assert sessions() == 1
    masks.close()
    assert sessions() == 0


def borders_of(tracker: Sam2Tracker, count: int) -> tuple[list[np.ndarray], float, float]:
    """Masks at blocks' borders, the least overlap with the frame before, and with the truth anywhere."""
    boxes = boxes_of(count, step=100 / count)
    edges, before, worst_step, worst = [], None, 1.0, 1.0
    for index, mask in enumerate(tracker(filmed(boxes), guide_of(boxes, size=SIZE))):
        if index % BLOCK == 0 and before is not None:
            worst_step = min(worst_step, overlap(before > 0, mask > 0))
            edges.append(mask)
        worst = min(worst, overlap(mask > 0, truth(boxes[index])))
        before = mask
    return edges, worst_step, worst


def test_blocks_have_no_borders(red):
    edges, worst_step, worst = borders_of(red, 5 * BLOCK + 2)
    assert len(edges) == 5
    assert worst_step >= 0.95
    assert worst > 0.75  # a mask's pixel is 2.5 wide and 1.4 high here


@pytest.mark.slow
def test_a_video_of_2000_frames(red):
    edges, worst_step, worst = borders_of(red, 2000)
    assert len(edges) == 62
    assert worst_step >= 0.95
    assert worst > 0.75


@pytest.mark.slow
def test_a_minute_of_masks_adds_less_than_10_mb(red):
    """The process's peak; the third minute against the second, when everything has its room."""
    boxes = boxes_of(3 * 1800, step=0.02)
    peaks = []

    def counted() -> Iterator[np.ndarray]:
        with closing(red(filmed(boxes), guide_of(boxes, size=SIZE))) as masks:
            for index, mask in enumerate(masks, 1):
                yield mask
                if index % 1800 == 0:
                    peaks.append(peak_memory_mb())

    PackedMasks.pack(counted())
    assert peaks[2] - peaks[1] < 10


# --- files


def test_a_tensor_that_is_missing_is_named(random_folder, tmp_path):
    folder = shutil.copytree(random_folder, tmp_path / "sam2")
    tensors = load_file(folder / "model.safetensors")
    del tensors["memory_encoder.projection.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelFilesBroken, match=r"lacks 1 tensors .* such as memory_encoder\.projection"):
        Sam2Tracker(folder, device="cpu")


def test_another_size_is_refused(random_folder, tmp_path):
    folder = shutil.copytree(random_folder, tmp_path / "sam2")
    config = json.loads((folder / "config.json").read_text())
    config["memory_encoder_hidden_size"] = 64
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelFilesBroken):
        Sam2Tracker(folder, device="cpu")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "preprocessor_config.json"])
@pytest.mark.parametrize("harm", ["gone", "cut"])
def test_missing_and_truncated_files_are_one_sentence(random_folder, tmp_path, name, harm):
    folder = shutil.copytree(random_folder, tmp_path / "sam2")
    if harm == "gone":
        (folder / name).unlink()
    else:
        (folder / name).write_bytes((folder / name).read_bytes()[:100])
    with pytest.raises(ModelFilesBroken) as caught:
        Sam2Tracker(folder, device="cpu")
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


# --- the real size


@pytest.mark.gpu
def test_the_real_size_runs_on_a_gpu_in_bounded_memory(tmp_path):
    """Random weights at facebook/sam2-hiera-large's size cost what real ones do."""
    from transformers import Sam2HieraDetConfig, Sam2VideoConfig, Sam2VideoModel, Sam2VisionConfig  # noqa: PLC0415

    backbone = Sam2HieraDetConfig(
        hidden_size=144,
        num_attention_heads=2,
        blocks_per_stage=[2, 6, 36, 4],
        embed_dim_per_stage=[144, 288, 576, 1152],
        num_attention_heads_per_stage=[2, 4, 8, 16],
        window_size_per_stage=[8, 4, 16, 8],
        global_attention_blocks=[23, 33, 43],
    )
    vision = Sam2VisionConfig(backbone_config=backbone, backbone_channel_list=[1152, 576, 288, 144])
    network = Sam2VideoModel(Sam2VideoConfig(vision_config=vision)).eval()
    with torch.no_grad():
        network.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(5.0)
    folder = save(network, tmp_path / "large", side=1024)
    del network
    tracker = Sam2Tracker(folder, device="cuda:0")
    peaks, seconds = [], []
    for count in (2 * BLOCK, 4 * BLOCK):
        torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        assert len(masks_of(tracker, guide_of(boxes_of(count, step=0.2), size=SIZE))) == count
        seconds.append((time.perf_counter() - start) / count)
        peaks.append(torch.cuda.max_memory_allocated() / 1e9)
    print(f"SAM2 Hiera-L: {1000 * seconds[-1]:.0f} ms a frame, {peaks[-1]:.2f} GB")  # noqa: T201 - for -s
    assert peaks[1] < peaks[0] + 0.05
    assert peaks[1] < 4
