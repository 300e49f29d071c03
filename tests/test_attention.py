"""Attention kernels: one signature, one answer, chosen once."""

import logging

import pytest
import torch
from wan_animate.wan.model.transformer import AnimateTransformer
from wan_animate.wan.runtime.errors import SetupFailed
from wan_animate.wan.speed import attention
from wan_animate.wan.speed.attention import PLAIN, attend, choose_attention, usable_kernels, why_not
from wan_animate.wan.speed.fused import fuse, linear_gelu, norm_and_rotate

from benchmarks.random_models import TINY_TRANSFORMER, random_transformer

CPU = torch.device("cpu")
SETUP = {"device": CPU, "dtype": torch.float32, "heads": 2, "head_dim": 16}


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def prepared(model: AnimateTransformer):
    context = model.embed_context(drawn(1, 512, 32), drawn(1, 257, 32))
    return model.prepare(
        given=drawn(1, 20, 3, 6, 8), pose=drawn(1, 16, 2, 6, 8), motion=drawn(1, 5, 16), context=context
    )


def test_plain_attention_is_the_textbook_formula():
    queries, keys, values = drawn(2, 7, 3, 8), drawn(2, 5, 3, 8), drawn(2, 5, 3, 8)
    scores = torch.einsum("bnhd,bshd->bhns", queries.double(), keys.double()) / 8**0.5
    exact = torch.einsum("bhns,bshd->bnhd", scores.softmax(-1), values.double())
    result = attend(queries, keys, values, PLAIN)
    assert result.shape == queries.shape
    assert result.is_contiguous()
    torch.testing.assert_close(result.double(), exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["attend", "norm_and_rotate", "linear_gelu"])
def test_the_compiler_is_told_the_truth_about_our_operations(name: str):
    calls = {
        "attend": (attend, (drawn(1, 6, 2, 8), drawn(1, 4, 2, 8), drawn(1, 4, 2, 8), PLAIN)),
        "norm_and_rotate": (
            norm_and_rotate,
            (drawn(1, 6, 16), drawn(16), drawn(1, 6, 1, 8), drawn(1, 6, 1, 8), 1e-6),
        ),
        "linear_gelu": (linear_gelu, (drawn(1, 6, 8), drawn(12, 8), drawn(12))),
    }
    operation, arguments = calls[name]
    torch.library.opcheck(operation, arguments, test_utils=("test_schema", "test_faketensor"))


def test_a_cpu_has_plain_attention_only(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO):
        assert choose_attention("auto", **SETUP) == PLAIN
    assert "attention: sdpa" in caplog.text
    assert usable_kernels(device=CPU, dtype=torch.float32, head_dim=16) == (PLAIN,)


def test_a_named_kernel_is_used_or_refused_with_what_would_work():
    assert choose_attention(PLAIN, **SETUP) == PLAIN
    with pytest.raises(SetupFailed, match=r"'flash4' cannot be used here: it needs a CUDA GPU.*one of sdpa"):
        choose_attention("flash4", **SETUP)
    with pytest.raises(SetupFailed, match="no such kernel"):
        choose_attention("fastest", **SETUP)


def test_a_kernel_that_computes_something_else_is_not_usable(monkeypatch: pytest.MonkeyPatch):
    def off(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        return attention._plain(queries, keys, values) * 1.1

    monkeypatch.setitem(attention.KERNELS, "off", lambda: off)
    error = attention.difference("off", device=CPU, dtype=torch.float32, head_dim=16)
    assert error == pytest.approx(0.1, rel=1e-3)
    assert error > attention.TOLERANCE


@torch.inference_mode()
def test_fused_blocks_compute_what_diffusers_blocks_do():
    model = random_transformer("cpu", torch.float32, **TINY_TRANSFORMER)
    clip = prepared(model)
    latents = drawn(1, 16, 3, 6, 8)
    before = model.step(latents, 500, clip)
    fuse(model, attention=PLAIN)
    torch.testing.assert_close(model.step(latents, 500, clip), before, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_fused_blocks_take_two_passes_as_one_batch():
    model = random_transformer("cpu", torch.float32, **TINY_TRANSFORMER)
    fuse(model, attention=PLAIN)
    one = prepared(model)
    context = one.context.expand(2, -1, -1)
    two = model.prepare(
        given=drawn(1, 20, 3, 6, 8).expand(2, -1, -1, -1, -1),
        pose=drawn(1, 16, 2, 6, 8).expand(2, -1, -1, -1, -1),
        motion=drawn(1, 5, 16).expand(2, -1, -1),
        context=context,
    )
    latents = drawn(1, 16, 3, 6, 8)
    both = model.step(latents.expand(2, -1, -1, -1, -1), 500, two)
    torch.testing.assert_close(both[1:], model.step(latents, 500, one), rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
def test_every_usable_kernel_gives_the_plain_answer():
    device = torch.device("cuda")
    for name in attention.KERNELS:
        reason = why_not(name, device=device, dtype=torch.bfloat16, head_dim=128)
        assert reason is None or "off by" not in reason
