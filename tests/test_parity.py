"""What is recorded of the official code is met, and the report says so where it is not."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from .parity import OWN, PUBLISHED, prove
from .parity.__main__ import main
from .parity.findings import exact, relative_l2, relative_largest, within
from .parity.kinds import DIFFERENT, MUST_MATCH, find_fixtures

OWN_FIXTURES = find_fixtures([OWN])[0]
PUBLISHED_FIXTURES = find_fixtures([PUBLISHED])[0]
SIZE_LIMIT = 1_200_000  # bytes

DRAWING = "preprocess/draw/05_at_threshold_480x320.npz"
BOXES = "preprocess/face_bboxes.json"
RUNS = [fixture for fixture in PUBLISHED_FIXTURES if fixture.kind.name == "pipeline"]


def named(fixture):
    return fixture.name


def copied(name: str, folder: Path) -> Path:
    """A recording of our own set in a folder like its own, to be spoilt."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copy(OWN / name, path))


def changed(path: Path, **values: np.ndarray) -> None:
    """Rewrite an npz with other values."""
    np.savez(path, **(dict(np.load(path)) | values))


# What is recorded is met


@pytest.mark.parametrize("fixture", OWN_FIXTURES, ids=named)
def test_our_own_recordings_are_met(fixture):
    prove(fixture)


@pytest.mark.parametrize(
    "kind", [kind for kind in (*MUST_MATCH, *DIFFERENT) if not kind.slow], ids=lambda kind: kind.name
)
@pytest.mark.skipif(not PUBLISHED_FIXTURES, reason="the whole published set is not here")
def test_all_quick_recordings_are_met(kind):
    for fixture in PUBLISHED_FIXTURES:
        if fixture.kind == kind:
            prove(fixture)


@pytest.mark.parametrize("fixture", RUNS, ids=named)
def test_plans_of_all_recorded_runs_are_met(fixture):
    from .parity.pipeline import plans  # noqa: PLC0415 - torch and diffusers

    checks = [check for finding in plans(fixture.path) for check in finding.checks]
    assert checks
    assert all(check.ok for check in checks), checks


@pytest.mark.slow
@pytest.mark.parametrize("fixture", [f for f in PUBLISHED_FIXTURES if f.kind.slow], ids=named)
def test_all_slow_recordings_are_met(fixture):
    prove(fixture)


def test_our_own_set_has_every_kind_that_must_match_and_stays_small():
    assert {fixture.kind for fixture in OWN_FIXTURES} >= set(MUST_MATCH)
    assert sum(path.stat().st_size for path in OWN.rglob("*") if path.is_file()) < SIZE_LIMIT


# The report


def test_a_part_is_reported_line_by_line_with_its_counts(capsys):
    assert main([str(OWN / "preprocess" / "draw"), str(OWN / BOXES)]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [
        "preprocess/draw/00_plain_480x320",
        "preprocess/draw/04_out_of_frame_480x320",
        "preprocess/draw/05_at_threshold_480x320",
        "preprocess/draw/13_low_conf_832x624",
        *(f"preprocess/face_bboxes[{number}]" for number in range(5)),
    ]
    assert all("error 0 " in line and line.endswith(" s  ok") for line in lines[:4])
    assert sum("different by design: REFERENCE A3: " in line for line in lines) == 2
    assert last.startswith("7 passed, 0 failed, 2 different by design, 0 not covered yet; ")


def test_a_single_file_is_enough(capsys):
    canvas = OWN / "preprocess" / "retarget" / "01_full_body_diff_aspect_canvas.npz"
    assert main([str(canvas)]) == 0
    assert capsys.readouterr().out.count("preprocess/retarget/01_full_body_diff_aspect ") == 3


def test_the_two_float_losses_are_named_and_all_other_choices_of_frames_pass(capsys):
    table = PUBLISHED / "preprocess" / "frame_indices.json"
    whole = table.exists()
    assert main([str(table if whole else OWN / "preprocess" / "frame_indices.json")]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    losses = [line for line in lines if "different by design: REFERENCE A16" in line]
    assert ["110 at 23.976 frames/s" in losses[0], "58 at 25 frames/s" in losses[1]] == [True, True]
    assert last.startswith(f"{67 if whole else 4} passed, 0 failed, 2 different by design, 0 not covered")


def test_the_exit_status_is_the_verdict(tmp_path):
    changed(copied(DRAWING, tmp_path), canvas=np.zeros((480, 320, 3), np.uint8))
    for path, status in ((OWN / DRAWING, 0), (tmp_path, 1)):
        command = [sys.executable, "-m", "tests.parity", str(path)]
        assert (
            subprocess.run(command, cwd=OWN.parents[1], check=False, capture_output=True).returncode == status
        )


# It fails where it should


def test_one_pixel_off_fails(tmp_path, capsys):
    path = copied(DRAWING, tmp_path)
    canvas = np.load(path)["canvas"]
    canvas[100, 100, 1] ^= 1
    changed(path, canvas=canvas)
    assert main([str(tmp_path)]) == 1
    assert "FAILED: canvas 1 > 0" in capsys.readouterr().out


def test_one_case_off_fails_and_the_others_are_still_reported(tmp_path, capsys):
    path = copied(BOXES, tmp_path)
    table = json.loads(path.read_text())
    table["cases"][1]["out"][0] += 1
    path.write_text(json.dumps(table))
    assert main([str(path)]) == 1
    output = capsys.readouterr().out
    assert output.count("FAILED") == 1
    assert "2 passed, 1 failed, 2 different by design, 0 not covered yet" in output


@pytest.mark.parametrize(
    ("name", "array", "step"),
    [
        ("preprocess/pose_decode/01_border.npz", "keypoints", 2e-3),
        ("preprocess/pose_crop/01.npz", "net_input_stride2", 1e-5),
        ("preprocess/masks/17_border.npz", "aug_mask", 1),
        ("preprocess/resize/padding_05.npz", "output", 1),
        ("pipeline/schedules/trace_unipc_4_5.0.npz", "latents", 1e-5),
        ("pipeline/schedules/trace_dpmpp_4_5.0.npz", "timesteps", 1),
    ],
)
def test_more_than_the_tolerance_fails(tmp_path, name, array, step):
    path = copied(name, tmp_path)
    values = np.load(path)[array]
    values.flat[-1] += step
    changed(path, **{array: values})
    assert main([str(path)]) == 1


@pytest.mark.parametrize("spoilt", ["weights_check.json", "data.npz"])
def test_another_network_fails(tmp_path, spoilt):
    folder = OWN / "model" / "t5_a"
    for file in folder.iterdir():
        copied(str(file.relative_to(OWN)), tmp_path)
    path = tmp_path / "model" / "t5_a" / spoilt
    if spoilt == "data.npz":
        changed(path, out=np.load(path)["out"] * 1.0001)
    else:
        path.write_text(path.read_text().replace('"sum":', '"sum":1', 1))
    assert main([str(tmp_path)]) == 1


@pytest.mark.parametrize("name", ["preprocess/shadows/00.npz", "preprocess/masks/notes.json", "extra.bin"])
def test_an_unknown_kind_fails(tmp_path, capsys, name):
    copied(DRAWING, tmp_path)
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    assert main([str(tmp_path)]) == 1
    output = capsys.readouterr().out
    assert "FAILED: unknown kind" in output
    assert "1 passed, 1 failed" in output


@pytest.mark.parametrize("kind", ["preprocess/draw", "preprocess/face_bboxes"])
def test_a_kind_that_must_match_and_is_not_covered_fails(capsys, monkeypatch, kind):
    from .parity import preprocess  # noqa: PLC0415 - beside its use

    monkeypatch.delitem(preprocess.COMPARE, kind)
    assert main([str(OWN / DRAWING), str(OWN / BOXES)]) == 1
    output = capsys.readouterr().out
    assert "not covered yet: no code compares this kind" in output
    assert f"1 not covered yet ({kind}); " in output


def test_something_else_than_a_recording_fails_by_itself(tmp_path, capsys):
    copied(DRAWING, tmp_path)
    (tmp_path / "preprocess" / "draw" / "99_cut_off.npz").write_bytes((OWN / DRAWING).read_bytes()[:1000])
    assert main([str(tmp_path)]) == 1
    output = capsys.readouterr().out
    assert "FAILED: broke off: BadZipFile" in output
    assert "1 passed, 1 failed" in output


def test_nothing_to_compare_fails(tmp_path, capsys):
    assert main([str(tmp_path)]) == 1
    assert "no recordings here" in capsys.readouterr().out
    with pytest.raises(SystemExit) as exit_:
        main([str(tmp_path / "missing")])
    assert exit_.value.code == 2


def test_differing_on_purpose_is_no_excuse_for_anything(tmp_path, capsys):
    path = copied(BOXES, tmp_path)
    table = json.loads(path.read_text())
    crossed = next(case for case in table["cases"] if case["tag"] == "border_out_left")
    crossed["kp2ds"] = [[float("nan"), y] for _, y in crossed["kp2ds"]]  # then no box is inside the picture
    path.write_text(json.dumps(table))
    assert main([str(path)]) == 1
    assert "FAILED: a box inside the picture" in capsys.readouterr().out


# Measures


def test_other_shapes_and_lone_nans_are_infinitely_far_apart():
    for measure in (within, relative_largest, relative_l2):
        assert not measure("shape", np.zeros(3), np.ones(4), 1e9).ok
        assert not measure("nan", np.array([0, np.nan]), np.ones(2), 1e9).ok
    assert exact("nan on both sides", [1, np.nan], [1, np.nan]).ok
    assert not exact("nan on one side", [1, np.nan], [1, 2]).ok


def test_small_integers_do_not_wrap_around():
    assert exact("bytes", np.array([0], np.uint8), np.array([255], np.uint8)).error == 255
