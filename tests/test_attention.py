"""Attention kernels: one signature, one answer, chosen once."""

import logging

import pytest
import torch
from wan_animate.wan.runtime.errors import SetupFailed
from wan_animate.wan.speed import attention
from wan_animate.wan.speed.attention import PLAIN, attend, choose_attention, usable_kernels, why_not

CPU = torch.device("cpu")
SETUP = {"device": CPU, "dtype": torch.float32, "heads": 2, "head_dim": 16}


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_plain_attention_is_the_textbook_formula():
    queries, keys, values = drawn(2, 7, 3, 8), drawn(2, 5, 3, 8), drawn(2, 5, 3, 8)
    scores = torch.einsum("bnhd,bshd->bhns", queries.double(), keys.double()) / 8**0.5
    exact = torch.einsum("bhns,bshd->bnhd", scores.softmax(-1), values.double())
    result = attend(queries, keys, values, PLAIN)
    assert result.shape == queries.shape
    assert result.is_contiguous()
    torch.testing.assert_close(result.double(), exact, rtol=1e-5, atol=1e-6)


def test_the_compiler_is_told_the_truth():
    arguments = (drawn(1, 6, 2, 8), drawn(1, 4, 2, 8), drawn(1, 4, 2, 8), PLAIN)
    torch.library.opcheck(attend, arguments, test_utils=("test_schema", "test_faketensor"))


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


@pytest.mark.gpu
def test_every_usable_kernel_gives_the_plain_answer():
    device = torch.device("cuda")
    for name in attention.KERNELS:
        reason = why_not(name, device=device, dtype=torch.bfloat16, head_dim=128)
        assert reason is None or "off by" not in reason
