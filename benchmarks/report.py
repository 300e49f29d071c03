"""Every target of the specification with the newest value measured for it: met, not met, or missing.

    python -m benchmarks.report          the table, and the rows of the newest file of every case
    python -m benchmarks.report --short  the targets alone

Reads benchmarks/results/*.json. The targets are numbers of one H100 80 GB; where another card was measured
the table says so, and the peers' values of the same run tell how the cards compare.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
LARGE, SMALL = "1280x720", "832x480"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A measured value and where it comes from."""

    value: float
    gpu: str
    date: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One line of SPEC §7."""

    name: str
    limit: float
    unit: str
    at_least: bool = False
    find: Callable[["Results"], Found | None]

    def verdict(self, found: Found | None) -> str:
        if found is None:
            return "missing"
        good = found.value >= self.limit if self.at_least else found.value <= self.limit
        return "met" if good else "not met"


class Results:
    """All result files, newest first."""

    def __init__(self, folder: Path = RESULTS) -> None:
        files = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
        runs = [run for run in files if "rows" in run and not run.get("settings", {}).get("tiny")]
        self.runs = sorted(runs, key=lambda run: run.get("date", ""), reverse=True)

    def row(self, case: str, what: str, size: str) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """The newest such row and its run."""
        for run in self.runs:
            for row in run["rows"]:
                if (row.get("case"), row.get("what"), row.get("size")) == (case, what, size):
                    return row, run
        return None

    def value(self, case: str, what: str, size: str, field: str = "seconds") -> Found | None:
        found = self.row(case, what, size)
        if found is None or found[0].get(field) is None:
            return None
        return Found(value=found[0][field], gpu=found[1]["gpu"], date=found[1]["date"][:10])


def _newest(case: str, what: str, size: str, field: str = "seconds") -> Callable[[Results], Found | None]:
    return lambda results: results.value(case, what, size, field)


def _ratio(case: str, what: str, over: str, size: str) -> Callable[[Results], Found | None]:
    def find(results: Results) -> Found | None:
        above, below = results.value(case, what, size), results.value(case, over, size)
        if above is None or below is None:
            return None
        return Found(value=above.value / below.value, gpu=above.gpu, date=above.date)

    return find


def _host_slope(results: Results) -> Found | None:
    for run in results.runs:
        if "mb_a_minute" in run:
            return Found(value=run["mb_a_minute"], gpu=run["machine"], date=run.get("date", "")[:10])
    return None


OURS, STREAMED, EVERYTHING = "ours", "ours, streamed", "ours, everything streamed"
TARGETS = (
    Target(name="step, bf16, 1280×720", limit=9.7, unit="s", find=_newest("step", OURS, LARGE)),
    Target(name="step, bf16, 832×480", limit=2.55, unit="s", find=_newest("step", OURS, SMALL)),
    Target(name="step, fp8, 1280×720", limit=8.6, unit="s", find=_newest("step", "ours, fp8", LARGE)),
    Target(name="step, fp8, 832×480", limit=2.05, unit="s", find=_newest("step", "ours, fp8", SMALL)),
    Target(
        name="VAE, two encodes and one decode", limit=5.5, unit="s", find=_newest("vae", "clip: ours", LARGE)
    ),
    Target(name="VAE encode", limit=1.5, unit="s", find=_newest("vae", "encode: ours", LARGE)),
    Target(name="VAE decode", limit=2.5, unit="s", find=_newest("vae", "decode: ours", LARGE)),
    Target(
        name="VAE, difference to float32",
        limit=1.0,
        unit="grey levels",
        find=_newest("vae", "decode: ours", LARGE, "difference"),
    ),
    Target(
        name="clip, 20 steps, bf16",
        limit=203,
        unit="s",
        find=_newest("clip", "ours, streamed, 20 steps", LARGE),
    ),
    Target(
        name="clip, 20 steps, fp8", limit=180, unit="s", find=_newest("clip", "ours, fp8, 20 steps", LARGE)
    ),
    Target(name="clip, 4 steps, fp8", limit=42, unit="s", find=_newest("clip", "ours, fp8, 4 steps", LARGE)),
    Target(
        name="GPU memory, default, 1280×720",
        limit=40,
        unit="GiB",
        find=_newest("memory", EVERYTHING, LARGE, "peak_gib"),
    ),
    Target(
        name="GPU memory, streamed, 1280×720",
        limit=12,
        unit="GiB",
        find=_newest("memory", EVERYTHING, LARGE, "peak_gib"),
    ),
    Target(
        name="GPU memory, streamed, 832×480",
        limit=8,
        unit="GiB",
        find=_newest("memory", EVERYTHING, SMALL, "peak_gib"),
    ),
    Target(
        name="streamed step, 1280×720",
        limit=1.03,
        unit="× resident",
        find=_ratio("step", STREAMED, OURS, LARGE),
    ),
    Target(
        name="streamed step, 832×480",
        limit=1.03,
        unit="× resident",
        find=_ratio("step", STREAMED, OURS, SMALL),
    ),
    Target(
        name="four GPUs, whole clip",
        limit=3.6,
        unit="× one GPU",
        at_least=True,
        find=_newest("parallel", "four GPUs, speed-up", LARGE, "speed_up"),
    ),
    Target(name="host memory over length", limit=10, unit="MB a minute", find=_host_slope),
)


def target_table(results: Results) -> str:
    """Markdown."""
    lines = ["| target | limit | measured | | on |", "|---|---|---|---|---|"]
    for target in TARGETS:
        found = target.find(results)
        value = "–" if found is None else f"{found.value:.4g} {target.unit}"
        where = "" if found is None else f"{found.gpu}, {found.date}"
        sign = "≥" if target.at_least else "≤"
        lines.append(
            f"| {target.name} | {sign} {target.limit:g} {target.unit} | {value} "
            f"| {target.verdict(found)} | {where} |"
        )
    return "\n".join(lines)


PEERS = ("diffusers, eager", "diffusers, blocks compiled")
SPEED = (  # the README's rows: name, case, size, the peers' rows, ours
    ("step at 1280×720", "step", LARGE, PEERS, OURS),
    ("step at 832×480", "step", SMALL, PEERS, OURS),
    (
        "VAE, two encodes and one decode at 1280×720",
        "vae",
        LARGE,
        ("clip: diffusers, bf16", ""),
        "clip: ours",
    ),
    ("whole clip at 1280×720, 20 steps, streamed", "clip", LARGE, ("", ""), "ours, streamed, 20 steps"),
    ("whole clip at 1280×720, 4 steps, streamed", "clip", LARGE, ("", ""), "ours, streamed, 4 steps"),
)


def speed_table(results: Results) -> str:
    """The README's table, Markdown: seconds, newest values."""

    def seconds(case: str, what: str, size: str) -> str:
        found = results.value(case, what, size) if what else None
        return f"{found.value:.3g} s" if found else ""

    lines = ["| 77 frames, bf16 | diffusers | diffusers, compiled | here |", "|---|---|---|---|"]
    for name, case, size, peers, ours in SPEED:
        theirs = " | ".join(seconds(case, peer, size) for peer in peers)
        lines.append(f"| {name} | {theirs} | **{seconds(case, ours, size)}** |")
    return "\n".join(lines)


def row_table(results: Results) -> str:
    """The newest value of everything that was measured, Markdown."""
    lines = ["| case | size | what | seconds | floor | peak GiB | |", "|---|---|---|---|---|---|---|"]
    seen = set()
    for run in results.runs:
        for row in run["rows"]:
            key = (row.get("case"), row.get("size"), row.get("what"))
            if None in key or key in seen:
                continue
            seen.add(key)
            numbers = [
                "" if row[name] is None else f"{row[name]:.4g}" for name in ("seconds", "floor_s", "peak_gib")
            ]
            lines.append(f"| {' | '.join([*key, *numbers])} | {row['note']} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None, *, folder: Path = RESULTS) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--short", action="store_true", help="the targets alone")
    parser.add_argument("--readme", action="store_true", help="the README's table")
    options = parser.parse_args(arguments)
    results = Results(folder)
    if options.readme:
        print(speed_table(results))
        return
    print(target_table(results))
    if not options.short:
        print()
        print(row_table(results))


if __name__ == "__main__":
    main()
