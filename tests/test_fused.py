"""The fused block computes what diffusers' does; its kernels what their plain forms do."""

import pytest
import torch
from wan_animate.wan.model.transformer import PICTURE_TOKENS, AnimateTransformer, prompt_tokens
from wan_animate.wan.speed import fused
from wan_animate.wan.speed.attention import PLAIN
from wan_animate.wan.speed.fused import fuse

from benchmarks.random_models import TINY_TRANSFORMER, random_transformer

from .interpreted import run_interpreted

SWITCHES = ("rotation", "gelu", "norms", "context")


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def text_of(tokens: int) -> torch.Tensor:
    """A prompt of so many tokens, as the encoder pads it."""
    return torch.nn.functional.pad(drawn(1, tokens, 32), (0, 0, 0, 512 - tokens))


def prepared(model: AnimateTransformer, text: torch.Tensor):
    context = model.embed_context(text, drawn(1, 257, 32))
    return model.prepare(
        given=drawn(1, 20, 3, 6, 8), pose=drawn(1, 16, 2, 6, 8), motion=drawn(1, 5, 16), context=context
    )


OPERATIONS = {
    "norm_and_rotate": (drawn(1, 6, 16), drawn(16), drawn(1, 6, 1, 8), drawn(1, 6, 1, 8), 1e-6),
    "linear_gelu": (drawn(1, 6, 8), drawn(12, 8), drawn(12)),
    "norm_tokens": (drawn(1, 6, 8), drawn(8), drawn(8), 1e-6),
    "add_and_norm": (drawn(1, 6, 8), drawn(1, 6, 8), drawn(8), drawn(8), drawn(8), 1e-6),
    "attend_context": (
        drawn(1, 6, 8), drawn(8), 1e-6, drawn(1, 3, 8), drawn(1, 3, 8), drawn(1, 4, 8), drawn(1, 4, 8), 2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_compiler_is_told_the_truth_about_our_operations(name: str):
    operation = getattr(fused, name)
    torch.library.opcheck(operation, OPERATIONS[name], test_utils=("test_schema", "test_faketensor"))


@torch.inference_mode()
@pytest.mark.parametrize("switch", [*SWITCHES, "all"])
@pytest.mark.parametrize("tokens", [0, 9, 512])
def test_fused_blocks_compute_what_diffusers_blocks_do(switch: str, tokens: int):
    model = random_transformer("cpu", torch.float32, **TINY_TRANSFORMER)
    latents, text = drawn(1, 16, 3, 6, 8), text_of(tokens)
    before = model.step(latents, 500, prepared(model, text))
    fuse(model, attention=PLAIN, **{name: switch in (name, "all") for name in SWITCHES})
    after = model.step(latents, 500, prepared(model, text))
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_padding_is_looked_at_once_and_counts_for_all_of_it():
    model = random_transformer("cpu", torch.float32, **TINY_TRANSFORMER)
    whole = prepared(model, text_of(9))
    fuse(model, attention=PLAIN)
    folded = prepared(model, text_of(9))
    assert whole.context.shape[1] == PICTURE_TOKENS + 512
    assert folded.context.shape[1] == PICTURE_TOKENS + 9 + 1
    latents = drawn(1, 16, 3, 6, 8)
    differing = folded.replace(context=folded.context[:, :-1], faces=folded.faces)
    exact = model.step(latents, 500, whole)
    torch.testing.assert_close(model.step(latents, 500, folded), exact, rtol=1e-5, atol=1e-5)
    assert (model.step(latents, 500, differing) - exact).abs().max() > 1e-3  # the padding does have a say


def test_a_prompt_s_length_is_that_of_what_is_not_zero():
    text = text_of(9)
    text[:, 4] = 0  # inside the prompt
    assert [prompt_tokens(one) for one in (text, text_of(0), text_of(512))] == [9, 0, 512]


@torch.inference_mode()
def test_fused_blocks_take_two_passes_as_one_batch():
    model = random_transformer("cpu", torch.float32, **TINY_TRANSFORMER)
    fuse(model, attention=PLAIN)
    one = prepared(model, text_of(512))
    two = model.prepare(
        given=drawn(1, 20, 3, 6, 8).expand(2, -1, -1, -1, -1),
        pose=drawn(1, 16, 2, 6, 8).expand(2, -1, -1, -1, -1),
        motion=drawn(1, 5, 16).expand(2, -1, -1),
        context=one.context.expand(2, -1, -1),
    )
    latents = drawn(1, 16, 3, 6, 8)
    both = model.step(latents.expand(2, -1, -1, -1, -1), 500, two)
    torch.testing.assert_close(both[1:], model.step(latents, 500, one), rtol=1e-4, atol=1e-5)


def test_the_norm_is_of_the_sum_before_it_is_rounded():
    tokens, added = (drawn(1, 6, 64).bfloat16() * scale for scale in (100, 1))
    gate, weight, shift = drawn(64), torch.ones(64), torch.zeros(64)
    total, normed = fused.add_and_norm(tokens, added, gate, weight, shift, 1e-6)
    exact = tokens.double() + added.double() * gate
    assert torch.equal(total, exact.bfloat16())
    assert torch.equal(normed, torch.nn.functional.layer_norm(exact, (64,), eps=1e-6).bfloat16())
    rounded = torch.nn.functional.layer_norm(total.double(), (64,), eps=1e-6).bfloat16()
    assert not torch.equal(normed, rounded)


INTERPRETED = """
import torch
from wan_animate.wan.speed import fused, token_kernels as kernels
torch.set_num_threads(1)
torch.set_grad_enabled(False)
torch.manual_seed(0)
def blank(like):  # every element has to be written
    return torch.full_like(like, float("nan"))
tokens, weight = torch.randn(2, 6, 40), torch.rand(40) + 0.5
cosines, sines = (torch.randn(1, 6, 1, 4).repeat_interleave(2, -1) for _ in range(2))
out = blank(tokens)
kernels.norm_and_rotate_rows(tokens, weight, cosines, sines, 1e-6, out=out)
torch.testing.assert_close(out, fused._norm_and_rotate_plain(tokens, weight, cosines, sines, 1e-6))
tokens = torch.randn(2, 7, 40)
added, shift, gate = torch.randn(2, 7, 40), torch.randn(40), torch.randn(40)
out = blank(tokens)
kernels.norm_tokens(tokens, weight, shift, 1e-6, out=out)
torch.testing.assert_close(out, fused.norm_tokens(tokens, weight, shift, 1e-6))
for share, kind in ((None, torch.float32), (gate, torch.float32), (gate, torch.bfloat16)):
    parts = tokens.to(kind) * 100, added.to(kind)
    want = fused.add_and_norm(*parts, share, weight, shift, 1e-6)
    total, out = blank(parts[0]), blank(parts[0])
    kernels.norm_tokens(parts[0], weight, shift, 1e-6, out=out, added=parts[1], gate=share, total=total)
    torch.testing.assert_close((total, out), want)
heads = torch.randn(3, 50, 16)
out = blank(heads)
kernels.norm_heads(heads, weight[:16], 1e-6, out=out)
torch.testing.assert_close(out, torch.nn.functional.rms_norm(heads, (16,), weight[:16], 1e-6))
queries, weight = torch.randn(2, 70, 32), torch.rand(32) + 0.5
for text, picture in ((1, 257), (12, 70), (64, 5), (81, 64)):
    parts = [torch.randn(2, count, 32) for count in (text, text, picture, picture)]
    want = fused.attend_context(queries, weight, 1e-6, *parts, 2)
    out = blank(queries)
    kernels.attend_context(
        queries, weight, 1e-6, tuple(parts[:2]), tuple(parts[2:]), repeats=513 - text, heads=2, out=out
    )
    torch.testing.assert_close(out, want, rtol=1e-4, atol=1e-5)
"""


def test_the_kernels_compute_what_their_plain_forms_do():
    run_interpreted(INTERPRETED)
