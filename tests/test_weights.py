"""Model files arrive whole or not at all, from a hub on 127.0.0.1 that misbehaves on demand."""

import random
import threading
import time
from pathlib import Path

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import close_session
from wan_animate.wan.runtime.errors import Cancelled, DiskFull, ModelFilesBroken
from wan_animate.wan.runtime.weights import REGISTRY, FetchProgress, Weights, fetch, needed

from .hub_server import HubServer, Repository, serving

REPOSITORY = "maker/model"
FILES = {
    "config.json": b'{"dim": 24}',
    "big-1.bin": random.Random(1).randbytes(300_000),
    "big-2.bin": random.Random(2).randbytes(200_001),
    "sub/words.txt": random.Random(3).randbytes(20_000),
    "unwanted.bin": random.Random(4).randbytes(50_000),
}
WANTED = ("config.json", "big-*.bin", "sub/*")
EXPECTED = {path: content for path, content in FILES.items() if path != "unwanted.bin"}


def weights(**changes) -> Weights:
    settings = {
        "name": "model", "repository": REPOSITORY, "patterns": WANTED,
        "size": 520_000, "licence": "MIT", "use": "tests",
    }  # fmt: skip
    return Weights(**(settings | changes))


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """Nothing of this machine's account, and nobody else asked."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    yield
    close_session()


@pytest.fixture
def hub():
    with serving({REPOSITORY: Repository(files=dict(FILES))}) as server:
        yield server


def get(hub: HubServer, cache: Path, **settings) -> Path:
    wanted = settings.pop("wanted", weights())
    return fetch([wanted], cache_dir=cache, endpoint=hub.endpoint, pause_s=0.001, **settings)[wanted.name]


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_registry_names_what_each_choice_of_options_needs():
    def names(**options: bool) -> set[str]:
        return {entry.name for entry in needed(**options)}

    always = {"transformer", "encoders"}
    assert names(full_preprocessing=False) == always
    assert names(full_preprocessing=True) == always | {"detector", "pose"}
    assert names(full_preprocessing=True, replacement=True, relight=True) == always | {
        "detector", "pose", "tracker", "relighting",
    }  # fmt: skip
    assert names(full_preprocessing=False, replacement=True) == always
    assert names(full_preprocessing=False, turbo=True, flux=True) == always | {"turbo", "flux"}
    assert names(full_preprocessing=True, replacement=True, relight=True, turbo=True, flux=True) == set(
        REGISTRY
    )


def test_every_entry_says_where_from_how_large_and_under_which_licence():
    for name, entry in REGISTRY.items():
        assert name == entry.name
        assert entry.repository.count("/") == 1
        assert entry.patterns
        assert entry.size > 1e6
        assert entry.licence
        assert entry.use
    assert [entry.name for entry in REGISTRY.values() if entry.gated] == ["flux"]
    animation = sum(entry.size for entry in needed(full_preprocessing=True))
    assert 45e9 < animation < 60e9


def test_only_files_that_match_are_fetched_and_bear_their_names(hub, tmp_path):
    told: list[FetchProgress] = []
    folder = get(hub, tmp_path, on_progress=told.append)
    assert content(folder) == EXPECTED
    assert hub.bodies("unwanted.bin") == 0
    assert told[-1].done == told[-1].total == sum(map(len, EXPECTED.values()))
    assert [a.done for a in told] == sorted(a.done for a in told)


def test_progress_is_told_in_gigabytes():
    assert str(FetchProgress(done=3_100_000_000, total=55_000_000_000)) == "3.1 of 55.0 GB"


def test_a_second_fetch_asks_the_network_nothing(hub, tmp_path):
    first = get(hub, tmp_path)
    hub.requests.clear()
    assert get(hub, tmp_path) == first
    assert hub.requests == []


def test_entries_of_one_repository_come_from_one_commit(hub, tmp_path):
    """One that has to be fetched takes its neighbours along to the newer commit; no byte moves twice."""
    one, two = weights(name="one", patterns=("big-1.bin",)), weights(name="two", patterns=("big-2.bin",))
    get(hub, tmp_path, wanted=one)
    hub.repositories[REPOSITORY].commit = "d" * 40
    assert get(hub, tmp_path, wanted=one).name == "c" * 40
    folders = fetch([one, two], cache_dir=tmp_path, endpoint=hub.endpoint)
    assert {folder.name for folder in folders.values()} == {"d" * 40}
    assert content(folders["two"]) == {path: FILES[path] for path in ("big-1.bin", "big-2.bin")}
    assert hub.bodies("big-1.bin") == 2  # the redirect and the body, once


def test_fifty_breaks_leave_the_right_files(hub, tmp_path):
    draw = random.Random(50)
    for path in ("big-1.bin", "big-2.bin"):
        hub.faults.cuts[path] = sorted(draw.sample(range(len(FILES[path])), 25))
    stop, seen = threading.Event(), []

    def watch() -> None:
        """Whatever bears a loadable name at any moment has its whole content."""
        while not stop.is_set():
            for path in (tmp_path / "models--maker--model").glob("snapshots/*/**/*"):
                if path.is_file():
                    name = str(path).split("c" * 40 + "/")[1]
                    seen.append(path.read_bytes() == FILES[name])
            for blob in (tmp_path / "models--maker--model" / "blobs").glob("*"):
                if "partial" not in blob.name:
                    seen.append(blob.read_bytes() in FILES.values())
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        folder = get(hub, tmp_path)
    finally:
        stop.set()
        watcher.join()
    assert content(folder) == EXPECTED
    assert seen
    assert all(seen)
    assert hub.faults.cuts == {"big-1.bin": [], "big-2.bin": []}
    assert not list(tmp_path.rglob("*.partial"))


def test_a_later_process_goes_on_where_an_earlier_one_stopped(hub, tmp_path):
    one = weights(patterns=("big-1.bin",))

    def give_up(progress: FetchProgress) -> None:
        if progress.done > 50_000:
            raise Cancelled

    hub.faults.pause_s = 0.01
    with pytest.raises(Cancelled):
        get(hub, tmp_path, wanted=one, on_progress=give_up)
    (partial,) = tmp_path.rglob("*.partial")
    kept = partial.stat().st_size
    assert 50_000 < kept < len(FILES["big-1.bin"])
    hub.requests.clear()
    hub.faults.pause_s = 0
    assert content(get(hub, tmp_path, wanted=one)) == {"big-1.bin": FILES["big-1.bin"]}
    assert [headers["range"] for _, path, headers in hub.requests if "cdn" in path] == [f"bytes={kept}-"]


def test_a_part_with_wrong_bytes_is_noticed_and_replaced(hub, tmp_path):
    blobs = tmp_path / "models--maker--model" / "blobs"
    blobs.mkdir(parents=True)
    name = hub.repositories[REPOSITORY].name_of("big-1.bin")
    (blobs / f"{name}.partial").write_bytes(b"\0" * 100_000)
    assert content(get(hub, tmp_path)) == EXPECTED


def test_a_server_without_ranges_is_coped_with(hub, tmp_path):
    hub.faults.no_ranges = True
    hub.faults.cuts["big-1.bin"] = [50_000, 250_001]
    assert content(get(hub, tmp_path)) == EXPECTED


def test_busy_answers_are_waited_out(hub, tmp_path):
    hub.faults.statuses["big-1.bin"] = [503, 429, 500]
    assert content(get(hub, tmp_path)) == EXPECTED


def test_a_dead_line_ends_in_a_sentence_and_nothing_loadable(hub, tmp_path):
    hub.faults.dead.add("big-2.bin")
    with pytest.raises(ModelFilesBroken, match=r"big-2\.bin of maker/model breaks off .* start again"):
        get(hub, tmp_path)
    assert not list(tmp_path.glob("*/snapshots/*/big-2.bin"))
    hub.faults.dead.clear()
    assert content(get(hub, tmp_path)) == EXPECTED


def test_other_content_than_listed_is_refused(hub, tmp_path):
    hub.faults.altered.add("big-1.bin")
    with pytest.raises(ModelFilesBroken, match=r"big-1\.bin arrives with other content"):
        get(hub, tmp_path)
    assert not list(tmp_path.glob("*/snapshots/*/big-1.bin"))
    assert not list(tmp_path.rglob("*.partial"))


def test_a_truncated_file_in_the_cache_is_fetched_anew(hub, tmp_path):
    folder = get(hub, tmp_path)
    (folder / "big-1.bin").resolve().write_bytes(FILES["big-1.bin"][:1000])
    assert content(get(hub, tmp_path)) == EXPECTED


def test_offline_with_everything_in_place_works(hub, tmp_path, monkeypatch):
    folder = get(hub, tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    assert content(get(hub, tmp_path)) == EXPECTED == content(folder)
    assert hub.requests == []


@pytest.mark.parametrize("before", ["nothing", "part"])
def test_offline_and_incomplete_is_one_sentence(hub, tmp_path, monkeypatch, before):
    if before == "part":
        folder = get(hub, tmp_path)
        (folder / "big-1.bin").resolve().unlink()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelFilesBroken, match=r"'model' of maker/model .* HF_HUB_OFFLINE is set: unset it"):
        get(hub, tmp_path)


def test_a_cache_filled_by_others_is_taken_offline(hub, tmp_path, monkeypatch):
    """Without the listing that this program's own fetch leaves."""
    folder = get(hub, tmp_path)
    for listing in tmp_path.rglob("trees/*.json"):
        listing.unlink()
    monkeypatch.setattr("huggingface_hub._tree_cache._IN_MEMORY_TREE_CACHE", {})
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert get(hub, tmp_path) == folder


def test_no_network_at_all_is_one_sentence(tmp_path):
    with pytest.raises(ModelFilesBroken, match=r"the hub cannot be reached: check the network"):
        fetch([weights()], cache_dir=tmp_path, endpoint="http://127.0.0.1:1")


def test_a_full_disk_is_said_before_the_first_byte(hub, tmp_path):
    hub.repositories[REPOSITORY].listed_sizes["big-1.bin"] = 10**15
    with pytest.raises(DiskFull, match=r"need 1000000\.0 GB more and the disk of .* has \d+\.\d GB free"):
        get(hub, tmp_path)
    assert hub.bodies("config.json") == 0


def test_a_cache_that_cannot_be_written_is_one_sentence(hub, tmp_path):
    (tmp_path / "models--maker--model").mkdir()
    (tmp_path / "models--maker--model" / "blobs").write_text("a file where a folder belongs")
    with pytest.raises(ModelFilesBroken, match=r"cannot be written to .* set HF_HOME"):
        get(hub, tmp_path)


GATED = weights(gated=True, licence="Some Non-Commercial License")


def test_a_gated_repository_without_a_token_names_licence_and_variable(hub, tmp_path):
    hub.repositories[REPOSITORY].token = "secret"
    with pytest.raises(ModelFilesBroken, match=r"gated \(licence: Some Non-Com.* set HF_TOKEN to a token"):
        get(hub, tmp_path, wanted=GATED)
    assert not any("resolve" in path for _, path, _ in hub.requests)


def test_a_gated_repository_with_a_refused_token_says_the_same(hub, tmp_path):
    hub.repositories[REPOSITORY].token = "secret"
    with pytest.raises(
        ModelFilesBroken, match=r"gated .*accept its terms at https://huggingface\.co/maker/model"
    ):
        get(hub, tmp_path, wanted=GATED, token="wrong")


def test_the_token_opens_a_gated_repository_and_goes_to_no_other_host(hub, tmp_path):
    hub.repositories[REPOSITORY].token = "secret"
    assert content(get(hub, tmp_path, wanted=GATED, token="secret")) == EXPECTED
    elsewhere = [headers for _, path, headers in hub.requests if path.startswith("/cdn/")]
    assert elsewhere
    assert not any("authorization" in headers for headers in elsewhere)


def test_a_missing_repository_and_a_missing_file_are_named(hub, tmp_path):
    with pytest.raises(ModelFilesBroken, match=r"the hub answers 404 for maker/other"):
        get(hub, tmp_path, wanted=weights(repository="maker/other"))
    with pytest.raises(ModelFilesBroken, match=r"maker/model at revision main has no file lost\.bin"):
        get(hub, tmp_path, wanted=weights(patterns=("config.json", "lost.bin")))


def test_cancelling_is_noticed_at_once(hub, tmp_path):
    hub.faults.pause_s = 0.05
    begun = time.monotonic()

    def cancel(_: FetchProgress) -> None:
        if time.monotonic() - begun > 0.3:
            raise Cancelled

    with pytest.raises(Cancelled):
        get(hub, tmp_path, on_progress=cancel)
    assert time.monotonic() - begun < 1.5
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("fetch")]


def test_two_fetches_at_once_share_the_work(hub, tmp_path):
    hub.faults.pause_s = 0.001
    folders: list[Path] = []
    threads = [threading.Thread(target=lambda: folders.append(get(hub, tmp_path))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [content(folder) for folder in folders] == [EXPECTED, EXPECTED]
    assert hub.bodies("big-1.bin") == 2  # the redirect and the body, once
