"""The full backend: people by YOLOv10m and poses by ViTPose-H of the official checkpoint, masks by SAM2."""

from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from itertools import chain, tee
from pathlib import Path
from typing import Final

import numpy as np
import torch

from ...wan.runtime.errors import NoPersonFound
from ..backends import NOBODY_IN_PICTURE, Estimate, People, Sought
from ..keypoints import (
    BODY,
    LEFT_HIP,
    LEFT_KNEE,
    LEFT_SHOULDER,
    NUM_KEYPOINTS,
    RIGHT_HIP,
    RIGHT_KNEE,
    RIGHT_SHOULDER,
)
from ..looks import LOOKS, body_colours
from ..subjects import SubjectTrack, follow
from .detector import Detections, IdentityTracker, PersonDetector
from .mask_prompts import Guide
from .sam2 import Sam2Tracker
from .vitpose import VitPose

VERSION: Final = 1  # raise it when results change
SURE_POINTS: Final = 7  # of the body: as many as head and shoulders have; their mean score is the presence

# Where shoulders, hips and knees are in the box of somebody who stands: share of its height, and of its width
# to each side of the middle. For colours only, to be compared with those in the same places of other boxes.
JOINTS_IN_BOX: Final = (
    (LEFT_SHOULDER, RIGHT_SHOULDER, 0.22),
    (LEFT_HIP, RIGHT_HIP, 0.52),
    (LEFT_KNEE, RIGHT_KNEE, 0.75),
)
BODY_IN_BOX: Final = 0.18


class FullBackend:
    """A `Backend` over three networks. Serves one thread at a time.

    A region is the middle of a box and half its sides. The networks load when they are first used, and stay
    until `release`.
    """

    def __init__(self, *, detector: Path, pose: Path, tracker: Callable[[], Path], device: str) -> None:
        """`detector`: yolov10m.onnx; `pose`: the ViTPose-H folder or file; `device`: "cpu" or "cuda[:N]".

        `tracker` is asked for SAM2's folder when masks are first wanted.
        """
        self._detector_path = detector
        self._pose_path = pose
        self._device = device
        self._detector: PersonDetector | None = None
        self._pose: VitPose | None = None
        self._tracker_files = tracker
        self._tracker: Sam2Tracker | None = None

    @property
    def words(self) -> tuple[str, ...]:
        """The models and this code's version."""
        return ("full", self._detector_path.name, self._pose_path.name, "sam2", f"version {VERSION}")

    def load(self) -> None:
        """Load the networks that every request needs. Raises ModelFilesBroken, SetupFailed."""
        if self._detector is None:
            self._detector = PersonDetector(self._detector_path, device=self._device)
        if self._pose is None:
            self._pose = VitPose(self._pose_path, device=self._device)

    def release(self) -> None:
        """Free the memory of all networks; the next use loads them again."""
        self._detector = self._pose = self._tracker = None
        if self._device != "cpu":
            torch.cuda.empty_cache()  # torch keeps what it once had of the GPU

    def find_people(self, frames: Iterable[np.ndarray]) -> Generator[People, None, None]:
        """Everybody in each frame, (H, W, 3) uint8 RGB, in order; close it to stop early."""
        if self._detector is None:
            self._detector = PersonDetector(self._detector_path, device=self._device)
        tracker = IdentityTracker()
        seen, shown = tee(frames)
        with closing(self._detector(seen)) as found:
            for detections, frame in zip(found, shown, strict=True):
                height, width = frame.shape[:2]
                yield _people(frame, detections, tracker.follow(detections, height=height, width=width))

    def estimate_poses(self, sought: Iterable[Sought]) -> Generator[Estimate, None, None]:
        """One person's pose a frame, in order; close it to stop early.

        Others need not be told: ViTPose learned from boxes of crowds whom each box is meant for.
        """
        if self._pose is None:
            self._pose = VitPose(self._pose_path, device=self._device)
        seen, shown = tee(sought)
        boxes = ((one.frame, box_of(one.region)) for one in seen)
        with closing(self._pose(boxes)) as poses:
            for pose, one in zip(poses, shown, strict=True):
                looks = box_colours(one.frame, box_of(one.region))
                yield Estimate(pose=pose, presence=presence_of(pose), looks=looks)

    def track_masks(
        self,
        frames: Iterable[np.ndarray],
        *,
        track: SubjectTrack,
        poses: np.ndarray,
        present: np.ndarray,
        shots: np.ndarray,
    ) -> Generator[np.ndarray, None, None]:
        """One person's silhouette a frame, (H, W) uint8 of 0 and 1, in order; close it to stop early.

        Raises what fetching the network's files raises, and ModelFilesBroken.
        """
        if self._tracker is None:
            self._tracker = Sam2Tracker(self._tracker_files(), device=self._device)
        first = next(entries := iter(frames), None)
        if first is None:
            return
        size = (first.shape[0], first.shape[1])
        guide = Guide(track=track, poses=poses, present=present, shots=shots, size=size)
        with closing(self._tracker(chain([first], entries), guide)) as masks:
            yield from masks

    def estimate_pose(self, picture: np.ndarray) -> np.ndarray:
        """The pose of the largest person of a picture (H, W, 3) uint8 RGB: (133, 3) float32.

        Raises NoPersonFound.
        """
        with closing(self.find_people([picture])) as found:
            people = next(found)
        size = (picture.shape[0], picture.shape[1])
        track = follow([people], subject="largest", shots=np.zeros(1, int), frame_size=size, half=0)
        if track is None:
            raise NoPersonFound(NOBODY_IN_PICTURE)
        alone = np.zeros((0, 4), np.float32)
        sought = Sought(frame=picture, region=track.regions[0], others=alone, accepts=lambda _: True)
        with closing(self.estimate_poses([sought])) as estimates:
            return next(estimates).pose


def region_of(boxes: np.ndarray) -> np.ndarray:
    """Boxes (…, 4) of corners → regions (…, 4): the middle, and half of width and height."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return np.concatenate([(low + high) / 2, (high - low) / 2], axis=-1).astype(np.float32)


def box_of(region: np.ndarray) -> np.ndarray:
    """A region (4,) → the corners of its box (4,) float32."""
    middle, half = region[:2], np.abs(region[2:])
    return np.concatenate([middle - half, middle + half]).astype(np.float32)


def presence_of(pose: np.ndarray) -> float:
    """How sure it is, 0…1, that a pose (133, 3) is somebody's: the mean score of its surest body points."""
    return float(np.clip(np.sort(pose[BODY, 2])[-SURE_POINTS:].mean(), 0, 1))


def box_colours(frame: np.ndarray, box: np.ndarray) -> np.ndarray:
    """How somebody in a box (4,) looks: (LOOKS,) float32, the `body_colours` of somebody who stands in it."""
    (x0, y0, x1, y1) = box
    pose = np.zeros((NUM_KEYPOINTS, 3), np.float32)
    for left, right, down in JOINTS_IN_BOX:
        y = y0 + down * (y1 - y0)
        middle, across = (x0 + x1) / 2, BODY_IN_BOX * (x1 - x0)
        pose[left], pose[right] = (middle + across, y, 1), (middle - across, y, 1)
    return body_colours(frame, pose)


def _people(frame: np.ndarray, detections: Detections, numbers: np.ndarray) -> People:
    count = len(numbers)
    looks = [box_colours(frame, box) for box in detections.boxes]
    return People(
        boxes=detections.boxes,
        scores=detections.scores,
        regions=region_of(detections.boxes),
        looks=np.array(looks, np.float32).reshape(count, LOOKS),
        numbers=numbers,
    )
