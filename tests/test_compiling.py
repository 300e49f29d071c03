"""Blocks are compiled once: for all blocks, for all sizes, and not again at the next setup."""

import logging
from pathlib import Path

import pytest
import torch
import torch._dynamo
from torch._dynamo.testing import CompileCounter
from wan_animate.wan.speed.attention import PLAIN
from wan_animate.wan.speed.compiling import compile_blocks, kept_on_disk, warm_up
from wan_animate.wan.speed.fused import fuse

from benchmarks.random_models import TINY_TRANSFORMER, random_transformer

SIZES = {"head_dim": 16, "width": 32, "device": torch.device("cpu")}


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_four_blocks_and_three_sizes_are_one_compilation():
    model = random_transformer("cpu", torch.float32, **TINY_TRANSFORMER)
    fuse(model, attention=PLAIN)
    counter = CompileCounter()
    compile_blocks(model.blocks, backend=counter)
    for tokens in (48, 60, 24):
        for block in model.blocks:
            warm_up(block, tokens=tokens, **SIZES)
    assert counter.frame_count == 1


def test_compiled_blocks_compute_the_same():
    model = random_transformer("cpu", torch.float32, **TINY_TRANSFORMER)
    fuse(model, attention=PLAIN)
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(shape, generator=generator) for shape in ((1, 20, 32), (1, 769, 32), (1, 6, 32))]
    rotary = (torch.randn(1, 20, 1, 16, generator=generator),) * 2
    with torch.inference_mode():
        plain = model.blocks[0](*inputs, rotary)
        compile_blocks(model.blocks, backend="eager")
        assert torch.equal(model.blocks[0](*inputs, rotary), plain)


def test_a_damaged_cache_costs_no_setup(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with kept_on_disk(tmp_path):
        pass
    name = next(iter(tmp_path.glob("*.bin")), None)
    assert name is None  # nothing was compiled, nothing is kept
    from wan_animate.wan.speed import compiling  # noqa: PLC0415

    (tmp_path / f"compiled-{compiling._stamp()}.bin").write_bytes(b"not a cache")
    with caplog.at_level(logging.WARNING), kept_on_disk(tmp_path):
        ran = True
    assert ran
    assert "of no use" in caplog.text


def test_an_error_while_compiling_is_not_kept(tmp_path: Path):
    with pytest.raises(RuntimeError, match="broken"), kept_on_disk(tmp_path):
        raise RuntimeError("broken")
    assert not list(tmp_path.iterdir())
