"""Attention behind one signature, whoever computes it. The kernel is chosen once, at setup.

Letters: B batch, N tokens, S tokens that are looked at, D features of one head.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import import_module

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..runtime.errors import SetupFailed

logger = logging.getLogger(__name__)

Kernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""Queries (B, N, heads, D), keys and values (B, S, heads, D) → (B, N, heads, D), scaled by 1/√D, no mask."""

PLAIN = "sdpa"
"""The kernel that is always there, and that all others are held against."""

HALF = (torch.bfloat16, torch.float16)
HOPPER, BLACKWELL = 9, 10  # major compute capability
TOLERANCE = 2e-2  # relative: two roundings to bf16 of what is a weighted mean; measured 2e-3 … 4e-3
CLOSE = 1.05  # times the fastest
MEASURED_TOKENS = 16384  # enough to fill the largest card; a few milliseconds


@torch.library.custom_op("wan_animate::attend", mutates_args=())
def attend(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, kernel: str) -> torch.Tensor:
    """Attention by the kernel of this name. One opaque node to the compiler: any kernel fits its graphs."""
    return _load(kernel)(queries, keys, values).contiguous()


@attend.register_fake
def _(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, kernel: str) -> torch.Tensor:  # noqa: ARG001
    return torch.empty_like(queries, memory_format=torch.contiguous_format)


def choose_attention(
    name: str, *, device: torch.device, dtype: torch.dtype, heads: int, head_dim: int
) -> str:
    """The kernel a setup is to use: `name` itself if it works here, or for "auto" the most promising.

    Raises SetupFailed where the named kernel is unknown or cannot run here.
    """
    if name != "auto":
        reason = why_not(name, device=device, dtype=dtype, head_dim=head_dim)
        if reason is not None:
            usable = ", ".join(usable_kernels(device=device, dtype=dtype, head_dim=head_dim))
            raise SetupFailed(
                f"attention {name!r} cannot be used here: {reason}; use 'auto' or one of {usable}"
            )
        logger.info("attention: %s, as asked", name)
        return name
    names = usable_kernels(device=device, dtype=dtype, head_dim=head_dim)
    if len(names) == 1 or device.type == "cpu":
        logger.info("attention: %s, the only choice", names[0])
        return names[0]
    seconds = measure(names, device=device, dtype=dtype, heads=heads, head_dim=head_dim)
    chosen = pick(seconds)
    table = ", ".join(f"{key} {value * 1e3:.2f} ms" for key, value in seconds.items())
    logger.info("attention: %s, by time at %d tokens (%s)", chosen, MEASURED_TOKENS, table)
    return chosen


def pick(seconds: Mapping[str, float]) -> str:
    """The fastest kernel; of those about as fast, the most promising.

    A measurement of milliseconds does not heat the card up to its power limit, where a clip is made: small
    differences in it say nothing.
    """
    close = [name for name in KERNELS if name in seconds and seconds[name] <= CLOSE * min(seconds.values())]
    return close[0]


def usable_kernels(*, device: torch.device, dtype: torch.dtype, head_dim: int) -> tuple[str, ...]:
    """Names of the kernels that give the right answer here, plain attention last. Logs why others do not."""
    level = logging.INFO if device.type == "cuda" else logging.DEBUG
    usable = []
    for name in KERNELS:
        reason = why_not(name, device=device, dtype=dtype, head_dim=head_dim)
        if reason is None:
            usable.append(name)
        else:
            logger.log(level, "attention: %s cannot be used here: %s", name, reason)
    return tuple(usable)


def why_not(name: str, *, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """Why a kernel cannot be used here, or None where it can: it is tried on a few tokens."""
    if name not in KERNELS:
        return f"there is no such kernel, only {', '.join(KERNELS)}"
    if name == PLAIN:
        return None
    majors = CAPABILITIES.get(name)
    if device.type != "cuda":
        return f"it needs a CUDA GPU, not {device.type}"
    if dtype not in HALF or (majors and torch.cuda.get_device_capability(device)[0] not in majors):
        return f"it is not made for {dtype} on {torch.cuda.get_device_name(device)}"
    try:
        error = difference(name, device=device, dtype=dtype, head_dim=head_dim)
    except Exception as problem:  # a kernel package fails in as many ways as there are packages
        return f"{type(problem).__name__}: {str(problem).splitlines()[0][:160] if str(problem) else ''}"
    return None if error < TOLERANCE else f"its results are off by {error:.1%}"


def difference(name: str, *, device: torch.device, dtype: torch.dtype, head_dim: int) -> float:
    """How far a kernel is from plain float32 attention on a few random tokens: ‖a − b‖ / ‖b‖."""
    generator = torch.Generator(device).manual_seed(0)
    queries, keys, values = (
        torch.randn(1, tokens, 2, head_dim, device=device, dtype=dtype, generator=generator)
        for tokens in (300, 257, 257)
    )
    exact = _plain(queries.float(), keys.float(), values.float())
    return float((attend(queries, keys, values, name).float() - exact).norm() / exact.norm())


def measure(
    names: Sequence[str], *, device: torch.device, dtype: torch.dtype, heads: int, head_dim: int
) -> dict[str, float]:
    """Seconds a call of each kernel, the best of three."""
    shape = (1, MEASURED_TOKENS, heads, head_dim)
    queries, keys, values = (torch.randn(shape, device=device, dtype=dtype) for _ in range(3))
    seconds = {}
    for name in names:
        attend(queries, keys, values, name)  # compiles what the kernel compiles
        seconds[name] = min(_time(lambda n=name: attend(queries, keys, values, n)) for _ in range(3))
    return seconds


def _time(call: Callable[[], torch.Tensor]) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def _plain(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    attended = F.scaled_dot_product_attention(
        queries.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2)
    )
    return attended.transpose(1, 2)


def _cudnn() -> Kernel:
    def run(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return _plain(queries, keys, values)

    return run


def _package(module: str) -> Kernel:
    """`flash_attn_func` of a package; newer ones return the statistics of the softmax beside the result."""
    function = import_module(module).flash_attn_func

    def run(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        result = function(queries, keys, values)
        return result[0] if isinstance(result, tuple) else result

    return run


KERNELS: dict[str, Callable[[], Kernel]] = {
    "flash4-shared": lambda: import_module(f"{__package__}.hopper").attend_sharing,
    "flash4": lambda: _package("flash_attn.cute"),  # flash-attn-4
    "flash3": lambda: _package("flash_attn_interface"),  # flash-attn-3, built from its own folder
    "flash2": lambda: _package("flash_attn"),
    "cudnn": _cudnn,
    PLAIN: lambda: _plain,
}
"""How each kernel is got, the most promising first: by what clips were measured to take."""

CAPABILITIES = {"flash4-shared": (HOPPER,), "flash4": (HOPPER, BLACKWELL), "flash3": (HOPPER,)}
"""Major compute capabilities a kernel is written for; those not named decide for themselves."""


@cache
def _load(name: str) -> Kernel:
    return KERNELS[name]()
