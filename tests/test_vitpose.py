"""The pose network gets what it was trained on, from a real file, and its points come back to the picture."""

import json
import shutil
from contextlib import closing
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from wan_animate.preprocess.full.onnx_session import CUDA, OnnxNetwork
from wan_animate.preprocess.full.vitpose import MIN_SIDE, VitPose, crop_box, crop_person, whole_pixels
from wan_animate.wan.runtime.errors import ModelFilesBroken, SetupFailed

from .tiny_onnx import POSE_HEIGHT, POSE_WIDTH, point_offsets, write_fixed, write_pose_network

DATA = Path(__file__).parent / "data" / "pose"
GOLDEN = Path(__file__).parents[2] / "shared" / "golden" / "preprocess" / "pose_crop"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_pose_network(tmp_path_factory.mktemp("pose"))


@pytest.fixture(scope="module")
def pose_network(folder) -> VitPose:
    return VitPose(folder, device="cpu")


def spot(x: float, y: float, *, channel: int = 0, height: int = 360, width: int = 640) -> np.ndarray:
    """A picture with a soft spot in one colour."""
    down, across = np.mgrid[:height, :width]
    picture = np.zeros((height, width, 3), np.uint8)
    picture[..., channel] = 255 * np.exp(-((across - x) ** 2 + (down - y) ** 2) / (2 * 12**2))
    return picture


# --- geometry


def usable(box: np.ndarray) -> np.ndarray | None:
    """The official code takes the whole picture for a box without a score; here that is None."""
    return None if not np.isfinite(box).all() or box[4] <= 0 else box[:4]


@pytest.mark.parametrize("index", range(24))
def test_crop_geometry_equals_the_official_one(index):
    cases = np.load(DATA / "crop_boxes.npz")
    centre, size = crop_box(usable(cases["box"][index]), *cases["hw"][index].tolist())
    np.testing.assert_allclose(centre, cases["center"][index], rtol=1e-12)
    np.testing.assert_allclose(size, cases["scale"][index] * 200, rtol=1e-12)
    corners = [*whole_pixels(centre, size)[0], *whole_pixels(centre, size)[1]]
    assert corners == cases["corners"][index].tolist()


def test_crop_equals_the_official_one():
    case = np.load(DATA / "crop.npz")
    picture = case["image"]
    centre, size = crop_box(case["box"], *picture.shape[:2])
    planes = crop_person(picture, centre=centre, size=size)
    np.testing.assert_allclose(planes[:, ::8, ::8], case["net_input_stride8"], atol=1e-5)
    np.testing.assert_allclose(planes.sum(axis=(1, 2), dtype=np.float64), case["net_input_sum"], atol=0.1)


@pytest.mark.skipif(not GOLDEN.exists(), reason="the whole set of goldens is not here")
def test_all_crops_equal_the_official_ones():
    boxes = json.loads((GOLDEN / "boxes.json").read_text())["cases"]
    assert len(boxes) == len(np.load(DATA / "crop_boxes.npz")["hw"])
    paths = sorted(GOLDEN.glob("*.npz"))
    assert len(paths) == 6
    for path in paths:
        case = np.load(path)
        picture, box = case["image"], case["bbox"]
        centre, size = crop_box(usable(box) if len(box) else None, *picture.shape[:2])
        planes = crop_person(picture, centre=centre, size=size)
        np.testing.assert_allclose(planes[:, ::2, ::2], case["net_input_stride2"], atol=1e-5)


def test_beyond_the_picture_is_black():
    picture = np.full((50, 50, 3), 255, np.uint8)
    planes = crop_person(picture, centre=np.array([500.0, 25.0]), size=np.array([192.0, 256.0]))
    black = crop_person(np.zeros_like(picture), centre=np.array([25.0, 25.0]), size=np.array([192.0, 256.0]))
    np.testing.assert_array_equal(planes, black)


def test_a_box_too_small_to_see_anything_in_means_the_whole_picture():
    whole = crop_box(None, 360, 640)
    np.testing.assert_array_equal(crop_box(np.array([5, 5, 4 + MIN_SIDE, 300]), 360, 640), whole)


# --- the network


def test_points_come_back_to_the_picture(pose_network):
    box = np.array([200.0, 40.0, 340.0, 320.0])
    (pose,) = pose_network([(spot(250, 170), box)])
    _, size = crop_box(box, 360, 640)
    step = size[0] / POSE_WIDTH
    # Half a pixel between a crop's pixel and the picture's is the official geometry's own.
    expected = np.array([250, 170]) + point_offsets() * step - (step - 1) / 2
    assert pose.shape == (133, 3)
    assert pose.dtype == np.float32
    np.testing.assert_allclose(pose[:, :2], expected, atol=0.6)
    assert pose[:, 2].min() > 0.5


def test_the_network_sees_red_first(pose_network):
    both = spot(250, 170) + spot(300, 100, channel=2)  # a network fed BGR would find the blue one
    poses = list(pose_network([(spot(250, 170), None), (both, None)]))
    np.testing.assert_allclose(poses[1], poses[0], atol=1e-4)


@pytest.mark.parametrize("batch", [None, 1, 3])
def test_batches_change_nothing(tmp_path, pose_network, batch):
    pictures = [(spot(200 + 10 * index, 170), np.array([150.0, 40, 350, 320])) for index in range(10)]
    network = VitPose(write_pose_network(tmp_path / "other", batch=batch), device="cpu")
    alone = [next(pose_network([picture])) for picture in pictures]
    np.testing.assert_allclose(np.stack(list(network(pictures))), np.stack(alone), atol=1e-3)


def test_no_more_than_a_batch_is_read_ahead(pose_network):
    read = []

    def pictures():
        for index in range(100):
            read.append(index)
            yield spot(100, 100), None

    with closing(pose_network(pictures())) as poses:
        list(islice(poses, 3))
    assert len(read) == 8


def test_no_pictures_no_points(pose_network):
    assert list(pose_network([])) == []


# --- files and devices


def test_the_weights_are_in_a_file_of_their_own(folder, tmp_path):
    assert (folder / "end2end.data").stat().st_size > 50 * (folder / "end2end.onnx").stat().st_size
    shutil.copy(folder / "end2end.onnx", tmp_path)
    with pytest.raises(ModelFilesBroken, match=r"end2end\.onnx or the data file beside it"):
        VitPose(tmp_path, device="cpu")


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "end2end.onnx").write_bytes(b"not a network")
    with pytest.raises(ModelFilesBroken, match=r"end2end.onnx.*delete them and set up again"):
        VitPose(tmp_path, device="cpu")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ModelFilesBroken, match=r"end2end.onnx is missing"):
        VitPose(tmp_path, device="cpu")


def test_another_network_is_refused(tmp_path):
    shape = (1, 3, POSE_HEIGHT, POSE_WIDTH)
    file = write_fixed(tmp_path / "17.onnx", input_shape=shape, result=np.zeros((1, 17, 64, 48), np.float32))
    with pytest.raises(ModelFilesBroken, match="17 points instead of 133"):
        list(VitPose(file, device="cpu")([(spot(10, 10), None)]))
    other = write_fixed(tmp_path / "b.onnx", input_shape=(1, 3, 64, 64), result=np.zeros((1, 4), np.float32))
    with pytest.raises(ModelFilesBroken, match="it is another network"):
        VitPose(other, device="cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_a_gpu_that_cannot_be_used_is_an_error_with_cause_and_cure(folder, device, capfd):
    with pytest.raises(SetupFailed, match=r"CUDA part does not load \(lib.*install requirements.txt afresh"):
        VitPose(folder, device=device)
    assert capfd.readouterr().out == ""


@pytest.mark.gpu
def test_the_network_runs_on_the_gpu(folder, pose_network):
    network = OnnxNetwork(folder / "end2end.onnx", device="cuda")
    assert network._session.get_providers()[0] == CUDA
    pictures = [(spot(250, 170), None)] * 3
    np.testing.assert_allclose(
        list(VitPose(folder, device="cuda")(pictures)), list(pose_network(pictures)), atol=0.1
    )


def test_an_unknown_device_is_a_mistake(folder):
    with pytest.raises(ValueError, match="cpu, cuda"):
        VitPose(folder, device="tpu")
