"""The stance editor: a tiny pipeline, saved and fetched as the hub's would be, edits on the CPU."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from wan_animate.preprocess.full.flux import Edit, StanceEditor, open_editor
from wan_animate.wan.runtime.errors import Cancelled, ModelFilesBroken, NoUsableGpu
from wan_animate.wan.runtime.weights import REGISTRY, fetch

from .hub_server import Repository, serving
from .tiny_flux import save_tiny_flux, small_pictures

FLUX = REGISTRY["flux"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def _small_pictures():
    with small_pictures():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_flux(tmp_path_factory.mktemp("flux"))


@pytest.fixture(scope="module")
def hub(folder: Path):
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    files["flux1-kontext-dev.safetensors"] = b"the same weights in one file, which nobody needs" * 10
    with serving({FLUX.repository: Repository(files=files, token="hf_allowed")}) as server:
        yield server


@pytest.fixture(autouse=True)
def _nobody_is_logged_in(monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_TOKEN_PATH", "/nonexistent")
    monkeypatch.setattr("wan_animate.wan.runtime.weights.get_token", lambda: None)


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def edited(folder: Path, *prompts: str, seed: int = 3, **settings) -> list[np.ndarray]:
    """One picture, edited in one step as each prompt says."""
    editor = StanceEditor(folder, device=CPU, steps=1, **settings)
    edits = [Edit(picture=noise(90, 160), prompt=prompt) for prompt in prompts or ["Face forward."]]
    return editor.edit(edits, seed=seed, tick=lambda _: None)


@pytest.fixture(scope="module")
def whole(folder: Path) -> np.ndarray:
    return edited(folder)[0]


@pytest.mark.parametrize("token", [None, "hf_somebody_else"])
def test_without_access_the_sentence_names_licence_and_token(hub, tmp_path, token):
    with pytest.raises(ModelFilesBroken) as caught:
        fetch([FLUX], endpoint=hub.endpoint, cache_dir=tmp_path, token=token, pause_s=0)
    said = str(caught.value)
    assert "Non-Commercial License" in said
    assert "HF_TOKEN" in said
    assert f"https://huggingface.co/{FLUX.repository}" in said
    assert "\n" not in said


def test_a_fetched_folder_edits_pictures(hub, tmp_path, whole):
    fetched = fetch([FLUX], endpoint=hub.endpoint, cache_dir=tmp_path, token="hf_allowed", pause_s=0)
    assert not list(fetched["flux"].glob("*.safetensors"))
    assert np.array_equal(edited(fetched["flux"])[0], whole)


def test_an_edit_has_its_originals_size_and_follows_prompt_and_seed(folder, whole):
    assert (whole.shape, whole.dtype) == ((90, 160, 3), np.uint8)
    assert whole.std() > 0
    other_words, again = edited(folder, "Stand.", "Face forward.")
    assert np.array_equal(again, whole)
    assert not np.array_equal(other_words, whole)
    assert not np.array_equal(edited(folder, seed=4)[0], whole)


def test_streamed_networks_paint_the_same(folder, whole, caplog):
    caplog.set_level(logging.INFO, "wan_animate")
    assert np.array_equal(edited(folder, free=lambda _: 0)[0], whole)
    streamed = [
        record.getMessage().split(":")[0] for record in caplog.records if "streamed" in record.message
    ]
    assert streamed == ["text_encoder", "text_encoder_2", "vae", "transformer"]


def test_cancelling_between_two_steps_leaves_no_network(folder):
    told = []

    def tick(words: str) -> None:
        told.append(words)
        raise Cancelled("enough")

    edit = Edit(picture=noise(64, 64), prompt="Face forward.")
    with pytest.raises(Cancelled) as caught:
        StanceEditor(folder, device=CPU, steps=2).edit([edit, edit], seed=0, tick=tick)
    assert told == ["picture 1/2 step 1/2"]
    frames = [entry.frame.f_locals for entry in caught.traceback]  # whoever holds the traceback holds these
    networks = [value for names in frames for value in names.values() if isinstance(value, torch.nn.Module)]
    assert networks
    assert all(tensor.is_meta for network in networks for tensor in network.parameters())


def test_a_damaged_folder_is_one_sentence(tmp_path):
    broken = save_tiny_flux(tmp_path / "flux")
    weights = broken / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelFilesBroken, match=r"transformer.*fetch it anew"):
        edited(broken)


def test_without_a_gpu_it_is_refused_before_anything_is_fetched(monkeypatch):
    monkeypatch.setattr("wan_animate.preprocess.full.flux.usable_gpu", lambda: None)
    with pytest.raises(NoUsableGpu, match=r"use_flux needs a CUDA GPU.*set use_flux to false"):
        open_editor(on_progress=lambda _: pytest.fail("something is fetched"))
