"""Which kinds of fixtures there are, how their files are named, and which of them must match. Pure.

The layout is that of the published set: `preprocess/`, `model/`, `pipeline/`. A file is recognised by its
name and its folder's name, so any part of the set can be handed over on its own.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ANYWHERE = ".*"


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of fixtures."""

    name: str  # its first word is the module here that compares it
    folder: str  # pattern of the folder's name
    file: str  # pattern of the file's name; what `stem` matches is common to the files of one fixture
    main: str  # which file stands for the fixture; "." where the folder does
    different: str = ""  # the whole kind differs on purpose: why
    slow: bool = False  # more than a few seconds a fixture on one core

    @property
    def group(self) -> str:
        """preprocess, model or pipeline."""
        return self.name.split("/")[0]

    def fixture(self, path: Path) -> "Fixture | None":
        """The fixture that a file belongs to, None where it is of another kind."""
        match = re.fullmatch(self.file, path.name)
        if match is None or not re.fullmatch(self.folder, path.parent.name):
            return None
        return Fixture(kind=self, path=path.parent / self.main.format(stem=match.groupdict().get("stem", "")))


@dataclass(frozen=True, slots=True)
class Fixture:
    """One recorded case with all its files, or a file with many cases."""

    kind: Kind
    path: Path

    @property
    def name(self) -> str:
        """As in the report: where it lies in the published set."""
        if self.path.is_dir():
            return f"{self.kind.group}/{self.path.name}"
        folder = self.path.parent.name
        inner = "" if self.kind.folder in (ANYWHERE, self.kind.group) else f"{folder}/"
        return f"{self.kind.group}/{inner}{self.path.stem}"


def _pictures(name: str, file: str, *, different: str = "") -> Kind:
    """Recordings of one npz each, in a folder of their own, maybe with a picture to look at."""
    return Kind(
        f"preprocess/{name}",
        name.partition("/")[0],
        rf"(?P<stem>{file})\.(npz|png)",
        "{stem}.npz",
        different=different,
    )


def _table(name: str, *, folder: str = ANYWHERE, different: str = "") -> Kind:
    """Many cases in one JSON file."""
    stem = name.rpartition("/")[2]
    return Kind(
        f"preprocess/{name}", folder, re.escape(stem) + r"\.json", f"{stem}.json", different=different
    )


MUST_MATCH = (
    _pictures("draw", r".+"),
    _table("kp133_to_meta"),
    _pictures("pose_decode", r".+"),
    _table("pose_crop/boxes", folder="pose_crop"),
    _pictures("pose_crop", r".+"),
    _pictures("masks", r".+"),
    _pictures("resize/padding", r"padding_.+"),
    Kind("preprocess/retarget", "retarget", r"(?P<stem>.+?)(_canvas\.npz|\.json)", "{stem}.json"),
    _table("editing_prompts"),
    _table("face_bboxes"),
    _table("frame_indices"),
    Kind("preprocess/e2e", "e2e", r"(?P<stem>.+)\.(json|npz)", "{stem}.json"),
    Kind("model/dit", r"dit_.+", r"data\.npz|config\.json|weights_check.*\.json", ".", slow=True),
    Kind("model/vae", r"vae_.+", r"data\.npz|config\.json|weights_check.*\.json", "."),
    Kind("model/t5", r"t5_.+", r"data\.npz|config\.json|weights_check.*\.json", "."),
    Kind("model/clip", r"clip_.+", r"data\.npz|config\.json|weights_check.*\.json", "."),
    Kind("pipeline/schedules", "schedules", r"schedules\.json", "schedules.json"),
    Kind("pipeline/schedules/trace", "schedules", r"(?P<stem>trace_.+)\.npz", "{stem}.npz"),
    Kind("pipeline", "pipeline", r"(?P<stem>\d+_.+)\.(json|npz)", "{stem}.json", slow=True),
)
"""Every kind that has to be as recorded, in the order of the report."""

DIFFERENT = (
    _table("masks/aug_mask_edge", folder="masks"),  # case by case: where the reference works, we are equal
    _pictures(
        "yolo", r".+", different="detector and tracker are another library's, letterboxed, with identities"
    ),
    _pictures(
        "resize/by_area", r"by_area_.+", different="another size rule: scaled and cropped, never letterboxed"
    ),
    _table(
        "resize_by_area_sizes", different="another size rule: the asked shape or 93 … 100 % of the asked area"
    ),
    _table(
        "sam_keyframes",
        different="the prompts are ours: confident points in the frame, one identity throughout",
    ),
)
"""Kinds that differ on purpose."""

SUPPORT = Kind("pipeline", "pipeline", r"config\.json|shared\.npz|weights_check_.+\.json", "")
"""Files that all recordings of a folder share; they are no fixtures themselves."""

IGNORED = re.compile(r"\..*|.*\.md")


def find_fixtures(paths: Iterable[Path]) -> tuple[list[Fixture], list[Path]]:
    """All fixtures in these folders and files, each once, in the tables' order, and files of no kind."""
    files = [file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    files = [file for file in files if not file.is_dir() and not IGNORED.fullmatch(file.name)]
    kinds = {kind: index for index, kind in enumerate((*MUST_MATCH, *DIFFERENT))}
    found: dict[Fixture, None] = {}
    unknown = []
    for file in files:
        fixture = next(filter(None, (kind.fixture(file) for kind in kinds)), None)
        if fixture is not None:
            found[fixture] = None
        elif SUPPORT.fixture(file) is None:
            unknown.append(file)
    return sorted(found, key=lambda fixture: kinds[fixture.kind]), unknown
