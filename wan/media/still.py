"""A picture file in, one upright RGB array out, or a sentence why not. Knows nothing about what is in it."""

import io
import re
import struct
import warnings
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from ..runtime.errors import BadMedia

MAX_PIXELS = 100_000_000  # 300 MB as RGB; larger ones are refused before they are unpacked
MIN_SIDE = 16  # pixels
# Kinds that hold a photograph. Others Pillow knows would start programs (EPS) or are never what is meant.
KINDS = (
    "JPEG",
    "PNG",
    "WEBP",
    "AVIF",
    "GIF",
    "BMP",
    "DIB",
    "TIFF",
    "JPEG2000",
    "PPM",
    "TGA",
    "ICO",
    "QOI",
)
RADIANCE = (b"#?RADIANCE", b"#?RGBE")  # how .hdr files begin; Pillow does not read them
TIFF = (b"II*\0", b"MM\0*")  # how TIFF files begin; of float ones Pillow reads only grey
HEAD_BYTES = 4096  # in which a .hdr file says its size
GREY_16 = ("I;16", "I;16L", "I;16B", "I;16N")
# What Pillow's readers trip over in damaged files of these kinds.
DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    RuntimeError,
    ZeroDivisionError,
    struct.error,
)


def load_image(path: Path) -> np.ndarray:
    """Read a picture as shown: (H, W, 3) uint8 RGB.

    EXIF rotation applied, transparency over black, the first frame of an animation, colour profile taken to
    sRGB, 16-bit and high-range values brought to 8 bits. Raises BadMedia where the file is missing, empty,
    damaged, no picture, too large or too small.
    """
    if not path.exists():
        raise BadMedia(f"the picture {path} does not exist; check the path")
    if not path.is_file():
        raise BadMedia(f"{path} is a folder, not a picture; give the path of the file itself")
    if path.stat().st_size == 0:
        raise BadMedia(f"the picture {path.name} is empty (0 bytes); copy or download it again")
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if head.startswith(RADIANCE):
        size = re.search(rb"[-+]Y (\d+) [-+]X (\d+)", head)
        if size is not None:
            _check_size(int(size[2]), int(size[1]), path)
        return _load_high_range(path)
    return _load_with_pillow(path, linear=head.startswith(TIFF))


def _load_with_pillow(path: Path, *, linear: bool) -> np.ndarray:
    """`linear`: what Pillow does not know may be linear light."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about sizes (checked here) and odd metadata (of no interest)
            with Image.open(path, formats=KINDS) as image:
                _check_size(image.width, image.height, path)
                image.seek(0)
                return _as_rgb(ImageOps.exif_transpose(image))
    except Image.DecompressionBombError as error:
        raise BadMedia(_too_large(path)) from error
    except UnidentifiedImageError as error:
        if linear:
            return _load_high_range(path)
        raise BadMedia(
            f"{path.name} is not a picture this program can read; pass a JPEG, PNG, WebP, AVIF or TIFF"
        ) from error
    except BadMedia:
        raise
    except DAMAGE as error:
        raise BadMedia(f"the picture {path.name} is incomplete or damaged; copy it again") from error


def _as_rgb(image: Image.Image) -> np.ndarray:
    """Any Pillow picture → (H, W, 3) uint8 RGB."""
    if image.mode in (*GREY_16, "I", "F"):
        return _grey(np.asarray(image), bits=16 if image.mode in GREY_16 else None)
    profile = image.info.get("icc_profile")
    if image.mode == "P" or "transparency" in image.info:
        image = image.convert("RGBA")
    alpha = image.getchannel("A") if image.mode in ("RGBA", "LA", "PA") else None
    image = _to_srgb(image, profile)
    pixels = np.asarray(image)
    if alpha is None:
        return np.ascontiguousarray(pixels)
    share = np.asarray(alpha, np.uint16)[..., None]  # over black: colour times opacity, rounded
    return ((pixels * share + 127) // 255).astype(np.uint8)


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Colours as sRGB: by the picture's own profile (wide-gamut phones, CMYK) where it works, else as is."""
    if profile and image.mode in ("RGB", "RGBA", "CMYK", "L"):
        colours = image.convert("RGB") if image.mode == "RGBA" else image
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(
                colours, source, ImageCms.createProfile("sRGB"), outputMode="RGB"
            )
        except (ImageCms.PyCMSError, OSError):
            converted = None  # a damaged profile, or one of another colour model
        if converted is not None:
            return converted
    return image.convert("RGB")


def _grey(values: np.ndarray, *, bits: int | None) -> np.ndarray:
    """One channel of more than 8 bits → (H, W, 3) uint8; without `bits` the largest value tells the range."""
    largest = float(np.nan_to_num(values).max(initial=0))
    full = 65535 if bits == 16 or largest > 255 else 1 if values.dtype.kind == "f" and largest <= 1 else 255
    levels = np.clip(np.round(np.nan_to_num(values) * (255 / full)), 0, 255).astype(np.uint8)
    return np.repeat(levels[..., None], 3, axis=2)


def _load_high_range(path: Path) -> np.ndarray:
    """A picture of linear light (.hdr, float TIFF): exposed to 18 % grey, highlights rolled off."""
    pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.ndim != 3 or pixels.dtype.kind != "f":
        raise BadMedia(f"the picture {path.name} is incomplete or damaged; copy it again")
    _check_size(pixels.shape[1], pixels.shape[0], path)
    light = np.maximum(np.nan_to_num(pixels[..., 2::-1].astype(np.float32)), 0)
    luminance = light @ np.array([0.2126, 0.7152, 0.0722], np.float32)  # BT.709
    exposure = 0.18 / float(np.exp(np.log(luminance + 1e-6).mean()))
    light *= exposure / (1 + exposure * luminance[..., None])
    curve = np.where(
        light <= 0.0031308, 12.92 * light, 1.055 * np.maximum(light, 1e-9) ** (1 / 2.4) - 0.055
    )  # sRGB
    return np.clip(np.round(curve * 255), 0, 255).astype(np.uint8)


def _check_size(width: int, height: int, path: Path) -> None:
    if width * height > MAX_PIXELS:
        raise BadMedia(_too_large(path))
    if min(width, height) < MIN_SIDE:
        raise BadMedia(
            f"the picture {path.name} is {width}×{height} pixels; {MIN_SIDE} a side are needed at least"
        )


def _too_large(path: Path) -> str:
    return (
        f"the picture {path.name} has more than {MAX_PIXELS // 1_000_000} million pixels; scale it down first"
    )
