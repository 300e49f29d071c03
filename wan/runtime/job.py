"""One request's bookkeeping: stages, progress with time left, cancellation, timings, warnings.

Knows no model and no media. All calls come from the one thread that does the work; the two functions it is
given (`cancel_requested`, `on_progress`) are the only ways in and out of that thread.
"""

import logging
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from .errors import Cancelled

logger = logging.getLogger(__name__)

STAGES = (
    "probe",
    "people",
    "pose",
    "mask",
    "smooth",
    "flux",
    "retarget",
    "encode_text",
    "encode_image",
    "clip.condition",
    "clip.denoise",
    "clip.decode",
    "write",
    "preview",
)
"""The names used in logs, timings, benchmarks and the README, in the order they run."""

MIN_RATE_SAMPLE_S = 0.05  # a stage's own speed replaces the guess once it was watched this long


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a request stands."""

    stage: str
    done: int  # units of this stage finished so far: frames, steps, clips
    total: int | None  # None where the stage has no units
    progress: float  # of the whole request, 0…1, never falls
    eta_s: float | None  # seconds left for the whole request; None until anything was measured
    detail: str = ""  # "clip 2/5 step 12/20"

    def __str__(self) -> str:
        units = f" {self.done}/{self.total}" if self.total and not self.detail else ""
        left = f", {self.eta_s:.0f} s left" if self.eta_s is not None else ""
        return f"{self.stage}{units}{' ' + self.detail if self.detail else ''} ({self.progress:.0%}{left})"


@dataclass(slots=True)
class _Ledger:
    """What is known about one stage: how much is to do, and how fast it goes."""

    total: int | None = None
    guess_s: float = 0.0  # seconds a unit, before anything was measured
    done: int = 0
    elapsed_s: float = 0.0  # of closed visits
    closed: bool = False

    def left_s(self, running_s: float) -> float:
        spent = self.elapsed_s + running_s
        remaining = max((self.total or 1) - self.done, 0)
        measured = self.done > 0 and spent > MIN_RATE_SAMPLE_S
        return remaining * (spent / self.done if measured else self.guess_s)


@dataclass(slots=True)
class Stage:
    """An open stage, handed out by `Job.stage`."""

    name: str
    _job: "Job"

    def advance(self, units: int = 1, *, detail: str = "") -> None:
        """Count finished units, publish progress. Raises Cancelled where the caller asked to stop."""
        self._job._advance(self.name, units, detail)


@dataclass(slots=True, kw_only=True)
class Job:
    """Stages, progress, cancellation, timings and warnings of one request.

    `cancel_requested` is asked at every tick; `on_progress` is told at every tick. `timings` holds seconds a
    stage, summed over its visits; `warnings` holds sentences for the user, without repetition.
    """

    cancel_requested: Callable[[], bool] = lambda: False
    on_progress: Callable[[Progress], None] = lambda _: None
    timings: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    _ledgers: dict[str, _Ledger] = field(default_factory=dict)
    _open: str | None = None
    _opened_at: float = 0.0
    _started_at: float = field(default_factory=time.monotonic)
    _best: float = 0.0

    def begin(self) -> None:
        """Start the clock: the time a request waited for its turn is not its own."""
        self._started_at = time.monotonic()

    def expect(self, stage: str, units: int, *, seconds_a_unit: float) -> None:
        """Announce a stage to come, so that progress and time left cover the whole request.

        The guess only has to be of the right order: it is replaced by the measured speed once the stage runs.
        """
        ledger = self._ledgers.setdefault(self._known(stage), _Ledger())
        ledger.total, ledger.guess_s = units, seconds_a_unit

    @contextmanager
    def stage(self, name: str, *, total: int | None = None) -> Iterator[Stage]:
        """Time a stage. `total` adds units that were not announced by `expect`.

        A stage may be visited many times (once a clip); its time and units add up. Stages do not nest.
        Raises Cancelled on entry and in every `advance`.
        """
        if self._open is not None:
            raise RuntimeError(f"stage {name!r} opened inside stage {self._open!r}")
        ledger = self._ledgers.setdefault(self._known(name), _Ledger())
        if total is not None and ledger.total is None:
            ledger.total = total
        self._open, self._opened_at = name, time.monotonic()
        done_before = ledger.done
        try:
            self._publish("")
            yield Stage(name, self)
        finally:
            elapsed = time.monotonic() - self._opened_at
            ledger.elapsed_s += elapsed
            self.timings[name] = self.timings.get(name, 0.0) + elapsed
            self._open = None
            units = ledger.done - done_before
            ledger.closed = ledger.total is None or ledger.done >= ledger.total
            rate = f", {units / elapsed:.1f} units/s" if units > 1 and elapsed > 0 else ""
            logger.info("%s: %.2f s%s, peak %.0f MB", name, elapsed, rate, peak_memory_mb())

    def check(self) -> None:
        """Raise Cancelled where the caller asked to stop."""
        if self.cancel_requested():
            raise Cancelled("the request was cancelled; nothing was kept")

    def warn(self, sentence: str) -> None:
        """Keep a sentence for the user, once."""
        if sentence not in self.warnings:
            self.warnings.append(sentence)
            logger.warning("%s", sentence)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the job was made."""
        return time.monotonic() - self._started_at

    @property
    def open_stage(self) -> str | None:
        """The stage under way, if any."""
        return self._open

    @staticmethod
    def _known(name: str) -> str:
        if name not in STAGES:
            raise ValueError(f"unknown stage {name!r}; stages are {', '.join(STAGES)}")
        return name

    def _advance(self, name: str, units: int, detail: str) -> None:
        self._ledgers[name].done += units
        self._publish(detail)

    def _publish(self, detail: str) -> None:
        self.check()
        name = self._open or STAGES[0]
        ledger = self._ledgers[name]
        running = time.monotonic() - self._opened_at
        left = sum(
            other.left_s(running if key == name else 0.0)
            for key, other in self._ledgers.items()
            if not other.closed
        )
        elapsed = self.elapsed_s
        if len(self._ledgers) == 1:  # the first stage finds out what there is to do: until then, nobody knows
            left = float("inf")
        self._best = max(self._best, min(elapsed / (elapsed + left), 1.0) if elapsed + left > 0 else 0.0)
        measured = len(self._ledgers) > 1 and any(other.done for other in self._ledgers.values())
        eta = left if measured else None
        self.on_progress(
            Progress(
                stage=name,
                done=ledger.done,
                total=ledger.total,
                progress=self._best,
                eta_s=eta,
                detail=detail,
            )
        )


def peak_memory_mb() -> float:
    """Largest resident memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
