"""Host memory over length: 5 and 10 minutes of 1080p through probe, pass 1, pass 2 and the encoder.

    python -m benchmarks.memory --minutes 5 10 --out benchmarks/results/memory.json

The generator alone is replaced, by one that hands the drawn skeletons on as frames; everything else is the
product: the same Production, the same threads, the same writer with sound. Each length runs in a process of
its own, whose largest resident memory counts; the two are compared per minute of video. The embedded networks
look at three frames a second here, and what they say is repeated in between: their cost, not their
memory, grows with every frame. All that is kept of a frame is kept of every frame.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import repeat
from pathlib import Path

import av
import cv2
import numpy as np

SOURCE = Path(__file__).parents[1] / "examples" / "driving.mp4"
LIMIT_MB_A_MINUTE = 10.0  # SPEC §3
RATE = 30
STRIDE = RATE // 3  # "detector at 3 frames/s"


def make_long_video(target: Path, *, minutes: float) -> None:
    """A 1080p video of `minutes` with sound: the sample, enlarged, forwards and backwards without end."""
    frames = _enlarged()
    tone = np.sin(2 * np.pi * 220 * np.arange(48000) / 48000).astype(np.float32)[None] * 0.1
    with av.open(str(target), "w") as container:
        video = container.add_stream("libx264", rate=RATE, options={"preset": "ultrafast", "crf": "28"})
        video.width, video.height, video.pix_fmt = 1920, 1080, "yuv420p"
        audio = container.add_stream("aac", rate=48000, layout="mono")
        for second in range(round(minutes * 60)):
            for number in range(second * RATE, (second + 1) * RATE):
                place = number % (2 * len(frames) - 2)
                picture = frames[place if place < len(frames) else 2 * len(frames) - 2 - place]
                container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="yuv420p")))
            sound = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
            sound.sample_rate, sound.pts = 48000, second * 48000
            container.mux(audio.encode(sound))
        container.mux(video.encode(None))
        container.mux(audio.encode(None))


def _enlarged() -> list[np.ndarray]:
    frames = []
    with av.open(str(SOURCE)) as container:
        for frame in container.decode(video=0):
            picture = cv2.resize(frame.to_ndarray(format="rgb24"), (1080, 1080))
            canvas = np.full((1080, 1920, 3), 40, np.uint8)
            canvas[:, 420:1500] = picture
            frames.append(cv2.cvtColor(canvas, cv2.COLOR_RGB2YUV_I420))
    return frames


def measure(driving: Path) -> dict[str, float | int | dict[str, float]]:
    """Run one length in this process; largest resident memory in MB, seconds, frames."""
    from wan_animate.preprocess.backends import (  # noqa: PLC0415 - only the measured process loads it
        Backend,
        Estimate,
        Sought,
        build_backend,
    )
    from wan_animate.preprocess.preprocessor import Preprocessor  # noqa: PLC0415
    from wan_animate.preprocess.silhouette import MaskShaping  # noqa: PLC0415
    from wan_animate.preprocess.track_cache import TrackCache  # noqa: PLC0415
    from wan_animate.production import Production, Request  # noqa: PLC0415
    from wan_animate.wan.clips import plan_clips  # noqa: PLC0415
    from wan_animate.wan.conditions import ClipSource  # noqa: PLC0415
    from wan_animate.wan.runtime.job import Job, peak_memory_mb  # noqa: PLC0415
    from wan_animate.wan.sampling import Sampling  # noqa: PLC0415

    class ThreeASecond:
        """A backend whose pose networks see every tenth frame."""

        def __init__(self, backend: Backend) -> None:
            self._backend = backend
            self.words, self.find_people = backend.words, backend.find_people
            self.release = backend.release

        def estimate_poses(self, sought: Iterable[Sought]) -> Iterator[Estimate]:
            seen = (one for index, one in enumerate(sought) if index % STRIDE == 0)
            with closing(self._backend.estimate_poses(seen)) as estimates:
                for estimate in estimates:
                    yield from repeat(estimate, STRIDE)

    class PassThrough:
        """Stands where the generator does: the drawn skeletons are the frames."""

        @property
        def animator(self) -> "PassThrough":
            return self

        def nothing(self, *_: object, **__: object) -> None:
            pass

        announce = fetch_presets = make_ready = nothing

        def frames(self, source: ClipSource, sampling: Sampling, job: Job) -> Iterator[np.ndarray]:
            for clip in plan_clips(source.num_frames, clip_len=sampling.clip_len, overlap=sampling.overlap):
                with job.stage("clip.condition") as stage:
                    pose = source.conditions(clip.frames).pose
                    stage.advance()
                yield pose[clip.fresh]

    reference = driving.with_suffix(".png")
    cv2.imwrite(str(reference), np.zeros((720, 1280, 3), np.uint8))
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    production = Production(
        request=Request(
            driving=driving,
            reference=reference,
            width=1280,
            height=720,
            replaces=False,
            fps=RATE,
            start_s=0,
            duration_s=None,
            subject="largest",
            shaping=MaskShaping(),
            sampling=Sampling(seed=0),
            settings={},
        ),
        preprocessor=Preprocessor(ThreeASecond(build_backend("embedded", cache_dir=cache)), stride=STRIDE),  # type: ignore[arg-type]
        track_cache=TrackCache(driving.parent / "tracks"),
        engine=PassThrough(),  # type: ignore[arg-type] - the one piece that is replaced
    )
    started = time.monotonic()
    job = Job()
    made = production.make_video(job)
    return {
        "peak_mb": round(peak_memory_mb(), 1),
        "seconds": round(time.monotonic() - started, 1),
        "frames": made.measured.num_frames,
        "output_seconds": float(made.measured.duration),
        "timings": {name: round(value, 1) for name, value in job.timings.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, nargs="+", default=[5, 10])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        sys.stdout.write(json.dumps(measure(options.measure)))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for minutes in options.minutes:
            driving = Path(folder) / f"{minutes:g}-minutes.mp4"
            make_long_video(driving, minutes=minutes)
            command = [sys.executable, "-m", "benchmarks.memory", "--measure", str(driving)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            rows.append({"minutes": minutes, **json.loads(done.stdout)})
            driving.unlink()
            print(f"{minutes:g} min: {rows[-1]['peak_mb']:.0f} MB, {rows[-1]['seconds']:.0f} s", flush=True)
    first, last = rows[0], rows[-1]
    slope = (last["peak_mb"] - first["peak_mb"]) / max(last["minutes"] - first["minutes"], 1e-9)
    print(f"{slope:.1f} MB a minute (limit {LIMIT_MB_A_MINUTE:g})")
    if options.out:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        ).stdout
        report = {
            "case": "memory over length",
            "machine": f"{os.cpu_count()} cores, {platform.machine()}",
            "python": platform.python_version(),
            "commit": commit.strip(),
            "settings": {"size": "1920x1080 in, 1280x720 out", "stride": STRIDE},
            "rows": rows,
            "mb_a_minute": round(slope, 2),
            "limit_mb_a_minute": LIMIT_MB_A_MINUTE,
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
