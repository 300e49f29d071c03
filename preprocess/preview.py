"""What the model will see beside what it was made from: a contact sheet (PNG), a side-by-side video (MP4).

Columns: driving frame (among several people the subject framed and the others grey), the tracked skeleton
and face box on it, the drawn pose, the face crop, in replacement the background with the person's area
tinted, and the finished video where there is one. One layout (pure), one renderer; frames are streamed, so a
preview of any length holds one of them.
"""

import errno
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from itertools import repeat
from pathlib import Path
from typing import Final
from uuid import uuid4

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..wan.media.decode import SourceVideo
from ..wan.media.encode import AudioTrack, VideoWriter
from ..wan.runtime.errors import DiskFull
from ..wan.runtime.job import Stage
from .clip_source import FrameView, TrackedSource
from .geometry import scale_and_crop
from .skeleton import draw_skeleton
from .tracks import Tracks

Colour = tuple[int, int, int]  # RGB

PAPER: Final[Colour] = (20, 22, 26)
FRAME: Final[Colour] = (52, 56, 64)  # a hairline around every tile: a black picture would melt into the paper
INK: Final[Colour] = (226, 228, 232)
FAINT_INK: Final[Colour] = (140, 146, 156)
FACE_BOX: Final[Colour] = (255, 255, 255)
SUBJECT_FRAME: Final[Colour] = (255, 196, 0)
MASK_TINT: Final[Colour] = (48, 214, 128)

MARGIN: Final = 16  # pixels around everything
GUTTER: Final = 8  # pixels between tiles
HEADER: Final = 28  # pixels for the labels above the columns
CAPTION: Final = 84  # pixels for frame number and time, left of a row
TEXT_SIZE: Final = 16
SMALL_TEXT_SIZE: Final = 13

MAX_WIDTH: Final = 1920  # pixels of a sheet or a video
SHEET_TILE_HEIGHT: Final = 216
VIDEO_TILE_HEIGHT: Final = 480
VIDEO_MULTIPLE: Final = 16  # sides of a video; every encoder and player takes them
PREVIEW_QUALITY: Final = 20  # H.264 constant rate factor: text stays crisp
DIMMED: Final = 0.4  # brightness of the picture below a skeleton
OTHERS_DIMMED: Final = 0.6  # brightness of people who are left alone, without their colours
BOX_MARGIN: Final = 0.12  # of a person's box, around it: it goes through joints, not around hair and hands
TINT_STRENGTH: Final = 0.5  # of the mask's colour over the person
BROADER: Final = np.ones(
    (3, 3), np.uint8
)  # lines over a picture are drawn this much broader than the model's
OVERSAMPLING: Final = 2  # a skeleton is drawn on a picture this much larger than its tile, for smooth lines


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A place on the canvas, in pixels."""

    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where everything goes: `tiles[row][column]`; labels stand above row 0, captions left of each row."""

    width: int
    height: int
    tiles: tuple[tuple[Box, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Column:
    """One column: its label, its pictures' shape, and how to get the picture of a frame."""

    label: str
    aspect: float  # width / height
    picture: Callable[[FrameView, np.ndarray | None, int], np.ndarray]
    """View, finished frame, height of the tile → (h, w, 3) uint8 RGB, of any size."""


def plan_layout(
    aspects: Sequence[float], *, rows: int, tile_height: int, max_width: int = MAX_WIDTH, multiple: int = 1
) -> Layout:
    """Tiles of one height, as wide as their aspect says, smaller where `max_width` asks for it.

    The canvas's sides are multiples of `multiple`; what that adds goes evenly around the tiles.
    """
    fixed = 2 * MARGIN + CAPTION + GUTTER * (len(aspects) - 1)
    room = (max_width - max_width % multiple) - fixed
    tile_height = min(tile_height, int(room / sum(aspects)))
    widths = [max(int(tile_height * aspect), 1) for aspect in aspects]
    content_height = 2 * MARGIN + HEADER + rows * tile_height + (rows - 1) * GUTTER
    width = _round_up(fixed + sum(widths), multiple)
    height = _round_up(content_height, multiple)
    left = MARGIN + CAPTION + (width - fixed - sum(widths)) // 2
    top = MARGIN + HEADER + (height - content_height) // 2
    lefts = [left + sum(widths[:column]) + column * GUTTER for column in range(len(widths))]
    tiles = tuple(
        tuple(
            Box(x=x, y=top + row * (tile_height + GUTTER), width=tile_width, height=tile_height)
            for x, tile_width in zip(lefts, widths, strict=True)
        )
        for row in range(rows)
    )
    return Layout(width=width, height=height, tiles=tiles)


class Renderer:
    """Paints rows of tiles on a canvas of a layout."""

    def __init__(self, columns: Sequence[Column], layout: Layout) -> None:
        self._columns = columns
        self._layout = layout
        self._font = ImageFont.load_default(TEXT_SIZE)
        self._small_font = ImageFont.load_default(SMALL_TEXT_SIZE)
        self._empty = self._labelled()

    def blank(self) -> np.ndarray:
        """A new canvas with nothing but labels: (H, W, 3) uint8 RGB."""
        return self._empty.copy()

    def paint_row(
        self, canvas: np.ndarray, row: int, *, view: FrameView, finished: np.ndarray | None, time_s: Fraction
    ) -> None:
        """Paint one frame's tiles and caption into a row of the canvas."""
        for column, box in zip(self._columns, self._layout.tiles[row], strict=True):
            _paint_tile(canvas, box, column.picture(view, finished, box.height))
        first = self._layout.tiles[row][0]
        caption = Image.new("RGB", (CAPTION, min(first.height, 2 * TEXT_SIZE + GUTTER)), PAPER)
        pen = ImageDraw.Draw(caption)
        pen.text((0, 0), str(view.number), font=self._font, fill=INK)
        pen.text(
            (0, TEXT_SIZE + GUTTER // 2), f"{float(time_s):.2f} s", font=self._small_font, fill=FAINT_INK
        )
        canvas[first.y : first.y + caption.height, first.x - CAPTION : first.x] = np.asarray(caption)

    def _labelled(self) -> np.ndarray:
        image = Image.new("RGB", (self._layout.width, self._layout.height), PAPER)
        pen = ImageDraw.Draw(image)
        first = self._layout.tiles[0][0]
        baseline = first.y - GUTTER
        pen.text((first.x - CAPTION, baseline), "frame", font=self._small_font, fill=FAINT_INK, anchor="ls")
        for column, box in zip(self._columns, self._layout.tiles[0], strict=True):
            pen.text(
                (box.x, baseline),
                column.label,
                font=self._fitting(column.label, box.width),
                fill=INK,
                anchor="ls",
            )
        return np.array(image)

    def _fitting(self, label: str, width: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
        """The label's font, smaller where the column is narrow."""
        size = TEXT_SIZE
        font = self._font
        while size > 7 and font.getlength(label) > width:
            size -= 1
            font = ImageFont.load_default(size)
        return font


def contact_sheet(
    source: TrackedSource, *, stage: Stage | None = None, rows: int = 8, finished: SourceVideo | None = None
) -> np.ndarray:
    """Evenly spread frames of a source, one a row: (H, W, 3) uint8 RGB, at most 1920 wide.

    `finished` is the output video, where it exists. Advances `stage`, if given, by one a row; raises
    Cancelled.
    """
    numbers = np.unique(np.linspace(0, source.num_frames - 1, rows).round().astype(int)).tolist()
    columns = _columns(source, finished=finished)
    aspects = [column.aspect for column in columns]
    layout = plan_layout(aspects, rows=len(numbers), tile_height=SHEET_TILE_HEIGHT)
    renderer = Renderer(columns, layout)
    canvas = renderer.blank()
    for row, number in enumerate(numbers):
        with closing(_frames(source, finished, number, number + 1)) as frames:
            view, result = next(frames)
        renderer.paint_row(canvas, row, view=view, finished=result, time_s=number / source.video.fps)
        if stage is not None:
            stage.advance()
    return canvas


def write_contact_sheet(
    path: Path,
    source: TrackedSource,
    *,
    stage: Stage | None = None,
    rows: int = 8,
    finished: SourceVideo | None = None,
) -> None:
    """Write `contact_sheet` as a PNG; the file appears when it is complete. Raises DiskFull, Cancelled."""
    image = Image.fromarray(contact_sheet(source, stage=stage, rows=rows, finished=finished))
    partial = path.with_name(f".{path.name}.{uuid4().hex[:8]}.part")
    try:
        image.save(partial, format="PNG")
        partial.replace(path)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise DiskFull(f"no room left for the contact sheet {path}; free some disk space") from error
    finally:
        partial.unlink(missing_ok=True)


def write_preview(
    path: Path,
    source: TrackedSource,
    *,
    stage: Stage,
    finished: SourceVideo | None = None,
    audio: AudioTrack | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write every frame's columns as one MP4, at most 1920 wide, at the source's rate.

    `finished` is the output video, where it exists. Advances `stage` by one a frame; raises DiskFull,
    Cancelled, and then leaves no file.
    """
    columns = _columns(source, finished=finished)
    aspects = [column.aspect for column in columns]
    layout = plan_layout(aspects, rows=1, tile_height=VIDEO_TILE_HEIGHT, multiple=VIDEO_MULTIPLE)
    renderer = Renderer(columns, layout)
    fps = source.video.fps
    writer = VideoWriter(
        path,
        width=layout.width,
        height=layout.height,
        fps=fps,
        quality=PREVIEW_QUALITY,
        metadata=metadata,
        audio=audio,
    )
    with writer, closing(_frames(source, finished, 0, source.num_frames)) as frames:
        for view, result in frames:
            canvas = renderer.blank()
            renderer.paint_row(canvas, 0, view=view, finished=result, time_s=view.number / fps)
            writer.write(canvas[None])
            stage.advance()


def _frames(
    source: TrackedSource, finished: SourceVideo | None, start: int, stop: int
) -> Generator[tuple[FrameView, np.ndarray | None], None, None]:
    """Views of a range, each with its frame of the finished video."""
    results = repeat(None, stop - start) if finished is None else finished.frames(start, stop)
    yield from zip(source.views(start, stop), results, strict=True)


def _columns(source: TrackedSource, *, finished: SourceVideo | None) -> list[Column]:
    source_height, source_width = source.tracks.frame_size
    height, width = source.reference.shape[:2]
    before, after = source_width / source_height, width / height
    columns = [
        Column(label="driving video", aspect=before, picture=lambda view, _, tall: _seen(view, source, tall)),
        Column(label="tracked", aspect=before, picture=lambda view, _, tall: _tracked(view, source, tall)),
        Column(label="pose", aspect=after, picture=lambda view, _, __: view.pose),
        Column(label="face", aspect=1.0, picture=lambda view, _, __: _face(view)),
    ]
    if source.replaces:
        columns.append(
            Column(label="background, mask", aspect=after, picture=lambda view, _, __: _tinted(view))
        )
    if finished is not None:
        columns.append(Column(label="result", aspect=after, picture=lambda _, result, __: _known(result)))
    return columns


def _face(view: FrameView) -> np.ndarray:
    """The face crop, or words where the model gets none: (512, 512, 3) uint8 RGB."""
    if view.face.any():
        return view.face
    blank = Image.fromarray(view.face)
    centre = blank.width // 2
    font = ImageFont.load_default(blank.width // 12)
    ImageDraw.Draw(blank).text((centre, centre), "no face", font=font, fill=FAINT_INK, anchor="mm")
    return np.asarray(blank)


def _seen(view: FrameView, source: TrackedSource, tile_height: int) -> np.ndarray:
    return marked_people(_known(view.picture), source.tracks, view.number, tile_height=tile_height)


def marked_people(picture: np.ndarray, tracks: Tracks, number: int, *, tile_height: int) -> np.ndarray:
    """A driving frame (H, W, 3) for a tile, (h, w, 3) uint8 RGB: of several people, shows who is followed.

    The subject gets a frame, the others lose their colours; a picture of one person stays as it is.
    """
    if tracks.others.shape[1] == 0:
        return picture
    scale = min(OVERSAMPLING * tile_height, len(picture)) / len(picture)
    height, width = round(len(picture) * scale), round(picture.shape[1] * scale)
    marked = _resized(picture, width=width, height=height).copy()
    grey = cv2.cvtColor(marked, cv2.COLOR_RGB2GRAY)
    grey = cv2.cvtColor(cv2.convertScaleAbs(grey, alpha=OTHERS_DIMMED), cv2.COLOR_GRAY2RGB)
    left_alone = np.zeros((height, width), bool)
    for box in tracks.others[number]:
        if np.isfinite(box).all():
            left_alone[_area(box * scale, height=height, width=width)] = True
    subject = tracks.boxes[number] * scale
    if not np.isfinite(subject).all():
        return np.where(left_alone[..., None], grey, marked)
    rows, columns = _area(subject, height=height, width=width)
    left_alone[rows, columns] = False
    marked = np.where(left_alone[..., None], grey, marked)
    corners = (columns.start, rows.start), (columns.stop - 1, rows.stop - 1)
    return cv2.rectangle(marked, *corners, SUBJECT_FRAME, thickness=OVERSAMPLING)


def _area(box: np.ndarray, *, height: int, width: int) -> tuple[slice, slice]:
    """Rows and columns of a picture that a person's box (4,) covers, with a margin."""
    x0, y0, x1, y1 = box.tolist()
    margin = BOX_MARGIN * max(x1 - x0, y1 - y0)
    rows = slice(max(round(y0 - margin), 0), min(round(y1 + margin), height))
    return rows, slice(max(round(x0 - margin), 0), min(round(x1 + margin), width))


def _tracked(view: FrameView, source: TrackedSource, tile_height: int) -> np.ndarray:
    """The dimmed driving frame with skeleton and face box, for a tile: (h, w, 3) uint8 RGB."""
    source_height, source_width = source.tracks.frame_size
    height = min(OVERSAMPLING * tile_height, source_height)
    scale = height / source_height
    width = round(source_width * scale)
    pose = source.tracks.poses[view.number].copy()
    pose[:, :2] *= scale
    drawn = cv2.dilate(draw_skeleton(pose, height=height, width=width), BROADER)
    empty = cv2.inRange(drawn, (0, 0, 0), (0, 0, 0))
    dimmed = cv2.convertScaleAbs(_resized(_known(view.picture), width=width, height=height), alpha=DIMMED)
    cv2.copyTo(dimmed, empty, drawn)
    box = source.tracks.face_boxes[view.number]
    if np.isfinite(box).all():
        x0, y0, x1, y1 = (round(float(value) * scale) for value in box)
        cv2.rectangle(drawn, (x0, y0), (x1 - 1, y1 - 1), FACE_BOX, thickness=OVERSAMPLING)
    return drawn


def _tinted(view: FrameView) -> np.ndarray:
    """The scene, tinted where the person is to be generated: (H, W, 3) uint8 RGB."""
    background, mask = _known(view.background), _known(view.mask)
    height, width = mask.shape
    person = scale_and_crop(_known(view.picture), width=width, height=height)
    tint = np.full_like(background, MASK_TINT)
    tinted = cv2.addWeighted(person, 1 - TINT_STRENGTH, tint, TINT_STRENGTH, 0)
    return np.where(mask[:, :, None] > 0, tinted, background)


def _known(picture: np.ndarray | None) -> np.ndarray:
    assert picture is not None  # `views` fills it, and a column is only there where its pictures are
    return picture


def _paint_tile(canvas: np.ndarray, box: Box, picture: np.ndarray) -> None:
    tile = _resized(picture, width=box.width, height=box.height)
    canvas[box.y : box.y + box.height, box.x : box.x + box.width] = tile
    cv2.rectangle(canvas, (box.x - 1, box.y - 1), (box.x + box.width, box.y + box.height), FRAME)


def _resized(picture: np.ndarray, *, width: int, height: int) -> np.ndarray:
    shrinks = width < picture.shape[1]
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
