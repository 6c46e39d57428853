"""Hooks of the site: pages of the examples, and links to files of the repository that are no pages."""

from __future__ import annotations

import ast
import base64
import json
import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files, InclusionLevel

# The theme announces its successor at every build.
os.environ.setdefault("NO_MKDOCS_2_WARNING", "1")
ROOT = Path(__file__).parents[2]
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)")


def on_files(files: Files, config: Any) -> Files:
    """Add a page for each script and notebook of examples/, and the larger pages with the results' pictures."""
    for path in sorted((ROOT / "examples").iterdir()):
        made = {".py": script_page, ".ipynb": notebook_page}.get(path.suffix)
        for name, content in made(path) if made else ():
            inclusion = InclusionLevel.INCLUDED if path.suffix == ".ipynb" else InclusionLevel.NOT_IN_NAV
            files.append(File.generated(config, f"examples/{name}", content=content, inclusion=inclusion))
    for path in sorted((ROOT / "docs" / "results").glob("*.html")):
        name = f"results/{path.stem}-with-pictures.html"
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, files: Files, **_: Any) -> str:
    """Return a page whose links to examples lead to their pages; of links to other files outside the text stays."""
    uri = page.file.src_uri
    if uri.startswith("archive/"):
        page.meta["search"] = {"exclude": True}
    pictured = files.get_file_from_path(re.sub(r"\.md$", "-with-pictures.html", uri))
    if pictured is not None:
        markdown = re.sub(
            r"^(# .*)$",
            rf"\1\n\n[This page with pictures]({Path(pictured.src_uri).name})",
            markdown,
            count=1,
            flags=re.M,
        )
    folder = posixpath.dirname(f"docs/{uri}")

    def local(match: re.Match[str]) -> str:
        text, target = match.groups()
        path = posixpath.normpath(posixpath.join(folder, target.partition("#")[0]))
        if "://" in target or path.startswith("docs/") or not (ROOT / path).exists():
            return match[0]
        made = re.sub(r"\.(py|ipynb)$", ".md", path)
        if files.get_file_from_path(made) is None:
            return text
        return f"[{text}]({posixpath.relpath(made, posixpath.dirname(uri) or '.')})"

    return LINK.sub(local, markdown)


def script_page(path: Path) -> Iterator[tuple[str, str | bytes]]:
    """Yield the page of a script: its docstring, and the whole of it."""
    source = path.read_text()
    (first, *_) = (ast.get_docstring(ast.parse(source)) or path.stem).splitlines()
    yield f"{path.stem}.md", f"# examples/{path.name}\n\n{first}\n\n```python\n{source}```\n"


def notebook_page(path: Path) -> Iterator[tuple[str, str | bytes]]:
    """Yield a notebook as a page, with what its cells printed and the pictures that they drew."""
    parts: list[str] = []
    for number, cell in enumerate(json.loads(path.read_text())["cells"]):
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", []):
            data = output.get("data", {"text/plain": output.get("text", [])})
            if "image/png" in data:
                picture = f"{path.stem}-{number}.png"
                yield picture, base64.b64decode("".join(data["image/png"]))
                parts.append(f"![What this cell draws]({picture})")
            elif "text/html" in data:
                parts.append("".join(data["text/html"]))
            else:
                parts.append(f"```text\n{''.join(data['text/plain']).rstrip()}\n```")
    yield f"{path.stem}.md", "\n\n".join([*parts, f"The notebook is `examples/{path.name}`.\n"])
