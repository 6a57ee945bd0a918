"""What mkdocs is told beside mkdocs.yml: pages of the repository's root belong to the site too."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.structure.files import File

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "SECURITY.md": "SECURITY.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
}
FILES = "https://github.com/vggfeat/vggfeat/tree/main/"

_LINK = re.compile(r"(?<=\]\()([^)#\s]+)")
_TABLE_ROW = re.compile(r"^\|.*$", re.MULTILINE)
_CODE = re.compile(r"`([^`]*\\\|[^`]*)`")
_BADGES = re.compile(r"<!-- badges -->.*?<!-- end of badges -->", re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie beside docs/."""
    for name, place in PAGES.items():
        text = _BADGES.sub("", (ROOT / name).read_text(encoding="utf-8"))  # fetched from others
        files.append(File.generated(config, place, content=_moved(text, ROOT)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001 mkdocs passes them by name
    """Let links of pages in docs/ lead to where the pages of the root are."""
    inside = page.file.src_uri not in PAGES.values()
    return _moved(markdown, Path(config.docs_dir)) if inside else markdown


def _moved(text: str, folder: Path) -> str:
    """Return a page with its links to files of the repository as the site has them."""
    text = _TABLE_ROW.sub(lambda row: _with_bars(row[0]), text)
    return _LINK.sub(lambda match: _place(match[1], folder), text)


def _with_bars(row: str) -> str:
    """Return a row of a table without the backslashes that GitHub wants before bars in code."""
    row = _CODE.sub(lambda code: f"<code>{html.escape(code[1])}</code>", row)
    return row.replace("\\|", "&#124;")


def _place(link: str, folder: Path) -> str:
    if ":" in link:
        return link
    target = (folder / link).resolve()
    if not target.exists():
        return link  # of which mkdocs complains
    name = target.relative_to(ROOT).as_posix()
    if name in PAGES:
        return PAGES[name]
    return name.removeprefix("docs/") if name.startswith("docs/") else FILES + name
