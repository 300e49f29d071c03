"""The Triton kernels, imported at their first use: a machine without a GPU may have no Triton."""

from importlib import import_module
from types import ModuleType


def token_kernels() -> ModuleType:
    """The module `token_kernels`."""
    return import_module(f"{__package__}.token_kernels")


def pixel_kernels() -> ModuleType:
    """The module `pixel_kernels`."""
    return import_module(f"{__package__}.pixel_kernels")
