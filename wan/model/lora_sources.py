"""Where a user's LoRA comes from: a file here, or one on the model hub. Words in, a path out."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..runtime.errors import InvalidInput, ModelFilesBroken
from ..runtime.weights import LATEST, Weights, fetch

SUFFIXES: Final = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
ON_THE_HUB: Final = re.compile(
    r"(?:https://huggingface\.co/)?(?P<repository>[\w.-]+/[\w.-]+)"
    r"(?:/(?:resolve|blob)/(?P<revision>[^/?]+))?/(?P<file>[^?]+?)(?:\?.*)?"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraSource:
    """A LoRA that a setup asks for."""

    source: str  # a path, owner/repository/file, or that file's address on the hub
    strength: float = 1.0


def fetch_lora(
    source: str, *, cache_dir: Path | None = None, endpoint: str | None = None, token: str | None = None
) -> Path:
    """The file that `source` names; fetched, and kept in the hub's cache, where it is on the hub.

    `cache_dir`, `endpoint` and `token` are those of `fetch`. Raises InvalidInput where they name none,
    ModelFilesBroken where it is not there.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return path
    match = None if path.is_absolute() else ON_THE_HUB.fullmatch(source)
    if match is None or not source.partition("?")[0].endswith(SUFFIXES):
        if path.suffix in SUFFIXES and match is None and "://" not in source:
            raise ModelFilesBroken(f"there is no LoRA file {source}")
        raise InvalidInput(
            f"loras: {source} names no LoRA file; give a path, or owner/repository/file.safetensors"
        )
    weights = Weights(
        name=f"LoRA {match['file']}",
        repository=match["repository"],
        patterns=(match["file"],),
        size=0,
        licence="its publisher's",
        use="setup option loras",
        revision=match["revision"] or LATEST,
    )
    (folder,) = fetch([weights], cache_dir=cache_dir, endpoint=endpoint, token=token).values()
    return folder / match["file"]
