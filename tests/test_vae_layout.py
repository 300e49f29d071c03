"""The VAE's GPU layers compute what diffusers' do; their kernels what their plain forms do."""

import copy

import torch
from wan_animate.wan.model.vae import VideoVae, chunks_of
from wan_animate.wan.speed.vae_layout import FastCausalConv3d, use_gpu_kernels

from benchmarks.random_models import random_vae

from .interpreted import run_interpreted

CONFIG = {"base_dim": 8, "dim_mult": [1, 2, 8, 8], "num_res_blocks": 1}  # widths of both kinds: 8, and 64


@torch.inference_mode()
def test_the_layers_compute_what_diffusers_layers_do():
    plain = random_vae("cpu", torch.float32, **CONFIG)
    fast = use_gpu_kernels(copy.deepcopy(plain))
    convolutions = [module for module in fast.modules() if isinstance(module, FastCausalConv3d)]
    assert {module.is_windowed for module in convolutions} == {True, False}
    video = torch.rand(1, 3, 13, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = [
        VideoVae(network).encode(video[:, :, part] for part in chunks_of(13)) for network in (plain, fast)
    ]
    torch.testing.assert_close(latents[1], latents[0], rtol=1e-4, atol=1e-5)
    frames = [torch.cat(list(VideoVae(network).decode(latents[0])), dim=2) for network in (plain, fast)]
    assert frames[0].shape == video.shape
    torch.testing.assert_close(frames[1], frames[0], rtol=1e-4, atol=1e-4)


def test_the_weights_keep_their_names():
    plain = random_vae("cpu", torch.float32, **CONFIG)
    assert use_gpu_kernels(copy.deepcopy(plain)).state_dict().keys() == plain.state_dict().keys()


INTERPRETED = """
import itertools, torch
from diffusers.models.autoencoders.autoencoder_kl_wan import WanRMS_norm
from wan_animate.wan.speed import pixel_kernels as kernels, vae_layout as vae
torch.set_num_threads(1)
torch.set_grad_enabled(False)
torch.manual_seed(0)
last = {"memory_format": torch.channels_last_3d}
def blank(like):  # every element has to be written
    return torch.full_like(like, float("nan")).contiguous(**last)
norm = WanRMS_norm(12, images=False)
norm.gamma.uniform_(0.5, 1.5)
x, old = (torch.randn(1, 12, frames, 5, 7).contiguous(**last) for frames in (3, 2))
bias = torch.randn(12)
for frames, before, windowed, added in itertools.product((1, 3), (None, old), (False, True), (None, bias)):
    part = x[:, :, :frames].contiguous(**last)
    want, want_new = vae.norm_silu_remember(norm, part, before, bias=added, windowed=windowed)
    out, new = blank(want), blank(want_new)
    kernels.norm_pixels(
        part, norm.gamma, norm.scale, out=out, old=before, new=new, bias=added, silu=True
    )
    torch.testing.assert_close(out, want)
    torch.testing.assert_close(new, want_new)
out = blank(x)
kernels.norm_pixels(x, norm.gamma, norm.scale, out=out, silu=False)
torch.testing.assert_close(out, vae._norm_plain(norm, x))
total = x.clone(**last)
kernels.add_in_place(total, x, bias)
torch.testing.assert_close(total, x + x + bias.view(1, -1, 1, 1, 1))
frames = torch.randn(3, 12, 5, 7).contiguous(memory_format=torch.channels_last)
want = vae.double_size(frames)
out = torch.full_like(want, float("nan")).contiguous(memory_format=torch.channels_last)
kernels.double_pixels(frames, out=out)
assert torch.equal(out, want)
"""


def test_the_kernels_compute_what_their_plain_forms_do():
    run_interpreted(INTERPRETED)
