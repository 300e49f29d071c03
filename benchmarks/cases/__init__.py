"""One file a case. A case has one function, `run(bench)`, which adds rows."""

from collections.abc import Callable
from importlib import import_module

from benchmarks.measuring import Bench

NAMES = ("attention", "step", "vae", "clip", "memory")


def load(name: str) -> Callable[[Bench], None]:
    """The case of this name; importing it imports what it measures."""
    return import_module(f"benchmarks.cases.{name}").run
