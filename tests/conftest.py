"""What several test files ask for by name."""

import pytest
import torch


@pytest.fixture(scope="module")
def one_thread():
    """Layers this small take ten times as long when threads wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
