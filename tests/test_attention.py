"""Attention kernels: one signature, one answer, chosen once."""

import logging
import os
import subprocess
import sys
from pathlib import Path

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
    with caplog.at_level(logging.DEBUG):
        assert choose_attention("auto", **SETUP) == PLAIN
    assert "attention: sdpa" in caplog.text
    assert "attention: flash4-shared cannot be used here: it needs a CUDA GPU, not cpu" in caplog.text
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


def test_of_kernels_about_as_fast_the_most_promising_is_picked():
    first, second, *_ = attention.KERNELS
    assert attention.pick({first: 1.04, second: 1.0, PLAIN: 1.2}) == first
    assert attention.pick({first: 1.06, second: 1.0, PLAIN: 1.2}) == second


COMPILED = """
from pathlib import Path
import torch
from wan_animate.wan.speed.hopper import compile_forward
compile_forward(torch.bfloat16, 128)
(code,) = Path(".").glob("*.ptx")
text = code.read_text()
loads = [line for line in text.splitlines() if "cp.async.bulk.tensor" in line and "global" in line]
shared = [line for line in loads if "multicast::cluster" in line]
assert len(shared) > 0 and len(loads) - len(shared) > 0, loads  # keys and values; queries
assert "wgmma" in text
"""


def test_the_kernel_that_shares_keys_compiles_for_a_hopper_card_that_is_not_here(tmp_path: Path):
    pytest.importorskip("flash_attn.cute")
    environment = os.environ | {"CUTE_DSL_ARCH": "sm_90a", "CUTE_DSL_KEEP_PTX": "1", "CUTE_DSL_DUMP_DIR": "."}
    subprocess.run([sys.executable, "-c", COMPILED], check=True, env=environment, cwd=tmp_path)


@pytest.mark.gpu
def test_every_usable_kernel_gives_the_plain_answer():
    device = torch.device("cuda")
    for name in attention.KERNELS:
        reason = why_not(name, device=device, dtype=torch.bfloat16, head_dim=128)
        assert reason is None or "off by" not in reason
