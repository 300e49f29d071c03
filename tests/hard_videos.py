"""Hard videos out of real pixels, with the truth about them: two people cross, one leaves, a cut, and so on.

A person is cut out of the driving sample, frame by frame, and put into a room as often, as large and in such
clothes as a video needs. So it is known where everybody is, and what is seen of whom. T frames, H W pixels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from wan_animate.preprocess.preprocessor import Preprocessor
from wan_animate.preprocess.subjects import Subject
from wan_animate.wan.media.decode import open_video
from wan_animate.wan.runtime.job import Job

from .clips import write_video
from .people import DRIVING, backend, wallpaper

FRAMES = 24
RATE = 15
PAUSE = 5  # frames before two people start to cross: who is leftmost is clear by then
SIZE = (360, 640)  # H, W
TALL = 250  # pixels from the lower edge of the picture to somebody's hair
COLLAR = 0.35  # of a cut-out's height: below it there is cloth
Clothes = Literal["orange", "blue", "green"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HardVideo:
    """A video, and where the person is in it whom `subject` means."""

    path: Path
    subject: Subject
    boxes: np.ndarray  # (T, 4) float32: around what is seen of the person; NaN where nothing is
    masks: np.ndarray  # (T, H, W) bool: what is seen of the person
    others: np.ndarray  # (T, H, W) bool: what is seen of everybody else

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def seen(self) -> np.ndarray:
        """(T,) bool: where anything is seen of the person."""
        return np.isfinite(self.boxes[:, 0])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Actor:
    """Somebody in a video. Who comes later in a cast stands in front."""

    at: Callable[[int], float | None]  # frame → x of the middle, in widths of the picture; None: away
    tall: float = TALL  # pixels, see TALL
    clothes: Clothes = "orange"
    mirrored: bool = False
    faceless: Callable[[int], bool] = lambda _: False  # frame → turned away
    source: Path = DRIVING  # the video of this person
    feet: float = 1.0  # y of the cut-out's lower edge, in heights of the picture


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CutOut:
    """A video's person in one frame."""

    picture: np.ndarray  # (h, w, 3) uint8 RGB
    share: np.ndarray  # (h, w) float32 0…1 of a pixel that is the person's


@cache
def cut_outs(source: Path = DRIVING) -> tuple[CutOut, ...]:
    """The person of a video, at half its frame rate, cut out with the embedded backend's masks."""
    video = open_video(source, fps=RATE, duration_s=FRAMES / RATE)
    tracks = Preprocessor(backend(), stride=FRAMES).tracks(video, subject="largest", job=Job(), masks=True)
    found = []
    for index, frame in enumerate(video.frames()):
        assert tracks.masks is not None
        mask = tracks.masks.mask(index).astype(np.float32)
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        found.append(CutOut(picture=frame[window], share=cv2.GaussianBlur(mask, (0, 0), 1.0)[window]))
    return tuple(found)


def dressed(picture: np.ndarray, clothes: Clothes) -> np.ndarray:
    """A cut-out's picture (h, w, 3) with the orange suit in another colour."""
    shift = {"orange": 0, "blue": 95, "green": 50}[clothes]  # of OpenCV's hue, 0…179
    hsv = cv2.cvtColor(picture, cv2.COLOR_RGB2HSV)
    suit = (hsv[..., 1] > 130) & ((hsv[..., 0] < 25) | (hsv[..., 0] > 170))
    suit[: round(COLLAR * len(hsv))] = False
    hsv[..., 0] = np.where(suit, (hsv[..., 0].astype(int) + shift) % 180, hsv[..., 0])
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def turned_away(picture: np.ndarray) -> np.ndarray:
    """A cut-out's picture (h, w, 3) with hair all over the head."""
    height, width = picture.shape[:2]
    hair = picture[round(0.03 * height) : round(0.13 * height), round(0.44 * width) : round(0.68 * width)]
    covered = picture.copy()
    strands = cv2.resize(hair, (width, height), interpolation=cv2.INTER_LINEAR)
    oval = np.zeros((height, width), np.float32)
    middle = (round(0.56 * width), round(0.26 * height))
    cv2.ellipse(oval, middle, (round(0.19 * width), round(0.2 * height)), 0, 0, 360, 1.0, cv2.FILLED)
    oval = cv2.GaussianBlur(oval, (0, 0), 0.015 * height)[..., None]
    return (covered * (1 - oval) + strands * oval).astype(np.uint8)


def play(
    path: Path,
    cast: Sequence[Actor],
    *,
    subject: Subject,
    who: int = 0,
    frames: int = FRAMES,
    size: tuple[int, int] = SIZE,
    room: Callable[[int], np.ndarray] | None = None,
) -> HardVideo:
    """Film the cast in a room (frame → (H, W, 3) uint8; else a wall); cast[who] is the one that is meant."""
    empty = wallpaper(*size)
    pictures = []
    masks, others = (np.zeros((frames, *size), bool) for _ in range(2))
    for number in range(frames):
        scene = (room(number) if room else empty).astype(np.float32)
        for index, actor in enumerate(cast):
            share = _stand(scene, actor, number)
            opaque = share > 0.5
            mine, theirs = (masks, others) if index == who else (others, masks)
            theirs[number] &= ~opaque
            mine[number] |= opaque
        pictures.append(scene.round().astype(np.uint8))
    write_video(path, pictures, rate=RATE, options={"crf": "12", "preset": "ultrafast"})
    boxes = np.array([_box(mask) for mask in masks], np.float32)
    return HardVideo(path=path, subject=subject, boxes=boxes, masks=masks, others=others)


def _stand(scene: np.ndarray, actor: Actor, number: int) -> np.ndarray:
    """Paint an actor into a scene (H, W, 3) float32, in place; returns the share (H, W) of the actor."""
    height, width = scene.shape[:2]
    share = np.zeros((height, width), np.float32)
    place = actor.at(number)
    if place is None:
        return share
    cut_out = cut_outs(actor.source)[number % FRAMES]
    picture = dressed(cut_out.picture, actor.clothes)
    if actor.faceless(number):
        picture = turned_away(picture)
    scale = actor.tall / len(picture)
    middle = picture.shape[1] / 2
    matrix = np.array(
        [[scale, 0, place * width - scale * middle], [0, scale, actor.feet * height - actor.tall]]
    )
    if actor.mirrored:
        matrix[0] = (-scale, 0, place * width + scale * middle)
    if scale < 0.5:  # warping alone would skip pixels
        blur = 0.4 / scale
        picture = cv2.GaussianBlur(picture, (0, 0), blur)
    cv2.warpAffine(cut_out.share, matrix, (width, height), dst=share, flags=cv2.INTER_LINEAR)
    painted = cv2.warpAffine(
        picture, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    scene += share[..., None] * (painted - scene)
    return share


def _box(mask: np.ndarray) -> np.ndarray:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return np.full(4, np.nan)
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


def walk(start: float, end: float, *, pause: int = 0) -> Callable[[int], float]:
    """From one x to another, evenly, after `pause` frames."""
    return lambda number: start + (end - start) * max(number - pause, 0) / (FRAMES - 1 - pause)


def still(x: float) -> Callable[[int], float]:
    """Always there."""
    return lambda _: x


# --- the videos


def crossing(folder: Path, *, behind: bool = False) -> HardVideo:
    """Two people in unlike suits walk past each other; the one in orange is meant, in front or `behind`."""
    orange = Actor(at=walk(0.2, 0.8, pause=PAUSE), tall=TALL + 20)
    blue = Actor(at=walk(0.8, 0.2, pause=PAUSE), clothes="blue", mirrored=True)
    cast = (orange, blue) if behind else (blue, orange)
    name = f"crossing_{'behind' if behind else 'in_front'}.mp4"
    return play(folder / name, cast, subject="leftmost", who=cast.index(orange))


def meeting(folder: Path, stranger: Path) -> HardVideo:
    """In 720p, the person of another video passes in front of ours."""
    cast = (
        Actor(at=walk(0.25, 0.75, pause=PAUSE), tall=520),
        Actor(at=walk(0.75, 0.25, pause=PAUSE), tall=560, source=stranger),
    )
    return play(folder / "meeting.mp4", cast, subject="leftmost", size=(720, 1280))


def leaving(folder: Path) -> HardVideo:
    """Somebody walks out of the picture, is away for eight frames, and comes back."""
    steps = [0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1]  # in the last one only a shoulder is there
    away = [None] * 8
    path = [0.5, *steps, *away, *reversed(steps), 0.5]
    return play(folder / "leaving.mp4", [Actor(at=lambda number: path[number])], subject="largest")


def turning(folder: Path) -> HardVideo:
    """Somebody turns the face away for the middle third, beside another one who does not."""
    middle = range(FRAMES // 3, 2 * FRAMES // 3)
    cast = (
        Actor(at=still(0.28), faceless=lambda number: number in middle),
        Actor(at=still(0.75), clothes="blue"),
    )
    return play(folder / "turning.mp4", cast, subject="leftmost")


def half_body(folder: Path) -> HardVideo:
    """Head and shoulders only, half of them beyond the picture's edge now and then."""
    cast = (Actor(at=walk(0.35, 0.02), tall=420, feet=1.45),)
    return play(folder / "half_body.mp4", cast, subject="largest")


def cut(folder: Path) -> HardVideo:
    """After a cut the two people stand the other way round, in another room, and nearer."""
    half = FRAMES // 2
    orange = Actor(at=lambda number: 0.25 if number < half else 0.7, tall=TALL + 20)
    blue = Actor(at=lambda number: 0.75 if number < half else 0.25, clothes="blue", mirrored=True)
    dark = (255 - wallpaper(*SIZE)) // 2
    return play(
        folder / "cut.mp4",
        (blue, orange),
        subject="leftmost",
        who=1,
        room=lambda number: wallpaper(*SIZE) if number < half else dark,
    )


def ultra_hd(folder: Path) -> HardVideo:
    """Four frames of 3840 × 2160."""
    cast = (Actor(at=still(0.7), tall=1500, clothes="blue"), Actor(at=still(0.3), tall=1600))
    return play(folder / "ultra_hd.mp4", cast, subject="leftmost", who=1, frames=4, size=(2160, 3840))


def portrait_format(folder: Path) -> HardVideo:
    """A picture that is higher than wide, with two people in it who pass each other."""
    cast = (
        Actor(at=walk(0.75, 0.25), clothes="green", tall=250, mirrored=True),
        Actor(at=walk(0.25, 0.75), tall=280),
    )
    return play(folder / "portrait.mp4", cast, subject="largest", who=1, size=(640, 480))


def speck(folder: Path) -> HardVideo:
    """Nobody but somebody of eight pixels."""
    return play(folder / "speck.mp4", [Actor(at=still(0.5), tall=8, feet=0.6)], subject="largest", frames=6)


def speck_beside(folder: Path) -> HardVideo:
    """Somebody, and somebody of eight pixels."""
    cast = (Actor(at=still(0.4)), Actor(at=still(0.85), tall=8, feet=0.6))
    return play(folder / "speck_beside.mp4", cast, subject="rightmost", frames=6)


def twins(folder: Path) -> HardVideo:
    """A mirrored copy stands beside the person and does the same; both sway, so that they nearly touch."""
    sway = [0.03 * np.sin(number / 3) for number in range(FRAMES)]
    cast = (
        Actor(at=lambda number: 0.31 + sway[number]),
        Actor(at=lambda number: 0.69 - sway[number], mirrored=True),
    )
    return play(folder / "twins.mp4", cast, subject="leftmost")
