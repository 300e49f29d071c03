"""The app itself on a GPU, from setup to MP4, with model files of random content at their real size.

    python -m benchmarks.app --cache FOLDER [--out FILE] [--sheet FILE] [--video FILE]

Writes 50 GB of model files, in the published formats, into a cache of the hub's layout below FOLDER (kept for
the next run), then lets the app load them without a network and make a 77-frame video of 1280×720: twice with
turbo, and with 20 steps. Preprocessing is the embedded one: random weights of the full one would find no
person. Seconds a stage and the GPU's peak go into the JSON file, with what decoding each MP4 found in it; a
contact sheet of the last one lies beside it, for a video of random content is too large to be carried about.
"""

import argparse
import asyncio
import json
import os
import shutil
import sys
import time
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.measuring import GIB, installed

RESULTS = Path(__file__).parent / "results"
SHEET_COLUMNS, SHEET_ROWS, SHEET_WIDTH = 4, 3, 320  # pixels a frame
EXAMPLES = Path(__file__).parents[1] / "examples"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cache", type=Path, required=True, help="folder for 50 GB of model files")
    parser.add_argument("--out", type=Path, help="the JSON file; default: results/<date>-app.json")
    parser.add_argument("--video", type=Path, help="where to keep the last video")
    parser.add_argument(
        "--sheet", type=Path, help="12 of its frames, a PNG; default: named as --video or --out"
    )
    parser.add_argument("--requests", nargs="+", default=["turbo", "turbo", "20"], help="turbo, or steps")
    parser.add_argument("--commit", help="where the code came from, if this is no checkout")
    options = parser.parse_args()
    os.environ |= {"HF_HOME": str(options.cache), "HF_HUB_OFFLINE": "1"}  # before the library is imported
    written = write_files(options.cache / "hub")
    out = options.out or RESULTS / f"{date.today()}-app.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    options.sheet = options.sheet or (options.video or out).with_suffix(".png")
    report = asyncio.run(drive(options)) | {"write_model_files_s": written}
    out.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    sys.stdout.write(json.dumps(report, indent=1) + "\n")


def write_files(cache: Path) -> float:
    """Seconds it took; 0 where they are there."""
    from wan_animate.wan.runtime.weights import REGISTRY  # noqa: PLC0415 - reads the environment

    from benchmarks.random_checkpoint import (  # noqa: PLC0415 - likewise
        REAL_CONFIG,
        REAL_SIZE,
        RandomTensors,
        hub_folder,
        published_shapes,
        write_checkpoint,
        write_encoders,
        write_lora,
    )

    done = cache / "complete"
    if done.exists():
        return 0.0
    started = time.monotonic()
    torch.manual_seed(0)
    shapes = published_shapes(**REAL_SIZE)
    animate = hub_folder(cache, REGISTRY["transformer"])
    write_checkpoint(animate, RandomTensors(shapes, dtype=torch.bfloat16, device="cuda"), REAL_CONFIG)
    write_lora(animate / REGISTRY["relighting"].patterns[0], shapes, rank=128, device="cuda")
    turbo = REGISTRY["turbo"]
    write_lora(hub_folder(cache, turbo) / turbo.patterns[0], shapes, rank=64, device="cuda")
    write_encoders(hub_folder(cache, REGISTRY["encoders"]), device="cuda", dtype=torch.bfloat16)
    torch.cuda.empty_cache()
    done.touch()
    return time.monotonic() - started


async def drive(options: argparse.Namespace) -> dict[str, Any]:
    """Setup, then request after request; what each took."""
    from wan_animate import App, AppInput, AppSetup  # noqa: PLC0415
    from wan_animate.wan.media.still import load_image  # noqa: PLC0415

    reference = wide_reference(options.cache / "reference.png", load_image(EXAMPLES / "reference.jpg"))
    app = App()
    started = time.monotonic()
    await app.setup(AppSetup(preprocessing="embedded"))
    setup_s = time.monotonic() - started
    fields = {
        "driving_video": str(EXAMPLES / "driving.mp4"),
        "reference_image": str(reference),
        "duration_s": 77 / 30 + 0.001,
        "seed": 1,
    }
    rows = {}
    for number, request in enumerate(options.requests, start=1):
        changes = {"turbo": True} if request == "turbo" else {"sampling_steps": int(request)}
        torch.cuda.reset_peak_memory_stats()
        started = time.monotonic()
        asked = AppInput.model_validate(fields | changes)
        output = [one async for one in app.run(asked)][-1]
        rows[f"{number}: {request}"] = {
            "seconds": round(time.monotonic() - started, 2),
            "peak_gib": round(torch.cuda.max_memory_allocated() / GIB, 2),
            "frames": output.num_frames,
            "size": f"{output.width}x{output.height}",
            "timings": output.timings,
            "warnings": output.warnings,
            "file": look_at(made := Path(str(output.output_video.path)), sheet=options.sheet),
            "settings": asked.model_dump(mode="json", exclude={"driving_video", "reference_image"}),
        }
        if options.video:
            shutil.copy(made, options.video)
    applied = app._studio.engine._applied if app._studio else None
    assert applied is not None
    await app.unload()
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "gpu": torch.cuda.get_device_name(),
        "versions": {
            name: installed(name) for name in ("torch", "diffusers", "transformers", "flash-attn-4")
        },
        "commit": options.commit,
        "settings": {
            "preprocessing": "embedded",
            "attention": applied.attention,
            "transformer": applied.plan.transformer,
            "encoders": applied.plan.encoders,
            "compiled": applied.plan.compiled,
        },
        "setup_s": round(setup_s, 1),
        "requests": rows,
        "rows": [],
    }


def look_at(video: Path, *, sheet: Path) -> dict[str, Any]:
    """What is in an MP4, found by decoding it; evenly spread frames of it go into a PNG."""
    from wan_animate.wan.media.decode import open_video  # noqa: PLC0415

    source = open_video(video)
    count = SHEET_COLUMNS * SHEET_ROWS
    wanted = [index * (source.num_frames - 1) // (count - 1) for index in range(count)]
    kept, decoded = {}, 0
    for index, frame in enumerate(source.frames()):
        if index in wanted:
            kept[index] = frame
        decoded += 1
    write_sheet([kept[index] for index in wanted], sheet)
    return {
        "bytes": video.stat().st_size,
        "frames_decoded": decoded,
        "seconds": round(float(source.info.duration), 3),
        "fps": round(float(source.fps), 3),
        "size": f"{source.info.width}x{source.info.height}",
        "codec": source.info.codec,
        "has_sound": source.info.has_audio,
        "sheet": sheet.name,
    }


def write_sheet(frames: list[Any], path: Path) -> None:
    """Frames in a grid: 2 MB of noise, for it cannot be packed."""
    from PIL import Image  # noqa: PLC0415

    pictures = [Image.fromarray(frame) for frame in frames]
    height = SHEET_WIDTH * pictures[0].height // pictures[0].width
    grid = Image.new("RGB", (SHEET_COLUMNS * SHEET_WIDTH, SHEET_ROWS * height))
    for index, picture in enumerate(pictures):
        row, column = divmod(index, SHEET_COLUMNS)
        small = picture.resize((SHEET_WIDTH, height), Image.Resampling.BOX)
        grid.paste(small, (column * SHEET_WIDTH, row * height))
    path.parent.mkdir(parents=True, exist_ok=True)
    grid.save(path, optimize=True)


def wide_reference(path: Path, picture: Any) -> Path:  # noqa: ANN401 - an array
    """The sample's picture cut to 16:9, so that the video is 1280×720."""
    from PIL import Image  # noqa: PLC0415

    height = picture.shape[1] * 9 // 16
    Image.fromarray(picture[:height]).save(path)
    return path


if __name__ == "__main__":
    main()
