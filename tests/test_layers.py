"""The house stays in order: imports go one way, are relative, and importing the app is light."""

import ast
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted(path for folder in ("preprocess", "wan") for path in (ROOT / folder).rglob("*.py")) + [
    ROOT / name for name in ("__init__.py", "__main__.py", "inference.py", "production.py")
]
WAN_FOR_PREPROCESS = ("wan.conditions", "wan.media", "wan.runtime")


def local_imports(path: Path) -> set[str]:
    """Modules of this project that `path` imports, as dotted names from the root."""
    package = path.relative_to(ROOT).parent.parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            found.update(
                ".".join((*base, *(node.module or "").split("."), alias.name)).replace("..", ".").strip(".")
                for alias in node.names
            )
    return found


def bare_imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path: Path):
    top = path.relative_to(ROOT).parts[0]
    for name in local_imports(path):
        if top == "wan":
            assert name.startswith("wan."), f"wan/ must not import {name}"
        if path.is_relative_to(ROOT / "wan" / "runtime"):
            assert name.startswith("wan.runtime"), f"wan/runtime must not import {name}"
        if path.is_relative_to(ROOT / "wan" / "media"):
            assert name.startswith(("wan.media", "wan.runtime")), f"wan/media must not import {name}"
        if top == "preprocess":
            allowed = name.startswith(("preprocess.", *WAN_FOR_PREPROCESS))
            assert allowed, f"preprocess/ must not import {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_local_modules_are_never_imported_by_bare_name(path: Path):
    local = {"preprocess", "wan", "inference", "production", "tests", "wan_animate"}
    assert not bare_imports(path) & local


def test_the_package_list_is_the_tree():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {path.parent for path in ROOT.glob("preprocess/**/__init__.py")}
    folders |= {path.parent for path in ROOT.glob("wan/**/__init__.py")}
    tree = {"wan_animate"} | {".".join(("wan_animate", *f.relative_to(ROOT).parts)) for f in folders}
    assert set(listed) == tree


def test_every_source_folder_is_a_package():
    for path in MODULES:
        assert (path.parent / "__init__.py").exists()


def test_importing_the_app_is_light_and_works_under_any_folder_name(tmp_path: Path):
    folder = tmp_path / "some-other-name"
    folder.symlink_to(ROOT)
    code = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location(
    "app_pkg", {str(folder / "__init__.py")!r}, submodule_search_locations=[{str(folder)!r}])
module = importlib.util.module_from_spec(spec)
sys.modules["app_pkg"] = module
spec.loader.exec_module(module)
app = importlib.import_module("app_pkg.inference").App
assert module.App is app
heavy = {{"torch", "cv2", "av", "numpy", "diffusers", "transformers", "scipy"}} & set(sys.modules)
assert not heavy, heavy
"""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=tmp_path, env=environment)
