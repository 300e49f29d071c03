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
from typing import Any

from .findings import Check, Compare, Finding
from .kinds import Fixture, Kind, find_fixtures

OWN = Path(__file__).parents[1] / "golden"
PUBLISHED = Path(__file__).parents[3] / "shared" / "golden"  # the whole set, where it lies beside the project


class Status(StrEnum):
    """What became of a case; the words of the report."""

    PASSED = "passed"
    FAILED = "failed"
    DIFFERENT = "different by design"
    NOT_COVERED = "not covered yet"


WRONG = (Status.FAILED, Status.NOT_COVERED)
VERDICTS = {status: str(status) for status in Status} | {Status.PASSED: "ok", Status.FAILED: "FAILED"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One line of the report."""

    kind: str
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
        worst, columns = self.worst, " " * 30
        if worst is not None:
            columns = f"error {worst.error:<9.2g}tolerance {worst.tolerance:<6g}"[:30]
        reasons = [f"{c.what} {c.error:.3g} > {c.tolerance:g}" for c in self.checks if not c.ok]
        reasons += [self.reason] if self.reason else []
        verdict = VERDICTS[self.status] + (f": {'; '.join(reasons)}" if reasons else "")
        return f"{self.name:<56} {columns} {self.seconds:6.2f} s  {verdict}"


def comparison(kind: Kind) -> Compare | None:
    """The code that compares a kind, None where there is none (yet)."""
    return import_module(f".{kind.group}", __package__).COMPARE.get(kind.name)


def compare(fixture: Fixture) -> Iterator[Result]:
    """A fixture's results, one after the other; whatever goes wrong is a result too."""
    if fixture.kind.different:
        yield _told(fixture, Status.DIFFERENT, fixture.kind.different)
        return
    function = comparison(fixture.kind)
    if function is None:
        yield _told(fixture, Status.NOT_COVERED, "no code compares this kind")
        return
    findings, count = function(fixture.path), 0
    while True:
        start = time.perf_counter()
        try:
            finding = next(findings, None)
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            reason = f"broke off: {error!r} in {Path(where.filename).name}, line {where.lineno}"
            yield _told(fixture, Status.FAILED, reason)
            return
        if finding is None:
            break
        count += 1
        yield _result(fixture, finding, time.perf_counter() - start)
    if not count:
        yield _told(fixture, Status.FAILED, "holds no case")


def run(paths: Iterable[Path]) -> Iterator[Result]:
    """Compare everything below these folders and files."""
    fixtures, unknown = find_fixtures(paths)
    for fixture in fixtures:
        yield from compare(fixture)
    for path in unknown:
        reason = "unknown kind: nothing here can compare it"
        yield Result(kind="unknown", name=str(path), status=Status.FAILED, reason=reason)


def report(paths: Iterable[Path]) -> int:
    """Print a line a case and the counts; 0 where there is something to compare and nothing is wrong."""
    start, counts, missing = time.perf_counter(), Counter[Status](), set[str]()
    for result in run(paths):
        counts[result.status] += 1
        if result.status == Status.NOT_COVERED:
            missing.add(result.kind)
        sys.stdout.write(f"{result}\n")
        sys.stdout.flush()
    if not counts:
        sys.stdout.write("no recordings here\n")
    which = f" ({', '.join(sorted(missing))})" if missing else ""
    total = ", ".join(f"{counts[status]} {status}" for status in Status)
    sys.stdout.write(f"{total}{which}; {time.perf_counter() - start:.0f} s\n")
    return int(not counts or any(counts[status] for status in WRONG))


def recordings(kind: str) -> list[Any]:
    """Parameters for a test: all fixtures of a kind, in our own set and in the published one where it is."""
    import pytest  # noqa: PLC0415 - the report does without

    return [
        pytest.param(fixture, id=f"{origin}-{fixture.path.stem}")
        for origin, folder in (("own", OWN), ("published", PUBLISHED))
        for fixture in find_fixtures([folder])[0]
        if fixture.kind.name == kind
    ]


def prove(fixture: Fixture) -> None:
    """For tests: assert that every case of a fixture is as recorded, or differs only where it may."""
    wrong = [str(result) for result in compare(fixture) if result.status in WRONG]
    assert not wrong, "\n".join(wrong)


def _told(fixture: Fixture, status: Status, reason: str) -> Result:
    return Result(kind=fixture.kind.name, name=fixture.name, status=status, reason=reason)


def _result(fixture: Fixture, finding: Finding, seconds: float) -> Result:
    name = fixture.name + (finding.part if finding.part.startswith("[") else f" {finding.part}".rstrip())
    reason = finding.different
    if not finding.checks and not finding.different:
        status, reason = Status.FAILED, "stores nothing that could be compared"
    elif not all(check.ok for check in finding.checks):
        status = Status.FAILED
    else:
        status = Status.DIFFERENT if finding.different else Status.PASSED
    return Result(
        kind=fixture.kind.name,
        name=name,
        status=status,
        checks=finding.checks,
        reason=reason,
        seconds=seconds,
    )
