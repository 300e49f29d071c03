"""Pass 2: a driving video and its tracks in, one clip's conditions out. Nothing ever holds the whole video.

`AnimationSource` and `ReplacementSource` are what the engine knows as a `ClipSource`. Both work a frame at a
time (`FrameView`), so that a preview can show exactly what the model will see. They decode, draw and cut;
where people are and what is smoothed was settled in pass 1 (`Tracks`). T frames, h w pixels of the source, H
W pixels of the output.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np

from ..wan.conditions import FACE_SIZE, Conditions, Scene
from ..wan.media.decode import SourceVideo
from .face import crop_face
from .geometry import pad_to_fit, scale_and_crop
from .silhouette import MaskShaping, cut_background, shape_mask
from .skeleton import draw_skeleton
from .tracks import Tracks

PERSON = 255  # value of a mask's pixel where the person is to be generated


class Masks(Protocol):
    """The subject's silhouette, frame by frame; `PackedMasks` is one."""

    def mask(self, index: int) -> np.ndarray:
        """(h, w) of the source frames, any value but 0 is the person."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FrameView:
    """One frame's conditions, and the picture they were cut from."""

    number: int
    picture: np.ndarray | None  # (h, w, 3) uint8 RGB, the source frame; None where nothing needed it
    pose: np.ndarray  # (H, W, 3) uint8 RGB, skeleton on black
    face: np.ndarray  # (512, 512, 3) uint8 RGB; all zeros without a face
    background: np.ndarray | None = None  # (H, W, 3) uint8 RGB, the person's area black; replacement only
    mask: np.ndarray | None = None  # (H, W) uint8, 255 = person; replacement only


class TrackedSource(ABC):
    """What both modes share: which frames to decode, and how views become a clip's conditions."""

    def __init__(self, video: SourceVideo, tracks: Tracks, reference: np.ndarray) -> None:
        """`reference` is (H, W, 3) uint8 RGB at the output's size, which it thereby sets."""
        if video.num_frames != tracks.num_frames or tuple(video.size) != tuple(tracks.frame_size):
            raise ValueError(
                f"tracks of {tracks.num_frames} frames of {tracks.frame_size} do not belong to a video "
                f"of {video.num_frames} frames of {tuple(video.size)}"
            )
        self.video = video
        self.tracks = tracks
        self._reference = reference

    @property
    def num_frames(self) -> int:
        """Frames of the finished video."""
        return self.tracks.num_frames

    @property
    def reference(self) -> np.ndarray:
        """The reference picture at the output's size: (H, W, 3) uint8 RGB."""
        return self._reference

    @property
    @abstractmethod
    def replaces(self) -> bool:
        """Whether conditions carry a scene."""

    def conditions(self, frames: Sequence[int]) -> Conditions:
        """Conditions for these frame numbers, in this order; numbers may repeat and run backwards.

        Each source frame is decoded at most once, and none where only skeletons are needed.
        """
        places: dict[int, list[int]] = {}
        for place, number in enumerate(frames):
            places.setdefault(int(number), []).append(place)
        if not places or min(places) < 0 or max(places) >= self.num_frames:
            raise ValueError(f"frames must be numbers from 0 to {self.num_frames - 1}, got {list(frames)}")
        height, width = self._reference.shape[:2]
        pose = np.empty((len(frames), height, width, 3), np.uint8)
        face = np.empty((len(frames), FACE_SIZE, FACE_SIZE, 3), np.uint8)
        scene = (
            Scene(background=np.empty_like(pose), mask=np.empty(pose.shape[:3], np.uint8))
            if self.replaces
            else None
        )
        for view in self._views(sorted(places), all_pictures=False):
            at = places[view.number]
            pose[at], face[at] = view.pose, view.face
            if scene is not None:
                scene.background[at], scene.mask[at] = view.background, view.mask
        return Conditions(pose=pose, face=face, scene=scene)

    def views(self, start: int = 0, stop: int | None = None) -> Iterator[FrameView]:
        """Frames start…stop one after the other, each with its source picture; decodes the range once."""
        return self._views(range(start, self.num_frames if stop is None else stop), all_pictures=True)

    @abstractmethod
    def _view(self, number: int, picture: np.ndarray | None) -> FrameView:
        """One frame's conditions. `picture` is the source frame, or None where `_needs_picture` said no."""

    @abstractmethod
    def _needs_picture(self, number: int) -> bool:
        """Whether a frame's conditions need its pixels."""

    def _views(self, numbers: Sequence[int], *, all_pictures: bool) -> Iterator[FrameView]:
        """Views of ascending frame numbers."""
        wanted = [number for number in numbers if all_pictures or self._needs_picture(number)]
        pictures = self._pictures(wanted)
        drawn_from = set(wanted)
        for number in numbers:
            yield self._view(number, next(pictures) if number in drawn_from else None)

    def _pictures(self, numbers: list[int]) -> Iterator[np.ndarray]:
        """The source frames of ascending numbers, decoded in one go."""
        if not numbers:
            return
        span = range(numbers[0], numbers[-1] + 1)
        kept = set(numbers)
        for number, picture in zip(span, self.video.frames(span.start, span.stop), strict=True):
            if number in kept:
                yield picture

    def _face(self, number: int, picture: np.ndarray | None) -> np.ndarray:
        box = self.tracks.face_boxes[number]
        if picture is None or not np.isfinite(box).all():
            return np.zeros((FACE_SIZE, FACE_SIZE, 3), np.uint8)  # the "no expression" face
        return crop_face(picture, box)


class AnimationSource(TrackedSource):
    """The reference character performs the driving motion: skeletons and faces only."""

    def __init__(
        self,
        video: SourceVideo,
        tracks: Tracks,
        reference: np.ndarray,
        *,
        retargeted: np.ndarray | None = None,
    ) -> None:
        """`retargeted`, (T, 133, 3) float32 in the output's pixels, is drawn instead of the tracked poses."""
        super().__init__(video, tracks, reference)
        if retargeted is not None and retargeted.shape != tracks.poses.shape:
            raise ValueError(f"retargeted poses must be {tracks.poses.shape}, got {retargeted.shape}")
        self._retargeted = retargeted

    @property
    def replaces(self) -> bool:
        """Animation has no scene."""
        return False

    def _needs_picture(self, number: int) -> bool:
        return bool(np.isfinite(self.tracks.face_boxes[number]).all())

    def _view(self, number: int, picture: np.ndarray | None) -> FrameView:
        face = self._face(number, picture)
        return FrameView(number=number, picture=picture, pose=self._skeleton(number), face=face)

    def _skeleton(self, number: int) -> np.ndarray:
        """The drawn pose at the output's size: (H, W, 3) uint8 RGB."""
        height, width = self._reference.shape[:2]
        if self._retargeted is not None:  # officially too on a canvas of the output's size
            return draw_skeleton(self._retargeted[number], height=height, width=width)
        source_height, source_width = self.tracks.frame_size
        # Drawn at the source's size and then resized, as the model was trained: its line widths follow from
        # that.
        drawn = draw_skeleton(self.tracks.poses[number], height=source_height, width=source_width)
        return pad_to_fit(drawn, width=width, height=height, interpolation=cv2.INTER_LINEAR)


class ReplacementSource(TrackedSource):
    """The reference character takes the place of the person: the rest of the driving video stays."""

    def __init__(
        self,
        video: SourceVideo,
        tracks: Tracks,
        reference: np.ndarray,
        *,
        masks: Masks,
        shaping: MaskShaping | None = None,
    ) -> None:
        """`masks` are silhouettes at source size; `shaping` grows and coarsens them at the output's size."""
        super().__init__(video, tracks, reference)
        self._masks = masks
        self._shaping = shaping or MaskShaping()

    @property
    def replaces(self) -> bool:
        """Replacement carries background and mask."""
        return True

    def _needs_picture(self, number: int) -> bool:  # noqa: ARG002 - the background is in every frame
        return True

    def _view(self, number: int, picture: np.ndarray | None) -> FrameView:
        assert picture is not None  # `_needs_picture` is always true
        height, width = self._reference.shape[:2]
        scenery = scale_and_crop(picture, width=width, height=height)
        mask = shape_mask(self._silhouette(number), self._shaping)
        pose = _into_crop(
            self.tracks.poses[number], frame_size=self.tracks.frame_size, width=width, height=height
        )
        return FrameView(
            number=number,
            picture=picture,
            pose=draw_skeleton(pose, height=height, width=width),
            face=self._face(number, picture),  # the reference cuts it from the smaller, scaled frame
            background=cut_background(scenery, mask),
            mask=mask * np.uint8(PERSON),
        )

    def _silhouette(self, number: int) -> np.ndarray:
        """The tracked silhouette where the output shows it: (H, W) bool."""
        height, width = self._reference.shape[:2]
        opaque = (self._masks.mask(number) != 0).astype(np.uint8) * np.uint8(PERSON)
        return scale_and_crop(opaque, width=width, height=height) > PERSON // 2


def _into_crop(pose: np.ndarray, *, frame_size: tuple[int, int], width: int, height: int) -> np.ndarray:
    """A pose in source pixels → where `scale_and_crop` puts it, but for the half pixel that it rounds."""
    source_height, source_width = frame_size
    scale = max(width / source_width, height / source_height)
    moved = pose.copy()
    moved[:, 0] = (pose[:, 0] - source_width / 2) * scale + width / 2
    moved[:, 1] = (pose[:, 1] - source_height / 2) * scale + height / 2
    return moved
