"""Text and picture features, against what the published code computes."""

import numpy as np
import pytest
import torch
from transformers import ByT5Tokenizer
from wan_animate.wan.model.encoders import ImageEncoder, TextEncoder, clean_prompt, clip_pixels
from wan_animate.wan.model.smoke import build_smoke_models
from wan_animate.wan.sampling import DEFAULT_NEGATIVE_PROMPT, DEFAULT_PROMPT

from .seeded import DATA, GOLDEN, image_encoder, relative, text_encoder


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.inference_mode():
        yield


def test_text_features_are_the_published_ones():
    recorded = np.load(DATA / "text.npz")
    ids, mask = torch.from_numpy(recorded["ids"]), torch.from_numpy(recorded["mask"])
    ours = text_encoder("t5_a")(ids, mask).last_hidden_state
    valid = mask.bool()
    assert relative(ours[valid], recorded["out"][valid.numpy()]) < 1e-5


def test_text_features_are_zero_beyond_the_prompt():
    features = TextEncoder(build_smoke_models().text_encoder.model, ByT5Tokenizer())("a dancer")
    assert features.shape == (1, 512, 32)
    length = len("a dancer") + 1  # one token a byte, and the end
    assert features[0, :length].abs().amax(dim=-1).min() > 0
    assert features[0, length:].abs().max() == 0


def test_a_prompt_that_is_cut_off_is_known():
    encoder = build_smoke_models().text_encoder
    assert encoder.fits("a" * 511)
    assert not encoder.fits("a" * 512)
    assert encoder("a" * 600).shape == (1, 512, 32)


@pytest.mark.parametrize(
    ("prompt", "cleaned"),
    [
        ("  a \n\t dancer ", "a dancer"),
        ("cats &amp;amp; dogs", "cats & dogs"),
        ("l&#39;été", "l'été"),
        (DEFAULT_PROMPT, DEFAULT_PROMPT),
    ],
)
def test_prompts_are_cleaned_as_published(prompt, cleaned):
    assert clean_prompt(prompt) == cleaned


@pytest.mark.parametrize(
    ("prompt", "cleaned"),
    [
        ("schÃ¶n", "schön"),  # UTF-8 read as Latin-1
        ("“so”", '"so"'),
        (DEFAULT_NEGATIVE_PROMPT, DEFAULT_NEGATIVE_PROMPT.replace("，", ",")),
    ],
)
def test_broken_unicode_is_mended_as_published(prompt, cleaned):
    assert clean_prompt(prompt) == cleaned


@pytest.mark.parametrize("index", [0, 1])
def test_picture_features_are_the_published_ones(index):
    recorded = np.load(DATA / "image.npz")
    features = ImageEncoder(image_encoder("clip_a"))(recorded[f"image{index}"])
    assert features.shape == (1, 257, 32)
    assert relative(features[:, ::8], recorded[f"out{index}"]) < 1e-5


@pytest.mark.skipif(not GOLDEN.exists(), reason="the recorded outputs of the published code are not here")
@pytest.mark.parametrize("index", [0, 1, 2])
def test_all_published_pictures_are_met(index):
    recorded = np.load(GOLDEN / "model" / "clip_a" / "data.npz")
    picture, stored = recorded[f"image{index}"], recorded[f"preprocessed{index}"]
    stride = 224 // stored.shape[-1]
    assert relative(clip_pixels(picture)[:, :, ::stride, ::stride], stored) < 1e-5
    assert relative(ImageEncoder(image_encoder("clip_a"))(picture), recorded[f"out{index}"]) < 1e-5


def test_a_read_only_picture_is_read():
    picture = np.zeros((32, 48, 3), np.uint8)
    picture.setflags(write=False)
    assert build_smoke_models().image_encoder(picture).shape == (1, 257, 32)
