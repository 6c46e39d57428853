"""The files around the code agree with it: links lead somewhere, versions and commands are those of the project."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    page for pattern in ("*.md", "docs/**/*.md", "benchmarks/*.md", "packages/*/*.md") for page in ROOT.glob(pattern)
)
STANDING = [page for page in PAGES if page.parent.name not in ("archive", "results") and page.name != "CHANGELOG.md"]
CODE = [
    path.relative_to(ROOT).as_posix()
    for folder in ("src", "tests", "benchmarks", "recipes", "examples", "packages")
    for path in ROOT.glob(f"{folder}/**/*")
    if path.suffix in (".py", ".toml") and ".venv" not in path.parts
] + ["pyproject.toml"]
THEIRS = {"run.toml"}
"""Files that readers of a page write."""
FORMS = sorted(ROOT.glob(".github/ISSUE_TEMPLATE/*.yml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def read(path: str | Path) -> Any:
    return yaml.safe_load((ROOT / path).read_text())


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, spelled as hosts of Git repositories do."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_source_archive_holds_every_folder_of_the_project() -> None:
    """Whoever has it can run the tests: make setup installs the package of controls from its folder."""
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["sdist"]
    folders = {
        f"/{path.split('/')[0]}" for path in [*CODE, *(str(page.relative_to(ROOT)) for page in PAGES)] if "/" in path
    }
    assert folders <= set(build["include"])


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_every_link_within_the_repository_leads_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        target, _, anchor = link.partition("#")
        if "://" not in link:
            assert (page.parent / target).exists(), link
            assert not anchor or anchor in anchors(page.parent / target if target else page), link


@pytest.mark.parametrize("page", STANDING, ids=[str(page.relative_to(ROOT)) for page in STANDING])
def test_every_file_of_code_that_a_page_names_is_there(page: Path) -> None:
    for name in set(re.findall(r"[\w./-]+\.(?:py|toml)\b", page.read_text())) - THEIRS:
        whole = name.removeprefix("./").replace("../", "")
        assert any(f"/{path}".endswith(f"/{whole}") for path in CODE), name


def test_every_page_of_the_documentation_is_in_its_index() -> None:
    index = (ROOT / "docs/README.md").read_text()
    linked = {(ROOT / "docs" / link).resolve() for link in re.findall(r"\]\(([^)\s#]+)\)", index)}
    pages = {page for page in ROOT.glob("docs/**/*.md") if page.parent.name != "archive"}
    assert pages - linked == {ROOT / "docs/README.md"}


def test_citation_has_the_version_and_licence_of_the_package() -> None:
    citation = read("CITATION.cff")
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])
    assert citation["references"][0]["identifiers"] == [{"type": "other", "value": "arXiv:2201.11692"}]


def test_workflow_runs_the_two_commands() -> None:
    (job,) = read(".github/workflows/test.yml")["jobs"].values()
    assert job["strategy"]["matrix"]["command"] == ["make test", "make demo"]
    assert job["steps"][-1]["run"] == "${{ matrix.command }}"


def test_hooks_run_the_locked_tools() -> None:
    (local,) = read(".pre-commit-config.yaml")["repos"]
    assert local["repo"] == "local"
    assert {hook["entry"].split()[0] for hook in local["hooks"]} == {".venv/bin/ruff", ".venv/bin/pyrefly"}


@pytest.mark.parametrize("form", FORMS, ids=[form.name for form in FORMS])
def test_issue_forms(form: Path) -> None:
    content = read(form)
    if form.name != "config.yml":
        assert {"name", "description", "body"} <= content.keys()
        assert all(part["type"] in ("markdown", "textarea") and part["attributes"] for part in content["body"])
