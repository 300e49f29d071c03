"""The shell: JSON on stdout, progress on stderr, one sentence and an exit code on anything bad."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from wan_animate import PreviewInput
from wan_animate.__main__ import EXIT_BAD_INPUT, EXIT_CANCELLED, EXIT_FAILED, main
from wan_animate.preprocess.embedded.models import FOLDER, ensure_models
from wan_animate.wan.media.probe import probe_video

EXAMPLES = Path(__file__).parents[1] / "examples"
SMOKE = {"model": "smoke"}
PREVIEW_FIELDS = set(PreviewInput.model_fields)
SMALL = {
    "reference_image": {"path": "reference.jpg"},
    "resolution_width": 256,
    "resolution_height": 256,
    "clip_len": 5,
    "sampling_steps": 1,
    "seed": 3,
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """input.json, setup.json and the media beside them, and a cache with nothing but the models."""
    users_cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    ensure_models(users_cache)
    models = tmp_path / "cache" / FOLDER
    models.parent.mkdir(parents=True)
    models.symlink_to(users_cache / FOLDER)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("driving.mp4", "reference.jpg"):
        (tmp_path / name).symlink_to(EXAMPLES / name)
    (tmp_path / "setup.json").write_text(json.dumps(SMOKE))
    write_input(tmp_path)
    return tmp_path


def write_input(folder: Path, **options: object) -> Path:
    path = folder / "input.json"
    path.write_text(json.dumps({"driving_video": "driving.mp4", "duration_s": 0.2, **SMALL, **options}))
    return path


def command(project: Path, *extra: str) -> list[str]:
    setup = str(project / "setup.json")
    return ["run", str(project / "input.json"), "--setup", setup, "--out", str(project / "out"), *extra]


def test_run_from_another_folder_writes_the_video_and_json(project: Path, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    done = subprocess.run(
        [sys.executable, "-m", "wan_animate", *command(project)],
        cwd=elsewhere,
        capture_output=True,
        text=True,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    made = Path(answer["output_video"]["path"])
    assert made == (project / "out" / "output.mp4").resolve()
    assert probe_video(made).num_frames == answer["num_frames"] == 6
    assert "clip.denoise" in done.stderr
    assert list(elsewhere.iterdir()) == []


def test_an_existing_result_is_not_written_over(project: Path, capsys):
    (project / "out").mkdir()
    (project / "out" / "output.mp4").write_bytes(b"precious")
    assert main(command(project)) == 0
    assert json.loads(capsys.readouterr().out)["output_video"]["filename"] == "output-2.mp4"
    assert (project / "out" / "output.mp4").read_bytes() == b"precious"


def test_preview_writes_a_video_a_sheet_and_the_intermediates(project: Path, capsys):
    (project / "setup.json").write_text(json.dumps(SMOKE | {"keep_intermediates": True}))
    kept = {k: v for k, v in json.loads((project / "input.json").read_text()).items() if k in PREVIEW_FIELDS}
    (project / "input.json").write_text(json.dumps(kept | {"mode": "replacement"}))
    assert main(["preview", *command(project)[1:]]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert Path(answer["preview_video"]["path"]).name == "preview.mp4"
    assert Path(answer["contact_sheet"]["path"]).name == "contact-sheet.png"
    folder = project / "out" / "intermediates"
    videos = {f"src_{name}.mp4" for name in ("pose", "face", "bg", "mask")}
    assert {path.name for path in folder.iterdir()} == videos | {"src_ref.png"}
    assert {probe_video(folder / name).num_frames for name in videos} == {6}
    assert probe_video(folder / "src_face.mp4").width == 512


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"clip_len": 6}, "clip_len must be 4n+1"),
        ({"driving_video": "nowhere.mp4"}, "driving_video is not there"),
        ({"driving_video": ""}, "driving_video is missing"),
        ({"sample_solver": "euler"}, "sample_solver: Input should be 'dpm++' or 'unipc'"),
        ({"use_flux": True}, "use_flux needs retarget_flag"),
        ({"driving_video": "setup.json"}, "setup.json"),
    ],
)
def test_bad_input_is_one_sentence(project: Path, capsys, options, said):
    write_input(project, **options)
    assert main(command(project)) == EXIT_BAD_INPUT
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err.splitlines()[-1]
    assert "Traceback" not in captured.err
    assert not (project / "out").exists()


@pytest.mark.parametrize("content", ["", "{", "[]", "3"])
def test_broken_json_is_one_sentence(project: Path, capsys, content):
    (project / "input.json").write_text(content)
    assert main(command(project)) == EXIT_BAD_INPUT
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert main(["run", str(project / "gone.json")]) == EXIT_BAD_INPUT
    assert "there is no file" in capsys.readouterr().err


def test_the_large_model_without_a_gpu_fails_with_the_way_out(project: Path, capsys, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (project / "setup.json").write_text("{}")
    assert main(command(project)) == EXIT_FAILED
    assert '{"model": "smoke"}' in capsys.readouterr().err


@pytest.fixture
def heeded_interrupts():
    """Where the tests run in the background, children would inherit that Ctrl-C is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeded_interrupts")
def test_ctrl_c_cancels_cleanly(project: Path):
    write_input(project, duration_s=2.0, sampling_steps=100)
    temporary = project / "tmp"
    temporary.mkdir()
    with subprocess.Popen(
        [sys.executable, "-m", "wan_animate", *command(project)],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(temporary)},
    ) as process:
        for line in process.stderr:
            if "clip.denoise" in line:
                break
        process.send_signal(signal.SIGINT)
        started = time.monotonic()
        out, err = process.communicate(timeout=30)
    assert process.returncode == EXIT_CANCELLED
    assert time.monotonic() - started < 10
    assert out == ""
    assert "cancelled" in err
    assert "Traceback" not in err
    assert not list(temporary.glob("wan-animate-*/*"))
    assert not (project / "out").exists()


def test_schema_prints_every_schema(capsys):
    assert main(["schema"]) == 0
    schemas = json.loads(capsys.readouterr().out)
    assert set(schemas) == {"setup", "run", "preview"}
    assert "driving_video" in schemas["run"]["input"]["properties"]
