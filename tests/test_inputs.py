"""The public contract of the inputs: names, defaults, bounds, order, cross rules, ways to give a file."""

import base64
import functools
import gc
import http.server
import json
import threading
from pathlib import Path

import pytest
from pydantic import ValidationError
from wan_animate import AppInput, AppOutput, AppSetup, PreviewInput, PreviewOutput

FIELDS = {  # SPEC §1, in its order
    "mode": "animation",
    "resolution_width": 1280,
    "resolution_height": 720,
    "fps": 30,
    "retarget_flag": False,
    "use_flux": False,
    "mask_iterations": 3,
    "mask_kernel_size": 7,
    "mask_w_subdivisions": 1,
    "mask_h_subdivisions": 1,
    "clip_len": 77,
    "refert_num": 1,
    "shift": 5.0,
    "sample_solver": "dpm++",
    "sampling_steps": 20,
    "guide_scale": 1.0,
    "input_prompt": "",
    "n_prompt": "",
    "seed": -1,
    "offload_model": True,
    "turbo": False,
    "relight": None,
    "subject": "largest",
    "start_s": 0,
    "duration_s": None,
    "keep_audio": True,
    "quality": 18,
    "preview": False,
}
SETUP = {
    "model": "wan2.2-animate-14b",
    "preprocessing": "auto",
    "precision": "auto",
    "gpus": 0,
    "compile": True,
    "attention": "auto",
    "loras": [],
    "step_cache": "off",
    "resume": True,
    "keep_intermediates": False,
}
REFUSED = [
    ("mode", "animate"),
    ("resolution_width", 255),
    ("resolution_height", 1921),
    ("fps", 0),
    ("fps", 0.5),
    ("fps", -2),
    ("fps", 61),
    ("fps", float("nan")),
    ("mask_iterations", 11),
    ("mask_kernel_size", 4),
    ("mask_kernel_size", 33),
    ("mask_w_subdivisions", 0),
    ("mask_h_subdivisions", 33),
    ("clip_len", 78),
    ("clip_len", 1),
    ("clip_len", 125),
    ("refert_num", 2),
    ("shift", 0.9),
    ("shift", 10.1),
    ("sample_solver", "euler"),
    ("sampling_steps", 0),
    ("sampling_steps", 101),
    ("guide_scale", 0.5),
    ("guide_scale", 11),
    ("seed", -2),
    ("seed", 2**32),
    ("subject", "tallest"),
    ("start_s", -1),
    ("duration_s", 0),
    ("quality", 52),
    ("mode", "x" * 10),
]
ALLOWED = [
    ("fps", -1),
    ("fps", 1),
    ("fps", 23.976),
    ("fps", 60),
    ("resolution_width", 256),
    ("resolution_height", 1920),
    ("clip_len", 5),
    ("clip_len", 121),
    ("refert_num", 5),
    ("seed", 0),
    ("seed", 2**32 - 1),
    ("mask_kernel_size", 1),
    ("mask_kernel_size", 31),
    ("mask_iterations", 0),
    ("duration_s", 0.1),
    ("quality", 0),
    ("quality", 51),
]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    paths = {"driving_video": tmp_path / "driving.mp4", "reference_image": tmp_path / "reference.png"}
    for path in paths.values():
        path.write_bytes(b"content is checked later, when it is decoded")
    return {name: str(path) for name, path in paths.items()}


def test_names_order_and_defaults_are_the_contract(files):
    schema = AppInput.model_json_schema()
    assert list(schema["properties"]) == ["driving_video", "reference_image", *FIELDS]
    assert schema["required"] == ["driving_video", "reference_image"]
    made = AppInput.model_validate(files)
    assert {name: getattr(made, name) for name in FIELDS} == FIELDS
    assert {name: getattr(AppSetup(), name) for name in SETUP} == SETUP
    assert list(AppSetup.model_json_schema()["properties"]) == list(SETUP)


def test_outputs_are_the_contract():
    expected = ["stage", "progress", "eta_s", "output_video", "preview_video", "seed", "num_frames", "fps"]
    expected += ["width", "height", "warnings", "timings", "output_meta"]
    assert list(AppOutput.model_json_schema()["properties"]) == expected
    assert {"preview_video", "contact_sheet", "output_meta"} <= set(PreviewOutput.model_fields)


def test_preview_shares_the_fields_that_shape_the_conditioning():
    shared = set(PreviewInput.model_fields) - {"driving_video", "reference_image"}
    assert shared < set(FIELDS)
    for name in shared:
        run, preview = (model.model_json_schema()["properties"][name] for model in (AppInput, PreviewInput))
        assert run == preview


def test_every_field_has_help_and_files_have_media_hints():
    for model in (AppSetup, AppInput, PreviewInput, AppOutput, PreviewOutput):
        for name, field in model.model_json_schema()["properties"].items():
            assert field.get("description"), f"{model.__name__}.{name} has no help"
    properties = AppInput.model_json_schema()["properties"]
    assert properties["driving_video"]["contentMediaType"] == "video/*"
    assert properties["reference_image"]["contentMediaType"] == "image/*"


def test_bounds_reach_the_schema():
    properties = AppInput.model_json_schema()["properties"]
    for name, field in properties.items():
        if field.get("type") in ("integer", "number") and "enum" not in field and name != "start_s":
            assert {"minimum", "maximum"} <= set(field), f"{name} shows no bounds: {field}"


@pytest.mark.parametrize(("name", "value"), REFUSED)
def test_out_of_range_is_refused_before_any_file_is_looked_at(name, value):
    with pytest.raises(ValidationError) as caught:
        AppInput.model_validate({"driving_video": "http://127.0.0.1:9/never-asked", name: value})
    assert {error["loc"] for error in caught.value.errors()} == {(name,)}


@pytest.mark.parametrize(("name", "value"), ALLOWED)
def test_the_edges_of_each_range_are_allowed(files, name, value):
    assert getattr(AppInput.model_validate(files | {name: value}), name) == value


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"use_flux": True}, "use_flux needs retarget_flag"),
        ({"mode": "replacement", "retarget_flag": True}, "animation only"),
        ({"mode": "replacement", "retarget_flag": True, "use_flux": True}, "animation only"),
        ({"relight": True}, "replacement only"),
        ({"refert_num": 5, "clip_len": 9}, "at least 13"),
    ],
)
def test_cross_rules(files, options, said):
    with pytest.raises(ValidationError, match=said):
        AppInput.model_validate(files | options)


def test_clip_len_names_the_neighbours(files):
    with pytest.raises(ValidationError, match="use 77 or 81 instead of 80"):
        AppInput.model_validate(files | {"clip_len": 80})


def test_unknown_fields_are_remembered(files):
    assert AppInput.model_validate(files | {"stepz": 3, "Mode": 1})._unknown == ("Mode", "stepz")


@pytest.mark.parametrize("empty", ["", None, {}])
def test_an_empty_file_field_is_a_missing_file(files, empty):
    for name in files:
        with pytest.raises(ValidationError, match="is missing: give a file") as caught:
            AppInput.model_validate(files | {name: empty})
        assert caught.value.errors()[0]["loc"] == (name,)
    with pytest.raises(ValidationError, match="is missing: give a file"):
        AppInput.model_validate({"driving_video": files["driving_video"]})


def test_a_path_that_is_not_there_is_named(files, tmp_path):
    with pytest.raises(ValidationError, match=r"is not there: .*nowhere\.mp4"):
        AppInput.model_validate(files | {"driving_video": str(tmp_path / "nowhere.mp4")})


@pytest.fixture
def server(tmp_path: Path):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "a.mp4").write_bytes(b"served")
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()
        thread.join()


def test_every_way_of_giving_a_file_works(files, server, tmp_path, monkeypatch):
    monkeypatch.setenv("FILE_CACHE_DIR", str(tmp_path / "cache"))
    data = "data:video/mp4;base64," + base64.b64encode(b"served").decode()
    local = files["driving_video"]
    url = f"{server}/a.mp4"
    for given in (url, {"uri": url}, {"path": url}, data, {"uri": data}):
        file = AppInput.model_validate(files | {"driving_video": given}).driving_video
        assert Path(str(file.path)).read_bytes() == b"served"
    for given in (local, {"path": local}, {"uri": local}, {"path": local, "content_type": "video/mp4"}):
        assert AppInput.model_validate(files | {"driving_video": given}).driving_video.path == local


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # the SDK leaves its socket open
def test_a_dead_address_is_one_sentence_without_its_signature(files, server, tmp_path, monkeypatch):
    monkeypatch.setenv("FILE_CACHE_DIR", str(tmp_path / "cache"))
    for dead in (f"{server}/gone.mp4?signature=secret", "http://127.0.0.1:9/x.mp4?signature=secret"):
        with pytest.raises(ValidationError) as caught:
            AppInput.model_validate(files | {"driving_video": dead})
        (error,) = caught.value.errors(include_input=False)
        assert error["msg"].startswith("could not be fetched from http://127.0.0.1")
        assert "secret" not in error["msg"]
        assert "\n" not in error["msg"]
    gc.collect()


def test_schemas_are_plain_json():
    for model in (AppSetup, AppInput, AppOutput, PreviewInput, PreviewOutput):
        assert json.loads(json.dumps(model.model_json_schema()))
