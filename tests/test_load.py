"""A checkpoint as its makers publish it becomes our network, exactly, or a sentence says what is wrong."""

import json
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import init_empty_weights
from huggingface_hub import constants
from huggingface_hub.utils import close_session
from safetensors.torch import load_file, save_file
from transformers import ByT5Tokenizer
from wan_animate.wan.model import names
from wan_animate.wan.model.load import (
    INDEX,
    LoadProgress,
    load_image_encoder,
    load_models,
    load_text_encoder,
    load_transformer,
    load_vae,
    require_gpu,
)
from wan_animate.wan.model.transformer import AnimateTransformer
from wan_animate.wan.runtime.device import usable_gpu
from wan_animate.wan.runtime.errors import Cancelled, ModelFilesBroken, NotAvailableYet, NoUsableGpu
from wan_animate.wan.runtime.weights import REGISTRY

from benchmarks.random_checkpoint import (
    REAL_CONFIG,
    REAL_SIZE,
    is_constant,
    motion_encoder_shapes,
    published_shapes,
    write_checkpoint,
)

from . import seeded
from .hub_server import Repository, serving

pytestmark = pytest.mark.usefixtures("one_thread")

CASE = "dit_a"
MANIFESTS = Path(__file__).parents[2] / "shared" / "manifests"
FLOAT32_TOLERANCE = 5e-5  # relative L2; summation order, and diffusers' float32 sinusoid
BF16_TOLERANCE = 1.2e-2  # relative L2; 8 bits of mantissa through 5 layers, measured 8e-3
BLUR = torch.tensor([[1.0, 3.0, 3.0, 1.0]])


def published(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The seeded network with its constants, as the makers' class saves it, sorted as they sort it."""
    tensors = {name: tensor.to(dtype) for name, tensor in seeded.published(CASE).items()}
    constants_of_it = {
        name: (BLUR * BLUR.T / 64).to(dtype) for name in motion_encoder_shapes() if is_constant(name)
    }
    return dict(sorted((tensors | constants_of_it).items()))


@pytest.fixture(scope="module")
def bf16(tmp_path_factory) -> Path:
    config = seeded.networks()[CASE]["config"]
    return write_checkpoint(tmp_path_factory.mktemp("bf16"), published(torch.bfloat16), config)


@pytest.fixture(scope="module")
def float32(tmp_path_factory) -> Path:
    config = seeded.networks()[CASE]["config"]
    return write_checkpoint(tmp_path_factory.mktemp("float32"), published(torch.float32), config)


def load(folder: Path, *, dtype: torch.dtype = torch.float32, **settings) -> AnimateTransformer:
    return load_transformer(folder, device="cpu", dtype=dtype, **settings)


@pytest.fixture(scope="module")
def networks(bf16, float32) -> dict[str, AnimateTransformer]:
    """Loaded, by the precision of the files and that asked for."""
    return {
        "float32 as float32": load(float32),
        "float32 as bf16": load(float32, dtype=torch.bfloat16),
        "bf16 as bf16": load(bf16, dtype=torch.bfloat16),
    }


@pytest.mark.parametrize("case", ["dit_a", "dit_b"])
def test_the_published_names_are_known_at_any_size(case):
    network = seeded.networks()[case]
    config = network["config"]
    shapes = published_shapes(
        dim=config["dim"], heads=config["num_heads"], ffn=config["ffn_dim"],
        text=config["text_dim"], freq=config["freq_dim"], layers=config["num_layers"],
    )  # fmt: skip
    stored = {name: tuple(shape) for name, shape in network["shapes"].items()}
    assert {name: shape for name, shape in shapes.items() if not is_constant(name)} == stored


def test_all_names_and_shapes_at_real_size_fit_the_class():
    shapes = published_shapes(**REAL_SIZE)
    assert len(shapes) == 1441
    with init_empty_weights():
        network = AnimateTransformer(**names.transformer_config(REAL_CONFIG))
    found = {}
    for name, shape in shapes.items():
        parts = names.transformer_names({name: torch.empty(shape, device="meta")})
        found |= {to: part.shape for to, part in parts.items()}
    assert found == {name: parameter.shape for name, parameter in network.named_parameters()}
    assert sum(parameter.numel() for parameter in network.parameters()) == 17_274_816_884


@pytest.mark.skipif(not MANIFESTS.is_dir(), reason="the makers' table is not at hand")
def test_the_names_at_real_size_are_the_makers_own():
    table = json.loads((MANIFESTS / "transformer_14b_original.json").read_text())["tensors"]
    assert {name: tuple(shape) for name, shape in table.items()} == published_shapes(**REAL_SIZE)


def test_float32_shards_give_the_very_weights(networks):
    network, expected = networks["float32 as float32"], seeded.transformer(CASE)
    theirs = dict(expected.named_parameters())
    assert {name for name, _ in network.named_parameters()} == theirs.keys()
    assert all(torch.equal(ours, theirs[name]) for name, ours in network.named_parameters())
    assert all(torch.equal(a, b) for a, b in zip(network.buffers(), expected.buffers(), strict=True))
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize("how", ["bf16 as bf16", "float32 as bf16"])
def test_bf16_keeps_float32_where_rounding_would_show(networks, how):
    network = networks[how]
    kept = {name for name, parameter in network.named_parameters() if parameter.dtype == torch.float32}
    assert {name for name, parameter in network.named_parameters() if parameter.dtype == torch.bfloat16}
    assert kept == {name for name, _ in network.named_parameters() if network.keeps_float32(name)}
    assert {name.split(".")[1] for name in kept if name.startswith("condition_embedder")} >= {"time_embedder"}
    plain = seeded.transformer(CASE)
    assert network.rope.freqs_cos.dtype == torch.float32
    assert torch.equal(network.rope.freqs_cos, plain.rope.freqs_cos)
    if how == "float32 as bf16":  # what stays float32 is the file's own value, not one rounded on the way
        theirs = dict(plain.named_parameters())
        assert all(torch.equal(network.get_parameter(name), theirs[name]) for name in kept)


def step(network: AnimateTransformer, data: dict[str, np.ndarray], timestep: int) -> torch.Tensor:
    """The golden's call: latents and conditions in, velocity out, the faces' motion as stored."""
    tensor = {name: torch.from_numpy(array) for name, array in data.items() if array.dtype == np.float32}
    text = torch.zeros(1, 512, tensor["context"].shape[-1])
    text[0, : len(tensor["context"])] = tensor["context"]
    image = torch.from_numpy(data["clip_fea_int8"].astype(np.float32)) / 8
    with torch.inference_mode():
        prepared = network.prepare(
            given=tensor["y"][None],
            pose=tensor["pose_latents"],
            motion=tensor["motion_vec"][None],
            context=network.embed_context(text, image.reshape(1, 257, 1280)),
        )
        return network.step(tensor["latents"][None], timestep, prepared)[0]


def distance(ours: torch.Tensor, theirs: np.ndarray) -> float:
    expected = torch.from_numpy(theirs)
    return float((ours - expected).norm() / expected.norm())


@pytest.mark.skipif(not seeded.GOLDEN.is_dir(), reason="the official outputs are not at hand")
@pytest.mark.parametrize("timestep", [999, 437])
def test_the_loaded_network_computes_what_the_official_one_does(networks, timestep):
    data = dict(np.load(seeded.GOLDEN / "model" / CASE / "data.npz"))
    expected = data[f"out_t{timestep}"]
    distances = {how: distance(step(network, data, timestep), expected) for how, network in networks.items()}
    assert distances["float32 as float32"] <= FLOAT32_TOLERANCE
    assert distances["bf16 as bf16"] <= BF16_TOLERANCE
    assert distances["float32 as bf16"] <= BF16_TOLERANCE


def test_progress_counts_every_byte_and_cancelling_ends_it(bf16):
    told: list[LoadProgress] = []
    load(bf16, on_progress=told.append)
    done = [progress.done for progress in told]
    assert done == sorted(done)
    assert 0.99 < told[-1].done / told[-1].total <= 1
    assert str(told[-1]).startswith("load 0.1 of 0.1 GB")

    def cancel(progress: LoadProgress) -> None:
        if progress.done > progress.total / 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        load(bf16, on_progress=cancel)


def small_checkpoint(folder: Path) -> Path:
    """Only what the checks look at: names and shapes. One byte a number, to be quick."""
    config = seeded.networks()[CASE]["config"]
    shapes = published_shapes(
        dim=24, heads=2, ffn=48, text=16, freq=32, layers=5
    )  # fmt: skip
    return write_checkpoint(
        folder,
        {name: torch.zeros(shape, dtype=torch.float8_e4m3fn) for name, shape in shapes.items()},
        config,
    )


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    return small_checkpoint(tmp_path_factory.mktemp("sound"))


@pytest.fixture
def broken(sound, tmp_path) -> Path:
    """A copy to break. Links, but for what a test replaces."""
    for file in sound.iterdir():
        (tmp_path / file.name).symlink_to(file)
    return tmp_path


SECOND = "diffusion_pytorch_model-00002-of-00005.safetensors"
TENSOR = "blocks.1.self_attn.q.weight"


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], object], *, index: bool) -> str:
    """Change the shard that holds TENSOR; the index too, if asked."""
    table = json.loads((folder / INDEX).read_text())
    file = table["weight_map"][TENSOR]
    tensors = load_file(folder / file)
    change(tensors)
    (folder / file).unlink()
    save_file(tensors, folder / file, {"format": "pt"})
    if index:
        kept = {name: place for name, place in table["weight_map"].items() if place != file}
        (folder / INDEX).unlink()
        (folder / INDEX).write_text(json.dumps({"weight_map": kept | dict.fromkeys(tensors, file)}))
    return file


def refused(folder: Path) -> str:
    with pytest.raises(ModelFilesBroken) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_sound_checkpoint_is_the_base_of_the_broken_ones(sound):
    load(sound)


def test_a_tensor_that_the_index_promises_is_missed_by_name(broken):
    file = rewrite(broken, lambda tensors: tensors.pop(TENSOR), index=False)
    message = refused(broken)
    assert file in message
    assert f"tensor {TENSOR} is not in it" in message


def test_a_tensor_that_nothing_promises_is_missed_by_name(broken):
    rewrite(broken, lambda tensors: tensors.pop(TENSOR), index=True)
    assert "lacks 1 of Wan2.2-Animate's tensors, such as blocks.1.attn1.to_q.weight" in refused(broken)


@pytest.mark.parametrize("index", [False, True])
def test_a_tensor_too_many_is_named(broken, index):
    file = rewrite(broken, lambda tensors: tensors.update(extra=torch.zeros(3)), index=index)
    message = refused(broken)
    assert file in message
    assert "tensor extra" in message


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        (TENSOR, (24, 23)),
        ("face_adapter.fuser_blocks.0.linear1_kv.weight", (46, 24)),
        ("motion_encoder.enc.net_app.convs.1.conv1.1.bias", (32,)),
        ("motion_encoder.enc.net_app.convs.1.conv1.1.bias", (1, 31, 1, 1)),
        ("face_encoder.conv2.conv.weight", (1024, 1024, 4)),
    ],
)
def test_another_shape_is_named(broken, name, shape):
    table = json.loads((broken / INDEX).read_text())["weight_map"]
    tensors = load_file(broken / table[name])
    (broken / table[name]).unlink()
    save_file(tensors | {name: torch.zeros(shape)}, broken / table[name], {"format": "pt"})
    message = refused(broken)
    assert table[name] in message
    assert f"tensor {name} of shape {list(shape)}" in message


@pytest.mark.parametrize("left", [0, 5, 5000, -1])
def test_a_shard_cut_short_is_named(broken, left):
    content = (broken / SECOND).read_bytes()
    (broken / SECOND).unlink()
    (broken / SECOND).write_bytes(content[:left])
    assert f"{SECOND} is damaged or cut short" in refused(broken)


def test_a_shard_of_noise_is_named(broken):
    size = (broken / SECOND).stat().st_size
    (broken / SECOND).unlink()
    (broken / SECOND).write_bytes(np.random.default_rng(0).bytes(size))
    assert f"{SECOND} is damaged or cut short" in refused(broken)


@pytest.mark.parametrize("file", ["config.json", INDEX, SECOND])
def test_a_missing_file_is_named(broken, file):
    (broken / file).unlink()
    assert f"{file} is missing in {broken}" in refused(broken)


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("config.json", "{", "is damaged"),
        ("config.json", "{}", "says nothing of 'num_heads'"),
        (INDEX, "not json", "is damaged"),
        (INDEX, "{}", "lists no tensors"),
    ],
)
def test_a_damaged_description_is_named(broken, file, content, said):
    (broken / file).unlink()
    (broken / file).write_text(content)
    message = refused(broken)
    assert file in message
    assert said in message


def test_a_checkpoint_of_another_size_is_refused(broken):
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").unlink()
    (broken / "config.json").write_text(json.dumps(config | {"dim": 48}))
    assert "the files are another model's" in refused(broken)


@pytest.fixture(scope="module")
def encoders(tmp_path_factory) -> Path:
    """The parts of the Diffusers repository that are used, tiny."""
    folder = tmp_path_factory.mktemp("encoders")
    seeded.text_encoder("t5_a").save_pretrained(folder / "text_encoder")
    seeded.image_encoder("clip_a").save_pretrained(folder / "image_encoder")
    seeded.autoencoder("vae_a").save_pretrained(folder / "vae")
    ByT5Tokenizer().save_pretrained(folder / "tokenizer")
    (folder / "image_processor").mkdir()
    (folder / "image_processor" / "preprocessor_config.json").write_text("{}")
    return folder


def test_encoders_and_vae_are_read_from_the_diffusers_folders(encoders):
    text = load_text_encoder(encoders, device="cpu", dtype=torch.float32)
    image = load_image_encoder(encoders, device="cpu")
    vae = load_vae(encoders, device="cpu")
    for ours, theirs in (
        (text.model, seeded.text_encoder("t5_a")),
        (image.model, seeded.image_encoder("clip_a")),
        (vae.autoencoder, seeded.autoencoder("vae_a")),
    ):
        assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
        assert not any(parameter.requires_grad for parameter in ours.parameters())
    assert text.tokenizer("a")["input_ids"] == [100, 1]


@pytest.mark.parametrize("embedding", ["shared.weight", "encoder.embed_tokens.weight"])
def test_the_text_encoder_s_words_are_found_under_either_name(encoders, tmp_path, embedding):
    """One tensor with two names in the class; which of the two a file bears depends on who saved it."""
    seeded.text_encoder("t5_a").save_pretrained(tmp_path / "text_encoder")
    (tmp_path / "tokenizer").symlink_to(encoders / "tokenizer")
    file = tmp_path / "text_encoder" / "model.safetensors"
    tensors = load_file(file)
    words = seeded.text_encoder("t5_a").shared.weight.detach()
    tensors = {name: tensor for name, tensor in tensors.items() if not torch.equal(tensor, words)}
    save_file(tensors | {embedding: words}, file, {"format": "pt"})
    model = load_text_encoder(tmp_path, device="cpu", dtype=torch.float32).model
    assert torch.equal(model.encoder.embed_tokens.weight, words)


@pytest.mark.parametrize(
    ("part", "file"),
    [
        ("text_encoder", "model.safetensors"),
        ("image_encoder", "model.safetensors"),
        ("vae", "diffusion_pytorch_model.safetensors"),
    ],
)
@pytest.mark.parametrize("how", ["lacks one", "cut short", "gone"])
def test_a_damaged_encoder_is_named(encoders, tmp_path, part, file, how):
    """Both libraries would only warn of a missing tensor and go on with noise."""
    for folder in encoders.iterdir():
        if folder.name != part:
            (tmp_path / folder.name).symlink_to(folder)
    (tmp_path / part).mkdir()
    (tmp_path / part / "config.json").symlink_to(encoders / part / "config.json")
    if how == "lacks one":
        tensors = load_file(encoders / part / file)
        tensors.pop(max(tensors))
        save_file(tensors, tmp_path / part / file, {"format": "pt"})
    elif how == "cut short":
        (tmp_path / part / file).write_bytes((encoders / part / file).read_bytes()[:3000])
    with pytest.raises(ModelFilesBroken, match=rf"{part} (lacks [12] tensors|cannot be loaded)"):
        load_text_encoder(tmp_path, device="cpu", dtype=torch.float32)
        load_image_encoder(tmp_path, device="cpu")
        load_vae(tmp_path, device="cpu")


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_setup_fetches_and_loads_everything(sound, encoders, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    repositories = {
        REGISTRY["transformer"].repository: Repository(files=files_of(sound)),
        REGISTRY["encoders"].repository: Repository(
            files=files_of(encoders) | {"transformer/big": bytes(999)}
        ),
    }
    told: list[LoadProgress] = []
    with serving(repositories) as hub:
        models = load_models(
            "wan2.2-animate-14b", cache_dir=tmp_path, endpoint=hub.endpoint, device=torch.device("cpu"),
            on_progress=told.append,
        )  # fmt: skip
        assert hub.bodies("transformer/big") == 0
    close_session()
    assert models.transformer.compute_dtype == torch.bfloat16
    assert models.text_encoder.model.dtype == torch.bfloat16
    assert models.vae.dtype == torch.float32
    assert list(dict.fromkeys(progress.stage for progress in told)) == ["fetch", "load"]


@pytest.mark.skipif(usable_gpu() is not None, reason="there is a GPU")
def test_the_14b_model_without_a_gpu_names_the_way_out():
    with pytest.raises(NoUsableGpu, match=r'needs a CUDA GPU .*\{"model": "smoke"\}'):
        require_gpu()


def test_a_precision_to_come_is_said_before_anything_is_fetched(tmp_path):
    with pytest.raises(NotAvailableYet, match='precision "fp8"'):
        load_models("wan2.2-animate-14b", precision="fp8", cache_dir=tmp_path, device=torch.device("cpu"))


# The peak is asked of the kernel, so that mapped files count too. What the libraries set up when the first
# network is built is not the loader's.
MEASURE = """
    import json
    import sys
    from pathlib import Path
    import torch
    from accelerate import init_empty_weights
    from wan_animate.wan.model.load import load_transformer
    from wan_animate.wan.model.names import transformer_config
    from wan_animate.wan.model.transformer import AnimateTransformer

    def resident(field: str) -> int:
        status = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field))

    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    with init_empty_weights():
        AnimateTransformer(**transformer_config(json.loads((folder / "config.json").read_text())))
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    network = load_transformer(folder, device="cpu", dtype=torch.bfloat16)
    print(before, resident("VmHWM"), sum(parameter.nbytes for parameter in network.parameters()))
"""


@pytest.mark.slow  # writes and reads 300 MB, and imports the libraries once more
def test_loading_needs_little_more_memory_than_the_result(tmp_path):
    size = {"dim": 1024, "heads": 8, "ffn": 2816, "text": 4096, "freq": 256, "layers": 5}
    config = {
        "num_heads": 8, "dim": 1024, "in_dim": 36, "out_dim": 16, "text_dim": 4096, "freq_dim": 256,
        "ffn_dim": 2816, "num_layers": 5, "eps": 1e-6, "motion_encoder_dim": 512,
    }  # fmt: skip
    shapes = published_shapes(**size)
    tensors = {name: torch.ones(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}
    write_checkpoint(tmp_path, tensors, config)
    largest = max(file.stat().st_size for file in tmp_path.glob("*.safetensors"))
    del tensors
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MEASURE), str(tmp_path)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    before, peak, result = map(int, run.stdout.split())
    assert largest > 40e6
    assert peak - before - result < 1.2 * largest
