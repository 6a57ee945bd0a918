"""What the documents show works: every command and every Python block is run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import commands
import pytest
from classes import write_classes
from command_line import write_images
from documents import blocks
from places import REPOSITORY
from typer.main import get_command

import vggfeat
from vggfeat.cli import app

PAGES_WITH_CLASSES = (
    "docs/CLASSIFYING.md",
    "docs/LAYERS.md",
    "docs/EMBEDDINGS.md",
    "docs/EXPORT.md",
    "docs/SEARCH.md",
    "docs/SEEING.md",
    "docs/ZEROSHOT.md",
)
QUICK = "--weights random:0 --model vgg11 --size 32 --workers 0"
"""Of `adapt`; what a command names itself comes behind and wins."""

PAGES_OF_INSTALLED_COMMANDS = ("docs/IMAGES.md", "docs/ADAPT.md")
PAGES_OF_WHOLE_BLOCKS = ("docs/ZEROSHOT.md",)  # which also write the tables that they use
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]


def run(words: list[str], folder: Path, env: dict[str, str] | None = None) -> str:
    path = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        words, cwd=folder, capture_output=True, text=True, check=False, timeout=300,
        env={**os.environ, **path, **(env or {})},
    )  # fmt: skip
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs")
    write_images(folder / "images", 3)
    write_images(folder / "more", 2)
    write_classes(folder / "labelled", 4)
    (folder / "labels.csv").write_text("00.png,horse\n01.png,tiger\n02.png,zebra\n")
    (folder / "attributes.csv").write_text("horse,1,0\ntiger,0,1\nzebra,1,1\n")
    for name, form in (("shard-000", "tar"), ("more", "zip")):
        shutil.make_archive(str(folder / name), form, folder / "images")
    return folder


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 images in three folders, one a class, for what needs more than a few."""
    folder = tmp_path_factory.mktemp("classes")
    write_images(folder / "all", 24)
    write_classes(folder / "labelled", 4)
    for number, path in enumerate(sorted((folder / "all").iterdir())):
        place = folder / "images" / f"class{number % 3}"
        place.mkdir(parents=True, exist_ok=True)
        path.rename(place / path.name)
    return folder


@pytest.mark.parametrize(
    ("page", "count"),
    [
        ("README.md", 24),
        ("docs/IMAGES.md", 3),
        ("docs/ADAPT.md", 8),
        ("docs/LAYERS.md", 4),
        ("docs/EMBEDDINGS.md", 16),
        ("docs/EXPORT.md", 11),
        ("docs/SEARCH.md", 14),
        ("docs/SEEING.md", 9),
        ("docs/ZEROSHOT.md", 9),
    ],
)
def test_the_commands_of_a_page_run(
    workplace: Path, classes: Path, tmp_path: Path, page: str, count: int
) -> None:
    """Each vggfeat command of a page does its work, on random weights where it names none."""
    if shutil.which("bash") is None:
        pytest.skip("no bash")
    lines = [
        line for block in blocks(page, "sh") for line in block.splitlines() if "vggfeat " in line
    ]
    assert len(lines) >= count
    if page in PAGES_OF_WHOLE_BLOCKS:
        lines = blocks(page, "sh")
    folder = classes if page in PAGES_WITH_CLASSES else workplace
    # Those of one page are started as a user starts them, by the installed script.
    env = None if page in PAGES_OF_INSTALLED_COMMANDS else commands.install(tmp_path)
    for command in lines:
        offline = command.replace("vggfeat extract", "vggfeat extract --weights random:0")
        offline = offline.replace("vggfeat adapt", f"vggfeat adapt {QUICK}")
        offline = offline.replace("vggfeat bench", "vggfeat bench --layers conv1_2 --seconds 0.1")
        run(["bash", "-euo", "pipefail", "-c", offline], folder, env)
    if page == "README.md":
        assert "conv5_4:rmac:l2" in run(["bash", "-c", "vggfeat inspect several.h5"], workplace)


@pytest.mark.parametrize(
    "page",
    [
        "docs/USING.md",
        "docs/CLASSIFYING.md",
        "README.md",
        "docs/LAYERS.md",
        "docs/EMBEDDINGS.md",
        "docs/EXPORT.md",
        "docs/SEARCH.md",
        "docs/SEEING.md",
        "docs/ADAPT.md",
        "docs/ZEROSHOT.md",
    ],
)
def test_python_blocks_run(workplace: Path, classes: Path, page: str) -> None:
    """The Python blocks of a page run one after the other."""
    folder = classes if page in PAGES_WITH_CLASSES else workplace
    needed = {
        "README.md": "feats.h5",
        "docs/EMBEDDINGS.md": "altered.h5",
        "docs/EXPORT.md": "takeaway.h5",
        "docs/SEARCH.md": "photos.h5",
        "docs/ZEROSHOT.md": "attributes.csv",
    }
    if page in needed and not (folder / needed[page]).exists():
        pytest.skip("needs the page's commands to have run")
    if page == "docs/USING.md":
        folder = workplace / "using"
        folder.mkdir()
        (folder / "images").symlink_to(workplace / "images")
    code = blocks(page, "python")
    assert code
    run([sys.executable, "-c", "\n".join(code)], folder)


def test_scripts_named_in_the_readme_are_there() -> None:
    """Each script that the README tells to run exists and is sound shell."""
    names = re.findall(r"bash (scripts/\S+)", (REPOSITORY / "README.md").read_text())
    assert len(names) == 2
    for name in names:
        run(["bash", "-n", name], REPOSITORY)


def test_links_between_pages_lead_somewhere() -> None:
    """Every relative link of every page names a file or folder."""
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_rows_of_tables_have_the_cells_of_their_head() -> None:
    """No bar in a cell, in code or not, cuts it in two: within tables it is written with a \\."""
    for page in PAGES:
        text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
        for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
            counts = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
            assert len(counts) == 1, f"{page.name}: {block}"


def test_every_public_name_is_in_the_reference() -> None:
    """docs/API.md, from which the site takes the docstrings, has each name of the package once."""
    page = (REPOSITORY / "docs" / "API.md").read_text()
    named = re.findall(r"^::: vggfeat\.(?:[\w.]+\.)?(\w+)$", page, re.MULTILINE)
    expected = {name for name in vggfeat.__all__ if name != "__version__"}
    assert sorted(named) == sorted(expected - {"open"} | {"open_cache"})


def test_every_command_has_help_and_a_place_in_the_readme() -> None:
    """Each command and option explains itself, and the README shows each command at work."""
    readme = (REPOSITORY / "README.md").read_text()
    group = get_command(app)
    subcommands = {
        f"{name} {under}": command
        for name, one in group.commands.items()  # type: ignore[attr-defined] # a group, as apps are
        for under, command in getattr(one, "commands", {}).items()
    }
    commands = group.commands.items()  # type: ignore[attr-defined] # as above
    for name, command in [*commands, *subcommands.items()]:
        assert command.help, name
        assert all(getattr(option, "help", "") for option in command.params), name
        assert f"\nvggfeat {name}" in readme or f"| vggfeat {name}" in readme


def test_the_exit_codes_of_the_readme_are_those_of_the_errors() -> None:
    """The table lists exactly the codes that errors carry, beside 0, 1 and the signals'."""
    from vggfeat import errors

    codes = {
        kind.exit_code
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.VggfeatError)
    }
    readme = (REPOSITORY / "README.md").read_text()
    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", readme, flags=re.MULTILINE)}
    assert listed == codes | {0}
