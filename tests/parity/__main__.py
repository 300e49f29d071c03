"""python -m tests.parity PATH…: recordings of Wan2.2 in these folders and files, beside what we compute.

One line a case, then the counts. Exit 1 where a case fails, where a file is of an unknown kind, where a kind
that must match is not covered by code, or where there is nothing to compare.
"""

import argparse
import os
import sys
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    """Run the report; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.parity", description="Compare recordings of Wan2.2"
    )
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="a folder or file of recordings")
    paths = parser.parse_args(arguments).paths
    for path in paths:
        if not path.exists():
            parser.error(f"{path} does not exist")
    from .runner import report  # noqa: PLC0415 - after the arguments: what it needs takes seconds to import

    return report([path.resolve() for path in paths])


if __name__ == "__main__":
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # the recordings were made on a CPU in float32
    sys.exit(main())
