"""The suite: every case against its peers and against the floor, on one device, into one table and one file.

    python -m benchmarks.run                     all cases, on the GPU, into benchmarks/results/
    python -m benchmarks.run step vae --out FILE
    python -m benchmarks.run clip --steps 20 --peer-steps    without diffusers' pipeline, which takes minutes
    python -m benchmarks.run --tiny              on the CPU, in seconds: proves that the suite still runs

Weights are random at the real size: they change the result, not the cost. Compilation is never in a number.
"""

import argparse
import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from functools import partial
from pathlib import Path

import torch

from benchmarks.cases import NAMES, load
from benchmarks.measuring import Bench, facts

RESULTS = Path(__file__).parent / "results"


def main(arguments: list[str] | None = None) -> int:
    """Run cases; the number of those that failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("cases", nargs="*", choices=[[], *NAMES], help="default: all")
    parser.add_argument("--tiny", action="store_true", help="a size that runs anywhere")
    parser.add_argument("--out", type=Path, help="the JSON file; default: results/<date>-<cases>.json")
    parser.add_argument("--steps", nargs="+", type=int, default=[20, 4], help="of the case clip")
    parser.add_argument(
        "--peer-steps",
        nargs="*",
        type=int,
        default=[4],
        help="of diffusers' pipeline in the cases clip and memory; none: leave it out of both",
    )
    parser.add_argument("--commit", help="where the code came from, if this is no checkout")
    options = parser.parse_args(arguments)
    names = options.cases or list(NAMES)
    if not options.tiny and not torch.cuda.is_available():
        parser.error("the real sizes need a CUDA GPU; --tiny runs anywhere")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    bench = Bench(
        device=torch.device("cpu" if options.tiny else "cuda"),
        tiny=options.tiny,
        cases=tuple(names),
        steps=tuple(options.steps),
        peer_steps=tuple(options.peer_steps),
    )
    out = options.out or RESULTS / f"{date.today()}-{'-'.join(names)}.json"
    # After each row: a run that is broken off keeps what it had measured.
    bench.on_row = lambda: _write(bench, out, options, names)
    with torch.inference_mode(), _threads(bench):
        bench.measure_ceilings()
        for name in names:
            bench.attempt(partial(_run_case, name, bench))
    return bench.failed


def _run_case(name: str, bench: Bench) -> None:
    load(name)(bench)  # importing a case can fail, too


@contextmanager
def _threads(bench: Bench) -> Iterator[None]:
    """At the tiny size threads cost more than they bring: 34 s with two, 9 s with one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if bench.tiny else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _write(bench: Bench, out: Path, options: argparse.Namespace, names: list[str]) -> None:
    report = facts(
        bench, commit=options.commit, settings={"cases": names, "tiny": options.tiny, "frames": bench.frames}
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
