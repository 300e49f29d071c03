"""A video's frames and where a person is in, one mask a frame out: SAM2 through transformers.

Each stretch of time with the person is one session of the network. It begins at the clearest frame of its
first block, from which the block is tracked backwards and everything after it forwards. Later blocks are told
again at their clearest frame, if it is clear enough, on top of what is remembered. What the network needs of
the past is six frames' features, fifteen frames' pointers and some frames it was told about: that is what is
kept, so length costs nothing and there are no borders between chunks at which identity has to be carried.
Beginning anew every so often with the last mask as the prompt was the alternative: it costs the same memory,
and forgets what the person looked like before a crossing.

Against the official program (Wan2.2 preprocess/process_pipepline.py, sam_utils.py): there every 400 frames
begin anew and lie on the GPU as float32, 5 GB; the kernels are forced to float32 ones. Here a block lies in
host memory as bytes, 100 MB, and the GPU works in bfloat16 where that is exact enough.
"""

from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from einops import rearrange
from transformers import Sam2VideoInferenceSession, Sam2VideoModel, Sam2VideoProcessor

from ...wan.runtime.pretrained import explained, load_pretrained
from .mask_prompts import Guide, Prompt

BLOCK: Final = 32  # frames: 100 MB of bytes at 1024 × 1024; also how far is tracked backwards at most
KEPT_TOLD: Final = 4  # frames told about; each costs the attention as much as a recent frame
CLEAR: Final = 0.5  # of the first told frame's clarity, that a later one must have
BRIDGE: Final = 5  # frames without the person through which a session lasts: it remembers six
THE_PERSON: Final = 1  # the network's number for it


class Sam2Tracker:
    """The mask network. Serves one thread at a time; holds nothing of any video between two calls."""

    def __init__(self, folder: Path, *, device: str) -> None:
        """`folder`: facebook/sam2-hiera-large as published for transformers; `device`: "cpu" or "cuda[:N]".

        Raises ModelFilesBroken.
        """
        self._device = torch.device(device)
        self._network: Any = load_pretrained(Sam2VideoModel, folder, dtype=torch.float32).to(self._device)
        with explained(folder):
            self._processor = Sam2VideoProcessor.from_pretrained(folder, local_files_only=True)

    def __call__(self, frames: Iterable[np.ndarray], guide: Guide) -> Generator[np.ndarray, None, None]:
        """Masks (H, W) uint8 of 0 and 1 of frames (H, W, 3) uint8 RGB, in order; close it to stop early.

        Empty where the person is not. Reads up to a block ahead.
        """
        entries = iter(frames)
        at = 0
        for start, stop in guide.stretches(bridge=BRIDGE):
            yield from map(_empty, islice(entries, start - at))
            yield from self._stretch(entries, guide, start, stop)
            at = stop
        yield from map(_empty, entries)

    def _stretch(
        self, frames: Iterator[np.ndarray], guide: Guide, start: int, stop: int
    ) -> Iterator[np.ndarray]:
        """Masks of the frames from `start` to `stop`, in which the person is; takes just these."""
        memory = _Memory(self._network, self._processor, self._device, guide.size)
        least = 0.0
        for first in range(start, stop, BLOCK):
            block = range(first, min(first + BLOCK, stop))
            told = guide.key_frame(block.start, block.stop, least=least)
            pictures = zip(block, map(self._shrunk, frames), strict=False)
            if memory.is_begun:
                masks = (
                    memory.told(index, picture, guide.prompt(index))
                    if index == told
                    else memory.followed(index, picture)
                    for index, picture in pictures
                )
            elif told is not None:
                masks = memory.begun(dict(pictures), told, guide.prompt(told))
                least = CLEAR * guide.clarity(told)
            else:
                masks = (None for _ in pictures)
            for logits in masks:
                yield self._at_size(logits, guide.size)

    def _shrunk(self, frame: np.ndarray) -> torch.Tensor:
        """A frame as the network's input before its normalisation: (3, S, S) uint8 in host memory."""
        picture = rearrange(torch.tensor(frame), "h w c -> c h w")  # a copy: frames may be read-only
        inputs = self._processor(
            images=picture, do_rescale=False, do_normalize=False, return_tensors="pt", device=self._device
        )
        return inputs["pixel_values"][0].cpu()

    def _at_size(self, logits: torch.Tensor | None, size: tuple[int, int]) -> np.ndarray:
        """Logits (1, 1, s, s), or None for nobody → the mask of a frame of `size` (H, W)."""
        if logits is None:
            return np.zeros(size, np.uint8)
        (mask,) = self._processor.post_process_masks([logits], original_sizes=[list(size)])
        return mask[0, 0].to(torch.uint8).cpu().numpy()


class _Memory:
    """What the network knows of one stretch of a video, trimmed to what it still looks at."""

    def __init__(
        self,
        network: Sam2VideoModel,
        processor: Sam2VideoProcessor,
        device: torch.device,
        size: tuple[int, int],
    ) -> None:
        """`size` is (H, W) of the video's frames, in whose pixels prompts are."""
        self._network = network
        self._processor = processor
        self._device = device
        self._size = size
        self._session = Sam2VideoInferenceSession(
            inference_device=device,
            inference_state_device=device,
            video_storage_device=device,
            dtype=torch.float32,
        )
        self._person = self._session.obj_id_to_idx(THE_PERSON)

    @property
    def _outputs(self) -> dict[str, dict[int, dict[str, torch.Tensor]]]:
        return self._session.output_dict_per_obj[self._person]

    @property
    def is_begun(self) -> bool:
        """Whether there was any prompt."""
        return bool(self._outputs["cond_frame_outputs"])

    def begun(
        self, pictures: Mapping[int, torch.Tensor], told: int, prompt: Prompt
    ) -> Iterator[torch.Tensor]:
        """Logits of the first block's masks, in order, from the prompt for one of its frames."""
        masks = {told: self.told(told, pictures[told], prompt)}
        for frame in range(told - 1, min(pictures) - 1, -1):
            masks[frame] = self._run(frame, pictures[frame], backwards=True)
        for frame, picture in pictures.items():
            yield masks.pop(frame) if frame in masks else self.followed(frame, picture)

    def told(self, frame: int, picture: torch.Tensor, prompt: Prompt) -> torch.Tensor:
        """Logits (1, 1, s, s) of the mask that a prompt means, on top of what is remembered."""
        clicks = len(prompt.points) > 0
        self._processor.add_inputs_to_inference_session(
            self._session,
            frame_idx=frame,
            obj_ids=THE_PERSON,
            input_points=[[prompt.points.tolist()]] if clicks else None,
            input_labels=[[prompt.labels.tolist()]] if clicks else None,
            input_boxes=[[prompt.box.tolist()]],
            original_size=self._size,
        )
        if self.is_begun:  # the network ignores its memory in frames that it takes for beginnings
            self._session.frames_tracked_per_obj[self._person][frame] = {"reverse": False}
        logits = self._run(frame, picture)
        outputs = self._outputs
        if frame in outputs["non_cond_frame_outputs"]:  # it was told here: to be remembered as the first is
            outputs["cond_frame_outputs"][frame] = outputs["non_cond_frame_outputs"].pop(frame)
        return logits

    def followed(self, frame: int, picture: torch.Tensor) -> torch.Tensor:
        """Logits (1, 1, s, s) of the mask in the frame after the last one."""
        logits = self._run(frame, picture)
        self._forget(before=frame + 1)
        return logits

    def _run(self, frame: int, picture: torch.Tensor, *, backwards: bool = False) -> torch.Tensor:
        inputs = self._processor(images=picture, do_resize=False, return_tensors="pt", device=self._device)
        with torch.inference_mode(), self._precision():
            output = self._network(
                self._session, frame_idx=frame, frame=inputs["pixel_values"], reverse=backwards
            )
        self._session.processed_frames = None
        for kind in self._outputs.values():
            # Only the memory encoder wanted them, and has had them: 4 MB a frame.
            kind.get(frame, {}).pop("high_res_masks", None)
            kind.get(frame, {}).pop("pred_masks", None)
        return output.pred_masks.float()

    def _precision(self) -> AbstractContextManager[object]:
        """bfloat16 where autocast finds it exact enough, as SAM2 was published; float32 on a CPU."""
        if self._device.type == "cuda":
            return torch.autocast("cuda", dtype=torch.bfloat16)
        return nullcontext()

    def _forget(self, *, before: int) -> None:
        """Drop what no frame from `before` on looks back at, but for the last frames told about."""
        config = self._network.config
        horizon = before - max(config.max_object_pointers_in_encoder, config.num_maskmem)
        told = self._outputs["cond_frame_outputs"]
        recent = self._outputs["non_cond_frame_outputs"]
        tracked = self._session.frames_tracked_per_obj[self._person]
        inputs = self._session.point_inputs_per_obj[self._person]
        for frames in (recent, tracked, inputs):
            for frame in [frame for frame in frames if frame < horizon]:
                del frames[frame]
        for frame in sorted(told)[:-KEPT_TOLD]:
            del told[frame]


def _empty(frame: np.ndarray) -> np.ndarray:
    return np.zeros(frame.shape[:2], np.uint8)
