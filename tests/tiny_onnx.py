"""Tiny networks in the real files' formats, that do something whose result is known.

The detector finds red, green and blue things: for each colour its box and a fixed score. The pose network
finds the brightest red spot; its 133 points lie a few pixels beside it, see `point_offsets`. Fixed networks
give always the same, and cost nothing.
"""

from pathlib import Path

import numpy as np
import onnx

SIDE = 640  # the detector's input, pixels
SCORES = (0.9, 0.8, 0.7)  # of a red, a green and a blue thing
POSE_HEIGHT, POSE_WIDTH = 256, 192  # the pose network's input
STRIDE = 4  # of its pixels to a heatmap's cell
KERNEL = 36  # of its pixels, around a heatmap's cell
NUM_POINTS = 133

FIND_COLOURS = """
    total = ReduceSum <keepdims = 1> (images, channels)
    twice = Add (images, images)
    pure = Sub (twice, total)
    is_pure = Greater (pure, least)
    mask = Cast <to = 1> (is_pure)
    columns = ReduceMax <axes = [2], keepdims = 0> (mask)
    rows = ReduceMax <axes = [3], keepdims = 0> (mask)
    left_i = ArgMax <axis = 2> (columns)
    top_i = ArgMax <axis = 2> (rows)
    right_i = ArgMax <axis = 2, select_last_index = 1> (columns)
    bottom_i = ArgMax <axis = 2, select_last_index = 1> (rows)
    left = Cast <to = 1> (left_i)
    top = Cast <to = 1> (top_i)
    right_at = Cast <to = 1> (right_i)
    bottom_at = Cast <to = 1> (bottom_i)
    right = Add (right_at, one)
    bottom = Add (bottom_at, one)
    there = ReduceMax <axes = [2], keepdims = 1> (columns)
    score = Mul (there, scores)
"""
CORNERS = """
    class = Sub (score, score)
    three = Concat <axis = 2> (left, top, right, bottom, score, class)
    output0 = Pad (three, to_300_rows)
"""
RAW = """
    width = Sub (right, left)
    height = Sub (bottom, top)
    across = Add (left, right)
    down = Add (top, bottom)
    x = Mul (across, half)
    y = Mul (down, half)
    rows_of_three = Concat <axis = 2> (x, y, width, height, score)
    three = Transpose <perm = [0, 2, 1]> (rows_of_three)
    weaker = Mul (three, weaken)
    doubles = Add (weaker, nudge)
    six = Concat <axis = 2> (three, doubles)
    all_classes = Pad (six, to_84_rows)
    output0 = Pad (all_classes, to_8400_columns)
"""
ALWAYS = """
    pixel = Slice (input, origin, corner)
    value = ReduceMax <keepdims = 0> (pixel)
    nothing = Mul (value, zero)
    output = Add (result, nothing)
"""
FIND_SPOT = f"""
    scaled = Mul (input, deviation)
    pixels = Add (scaled, mean)
    output = Conv <strides = [{STRIDE}, {STRIDE}], pads = [16, 16, 16, 16]> (pixels, weights)
"""


def write_detector(
    path: Path, *, raw: bool = False, batch: int | None = 1, metadata: dict[str, str] | None = None
) -> Path:
    """A YOLO-shaped file: (N, 300, 6) corners, score, class; or `raw`, (N, 84, 8400) with doubles left in.

    `batch` None leaves the number of pictures open. `metadata` is what ultralytics' export writes into the
    file.
    """
    n = batch or "N"
    output = f"float[{n},84,8400]" if raw else f"float[{n},300,6]"
    constants = {
        "channels": np.array([1], np.int64),
        "least": np.float32(0.3),
        "one": np.float32(1),
        "scores": np.array(SCORES, np.float32).reshape(1, 3, 1),
        "to_300_rows": np.array([0, 0, 0, 0, 297, 0], np.int64),
        "half": np.float32(0.5),
        "weaken": np.array([1, 1, 1, 1, 0.9], np.float32).reshape(1, 5, 1),
        "nudge": np.array([3, 2, 0, 0, 0], np.float32).reshape(1, 5, 1),
        "to_84_rows": np.array([0, 0, 0, 0, 79, 0], np.int64),
        "to_8400_columns": np.array([0, 0, 0, 0, 0, 8394], np.int64),
    }
    nodes = FIND_COLOURS + (RAW if raw else CORNERS)
    model = build(f"float[{n},3,{SIDE},{SIDE}] images", f"{output} output0", nodes)
    add_constants(model, constants)
    onnx.helper.set_model_props(model, metadata or {})
    onnx.save(model, path)
    return path


def write_fixed(path: Path, *, input_shape: tuple[int | str, ...], result: np.ndarray) -> Path:
    """A network that gives `result` whatever it is shown."""
    shapes = [",".join(map(str, shape)) for shape in (input_shape, result.shape)]
    model = build(f"float[{shapes[0]}] input", f"float[{shapes[1]}] output", ALWAYS)
    origin, corner = np.zeros(4, np.int64), np.ones(4, np.int64)
    add_constants(model, {"origin": origin, "corner": corner, "zero": np.float32(0), "result": result})
    onnx.save(model, path)
    return path


def fixed_people(*rows: tuple[float, ...]) -> np.ndarray:
    """The detector's output, (1, 300, 6), for rows of corners in its square, score, class."""
    found = np.zeros((1, 300, 6), np.float32)
    found[0, : len(rows)] = rows
    return found


def write_pose_network(folder: Path, *, batch: int | None = None) -> Path:
    """A ViTPose-shaped file, end2end.onnx its weights in a file beside it, in `folder`, which it returns."""
    folder.mkdir(parents=True, exist_ok=True)
    n = batch or "N"
    model = build(
        f"float[{n},3,{POSE_HEIGHT},{POSE_WIDTH}] input",
        f"float[{n},{NUM_POINTS},{POSE_HEIGHT // STRIDE},{POSE_WIDTH // STRIDE}] output",
        FIND_SPOT,
    )
    constants = {
        "mean": np.array([0.485, 0.456, 0.406], np.float32).reshape(1, 3, 1, 1),
        "deviation": np.array([0.229, 0.224, 0.225], np.float32).reshape(1, 3, 1, 1),
        "weights": spot_weights(),
    }
    add_constants(model, constants)
    onnx.save(
        model,
        folder / "end2end.onnx",
        save_as_external_data=True,
        location="end2end.data",
        size_threshold=1024,
    )
    return folder


def point_offsets() -> np.ndarray:
    """Where the points lie beside the spot: (133, 2) pixels of the pose network's input, x and y."""
    index = np.arange(NUM_POINTS)
    return np.stack([index % 7 - 3, index // 7 % 7 - 3], axis=1) * 2.0


def spot_weights() -> np.ndarray:
    """(133, 3, KERNEL, KERNEL): Gaussians on the red channel, moved against the points' offsets."""
    # The decoder's convention: a crop's first pixel is its heatmap's first cell.
    place = np.arange(KERNEL) - (KERNEL - STRIDE) // 2
    weights = np.zeros((NUM_POINTS, 3, KERNEL, KERNEL), np.float32)
    for point, (dx, dy) in enumerate(point_offsets()):
        across, down = (np.exp(-((place + offset) ** 2) / 50) for offset in (dx, dy))
        weights[point, 0] = np.outer(down, across) / (down.sum() * across.sum())
    return weights


def build(inputs: str, outputs: str, nodes: str) -> onnx.ModelProto:
    """A model from onnx's own notation; constants come with `add_constants`."""
    return onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 13]>\ntiny ({inputs}) => ({outputs})\n{{{nodes}}}'
    )


def add_constants(model: onnx.ModelProto, constants: dict[str, np.ndarray | np.generic]) -> None:
    """Give the model those of the constants that it uses."""
    used = {name for node in model.graph.node for name in node.input}
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(value), name)
        for name, value in constants.items()
        if name in used
    )
