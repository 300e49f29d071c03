"""The story of retargeting: a reference picture and the driving tracks in, poses on the reference's body out.

The only module that knows in which order proportions are found: the reference's pose, if asked for both
people's edited stances, then the lengths. T frames; coordinates come in pixels of the driving video and leave
in pixels of the reference picture.
"""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Self

import numpy as np

from ..wan.media.decode import SourceVideo
from ..wan.runtime.errors import NoPersonFound
from ..wan.runtime.job import Job
from .keypoints import VISIBLE
from .preprocessor import Preprocessor
from .retarget import EditedStances, retarget, stance_frame
from .stance_prompts import editing_prompts
from .tracks import Tracks

if TYPE_CHECKING:
    from .full.flux import StanceEditor

EDIT_SEED: Final = (
    0  # the request's would make a preview, which has none, show other proportions than the run
)
EDIT_GUESS_S: Final = 1.0  # a step of the editing model
UPPER_BODY: Final = slice(0, 7)  # head and shoulders
MOMENT: Final = 0.02  # share of the frames that may be out of the picture unmentioned
RETARGET_GUESS_S: Final = 0.0001  # a frame


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Retargeted:
    """The driving motion on the reference's body."""

    poses: np.ndarray  # (T, 133, 3) float32: x, y in pixels of the reference picture, score
    stills: MappingProxyType[str, np.ndarray]  # edited pictures, (h, w, 3) uint8 RGB, by name; or none


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Retargeting:
    """One request's retargeting: whose body, and how its proportions are found."""

    preprocessor: Preprocessor
    reference: np.ndarray  # (H, W, 3) uint8 RGB at the output's size
    body: np.ndarray  # (133, 3) float32, the pose in `reference`
    editor: "StanceEditor | None"  # None: proportions are read from the pictures as they are

    @classmethod
    def of(
        cls,
        reference: np.ndarray,
        *,
        preprocessor: Preprocessor,
        path: Path,
        editor: "Callable[[], StanceEditor] | None",
    ) -> Self:
        """Read the reference picture, which came from `path`; then, with a person in it, open the editor.

        Raises NoPersonFound, and what opening the editor raises.
        """
        try:
            body = preprocessor.picture_pose(reference)
        except NoPersonFound as error:
            raise NoPersonFound(
                f"no person was found in {path.name}, whose body retarget_flag measures: use a picture that "
                "shows head and upper body, or set retarget_flag to false"
            ) from error
        return cls(
            preprocessor=preprocessor, reference=reference, body=body, editor=editor() if editor else None
        )

    def announce(self, job: Job, num_frames: int) -> None:
        """Tell the job what `apply` is going to do."""
        if self.editor is not None:
            job.expect("flux", 2 * self.editor.steps, seconds_a_unit=EDIT_GUESS_S)
        job.expect("retarget", num_frames, seconds_a_unit=RETARGET_GUESS_S)

    def apply(self, video: SourceVideo, tracks: Tracks, job: Job) -> Retargeted:
        """Move the tracked poses, in the job's stages flux (if asked for) and retarget; warns through it.

        Raises NoPersonFound, ModelFilesBroken, OutOfMemory, Cancelled.
        """
        edited, stills = (None, {}) if self.editor is None else self._edited(self.editor, video, tracks, job)
        with job.stage("retarget", total=tracks.num_frames) as stage:
            poses, warnings = retarget(
                tracks.poses,
                self.body,
                driving_size=tracks.frame_size,
                reference_size=_size(self.reference),
                edited=edited,
            )
            stage.advance(tracks.num_frames)
        for sentence in (*warnings, *room_warnings(poses, _size(self.reference))):
            job.warn(sentence)
        return Retargeted(poses=poses, stills=MappingProxyType(stills))

    def _edited(
        self, editor: "StanceEditor", video: SourceVideo, tracks: Tracks, job: Job
    ) -> tuple[EditedStances, dict[str, np.ndarray]]:
        """Both people upright, and the pictures that show it."""
        from .full.flux import Edit  # noqa: PLC0415 - diffusers' pipeline loads only where it is used

        frame = stance_frame(tracks.poses, self.body)  # the same for the edit and for its pose
        with closing(video.frames(frame, frame + 1)) as frames:
            driving = next(frames)
        prompts = editing_prompts(
            tracks.poses, driving_size=tracks.frame_size, reference_size=_size(self.reference)
        )
        with job.stage("flux", total=2 * editor.steps) as stage:
            pictures = editor.edit(
                [
                    Edit(picture=picture, prompt=prompt)
                    for picture, prompt in zip((driving, self.reference), prompts, strict=True)
                ],
                seed=EDIT_SEED,
                tick=lambda words: stage.advance(detail=words),
            )
            poses = self._poses(pictures)
        stances = EditedStances(
            driving=poses[0],
            driving_size=tracks.frame_size,
            reference=poses[1],
            reference_size=_size(self.reference),
        )
        return stances, {"flux_driving": pictures[0], "flux_reference": pictures[1]}

    def _poses(self, pictures: Sequence[np.ndarray]) -> list[np.ndarray]:
        try:
            return [self.preprocessor.picture_pose(picture) for picture in pictures]
        except NoPersonFound as error:
            raise NoPersonFound(
                "no person was found in a picture that FLUX.1-Kontext edited: use another reference picture, "
                "or set use_flux to false"
            ) from error


def room_warnings(poses: np.ndarray, size: tuple[int, int]) -> list[str]:
    """A sentence where poses (T, 133, 3) leave a picture of that (H, W) for more than a moment."""
    height, width = size
    x, y, score = np.moveaxis(poses[:, UPPER_BODY], -1, 0)
    seen = score >= VISIBLE
    inside = seen & (x >= 0) & (y >= 0) & (x < width) & (y < height)
    gone = int((seen.any(axis=1) & ~inside.any(axis=1)).sum())
    if gone <= MOMENT * len(poses):
        return []
    return [
        f"retargeted, head and shoulders leave the picture in {gone} of {len(poses)} frames: use a reference "
        "picture with more room around the person"
    ]


def _size(picture: np.ndarray) -> tuple[int, int]:
    return picture.shape[0], picture.shape[1]
