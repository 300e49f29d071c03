"""The Triton kernels, imported at their first use: a machine without a GPU may have no Triton."""

from importlib import import_module
from types import ModuleType


def kernels() -> ModuleType:
    """The module `kernels`."""
    return import_module(f"{__package__}.kernels")
