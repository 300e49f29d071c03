"""prepare and step: equal to diffusers' forward, and to what the published code computes."""

from dataclasses import fields

import numpy as np
import pytest
import torch
from einops import rearrange
from wan_animate.wan.conditioning import to_pixels
from wan_animate.wan.model import names
from wan_animate.wan.model.smoke import tiny_transformer
from wan_animate.wan.model.transformer import AnimateTransformer, Prepared, time_waves

from .seeded import DATA, GOLDEN, enlarge, networks, pad_text, relative, transformer

FACE = 32
TOLERANCE = 5e-5  # relative to the largest value; 2e-6 is seen


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.inference_mode():
        yield


class ExactTime(torch.nn.Module):
    """diffusers' time sinusoid in float64: the only thing in which its forward and ours differ on purpose."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, timesteps: torch.Tensor) -> torch.Tensor:
        return torch.cat([time_waves(int(t), self.width, timesteps.device) for t in timesteps])


def tiny(dtype: torch.dtype = torch.float32) -> AnimateTransformer:
    """The smoke transformer, but for faces of 32 pixels a side."""
    config = {key: value for key, value in tiny_transformer().config.items() if not key.startswith("_")}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = AnimateTransformer(**config | {"motion_encoder_size": FACE})
    return network.set_precision(dtype).requires_grad_(False).eval()


def random_clip(batch: int = 1, frames: int = 3, text: int = 32, image: int = 32) -> dict[str, torch.Tensor]:
    """Seeded inputs of `frames` latent frames at 4 × 6."""
    generator = torch.Generator().manual_seed(5)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(batch, *shape, generator=generator)

    return {
        "latents": draw(16, frames + 1, 4, 6),
        "given": draw(20, frames + 1, 4, 6),
        "pose": draw(16, frames, 4, 6),
        "text": draw(512, text),
        "image": draw(257, image),
        "faces": draw(3, 4 * frames - 3, FACE, FACE).clamp(-1, 1),
    }


def prepare(network: AnimateTransformer, clip: dict[str, torch.Tensor]) -> Prepared:
    motion = network.embed_motion(rearrange(clip["faces"], "b c t h w -> (b t) c h w"))
    return network.prepare(
        given=clip["given"],
        pose=clip["pose"],
        motion=rearrange(motion, "(b t) m -> b t m", b=len(clip["faces"])),
        context=network.embed_context(clip["text"], clip["image"]),
    )


@pytest.mark.parametrize("batch", [1, 2])
def test_prepare_and_step_give_what_forward_gives(batch):
    network = tiny()
    clip = random_clip(batch)
    prepared = prepare(network, clip)
    network.condition_embedder.timesteps_proj = ExactTime(network.config["freq_dim"])
    for timestep in (1000, 437, 12):
        plain = network(
            hidden_states=torch.cat([clip["latents"], clip["given"]], dim=1),
            timestep=torch.full((batch,), timestep),
            encoder_hidden_states=clip["text"],
            encoder_hidden_states_image=clip["image"],
            pose_hidden_states=clip["pose"],
            face_pixel_values=clip["faces"],
            return_dict=False,
        )[0]
        assert relative(network.step(clip["latents"], timestep, prepared), plain) < 1e-6


def test_a_step_repeats_nothing_that_is_constant_over_the_clip():
    network = tiny()
    clip = random_clip()
    prepared = prepare(network, clip)
    calls = []
    embedder = network.condition_embedder
    constant = [
        network.motion_encoder,
        network.face_encoder,
        network.pose_patch_embedding,
        network.rope,
        embedder.text_embedder,
        embedder.image_embedder,
        *(projection for adapter in network.adapters for projection in (adapter.to_k, adapter.to_v)),
    ]
    hooks = [module.register_forward_hook(lambda module, *_: calls.append(module)) for module in constant]
    network.step(clip["latents"], 500, prepared)
    assert calls == []
    for hook in hooks:
        hook.remove()


def test_a_step_leaves_what_was_prepared_as_it_was():
    network = tiny()
    clip = random_clip()
    prepared = prepare(network, clip)
    first = network.step(clip["latents"], 500, prepared)
    assert torch.equal(network.step(clip["latents"], 500, prepared), first)


def test_replacing_text_and_faces_shares_all_else():
    network = tiny()
    prepared = prepare(network, random_clip())
    other = prepared.replace(context=prepared.context + 1, faces=())
    changed = {
        field.name
        for field in fields(Prepared)
        if getattr(other, field.name) is not getattr(prepared, field.name)
    }
    assert changed == {"context", "faces"}


@pytest.mark.parametrize("name", ["latents", "given", "pose", "text", "image", "faces"])
def test_every_condition_reaches_the_prediction(name):
    network = tiny()
    clip = random_clip()
    before = network.step(clip["latents"], 500, prepare(network, clip))
    clip[name] = clip[name].flip(-1)
    assert relative(network.step(clip["latents"], 500, prepare(network, clip)), before) > 1e-3


def test_mismatched_conditions_are_refused():
    network = tiny()
    clip = random_clip()
    context = network.embed_context(clip["text"], clip["image"])
    with pytest.raises(ValueError, match="not of one clip"):
        network.prepare(
            given=clip["given"], pose=clip["pose"][:, :, 1:], motion=torch.zeros(1, 9, 16), context=context
        )
    with pytest.raises(ValueError, match="3 latent frames need 9 faces, got 8"):
        network.prepare(given=clip["given"], pose=clip["pose"], motion=torch.zeros(1, 8, 16), context=context)


def test_bf16_keeps_time_modulation_norms_and_rotary_tables_in_float32():
    network = tiny(torch.bfloat16)
    kept = {name for name, parameter in network.named_parameters() if parameter.dtype == torch.float32}
    groups = ("time_embedder", "time_proj", "scale_shift_table", "norm1", "norm2", "motion_synthesis_weight")
    assert all(any(group in name.split(".") for name in kept) for group in groups)
    assert network.compute_dtype == torch.bfloat16
    assert not any("attn" in name or "ffn" in name for name in kept)
    clip = random_clip()
    prepared = prepare(network, clip)
    assert prepared.rotary[0].dtype == torch.float32
    assert all(tensor.dtype == torch.float32 for tensor in network.embed_time(500))


def test_bf16_predicts_in_float32_and_close_to_float32():
    clip = random_clip()
    exact, rounded = (tiny(dtype) for dtype in (torch.float32, torch.bfloat16))
    expected = exact.step(clip["latents"], 500, prepare(exact, clip))
    ours = rounded.step(clip["latents"], 500, prepare(rounded, clip))
    assert ours.dtype == torch.float32
    assert relative(ours, expected) < 0.03  # bf16 has 3 digits


def empty_checkpoint() -> dict[str, torch.Tensor]:
    """The published names and shapes, without memory."""
    return {name: torch.empty(shape, device="meta") for name, shape in networks()["dit_a"]["shapes"].items()}


def test_published_names_are_all_used_and_the_blur_kernels_dropped():
    kernel = "motion_encoder.enc.net_app.convs.1.conv2.0.kernel"
    weights = empty_checkpoint() | {kernel: torch.empty(4, 4, device="meta")}
    before = {name: tensor.shape for name, tensor in weights.items()}
    converted = names.transformer_names(weights)
    assert converted.keys() == transformer("dit_a").state_dict().keys()
    assert {name: tensor.shape for name, tensor in weights.items()} == before  # the argument is left alone


def test_a_checkpoint_can_be_renamed_shard_by_shard():
    weights = empty_checkpoint()
    items = list(weights.items())
    shards = [dict(items[start::3]) for start in range(3)]
    merged = {name: tensor for shard in shards for name, tensor in names.transformer_names(shard).items()}
    assert merged.keys() == names.transformer_names(weights).keys()


def test_motion_vectors_are_the_published_ones():
    recorded = np.load(DATA / "motion_encoder.npz")
    faces = to_pixels(enlarge(recorded["face_base_u8"]), torch.device("cpu"))
    ours = transformer("dit_a").embed_motion(rearrange(faces, "1 c n h w -> n c h w"))
    assert relative(ours, recorded["motion_vec"]) < TOLERANCE


def recorded_clip(network: AnimateTransformer) -> tuple[torch.Tensor, Prepared]:
    """Seeded inputs in numpy, which changes its streams less readily than torch."""
    generator = np.random.Generator(np.random.PCG64(77))

    def draw(*shape: int) -> torch.Tensor:
        return torch.from_numpy(generator.standard_normal((1, *shape), dtype=np.float32))

    latents, given, pose = draw(16, 4, 8, 8), draw(20, 4, 8, 8), draw(16, 3, 8, 8)
    context = network.embed_context(draw(512, 16), draw(257, 1280))
    return latents, network.prepare(given=given, pose=pose, motion=draw(9, 512), context=context)


@pytest.mark.parametrize("timestep", [999, 437])
def test_predictions_stay_what_they_were_when_all_published_cases_were_met(timestep):
    network = transformer("dit_a")
    latents, prepared = recorded_clip(network)
    recorded = np.load(DATA / "transformer.npz")
    assert relative(network.step(latents, timestep, prepared)[0], recorded[f"out_t{timestep}"]) < TOLERANCE


@pytest.mark.parametrize("case", [path.name for path in sorted(GOLDEN.glob("model/dit_*"))])
def test_all_published_cases_are_met(case):
    recorded = np.load(GOLDEN / "model" / case / "data.npz")
    network = transformer(case)
    latents = torch.from_numpy(recorded["latents"])[None]
    image = torch.from_numpy(recorded["clip_fea_int8"]).float() / 8
    context = network.embed_context(pad_text(recorded["context"]), image)
    prepared = network.prepare(
        given=torch.from_numpy(recorded["y"])[None],
        pose=torch.from_numpy(recorded["pose_latents"]),
        motion=torch.from_numpy(recorded["motion_vec"])[None],  # 1 s a face; checked on its own above
        context=context,
    )
    words = recorded["mid_text_embedding_out"]
    assert relative(context[:, 257 : 257 + words.shape[1]], words) < TOLERANCE
    assert relative(context[:, :8], recorded["mid_img_emb_out"]) < TOLERANCE
    pose = rearrange(recorded["mid_pose_patch_embedding_out"], "b d t h w -> b (t h w) d")
    assert relative(prepared.pose, pose) < TOLERANCE
    first = int(recorded["timesteps"][0])
    embedding, modulation = network.embed_time(first)
    assert relative(embedding, recorded["mid_time_embedding_out"]) < TOLERANCE
    assert relative(modulation.flatten(1), recorded["mid_time_projection_out"]) < TOLERANCE
    for timestep in recorded["timesteps"].tolist():
        assert (
            relative(network.step(latents, timestep, prepared)[0], recorded[f"out_t{timestep}"]) < TOLERANCE
        )
    blank = network.embed_motion(torch.full((1, 3, 512, 512), -1.0))[None]
    faceless = prepared.replace(
        context=context, faces=network.prepare_faces(blank.expand(1, len(recorded["motion_vec"]), -1))
    )
    out = network.step(latents, first, faceless)[0]
    assert relative(out, recorded[f"out_blank_face_t{first}"]) < TOLERANCE


@pytest.mark.parametrize("case", [path.name for path in sorted(GOLDEN.glob("model/dit_*"))])
def test_blocks_and_face_adapter_give_the_published_intermediate_results(case):
    recorded = np.load(GOLDEN / "model" / case / "data.npz")
    network = transformer(case)
    seen = {}
    block = network.blocks[0]
    watched = {
        "mid_block0_self_attn_out": block.attn1,
        "mid_block0_cross_attn_out": block.attn2,
        "mid_block0_out": block,
        "mid_last_block_out": network.blocks[-1],
        "mid_patch_embedding_out": network.patch_embedding,
    }
    hooks = [
        module.register_forward_hook(
            lambda _module, _inputs, output, name=name: seen.__setitem__(name, output.clone())
        )
        for name, module in watched.items()
    ]

    def face_adapter(_block, inputs) -> None:
        # The first adapter adds to what block 0 gives; block 1 is given the sum.
        seen["mid_face_adapter0_out"] = inputs[0] - seen["mid_block0_out"]

    hooks.append(network.blocks[1].register_forward_pre_hook(face_adapter))
    image = torch.from_numpy(recorded["clip_fea_int8"]).float() / 8
    prepared = network.prepare(
        given=torch.from_numpy(recorded["y"])[None],
        pose=torch.from_numpy(recorded["pose_latents"]),
        motion=torch.from_numpy(recorded["motion_vec"])[None],
        context=network.embed_context(pad_text(recorded["context"]), image),
    )
    network.step(torch.from_numpy(recorded["latents"])[None], int(recorded["timesteps"][0]), prepared)
    for hook in hooks:
        hook.remove()
    assert {
        name: relative(output, recorded[name]) < TOLERANCE for name, output in seen.items()
    } == dict.fromkeys([*watched, "mid_face_adapter0_out"], True)
