"""What a comparison gives: checks of one part of a fixture, and how far apart two arrays are. Pure."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

NOWHERE = float("inf")  # the error of something that cannot be compared: another shape, NaN on one side only


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One quantity beside the recorded one."""

    what: str
    error: float  # in the unit of its tolerance
    tolerance: float

    @property
    def ok(self) -> bool:
        return self.error <= self.tolerance  # a NaN is not

    @property
    def strain(self) -> float:
        """How much of the tolerance is used; for finding the worst of several checks."""
        if not self.ok:
            return NOWHERE
        return self.error / self.tolerance if self.tolerance else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the report: a fixture, or one of its cases or parts."""

    part: str = ""
    checks: tuple[Check, ...] = ()
    different: str = ""  # why we differ here on purpose; `checks` are then what we promise instead


Compare = Callable[[Path], Iterator[Finding]]
"""A fixture's main file, or its folder → findings, lazily: the seconds of each are those until it comes."""


def exact(what: str, ours: ArrayLike, theirs: ArrayLike) -> Check:
    """Equal values, whatever their types; the error is the largest difference."""
    return within(what, ours, theirs, 0.0)


def within(what: str, ours: ArrayLike, theirs: ArrayLike, tolerance: float) -> Check:
    """Largest difference of any two values."""
    return Check(what=what, error=_largest(ours, theirs), tolerance=tolerance)


def relative_largest(what: str, ours: ArrayLike, theirs: ArrayLike, tolerance: float) -> Check:
    """Largest difference over the largest recorded value."""
    scale = np.abs(np.asarray(theirs, np.float64)).max()
    return Check(what=what, error=float(_largest(ours, theirs) / scale), tolerance=tolerance)


def relative_l2(what: str, ours: ArrayLike, theirs: ArrayLike, tolerance: float) -> Check:
    """Length of the difference over the length of the recorded vector."""
    a, b = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    error = np.linalg.norm(a - b) / np.linalg.norm(b) if a.shape == b.shape else NOWHERE
    return Check(what=what, error=float(error), tolerance=tolerance)


def holds(what: str, promise: bool) -> Check:
    """Something that is so or not."""
    return Check(what=what, error=0.0 if promise else NOWHERE, tolerance=0.0)


def arrays(path: Path) -> dict[str, np.ndarray]:
    """Everything in an npz file."""
    with path.open("rb") as file:  # np.load would not close a broken one
        return dict(np.load(file))


def _largest(ours: ArrayLike, theirs: ArrayLike) -> float:
    a, b = np.asarray(ours), np.asarray(theirs)
    if a.shape != b.shape:
        return NOWHERE
    if not a.size or np.array_equal(a, b):
        return 0.0
    a, b = a.astype(np.float64), b.astype(np.float64)
    nothing = np.isnan(a)
    if (nothing != np.isnan(b)).any():
        return NOWHERE
    return float(np.abs(a - b)[~nothing].max(initial=0.0))
