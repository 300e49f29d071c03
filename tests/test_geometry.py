"""Sizes follow the product's rule, pictures fill them, padding is Wan2.2's bit for bit."""

from fractions import Fraction
from math import log
from pathlib import Path

import cv2
import numpy as np
import pytest
from wan_animate.preprocess.geometry import fit_size, pad_to_fit, scale_and_crop
from wan_animate.wan.runtime.errors import InvalidInput

OWN = sorted((Path(__file__).parent / "data" / "resize").glob("padding_*.npz"))
SHARED = Path(__file__).parents[2] / "shared" / "golden" / "preprocess" / "resize"
INTERPOLATIONS = {"linear": cv2.INTER_LINEAR, "area": cv2.INTER_AREA}


@pytest.mark.parametrize(
    ("source", "asked", "size"),
    [
        ((1920, 1080), (1280, 720), (1280, 720)),
        ((16, 9), (832, 480), (832, 480)),
        ((640, 480), (1280, 720), (1088, 816)),
        ((500, 500), (1280, 720), (960, 960)),
        ((3, 2), (1280, 720), (1152, 768)),
        ((4, 5), (1280, 720), (832, 1040)),
        ((1080, 1920), (1280, 720), (720, 1280)),  # portrait: the asked size, turned
        ((854, 480), (1280, 720), (1280, 720)),  # within 3 % of 16:9
        ((1920, 1080), (1920, 1080), (1920, 1088)),  # 1080 is no multiple of 16
        ((1, 1), (1920, 1920), (1920, 1920)),
        ((4, 1), (1280, 720), (1920, 480)),
        ((1, 1), (256, 256), (256, 256)),
    ],
)
def test_size_rule(source, asked, size):
    assert fit_size(source, width=asked[0], height=asked[1]) == size


def test_size_depends_on_the_shape_only():
    assert fit_size((4000, 3000), width=1280, height=720) == fit_size((4, 3), width=1280, height=720)


def test_sizes_keep_their_bounds_whatever_the_source():
    rng = np.random.default_rng(0)
    for _ in range(150):
        asked = tuple(int(side) for side in rng.integers(256, 1921, 2))
        aspect = float(np.exp(rng.uniform(-log(4), log(4))))
        source = (round(1000 * aspect), 1000) if aspect > 1 else (1000, round(1000 / aspect))
        width, height = fit_size(source, width=asked[0], height=asked[1])
        ratio = Fraction(*source)
        same = any(abs(ratio / Fraction(*pair) - 1) <= Fraction(3, 100) for pair in (asked, asked[::-1]))
        assert width % 16 == 0 and height % 16 == 0
        if same:
            assert abs(width - asked[0]) <= 8 or abs(width - asked[1]) <= 8
        else:
            area = asked[0] * asked[1]
            assert 0.93 * area <= width * height <= area
            assert abs(log(width / height / ratio)) < 0.08  # little is left to crop


def test_nearest_shape_is_chosen_and_of_equals_the_larger():
    asked, source = (1000, 700), Fraction(7, 3)
    width, height = fit_size((7, 3), width=asked[0], height=asked[1])
    best = min(
        (max(Fraction(w, h) / source, source / Fraction(w, h)), -w * h)
        for w in range(16, 3000, 16)
        for h in range(16, 3000, 16)
        if 93 * asked[0] * asked[1] <= 100 * w * h <= 100 * asked[0] * asked[1]
    )
    assert (max(Fraction(width, height) / source, source / Fraction(width, height)), -width * height) == best


@pytest.mark.parametrize("source", [(4001, 1000), (1000, 4001), (0, 10)])
def test_extreme_shapes_are_refused(source):
    with pytest.raises(InvalidInput):
        fit_size(source, width=1280, height=720)


def test_size_too_small_for_the_shape_is_refused():
    with pytest.raises(InvalidInput, match="too small"):
        fit_size((3, 1), width=20, height=15)


@pytest.mark.parametrize("size", [(1280, 720), (640, 360), (97, 31), (64, 48), (200, 320)])
@pytest.mark.parametrize("target", [(64, 48), (48, 64), (320, 192)])
def test_filling_leaves_no_bar(size, target):
    image = np.full((size[1], size[0], 3), 200, np.uint8)
    filled = scale_and_crop(image, width=target[0], height=target[1])
    assert filled.shape == (target[1], target[0], 3)
    assert filled.dtype == np.uint8 and filled.flags.c_contiguous
    assert (filled == 200).all()


def test_crop_is_taken_from_the_middle():
    image = np.zeros((100, 300, 3), np.uint8)
    image[:, 100:200] = 255
    assert (scale_and_crop(image, width=100, height=100) == 255).all()


def test_circles_stay_circles():
    image = cv2.circle(np.zeros((480, 640, 3), np.uint8), (320, 240), 100, (255, 255, 255), -1)
    scaled = scale_and_crop(image, width=1088, height=816)[..., 0] > 127
    assert abs(int(scaled.any(0).sum()) - int(scaled.any(1).sum())) <= 1


def test_shrinking_averages():
    checker = np.tile(np.array([[0, 255], [255, 0]], np.uint8), (32, 32))[..., None].repeat(3, 2)
    assert abs(scale_and_crop(checker, width=16, height=16).astype(int) - 127.5).max() <= 1


def test_fitting_picture_comes_back_as_it_is():
    image = np.zeros((48, 64, 3), np.uint8)
    assert scale_and_crop(image, width=64, height=48) is image


@pytest.mark.parametrize("path", OWN + sorted(SHARED.glob("padding_*.npz")), ids=lambda path: path.stem)
def test_padding_equals_the_official_one(path):
    golden = np.load(path)
    before = golden["input"].copy()
    padded = pad_to_fit(
        before,
        width=int(golden["width"]),
        height=int(golden["height"]),
        interpolation=INTERPOLATIONS[str(golden["interpolation"])],
    )
    np.testing.assert_array_equal(padded, golden["output"])
    np.testing.assert_array_equal(before, golden["input"])


def test_own_golden_data_is_there():
    assert len(OWN) == 2


def test_padding_of_a_hair_line_keeps_one_pixel():
    padded = pad_to_fit(np.full((400, 2, 3), 255, np.uint8), width=32, height=32)
    assert padded.shape == (32, 32, 3)
    assert (padded.max((0, 2)) == 255).sum() == 1
