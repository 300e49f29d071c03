"""The suite runs to its end at a tiny size, and its report says what is met, not met and missing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import app, floors, memory, report, run
from benchmarks.cases import NAMES
from benchmarks.measuring import Bench, Work
from benchmarks.random_models import TINY_TRANSFORMER, TINY_VAE, random_transformer, random_vae


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
    # Every case has a peer of the same run, and all but memory a floor.
    peers = {(row["case"], row["what"]) for row in written["rows"] if "diffusers" in row["what"]}
    assert {case for case, _ in peers} == {"step", "vae", "clip", "memory"}
    assert {
        ("clip", "diffusers, eager, 1 steps"),
        ("memory", "diffusers, resident"),
        ("memory", "diffusers, model offload"),
    } < peers
    for row in written["rows"]:
        if row["runs"] and row["case"] != "memory":
            assert row["floor_s"] > 0, row["what"]


def test_diffusers_pipeline_can_be_left_out(tmp_path: Path):
    out = tmp_path / "tiny.json"
    assert run.main(["memory", "--tiny", "--peer-steps", "--out", str(out)]) == 0
    assert [row["what"] for row in json.loads(out.read_text())["rows"]] == ["ours, everything streamed"]


def test_the_vaes_operations_are_those_of_diffusers_own_loop():
    vae = random_vae("cpu", torch.float32, **TINY_VAE)
    # The counter does not know the CPU's own attention, so both run as plain products.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as encoding:
            latents = vae.encode(torch.zeros(1, 3, 9, 32, 48)).latent_dist.mode()
        with FlopCounterMode(display=False) as decoding:
            vae.decode(latents)
    with torch.inference_mode():  # as the suite runs
        counted = floors.vae_flop(vae, frames=9, size=(32, 48))
    assert counted == (encoding.get_total_flops(), decoding.get_total_flops())
    assert min(counted) > 0


def test_a_steps_operations_are_those_of_its_blocks():
    model = random_transformer("cpu", torch.float32, **TINY_TRANSFORMER)
    tokens, width, text = 4 * 4 * 4, 32, 512  # three latent frames and the picture's, 4 × 4 tokens each
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counting:
        model.blocks[0](
            torch.zeros(1, tokens, width),
            torch.zeros(1, 257 + text, width),
            torch.zeros(1, 6, width),
            tuple(torch.zeros(1, tokens, 1, 16) for _ in range(2)),
        )
    padding = 2 * text * 2 * width**2 + 4 * tokens * text * width  # computed, and not needed
    adapters = 2 * 2 * tokens * 2 * width**2  # two of them, two products each
    work = floors.step_work(model, frames=9, size=(64, 64))
    assert work.flop == 4 * (counting.get_total_flops() - padding) + adapters
    assert work.moved > floors.weight_bytes(model.blocks)
    assert work.copied == 0
    streamed = floors.step_work(model, frames=9, size=(64, 64), streamed=True)
    assert streamed.copied == floors.weight_bytes(model.blocks)


def test_the_floor_is_what_takes_longest():
    bench = Bench(device=torch.device("cpu"))
    bench.ceilings = {"matrix_flop_s": 100.0, "memory_bytes_s": 10.0, "host_to_device_bytes_s": 1.0}
    assert bench.floor(Work(flop=500, moved=10)) == 5
    assert bench.floor(Work(flop=500, moved=80)) == 8
    assert bench.floor(Work(flop=500, moved=80, copied=9)) == 9


def test_a_failing_part_costs_no_other_its_numbers(capsys: pytest.CaptureFixture[str]):
    bench = Bench(device=torch.device("cpu"))

    def broken() -> None:
        raise RuntimeError("no such kernel")

    bench.attempt(broken)
    bench.attempt(lambda: None)
    assert bench.failed == 1
    assert "no such kernel" in capsys.readouterr().err


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


def test_a_gpu_can_be_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    row = {"case": "step", "what": "ours", "size": "1280x720"}
    write(tmp_path, "a.json", row | {"seconds": 12.0}, date="2026-01-01", gpu="NVIDIA H100 80GB HBM3")
    write(tmp_path, "b.json", row | {"seconds": 9.0}, date="2026-02-01", gpu="NVIDIA H200")
    assert report.Results(tmp_path).value("step", "ours", "1280x720").value == 9
    assert report.Results(tmp_path, gpu="h100").value("step", "ours", "1280x720").value == 12
    report.main(["--short", "--gpu", "H100"], folder=tmp_path)
    printed = capsys.readouterr().out
    assert "H200" not in printed
    assert "| step, bf16, 1280×720 | ≤ 9.7 s | 12 s | not met |" in printed


def test_the_readmes_tables_are_of_one_card_each_and_say_which(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    step = {"case": "step", "size": "1280x720"}
    clip = {"case": "clip", "size": "1280x720"}
    held = {"case": "memory", "size": "1280x720"}
    write(
        tmp_path,
        "a.json",
        step | {"what": "diffusers, eager", "seconds": 99.0},
        clip | {"what": "ours, streamed, 20 steps", "seconds": 197.0},
        gpu="NVIDIA H200",
        date="2026-01-01",
    )
    write(
        tmp_path,
        "b.json",
        step | {"what": "ours", "seconds": 9.0},
        clip | {"what": "diffusers, eager, 4 steps", "seconds": 60.0},
        clip | {"what": "diffusers, blocks compiled, 4 steps", "seconds": 56.0},
        clip | {"what": "ours, streamed, 4 steps", "seconds": 43.0},
        held | {"what": "diffusers, resident", "seconds": 20.0, "peak_gib": 57.04},
        held | {"what": "diffusers, model offload", "seconds": 50.0, "peak_gib": 41.0},
        held | {"what": "ours, everything streamed", "seconds": 20.0, "peak_gib": 11.26},
        gpu="NVIDIA H100",
        date="2026-02-01",
    )
    report.main(["--readme"], folder=tmp_path)
    printed = capsys.readouterr().out
    assert printed.startswith("On one NVIDIA H100 a run, 2026-02-01;")
    assert "| step at 1280×720 | – | – | **9 s** |" in printed  # the other card's 99 s are no peer
    assert "| whole clip at 1280×720, 4 steps, streamed | 60 s | 56 s | **43 s** |" in printed
    assert "| 1280×720 | 57 GiB | 41 GiB | **11.3 GiB** |" in printed
    newest, older = printed.split("On one NVIDIA H200 a run, 2026-01-01;")
    assert "20 steps" not in newest  # not measured there
    assert "| whole clip at 1280×720, 20 steps, streamed | – | – | **197 s** |" in older
    assert "99 s" not in older  # nothing of ours stands beside it
    report.main(["--readme", "--gpu", "H200"], folder=tmp_path)
    assert capsys.readouterr().out.startswith("On one NVIDIA H200")


def test_a_row_says_how_far_from_its_floor_it_is(tmp_path: Path):
    row = {"case": "step", "what": "ours", "size": "1280x720", "seconds": 9.0, "floor_s": 7.5}
    write(tmp_path, "a.json", row)
    assert "| step | 1280x720 | ours | 9 | 7.5 | 1.2 |" in report.row_table(report.Results(tmp_path))


def test_a_ratio_is_of_one_run(tmp_path: Path):
    row = {"case": "step", "size": "1280x720"}
    write(tmp_path, "a.json", row | {"what": "ours", "seconds": 10.0}, date="2026-02-01", gpu="another")
    write(
        tmp_path,
        "b.json",
        row | {"what": "ours", "seconds": 20.0},
        row | {"what": "ours, streamed", "seconds": 20.2},
        date="2026-01-01",
    )
    (target,) = (one for one in report.TARGETS if one.name == "streamed step, 1280×720")
    assert target.find(report.Results(tmp_path)).value == pytest.approx(1.01)


def test_a_finished_video_is_looked_at_by_decoding_it(tmp_path: Path):
    found = app.look_at(app.EXAMPLES / "driving.mp4", sheet=tmp_path / "sheet.png")
    assert found["frames_decoded"] == 90
    assert found["seconds"] == 3
    assert found["has_sound"]
    assert found["bytes"] == (app.EXAMPLES / "driving.mp4").stat().st_size
    assert 0 < (tmp_path / "sheet.png").stat().st_size < 4e6


def test_the_app_s_benchmark_can_still_choose_the_hub_s_folder():
    """The hub's library reads HF_HOME when it is imported: importing the benchmark must not import it."""
    check = "import benchmarks.app, sys; sys.exit('huggingface_hub' in sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True, cwd=Path(__file__).parents[1])


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
