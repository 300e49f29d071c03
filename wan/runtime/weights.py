"""Model files: one registry of what is used and where it is published, one fetcher that brings it to this
machine.

Names of registry entries in, folders out. Knows no network and no format: what is in the files is the
loader's matter.

The files lie in huggingface_hub's own cache, in its own layout, so other programs share them. The library
resolves revisions, lists, authenticates and links; the bytes are received here, because huggingface_hub 2.4
deletes what it has of a file when a download breaks off (file_download.py, `_download_to_tmp_and_move`),
cannot be cancelled within a file, and checks no hash. Here a broken download goes on where it stopped, in
this process or in a later one; a file gets its name only after its size and hash were found to be those the
hub lists.
"""

import errno
import hashlib
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx2
from huggingface_hub import (
    HfApi,
    RepoFile,
    constants,
    get_cached_repo_tree,
    get_token,
    hf_hub_url,
    snapshot_download,
)
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RevisionResolutionError,
)
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import WeakFileLock, build_hf_headers, get_session, hf_raise_for_status
from tqdm.auto import tqdm

from .errors import DiskFull, ModelFilesBroken

logger = logging.getLogger(__name__)

TOKEN_VARIABLE = "HF_TOKEN"
WORKERS = 4  # files at a time: one connection to the hub's CDN does not fill a data centre's line
TICK_S = 0.1  # how often progress is told and cancellation noticed
ATTEMPTS = 6  # in a row without a single new byte; with pauses of 1, 2, 4, 8, 16 s
LONGEST_PAUSE_S = 30.0
TIMEOUT = httpx2.Timeout(
    10.0
)  # to connect, and between two packets; bounds how late a cancellation is noticed
REPEATED_STATUS = (408, 429, 500, 502, 503, 504)  # the hub is busy, not of another opinion
READ_BYTES = 1 << 20

ANIMATE = "Wan-AI/Wan2.2-Animate-14B"
ANIMATE_DIFFUSERS = "Wan-AI/Wan2.2-Animate-14B-Diffusers"
# No commit is pinned: the publishers' hashes cannot be looked up where this is written, and a wrong one fails
# for everybody. A fetch that needs the network resolves the branch once, takes all files of a repository from
# that commit, and logs it; later starts stay with it as long as it is complete here.
LATEST = "main"


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """One row of the table of models: what is fetched together."""

    name: str
    repository: str
    patterns: tuple[str, ...]  # fnmatch, against paths in the repository; each has to match a file
    size: int  # bytes, about: for the README and for guesses; the hub's own listing counts
    licence: str
    use: str  # when it is needed
    revision: str = LATEST
    gated: bool = False  # its terms have to be accepted by a logged-in user


REGISTRY: Mapping[str, Weights] = MappingProxyType(
    {
        weights.name: weights
        for weights in (
            Weights(
                name="transformer",
                repository=ANIMATE,  # its Diffusers copy is float32, twice the bytes
                patterns=(
                    "config.json",
                    "diffusion_pytorch_model.safetensors.index.json",
                    "diffusion_pytorch_model-*.safetensors",
                ),
                size=34_500_000_000,
                licence="Apache-2.0",
                use="always",
            ),
            Weights(
                name="encoders",
                repository=ANIMATE_DIFFUSERS,
                patterns=("text_encoder/*", "tokenizer/*", "image_encoder/*", "image_processor/*", "vae/*"),
                size=13_200_000_000,
                licence="Apache-2.0",
                use="always: text encoder umT5-XXL, its tokenizer, image encoder CLIP ViT-H, VAE",
            ),
            Weights(
                name="detector",
                repository=ANIMATE,
                patterns=("process_checkpoint/det/yolov10m.onnx",),
                size=62_000_000,
                licence="AGPL-3.0",
                use="full preprocessing: YOLOv10m finds people",
            ),
            Weights(
                name="pose",
                repository=ANIMATE,
                patterns=("process_checkpoint/pose2d/vitpose_h_wholebody.onnx/*",),
                size=2_550_000_000,
                licence="Apache-2.0",
                use="full preprocessing: ViTPose-H estimates 133 points",
            ),
            Weights(
                name="tracker",
                repository="facebook/sam2-hiera-large",
                patterns=("*.json", "model.safetensors"),
                size=900_000_000,
                licence="Apache-2.0",
                use="full preprocessing in replacement: SAM2 tracks the mask",
            ),
            Weights(
                name="relighting",
                repository=ANIMATE,
                patterns=("relighting_lora.ckpt",),
                size=1_440_000_000,
                licence="Apache-2.0",
                use="replacement, unless relight is false",
            ),
            Weights(
                name="turbo",
                repository="lightx2v/Wan2.1-Distill-Loras",
                patterns=("wan2.1_i2v_lora_rank64_lightx2v_4step.safetensors",),
                size=739_000_000,
                licence="none stated there; Apache-2.0 in its sibling Wan2.2-Distill-Loras",
                use="turbo",
            ),
            Weights(
                name="flux",
                repository="black-forest-labs/FLUX.1-Kontext-dev",
                # not the two single-file copies of the same weights beside the folders
                patterns=(
                    "model_index.json",
                    "scheduler/*",
                    "text_encoder/*",
                    "text_encoder_2/*",
                    "tokenizer/*",
                    "tokenizer_2/*",
                    "transformer/*",
                    "vae/*",
                ),
                size=33_700_000_000,
                licence="FLUX.1 [dev] Non-Commercial License",
                gated=True,
                use="use_flux",
            ),
        )
    }
)


def needed(
    *,
    full_preprocessing: bool,
    replacement: bool = False,
    relight: bool = False,
    turbo: bool = False,
    flux: bool = False,
) -> tuple[Weights, ...]:
    """The entries that the 14B model and these options use, in the registry's order."""
    used = {
        "transformer": True,
        "encoders": True,
        "detector": full_preprocessing,
        "pose": full_preprocessing,
        "tracker": full_preprocessing and replacement,
        "relighting": relight,
        "turbo": turbo,
        "flux": flux,
    }
    return tuple(weights for name, weights in REGISTRY.items() if used[name])


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchProgress:
    """Where a fetch stands, over all its files."""

    done: int  # bytes on this machine, checked or about to be
    total: int  # bytes that were missing when it began

    def __str__(self) -> str:
        return f"{self.done / 1e9:.1f} of {self.total / 1e9:.1f} GB"


OnProgress = Callable[[FetchProgress], None]


def fetch(
    wanted: Iterable[Weights],
    *,
    cache_dir: Path | None = None,
    endpoint: str | None = None,
    token: str | None = None,
    on_progress: OnProgress = lambda _: None,
    pause_s: float = 1.0,
) -> dict[str, Path]:
    """Bring what is missing of `wanted` to this machine; return the folder of each, by name.

    A folder holds the files of one commit under their paths in the repository. With everything in place
    nothing is transferred, and without a network nothing is needed. None stands for the library's own
    setting: HF_HOME, HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE.

    `on_progress` is called ten times a second while bytes arrive; what it raises (Cancelled) ends the fetch
    within a packet, 10 s where the line hangs. What was received so far is kept for the next attempt, under a
    name that nothing loads. `pause_s` is the first pause after a broken connection.

    Raises DiskFull before the first byte where the room does not suffice, and ModelFilesBroken with one
    sentence where files cannot be had: no network, no access, or not the files that the hub lists.
    """
    hub = _Hub(cache_dir=cache_dir, endpoint=endpoint, token=token)
    together: dict[tuple[str, str], list[Weights]] = {}
    for weights in wanted:
        together.setdefault((weights.repository, weights.revision), []).append(weights)
    folders: dict[str, Path] = {}
    incomplete: list[tuple[Weights, list[_File]]] = []
    for (repository, revision), group in together.items():
        commit = hub.cached_commit(repository, revision)
        if commit is None or not all(hub.is_complete(weights, commit) for weights in group):
            with _explained(group[0], hub):
                commit = hub.newest_commit(repository, revision)
            for weights in group:
                with _explained(weights, hub):
                    incomplete.append((weights, hub.files(weights, commit)))
        folders |= {weights.name: hub.snapshot(repository, commit) for weights in group}
    missing = {
        hub.blob(file): (weights, file)
        for weights, files in incomplete
        for file in files
        if not hub.has(file)
    }
    if missing:
        hub.check_room(file for _, file in missing.values())
        _download(hub, list(missing.values()), on_progress=on_progress, pause_s=pause_s)
    for weights, files in incomplete:
        with _explained(weights, hub):
            hub.link(weights, files)
    return folders


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    """One file of one commit, as the hub lists it."""

    repository: str
    commit: str
    path: str
    size: int  # bytes
    blob: str  # its name in the cache, which is its hash: sha256 of a large file, git's sha1 of a small one

    def new_hash(self) -> Any:  # noqa: ANN401  hashlib's type is private
        if len(self.blob) == hashlib.sha256().digest_size * 2:
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)


class _Hub:
    """The hub, one cache and one token."""

    def __init__(self, *, cache_dir: Path | None, endpoint: str | None, token: str | None) -> None:
        self.cache = Path(cache_dir or constants.HF_HUB_CACHE).expanduser().resolve()
        self.endpoint = endpoint
        self.token = token
        self._api = HfApi(endpoint=endpoint, token=token)

    def cached_commit(self, repository: str, revision: str) -> str | None:
        """The commit this cache last knew the revision as. Asks no network."""
        try:
            return self._api.resolve_revision(
                repository, revision=revision, cache_dir=self.cache, local_files_only=True
            ).resolved
        except RevisionResolutionError:
            return None

    def newest_commit(self, repository: str, revision: str) -> str:
        """The commit the hub knows the revision as, or where it cannot be reached, this cache."""
        commit = self._api.resolve_revision(repository, revision=revision, cache_dir=self.cache).resolved
        logger.info("%s: revision %s is commit %s", repository, revision, commit)
        return commit

    def folder(self, repository: str) -> Path:
        return self.cache / repo_folder_name(repo_id=repository, repo_type="model")

    def snapshot(self, repository: str, commit: str) -> Path:
        return self.folder(repository) / "snapshots" / commit

    def blob(self, file: _File) -> Path:
        return self.folder(file.repository) / "blobs" / file.blob

    def partial(self, file: _File) -> Path:
        return self.blob(file).with_name(f"{file.blob}.partial")

    def lock(self, file: _File) -> Path:
        """The library's own lock of this file, so that two programs do not write it at once."""
        return self.cache / ".locks" / self.folder(file.repository).name / f"{file.blob}.lock"

    def is_complete(self, weights: Weights, commit: str) -> bool:
        """Whether all files are in place, judged without the network."""
        listed = self._known(weights.repository, commit) or []
        snapshot = self.snapshot(weights.repository, commit)
        return all(
            files and all(_size(snapshot / file.path) == file.size for file in files)
            for files in _matches(weights, listed).values()
        )

    def _known(self, repository: str, commit: str) -> list[RepoFile] | None:
        """The commit's listing, where an earlier fetch noted it."""
        try:
            return get_cached_repo_tree(repository, revision=commit, cache_dir=self.cache)
        except CachedRepoTreeNotFoundError:
            return None

    def files(self, weights: Weights, commit: str) -> list[_File]:
        """What the hub lists for this entry; nothing where it is out of reach but others filled the cache."""
        if weights.gated and (self.token or get_token()) is None:
            raise ModelFilesBroken(_closed(weights))
        try:
            tree = self._api.list_repo_tree(weights.repository, recursive=True, revision=commit)
            listed = [entry for entry in tree if isinstance(entry, RepoFile)]
        except (httpx2.TransportError, OfflineModeIsEnabled):
            if self._known(weights.repository, commit) is None and self._has_some(weights, commit):
                return []
            raise
        matches = _matches(weights, listed)
        lost = [pattern for pattern, files in matches.items() if not files]
        if lost:
            raise ModelFilesBroken(
                f"{weights.repository} at revision {weights.revision} has no file {lost[0]}: it was moved or "
                "renamed there; update this program"
            )
        return [
            _File(
                repository=weights.repository,
                commit=commit,
                path=file.path,
                size=file.size,
                blob=file.lfs.sha256 if file.lfs else file.blob_id,
            )
            for file in {file.path: file for files in matches.values() for file in files}.values()
        ]

    def _has_some(self, weights: Weights, commit: str) -> bool:
        """Whether each pattern finds a file: all that can be said without a listing; the loader checks."""
        snapshot = self.snapshot(weights.repository, commit)
        return all(any(path.is_file() for path in snapshot.glob(pattern)) for pattern in weights.patterns)

    def has(self, file: _File) -> bool:
        """Whether the file is here in full length. One of another length is removed: it would be used."""
        pointer = self.snapshot(file.repository, file.commit) / file.path
        for place in (pointer, self.blob(file)):
            size = _size(place)
            if size is not None and size != file.size:
                logger.warning("%s has %d bytes instead of %d and is fetched anew", place, size, file.size)
                place.unlink()
        return _size(pointer) == file.size or _size(self.blob(file)) == file.size

    def check_room(self, files: Iterable[_File]) -> None:
        """Raise DiskFull where the disk does not hold what is to come."""
        needed = sum(file.size - min(_size(self.partial(file)) or 0, file.size) for file in files)
        existing = next(folder for folder in (self.cache, *self.cache.parents) if folder.exists())
        free = shutil.disk_usage(existing).free
        if needed > free:
            raise DiskFull(
                f"the model files need {needed / 1e9:.1f} GB more and the disk of {self.cache} has "
                f"{free / 1e9:.1f} GB free: make room, or set HF_HOME to a folder on a larger disk"
            )

    def link(self, weights: Weights, files: list[_File]) -> None:
        """Give the blobs their names in the snapshot, and let the library note the listing for later."""
        if not files:
            return
        snapshot_download(
            weights.repository,
            revision=files[0].commit,
            allow_patterns=[file.path for file in files],
            cache_dir=self.cache,
            endpoint=self.endpoint,
            token=self.token,
            max_workers=WORKERS,
            tqdm_class=_NoBar,
        )
        wrong = [file.path for file in files if not self.has(file)]
        if wrong:
            raise ModelFilesBroken(
                f"{', '.join(wrong[:3])} of {weights.repository} changed while being fetched: start again"
            )


class _NoBar(tqdm):
    """The library draws bars of its own; ours is the caller's."""

    def __init__(self, *args: Any, **settings: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **{**settings, "disable": True})


def _matches(weights: Weights, listed: Iterable[RepoFile]) -> dict[str, list[RepoFile]]:
    """The entry's files among those listed, by the pattern that asks for them."""
    files = list(listed)
    return {pattern: [file for file in files if fnmatch(file.path, pattern)] for pattern in weights.patterns}


def _size(path: Path) -> int | None:
    """Bytes of a file, or of what a link leads to; None where there is none."""
    return path.stat().st_size if path.is_file() else None


def _closed(weights: Weights) -> str:
    return (
        f"{weights.repository} is gated (licence: {weights.licence}): accept its terms at "
        f"https://huggingface.co/{weights.repository} and set {TOKEN_VARIABLE} to a token of that account"
    )


@contextmanager
def _explained(weights: Weights, hub: _Hub) -> Iterator[None]:
    """Turn what the library raises into one sentence about these files."""
    what = f"the model files '{weights.name}' of {weights.repository}"
    try:
        yield
    except (
        httpx2.TransportError,
        OfflineModeIsEnabled,
        RevisionResolutionError,
        LocalEntryNotFoundError,
    ) as error:
        cut = constants.is_offline_mode()
        reason = "HF_HUB_OFFLINE is set" if cut else "the hub cannot be reached"
        mend = "unset it" if cut else "check the network"
        raise ModelFilesBroken(
            f"{what} are not complete in {hub.cache} and {reason}: {mend}, or copy a complete cache there"
        ) from error
    except HfHubHTTPError as error:
        raise ModelFilesBroken(_refused(weights, error)) from error


def _refused(weights: Weights, error: HfHubHTTPError) -> str:
    status = error.response.status_code
    if weights.gated and status in (401, 403):
        return _closed(weights)
    advice = (
        "try again later" if status in REPEATED_STATUS else f"check {TOKEN_VARIABLE} and the network's proxy"
    )
    return f"the hub answers {status} for {weights.repository}, where the model files are published: {advice}"


class _Stopped(Exception):
    """The fetch is over for another reason; this file is left as it is."""


class _Interrupted(Exception):
    """The body ended early without the connection reporting a fault."""


class _Tally:
    """Bytes so far, counted by many threads."""

    def __init__(self, total: int) -> None:
        self._lock = threading.Lock()
        self._done = 0
        self._total = total

    def add(self, count: int) -> None:
        with self._lock:
            self._done += count

    def progress(self) -> FetchProgress:
        with self._lock:
            return FetchProgress(done=self._done, total=self._total)


def _download(
    hub: _Hub, missing: list[tuple[Weights, _File]], *, on_progress: OnProgress, pause_s: float
) -> None:
    """Receive all files, a few at a time. Whatever ends it early ends all of it."""
    stop = threading.Event()
    tally = _Tally(sum(file.size for _, file in missing))
    pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="fetch")
    try:
        pending = {
            pool.submit(_Transfer(hub, weights, file, tally=tally, stop=stop, pause_s=pause_s).run)
            for weights, file in missing
        }
        while pending:
            finished, pending = wait(pending, timeout=TICK_S)
            for transfer in finished:
                transfer.result()
            on_progress(tally.progress())
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


class _Transfer:
    """One file on its way. Everything in here runs in one thread of the pool."""

    def __init__(
        self,
        hub: _Hub,
        weights: Weights,
        file: _File,
        *,
        tally: _Tally,
        stop: threading.Event,
        pause_s: float,
    ) -> None:
        self._hub, self._weights, self._file = hub, weights, file
        self._tally, self._stop, self._pause_s = tally, stop, pause_s
        self._hash = file.new_hash()
        self._size = 0

    def run(self) -> None:
        """Receive, check, and only then name the file."""
        target, partial = self._hub.blob(self._file), self._hub.partial(self._file)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with self._alone():
                if self._hub.has(self._file):  # another process was faster
                    self._tally.add(self._file.size)
                    return
                self._receive_checked(partial)
                partial.replace(target)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskFull(
                    f"the disk of {self._hub.cache} is full at {self._file.path} "
                    f"({self._file.size / 1e9:.1f} GB): make room, or set HF_HOME to one with more"
                ) from error
            raise ModelFilesBroken(
                f"{self._hub.cache} cannot be written to ({error.strerror}): set HF_HOME to your own folder"
            ) from error

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the file's lock; waiting for it can be cancelled."""
        path = self._hub.lock(self._file)
        path.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as held:
            while True:
                self._check()
                try:
                    held.enter_context(WeakFileLock(path, timeout=TICK_S))
                    break
                except TimeoutError:
                    continue
            yield

    def _receive_checked(self, partial: Path) -> None:
        """Leave the whole, verified file at `partial`."""
        with partial.open("ab") as out:
            self._resume(partial, out)
            for _ in range(2):  # a part left by a crash may hold wrong bytes: those are worth one fresh start
                self._receive(out)
                if self._hash.hexdigest() == self._file.blob:
                    out.flush()
                    os.fsync(out.fileno())  # a name must not outlive its content in a power cut
                    return
                logger.warning("%s: wrong hash, fetched anew", self._file.path)
                self._restart(out)
        partial.unlink()
        raise ModelFilesBroken(
            f"{self._file.path} arrives with other content than {self._file.repository} lists (hash "
            f"{self._file.blob[:12]}…): a proxy or mirror changes it; use another network or endpoint"
        )

    def _resume(self, partial: Path, out: Any) -> None:  # noqa: ANN401  an open binary file
        """Take over what an earlier attempt left."""
        if (_size(partial) or 0) > self._file.size:
            out.truncate(0)
        with partial.open("rb") as kept:
            while block := kept.read(READ_BYTES):
                self._check()
                self._count(block)
        if self._size:
            logger.info(
                "%s: goes on at %.1f of %.1f GB", self._file.path, self._size / 1e9, self._file.size / 1e9
            )

    def _receive(self, out: Any) -> None:  # noqa: ANN401
        """Connect as often as it takes, as long as each time brings something or the attempts last."""
        fruitless = 0
        while self._size < self._file.size:
            before = self._size
            try:
                self._receive_once(out)
            except (httpx2.TransportError, _Interrupted, HfHubHTTPError) as error:
                fruitless = 0 if self._size > before else fruitless + 1
                self._consider(error, fruitless)
                self._stop.wait(min(self._pause_s * 2 ** max(fruitless - 1, 0), LONGEST_PAUSE_S))
                self._check()

    def _consider(self, error: httpx2.TransportError | _Interrupted | HfHubHTTPError, fruitless: int) -> None:
        """Raise where another attempt makes no sense."""
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        if isinstance(error, HfHubHTTPError):
            if error.response.status_code not in REPEATED_STATUS:
                raise ModelFilesBroken(_refused(self._weights, error)) from error
            reason = f"the hub answers {error.response.status_code}"
        if fruitless >= ATTEMPTS:
            raise ModelFilesBroken(
                f"{self._file.path} of {self._file.repository} breaks off at {self._size / 1e9:.2f} of "
                f"{self._file.size / 1e9:.2f} GB ({reason}): check the network and start again, it goes on "
                "from there"
            ) from error
        logger.warning("%s broke off at %d bytes (%s); going on", self._file.path, self._size, reason)

    def _receive_once(self, out: Any) -> None:  # noqa: ANN401
        """One connection, from where we are to the end."""
        file = self._file
        url = hf_hub_url(file.repository, file.path, revision=file.commit, endpoint=self._hub.endpoint)
        # A compressed body could not be gone on with; the session sends no token beyond the hub's own host.
        headers = {**build_hf_headers(token=self._hub.token), "Accept-Encoding": "identity"}
        if self._size:
            headers["Range"] = f"bytes={self._size}-"
        with get_session().stream(
            "GET", url, headers=headers, timeout=TIMEOUT, follow_redirects=True
        ) as response:
            hf_raise_for_status(response)
            if self._size and response.status_code != httpx2.codes.PARTIAL_CONTENT:
                self._restart(out)  # a server without ranges sends it all again
            for block in response.iter_bytes():
                self._check()
                if self._size + len(block) > file.size:
                    raise _Interrupted(f"more than the listed {file.size} bytes arrive")
                out.write(block)
                self._count(block)
        if self._size < file.size:
            raise _Interrupted("the connection was closed")

    def _restart(self, out: Any) -> None:  # noqa: ANN401
        out.truncate(0)
        self._tally.add(-self._size)
        self._hash, self._size = self._file.new_hash(), 0

    def _count(self, block: bytes) -> None:
        self._hash.update(block)
        self._size += len(block)
        self._tally.add(len(block))

    def _check(self) -> None:
        if self._stop.is_set():
            raise _Stopped
