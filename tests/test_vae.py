"""The VAE wrapper: diffusers' numbers bit for bit, the published ones closely; chunks can be stopped."""

import numpy as np
import pytest
import torch
from wan_animate.wan.model.smoke import build_smoke_models, tiny_vae
from wan_animate.wan.model.vae import VideoVae, chunks_of, latent_frames, use_cpu_kernels

from .seeded import DATA, GOLDEN, autoencoder, relative

TOLERANCE = 1e-5  # relative to the largest value; another version of torch already moves results by 6e-6


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.inference_mode():
        yield


def never_stop() -> None:
    pass


def in_chunks(video: torch.Tensor):
    return (video[:, :, part] for part in chunks_of(video.shape[2]))


def golden_video(recorded) -> torch.Tensor:
    """(1, 3, T, H, W) in [−1, 1]."""
    levels = recorded["clip_u8"].repeat(8, axis=2).repeat(8, axis=3)
    return torch.from_numpy(levels).float()[None] / 127.5 - 1


def normalised(network, moments: torch.Tensor) -> torch.Tensor:
    mean, std = (
        torch.tensor(network.config[name]).view(1, -1, 1, 1, 1) for name in ("latents_mean", "latents_std")
    )
    return (moments - mean) * (1 / std)


def unnormalised(network, latents: torch.Tensor) -> torch.Tensor:
    mean, std = (
        torch.tensor(network.config[name]).view(1, -1, 1, 1, 1) for name in ("latents_mean", "latents_std")
    )
    return latents / (1 / std) + mean


def test_chunks_are_one_frame_then_four_at_a_time():
    assert [(part.start, part.stop) for part in chunks_of(9)] == [(0, 1), (1, 5), (5, 9)]
    assert [latent_frames(count) for count in (1, 2, 5, 6, 9, 77)] == [1, 2, 2, 3, 3, 20]


@pytest.mark.parametrize("num_frames", [1, 5, 17])
def test_chunks_give_what_diffusers_gives_bit_for_bit(num_frames):
    network = autoencoder("vae_a")
    vae = VideoVae(network)
    generator = torch.Generator().manual_seed(num_frames)
    video = torch.rand(1, 3, num_frames, 48, 32, generator=generator) * 2 - 1
    latents = vae.encode(in_chunks(video))
    assert torch.equal(latents, normalised(network, network.encode(video).latent_dist.mode()))
    decoded = list(vae.decode(latents))
    assert [chunk.shape[2] for chunk in decoded] == [1] + [4] * (len(decoded) - 1)
    assert torch.equal(torch.cat(decoded, dim=2), network.decode(unnormalised(network, latents)).sample)


@pytest.mark.parametrize("kernels", [lambda network: network, use_cpu_kernels], ids=["torch", "cpu kernels"])
def test_the_published_numbers_are_met(kernels):
    recorded = np.load(DATA / "vae.npz")
    vae = VideoVae(kernels(autoencoder.__wrapped__("vae_a")))
    video = golden_video(recorded)
    grey = vae.encode_grey(9, height=64, width=64, check=never_stop)
    decoded = torch.cat(list(vae.decode(torch.from_numpy(recorded["z"])[None])), dim=2)
    assert relative(vae.encode(in_chunks(video))[0], recorded["mu"]) < TOLERANCE
    assert relative(vae.encode([video[:, :, :1]])[0], recorded["mu_first_frame_only"]) < TOLERANCE
    assert relative(grey[0], recorded["mu_zeros"]) < TOLERANCE
    assert relative(decoded[0][:, :, ::8, ::8], recorded["decoded"]) < TOLERANCE


@pytest.mark.parametrize("case", [path.name for path in sorted(GOLDEN.glob("model/vae_*"))])
def test_all_published_cases_are_met(case):
    recorded = np.load(GOLDEN / "model" / case / "data.npz")
    vae = VideoVae(autoencoder(case))
    video = golden_video(recorded)
    mu = vae.encode(in_chunks(video))
    assert relative(mu[0], recorded["mu"]) < TOLERANCE
    assert (
        relative(
            torch.cat(list(vae.decode(torch.from_numpy(recorded["z"])[None])), 2)[0], recorded["decoded"]
        )
        < TOLERANCE
    )
    again = torch.cat(list(vae.decode(mu)), dim=2)[0]
    levels = ((again + 1) * 127.5).round()
    assert (levels - torch.from_numpy(recorded["decoded_of_mu_u8"]).float()).abs().max() <= 1


def test_the_beginning_of_a_video_needs_only_the_beginning_of_its_latents():
    vae = build_smoke_models().vae
    latents = torch.randn(1, 16, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    whole = torch.cat(list(vae.decode(latents)), dim=2)
    part = torch.cat(list(vae.decode(latents[:, :, :2])), dim=2)
    torch.testing.assert_close(part, whole[:, :, :5], rtol=0, atol=1e-6)


def test_stopping_between_chunks_leaves_nothing_behind():
    vae = build_smoke_models().vae
    video = torch.rand(1, 3, 9, 32, 32, generator=torch.Generator().manual_seed(0))
    latents = vae.encode(in_chunks(video))
    pixels = torch.cat(list(vae.decode(latents)), dim=2)

    def broken_off():
        yield video[:, :, :1]
        yield video[:, :, 1:5]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        vae.encode(broken_off())
    half_way = vae.decode(latents)
    next(half_way)
    next(half_way)
    assert torch.equal(vae.encode(in_chunks(video)), latents)
    assert torch.equal(torch.cat(list(vae.decode(latents)), dim=2), pixels)


def test_grey_video_is_encoded_once_for_a_size_and_length():
    vae = build_smoke_models().vae
    calls = []
    first = vae.encode_grey(9, height=32, width=48, check=lambda: calls.append(1))
    assert len(calls) == 3  # one a chunk
    assert vae.encode_grey(9, height=32, width=48, check=lambda: calls.append(1)) is first
    assert len(calls) == 3
    assert vae.encode_grey(5, height=32, width=48, check=never_stop).shape == (1, 16, 2, 4, 6)
    assert torch.equal(first, vae.encode(in_chunks(torch.zeros(1, 3, 9, 32, 48))))


def test_cpu_kernels_change_rounding_only():
    torch.manual_seed(0)
    plain = tiny_vae().requires_grad_(False).eval()
    fast = tiny_vae().requires_grad_(False).eval()
    fast.load_state_dict(plain.state_dict())
    video = torch.rand(1, 3, 5, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    slow_latents = VideoVae(plain).encode(in_chunks(video))
    assert relative(VideoVae(use_cpu_kernels(fast)).encode(in_chunks(video)), slow_latents) < TOLERANCE
