"""Makes the sample beside it: driving.mp4 (a photographed person, set in motion) and reference.jpg.

In: two public-domain portraits that pip packages carry, scikit-image's (Eileen Collins) and matplotlib's
(Grace Hopper); README.md has their provenance. Out: both files, from nothing but those two and this script:

    pip install scikit-image==0.26.0 matplotlib==3.11.2
    python examples/make_sample.py

The portrait is a flat picture with a rough depth. Head, body and arm turn about their joints, weighted so
that the background stands still; a jaw opens and lids close over it; a hand-held camera looks at the result.
She nods on a beat and sings four notes, and the sound is made from the same numbers, so that picture and
sound can be held against each other. Everything repeats after the last frame. Knows nothing of the app.

Points are (..., 2) float32 (x, y) in pixels of the 512×512 portrait; angles are radians, times seconds.
"""

import argparse
import hashlib
import importlib.util
import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from PIL import Image
from scipy.interpolate import CubicSpline

logger = logging.getLogger(__name__)

Outline = tuple[tuple[int, int], ...]

PORTRAIT = (
    "skimage",
    "data/astronaut.png",
    "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
)
REFERENCE = (
    "matplotlib",
    "mpl-data/sample_data/grace_hopper.jpg",
    "a8ca6d734765703b09728ab47fe59f473d93ae3967fc24c7c0288c3c7adb7130",
)

# --- film ---
FPS = 30
BEAT_S = 0.5
LOOP_S = 6 * BEAT_S
NUM_FRAMES = round(LOOP_S * FPS)  # 90: more than one 77-frame clip, so that the sample crosses a clip border
WIDTH, HEIGHT = 512, 528
SUPERSAMPLE = 2  # rendered at twice the size and averaged: soft edges where lid and lip cover something
COARSE = 8  # the smooth part of the motion is inverted on a grid this many times coarser than the render
CRF = 20
CREDIT = "Set in motion from a NASA portrait of Eileen Collins (public domain); see examples/README.md"

# --- the portrait's anatomy, read off the picture ---
# fmt: off
HEAD = (
    (201, 18), (163, 46), (151, 68), (154, 104), (170, 126), (181, 135), (187, 155), (205, 173), (223, 180),
    (243, 173), (258, 157), (266, 138), (281, 126), (301, 96), (302, 78), (290, 41), (248, 13),
)
BODY = (  # on below the picture, so that its lower edge is no outline
    (205, 173), (187, 150), (148, 150), (126, 170), (111, 200), (58, 250), (36, 320), (20, 420), (18, 560),
    (520, 560), (500, 470), (478, 405), (440, 358), (400, 343), (362, 350), (345, 275), (306, 235),
    (300, 205), (276, 178), (256, 168),
)
ARM = (
    (95, 300), (50, 320), (28, 400), (24, 480), (40, 520), (110, 520), (170, 500), (120, 440), (110, 380),
)
# fmt: on
CLEAR_ROWS = 11  # rows of the picture above her hair
HEAD_ROOM = 40  # rows of backdrop added above
NECK = (226.0, 186.0)  # where the head turns
HIPS = (235.0, 640.0)  # where the body sways, below the picture
SHOULDER = (80.0, 262.0)  # where the arm swings
MOUTH = (223.5, 146.0)
# Lower edge of the upper teeth from corner to corner: above it nothing moves, below it the jaw does.
BITE_X = (203.0, 206.0, 211.0, 217.0, 223.0, 229.0, 233.0, 238.0, 244.0)
BITE_Y = (140.2, 143.6, 147.2, 149.6, 150.2, 149.9, 148.6, 146.0, 141.4)
JAW_HALF_WIDTH = 42.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Eye:
    """One eye's outline: its corners, and how far the lids bulge from the line between them."""

    left: tuple[float, float]
    right: tuple[float, float]
    upper: float  # pixels above that line at the middle
    lower: float  # pixels below it


EYES = (
    Eye(left=(190.0, 100.5), right=(214.0, 102.5), upper=5.2, lower=3.8),
    Eye(left=(235.0, 105.0), right=(260.0, 104.5), upper=6.0, lower=2.8),
)
LASH = 1.6  # pixels of dark lash that the lid brings down with it
LID_SKIN = 4.5  # pixels of skin above the lash that stretch over the eye

# --- the score: (start, length, pitch in Hz, mouth opening in pixels) ---
NOTES = (
    (0.5, 0.40, 329.63, 6.0),
    (1.0, 0.40, 392.00, 6.5),
    (1.5, 0.40, 440.00, 7.0),
    (2.0, 0.75, 523.25, 8.0),
)
FORMANTS = ((800, 90, 1.0), (1200, 110, 0.6), (2800, 160, 0.15), (3700, 220, 0.08))  # "ah": Hz, width, gain
BLINKS_S = (0.28, 1.42, 2.82)
SAMPLE_RATE = 48_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Pose:
    """All that moves, at one instant."""

    head: tuple[float, float, float]  # yaw, pitch (positive nods), roll about the neck, radians
    lean: float  # roll of the body about the hips, radians
    turn: float  # yaw of the body, radians
    arm: float  # swing about the shoulder, radians
    breath: float  # 0…1
    shrug: float  # 0…1
    brows: float  # 0…1
    mouth: float  # opening, pixels
    lids: float  # 0 open … 1 closed
    camera: tuple[float, float, float, float]  # x, y of the centre, width of the view, roll


def smooth_step(x: np.ndarray) -> np.ndarray:
    """0 below 0, 1 above 1, with soft shoulders."""
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


def bump(points: np.ndarray, centre: tuple[float, float], radius: tuple[float, float]) -> np.ndarray:
    """Gaussian hill (...,), 1 at its centre."""
    offset = (points - np.array(centre, np.float32)) / np.array(radius, np.float32)
    return np.exp(-(offset**2).sum(-1) / 2)


def through(time_s: float, *keys: tuple[float, float]) -> float:
    """The periodic cubic through (time, value) keys; the first key, at 0, also ends the loop."""
    times, values = zip(*keys, (LOOP_S, keys[0][1]), strict=True)
    return float(CubicSpline(times, values, bc_type="periodic")(time_s % LOOP_S))


def note_shape(time_s: np.ndarray, start: float, length: float) -> np.ndarray:
    """0…1: how far into a note mouth and voice are. The mouth starts to open just before the beat."""
    return smooth_step((time_s - start + 0.05) / 0.13) * smooth_step((start + length - time_s) / 0.18)


def mouth_opening(time_s: np.ndarray) -> np.ndarray:
    """Pixels the jaw is dropped."""
    return sum(
        (height * note_shape(time_s, start, length) for start, length, _, height in NOTES), np.zeros(())
    )


def pose_at(time_s: float) -> Pose:
    """The choreography."""
    degree = np.pi / 180
    turns = 2 * np.pi * time_s / LOOP_S
    nod = np.exp(4 * (np.cos(2 * np.pi * time_s / BEAT_S) - 1))  # 1 on every beat, soft in between
    blink = max(1 - smooth_step(np.abs(time_s - at) / 0.12) for at in BLINKS_S)
    yaw = through(time_s, (0, 0), (0.5, -10), (1.0, -4), (1.5, 9), (2.0, 11), (2.55, 2))
    roll = through(time_s, (0, 1), (0.5, -4), (1.0, 4), (1.5, -3.5), (2.0, 4.5), (2.5, -1))
    pitch = through(time_s, (0, -1), (0.75, 0), (1.5, -1), (2.1, -5), (2.6, -2)) + 4 * nod
    return Pose(
        head=(yaw * degree, pitch * degree, roll * degree),
        lean=through(time_s, (0, 0), (0.5, -1.4), (1.0, 1.5), (1.5, -1.3), (2.0, 1.6), (2.5, -0.8)) * degree,
        turn=through(time_s, (0, 3), (0.75, 1), (1.6, 5), (2.3, 4)) * degree,
        arm=through(time_s, (0, 0), (0.5, 3), (1.0, -2), (1.5, 3), (2.0, -2), (2.5, 2)) * degree,
        breath=0.5 - 0.5 * np.cos(2 * turns + 0.6),
        shrug=float(np.exp(-(((time_s - 2.3) / 0.22) ** 2))),
        brows=float(np.exp(-(((time_s - 1.5) / 0.12) ** 2)) + np.exp(-(((time_s - 2.2) / 0.25) ** 2))),
        mouth=float(mouth_opening(np.array(time_s))),
        lids=float(blink),
        camera=(
            217 + 3.0 * np.sin(turns + 0.4) + 1.2 * np.sin(3 * turns + 1) + 0.5 * np.sin(7 * turns),
            212 + 2.0 * np.sin(2 * turns + 2) + 0.9 * np.sin(5 * turns),
            410 - 10 * (0.5 - 0.5 * np.cos(turns)),
            (0.45 * np.sin(turns + 1) + 0.15 * np.sin(4 * turns)) * degree,
        ),
    )


class Puppet:
    """The portrait with its weights and depths. `frame(pose)` renders it."""

    def __init__(self, portrait: np.ndarray) -> None:
        """portrait: (512, 512, 3) uint8 RGB."""
        # The rows above her hair, mirrored back and forth: backdrop for when she moves away from the edge.
        above = np.pad(portrait[:CLEAR_ROWS], ((HEAD_ROOM, 0), (0, 0), (0, 0)), mode="symmetric")
        self.picture = np.concatenate([above[:HEAD_ROOM], portrait])
        size = portrait.shape[:2]
        self.body = falloff(HEAD, BODY, size=size, reach=62)
        self.head = falloff(HEAD, size=size, reach=60)
        self.arm = falloff(ARM, size=size, reach=34)

    def move(self, points: np.ndarray, pose: Pose) -> np.ndarray:
        """Where the smooth part of the motion (all but lips and lids) takes points of the portrait."""
        points = points + expression(points, pose)
        looked = turned(points, head_depth(points), NECK, pose.head)
        points = points + weight_at(points, self.head) * (looked - points)
        swung = turned(points, np.zeros(points.shape[:-1]), SHOULDER, (0, 0, pose.arm))
        points = points + weight_at(points, self.arm) * (swung - points)
        swayed = turned(points, body_depth(points), HIPS, (pose.turn, 0, pose.lean)) + breathing(points, pose)
        swayed[..., 1] += 15  # lowers her a little: head room, which the photograph lacks
        return points + weight_at(points, self.body) * (swayed - points)

    def frame(self, pose: Pose) -> np.ndarray:
        """(HEIGHT, WIDTH, 3) uint8 RGB."""
        width, height = WIDTH * SUPERSAMPLE, HEIGHT * SUPERSAMPLE
        seen = view(pose.camera, width=width // COARSE, height=height // COARSE)
        source = seen
        for _ in range(16):  # inverts `move`: a fixed point, as its displacement has a slope well below 1
            source = seen - (self.move(source, pose) - source)
        source = upsampled(source, factor=COARSE)
        source, cavity, depth = open_jaw(source, pose.mouth)
        source = close_lids(source, pose.lids)
        picture = sampled(self.picture, source + np.array((0, HEAD_ROOM), np.float32)).astype(np.float32)
        picture += cavity[..., None] * (mouth_colour(depth) - picture)
        picture = cv2.resize(picture, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
        return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


# --- geometry: pure ---


def falloff(*outlines: Outline, size: tuple[int, int], reach: float) -> np.ndarray:
    """(H, W) float32: 1 inside the outlines, smoothly down to 0 at `reach` pixels away from them."""
    outside = np.ones((size[0] + 100, size[1]), np.uint8)
    for outline in outlines:
        cv2.fillPoly(outside, [np.array(outline, np.int32)], 0)
    distance = cv2.distanceTransform(outside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    weights = smooth_step(1 - (distance - 4) / reach).astype(np.float32)
    return cv2.GaussianBlur(weights, (0, 0), 5)[: size[0]]


def turned(
    points: np.ndarray, depth: np.ndarray, pivot: tuple[float, float], angles: tuple[float, float, float]
) -> np.ndarray:
    """Points at a depth (towards the viewer) after yaw, pitch, roll about a pivot, without perspective."""
    yaw, pitch, roll = angles
    x, y = points[..., 0] - pivot[0], points[..., 1] - pivot[1]
    x, z = x * np.cos(yaw) + depth * np.sin(yaw), depth * np.cos(yaw) - x * np.sin(yaw)
    y = y * np.cos(pitch) + z * np.sin(pitch)
    x, y = x * np.cos(roll) - y * np.sin(roll), x * np.sin(roll) + y * np.cos(roll)
    return np.stack([x + pivot[0], y + pivot[1]], axis=-1).astype(np.float32)


def head_depth(points: np.ndarray) -> np.ndarray:
    """Pixels of relief in front of the neck's axis: a skull, a nose, a chin."""
    offset = (points - np.array((226, 100), np.float32)) / np.array((92, 104), np.float32)
    skull = np.cos(np.pi / 2 * np.clip(np.hypot(offset[..., 0], offset[..., 1]), 0, 1)) ** 2
    return 74 * skull + 9 * bump(points, (224, 124), (9, 12)) + 5 * bump(points, (224, 168), (14, 9))


def body_depth(points: np.ndarray) -> np.ndarray:
    """Pixels of relief in front of the body's axis: a chest, and the helmet held before it."""
    return 70 * bump(points, (205, 400), (120, 150)) + 60 * bump(points, (390, 440), (90, 90))


def breathing(points: np.ndarray, pose: Pose) -> np.ndarray:
    """Displacement (..., 2): chest wider and higher, both shoulders up on a shrug."""
    chest = bump(points, (205, 330), (120, 90)) * pose.breath
    shoulders = bump(points, (90, 270), (70, 60)) + bump(points, (330, 270), (60, 60))
    x = 0.012 * chest * (points[..., 0] - 205)
    y = -2.5 * chest - shoulders * (1.5 * pose.breath + 6 * pose.shrug)
    return np.stack([x, y], axis=-1).astype(np.float32)


def expression(points: np.ndarray, pose: Pose) -> np.ndarray:
    """Displacement (..., 2): brows go up, an opening mouth gets narrower, its upper lip lifts."""
    brows = bump(points, (202, 88), (14, 5)) + bump(points, (250, 90), (15, 5))
    lips = bump(points, MOUTH, (17, 11)) * pose.mouth
    x = -0.020 * lips * (points[..., 0] - MOUTH[0])
    y = -2.2 * pose.brows * brows - 0.10 * lips
    return np.stack([x, y], axis=-1).astype(np.float32)


def view(camera: tuple[float, float, float, float], *, width: int, height: int) -> np.ndarray:
    """The (height, width, 2) points that the camera's pixels look at."""
    x, y, span, roll = camera
    grid = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1) + 0.5
    offset = (grid - np.array([width, height]) / 2) * (span / width)
    cos, sin = np.cos(roll), np.sin(roll)
    return (offset @ np.array([[cos, sin], [-sin, cos]]) + (x, y)).astype(np.float32)


def upsampled(points: np.ndarray, *, factor: int) -> np.ndarray:
    """A finer grid of the same field; the outermost half cell is extrapolated, not held."""
    padded = np.pad(points, ((1, 1), (1, 1), (0, 0)), mode="reflect", reflect_type="odd")
    fine = cv2.resize(padded, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
    return np.ascontiguousarray(fine[factor:-factor, factor:-factor])


def open_jaw(points: np.ndarray, opening: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Drops everything below the bite.

    Returns the points to read instead, how much of each is mouth cavity (0…1), and how deep in it that is
    (0 at the teeth, 1 at the lower lip).
    """
    if opening <= 0:
        nothing = np.zeros(points.shape[:-1], np.float32)
        return points, nothing, nothing
    x, y = points[..., 0], points[..., 1]
    bite = CubicSpline(BITE_X, BITE_Y)(np.clip(x, BITE_X[0], BITE_X[-1]))
    across = np.clip(1 - ((x - MOUTH[0]) / 20.5) ** 2, 0, 1) ** 0.8
    jaw = smooth_step(1.15 - np.abs(x - MOUTH[0]) / JAW_HALF_WIDTH)
    source = y.copy()
    for _ in range(8):
        below = source - bite
        chin = smooth_step(below / 18)
        neck = 1 - smooth_step((source - 172) / 34)
        drop = opening * (across + (0.85 * jaw - across) * chin) * neck
        source = np.where(y > bite, np.maximum(y - drop, bite), y)
    gap = opening * across
    edge = 0.7  # pixels over which lip and teeth shade into the cavity
    cavity = np.clip((y - bite) / edge, 0, 1) * np.clip((bite + gap - y) / edge, 0, 1)
    depth = np.clip((y - bite) / np.maximum(gap, 1e-3), 0, 1)
    return np.stack([x, source], axis=-1).astype(np.float32), cavity, depth


def mouth_colour(depth: np.ndarray) -> np.ndarray:
    """(..., 3) RGB inside the mouth: dark behind the teeth, tongue towards the lower lip."""
    tongue = smooth_step((depth - 0.45) / 0.5)[..., None]
    return np.array((44, 14, 14), np.float32) + tongue * np.array((98, 40, 40), np.float32)


def close_lids(points: np.ndarray, closing: float) -> np.ndarray:
    """Slides the skin above each eye down over it, lash first; the eye below stays as it is."""
    x, y = points[..., 0], points[..., 1].copy()
    for eye in EYES if closing > 0 else ():
        along = np.clip((x - eye.left[0]) / (eye.right[0] - eye.left[0]), 0, 1)
        line = eye.left[1] + along * (eye.right[1] - eye.left[1])
        arch = 4 * along * (1 - along)
        lid = line - eye.upper * arch
        top = lid - LID_SKIN
        travel = closing * (eye.upper + eye.lower) * arch
        rest = lid + LASH * np.minimum(1, 3 * arch)
        closed = rest + travel
        skin = top + (y - top) * (rest - top) / (closed - top)
        y = np.where((y > top) & (y < closed) & (along > 0) & (along < 1), skin, y)
    return np.stack([x, y], axis=-1).astype(np.float32)


def weight_at(points: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(..., 1) weights at points; beyond the picture, those of its edge."""
    x, y = points[..., 0] - 0.5, points[..., 1] - 0.5  # pixel centres are at half-integers
    return cv2.remap(weights, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)[..., None]


def sampled(picture: np.ndarray, points: np.ndarray) -> np.ndarray:
    """The picture at points; its edge is mirrored, never black."""
    x, y = points[..., 0] - 0.5, points[..., 1] - 0.5
    return cv2.remap(picture, x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)


# --- sound ---


def voice(time_s: np.ndarray) -> np.ndarray:
    """The four notes, sung on an open vowel, as loud as the mouth is open."""
    sound = np.zeros_like(time_s)
    for start, length, pitch, _ in NOTES:
        local = time_s - start
        vibrato = 0.012 * np.sin(2 * np.pi * 5.5 * local) * smooth_step((local - 0.1) / 0.3)
        phase = 2 * np.pi * pitch * np.cumsum(1 + vibrato) / SAMPLE_RATE
        for harmonic in range(1, int(5000 / pitch)):
            resonance = sum(g / (1 + ((harmonic * pitch - f) / b) ** 2) for f, b, g in FORMANTS)
            loudness = (0.12 + resonance) / harmonic * note_shape(time_s, start, length)
            sound += loudness * np.sin(harmonic * phase)
    return sound


def beats(time_s: np.ndarray) -> np.ndarray:
    """A soft wood block on every beat, where the nods are deepest."""
    local = time_s % BEAT_S
    return np.exp(-local / 0.018) * (
        np.sin(2 * np.pi * 1150 * local) + 0.4 * np.sin(2 * np.pi * 1870 * local)
    )


def sound_track() -> np.ndarray:
    """(samples,) float32 in -1…1, as long as the picture."""
    time_s = np.arange(round(LOOP_S * SAMPLE_RATE)) / SAMPLE_RATE
    sung, struck = voice(time_s), beats(time_s)
    return (0.5 * sung / np.abs(sung).max() + 0.3 * struck / np.abs(struck).max()).astype(np.float32)


# --- files ---


def package_file(package: str, inside: str, sha256: str) -> Path:
    """A data file of an installed package, which is not imported. SystemExit where it is not the one."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{package} is not installed: pip install scikit-image==0.26.0 matplotlib==3.11.2")
    path = Path(spec.submodule_search_locations[0]) / inside
    if hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        raise SystemExit(
            f"{path} is not the picture that this script knows: install the versions its head names"
        )
    return path


def film(portrait: np.ndarray) -> Iterator[np.ndarray]:
    """NUM_FRAMES pictures (HEIGHT, WIDTH, 3) uint8 RGB."""
    puppet = Puppet(portrait)
    for index in range(NUM_FRAMES):
        yield puppet.frame(pose_at(index / FPS))


def write_video(path: Path, frames: Iterator[np.ndarray], sound: np.ndarray) -> None:
    """H.264 yuv420p and AAC, index first."""
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        container.metadata["comment"] = CREDIT
        video = container.add_stream("libx264", rate=FPS, options={"crf": str(CRF), "preset": "veryslow"})
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        audio = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
        audio.bit_rate = 64_000
        for picture in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode(None))
        block = av.AudioFrame.from_ndarray(sound[None], format="fltp", layout="mono")
        block.sample_rate, block.time_base, block.pts = SAMPLE_RATE, Fraction(1, SAMPLE_RATE), 0
        container.mux(audio.encode(block))
        container.mux(audio.encode(None))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Write driving.mp4 and reference.jpg.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder to write to")
    folder = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    portrait = np.asarray(Image.open(package_file(*PORTRAIT)).convert("RGB"))
    write_video(folder / "driving.mp4", film(portrait), sound_track())
    shutil.copyfile(package_file(*REFERENCE), folder / "reference.jpg")
    for name in ("driving.mp4", "reference.jpg"):
        logger.info("%s: %d bytes", folder / name, (folder / name).stat().st_size)


if __name__ == "__main__":
    main()
