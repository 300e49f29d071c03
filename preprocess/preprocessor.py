"""The story of pass 1: a driving video in, `Tracks` out. The only module that knows the order of the stages.

people → who is meant → pose → smooth. Every source frame is looked at once in each of the first two stages,
however often the output shows it, and only numbers are kept. N source frames, T output frames.
"""

from collections.abc import Generator, Sequence
from contextlib import closing
from functools import partial
from typing import Final

import cv2
import numpy as np

from ..wan.media.decode import SourceVideo
from ..wan.runtime.errors import NoPersonFound
from ..wan.runtime.job import Job
from .backends import Backend, Estimate, People, Sought
from .bystanders import boxes_at, regions_at
from .face import MIN_SHARE, smooth_face_boxes
from .keypoints import FACE, NUM_KEYPOINTS, VISIBLE
from .mask_repair import Verdict, judge, own_parts, reach
from .packed import PackedMasks
from .smoothing import BRIDGE_S, find_absences, number_shots, smooth_poses, spans
from .subjects import Subject, SubjectTrack, follow, pose_box
from .tracks import Tracks

MIN_PRESENCE: Final = 0.5  # of an estimate, or the person was not there
HOP_FRAMES: Final = 5  # without a credible estimate, over which a doubtful run still leads to a sure one
REGION_S: Final = 0.17  # seconds to either side over which regions are smoothed; 5 frames at 30 a second

THUMBNAIL: Final = (32, 18)  # pixels in which cuts are looked for
THUMBNAIL_STEP: Final = 4  # pixels skipped on the way there: a cut shows in any of them

PEOPLE_GUESS_S: Final = 0.05  # a frame on two cores; only until the stage's own speed is known
POSE_GUESS_S: Final = 0.04
MASK_GUESS_S: Final = 0.03
SMOOTH_GUESS_S: Final = 0.001

RARELY: Final = 0.05  # of the frames: people who are together for so short a time are not spoken of
MAX_RANGES: Final = 6  # ranges of frames spelled out in a warning


class Preprocessor:
    """Pass 1 over one backend's models. Holds nothing of any request."""

    def __init__(self, backend: Backend, *, stride: int = 1) -> None:
        """`stride`: look for people in every so many frames only, for benchmarks."""
        self._backend = backend
        self._stride = stride

    @property
    def words(self) -> tuple[str, ...]:
        """What, besides the video, decides the tracks: for keys of caches."""
        return (*self._backend.words, f"stride {self._stride}")

    def release(self) -> None:
        """Let go of what the models hold of a GPU; the next use takes it again."""
        self._backend.release()

    def announce(self, job: Job, video: SourceVideo, *, masks: bool = False) -> None:
        """Tell the job what `tracks` is going to do."""
        frames = len(np.unique(video.indices))
        job.expect("people", frames, seconds_a_unit=PEOPLE_GUESS_S / self._stride)
        job.expect("pose", frames, seconds_a_unit=POSE_GUESS_S)
        if masks:
            job.expect("mask", frames, seconds_a_unit=MASK_GUESS_S)
        job.expect("smooth", frames, seconds_a_unit=SMOOTH_GUESS_S)

    def tracks(self, video: SourceVideo, *, subject: Subject, job: Job, masks: bool = False) -> Tracks:
        """Follow one person through the video, in the job's stages people, pose, mask (if asked) and smooth.

        Raises NoPersonFound, BadMedia, Cancelled.
        """
        # (N,) source frames, and (T,) which of them each output frame shows.
        sources, shown = np.unique(video.indices, return_inverse=True)
        rate = float(video.fps) * len(sources) / video.num_frames  # source frames a second
        people, shots = self._find(video, len(sources), job)
        track = follow(
            people, subject=subject, shots=shots, frame_size=video.size, half=round(REGION_S * rate)
        )
        del people  # by far the most memory of this pass
        if track is None:
            raise NoPersonFound(_nobody(video))
        poses, present = self._estimate(video, track, job)
        present = track.without_chairs(poses, present, shots)
        if not present.any():
            raise NoPersonFound(_nobody(video))
        silhouettes, verdict = (
            self._silhouettes(video, track, poses, present, shots, job, rate=rate) if masks else (None, None)
        )
        with job.stage("smooth", total=len(sources)) as stage:
            steady = smooth_poses(poses, present, shots, rate=rate, frame_size=video.size, check=job.check)
            del poses
            faces = smooth_face_boxes(steady, video.size, rate=rate, shots=shots)
            boxes = subject_boxes(track, steady, present)
            stage.advance(len(sources))
        if len(shown) > len(sources):
            steady, faces, boxes = steady[shown], faces[shown], boxes[shown]
        others = track.bystanders[shown]
        warnings = (
            *crowd_warnings(boxes, others, subject),
            *newcomer_warnings(track.newcomers, subject, present[shown], shots[shown]),
            *absence_warnings(present[shown], shots[shown], fps=float(video.fps)),
            *face_warnings(steady),
            *(mask_warnings(verdict, shown) if verdict else ()),
        )
        return Tracks(
            frame_size=video.size,
            poses=steady,
            face_boxes=faces,
            boxes=boxes,
            others=others,
            masks=silhouettes.picked(shown) if silhouettes else None,
            warnings=warnings,
        )

    def _silhouettes(
        self,
        video: SourceVideo,
        track: SubjectTrack,
        poses: np.ndarray,
        present: np.ndarray,
        shots: np.ndarray,
        job: Job,
        *,
        rate: float,
    ) -> tuple[PackedMasks, Verdict]:
        """The person's masks of the source frames (N), and what is wrong with them; `rate` of them a second.

        Where the tracker or the pose loses the person for a moment, the masks around stand in, both of
        them: a halo of the old person is worse than a few pixels of background less. Where the person is
        away, the mask is empty.
        """
        areas, reaches = np.zeros(len(present)), np.ones(len(present))
        with (
            job.stage("mask", total=len(present)) as stage,
            closing(_distinct(video)) as frames,
            closing(
                self._backend.track_masks(frames, track=track, poses=poses, present=present, shots=shots)
            ) as masks,
        ):

            def cleaned() -> Generator[np.ndarray, None, None]:
                for index, mask in enumerate(masks):
                    if present[index]:
                        own = own_parts(mask, poses[index], boxes_at(track.others, index, shots))
                        areas[index] = own.sum()
                        reaches[index] = reach(poses[index], video.size)
                        yield own
                    else:
                        yield np.zeros_like(mask)
                    stage.advance()

            packed = PackedMasks.pack(cleaned())
        verdict = judge(areas, reaches, present, shots, rate=rate)
        gaps = {
            frame: (absence.before, absence.after)
            for absence in find_absences(present, shots)
            if absence.before is not None
            and absence.after is not None
            and absence.stop - absence.start <= round(BRIDGE_S * rate)
            for frame in range(absence.start, absence.stop)
        }
        return packed.filled(verdict.stand_ins).filled(gaps), verdict

    def picture_pose(self, picture: np.ndarray) -> np.ndarray:
        """The pose of the main person of a picture (H, W, 3) uint8 RGB: (133, 3) float32, pixels and scores.

        Raises NoPersonFound.
        """
        return self._backend.estimate_pose(picture)

    def _find(self, video: SourceVideo, count: int, job: Job) -> tuple[list[People | None], np.ndarray]:
        """Everybody in each source frame (None where nobody looked), and the number of its shot (N,)."""
        people: list[People | None] = [None] * count
        changes = np.zeros(count)

        def looked_at() -> Generator[np.ndarray, None, None]:
            before: np.ndarray | None = None
            with closing(_distinct(video)) as frames:
                for index, frame in enumerate(frames):
                    small = _thumbnail(frame)
                    changes[index] = 0.0 if before is None else np.abs(small - before).mean()
                    before = small
                    if index % self._stride == 0:
                        yield frame
                    else:
                        stage.advance()

        with (
            job.stage("people", total=count) as stage,
            closing(looked_at()) as frames,
            closing(self._backend.find_people(frames)) as found,
        ):
            for index, one in enumerate(found):
                people[index * self._stride] = one
                stage.advance()
        return people, number_shots(changes)

    def _estimate(self, video: SourceVideo, track: SubjectTrack, job: Job) -> tuple[np.ndarray, np.ndarray]:
        """Poses (N, 133, 3) float32 as estimated, and in which frames (N,) the person was really there."""
        poses = np.zeros((len(track.seen), NUM_KEYPOINTS, 3), np.float32)
        present = np.zeros(len(track.seen), bool)
        with (
            job.stage("pose", total=len(poses)) as stage,
            closing(_distinct(video)) as frames,
            closing(
                self._backend.estimate_poses(
                    Sought(
                        frame=frame,
                        region=region,
                        others=regions_at(track.others, index),
                        accepts=partial(self._is_there, track, index),
                    )
                    for index, (frame, region) in enumerate(zip(frames, track.regions, strict=True))
                )
            ) as estimates,
        ):
            for index, estimate in enumerate(estimates):
                poses[index] = estimate.pose
                present[index] = self._is_there(track, index, estimate)
                stage.advance()
        if self._stride == 1:
            present = track.connected(present, hop=HOP_FRAMES)
        return poses, present

    def _is_there(self, track: SubjectTrack, frame: int, estimate: Estimate) -> bool:
        """Whether an estimate of a frame is the person's; nobody knows better where nobody was looked for."""
        return estimate.presence >= MIN_PRESENCE and (
            frame % self._stride != 0 or track.is_subject(frame, estimate.pose, estimate.looks)
        )


def _distinct(video: SourceVideo) -> Generator[np.ndarray, None, None]:
    """Every source frame once, in order."""
    shown: int | None = None
    with closing(video.frames()) as frames:
        for source, frame in zip(video.indices.tolist(), frames, strict=True):
            if source != shown:
                yield frame
            shown = source


def _thumbnail(frame: np.ndarray) -> np.ndarray:
    step = max(min(THUMBNAIL_STEP, min(frame.shape[:2]) // THUMBNAIL[1]), 1)
    return cv2.resize(frame[::step, ::step], THUMBNAIL, interpolation=cv2.INTER_AREA).astype(np.float32)


def subject_boxes(track: SubjectTrack, poses: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Boxes (N, 4) float32 of the person: as found, else around the pose; NaN where not `present`.

    `poses` is (N, 133, 3), `present` (N,) bool.
    """
    boxes = np.full_like(track.boxes, np.nan)
    for frame in np.flatnonzero(present).tolist():
        boxes[frame] = track.boxes[frame] if track.seen[frame] else pose_box(poses[frame])
    return boxes


# --- what the user is told; frames are numbered as in the output, from 0


def crowd_warnings(boxes: np.ndarray, others: np.ndarray, subject: Subject) -> list[str]:
    """A sentence where several people were seen at once, from the boxes (T, 4) and (T, P, 4) of `Tracks`.

    At once, because somebody whom a crossing changed beyond recognition is there twice, but not together.
    """
    everybody = np.concatenate([boxes[:, None], others], axis=1)
    at_once = np.isfinite(everybody[..., 0]).sum(axis=1)
    crowd = int(np.quantile(at_once, 1 - RARELY, method="nearest"))
    if crowd < 2:
        return []
    return [f"{crowd} people were seen: {_which(subject)} is followed; choose another with subject"]


def absence_warnings(present: np.ndarray, shots: np.ndarray, *, fps: float) -> list[str]:
    """Sentences on the output frames (T,) in which the person was not found, and what stands in."""
    before, after, between = [], [], []
    for absence in find_absences(present, shots):
        frames = (absence.start, absence.stop - 1)
        if absence.before is None:
            after.append(frames)
        elif absence.after is None or absence.stop - absence.start > round(BRIDGE_S * fps):
            before.append(frames)
        else:
            between.append(frames)
    sentences = (
        (after, "no person in {}: the first pose after is held"),
        (before, "no person in {}: the last pose before is held"),
        (between, "the person was lost for a moment in {}: the pose is interpolated"),
    )
    return [sentence.format(_in_words(ranges)) for ranges, sentence in sentences if ranges]


def face_warnings(poses: np.ndarray) -> list[str]:
    """Sentences on the output frames in which steady poses (T, 133, 3) show no face."""
    seen = (poses[:, FACE, 2] >= VISIBLE).mean(axis=1) >= MIN_SHARE
    if not seen.any():
        return ["no face was found in any frame: the character keeps a face without expression"]
    ranges = _ranges(~seen)
    if not ranges:
        return []
    return [f"no face in {_in_words(ranges)}: it is cut out where it should be, by the frames around"]


def mask_warnings(verdict: Verdict, shown: np.ndarray) -> list[str]:
    """Sentences on the output frames whose masks lost the person; `shown` (T,) are their source frames."""
    mended = np.isin(shown, list(verdict.stand_ins))
    doubtful = verdict.doubtful[shown]
    sentences = (
        (mended, "the mask lost the person for a moment in {}: the masks around stand in"),
        (doubtful, "the mask may miss part of the person in {}: the original may show through there"),
    )
    return [sentence.format(_in_words(_ranges(wrong))) for wrong, sentence in sentences if wrong.any()]


def newcomer_warnings(
    newcomers: Sequence[int], subject: Subject, present: np.ndarray, shots: np.ndarray
) -> list[str]:
    """A sentence on shots (by their numbers) that show somebody else; `present` and `shots` are (T,)."""
    ranges = [
        (int(frames[0]), int(frames[-1]))
        for shot in newcomers
        if present[frames := np.flatnonzero(shots == shot)].any()
    ]
    if not ranges:
        return []
    return [
        f"nobody in {_in_words(ranges)}, in another shot, looks like the person followed in the rest: "
        f"{_which(subject)} there is followed"
    ]


def _which(subject: Subject) -> str:
    return f"the {'most central' if subject == 'center' else subject} person"


def _ranges(flags: np.ndarray) -> list[tuple[int, int]]:
    """First and last frames of the runs in which flags (T,) are up."""
    return [(start, stop - 1) for start, stop in spans(flags) if flags[start]]


def _in_words(ranges: Sequence[tuple[int, int]]) -> str:
    words = [f"{first}" if first == last else f"{first}–{last}" for first, last in ranges[:MAX_RANGES]]
    if len(ranges) > MAX_RANGES:
        rest = sum(last - first + 1 for first, last in ranges[MAX_RANGES:])
        return f"frames {', '.join(words)} and {rest} more"
    listed = " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
    return f"frame{'s' if len(words) > 1 or '–' in words[0] else ''} {listed}"


def _nobody(video: SourceVideo) -> str:
    return (
        f"no person was found in the {video.num_frames} frames used of {video.info.path.name}: use a "
        "part in which the performer's head and upper body, or at least the arms with the hands, can be seen"
    )
