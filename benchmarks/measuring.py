"""What every case needs: a clock, the device's ceilings, rows, and the facts behind a number."""

import gc
import platform
import statistics
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

PACKAGES = ("torch", "triton", "diffusers", "transformers", "flash-attn-4", "nvidia-cudnn-cu13")
SIZES = {"1280x720": (720, 1280), "832x480": (480, 832)}  # height, width
FRAMES = 77
GIB = 2**30


@dataclass(slots=True, kw_only=True)
class Row:
    """One measured thing."""

    case: str
    what: str
    size: str
    seconds: float | None = None  # median
    spread: float | None = None  # (largest − smallest) / median
    runs: int = 0
    peak_gib: float | None = None  # largest memory of the GPU while it ran
    difference: float | None = None  # to float32; the unit is in `note`
    floor_s: float | None = None  # what operations and bytes take at the rates measured in this run
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What something asks of a machine at the very least."""

    flop: float
    moved: float  # bytes of the device's memory: weights, inputs and outputs, each once
    copied: float = 0.0  # bytes of weights that come from the host


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What one whole request took."""

    seconds: float
    peak_gib: float | None  # None on a CPU


@dataclass(slots=True, kw_only=True)
class Bench:
    """One run of the suite on one device."""

    device: torch.device
    tiny: bool = False  # a size that proves the code, not the speed
    rows: list[Row] = field(default_factory=list)
    ceilings: dict[str, float] = field(default_factory=dict)
    cases: tuple[str, ...] = ()  # of this run
    steps: tuple[int, ...] = (20, 4)  # of a whole clip
    peer_steps: tuple[int, ...] = (4,)  # of diffusers' whole clip; none: without its pipeline
    on_row: Callable[[], None] = lambda: None
    engine: Any = None  # the engine that clip and memory share: building it takes a minute
    pipeline_done: bool = False  # whether diffusers' pipeline has had its turn, for both cases
    failed: int = 0

    @property
    def is_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def sizes(self) -> dict[str, tuple[int, int]]:
        return {"64x32": (32, 64)} if self.tiny else SIZES

    @property
    def frames(self) -> int:
        return 5 if self.tiny else FRAMES

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.is_gpu else torch.float32

    def add(self, row: Row) -> Row:
        self.rows.append(row)
        self.on_row()
        cells = [f"{row.case:<10} {row.size:<10} {row.what:<52}"]
        if row.seconds is not None:
            cells.append(f"{row.seconds:9.4f} s ±{(row.spread or 0) / 2:.1%}")
        if row.floor_s:
            cells.append(f"floor {row.floor_s:.3f} s")
        if row.peak_gib:
            cells.append(f"peak {row.peak_gib:.2f} GiB")
        if row.difference is not None:
            cells.append(f"differs {row.difference:.3g}")
        print("  ".join(cells), row.note, flush=True)
        return row

    def time(
        self,
        case: str,
        what: str,
        size: str,
        call: Callable[[], object],
        *,
        runs: int = 3,
        warm: int = 1,
        **facts: Any,  # noqa: ANN401  the row's other fields
    ) -> Row:
        """Time a call: median over `runs` after `warm` unmeasured ones, and its peak memory."""
        if self.tiny:
            runs, warm = 1, 0
        for _ in range(warm):
            call()
        self.synchronize()
        if self.is_gpu:
            torch.cuda.reset_peak_memory_stats()
        seconds = []
        for _ in range(runs):
            started = time.perf_counter()
            call()
            self.synchronize()
            seconds.append(time.perf_counter() - started)
        middle = statistics.median(seconds)
        row = Row(
            case=case, what=what, size=size, seconds=middle, spread=(max(seconds) - min(seconds)) / middle,
            runs=runs, peak_gib=torch.cuda.max_memory_allocated() / GIB if self.is_gpu else None, **facts,
        )  # fmt: skip
        return self.add(row)

    def synchronize(self) -> None:
        if self.is_gpu:
            torch.cuda.synchronize()

    def attempt(self, part: Callable[[], None]) -> None:
        """Measure a part. If it fails the others keep their numbers, and the failure is counted."""
        try:
            part()
        except Exception:
            if self.tiny:  # there the failure is the product
                raise
            traceback.print_exc()
            self.failed += 1
        self.release()

    def release(self) -> None:
        """Give memory back between two networks."""
        gc.collect()  # networks and their hooks refer to each other
        if self.is_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def measure_ceilings(self) -> None:
        """What this very device does at best: a large product, a large copy, a copy from the host."""
        side = 256 if self.tiny else 8192
        a, b = (torch.randn(side, side, device=self.device, dtype=self.dtype) for _ in range(2))
        self.ceilings["matrix_flop_s"] = 2 * side**3 / self._best(lambda: a @ b)
        size = 2**20 if self.tiny else 2**31
        source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        self.ceilings["memory_bytes_s"] = 2 * size / self._best(lambda: target.copy_(source))
        if self.is_gpu:
            host = torch.empty(size // 2, dtype=torch.uint8, pin_memory=True)
            part = target[: size // 2]
            seconds = self._best(lambda: part.copy_(host, non_blocking=True))
            self.ceilings["host_to_device_bytes_s"] = size / 2 / seconds
        print({name: f"{value / 1e12:.3f} T/s" for name, value in self.ceilings.items()}, flush=True)

    def _best(self, call: Callable[[], object]) -> float:
        best = float("inf")
        for _ in range(2 if self.tiny else 12):
            self.synchronize()
            started = time.perf_counter()
            call()
            self.synchronize()
            best = min(best, time.perf_counter() - started)
        return best

    def floor(self, work: Work) -> float:
        """Seconds below which this device cannot do it, whatever overlaps."""
        link = self.ceilings.get("host_to_device_bytes_s")
        return max(
            work.flop / self.ceilings["matrix_flop_s"],
            work.moved / self.ceilings["memory_bytes_s"],
            work.copied / link if link else 0.0,
        )

    def request(self, make: Callable[[], object]) -> Measured:
        """One whole request, once: its seconds and its peak."""
        self.release()
        self.synchronize()
        started = time.perf_counter()
        make()
        self.synchronize()
        seconds = time.perf_counter() - started
        return Measured(
            seconds=seconds, peak_gib=torch.cuda.max_memory_allocated() / GIB if self.is_gpu else None
        )


def relative(value: torch.Tensor, exact: torch.Tensor) -> float:
    """‖value − exact‖ / ‖exact‖."""
    return float((value.double() - exact.double()).norm() / exact.double().norm())


def facts(bench: Bench, *, commit: str | None, settings: dict[str, Any]) -> dict[str, Any]:
    """The whole run as JSON."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "gpu": torch.cuda.get_device_name() if bench.is_gpu else None,
        "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": {name: installed(name) for name in PACKAGES} | {"cuda": str(torch.version.cuda)},
        "commit": commit or _commit(),
        "settings": settings,
        "ceilings": bench.ceilings,
        "rows": [asdict(row) for row in bench.rows],
    }


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


@contextmanager
def clocks(bench: Bench) -> Iterator[dict[str, float]]:
    """The card's clock and power while the `with` runs: medians, filled in at its end. Only reads."""
    found: dict[str, float] = {}
    if not bench.is_gpu:
        yield found
        return
    command = [
        "nvidia-smi",
        "--query-gpu=clocks.sm,power.draw",
        "--format=csv,noheader,nounits",
        "-lms",
        "500",
    ]
    try:
        watcher = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    except OSError:
        yield found
        return
    try:
        yield found
    finally:
        watcher.terminate()
        text, _ = watcher.communicate()
        samples = [line.split(",") for line in text.splitlines() if line.count(",") == 1]
        numbers = [(float(a), float(b)) for a, b in samples if a.strip().isdigit()]
        if numbers:
            found["sm_mhz"] = statistics.median(a for a, _ in numbers)
            found["watts"] = statistics.median(b for _, b in numbers)
