"""An .onnx file as a function of one batch, on exactly the device that was asked for. Knows no picture.

onnxruntime falls back to the CPU in silence where its CUDA half does not load, and then a minute's video
takes hours. Here that is an error that names its cause. Since 1.29 it also reports its use to its maker; here
it does not. It is imported with the first file.
"""

import contextlib
import ctypes
import io
import logging
import os
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ...wan.runtime.errors import ModelFilesBroken, OutOfMemory, SetupFailed

if TYPE_CHECKING:
    import onnxruntime

logger = logging.getLogger(__name__)

CUDA: Final = "CUDAExecutionProvider"
CPU: Final = "CPUExecutionProvider"
SUPPORTED: Final = ("cpu", "cuda")
SILENT: Final = 4  # onnxruntime's log severity "fatal": whatever else it has to say comes as an exception too
CUDA_LIBRARIES: Final = ("libonnxruntime_providers_shared.so", "libonnxruntime_providers_cuda.so")
NO_MEMORY: Final = (
    "Failed to allocate memory"  # onnxruntime core/framework/bfc_arena.cc; it has no class for it
)
INSTALL_HINT: Final = (
    "install requirements.txt afresh, without a package called onnxruntime beside onnxruntime-gpu, "
    'and an NVIDIA driver ≥ 580, or choose {"preprocessing": "embedded"}'
)


class OnnxNetwork:
    """One network with one input and one output, both float32. Serves one thread at a time."""

    def __init__(self, path: Path, *, device: str) -> None:
        """Load `path`, an .onnx file with its external data beside it, on "cpu", "cuda" or "cuda:N".

        Raises ModelFilesBroken where the file or its data is missing or damaged, SetupFailed where the device
        cannot be used.
        """
        runtime = load_runtime(device)
        options = runtime.SessionOptions()
        options.log_severity_level = SILENT
        file = existing(path)
        try:
            self._session = runtime.InferenceSession(
                file, options, providers=_providers(device), enable_fallback=0
            )
        except Exception as error:  # onnxruntime has ten error classes and no common one
            raise broken(path, error) from error
        require_device(self._session, device)
        self._session.disable_fallback()  # nor while running
        entry = self._session.get_inputs()[0]
        self._input = entry.name
        self.input_shape: tuple[int | None, ...] = tuple(
            size if isinstance(size, int) else None for size in entry.shape
        )
        """None for an axis that may have any length."""

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        """(N, C, H, W) float32 → the first output, float32. Raises OutOfMemory.

        A file made for a fixed N takes any number: what is missing is filled up, what is too much waits.
        """
        fixed = self.input_shape[0]
        if fixed is None or len(batch) == fixed:
            return self._run(batch)
        parts = []
        for start in range(0, len(batch), fixed):
            part = batch[start : start + fixed]
            lacking = fixed - len(part)
            filled = (
                np.concatenate([part, np.zeros((lacking, *part.shape[1:]), part.dtype)]) if lacking else part
            )
            parts.append(self._run(filled)[: len(part)])
        return np.concatenate(parts)

    def _run(self, batch: np.ndarray) -> np.ndarray:
        try:
            return self._session.run(None, {self._input: batch})[0]
        except Exception as error:
            if NO_MEMORY not in str(error):
                raise
            raise OutOfMemory(
                f"no memory is left for {len(batch)} pictures at a time in the pose network: free some, "
                'or choose {"preprocessing": "embedded"}'
            ) from error


def load_runtime(device: str) -> ModuleType:
    """The onnxruntime module, ready for that device. Raises SetupFailed where it is missing or lacks CUDA."""
    kind, _, _ = device.partition(":")
    if kind not in SUPPORTED:
        raise ValueError(f"device must be one of {', '.join(SUPPORTED)}, got {device!r}")
    try:
        # Read once, when it initialises; docs/Privacy.md in its repository. Left for child processes, too.
        os.environ["ORT_DISABLE_TELEMETRY"] = "1"
        import onnxruntime as runtime  # noqa: PLC0415 - only where this backend is used
    except ImportError as error:
        raise SetupFailed(f"onnxruntime cannot be imported ({error}): {INSTALL_HINT}") from error
    runtime.set_default_logger_severity(SILENT)
    if kind == "cuda":
        if CUDA not in runtime.get_available_providers():
            raise SetupFailed(f"this onnxruntime was built without CUDA: {INSTALL_HINT}")
        said = io.StringIO()
        with contextlib.redirect_stdout(said):  # it prints, and standard output is the caller's
            runtime.preload_dlls()  # CUDA and cuDNN as torch brought them along
        if said.getvalue():
            logger.info("onnxruntime: %s", said.getvalue().strip())
    return runtime


def require_device(session: "onnxruntime.InferenceSession", device: str) -> None:
    """Raise SetupFailed where a session meant for a GPU ended up on the CPU."""
    used = session.get_providers()[0]
    if device != "cpu" and used != CUDA:
        raise SetupFailed(
            f"people and poses cannot be found on {device}, "
            f"onnxruntime's CUDA part does not load ({_cause()}): {INSTALL_HINT}"
        )


def existing(path: Path) -> str:
    """The path as onnxruntime wants it. Raises ModelFilesBroken where there is no file."""
    if not path.is_file():
        raise ModelFilesBroken(f"{path} is missing: set up again to fetch it")
    return str(path)


def broken(path: Path, error: Exception) -> ModelFilesBroken:
    """What to raise for a file that onnxruntime refuses; its message is cut to one line."""
    reason = " ".join(str(error).split())[:200]
    return ModelFilesBroken(
        f"{path} or the data file beside it cannot be loaded ({reason}): delete them and set up again"
    )


def _providers(device: str) -> list[Any]:
    if device == "cpu":
        return [CPU]
    _, _, index = device.partition(":")
    # The default tries every algorithm for every new batch size, which takes seconds each time.
    return [(CUDA, {"device_id": int(index or 0), "cudnn_conv_algo_search": "HEURISTIC"}), CPU]


def _cause() -> str:
    """Why the CUDA part does not load: onnxruntime itself only logs it."""
    import onnxruntime as runtime  # noqa: PLC0415

    for name in CUDA_LIBRARIES:
        try:
            ctypes.CDLL(str(Path(str(runtime.__file__)).parent / "capi" / name), mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            return str(error)
    return "it finds no device that it supports"
