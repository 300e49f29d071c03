"""Recordings of the official networks beside ours, of the same weights and inputs, in float32 on the CPU."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import nn
from wan_animate.wan.conditioning import to_pixels
from wan_animate.wan.model.encoders import ImageEncoder, clip_pixels
from wan_animate.wan.model.transformer import AnimateTransformer, Prepared
from wan_animate.wan.model.vae import VideoVae, chunks_of

from ..seeded import enlarge, pad_text
from . import networks
from .findings import Check, Compare, Finding, arrays, relative_l2, relative_largest, within

TRANSFORMER = 5e-5  # relative L2
NETWORK = 1e-5  # VAE, CLIP and umT5: largest difference over the largest value
GREY_LEVEL = 1.0
CPU = torch.device("cpu")

Case = dict[str, np.ndarray]


@torch.inference_mode()
def dit(folder: Path) -> Iterator[Finding]:
    """The transformer: motion encoder, what is prepared once a clip, one block, whole passes."""
    about, case, check = _load(folder)
    yield Finding(part="weights", checks=networks.check_weights(check, salt=about["salt"]))
    network = networks.transformer(about["config"], check, salt=about["salt"])
    motion = network.embed_motion(
        rearrange(to_pixels(enlarge(case["face_base_u8"]), CPU), "1 c n h w -> n c h w")
    )
    vectors = case["motion_vec"]
    yield Finding(
        part="motion encoder",
        checks=(relative_l2("motion_vec", motion, vectors[: len(motion)], TRANSFORMER),),
    )
    if len(motion) < len(vectors):  # a part of the published recording, with fewer faces
        motion = torch.from_numpy(vectors)
    if "clip_fea_int8" in case:
        context = network.embed_context(pad_text(case["context"]), networks.clip_features(case))
    else:
        blank = torch.zeros(1, 257, network.config["image_dim"])
        context = network.embed_context(pad_text(case["context"]), blank)
    prepared = network.prepare(
        given=torch.from_numpy(case["y"])[None],
        pose=torch.from_numpy(case["pose_latents"]),
        motion=motion[None],
        context=context,
    )
    yield Finding(part="prepared", checks=tuple(_dit_prepared(network, case, prepared, motion)))
    yield from _dit_passes(network, case, prepared, motion)


def _dit_prepared(
    network: AnimateTransformer, case: Case, prepared: Prepared, motion: torch.Tensor
) -> Iterator[Check]:
    ours = {
        "mid_text_embedding_out": prepared.context[:, 257:],
        "mid_img_emb_out": prepared.context[:, :257],
        "mid_pose_patch_embedding_out": prepared.pose,
        "mid_face_encoder_out": network.face_encoder(motion[None]),
    }
    for name, value in ours.items():
        if name in case and (name != "mid_img_emb_out" or "clip_fea_int8" in case):
            theirs = case[name]
            if name == "mid_pose_patch_embedding_out":
                theirs = rearrange(theirs, "b d t h w -> b (t h w) d")
            yield relative_l2(name, value[:, : theirs.shape[1]], theirs, TRANSFORMER)


def _dit_passes(
    network: AnimateTransformer, case: Case, prepared: Prepared, motion: torch.Tensor
) -> Iterator[Finding]:
    latents = torch.from_numpy(case["latents"])[None]
    for index, timestep in enumerate(case["timesteps"].tolist()):
        prefix = "mid_" if index == 0 else f"mid_t{timestep}_"
        embedding, modulation = network.embed_time(timestep)
        with _watched(network, prefix) as seen:
            out = network.step(latents, timestep, prepared)
        seen |= {
            f"{prefix}time_embedding_out": embedding,
            f"{prefix}time_projection_out": modulation.flatten(1),
            f"out_t{timestep}": out[0],
        }
        if index == 0 and f"out_blank_face_t{timestep}" in case:
            blank = network.embed_motion(torch.full((1, 3, 512, 512), -1.0)).expand(1, len(motion), -1)
            faceless = prepared.replace(context=prepared.context, faces=network.prepare_faces(blank))
            seen[f"out_blank_face_t{timestep}"] = network.step(latents, timestep, faceless)[0]
        stored = [name for name in seen if name in case]
        yield Finding(
            part=f"t={timestep}",
            checks=tuple(relative_l2(name, seen[name], case[name], TRANSFORMER) for name in stored),
        )


@contextmanager
def _watched(network: AnimateTransformer, prefix: str) -> Iterator[dict[str, torch.Tensor]]:
    """What goes through some inner layers meanwhile."""
    seen: dict[str, torch.Tensor] = {}
    layers = {
        "patch_embedding_out": network.patch_embedding,
        "block0_self_attn_out": network.blocks[0].attn1,
        "block0_cross_attn_out": network.blocks[0].attn2,
        "block0_out": network.blocks[0],
        "last_block_out": network.blocks[-1],
    }
    hooks = [
        layer.register_forward_hook(
            # Cloned: the residuals are added in place.
            lambda _layer, _inputs, output, name=name: seen.__setitem__(f"{prefix}{name}", output.clone())
        )
        for name, layer in layers.items()
    ]

    def face_adapter0(_block: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        # The first adapter adds to what block 0 gives; block 1 is given the sum.
        seen[f"{prefix}face_adapter0_out"] = inputs[0] - seen[f"{prefix}block0_out"]

    hooks.append(network.blocks[1].register_forward_pre_hook(face_adapter0))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@torch.inference_mode()
def vae(folder: Path) -> Iterator[Finding]:
    """The VAE: videos, pictures and mid-grey to latents, latents to videos."""
    about, case, check = _load(folder)
    yield Finding(part="weights", checks=networks.check_weights(check, salt=about["salt"]))
    network = VideoVae(networks.autoencoder(about, check, salt=about["salt"]))
    levels = case["clip_u8"].repeat(8, axis=2).repeat(8, axis=3)
    video = to_pixels(rearrange(levels, "c t h w -> t h w c"), CPU)
    mu = network.encode(video[:, :, part] for part in chunks_of(video.shape[2]))
    mean, deviation = (
        np.array(about[name], np.float32).reshape(-1, 1, 1, 1) for name in ("latents_mean", "latents_std")
    )
    encoded = {
        "mu": mu[0],
        "mu_unnormalised": mu[0].numpy() * deviation + mean,
        "mu_first_frame_only": network.encode([video[:, :, :1]])[0],
        "mu_zeros": network.encode_grey(
            video.shape[2], height=video.shape[3], width=video.shape[4], check=_go_on
        )[0],
    }
    yield Finding(part="encode", checks=_stored(encoded, case))
    z = torch.from_numpy(case["z"])[None]
    pixels = torch.cat(list(network.decode(z)), dim=2)[0]
    decoded = {
        "decoded": pixels,
        "decoded_unclamped_frame0": pixels[0, :, :1],  # one line of every frame
        "decoded_first_latent_only": next(network.decode(z[:, :, :1]))[0],
    }
    if "decoded_unclamped_frame0" in case:
        case["decoded_unclamped_frame0"] = case["decoded_unclamped_frame0"].clip(-1, 1)  # as ours are
    again = torch.cat(list(network.decode(torch.from_numpy(case["mu"])[None])), dim=2)[0]
    checks = _stored(decoded, case)
    if "decoded_of_mu_u8" in case:  # the first frames, in a part of the published recording
        theirs = case["decoded_of_mu_u8"]
        grey = ((again + 1) * 127.5).round()[:, : theirs.shape[1]]
        checks += (within("decoded_of_mu_u8", grey, theirs.astype(np.int16), GREY_LEVEL),)
    yield Finding(part="decode", checks=checks)


@torch.inference_mode()
def t5(folder: Path) -> Iterator[Finding]:
    """The text encoder, on the prompts' own tokens; what follows them is cut off there and here."""
    about, case, check = _load(folder)
    yield Finding(part="weights", checks=networks.check_weights(check, salt=about["salt"]))
    config = about["config"] | {"vocab": about["vocab"]}
    network = networks.text_encoder(config, check, salt=about["salt"])
    ids, mask = torch.from_numpy(case["ids"]), torch.from_numpy(case["mask"])
    ours = network(ids, mask).last_hidden_state
    own = case["mask"].astype(bool)
    yield Finding(
        part="features", checks=(relative_largest("out", ours.numpy()[own], case["out"][own], NETWORK),)
    )


@torch.inference_mode()
def clip(folder: Path) -> Iterator[Finding]:
    """The picture encoder, from pictures of any shape."""
    about, case, check = _load(folder)
    yield Finding(part="weights", checks=networks.check_weights(check, salt=about["salt"]))
    encoder = ImageEncoder(networks.image_encoder(about["config"], check, salt=about["salt"]))
    for number in sorted(int(name.removeprefix("image")) for name in case if name.startswith("image")):
        picture = case[f"image{number}"]
        checks = []
        if f"preprocessed{number}" in case:
            pixels, theirs = clip_pixels(picture), case[f"preprocessed{number}"]
            stride = pixels.shape[-1] // theirs.shape[-1]  # some are stored thinned out
            checks.append(relative_largest("pixels", pixels[:, :, ::stride, ::stride], theirs, NETWORK))
        checks.append(relative_largest("out", encoder(picture), case[f"out{number}"], NETWORK))
        yield Finding(part=f"image{number}", checks=tuple(checks))


def _load(folder: Path) -> tuple[dict[str, Any], Case, Path]:
    """A recording's description, arrays, and list of weights."""
    about = json.loads((folder / "config.json").read_text())
    return about, arrays(folder / "data.npz"), folder / "weights_check.json"


def _stored(ours: dict[str, Any], case: Case) -> tuple[Check, ...]:
    return tuple(relative_largest(name, ours[name], case[name], NETWORK) for name in ours if name in case)


def _go_on() -> None:
    """Nobody cancels."""


COMPARE: dict[str, Compare] = {"model/dit": dit, "model/vae": vae, "model/t5": t5, "model/clip": clip}
