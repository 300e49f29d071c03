"""Masks grow, coarsen and cut as officially, and survive where that crashes; packing loses nothing."""

import numpy as np
import pytest
from wan_animate.preprocess.packed import PackedMasks
from wan_animate.preprocess.silhouette import (
    MaskShaping,
    coarsen_mask,
    cut_background,
    shape_mask,
)

from .parity import prove, recordings


def person(height: int = 90, width: int = 120) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    body = ((rows - 55) / 30) ** 2 + ((columns - 60) / 18) ** 2 < 1
    head = (rows - 18) ** 2 + (columns - 60) ** 2 < 81
    return (body | head).astype(np.uint8)


@pytest.mark.parametrize("recording", recordings("preprocess/masks"))
def test_masks_equal_the_official_ones(recording):
    prove(recording)


@pytest.mark.parametrize("recording", recordings("preprocess/masks/aug_mask_edge"))
def test_degenerate_masks_equal_the_official_ones_where_those_do_not_crash(recording):
    prove(recording)


def test_masks_and_pictures_are_not_written_to():
    mask, image = person(), np.full((90, 120, 3), 7, np.uint8)
    before = mask.copy()
    coarsen_mask(mask, columns=4, rows=4)  # the reference writes into its argument
    shape_mask(mask, MaskShaping())
    cut_background(image, mask)
    np.testing.assert_array_equal(mask, before)
    assert (image == 7).all()


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
