"""What mkdocs is told beside mkdocs.yml: pages of the repository's root belong to the site too."""

from __future__ import annotations

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


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie beside docs/."""
    for name, place in PAGES.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, place, content=_moved(text, ROOT)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001 mkdocs passes them by name
    """Let links of pages in docs/ lead to where the pages of the root are."""
    inside = page.file.src_uri not in PAGES.values()
    return _moved(markdown, Path(config.docs_dir)) if inside else markdown


def _moved(text: str, folder: Path) -> str:
    """Return a page with its links to files of the repository as the site has them."""
    return _LINK.sub(lambda match: _place(match[1], folder), text)


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
