"""Triton kernels on a CPU: a script in a process of its own, for the interpreter is chosen at import."""

import os
import subprocess
import sys

import pytest


def run_interpreted(script: str) -> None:
    """Run `script` where Triton's kernels are interpreted; skips where there is no Triton."""
    pytest.importorskip("triton")
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)
