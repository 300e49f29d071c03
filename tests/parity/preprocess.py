"""Recordings of the official preprocessing beside ours: sizes, points, drawings, boxes, masks, whole runs."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image
from wan_animate.preprocess import stance_prompts
from wan_animate.preprocess.face import crop_face, face_box
from wan_animate.preprocess.full.heatmap import decode_heatmaps
from wan_animate.preprocess.full.vitpose import HEIGHT, WIDTH, crop_box, crop_person, whole_pixels
from wan_animate.preprocess.geometry import pad_to_fit
from wan_animate.preprocess.silhouette import (
    MaskShaping,
    coarsen_mask,
    cut_background,
    grow_mask,
    shape_mask,
)
from wan_animate.preprocess.skeleton import PoseParts, draw_parts, in_pixels, parts_from_133
from wan_animate.wan.media.decode import FramePlan, exact_rate, plan_frames
from wan_animate.wan.media.probe import VideoInfo

from .findings import Check, Compare, Finding, arrays, exact, holds, within
from .retargeting import pose_of_body, retarget

KEYPOINT = 1e-3  # pixels; other versions of numpy and OpenCV already move decoded points by 6e-5
ROUNDING = 1e-6  # of the pose network's input, whose values are about 1; float32
SCALE_UNIT = 200  # pixels; what the official code measures crops in
INTERPOLATIONS = {"linear": cv2.INTER_LINEAR, "area": cv2.INTER_AREA}
PARTS = ("body", "left_hand", "right_hand", "face")
FLOAT_LOSS = (
    "REFERENCE A16: the float round trip loses a frame of {frames} at {rate:g} frames/s; exact fractions here"
)


def draw(path: Path) -> Iterator[Finding]:
    """Normalised points → pixels and the drawing, bit for bit."""
    case = arrays(path)
    size = {"height": int(case["height"]), "width": int(case["width"])}
    parts = PoseParts(
        body=case["keypoints_body"],
        left_hand=case["keypoints_left_hand"],
        right_hand=case["keypoints_right_hand"],
        face=np.zeros((69, 3), np.float32),  # not drawn
    )
    canvas = draw_parts(parts, **size)
    checks = [exact("canvas", canvas, case["canvas"])]
    for name, points in (("body", parts.body), ("lhand", parts.left_hand), ("rhand", parts.right_hand)):
        if f"kps_{name}" in case:
            checks.append(exact(f"kps_{name}", in_pixels(points, **size)[:, :2], case[f"kps_{name}"]))
    picture = path.with_suffix(".png")
    if picture.exists():
        with Image.open(picture) as image:
            checks.append(exact("picture", canvas, np.asarray(image.convert("RGB"))))
    yield Finding(checks=tuple(checks))


def kp133_to_meta(path: Path) -> Iterator[Finding]:
    """133 points → 20 of the body, hands and face, through a video."""
    for number, case in enumerate(_cases(path)):
        size = {"height": case["height"], "width": case["width"]}
        previous, checks = None, []
        for frame, points in enumerate(case["kp133"]):
            previous = parts_from_133(np.array(points, np.float32), **size, previous=previous)
            if case["metas"] is not None:
                checks += [
                    exact(f"frame {frame} {part}", getattr(previous, part), points)
                    for part, points in _parts(case["metas"][frame]).items()
                ]
        if case["metas"] is None:
            assert previous is not None
            nothing = draw_parts(previous, **size)
            reason = f"REFERENCE A10: raises {case['raises']} there, as no body came before; no body here"
            promise = holds("no body", not nothing.any())
            yield Finding(part=f"[{number}]", different=reason, checks=(promise,))
        else:
            yield Finding(part=f"[{number}]", checks=tuple(checks))


def pose_decode(path: Path) -> Iterator[Finding]:
    """Heatmaps → points in the picture, and what becomes of them."""
    case = arrays(path)
    heatmaps = case["heatmap_int8"].astype(np.float32) / np.float32(case["heatmap_divisor"])
    points = decode_heatmaps(heatmaps, centres=case["center"][None], sizes=case["scale"][None] * SCALE_UNIT)
    checks = [
        within("keypoints", points[..., :2], case["keypoints"][..., :2], KEYPOINT),
        exact("scores", points[..., 2], case["keypoints"][..., 2]),
        exact("maxvals", points[..., 2:], case["maxvals"]),
    ]
    size = {"height": int(case["height"]), "width": int(case["width"])}
    parts = parts_from_133(points[0], **size)
    for part in PARTS:
        ours = in_pixels(getattr(parts, part), **size)
        theirs = in_pixels(case[f"keypoints_{part}"], **size)
        checks += [
            within(part, ours[:, :2], theirs[:, :2], KEYPOINT),
            exact(f"{part} scores", ours[:, 2], theirs[:, 2]),
        ]
    yield Finding(checks=tuple(checks))


def pose_crop_boxes(path: Path) -> Iterator[Finding]:
    """A person's box → the pose network's crop of the picture."""
    for number, case in enumerate(_cases(path)):
        centre, size = crop_box(_person(case["bbox"]), *case["hw"])
        upper_left, lower_right = whole_pixels(centre, size)
        side = np.array([WIDTH, HEIGHT])
        stretch, offset = side / size, side * (0.5 - centre / size)
        transform = np.array([[stretch[0], 0, offset[0]], [0, stretch[1], offset[1]], [0, 0, 1]])
        yield Finding(
            part=f"[{number}]",
            checks=(
                within("centre", centre, case["center"], ROUNDING),
                within("size", size, np.array(case["scale"]) * SCALE_UNIT, ROUNDING),
                exact("corners", [upper_left, lower_right], [case["ul"], case["br"]]),
                within("transform", transform, case["transform"], ROUNDING),
            ),
        )


def pose_crop(path: Path) -> Iterator[Finding]:
    """A picture and a box → the pose network's input."""
    case = arrays(path)
    picture = case["image"]
    centre, size = crop_box(_person(case["bbox"]), *picture.shape[:2])
    planes = crop_person(picture, centre=centre, size=size)
    mean = planes.mean(axis=(1, 2), dtype=np.float64)
    yield Finding(
        checks=(
            within("centre", centre, case["center"], ROUNDING),
            within("size", size, case["scale"] * SCALE_UNIT, ROUNDING),
            within("every other pixel", planes[:, ::2, ::2], case["net_input_stride2"], ROUNDING),
            within("mean of all pixels", mean, case["net_input_sum"] / planes[0].size, ROUNDING),
        )
    )


def masks(path: Path) -> Iterator[Finding]:
    """A silhouette grown, coarsened and cut out."""
    case = arrays(path)
    mask, picture = case["mask"], case["image"]
    growth = {"iterations": int(case["iterations"]), "kernel_size": int(case["k"])}
    grid = {"columns": int(case["w_len"]), "rows": int(case["h_len"])}
    grown = grow_mask(mask, **growth)
    checks = [
        exact("dilation", grown, case["dilation"]),
        exact("body_img", cut_background(picture, grown), case["body_img"]),
    ]
    if bool(case["ok"]):
        coarse = coarsen_mask(grown, **grid)
        checks += [
            exact("aug_mask", coarse, case["aug_mask"]),
            exact("bg_image", cut_background(picture, coarse), case["bg_image"]),
            exact("in one go", shape_mask(mask, MaskShaping(**growth, **grid)), case["aug_mask"]),
        ]
        yield Finding(checks=tuple(checks))
    else:
        yield Finding(checks=tuple(checks), different="REFERENCE A4: crashes on this mask there")


def aug_mask_edge(path: Path) -> Iterator[Finding]:
    """Degenerate masks: equal where the reference gives anything."""
    for number, case in enumerate(_cases(path)):
        mask = np.array(case["mask"], np.uint8)
        coarse = coarsen_mask(mask, columns=case["w_len"], rows=case["h_len"])
        part = f"[{number}] {case['tag']} {case['w_len']}×{case['h_len']}"
        if case["ok"]:
            yield Finding(part=part, checks=(exact("aug_mask", coarse, case["out"]),))
        else:
            reason = f"REFERENCE A4: raises {case['raises']} there; the mask as it is here"
            yield Finding(part=part, different=reason, checks=(exact("mask", coarse, mask),))


def padding(path: Path) -> Iterator[Finding]:
    """A whole picture inside another shape."""
    case = arrays(path)
    padded = pad_to_fit(
        case["input"],
        width=int(case["width"]),
        height=int(case["height"]),
        interpolation=INTERPOLATIONS[str(case["interpolation"])],
    )
    yield Finding(checks=(exact("output", padded, case["output"]),))


def editing_prompts(path: Path) -> Iterator[Finding]:
    """What an image model is asked for, by what a video shows and by the pictures' shapes."""
    for number, case in enumerate(_cases(path)):
        (width, height), (reference_width, reference_height) = case["tpl_wh"], case["refer_wh"]
        poses = np.stack([pose_of_body(body) for body in case["tpl_bodies"]]) * (width, height, 1)
        prompts = stance_prompts.editing_prompts(
            poses, driving_size=(height, width), reference_size=(reference_height, reference_width)
        )
        yield Finding(
            part=f"[{number}]",
            checks=(
                holds("tpl_prompt", prompts[0] == case["tpl_prompt"]),
                holds("refer_prompt", prompts[1] == case["refer_prompt"]),
            ),
        )


def face_bboxes(path: Path) -> Iterator[Finding]:
    """Face points → box, without smoothing."""
    for number, case in enumerate(_cases(path)):
        height, width = case["image_shape"]
        part = f"[{number}] {case['tag']}"
        points = np.array(case["kp2ds"])[1:] * (width, height)
        box = face_box(points, height=height, width=width)
        x0, x1, y0, y1 = case["out"] if case["ok"] else (0, 0, 0, 0)
        ordered = box[0] <= box[2] and box[1] <= box[3]
        inside = box.min() >= 0 and box[2] <= width and box[3] <= height
        promise = (holds("a box inside the picture", bool(ordered and inside)),)
        if not case["ok"]:
            reason = (
                f"REFERENCE A3: raises {case['raises']} on points without extent there; an empty box here"
            )
            yield Finding(part=part, different=reason, checks=promise)
        elif x0 > x1 or y0 > y1:
            reason = "REFERENCE A3: a face outside has crossed corners there, an empty box on the edge here"
            yield Finding(part=part, different=reason, checks=promise)
        else:
            float32 = np.array(case["kp2ds"], np.float32)[1:] * (width, height)
            single = face_box(float32, height=height, width=width)
            yield Finding(
                part=part,
                checks=(
                    exact("box", box.astype(int), [x0, y0, x1, y1]),
                    exact("box of float32 points", single.astype(int), [x0, y0, x1, y1]),
                ),
            )


def frame_indices(path: Path) -> Iterator[Finding]:
    """How many frames, and which: at least as near in time as the reference's, ties to the even index."""
    for number, case in enumerate(_cases(path)):
        frames, rate, asked = case["frame_num"], case["video_fps"], case["fps_arg"]
        plan = _plan(frames, rate, asked)
        part = f"[{number}] {frames} at {rate:g} to {asked:g}"
        if _loses_a_frame(frames, rate, asked, case["target_num"]):
            promise = exact("every frame", plan.indices, np.arange(frames))
            yield Finding(part=part, different=FLOAT_LOSS.format(frames=frames, rate=rate), checks=(promise,))
            continue
        # The rule gives at least one frame, the reference none of a video shorter than a frame of the output.
        checks = [exact("count", plan.num_frames, max(1, case["target_num"]))]
        pairs = list(zip(plan.indices.tolist(), case["indices"], strict=False))
        asked_for = [index * exact_rate(rate) / plan.fps for index in range(len(pairs))]  # exact, in frames
        nearer = [abs(t - theirs) - abs(t - ours) for t, (ours, theirs) in zip(asked_for, pairs, strict=True)]
        ties_even = all(ours % 2 == 0 for ours, theirs in pairs if ours != theirs)
        checks += [
            exact("none nearer, none farther", nearer, np.zeros(len(pairs))),
            holds("other frames in exact ties only, and even ones", ties_even),
        ]
        yield Finding(part=part, checks=tuple(checks))


def e2e(path: Path) -> Iterator[Finding]:
    """A whole official run: what is left of it where detector, tracker, sizes and smoothing are ours."""
    run, case = json.loads(path.read_text()), arrays(path.with_suffix(".npz"))
    frames, rate, asked = len(case["video_frames"]), float(case["video_fps"]), float(case["fps_arg"])
    plan = _plan(frames, rate, asked)
    count = int(case["src_face_count"])
    if _loses_a_frame(frames, rate, asked, count):
        yield Finding(part="src_face_count", different=FLOAT_LOSS.format(frames=frames, rate=rate))
    else:
        yield Finding(part="src_face_count", checks=(exact("count", plan.num_frames, count),))
    if "src_mask" in case:
        yield from _e2e_scene(run["kwargs"], case, plan)
    if "src_pose" in case and not run["kwargs"].get("retarget_flag"):
        yield Finding(part="src_pose of the recorded points", checks=tuple(_e2e_drawings(run, case)))
    if "src_face" in case and not run["kwargs"].get("replace_flag"):
        yield Finding(part="src_face of the recorded points", checks=(_e2e_crop(run, case, plan),))
    yield Finding(
        part="all else",
        different="detector, colours, smoothing, size rule and prompts are ours; faces are cut at full size",
    )


def _e2e_scene(kwargs: dict[str, Any], case: dict[str, np.ndarray], plan: FramePlan) -> Iterator[Finding]:
    """Mask and background of the silhouettes that the recorded run's tracker stood in for."""
    shaping = MaskShaping(
        iterations=kwargs["iterations"],
        kernel_size=kwargs.get("k", 7),
        columns=kwargs.get("w_len", 1),
        rows=kwargs.get("h_len", 1),
    )
    shaped, scenery = [], []
    height, width = case["src_mask"].shape[1:3]
    for index in range(len(case["src_mask"])):
        tracked = np.zeros((height, width), bool)
        tracked[height // 4 : 3 * height // 4, width // 3 + index % 5 : 2 * width // 3 + index % 3] = True
        mask = shape_mask(tracked, shaping)
        picture = case["video_frames"][plan.indices[index]]
        scaled = pad_to_fit(picture, width=width, height=height, interpolation=cv2.INTER_AREA)
        shaped.append(mask * 255)
        scenery.append(cut_background(scaled, mask))
    yield Finding(part="src_mask", checks=(exact("mask", np.stack(shaped), case["src_mask"][..., 0]),))
    if "src_bg" in case:
        pictures = np.stack(scenery)[: len(case["src_bg"])]  # the first, in a part of the published recording
        yield Finding(part="src_bg", checks=(exact("background", pictures, case["src_bg"]),))


def _e2e_drawings(run: dict[str, Any], case: dict[str, np.ndarray]) -> Iterator[Check]:
    for frame, (canvas, meta) in enumerate(zip(case["src_pose"], run["metas"][-1], strict=False)):
        drawn = draw_parts(PoseParts(**_parts(meta)), height=meta["height"], width=meta["width"])
        height, width = canvas.shape[:2]
        yield exact(f"frame {frame}", pad_to_fit(drawn, height=height, width=width), canvas)


def _e2e_crop(run: dict[str, Any], case: dict[str, np.ndarray], plan: FramePlan) -> Check:
    """The face of frame 1, the only one stored."""
    meta = run["metas"][-1][1]
    points = _parts(meta)["face"][1:, :2] * (meta["width"], meta["height"])
    box = face_box(points, height=meta["height"], width=meta["width"]).astype(int)
    return exact("crop", crop_face(case["video_frames"][plan.indices[1]], box), case["src_face"][0])


def _cases(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text())["cases"]


def _parts(meta: dict[str, Any]) -> dict[str, np.ndarray]:
    return {part: np.array(meta[f"keypoints_{part}"], np.float32) for part in PARTS}


def _person(box: Any) -> np.ndarray | None:
    """A recorded box x0, y0, x1, y1, score as ours: None where nobody was found, which its score says."""
    return None if box is None or not len(box) or box[4] <= 0 else np.asarray(box[:4])


def _plan(frames: int, rate: float, asked: float) -> FramePlan:
    """Our choice of frames of a video of constant rate, `asked` frames a second or −1."""
    exactly = exact_rate(rate)
    return plan_frames(
        VideoInfo(
            path=Path("recorded"),
            stream_index=0,
            codec="none",
            width=64,
            height=48,
            rotation=0,
            mirrored=False,
            times=np.arange(frames),
            time_base=1 / exactly,
            rate=exactly,
            duration=frames / exactly,
            constant_rate=True,
            key_frames=np.zeros((0, 2), np.int64),
        ),
        fps=asked,
    )


def _loses_a_frame(frames: int, rate: float, asked: float, recorded: int) -> bool:
    """Whether the reference keeps a rate, and by its float round trip one frame less."""
    return asked == -1 and recorded == int(frames / rate * rate) == frames - 1


COMPARE: dict[str, Compare] = {
    "preprocess/draw": draw,
    "preprocess/kp133_to_meta": kp133_to_meta,
    "preprocess/pose_decode": pose_decode,
    "preprocess/pose_crop/boxes": pose_crop_boxes,
    "preprocess/pose_crop": pose_crop,
    "preprocess/masks": masks,
    "preprocess/masks/aug_mask_edge": aug_mask_edge,
    "preprocess/resize/padding": padding,
    "preprocess/retarget": retarget,
    "preprocess/editing_prompts": editing_prompts,
    "preprocess/face_bboxes": face_bboxes,
    "preprocess/frame_indices": frame_indices,
    "preprocess/e2e": e2e,
}
