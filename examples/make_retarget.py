"""Makes retarget.png beside it: what retarget_flag does, on the sample.

In: driving.mp4 and reference.jpg. Out: two moments of the video, one a row: who moves; whose body is meant;
the motion as it comes, which is nobody's body and stands anywhere; the motion on that body. Nothing is drawn
that the app would not give the model; lines are broadened, pictures darkened.

    python examples/make_retarget.py    # with the program installed; a few seconds
"""

import argparse
import os
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from wan_animate.preprocess.backends import build_backend
from wan_animate.preprocess.clip_source import AnimationSource
from wan_animate.preprocess.geometry import fit_size, scale_and_crop
from wan_animate.preprocess.preprocessor import Preprocessor
from wan_animate.preprocess.skeleton import draw_skeleton
from wan_animate.preprocess.stance import Retargeting
from wan_animate.wan.media.decode import open_video
from wan_animate.wan.media.still import load_image
from wan_animate.wan.runtime.job import Job

HERE = Path(__file__).parent
SECONDS = 2.0  # of the video are looked at
FRAMES = (10, 50)
LABELS = ("who moves", "whose body", "as it comes", "retargeted")
TILE = 264  # pixels high
MARGIN, GUTTER, HEADER = 16, 8, 28  # pixels
PAPER, INK = (20, 22, 26), (226, 228, 232)  # RGB, as in previews
DARKENED = 0.45


def shown_on(picture: np.ndarray, skeleton: np.ndarray) -> Image.Image:
    """A drawn skeleton over its picture, both (h, w, 3) uint8 RGB, as a tile."""
    height, width = picture.shape[:2]
    size = (round(width * TILE / height), TILE)
    tile = (cv2.resize(picture, size, interpolation=cv2.INTER_AREA) * DARKENED).astype(np.uint8)
    lines = cv2.resize(cv2.dilate(skeleton, np.ones((5, 5), np.uint8)), size, interpolation=cv2.INTER_AREA)
    opaque = lines.max(axis=2, keepdims=True) / 255.0
    return Image.fromarray((tile * (1 - opaque) + lines).clip(0, 255).astype(np.uint8))


def rows() -> list[list[Image.Image]]:
    """The tiles, one row a frame."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    preprocessor = Preprocessor(build_backend("embedded", cache_dir=cache))
    video = open_video(HERE / "driving.mp4", duration_s=SECONDS)
    picture = load_image(HERE / "reference.jpg")
    width, height = fit_size((picture.shape[1], picture.shape[0]), width=832, height=480)
    reference = scale_and_crop(picture, width=width, height=height)
    job = Job()
    tracks = preprocessor.tracks(video, subject="largest", job=job)
    goal = Retargeting.of(
        reference, preprocessor=preprocessor, path=HERE / "reference.jpg", editor=None, seed=0
    )
    moved = goal.apply(video, tracks, job).poses
    own = draw_skeleton(goal.body, height=height, width=width)
    sources = [AnimationSource(video, tracks, reference, retargeted=poses) for poses in (None, moved)]
    made = []
    for number in FRAMES:
        with closing(sources[0].views(number, number + 1)) as views:
            view = next(views)
        tracked = draw_skeleton(tracks.poses[number], height=video.size[0], width=video.size[1])
        drawn = [source.conditions([number]).pose[0] for source in sources]
        pairs = [(view.picture, tracked), *((reference, skeleton) for skeleton in (own, *drawn))]
        made.append([shown_on(below, above) for below, above in pairs])
    return made


def sheet(tiles: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """All tiles under their labels."""
    width = 2 * MARGIN + sum(tile.width for tile in tiles[0]) + GUTTER * (len(LABELS) - 1)
    height = 2 * MARGIN + HEADER + len(tiles) * TILE + GUTTER * (len(tiles) - 1)
    paper = Image.new("RGB", (width, height), PAPER)
    pen, font = ImageDraw.Draw(paper), ImageFont.load_default(16)
    for row, line in enumerate(tiles):
        left, top = MARGIN, MARGIN + HEADER + row * (TILE + GUTTER)
        for label, tile in zip(LABELS, line, strict=True):
            if row == 0:
                pen.text((left, top - GUTTER), label, font=font, fill=INK, anchor="ls")
            paper.paste(tile, (left, top))
            left += tile.width + GUTTER
    return paper


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Write retarget.png.")
    parser.add_argument("--out", type=Path, default=HERE, help="folder to write to")
    folder = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    sheet(rows()).save(folder / "retarget.png", optimize=True)


if __name__ == "__main__":
    main()
