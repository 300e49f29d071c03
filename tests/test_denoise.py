"""The sampling loop, step by step."""

import pytest
import torch
from wan_animate.wan.denoise import Passes, denoise, guided_velocity
from wan_animate.wan.model.smoke import build_smoke_models
from wan_animate.wan.schedule import plan_schedule

from .seeded import RUNS, GoldenRun, pad_text, relative

TOLERANCE = 5e-5  # relative to the largest value, as for one prediction


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def transformer():
    return build_smoke_models().transformer


@pytest.fixture(scope="module")
def clip(transformer):
    """A conditional pass, an unconditional pass, noise."""
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(1, *shape, generator=generator)

    with torch.inference_mode():
        context, other = (transformer.embed_context(draw(512, 32), draw(257, 32)) for _ in range(2))
        conditional = transformer.prepare(
            given=draw(20, 3, 4, 4), pose=draw(16, 2, 4, 4), motion=draw(5, 16), context=context
        )
        unconditional = conditional.replace(context=other, faces=transformer.prepare_faces(draw(5, 16)))
        return conditional, unconditional, draw(16, 3, 4, 4)


@pytest.fixture
def passes_seen(transformer):
    """The contexts the first block was shown."""
    seen = []
    hook = transformer.blocks[0].register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[1]))
    yield seen
    hook.remove()


def test_steps_are_counted_and_come_one_at_a_time(transformer, clip, passes_seen):
    conditional, _, noise = clip
    steps = denoise(
        transformer,
        Passes(conditional=conditional, unconditional=None),
        noise,
        plan_schedule("dpm++", steps=3, shift=5.0),
    )
    assert passes_seen == []
    first = next(steps)
    assert (first.index, first.total) == (1, 3)
    assert first.latents.shape == noise.shape
    assert first.latents.dtype == torch.float32
    assert len(passes_seen) == 1  # one pass a step without guidance, and nothing ahead of the caller
    assert [step.index for step in steps] == [2, 3]


def test_guidance_leads_away_from_the_unconditional_pass(transformer, clip, passes_seen):
    conditional, unconditional, noise = clip
    guided = Passes(conditional=conditional, unconditional=unconditional, guidance=2.5)
    ours = guided_velocity(transformer, guided, noise, 500)
    assert [context is conditional.context for context in passes_seen] == [True, False]
    with_text = transformer.step(noise, 500, conditional)
    without = transformer.step(noise, 500, unconditional)
    torch.testing.assert_close(ours, without + 2.5 * (with_text - without))


def test_guidance_and_its_second_pass_come_together(clip):
    conditional, unconditional, _ = clip
    with pytest.raises(ValueError, match="come together"):
        Passes(conditional=conditional, unconditional=None, guidance=2.0)
    with pytest.raises(ValueError, match="come together"):
        Passes(conditional=conditional, unconditional=unconditional)


def test_noise_is_not_written_to(transformer, clip):
    conditional, _, noise = clip
    before = noise.clone()
    passes = Passes(conditional=conditional, unconditional=None)
    list(denoise(transformer, passes, noise, plan_schedule("unipc", steps=2, shift=5.0)))
    assert torch.equal(noise, before)


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_every_step_is_the_published_one(path):
    run = GoldenRun.load(path)
    network, sampling = run.models.transformer, run.sampling
    image = torch.from_numpy(run.shared["clip_fea_int8"]).float() / 8
    context, negative = (
        network.embed_context(pad_text(run.shared[name]), image) for name in ("context", "context_null")
    )
    faces = torch.from_numpy(run.conditions(range(sampling.clip_len)).face).permute(0, 3, 1, 2) / 127.5 - 1
    motion = network.embed_motion(faces)[None]
    blank = network.embed_motion(torch.full((1, 3, 512, 512), -1.0))[None].expand_as(motion)
    conditional = network.prepare(
        given=run.clip(0, "y"), pose=run.clip(0, "pose_latents"), motion=motion, context=context
    )
    unconditional = None
    if sampling.guided:
        unconditional = conditional.replace(context=negative, faces=network.prepare_faces(blank))
    passes = Passes(conditional=conditional, unconditional=unconditional, guidance=sampling.guidance)
    schedule = plan_schedule(sampling.solver, steps=sampling.steps, shift=sampling.shift)
    noise = run.noise(0, run.clip(0, "latents")[0, :1].shape)
    first = guided_velocity(network, passes, noise, int(schedule.timesteps[0]))
    assert relative(first, run.clip(0, "noise_pred")[:, 0]) < TOLERANCE
    if unconditional is not None:
        without = network.step(noise, int(schedule.timesteps[0]), unconditional)
        assert relative(without, run.clip(0, "step0_uncond")) < TOLERANCE
    for step in denoise(network, passes, noise, schedule):
        assert relative(step.latents, run.clip(0, "latents")[:, step.index - 1]) < TOLERANCE
