"""What is where, and what is used: chosen from the card, the setup and the request. Pure; knows no network.

What is where, stage by stage ("host" is pinned memory of the machine, "through" means block by block):

| stage                | transformer, resident | transformer, streamed | text, picture encoder | VAE  |
|----------------------|-----------------------|-----------------------|-----------------------|------|
| setup, between two   | card                  | host                  | host                  | card |
| people … retarget    | card                  | host                  | host                  | card |
| encode_text, _image  | card                  | host                  | host, through card    | card |
| clip.condition       | card                  | host                  | host                  | card |
| clip.denoise         | card                  | host, through card    | host                  | card |
| clip.decode, write   | card                  | host                  | host                  | card |

Where the host has no room for the encoders and the card has, they stay on the card. The networks of
preprocessing come and go by themselves, before the first clip. The numbers of memory are those of the 14B
engine in bf16, measured (benchmarks/results) and rounded up.
"""

from dataclasses import dataclass, replace
from typing import Literal

from ..runtime.errors import OutOfMemory

Residency = Literal["resident", "streamed"]

GB = 1e9
TRANSFORMER_BYTES = 34.9 * GB
STREAMED_TRANSFORMER_BYTES = 2.6 * GB  # the face adapters, and what lies around the blocks
SLOT_BYTES = 1.6 * GB  # two of forty blocks, while a step is under way
TEXT_ENCODER_BYTES = 11.4 * GB
IMAGE_ENCODER_BYTES = 1.3 * GB
STREAMED_ENCODER_BYTES = 0.1 * GB  # between requests; their slots are gone before the first clip
VAE_BYTES = 0.3 * GB
STEP_BYTES_A_TOKEN = 89e3  # activations of one pass, and the clip's prepared constants
FACES_BYTES = 0.35 * GB  # of these, what the face adapters keep, whatever the size
VAE_BYTES_A_PIXEL = 9.7e3  # the decoder at work and its memory of earlier chunks, a pixel of the frame
RESERVE_BYTES = 0.3 * GB  # fragmentation
HOST_RESERVE_BYTES = 8.0 * GB  # frames, the program, the system

TOKEN_PIXELS = 16  # a side: 8 of the VAE, 2 of the patch
TIME_STRIDE = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A GPU and the machine around it."""

    name: str
    memory_bytes: float
    host_bytes: float  # memory of the machine that may be pinned


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """The largest clip that has to fit, and what it is made with."""

    width: int
    height: int
    frames: int = 77
    lora_bytes: float = 0.0  # branches that hang on the network; they stay on the card
    passes: int = 1  # a step: 2 with guidance

    @property
    def tokens(self) -> int:
        """What the transformer sees of it, the reference picture included."""
        latent_frames = (self.frames - 1) // TIME_STRIDE + 2
        return latent_frames * (self.width // TOKEN_PIXELS) * (self.height // TOKEN_PIXELS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a setup does to its networks, in the order of `apply`."""

    attention: str  # a kernel's name, or "auto": measured
    compiled: bool
    transformer: Residency
    encoders: Residency  # of text and picture
    peak_bytes: float  # expected on the GPU, over the whole request


def choose_plan(
    card: Card, load: Load, *, attention: str = "auto", compiled: bool = True, prefer_small: bool = False
) -> Plan:
    """The plan that leaves most on the card; with `prefer_small` the one that needs least of it.

    Raises OutOfMemory, saying what would fit, where no plan does.
    """
    # Streaming the encoders costs 0.2 s a request; it is the transformer that is worth the card's memory.
    choices: list[tuple[Residency, Residency]] = [
        ("resident", "streamed"),
        ("resident", "resident"),
        ("streamed", "streamed"),
    ]
    if prefer_small:
        choices = choices[-1:]
    for transformer, encoders in choices:
        peak = peak_bytes(load, transformer=transformer, encoders=encoders)
        pinned = host_bytes(transformer=transformer, encoders=encoders)
        if peak <= card.memory_bytes and pinned + HOST_RESERVE_BYTES <= card.host_bytes:
            return Plan(
                attention=attention,
                compiled=compiled,
                transformer=transformer,
                encoders=encoders,
                peak_bytes=peak,
            )
    raise OutOfMemory(what_would_fit(card, load))


def with_room(plan: Plan, card: Card, load: Load) -> Plan:
    """The plan of a request: the setup's, or for a clip too large for it, with the transformer streamed.

    Raises OutOfMemory, saying what would fit, where that does not help either.
    """

    def fits(transformer: Residency) -> bool:
        return peak_bytes(load, transformer=transformer, encoders=plan.encoders) <= card.memory_bytes

    if fits(plan.transformer):
        return plan
    pinned = host_bytes(transformer="streamed", encoders=plan.encoders)
    if fits("streamed") and pinned + HOST_RESERVE_BYTES <= card.host_bytes:
        return replace(plan, transformer="streamed")
    raise OutOfMemory(what_would_fit(card, load))


def peak_bytes(load: Load, *, transformer: Residency, encoders: Residency) -> float:
    """Expected peak on the GPU. The stages follow each other: the largest counts."""
    weights = VAE_BYTES + RESERVE_BYTES + load.lora_bytes
    weights += TRANSFORMER_BYTES if transformer == "resident" else STREAMED_TRANSFORMER_BYTES
    weights += TEXT_ENCODER_BYTES + IMAGE_ENCODER_BYTES if encoders == "resident" else STREAMED_ENCODER_BYTES
    step = STEP_BYTES_A_TOKEN * load.tokens + FACES_BYTES * load.passes
    step += SLOT_BYTES if transformer == "streamed" else 0.0
    return weights + max(step, VAE_BYTES_A_PIXEL * load.width * load.height)


def host_bytes(*, transformer: Residency, encoders: Residency) -> float:
    """Pinned host memory."""
    blocks = TRANSFORMER_BYTES - STREAMED_TRANSFORMER_BYTES if transformer == "streamed" else 0.0
    return blocks + (TEXT_ENCODER_BYTES + IMAGE_ENCODER_BYTES if encoders == "streamed" else 0.0)


def what_would_fit(card: Card, load: Load) -> str:
    """One sentence for who asked for more than there is: why, and what to change."""
    least = peak_bytes(load, transformer="streamed", encoders="streamed")
    asked = f"a clip of {load.frames} frames at {load.width}×{load.height}"
    if least <= card.memory_bytes:
        host = host_bytes(transformer="streamed", encoders="streamed") + HOST_RESERVE_BYTES
        return (
            f"{asked} fits {card.name} only with weights kept in host memory, which needs {host / GB:.0f} GB "
            f"of it and {card.host_bytes / GB:.0f} GB are there: use a machine with more memory"
        )
    needs = (
        f"{asked} needs {least / GB:.0f} GB of GPU memory and {card.name} has {card.memory_bytes / GB:.0f} GB"
    )
    fitting = _largest_that_fits(card, load)
    rest = f": {fitting} would fit" if fitting else ", too little for any size: use a GPU with 8 GB or more"
    return needs + rest


def after_running_out(card: Card, load: Load) -> str:
    """One sentence for a clip that should have fitted: something else holds memory, or the plan was wrong."""
    fitting = _largest_that_fits(card, load)
    advice = f"{fitting} needs less and would fit" if fitting else "free it of other programs"
    return (
        f"the memory of {card.name} ran out in a clip of {load.frames} frames at {load.width}×{load.height}: "
        f"{advice}"
    )


def _largest_that_fits(card: Card, load: Load) -> str | None:
    """The same clip shorter, or where that is not enough smaller, in words; None where nothing fits."""
    shorter = [replace(load, frames=frames) for frames in (77, 49, 33) if frames < load.frames]
    sizes = ((1280, 720), (960, 544), (832, 480), (640, 368), (448, 256))
    smaller = [replace(load, width=width, height=height) for width, height in sizes]
    for one in (*shorter, *smaller):
        if one.tokens < load.tokens and (
            peak_bytes(one, transformer="streamed", encoders="streamed") <= card.memory_bytes
        ):
            size = f"{one.width}×{one.height}"
            return size if one.frames == load.frames else f"clip_len {one.frames} at {size}"
    return None
