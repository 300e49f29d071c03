"""Masks grow, coarsen and cut as officially, and survive where that crashes; packing loses nothing."""

from pathlib import Path

import numpy as np
import pytest
from wan_animate.preprocess.geometry import scale_and_crop
from wan_animate.preprocess.packed import PackedMasks
from wan_animate.preprocess.preprocessor import Preprocessor
from wan_animate.preprocess.silhouette import (
    MaskShaping,
    coarsen_mask,
    cut_background,
    shape_mask,
)
from wan_animate.wan.media.decode import open_video
from wan_animate.wan.runtime.job import Job

from .parity import prove, recordings
from .people import SAMPLES, backend

RECORDED = SAMPLES.parent / "golden" / "preprocess" / "masks"
needs_samples = pytest.mark.skipif(not SAMPLES.exists(), reason="the samples are not part of the project")


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


# --- edges


def odd_masks() -> dict[str, np.ndarray]:
    """Masks at which growth or a grid could fail."""
    masks = {name: np.zeros((60, 80), np.uint8) for name in ("pixel", "column", "row", "corner", "edge")}
    masks["pixel"][30, 40] = 1
    masks["column"][10:50, 40] = 1
    masks["row"][30, 10:70] = 1
    masks["corner"][0, 0] = masks["corner"][59, 79] = 1
    masks["edge"][20:60, 79] = 1
    return masks | {"empty": np.zeros((60, 80), np.uint8), "full": np.ones((60, 80), np.uint8)}


def uncovered(mask: np.ndarray, shaping: MaskShaping) -> float:
    """The share of a silhouette's pixels that would not be generated anew: a halo of the old person."""
    outside = (mask != 0) & (shape_mask(mask, shaping) == 0)
    return outside.sum() / max((mask != 0).sum(), 1)


@pytest.mark.parametrize("iterations", range(11))
@pytest.mark.parametrize("grid", [(1, 1), (4, 6), (32, 32)])
@pytest.mark.parametrize("kernel_size", [1, 7, 31])
def test_nothing_of_a_silhouette_is_left_uncovered(iterations, grid, kernel_size):
    shaping = MaskShaping(iterations=iterations, kernel_size=kernel_size, columns=grid[0], rows=grid[1])
    for name, mask in (odd_masks() | {"person": person()}).items():
        assert uncovered(mask, shaping) == 0, name
        assert shape_mask(mask, shaping).any() == mask.any(), name


@pytest.mark.parametrize("path", sorted(RECORDED.glob("*.npz")), ids=lambda path: path.stem)
def test_nothing_of_a_recorded_silhouette_is_left_uncovered(path: Path):
    with np.load(path) as recording:
        mask = recording["mask"]
    for iterations in range(11):
        for cells in (1, 10):
            assert uncovered(mask, MaskShaping(iterations=iterations, columns=cells, rows=cells)) == 0


@needs_samples
@pytest.mark.parametrize("name", ["two-people.mp4", "replace-video.mp4", "animate-video.mp4", "no-face.mp4"])
def test_nothing_of_a_samples_silhouette_is_left_uncovered(name: str):
    """Where the output shows it: at another size than the source's."""
    video = open_video(SAMPLES / name, fps=4, duration_s=1)
    tracks = Preprocessor(backend()).tracks(video, subject="largest", job=Job(), masks=True)
    assert tracks.masks is not None
    assert sum(tracks.masks.mask(index).any() for index in range(len(tracks.masks))) > 2
    for index in range(len(tracks.masks)):
        shown = scale_and_crop(tracks.masks.mask(index) * np.uint8(255), width=480, height=272) >= 128
        for iterations in range(11):
            assert uncovered(shown, MaskShaping(iterations=iterations, columns=8, rows=8)) == 0


def test_a_finer_grid_keeps_more_of_the_background():
    mask = person()
    kept = [
        1 - shape_mask(mask, MaskShaping(iterations=1, kernel_size=3, columns=cells, rows=cells)).mean()
        for cells in (1, 2, 4, 8, 16, 32)
    ]
    assert kept == sorted(kept)
    silhouette = 1 - mask.mean()
    assert kept[0] < 0.92 * silhouette  # one cell is the whole box
    assert kept[-1] > 0.96 * silhouette


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
