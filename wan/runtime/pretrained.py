"""A folder that transformers or diffusers saved in, its network out: whole, or one sentence says why not."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from .errors import ModelFilesBroken

logger = logging.getLogger(__name__)


def load_pretrained(cls: type[Any], folder: Path, **precision: torch.dtype) -> Any:  # noqa: ANN401
    """A network of `cls` on the CPU, for inference, with nothing missing. Both libraries would only warn.

    `precision` is `dtype` for transformers' classes, `torch_dtype` for diffusers'. Raises ModelFilesBroken.
    """
    with explained(folder), without_bars():
        network, report = cls.from_pretrained(
            folder, local_files_only=True, output_loading_info=True, **precision
        )
    lost = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
    if lost:
        raise ModelFilesBroken(
            f"{folder} lacks {len(lost)} tensors of {cls.__name__}, such as {lost[0]}: delete it, fetch "
            "it anew"
        )
    if report["unexpected_keys"]:
        logger.warning("%s: not used: %s", folder, sorted(report["unexpected_keys"])[:5])
    return network.requires_grad_(False).eval()


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Turn what a library says of damaged files into one sentence."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelFilesBroken(
            f"{folder} cannot be loaded ({reason[:200]}): delete it and fetch it anew"
        ) from error


@contextmanager
def without_bars() -> Iterator[None]:
    """transformers draws a bar of its own for each network."""
    drawn = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if drawn:
            transformers_logging.enable_progress_bar()
