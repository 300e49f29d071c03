"""Every kind of picture becomes upright 8-bit RGB; what is none gets a sentence."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms
from wan_animate.wan.media import still
from wan_animate.wan.media.still import load_image
from wan_animate.wan.runtime.errors import BadMedia

WIDTH, HEIGHT = 40, 24
RED = np.array([200, 30, 60], np.uint8)


def picture() -> np.ndarray:
    """A gradient with a marked upper left corner."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    image = np.stack([columns * 6, rows * 10, 255 - columns * 5], 2).astype(np.uint8)
    image[:6, :10] = RED
    return image


def saved(path, image, **options):
    Image.fromarray(image).save(path, **options)
    return path


@pytest.mark.parametrize(
    ("name", "options", "tolerance"),
    [
        ("a.png", {}, 0),
        ("a.bmp", {}, 0),
        ("a.tiff", {}, 0),
        ("a.tga", {}, 0),
        ("a.ppm", {}, 0),
        ("a.webp", {"lossless": True}, 0),
        ("a.jp2", {}, 0),
        ("a.jpeg", {"quality": 100, "subsampling": 0}, 4),
        ("a.avif", {"quality": 100, "subsampling": "4:4:4"}, 4),
        ("noextension", {"format": "PNG"}, 0),
    ],
)
def test_common_kinds(tmp_path, name, options, tolerance):
    image = load_image(saved(tmp_path / name, picture(), **options))
    assert image.dtype == np.uint8 and image.shape == (HEIGHT, WIDTH, 3)
    assert np.abs(image.astype(int) - picture()).max() <= tolerance


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    upright = picture()
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / "a.png", np.ascontiguousarray(stored), exif=exif)
    np.testing.assert_array_equal(load_image(path), upright)


def test_transparency_lies_over_black(tmp_path):
    rgba = np.dstack([picture(), np.full((HEIGHT, WIDTH), 128, np.uint8)])
    rgba[:, 20:, 3] = 0
    image = load_image(saved(tmp_path / "a.png", rgba))
    expected = np.round(picture() * (128 / 255))
    assert np.abs(image[:, :20] - expected[:, :20]).max() <= 1
    assert (image[:, 20:] == 0).all()


def test_palette_with_a_transparent_colour(tmp_path):
    indexed = Image.fromarray(picture()).quantize(8)
    indexed.putpixel((0, 0), 3)
    indexed.save(tmp_path / "a.png", transparency=3)
    image = load_image(tmp_path / "a.png")
    see_through = np.asarray(indexed) == 3
    assert (image[see_through] == 0).all()
    np.testing.assert_array_equal(image[~see_through], np.asarray(indexed.convert("RGB"))[~see_through])


def test_grey_with_alpha(tmp_path):
    grey = np.dstack([picture()[..., 0], np.full((HEIGHT, WIDTH), 255, np.uint8)])
    image = load_image(saved(tmp_path / "a.png", grey))
    np.testing.assert_array_equal(image, picture()[..., :1].repeat(3, 2))


def test_cmyk(tmp_path):
    inks = Image.fromarray(picture()).convert("CMYK")
    inks.save(tmp_path / "a.jpg", quality=100, subsampling=0)
    image = load_image(tmp_path / "a.jpg")
    assert np.abs(image.astype(int) - np.asarray(inks.convert("RGB"))).max() <= 8  # JPEG's loss in each ink


def test_bilevel(tmp_path):
    black_and_white = Image.fromarray(picture()).convert("1")
    black_and_white.save(tmp_path / "a.png")
    np.testing.assert_array_equal(load_image(tmp_path / "a.png"), np.asarray(black_and_white.convert("RGB")))


@pytest.mark.parametrize("name", ["a.png", "a.tiff"])
def test_sixteen_bit_grey(tmp_path, name):
    levels = picture()[..., 0].astype(np.uint16) * 257
    cv2.imwrite(str(tmp_path / name), levels)
    np.testing.assert_array_equal(load_image(tmp_path / name), picture()[..., :1].repeat(3, 2))


@pytest.mark.parametrize("channels", [3, 4])
def test_sixteen_bit_colour(tmp_path, channels):
    wide = np.dstack([picture()[..., ::-1], np.full((HEIGHT, WIDTH), 255, np.uint8)]).astype(np.uint16) * 257
    cv2.imwrite(str(tmp_path / "a.png"), wide[..., :channels])
    np.testing.assert_array_equal(load_image(tmp_path / "a.png"), picture())


@pytest.mark.parametrize("name", ["a.hdr", "a.tiff"])
def test_high_range_picture_is_exposed(tmp_path, name):
    light = (picture()[..., ::-1].astype(np.float32) / 255) ** 2.2 * 40  # far above 1
    light[-4:, -4:] = 4000
    cv2.imwrite(str(tmp_path / name), light)
    image = load_image(tmp_path / name)
    assert image.dtype == np.uint8 and image.shape == (HEIGHT, WIDTH, 3)
    assert 60 < image.mean() < 190
    assert (image[-4:, -4:] > 240).all()
    assert np.corrcoef(image[..., 0].ravel(), picture()[..., 0].ravel())[0, 1] > 0.8  # channels in order


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.fromarray(np.full((HEIGHT, WIDTH, 3), level, np.uint8)) for level in (40, 120, 200)]
    for name, options in {"a.gif": {}, "a.webp": {"lossless": True}, "a.png": {}, "a.tiff": {}}.items():
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
        assert (load_image(tmp_path / name) == 40).all(), name


def test_colour_profile_is_taken_to_srgb(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    path = saved(tmp_path / "a.png", picture(), icc_profile=profile.tobytes())
    assert np.abs(load_image(path).astype(int) - picture()).max() <= 1
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))  # a profile that does not fit is left aside
    path = saved(tmp_path / "b.png", picture(), icc_profile=lab.tobytes())
    np.testing.assert_array_equal(load_image(path), picture())
    path = saved(tmp_path / "c.png", picture(), icc_profile=b"nonsense")
    np.testing.assert_array_equal(load_image(path), picture())


def test_what_is_no_picture_gets_a_sentence(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("this is no picture at all, however it is called")
    (tmp_path / "vector.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n")
    for name, words in {
        "missing.png": "does not exist",
        "empty.png": "empty",
        "text.png": "not a picture",
        "vector.eps": "not a picture",
        ".": "folder",
    }.items():
        with pytest.raises(BadMedia, match=words):
            load_image(tmp_path / name)


def test_tiny_picture_is_refused(tmp_path):
    with pytest.raises(BadMedia, match="8×8"):
        load_image(saved(tmp_path / "a.png", np.zeros((8, 8, 3), np.uint8)))


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.gif", "a.tiff", "a.avif", "a.bmp", "a.jp2"])
def test_truncated_or_damaged_picture_never_crashes(tmp_path, name):
    rng = np.random.default_rng(0)
    data = saved(tmp_path / name, rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)).read_bytes()
    path = tmp_path / f"broken_{name}"
    for share in (0.02, 0.1, 0.3, 0.5, 0.7, 0.9):
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(BadMedia):
            load_image(path)
    for _ in range(30):
        broken = bytearray(data)
        for at in rng.integers(0, len(data), 8):
            broken[at] = rng.integers(0, 256)
        path.write_bytes(broken)
        try:
            load_image(path)  # damage in the pixels alone may go unnoticed
        except BadMedia:
            continue


def test_decompression_bomb_is_refused_before_it_is_unpacked(tmp_path):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    for side in (10_001, 60_000):
        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        path = tmp_path / "bomb.png"
        path.write_bytes(
            b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        )
        with pytest.raises(BadMedia, match="million pixels"):
            load_image(path)
    (tmp_path / "bomb.hdr").write_bytes(b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 60000 +X 60000\n")
    with pytest.raises(BadMedia, match="million pixels"):
        load_image(tmp_path / "bomb.hdr")


def test_limit_allows_a_hundred_megapixels():
    assert still.MAX_PIXELS == 100_000_000


def test_text_bomb_in_a_png_is_refused(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(picture()).save(buffer, "PNG")
    data = buffer.getvalue()
    body = b"comment\0\0" + zlib.compress(b"a" * 70_000_000, 1)
    text = struct.pack(">I", len(body)) + b"zTXt" + body + struct.pack(">I", zlib.crc32(b"zTXt" + body))
    (tmp_path / "a.png").write_bytes(data[:33] + text + data[33:])
    with pytest.raises(BadMedia, match="damaged"):
        load_image(tmp_path / "a.png")
