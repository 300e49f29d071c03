"""The suite: every case against its peers and against the floor, on one device, into one table and one file.

    python -m benchmarks.run                     all cases, on the GPU, into benchmarks/results/
    python -m benchmarks.run step vae --out FILE
    python -m benchmarks.run --tiny              on the CPU, in seconds: proves that the suite still runs

Weights are random at the real size: they change the result, not the cost. Compilation is never in a number.
"""

import argparse
import json
import logging
import sys
import traceback
from datetime import date
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
    parser.add_argument("--commit", help="where the code came from, if this is no checkout")
    options = parser.parse_args(arguments)
    names = options.cases or list(NAMES)
    if not options.tiny and not torch.cuda.is_available():
        parser.error("the real sizes need a CUDA GPU; --tiny runs anywhere")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    bench = Bench(
        device=torch.device("cpu" if options.tiny else "cuda"), tiny=options.tiny, steps=tuple(options.steps)
    )
    out = options.out or RESULTS / f"{date.today()}-{'-'.join(names)}.json"
    # After each row: a run that is broken off keeps what it had measured.
    bench.on_row = lambda: _write(bench, out, options, names)
    failed = 0
    with torch.inference_mode():
        bench.measure_ceilings()
        for name in names:
            failed += not _run_case(name, bench)
    return failed


def _run_case(name: str, bench: Bench) -> bool:
    """Whether it worked. A case that fails must not take the others' numbers with it."""
    try:
        load(name)(bench)
    except Exception:
        if bench.tiny:  # there the failure is the product
            raise
        traceback.print_exc()
        bench.release()
        return False
    return True


def _write(bench: Bench, out: Path, options: argparse.Namespace, names: list[str]) -> None:
    report = facts(
        bench, commit=options.commit, settings={"cases": names, "tiny": options.tiny, "frames": bench.frames}
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
