"""Streamed blocks compute what resident ones do, whatever the order and whatever went wrong before."""

import copy

import pytest
import torch
from torch import nn
from wan_animate.wan.model.smoke import build_smoke_models
from wan_animate.wan.speed.apply import apply_plan
from wan_animate.wan.speed.plan import Plan
from wan_animate.wan.speed.streaming import BlockStream

CPU = torch.device("cpu")


class Block(nn.Module):
    """Parameters of two types, as a real block has them."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.table = nn.Parameter(torch.randn(3, dtype=torch.float64))

    def forward(self, x: torch.Tensor, *, fail: bool = False) -> torch.Tensor:
        if fail:
            raise RuntimeError("interrupted")
        return torch.tanh(self.linear(x)) + self.table.sum().float()


def blocks(count: int) -> nn.ModuleList:
    torch.manual_seed(count)
    return nn.ModuleList(Block() for _ in range(count)).requires_grad_(False)


def through(chain: nn.ModuleList, x: torch.Tensor) -> torch.Tensor:
    for block in chain:
        x = block(x)
    return x


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_passes_equal_resident_ones_bit_for_bit(count: int):
    resident = blocks(count)
    streamed = copy.deepcopy(resident)
    BlockStream(list(streamed), device=CPU)
    for seed in range(3):
        x = torch.randn(2, 6, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(through(streamed, x), through(resident, x))


def test_calls_may_come_in_any_order():
    resident = blocks(5)
    streamed = copy.deepcopy(resident)
    BlockStream(list(streamed), device=CPU)
    x = torch.randn(2, 6)
    for index in (3, 3, 0, 4, 1, 0, 2, 4, 4, 0):
        assert torch.equal(streamed[index](x), resident[index](x))


def test_names_and_values_of_the_parameters_stay():
    resident = blocks(3)
    streamed = copy.deepcopy(resident)
    stream = BlockStream(list(streamed), device=CPU)
    through(streamed, torch.randn(2, 6))
    assert streamed.state_dict().keys() == resident.state_dict().keys()
    for name, value in streamed.state_dict().items():
        assert torch.equal(value, resident.state_dict()[name])
    # A table of 3 × 8 bytes; from the next multiples of 256 on, weights of 36 × 4 and biases of 6 × 4.
    assert stream.host_bytes == 3 * (512 + 24)


def test_slots_exist_only_during_a_pass():
    streamed = blocks(4)
    stream = BlockStream(list(streamed), device=CPU)
    assert stream.device_bytes == 0
    streamed[0](torch.randn(2, 6))
    assert stream.device_bytes == 2 * (512 + 24)
    through(streamed, torch.randn(2, 6))
    assert stream.device_bytes == 0


def test_a_changed_weight_counts_from_the_next_pass_on():
    streamed = blocks(3)
    BlockStream(list(streamed), device=CPU)
    x = torch.randn(2, 6)
    before = through(streamed, x)
    streamed[1].linear.weight.data.mul_(2)
    assert not torch.equal(through(streamed, x), before)


def test_an_interrupted_pass_leaves_the_blocks_usable():
    resident = blocks(4)
    streamed = copy.deepcopy(resident)
    BlockStream(list(streamed), device=CPU)
    x = torch.randn(2, 6)
    streamed[0](x)
    with pytest.raises(RuntimeError, match="interrupted"):
        streamed[1](x, fail=True)
    assert torch.equal(through(streamed, x), through(resident, x))


def test_blocks_that_differ_are_refused():
    chain = [*blocks(2), nn.Linear(6, 6)]
    with pytest.raises(ValueError, match="block 2 has other parameters"):
        BlockStream(chain, device=CPU)


@torch.inference_mode()
def test_a_whole_engine_streams_and_computes_the_same():
    plain, streamed = build_smoke_models(), build_smoke_models()
    apply_plan(
        streamed,
        Plan(attention="auto", compiled=False, transformer="streamed", encoders="streamed", peak_bytes=0),
    )
    text = streamed.text_encoder("a person dances")
    assert torch.equal(text, plain.text_encoder("a person dances"))
    picture = torch.randint(0, 255, (32, 48, 3), dtype=torch.uint8).numpy()
    image = streamed.image_encoder(picture)
    assert torch.equal(image, plain.image_encoder(picture))
    results = []
    generator = torch.Generator().manual_seed(0)
    given, pose, motion, latents = (
        torch.randn(shape, generator=generator)
        for shape in ((1, 20, 3, 4, 4), (1, 16, 2, 4, 4), (1, 5, 16), (1, 16, 3, 4, 4))
    )
    for models in (plain, streamed):
        network = models.transformer
        clip = network.prepare(
            given=given, pose=pose, motion=motion, context=network.embed_context(text, image)
        )
        results.append([network.step(latents, step, clip) for step in (900, 100)])
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
def test_a_gpu_gets_the_same_numbers_with_copies_under_way():
    resident = blocks(5).to("cuda")
    streamed = copy.deepcopy(resident)
    BlockStream(list(streamed), device=torch.device("cuda"))
    x = torch.randn(2, 6, device="cuda")
    for _ in range(5):
        assert torch.equal(through(streamed, x), through(resident, x))
