"""Points from heatmaps equal the official decoding, and come out right for a peak that is known."""

from pathlib import Path

import numpy as np
import pytest
from wan_animate.preprocess.full.heatmap import decode_heatmaps

DATA = Path(__file__).parent / "data" / "pose"
GOLDEN = Path(__file__).parents[2] / "shared" / "golden" / "preprocess" / "pose_decode"
CASES = sorted(DATA.glob("decode_*.npz")) + sorted(GOLDEN.glob("*.npz"))


def decoded(case) -> np.ndarray:
    heatmaps = case["heatmap_int8"].astype(np.float32) / np.float32(case["heatmap_divisor"])
    return decode_heatmaps(heatmaps, centres=case["center"][None], sizes=case["scale"][None] * 200)


def peak(x: float, y: float, *, sigma: float = 2.0, height: float = 0.8) -> np.ndarray:
    """One map (1, 1, 64, 48) with a Gaussian at cell (x, y)."""
    down, across = np.mgrid[:64, :48]
    bump = height * np.exp(-((across - x) ** 2 + (down - y) ** 2) / (2 * sigma**2))
    return bump[None, None].astype(np.float32)


def test_own_golden_data_is_there():
    assert len(list(DATA.glob("decode_*.npz"))) == 4


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_points_equal_the_official_ones(path):
    case = np.load(path)
    points = decoded(case)
    assert points.dtype == np.float32
    np.testing.assert_allclose(points[..., :2], case["keypoints"][..., :2], atol=1e-3)
    np.testing.assert_array_equal(points[..., 2], case["keypoints"][..., 2])


def test_a_peak_between_the_cells_is_found_to_a_hundredth():
    points = decode_heatmaps(peak(20.3, 31.8), centres=np.array([[24, 32]]), sizes=np.array([[48, 64]]))
    np.testing.assert_allclose(points[0, 0, :2], (20.3, 31.8), atol=0.01)


def test_cells_are_mapped_to_the_box():
    points = decode_heatmaps(peak(12, 16), centres=np.array([[500, 300]]), sizes=np.array([[192, 256]]))
    np.testing.assert_allclose(points[0, 0], (500 - 96 + 12 * 4, 300 - 128 + 16 * 4, 0.8), atol=0.01)


@pytest.mark.parametrize("place", [(0, 30), (47, 30), (20, 0), (20, 63), (1, 1), (46, 62)])
def test_a_peak_at_the_edge_keeps_its_cell(place):
    points = decode_heatmaps(peak(*place), centres=np.array([[24, 32]]), sizes=np.array([[48, 64]]))
    np.testing.assert_allclose(points[0, 0, :2], place, atol=1e-5)


def test_people_of_one_batch_do_not_mix():
    maps = np.concatenate([peak(10.2, 20.1), peak(30.4, 40.7)])
    centres, sizes = np.array([[24, 32], [240, 320]]), np.array([[48, 64], [480, 640]])
    both = decode_heatmaps(maps, centres=centres, sizes=sizes)
    for index in range(2):
        one = slice(index, index + 1)
        alone = decode_heatmaps(maps[one], centres=centres[one], sizes=sizes[one])
        np.testing.assert_array_equal(both[one], alone)


def test_an_empty_map_gives_no_score_and_no_warning():
    points = decode_heatmaps(
        np.zeros((1, 2, 64, 48), np.float32), centres=np.array([[24, 32]]), sizes=np.array([[48, 64]])
    )
    assert np.isfinite(points).all()
    assert (points[..., 2] == 0).all()


def test_a_plateau_is_no_error():
    flat = np.full((1, 1, 64, 48), 0.5, np.float32)
    points = decode_heatmaps(flat, centres=np.array([[24, 32]]), sizes=np.array([[48, 64]]))
    assert np.isfinite(points).all()
