"""The engine from setup to LoRAs by request: what is on is really in the numbers, however blocks run."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.utils import close_session
from safetensors.torch import save_file
from torch._dynamo.testing import CompileCounter
from wan_animate.wan import engine as engine_module
from wan_animate.wan.engine import Engine, EngineSetup, open_engine
from wan_animate.wan.model.lora import LoraSwitch
from wan_animate.wan.model.lora_sources import LoraSource, fetch_lora
from wan_animate.wan.model.models import Models
from wan_animate.wan.model.smoke import build_smoke_models, tiny_lora
from wan_animate.wan.runtime.errors import InvalidInput, ModelFilesBroken, SetupFailed
from wan_animate.wan.runtime.weights import REGISTRY, fetch
from wan_animate.wan.speed import apply
from wan_animate.wan.speed.apply import apply_plan
from wan_animate.wan.speed.plan import Load, Plan

from .hub_server import Repository, serving

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = Load(width=64, height=64, frames=5)


def plan(transformer: str = "resident", encoders: str = "resident", *, compiled: bool = False) -> Plan:
    return Plan(
        attention="auto", compiled=compiled, transformer=transformer, encoders=encoders, peak_bytes=0.0
    )


def step(models: Models) -> torch.Tensor:
    """One step of the transformer on fixed inputs."""
    generator = torch.Generator().manual_seed(0)
    network = models.transformer

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    with torch.inference_mode():
        clip = network.prepare(
            given=random(1, 20, 3, 4, 4),
            pose=random(1, 16, 2, 4, 4),
            motion=random(1, 5, 16),
            context=network.embed_context(random(1, 512, 32), random(1, 257, 32)),
        )
        return network.step(random(1, 16, 3, 4, 4), 437, clip)


def with_merged(presets: Sequence[str]) -> torch.Tensor:
    """What the plain network gives with the LoRAs' products added to its weights."""
    models = build_smoke_models()
    network = models.transformer
    shapes = LoraSwitch(network, device="cpu").shapes
    for name in presets:
        for path, branch in tiny_lora(name, shapes=shapes).branches.items():
            network.get_parameter(f"{path}.weight").data += branch.scale * branch.up @ branch.down
    return step(models)


def relative(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("where", ["resident", "streamed"])
@pytest.mark.parametrize("presets", [("turbo",), ("turbo", "relighting")])
def test_a_request_s_loras_are_in_the_numbers_and_gone_after_it(where: str, presets: tuple[str, ...]):
    engine = Engine(apply_plan(build_smoke_models(), plan(where)), is_smoke=True)
    before = step(engine.models)
    engine.fetch_presets(presets)
    for _ in range(2):
        engine.make_ready(SMALL, presets=presets)
        changed = step(engine.models)
        assert relative(changed, with_merged(presets)) < 1e-5
        assert relative(changed, before) > 1e-2
        engine.make_ready(SMALL, presets=())
        assert torch.equal(step(engine.models), before)


def test_streamed_blocks_compile_one_graph_for_each_state(monkeypatch):
    torch._dynamo.reset()
    counter = CompileCounter()
    monkeypatch.setattr(apply, "compile_blocks", partial(apply.compile_blocks, backend=counter))
    engine = Engine(apply_plan(build_smoke_models(), plan("streamed", compiled=True)), is_smoke=True)
    engine.fetch_presets(("turbo",))
    graphs = []
    for presets in ((), ("turbo",), (), ("turbo",)):
        engine.make_ready(SMALL, presets=presets)
        assert relative(step(engine.models), with_merged(presets)) < 1e-5
        graphs.append(counter.frame_count)
    assert graphs == [graphs[0], graphs[1], graphs[1], graphs[1]]
    torch._dynamo.reset()


def test_a_transformer_can_move_to_the_host_between_two_requests():
    engine = Engine(apply_plan(build_smoke_models(), plan()), is_smoke=True)
    engine.fetch_presets(("relighting",))
    engine.make_ready(SMALL, presets=("relighting",))
    before = step(engine.models)
    engine._applied.stream_transformer()
    assert relative(step(engine.models), before) < 1e-6
    assert engine._applied.plan.transformer == "streamed"


def test_running_out_of_the_gpu_s_memory_is_a_sentence_without_a_card_too():
    engine = Engine(apply_plan(build_smoke_models(), plan()), is_smoke=True)
    for load in (None, SMALL):
        assert engine.out_of_memory(load).startswith("the GPU's memory ran out: end other programs")


def test_a_setup_s_own_lora_is_always_on(tmp_path):
    shapes = LoraSwitch(build_smoke_models().transformer, device="cpu").shapes
    lora = tiny_lora("turbo", shapes=shapes)
    tensors = {}
    for path, branch in lora.branches.items():
        tensors[f"transformer.{path}.lora_A.weight"] = branch.down
        tensors[f"transformer.{path}.lora_B.weight"] = branch.up * branch.scale
    file = tmp_path / "mine.safetensors"
    save_file(tensors, file)
    setup = EngineSetup(model="smoke", loras=(LoraSource(source=str(file)),))
    engine = open_engine(setup, cache_dir=tmp_path)
    assert relative(step(engine.models), with_merged(("turbo",))) < 1e-5
    engine.fetch_presets(("relighting",))
    engine.make_ready(SMALL, presets=("relighting",))
    assert relative(step(engine.models), with_merged(("turbo", "relighting"))) < 1e-5


def test_a_setup_s_lora_that_does_not_fit_is_refused_by_name(tmp_path):
    file = tmp_path / "another-model.safetensors"
    save_file(
        {"unet.down.lora_A.weight": torch.ones(2, 4), "unet.down.lora_B.weight": torch.ones(4, 2)}, file
    )
    with pytest.raises(ModelFilesBroken, match=r"another-model\.safetensors is not a LoRA for"):
        open_engine(EngineSetup(model="smoke", loras=(LoraSource(source=str(file)),)), cache_dir=tmp_path)


def test_an_attention_kernel_that_cannot_run_here_is_refused(tmp_path):
    with pytest.raises(
        SetupFailed, match=r"attention 'flash9' cannot be used here.*use 'auto' or one of sdpa"
    ):
        open_engine(EngineSetup(model="smoke", attention="flash9"), cache_dir=tmp_path)


def test_the_published_loras_are_fetched_at_their_first_use(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    engine = Engine(apply_plan(build_smoke_models(), plan()))
    tensors = {}
    for path, branch in tiny_lora("turbo", shapes=engine._switch.shapes).branches.items():
        tensors[f"diffusion_model.{path}.lora_down.weight"] = branch.down
        tensors[f"diffusion_model.{path}.lora_up.weight"] = branch.up * branch.scale
    save_file(tensors, tmp_path / "lora.safetensors")
    turbo = REGISTRY["turbo"]
    files = {turbo.patterns[0]: (tmp_path / "lora.safetensors").read_bytes()}
    told = []
    with serving({turbo.repository: Repository(files=files)}) as hub:
        here = partial(fetch, cache_dir=tmp_path / "hub", endpoint=hub.endpoint)
        monkeypatch.setattr(engine_module, "fetch", here)
        engine.fetch_presets(("turbo",), on_progress=told.append)
        sent = hub.bodies(turbo.patterns[0])
        assert sent
        engine.fetch_presets(("turbo",), on_progress=told.append)
        assert hub.bodies(turbo.patterns[0]) == sent
    close_session()
    engine.make_ready(SMALL, presets=("turbo",))
    assert relative(step(engine.models), with_merged(("turbo",))) < 1e-5
    assert told[-1].done == told[-1].total > 0


@pytest.mark.parametrize(
    "source",
    [
        "someone/some-lora/deep/file.safetensors",
        "https://huggingface.co/someone/some-lora/resolve/main/deep/file.safetensors",
        "https://huggingface.co/someone/some-lora/blob/main/deep/file.safetensors?download=true",
    ],
)
def test_a_lora_on_the_hub_is_named_in_any_of_three_ways(tmp_path, monkeypatch, source):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    repositories = {"someone/some-lora": Repository(files={"deep/file.safetensors": b"x" * 99})}
    with serving(repositories) as hub:
        path = fetch_lora(source, cache_dir=tmp_path, endpoint=hub.endpoint)
    close_session()
    assert path.read_bytes() == b"x" * 99


@pytest.mark.parametrize(
    ("source", "error", "sentence"),
    [
        ("/nowhere/mine.safetensors", ModelFilesBroken, "there is no LoRA file /nowhere/mine.safetensors"),
        ("mine.safetensors", ModelFilesBroken, "there is no LoRA file mine.safetensors"),
        ("someone/some-lora", InvalidInput, "names no LoRA file; give a path, or owner/repository/file"),
        ("https://example.com/x.safetensors", InvalidInput, "names no LoRA file"),
        ("", InvalidInput, "names no LoRA file"),
    ],
)
def test_words_that_name_no_lora_are_refused(source, error, sentence):
    with pytest.raises(error, match=sentence):
        fetch_lora(source)


def test_features_are_made_once_for_the_same_words_and_picture():
    models = build_smoke_models()
    passes = []
    for network in (models.text_encoder.model, models.image_encoder.model):
        network.register_forward_hook(lambda *_: passes.append(1))
    picture = np.random.default_rng(0).integers(0, 255, (32, 48, 3), np.uint8)
    with torch.inference_mode():
        first = models.text_encoder("a  cat"), models.image_encoder(picture)
        second = models.text_encoder("a cat"), models.image_encoder(picture.copy())
        assert len(passes) == 2
        assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
        models.image_encoder(picture.reshape(48, 32, 3))  # the same bytes in another shape
        models.text_encoder("a dog")
        assert len(passes) == 4
        for number in range(20):
            models.text_encoder(str(number))
        assert len(models.text_encoder._kept._features) == 8
