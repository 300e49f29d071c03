"""The suite runs to its end at a tiny size, and its report says what is met, not met and missing."""

import json
from pathlib import Path

import pytest

from benchmarks import memory, report, run
from benchmarks.cases import NAMES


def write(
    folder: Path, name: str, *rows: dict, gpu: str = "a card", date: str = "2026-01-01T00:00:00"
) -> None:
    empty = {"spread": 0.0, "runs": 1, "peak_gib": None, "difference": None, "floor_s": None, "note": ""}
    content = {"gpu": gpu, "date": date, "settings": {}, "rows": [empty | row for row in rows]}
    (folder / name).write_text(json.dumps(content))


def test_every_case_runs_and_writes_its_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "tiny.json"
    assert run.main(["--tiny", "--out", str(out)]) == 0
    written = json.loads(out.read_text())
    assert {row["case"] for row in written["rows"]} == set(NAMES)
    assert all(row["seconds"] > 0 for row in written["rows"] if row["runs"])
    assert written["versions"]["torch"]
    assert written["ceilings"]["matrix_flop_s"] > 0
    errors = {
        row["what"]: row["difference"]
        for row in written["rows"]
        if row["case"] == "step" and row["difference"]
    }
    assert errors
    assert max(errors.values()) < 1e-5  # float32: every technique computes the same
    assert "ours, streamed" in capsys.readouterr().out


def test_a_tiny_run_is_no_result(tmp_path: Path):
    write(tmp_path, "a.json", {"case": "step", "what": "ours", "size": "1280x720", "seconds": 1.0})
    content = json.loads((tmp_path / "a.json").read_text())
    (tmp_path / "a.json").write_text(json.dumps(content | {"settings": {"tiny": True}}))
    assert report.Results(tmp_path).value("step", "ours", "1280x720") is None


def test_targets_are_met_not_met_or_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    step = {"case": "step", "size": "1280x720"}
    write(
        tmp_path,
        "a.json",
        step | {"what": "ours", "seconds": 9.6},
        step | {"what": "ours, streamed", "seconds": 9.7},
        {"case": "vae", "what": "clip: ours", "size": "1280x720", "seconds": 6.0},
    )
    (tmp_path / "b.json").write_text(json.dumps({"mb_a_minute": 4.0, "machine": "two cores", "rows": []}))
    report.main(["--short"], folder=tmp_path)
    lines = {line.split("|")[1].strip(): line for line in capsys.readouterr().out.splitlines()}
    assert "| met |" in lines["step, bf16, 1280×720"]
    assert "| met |" in lines["streamed step, 1280×720"]
    assert "| not met |" in lines["VAE, two encodes and one decode"]
    assert "| missing |" in lines["step, fp8, 832×480"]
    assert "4 MB a minute | met |" in lines["host memory over length"]


def test_the_newest_value_counts(tmp_path: Path):
    row = {"case": "step", "what": "ours", "size": "1280x720"}
    write(tmp_path, "z.json", row | {"seconds": 12.0}, date="2026-01-01")
    write(tmp_path, "a.json", row | {"seconds": 9.0}, date="2026-02-01", gpu="another")
    found = report.Results(tmp_path).value("step", "ours", "1280x720")
    assert found == report.Found(value=9.0, gpu="another", date="2026-02-01")


def test_the_committed_results_can_be_read(capsys: pytest.CaptureFixture[str]):
    report.main([])
    printed = capsys.readouterr().out
    assert all(target.name in printed for target in report.TARGETS)


def test_memory_over_length_still_runs(tmp_path: Path):
    driving = tmp_path / "a.mp4"
    memory.make_long_video(driving, minutes=1 / 60)
    row = memory.measure(driving)
    assert row["frames"] == 30
    assert row["output_seconds"] == 1
    assert row["peak_mb"] > 100
