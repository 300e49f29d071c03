"""The README says what is there: every field with its default, every file of the tree, every dependency."""

import re
from pathlib import Path

import pytest
from wan_animate import AppInput, AppSetup

from benchmarks import report

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def cells(name: str) -> list[str]:
    (row,) = [line for line in README.splitlines() if line.startswith(f"| `{name}` |")]
    return [cell.strip() for cell in row.strip("|").split("|")]


def written(value: object) -> str:
    if isinstance(value, str):
        return f'"{value}"'
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return "[]" if value == [] else f"{value:g}"


@pytest.mark.parametrize("model", [AppInput, AppSetup])
def test_every_field_stands_with_its_default_and_help(model):
    for name, field in model.model_json_schema()["properties"].items():
        row = cells(name)
        required = "default" not in field and "$ref" not in field and name not in ("loras",)
        assert row[1] == ("required" if required else written(field.get("default", []))), name
        assert row[-1] == field["description"], name


def test_the_tree_names_every_module():
    tree = README.split("## Files")[1].split("## Dependencies")[0]
    for folder in ("preprocess", "wan"):
        for path in (ROOT / folder).rglob("*.py"):
            if path.name != "__init__.py":
                assert re.search(rf"^ *{re.escape(path.name)} ", tree, re.MULTILINE), path
    for name in ("inf.yml", "inference.py", "production.py", "__main__.py"):
        assert name in tree


def test_every_dependency_has_its_reason():
    table = README.split("## Dependencies")[1].split("## Smoke")[0]
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        package = re.split(r"[=>\[]", line)[0]
        assert re.search(rf"\b{re.escape(package)}\b", table), line


def test_what_it_shows_is_there():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_table_of_speeds_is_the_report_s():
    assert report.readme_tables(report.Results(report.RESULTS)) in README
