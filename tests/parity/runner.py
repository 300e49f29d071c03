"""Fixtures in, one result a case out. Knows which module compares what, and nothing of how."""

import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from importlib import import_module
from pathlib import Path

from .findings import Check, Compare, Finding
from .kinds import MUST_MATCH, Fixture, Kind, find_fixtures


class Status(StrEnum):
    """What became of a case; the words of the report."""

    PASSED = "passed"
    FAILED = "failed"
    DIFFERENT = "different by design"
    NOT_COVERED = "not covered yet"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One line of the report."""

    name: str
    status: Status
    checks: tuple[Check, ...] = ()
    reason: str = ""
    seconds: float = 0.0

    @property
    def worst(self) -> Check | None:
        """The check that used most of its tolerance, None without any."""
        return max(self.checks, key=lambda check: check.strain, default=None)

    def __str__(self) -> str:
        line = f"{self.status:<19}  {self.name:<58}"
        if self.worst is not None:
            line += f"  error {self.worst.error:<8.2g} tolerance {self.worst.tolerance:<7g}"
        line += f"  {self.seconds:6.2f} s"
        if self.status == Status.FAILED and self.worst is not None:
            line += "  " + "; ".join(
                f"{check.what}: {check.error:.3g} > {check.tolerance:g}" for check in self.checks if not check.ok
            )
        return f"{line}  {self.reason}".rstrip()


def comparison(kind: Kind) -> Compare | None:
    """The code that compares a kind, None where there is none (yet)."""
    return import_module(f".{kind.group}", __package__).COMPARE.get(kind.name)


def compare(fixture: Fixture) -> Iterator[Result]:
    """A fixture's results, one after the other; whatever goes wrong is a result too."""
    if fixture.kind.different:
        yield Result(name=fixture.name, status=Status.DIFFERENT, reason=fixture.kind.different)
        return
    function = comparison(fixture.kind)
    if function is None:
        yield Result(name=fixture.name, status=Status.NOT_COVERED, reason="no code compares this kind")
        return
    findings, count = function(fixture.path), 0
    while True:
        start = time.perf_counter()
        try:
            finding = next(findings, None)
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            reason = f"broke off: {error!r} in {Path(where.filename).name}, line {where.lineno}"
            yield Result(name=fixture.name, status=Status.FAILED, reason=reason)
            return
        if finding is None:
            break
        count += 1
        yield _result(fixture, finding, time.perf_counter() - start)
    if not count:
        yield Result(name=fixture.name, status=Status.FAILED, reason="holds no case")


def run(paths: Iterable[Path]) -> Iterator[Result]:
    """Compare everything below these folders and files."""
    fixtures, unknown = find_fixtures(paths)
    for fixture in fixtures:
        yield from compare(fixture)
    for path in unknown:
        yield Result(name=str(path), status=Status.FAILED, reason="unknown kind: nothing here can compare it")


def report(paths: Iterable[Path]) -> int:
    """Print a line a case and the counts; 0 where all that must match is compared and does."""
    start, counts, missing, names = time.perf_counter(), Counter(), {}, []
    for result in run(paths):
        counts[result.status] += 1
        names.append(result.name)
        sys.stdout.write(f"{result}\n")
        sys.stdout.flush()
    fixtures, _ = find_fixtures(paths)
    missing = {fixture.kind.name for fixture in fixtures if fixture.kind in MUST_MATCH} - {
        kind.name for kind in MUST_MATCH if comparison(kind)
    }
    which = f" ({', '.join(sorted(missing))})" if missing else ""
    sys.stdout.write(
        ", ".join(f"{counts[status]} {status}" for status in Status)
        + f"{which}; {time.perf_counter() - start:.0f} s\n"
    )
    if not names:
        sys.stdout.write("there is nothing to compare\n")
    return int(not names or counts[Status.FAILED] + counts[Status.NOT_COVERED] > 0)


def prove(fixture: Fixture) -> None:
    """For tests: assert that every case of a fixture is as recorded, or differs only where it may."""
    wrong = [
        str(result) for result in compare(fixture) if result.status in (Status.FAILED, Status.NOT_COVERED)
    ]
    assert not wrong, "\n".join(wrong)


def _result(fixture: Fixture, finding: Finding, seconds: float) -> Result:
    name = fixture.name + (finding.part if finding.part.startswith("[") else f" {finding.part}".rstrip())
    reason = finding.different
    if not finding.checks and not finding.different:
        status, reason = Status.FAILED, "stores nothing that could be compared"
    elif not all(check.ok for check in finding.checks):
        status = Status.FAILED
    else:
        status = Status.DIFFERENT if finding.different else Status.PASSED
    return Result(name=name, status=status, checks=finding.checks, reason=reason, seconds=seconds)
