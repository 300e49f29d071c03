"""The models of a setup, by name."""

import logging

from ..runtime.errors import NotAvailableYet, NoUsableGpu
from .device import usable_gpu
from .models import Models
from .smoke import build_smoke_models

logger = logging.getLogger(__name__)


def load_models(name: str) -> Models:
    """Load the networks of setup option `model`.

    Raises NoUsableGpu where the 14B model is asked for on a machine that cannot run it.
    """
    if name == "smoke":
        return build_smoke_models()
    if usable_gpu() is None:
        raise NoUsableGpu(
            'the 14B model needs a CUDA GPU and none is usable here: use another machine, or {"model": "smoke"} '
            "as setup to try everything at a tiny size"
        )
    raise NotAvailableYet('the 14B model is not available yet in this version: use {"model": "smoke"} as setup')
