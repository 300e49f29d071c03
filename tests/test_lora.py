"""LoRAs in every dialect are understood alike, switched without a trace, exact on every kind of weight."""

import copy
import itertools
import json
import pickle
from pathlib import Path

import pytest
import torch
from accelerate import init_empty_weights
from safetensors.torch import save_file
from torch._dynamo.testing import CompileCounter
from torch.nn import functional
from wan_animate.wan.model.lora import Lora, LoraSwitch, Shapes, parameter_shapes, read_lora, understand
from wan_animate.wan.model.transformer import AnimateTransformer, Prepared
from wan_animate.wan.runtime.errors import ModelFilesBroken

pytestmark = pytest.mark.usefixtures("one_thread")

MANIFESTS = Path(__file__).parents[2] / "shared" / "manifests"
WIDTH, FFN, TEXT, LAYERS, RANK = 24, 48, 16, 4, 3
CONFIG = {
    "num_attention_heads": 2, "attention_head_dim": 12, "ffn_dim": FFN, "text_dim": TEXT, "freq_dim": 32,
    "num_layers": LAYERS, "added_kv_proj_dim": WIDTH, "inject_face_latents_blocks": 2,
    "motion_encoder_channel_sizes": {"4": 4, "8": 4, "16": 4, "32": 4, "64": 4, "128": 4, "256": 2, "512": 2},
    "motion_style_dim": 16, "motion_dim": 8, "motion_encoder_dim": 16, "face_encoder_hidden_dim": 16,
}  # fmt: skip
BLOCK = {  # what the relighting LoRA changes in a block, by published name: our name, out, in
    "self_attn.q": ("attn1.to_q", WIDTH, WIDTH),
    "self_attn.k": ("attn1.to_k", WIDTH, WIDTH),
    "self_attn.v": ("attn1.to_v", WIDTH, WIDTH),
    "self_attn.o": ("attn1.to_out.0", WIDTH, WIDTH),
    "cross_attn.q": ("attn2.to_q", WIDTH, WIDTH),
    "cross_attn.k": ("attn2.to_k", WIDTH, WIDTH),
    "cross_attn.v": ("attn2.to_v", WIDTH, WIDTH),
    "cross_attn.o": ("attn2.to_out.0", WIDTH, WIDTH),
    "cross_attn.k_img": ("attn2.add_k_proj", WIDTH, WIDTH),
    "cross_attn.v_img": ("attn2.add_v_proj", WIDTH, WIDTH),
    "ffn.0": ("ffn.net.0.proj", FFN, WIDTH),
    "ffn.2": ("ffn.net.2", WIDTH, FFN),
}
OTHERS = {  # linear layers outside the blocks, that distilled LoRAs change too
    "text_embedding.0": ("condition_embedder.text_embedder.linear_1", WIDTH, TEXT),
    "time_embedding.2": ("condition_embedder.time_embedder.linear_2", WIDTH, WIDTH),
    "time_projection.1": ("condition_embedder.time_proj", 6 * WIDTH, WIDTH),
    "img_emb.proj.3": ("condition_embedder.image_embedder.ff.net.2", WIDTH, 1280),
    "head.head": ("proj_out", 64, WIDTH),
}

Tensors = dict[str, torch.Tensor]


class Dice:
    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int, scale: float = 1.0) -> torch.Tensor:
        return torch.randn(*shape, generator=self._generator) * scale


@pytest.fixture(scope="module")
def built() -> AnimateTransformer:
    torch.manual_seed(0)  # of the biases, which are kept as they are made
    dice, network = Dice(0), AnimateTransformer(**CONFIG)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            parameter.data = dice(*parameter.shape, scale=parameter[0].numel() ** -0.5)
    return network.requires_grad_(False).eval()


@pytest.fixture
def network(built) -> AnimateTransformer:
    return copy.deepcopy(built)


@pytest.fixture(scope="module")
def shapes(built):
    return parameter_shapes(built)


def run(network: AnimateTransformer) -> torch.Tensor:
    """One step on fixed inputs: everything but the faces' own encoder."""
    dice = Dice(7)
    with torch.inference_mode():
        return network.step(dice(1, 16, 3, 4, 4), 437, prepare(network, dice))


def prepare(network: AnimateTransformer, dice: Dice) -> Prepared:
    return network.prepare(
        given=dice(1, 20, 3, 4, 4),
        pose=dice(1, 16, 2, 4, 4),
        motion=dice(1, 5, 16),
        context=network.embed_context(dice(1, 512, TEXT), dice(1, 257, 1280)),
    )


def relative(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


def pairs(seed: int, *, others: bool = False) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """A LoRA's halves (down, up) by published module name."""
    dice, found = Dice(seed), {}
    for i, (name, (_, out, into)) in itertools.product(range(LAYERS), BLOCK.items()):
        found[f"blocks.{i}.{name}"] = dice(RANK, into, scale=into**-0.5), dice(out, RANK, scale=0.3)
    for name, (_, out, into) in OTHERS.items() if others else ():
        found[name] = dice(RANK, into, scale=into**-0.5), dice(out, RANK, scale=0.3)
    return found


def own_name(published: str) -> str:
    if published in OTHERS:
        return OTHERS[published][0]
    _, number, part = published.split(".", 2)
    return f"blocks.{number}.{BLOCK[part][0]}"


def peft(halves, prefix: str = "") -> Tensors:
    """The relighting LoRA's dialect."""
    return {
        f"{prefix}{name}.lora_{side}.weight": tensor
        for name, (down, up) in halves.items()
        for side, tensor in (("A", down), ("B", up))
    }


def lightx2v(halves, *, alpha: float | None = None, prefix: str = "diffusion_model.") -> Tensors:
    """The 4-step LoRA's dialect."""
    written = {
        f"{prefix}{name}.lora_{side}.weight": tensor
        for name, (down, up) in halves.items()
        for side, tensor in (("down", down), ("up", up))
    }
    alphas = {f"{prefix}{name}.alpha": torch.tensor(alpha) for name in halves} if alpha is not None else {}
    return written | alphas


def merged(network: AnimateTransformer, *additions: Tensors) -> AnimateTransformer:
    """A fresh network with the additions in its weights, in float32 before rounding to its own types."""
    fresh = copy.deepcopy(network)
    for addition in additions:
        for name, change in addition.items():
            parameter = fresh.get_parameter(name)
            parameter.data = (parameter.float() + change.reshape(parameter.shape)).to(parameter.dtype)
    return fresh


def products(halves, scale: float = 1.0) -> Tensors:
    return {f"{own_name(name)}.weight": scale * (up @ down) for name, (down, up) in halves.items()}


def diffs(seed: int) -> tuple[Tensors, Tensors]:
    """What a distilled LoRA adds beside its halves: in its dialect, and to our parameters."""
    dice = Dice(seed)
    theirs, ours = {}, {}
    for i in range(LAYERS):
        for their, our, shape in (
            ("self_attn.q.diff_b", "attn1.to_q.bias", (WIDTH,)),
            ("ffn.0.diff_b", "ffn.net.0.proj.bias", (FFN,)),
            ("self_attn.norm_q.diff", "attn1.norm_q.weight", (WIDTH,)),
            ("cross_attn.norm_k_img.diff", "attn2.norm_added_k.weight", (WIDTH,)),
            ("norm3.diff", "norm2.weight", (WIDTH,)),
            ("norm3.diff_b", "norm2.bias", (WIDTH,)),
            ("diff_m", "scale_shift_table", (1, 6, WIDTH)),
        ):
            theirs[f"diffusion_model.blocks.{i}.{their}"] = change = dice(*shape, scale=0.1)
            ours[f"blocks.{i}.{our}"] = change
    for their, our, shape in (
        ("patch_embedding.diff", "patch_embedding.weight", (WIDTH, 36, 1, 2, 2)),
        ("patch_embedding.diff_b", "patch_embedding.bias", (WIDTH,)),
        ("img_emb.proj.4.diff", "condition_embedder.image_embedder.norm2.weight", (WIDTH,)),
        ("text_embedding.2.diff_b", "condition_embedder.text_embedder.linear_2.bias", (WIDTH,)),
        ("head.head.diff", "proj_out.weight", (64, WIDTH)),
        ("head.diff_m", "scale_shift_table", (1, 2, WIDTH)),
    ):
        theirs[f"diffusion_model.{their}"] = change = dice(*shape, scale=0.1)
        ours[our] = change
    theirs["diffusion_model.blocks.0.self_attn.norm_k.diff"] = torch.zeros(WIDTH)
    return theirs, ours


def musubi(halves) -> Tensors:
    """Module names with underscores only."""
    named = {f"lora_unet_{name}".replace(".", "_"): pair for name, pair in halves.items()}
    return lightx2v(named, alpha=float(RANK), prefix="")


DIALECTS = {
    "relighting": peft,
    "peft": lambda halves: peft(halves, "base_model.model."),
    "comfy": lambda halves: peft(halves, "diffusion_model."),
    "lightx2v": lambda halves: lightx2v(halves, alpha=float(RANK)),
    "lightx2v without alpha": lightx2v,
    "diffusers": lambda halves: peft({own_name(name): pair for name, pair in halves.items()}, "transformer."),
    "old diffusers": lambda halves: {
        key.replace(".lora_A.", ".lora.down.").replace(".lora_B.", ".lora.up."): tensor
        for key, tensor in peft({own_name(name): pair for name, pair in halves.items()}).items()
    },
    "adapter named": lambda halves: {
        key.replace(".weight", ".default.weight"): tensor for key, tensor in peft(halves).items()
    },
    "musubi": musubi,
}


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_every_dialect_says_the_same(tmp_path, shapes, dialect, suffix):
    halves = pairs(1)
    tensors, path = DIALECTS[dialect](halves), tmp_path / f"some{suffix}"
    if suffix == ".ckpt":
        torch.save({"state_dict": tensors, "global_step": 7}, path)
    else:
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)
    lora = read_lora(path, shapes=shapes)
    assert lora.source == path.name
    assert lora.branches.keys() == {own_name(name) for name in halves}
    assert not lora.changes
    for name, (down, up) in halves.items():
        branch = lora.branches[own_name(name)]
        assert torch.equal(branch.down, down)
        assert torch.equal(branch.up, up)
        assert branch.scale == 1


def cases() -> dict[str, tuple[Tensors, Tensors]]:
    """A file's tensors, and what they add to our parameters."""
    relight, turbo = pairs(2), pairs(3, others=True)
    theirs, ours = diffs(4)
    del turbo["head.head"]  # which `diffs` changes as a whole
    return {
        "relighting": (peft(relight), products(relight)),
        "alpha": (lightx2v(relight, alpha=1.5), products(relight, 1.5 / RANK)),
        "turbo": (lightx2v(turbo) | theirs, products(turbo) | ours),
    }


@pytest.mark.parametrize("case", cases())
def test_switched_on_it_equals_a_fresh_load_with_it_merged(network, shapes, case):
    tensors, addition = cases()[case]
    before, expected = run(network), run(merged(network, addition))
    assert relative(before, expected) > 0.05  # it does something
    switch, lora = LoraSwitch(network, device="cpu"), understand(tensors, shapes=shapes, source=case)
    for _ in range(2):
        switch.set([(lora, 1.0)])
        assert relative(run(network), expected) < 2e-6
        switch.set([])
        assert torch.equal(run(network), before)


@pytest.mark.parametrize("case", cases())
def test_in_bf16_it_is_as_near_to_the_truth_as_merged_weights(network, shapes, case):
    tensors, addition = cases()[case]
    halved = copy.deepcopy(network).set_precision(torch.bfloat16)
    # The truth: bf16's weights, all computed in float32.
    truth = run(merged(copy.deepcopy(halved).set_precision(torch.float32), addition))
    fresh = relative(run(merged(halved, addition)), truth)
    before = run(halved)
    switch = LoraSwitch(halved, device="cpu")
    switch.set([(understand(tensors, shapes=shapes, source=case), 1.0)])
    assert relative(run(halved), truth) < 1.2 * fresh
    assert relative(run(halved), truth) < 2e-2
    switch.set([])
    assert torch.equal(run(halved), before)


def test_what_stays_float32_gets_a_float32_branch(network, shapes):
    halved = network.set_precision(torch.bfloat16)
    halves = pairs(3, others=True)
    LoraSwitch(halved, device="cpu").set([(understand(lightx2v(halves), shapes=shapes, source="x"), 1.0)])
    assert halved.condition_embedder.time_proj.lora_up.dtype == torch.float32
    assert halved.condition_embedder.text_embedder.linear_1.lora_up.dtype == torch.bfloat16
    assert halved.blocks[0].attn1.to_q.lora_up.dtype == torch.bfloat16


def test_several_add_up_each_at_its_strength(network, shapes):
    one, two = pairs(2), pairs(3, others=True)
    theirs, ours = diffs(4)
    del two["head.head"]
    expected = run(
        merged(
            network,
            products(one, 0.5),
            products(two, -0.25),
            {name: -0.25 * change for name, change in ours.items()},
        )
    )
    first = understand(peft(one), shapes=shapes, source="one")
    second = understand(lightx2v(two) | theirs, shapes=shapes, source="two")
    switch = LoraSwitch(network, device="cpu")
    switch.set([(first, 0.5), (second, -0.25)])
    assert relative(run(network), expected) < 2e-6
    assert network.blocks[0].attn1.to_q.lora_down.shape == (2 * RANK, WIDTH)


def test_off_leaves_no_trace(network, shapes):
    def state() -> dict[str, tuple]:
        parts: dict[str, tuple] = {
            name: (id(module), type(module), {*vars(module)}, {*module._buffers})
            for name, module in network.named_modules()
        }
        tensors = itertools.chain(network.named_parameters(), network.named_buffers())
        return parts | {name: (tensor.data_ptr(), float(tensor.sum())) for name, tensor in tensors}

    before, keys = state(), network.state_dict().keys()
    switch = LoraSwitch(network, device="cpu")
    tensors, _ = cases()["turbo"]
    switch.set([(understand(tensors, shapes=shapes, source="x"), 1.0)])
    assert network.state_dict().keys() == keys
    assert isinstance(network.blocks[0].attn1.to_q, torch.nn.Linear)
    assert {name for name, _ in network.named_parameters()} == {*shapes}
    switch.set([])
    assert state() == before
    assert type(network.blocks[0].attn1.to_q) is torch.nn.Linear  # so off costs nothing at all


def test_setting_the_same_again_does_nothing(network, shapes):
    lora, switch = understand(peft(pairs(1)), shapes=shapes, source="x"), LoraSwitch(network, device="cpu")
    switch.set([(lora, 1.0)])
    hung = network.blocks[0].attn1.to_q.lora_up
    switch.set([(lora, 1.0)])
    assert network.blocks[0].attn1.to_q.lora_up is hung
    assert switch.active == ((lora, 1.0),)
    switch.set([(lora, 0.0)])
    assert switch.active == ()
    assert type(network.blocks[0].attn1.to_q) is torch.nn.Linear


def test_a_switch_that_fails_leaves_the_network_plain(network, shapes):
    tensors, _ = cases()["turbo"]
    lora = understand(tensors, shapes=shapes, source="x")
    wrong = Lora(source="wrong", branches={}, changes={"blocks.0.nothing": torch.zeros(1)})
    before = run(network)
    switch = LoraSwitch(network, device="cpu")
    with pytest.raises(AttributeError):
        switch.set([(lora, 1.0), (wrong, 1.0)])
    assert switch.active == ()
    assert torch.equal(run(network), before)


class Float8Linear(torch.nn.Module):
    """A linear layer with float8 weights, one scale a row, as quantisation puts in the place of Linear."""

    scale: torch.Tensor
    packed: torch.Tensor

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        scale = linear.weight.abs().amax(1, keepdim=True) / 448
        self.register_buffer("scale", scale)
        self.register_buffer("packed", (linear.weight / scale).to(torch.float8_e4m3fn))
        self.bias = linear.bias

    def whole(self) -> torch.Tensor:
        return self.packed.float() * self.scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, self.whole(), self.bias)


def test_on_float8_weights_it_is_exact(network):
    halves = pairs(2)
    plain = copy.deepcopy(network)
    for name in [name for name, module in network.blocks.named_modules() if type(module) is torch.nn.Linear]:
        owner, _, leaf = name.rpartition(".")
        packed = Float8Linear(network.blocks.get_submodule(name))
        setattr(network.blocks.get_submodule(owner), leaf, packed)
        plain.blocks.get_submodule(name).weight.data = packed.whole()
    switch = LoraSwitch(network, device="cpu")
    before = run(network)
    assert relative(before, run(plain)) < 2e-6
    switch.set([(understand(peft(halves), shapes=switch.shapes, source="x"), 1.0)])
    assert relative(run(network), run(merged(plain, products(halves)))) < 2e-6
    switch.set([])
    assert torch.equal(run(network), before)


@pytest.mark.parametrize("eager_to_skip", [False, True])
def test_compiled_blocks_keep_one_graph_for_each_state(network, shapes, eager_to_skip):
    # torch 2.11 skips looking at layers by default, 2.14 on demand: there a LoRA once had no effect.
    with torch._dynamo.config.patch(use_recursive_dict_tags_for_guards=eager_to_skip):
        check_graphs(network, shapes)


def check_graphs(network: AnimateTransformer, shapes: Shapes) -> None:
    torch._dynamo.reset()
    counter = CompileCounter()
    lora, switch = understand(peft(pairs(1)), shapes=shapes, source="x"), LoraSwitch(network, device="cpu")
    plain = run(network)
    switch.set([(lora, 1.0)])
    changed = run(network)
    switch.set([])
    for block in network.blocks:
        block.compile(backend=counter, fullgraph=True)
    graphs = []
    for strength in (0.0, 1.0, 0.0, 1.0):
        switch.set([(lora, strength)])
        assert torch.equal(run(network), changed if strength else plain)
        graphs.append(counter.frame_count)
    assert graphs == [1, 2, 2, 2]  # one for all blocks, one more with branches, none for going back and forth
    both = [(lora, 1.0), (understand(peft(pairs(2)), shapes=shapes, source="y"), 1.0)]
    for wanted in (both, both[:1], both, []):  # another rank is another state
        switch.set(wanted)
        run(network)
    assert counter.frame_count == 3
    torch._dynamo.reset()


def test_a_split_projection_is_split_in_the_lora_too(network, shapes):
    dice = Dice(5)
    down, up = dice(RANK, WIDTH, scale=0.2), dice(2 * WIDTH, RANK)
    name = "face_adapter.fuser_blocks.0.linear1_kv"
    lora = understand(peft({name: (down, up)}), shapes=shapes, source="x")
    expected = run(
        merged(
            network,
            {
                "face_adapter.0.to_k.weight": up[:WIDTH] @ down,
                "face_adapter.0.to_v.weight": up[WIDTH:] @ down,
            },
        )
    )
    LoraSwitch(network, device="cpu").set([(lora, 1.0)])
    assert relative(run(network), expected) < 2e-6


def test_a_lora_of_a_convolution_is_added_in_place(network, shapes):
    dice = Dice(6)
    down, up = dice(RANK, 36, 1, 2, 2, scale=0.1), dice(WIDTH, RANK, 1, 1, 1)
    lora = understand(peft({"patch_embedding": (down, up)}), shapes=shapes, source="x")
    change = (up.flatten(1) @ down.flatten(1)).reshape(WIDTH, 36, 1, 2, 2)
    expected = run(merged(network, {"patch_embedding.weight": change}))
    LoraSwitch(network, device="cpu").set([(lora, 1.0)])
    assert relative(run(network), expected) < 2e-6


@pytest.mark.parametrize("where", ["beside", "header"])
def test_alpha_is_taken_from_where_peft_and_diffusers_write_it(tmp_path, shapes, where):
    halves, settings = pairs(1), {"r": RANK, "lora_alpha": 6, "alpha_pattern": {"ffn.0": 9}}
    path = tmp_path / "adapter_model.safetensors"
    if where == "beside":
        save_file(peft(halves, "base_model.model."), path)
        (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    else:
        said = {f"transformer.{key}": value for key, value in settings.items()}
        save_file(peft(halves, "transformer."), path, {"lora_adapter_metadata": json.dumps(said)})
    branches = read_lora(path, shapes=shapes).branches
    assert branches["blocks.0.attn1.to_q"].scale == 6 / RANK
    assert branches["blocks.0.ffn.net.0.proj"].scale == 9 / RANK


@pytest.fixture(scope="module")
def real_shapes():
    with init_empty_weights():
        return parameter_shapes(AnimateTransformer(added_kv_proj_dim=5120))


def relighting_names() -> dict[str, tuple[int, int]]:
    """The relighting LoRA's 960 tensors: all linear layers of 40 blocks, rank 128."""
    real = {WIDTH: 5120, FFN: 13824}
    shapes = {}
    for i, (name, (_, out, into)) in itertools.product(range(40), BLOCK.items()):
        shapes[f"blocks.{i}.{name}.lora_A.weight"] = (128, real[into])
        shapes[f"blocks.{i}.{name}.lora_B.weight"] = (real[out], 128)
    return shapes


@pytest.mark.skipif(not MANIFESTS.is_dir(), reason="the makers' table is not at hand")
def test_the_relighting_names_are_the_makers_own():
    table = json.loads((MANIFESTS / "relighting_lora_peft.json").read_text())["tensors"]
    assert {name: tuple(shape) for name, shape in table.items()} == relighting_names()


def test_the_relighting_lora_reaches_every_linear_layer_of_the_blocks(real_shapes):
    tensors = {name: torch.empty(shape, device="meta") for name, shape in relighting_names().items()}
    assert len(tensors) == 960
    lora = understand(tensors, shapes=real_shapes, source="relighting_lora.ckpt")
    linear = {
        name.removesuffix(".weight")
        for name, shape in real_shapes.items()
        if name.startswith("blocks.") and name.endswith(".weight") and len(shape) == 2
    }
    assert lora.branches.keys() == linear
    assert len(linear) == 480


def wrong_files() -> dict[str, tuple[Tensors, str]]:
    halves = pairs(1)
    name, (down, up) = next(iter(halves.items()))
    key = f"{name}.lora_B.weight"
    return {
        "another model's": (
            {
                "double_blocks.0.img_attn.qkv.lora_A.weight": down,
                "double_blocks.0.img_attn.qkv.lora_B.weight": up,
            },
            r"it changes double_blocks\.0\.img_attn\.qkv, which that model does not have",
        ),
        "too many blocks": (
            peft({"blocks.39.self_attn.q": (down, up)}),
            r"it changes blocks\.39\.self_attn\.q, which",
        ),
        "another size": (
            peft({name: (torch.zeros(RANK, 1536), torch.zeros(1536, RANK))}),
            r"blocks\.0\.self_attn\.q makes 1536 × \[1536\] of a weight of \[24, 24\]",
        ),
        "text to video": (
            {"diffusion_model.patch_embedding.diff": torch.ones(WIDTH, 16, 1, 2, 2)},
            r"patch_embedding\.weight has shape \[24, 16, 1, 2, 2\] instead of \[24, 36, 1, 2, 2\]",
        ),
        "half": ({k: v for k, v in peft(halves).items() if k != key}, r"has only one of its two halves"),
        "ranks": (peft({name: (down, up[:, :2])}), r"have ranks 3 and \[2\]"),
        "dora": (
            peft(halves) | {f"{name}.lora_magnitude_vector": torch.ones(WIDTH)},
            r"lora_magnitude_vector, which is no kind of LoRA known here",
        ),
        "lokr": ({f"{name}.lokr_w1": down}, r"lokr_w1, which is no kind of LoRA known here"),
        "a whole model": ({f"{name}.weight": up}, r"self_attn\.q\.weight, which is no kind"),
        "twice": (
            peft(halves) | {f"{name}.diff": torch.ones(WIDTH, WIDTH)},
            r"changes blocks\.0\.attn1\.to_q in two ways",
        ),
        "only alphas": ({f"{name}.alpha": torch.tensor(1.0)}, r"it holds no LoRA"),
    }


@pytest.mark.parametrize("case", wrong_files())
def test_a_wrong_file_is_refused_by_name(tmp_path, shapes, case):
    tensors, said = wrong_files()[case]
    path = tmp_path / "mine.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)
    with pytest.raises(ModelFilesBroken, match=rf"^mine\.safetensors is not a LoRA for Wan2\.2-.*{said}"):
        read_lora(path, shapes=shapes)


class Harmful:
    def __reduce__(self):
        return (print, ("this must not run",))


def test_unreadable_files_are_refused_and_run_no_code(tmp_path, shapes, capsys):
    harmful, noise, cut, odd = (tmp_path / name for name in ("a.ckpt", "b.ckpt", "c.safetensors", "d.pt"))
    torch.save({"state_dict": peft(pairs(1)), "extra": Harmful()}, harmful)
    noise.write_bytes(b"no checkpoint at all")
    save_file(peft(pairs(1)), cut)
    cut.write_bytes(cut.read_bytes()[:-10])
    torch.save([1, 2], odd)
    for path in (harmful, noise, cut, odd):
        with pytest.raises(ModelFilesBroken, match=rf"^{path.name} cannot be read as a LoRA"):
            read_lora(path, shapes=shapes)
    with pytest.raises(ModelFilesBroken, match="there is no LoRA file"):
        read_lora(tmp_path / "none.safetensors", shapes=shapes)
    assert "must not run" not in capsys.readouterr().out
    assert pickle.loads(pickle.dumps(Harmful())) is None  # it would have
