"""What the documents show works: every command and every Python block is run."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import commands
import numpy as np
import pytest
from documents import blocks
from PIL import Image
from places import REPOSITORY
from typer.main import get_command

import vggfeat
from vggfeat.cli import app

if TYPE_CHECKING:
    from types import ModuleType

SMALL = {
    "vggfeat extract": "--weights random:0 --size 32 --workers 0",
    "vggfeat adapt": "--weights random:0 --model vgg11 --size 32 --workers 0",
    "vggfeat bench": "--layers conv1_2 --seconds 0.1",
    "vggfeat plot": "--size 64",
    "vggfeat similarity": "--size 32",
}
"""For commands with an image or folder; what an example names itself comes behind and wins."""

COMMANDS = {
    "README.md": 4,
    "docs/ADAPT.md": 8,
    "docs/ARTICLE.md": 23,
    "docs/CLASSIFYING.md": 0,
    "docs/DEVICES.md": 4,
    "docs/EMBEDDINGS.md": 16,
    "docs/EXPORT.md": 11,
    "docs/IMAGES.md": 5,
    "docs/LAYERS.md": 8,
    "docs/OPERATIONS.md": 9,
    "docs/SEARCH.md": 14,
    "docs/SEEING.md": 11,
    "docs/USING.md": 1,
    "docs/ZEROSHOT.md": 9,
}
"""How many there are at least on each page whose commands are run."""

PAGES_OF_INSTALLED_COMMANDS = ("docs/USING.md",)
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


def command_lines(page: str) -> list[str]:
    """The commands of a page that run in the demo's folder, and in a pipe what feeds them."""
    lines = [line for block in blocks(page, "sh") for line in block.splitlines()]
    return [line for line in lines if re.match(r"vggfeat |.*\| vggfeat |tar ", line)
            and "/srv/" not in line]  # fmt: skip


@functools.cache
def photographs() -> ModuleType:
    """The script that writes the demo's images."""
    spec = importlib.util.spec_from_file_location(
        "photographs", REPOSITORY / "scripts" / "photographs.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder for each page like the one that the demo makes, but with tiny images."""
    chance = np.random.default_rng(0)
    made = {page: tmp_path_factory.mktemp(Path(page).stem) for page in COMMANDS}
    for path, *_ in photographs().layout():
        image = Image.fromarray(chance.integers(0, 256, (40, 48, 3), dtype=np.uint8))
        for folder in made.values():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            image.save(folder / path)
    for folder in made.values():
        (folder / "attributes.csv").write_text(photographs().ATTRIBUTES)
    return made


def test_the_demo_writes_the_photographs_that_examples_name(tmp_path: Path) -> None:
    """Each path of the layout is written, as an image with the alterations that its name says."""
    pytest.importorskip("skimage")
    assert photographs().write_photographs(tmp_path) == 68
    found = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.jpg")}
    assert found == {path for path, *_ in photographs().layout()}
    with Image.open(tmp_path / "more/animals/chelsea-grey.jpg") as image:
        red, green, blue = image.convert("RGB").split()
    assert np.abs(np.asarray(red, int) - np.asarray(green, int)).max() <= 2
    assert np.abs(np.asarray(red, int) - np.asarray(blue, int)).max() <= 2


@pytest.mark.parametrize("page", COMMANDS)
def test_the_commands_of_a_page_run(folders: dict[str, Path], tmp_path: Path, page: str) -> None:
    """Each vggfeat command of a page does its work in the demo's folder, on random weights."""
    if shutil.which("bash") is None:
        pytest.skip("no bash")
    lines = command_lines(page)
    assert len(lines) >= COMMANDS[page]
    if page in PAGES_OF_WHOLE_BLOCKS:
        lines = blocks(page, "sh")
    # Those of one page are started as a user starts them, by the installed script.
    env = None if page in PAGES_OF_INSTALLED_COMMANDS else commands.install(tmp_path)
    for command in lines:
        quick = command
        for name, options in SMALL.items():
            if ".h5" not in command.partition("--")[0] and "--cache" not in command:
                quick = quick.replace(name, f"{name} {options}")
        run(["bash", "-euo", "pipefail", "-c", quick], folders[page], env)


@pytest.mark.parametrize("page", [page for page in COMMANDS if blocks(page, "python")])
def test_python_blocks_run(folders: dict[str, Path], page: str) -> None:
    """The Python blocks of a page run one after the other, behind its commands."""
    needed = {
        "README.md": "feats.h5",
        "docs/ARTICLE.md": "luma.safetensors",
        "docs/EMBEDDINGS.md": "altered.h5",
        "docs/EXPORT.md": "takeaway.h5",
        "docs/SEARCH.md": "photos.h5",
        "docs/SEEING.md": "seen.h5",
        "docs/ZEROSHOT.md": "kinds.h5",
    }
    if page in needed and not (folders[page] / needed[page]).exists():
        pytest.skip("needs the page's commands to have run")
    run([sys.executable, "-c", "\n".join(blocks(page, "python"))], folders[page])


def test_pages_share_the_demo_without_meeting() -> None:
    """No two pages write one name: a reader follows all of them in the same folder."""
    pages_of: dict[str, set[str]] = {}
    for page in COMMANDS:
        for line in command_lines(page):
            for name in re.findall(r"(?:--out|--index|--sheet|>) (\S+)", line):
                pages_of.setdefault(name.rstrip("/"), set()).add(page)
    assert pages_of
    assert {name: pages for name, pages in pages_of.items() if len(pages) > 1} == {}


def test_scripts_named_in_the_readme_are_there() -> None:
    """Each script that the README tells to run exists and is sound shell."""
    names = set(re.findall(r"bash (scripts/\w+\.sh)", (REPOSITORY / "README.md").read_text()))
    assert names == {"scripts/demo.sh", "scripts/test.sh"}
    for name in names:
        run(["bash", "-n", name], REPOSITORY)


def test_the_readme_has_a_wish_for_every_preset() -> None:
    """The table of wishes names each preset once, and no other."""
    named = re.findall(
        r"^\|.*`--config ([\w-]+)`", (REPOSITORY / "README.md").read_text(), re.MULTILINE
    )
    assert sorted(named) == sorted(path.stem for path in (REPOSITORY / "configs").glob("*.toml"))


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


def test_every_command_has_help_and_an_example_that_runs() -> None:
    """Each command and option explains itself, and stands in the reference and in an example."""
    reference = (REPOSITORY / "docs" / "CLI.md").read_text()
    examples = "\n".join(line for page in COMMANDS for line in command_lines(page))
    examples += "\n".join(blocks("docs/ZEROSHOT.md", "sh"))
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
        assert re.search(rf"^## vggfeat {name}( |$)", reference, re.MULTILINE), name
        assert re.search(rf"(^|\| )vggfeat {name}( |$)", examples, re.MULTILINE), name


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
