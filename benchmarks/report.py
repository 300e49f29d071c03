"""Every target of the specification with the newest value measured for it: met, not met, or missing.

    python -m benchmarks.report               the table, and the newest row of everything that was measured
    python -m benchmarks.report --short       the targets alone
    python -m benchmarks.report --readme      the README's tables
    python -m benchmarks.report --gpu H100    any of these from the cards alone whose name contains this

Reads benchmarks/results/*.json. The targets are numbers of one H100 80 GB; where another card was measured
the table says so, and the peers' values of the same run tell how the cards compare. The README's tables are
one section a card, the card measured last first, so that the columns of each compare.
"""

import argparse
import json
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

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

    def __init__(self, folder: Path = RESULTS, *, gpu: str = "") -> None:
        """`gpu`: only of cards whose name contains this; what was measured without a card stays."""
        files = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
        runs = [run for run in files if "rows" in run and not run.get("settings", {}).get("tiny")]
        named = [run for run in runs if gpu.lower() in (run.get("gpu") or gpu).lower()]
        self.runs = sorted(named, key=lambda run: run.get("date", ""), reverse=True)

    def of(self, runs: list[dict[str, Any]]) -> "Results":
        """These runs alone."""
        chosen = copy(self)
        chosen.runs = runs
        return chosen

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
        for run in results.runs:  # both of one run: two cards have no ratio
            one = results.of([run])
            above, below = one.value(case, what, size), one.value(case, over, size)
            if above and below:
                return Found(value=above.value / below.value, gpu=above.gpu, date=above.date)
        return None

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A line of the README's table."""

    name: str
    case: str
    size: str
    peers: tuple[str, str]  # the rows of diffusers as it comes and compiled; "" where there is none
    ours: str


def _clip_line(steps: int) -> Line:
    first, second = (f"{peer}, {steps} steps" for peer in PEERS)
    return Line(
        name=f"whole clip at 1280×720, {steps} steps, streamed",
        case="clip",
        size=LARGE,
        peers=(first, second),
        ours=f"ours, streamed, {steps} steps",
    )


SPEED = (
    Line(name="step at 1280×720", case="step", size=LARGE, peers=PEERS, ours=OURS),
    Line(name="step at 832×480", case="step", size=SMALL, peers=PEERS, ours=OURS),
    Line(
        name="VAE, two encodes and one decode at 1280×720",
        case="vae",
        size=LARGE,
        peers=("clip: diffusers, bf16", ""),
        ours="clip: ours",
    ),
    _clip_line(20),
    _clip_line(4),
)
HELD = ("diffusers, resident", "diffusers, model offload")
MEMORY = (
    Line(name="1280×720", case="memory", size=LARGE, peers=HELD, ours=EVERYTHING),
    Line(name="832×480", case="memory", size=SMALL, peers=HELD, ours=EVERYTHING),
)


UNKNOWN = "–"


def readme_tables(results: Results) -> str:
    """The README's tables and where their numbers come from, Markdown: a section a card, the newest first."""
    sections = []
    for card in _cards(results):
        runs = _runs_behind(card)
        dates = ", ".join(sorted({run["date"][:10] for run in runs}))
        caption = (
            f"On one {runs[0]['gpu']} a run, {dates}; "
            "only ours is streamed, diffusers has it all on the card:"
        )
        tables = [table for table in (speed_table(card), memory_table(card)) if table]
        sections.append("\n\n".join([caption, *tables]))
    return "\n\n".join(sections) or "Nothing was measured."


def speed_table(card: Results) -> str:
    """Seconds; "" where nothing of ours was measured."""
    head = ("77 frames, bf16", "diffusers", "diffusers, compiled", "here")
    return _table(card, SPEED, head, "s")


def memory_table(card: Results) -> str:
    """Peaks; "" where nothing of ours was measured."""
    head = ("GPU memory of a request", "diffusers, resident", "diffusers, offloaded", "here, streamed")
    return _table(card, MEMORY, head, "GiB")


def _cards(results: Results) -> list[Results]:
    """The runs of each card of which a number of ours would be in the tables, the newest card first."""
    ours = [
        found[1]
        for run in results.runs
        for line in (*SPEED, *MEMORY)
        if (found := results.of([run]).row(line.case, line.ours, line.size))
    ]
    names = dict.fromkeys(run["gpu"] for run in ours)  # in the order of the runs
    return [results.of([run for run in results.runs if run.get("gpu") == name]) for name in names]


def _runs_behind(results: Results) -> list[dict[str, Any]]:
    """The run of every number in the tables."""
    return [
        found[1]
        for line in (*SPEED, *MEMORY)
        if results.row(line.case, line.ours, line.size)
        for what in (*line.peers, line.ours)
        if (found := results.row(line.case, what, line.size))
    ]


def _table(
    results: Results, lines: tuple[Line, ...], head: tuple[str, ...], unit: Literal["s", "GiB"]
) -> str:
    field = {"s": "seconds", "GiB": "peak_gib"}[unit]

    def value(line: Line, what: str) -> str:
        found = results.value(line.case, what, line.size, field)
        return f"{found.value:.3g} {unit}" if found else UNKNOWN

    rows = []
    for line in lines:
        if (ours := value(line, line.ours)) != UNKNOWN:
            rows.append(
                f"| {line.name} | {' | '.join(value(line, peer) for peer in line.peers)} | **{ours}** |"
            )
    return "\n".join([f"| {' | '.join(head)} |", "|---" * len(head) + "|", *rows]) if rows else ""


def row_table(results: Results) -> str:
    """The newest value of everything that was measured, Markdown."""
    lines = ["| case | size | what | seconds | floor | × floor | peak GiB | |", "|---" * 8 + "|"]
    seen = set()
    for run in results.runs:
        for row in run["rows"]:
            key = (row.get("case"), row.get("size"), row.get("what"))
            if None in key or key in seen:
                continue
            seen.add(key)
            seconds, floor = row["seconds"], row["floor_s"]
            factor = seconds / floor if seconds and floor else None
            numbers = [
                "" if number is None else f"{number:.4g}"
                for number in (seconds, floor, factor, row["peak_gib"])
            ]
            lines.append(f"| {' | '.join([*key, *numbers])} | {row['note']} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None, *, folder: Path = RESULTS) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--short", action="store_true", help="the targets alone")
    parser.add_argument("--readme", action="store_true", help="the README's tables")
    parser.add_argument("--gpu", default="", help="only cards whose name contains this: H100")
    options = parser.parse_args(arguments)
    results = Results(folder, gpu=options.gpu)
    if options.readme:
        print(readme_tables(results))
        return
    print(target_table(results))
    if not options.short:
        print()
        print(row_table(results))


if __name__ == "__main__":
    main()
