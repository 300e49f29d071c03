"""Writing behind the engine: what is written, and what happens to its errors."""

import threading
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from wan_animate.production import _Behind
from wan_animate.wan.media.decode import open_video
from wan_animate.wan.media.encode import VideoWriter


def frames(count: int, level: int) -> np.ndarray:
    return np.full((count, 32, 32, 3), level, np.uint8)


def writer(path: Path) -> VideoWriter:
    return VideoWriter(path, width=32, height=32, fps=Fraction(10), quality=0)


def test_all_that_was_handed_over_is_written_in_order(tmp_path):
    with writer(tmp_path / "a.mp4") as out, _Behind(out) as behind:
        for level in (20, 120, 220):
            behind.write(frames(4, level))
        behind.finish()
    levels = [int(frame.mean()) for frame in open_video(tmp_path / "a.mp4", fps=-1).frames()]
    assert levels == pytest.approx([20] * 4 + [120] * 4 + [220] * 4, abs=3)
    assert not any(thread.name.startswith("write") for thread in threading.enumerate())


@pytest.mark.parametrize("last", [False, True])
def test_what_writing_raises_reaches_the_caller_and_leaves_nothing(tmp_path, last):
    with pytest.raises(ValueError, match="frames must be uint8"), writer(tmp_path / "a.mp4") as out:  # noqa: SIM117
        with _Behind(out) as behind:
            behind.write(frames(4, 20)[:, :16])
            behind.finish() if last else behind.write(frames(4, 20))
    assert list(tmp_path.iterdir()) == []


def test_an_error_elsewhere_waits_for_the_thread_and_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError, match="elsewhere"), writer(tmp_path / "a.mp4") as out:  # noqa: SIM117
        with _Behind(out) as behind:
            behind.write(frames(50, 20))
            raise RuntimeError("elsewhere")
    assert list(tmp_path.iterdir()) == []
    assert not any(thread.name.startswith("write") for thread in threading.enumerate())
