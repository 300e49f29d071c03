"""Which GPU this process can really use."""

import torch


def usable_gpu() -> torch.device | None:
    """The first CUDA device that carries out a computation, or None.

    A device that is listed but belongs to a driver too old for this torch fails only when used, and inside
    containers `torch.cuda.is_available()` alone has been seen to be wrong both ways.
    """
    try:
        device = torch.device("cuda", 0)
        torch.zeros(1, device=device).add_(1).item()
    except (RuntimeError, AssertionError):
        return None
    return device
