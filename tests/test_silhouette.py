"""Masks grow, coarsen and cut as officially, and survive where that crashes; packing loses nothing."""

import json
from pathlib import Path

import numpy as np
import pytest
from wan_animate.preprocess.packed import PackedMasks
from wan_animate.preprocess.silhouette import (
    MaskShaping,
    coarsen_mask,
    cut_background,
    grow_mask,
    shape_mask,
)

DATA = Path(__file__).parent / "data"
GOLDEN = Path(__file__).parents[2] / "shared" / "golden" / "preprocess"
CASES = sorted(DATA.glob("masks/*.npz")) + sorted(GOLDEN.glob("masks/*.npz"))


def person(height: int = 90, width: int = 120) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    body = ((rows - 55) / 30) ** 2 + ((columns - 60) / 18) ** 2 < 1
    head = (rows - 18) ** 2 + (columns - 60) ** 2 < 81
    return (body | head).astype(np.uint8)


def test_own_golden_data_is_there():
    assert len(list(DATA.glob("masks/*.npz"))) == 2


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_masks_equal_the_official_ones(path):
    case = np.load(path)
    mask = case["mask"]
    before = mask.copy()
    grid = {"columns": int(case["w_len"]), "rows": int(case["h_len"])}
    growth = {"iterations": int(case["iterations"]), "kernel_size": int(case["k"])}
    grown = grow_mask(mask, **growth)
    np.testing.assert_array_equal(grown, case["dilation"])
    np.testing.assert_array_equal(cut_background(case["image"], grown), case["body_img"])
    coarse = coarsen_mask(grown, **grid)
    np.testing.assert_array_equal(grown, case["dilation"])  # the reference writes into its argument
    np.testing.assert_array_equal(coarse, case["aug_mask"])
    np.testing.assert_array_equal(cut_background(case["image"], coarse), case["bg_image"])
    np.testing.assert_array_equal(shape_mask(mask, MaskShaping(**growth, **grid)), case["aug_mask"])
    np.testing.assert_array_equal(mask, before)


@pytest.mark.skipif(not GOLDEN.exists(), reason="the full golden set is not here")
def test_degenerate_masks_equal_the_official_ones_where_it_does_not_crash():
    cases = json.loads((GOLDEN / "masks" / "aug_mask_edge.json").read_text())["cases"]
    for case in cases:
        mask = np.array(case["mask"], np.uint8)
        coarse = coarsen_mask(mask, columns=case["w_len"], rows=case["h_len"])
        np.testing.assert_array_equal(coarse, case["out"] if case["ok"] else mask)


@pytest.mark.skipif(not GOLDEN.exists(), reason="the full golden set is not here")
@pytest.mark.parametrize("name", ["02_replace", "03_replace_w10", "04_replace_it0"])
def test_masks_of_whole_official_runs_are_equal(name):
    case = np.load(GOLDEN / "e2e" / f"{name}.npz")
    arguments = json.loads((GOLDEN / "e2e" / f"{name}.json").read_text())["kwargs"]
    shaping = MaskShaping(
        iterations=arguments["iterations"],
        kernel_size=arguments.get("k", 7),
        columns=arguments.get("w_len", 1),
        rows=arguments.get("h_len", 1),
    )
    for frame, expected in enumerate(case["src_mask"]):
        height, width = expected.shape[:2]
        tracked = np.zeros((height, width), bool)  # what the recorded run's tracker gave
        tracked[height // 4 : 3 * height // 4, width // 3 + frame % 5 : 2 * width // 3 + frame % 3] = True
        np.testing.assert_array_equal(shape_mask(tracked, shaping) * 255, expected[..., 0])


@pytest.mark.parametrize("grid", [(1, 1), (10, 20), (32, 32)])
def test_an_empty_mask_stays_empty(grid):
    empty = np.zeros((20, 20), np.uint8)
    assert not shape_mask(empty, MaskShaping(columns=grid[0], rows=grid[1])).any()
    image = np.full((20, 20, 3), 7, np.uint8)
    np.testing.assert_array_equal(cut_background(image, empty), image)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (3, 2)])
@pytest.mark.parametrize("grid", [(1, 1), (10, 20)])
def test_masks_smaller_than_the_grid_keep_their_pixels(shape, grid):
    mask = np.zeros((24, 24), np.uint8)
    mask[5 : 5 + shape[0], 7 : 7 + shape[1]] = 1
    np.testing.assert_array_equal(coarsen_mask(mask, columns=grid[0], rows=grid[1]), mask)


def test_a_full_mask_stays_full():
    full = np.ones((20, 30), np.uint8)
    assert shape_mask(full, MaskShaping(columns=4, rows=4)).all()


def test_no_iterations_keep_the_silhouette():
    mask = person()
    kept = shape_mask(mask, MaskShaping(iterations=0, columns=1, rows=1))
    np.testing.assert_array_equal(kept, mask)
    assert kept is not mask


def test_one_cell_is_the_bounding_box():
    mask = person()
    rows, columns = np.nonzero(mask)
    coarse = coarsen_mask(mask, columns=1, rows=1)
    assert coarse[rows.min() : rows.max(), columns.min() : columns.max()].all()
    assert coarse.sum() < mask.size


def test_any_value_but_zero_is_the_person():
    mask = person()
    for same in (mask.astype(bool), mask * np.uint8(255)):
        np.testing.assert_array_equal(shape_mask(same, MaskShaping()), shape_mask(mask, MaskShaping()))
        image = np.full((*mask.shape, 3), 200, np.uint8)
        np.testing.assert_array_equal(cut_background(image, same), image * (1 - mask)[..., None])


def test_packing_loses_nothing():
    generator = np.random.default_rng(0)
    masks = [person(90, 121), np.zeros((90, 121)), np.ones((90, 121)), generator.random((90, 121)) > 0.5]
    packed = PackedMasks.pack(mask for mask in masks)
    assert len(packed) == 4
    assert packed.size == (90, 121)
    for index, mask in enumerate(masks):
        np.testing.assert_array_equal(packed.mask(index), mask != 0)
        assert packed.mask(index).dtype == np.uint8


def test_a_packed_silhouette_takes_about_a_kilobyte():
    mask = np.kron(person(), np.ones((12, 12), np.uint8))  # 1080 × 1440
    assert PackedMasks.pack([mask]).num_bytes < 1500


def test_masks_of_different_sizes_do_not_go_together():
    with pytest.raises(ValueError, match="must all be"):
        PackedMasks.pack([person(), person(64, 64)])
    with pytest.raises(ValueError, match="at least one"):
        PackedMasks.pack([])
