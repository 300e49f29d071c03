"""The yardstick: recordings of the official Wan2.2 code beside what this project makes of the same inputs.

`python -m tests.parity PATH` reports on any part of the published set, or of our own small one in
tests/golden. The tests of single modules take their cases from here too, so that there is one set, and one
comparison of a kind.
"""

from .kinds import Fixture
from .runner import OWN, PUBLISHED, prove, recordings

__all__ = ["OWN", "PUBLISHED", "Fixture", "prove", "recordings"]
