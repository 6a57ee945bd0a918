"""All commands by name: a module is imported when its command runs, and no other."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import typer
from typer.main import get_command

from vggfeat.cli.help_page import Command, Group, Panel

HELP_NAMES = {"help_option_names": ["-h", "--help"]}


@dataclass(frozen=True, slots=True)
class Entry:
    """A command in the table below.

    Attributes:
        panel: of `vggfeat --help`.
        line: what it does, as its own help begins; a test compares them.
        module: of `vggfeat.cli`, if not the command's name.
    """

    panel: str
    line: str
    module: str = ""


COMMANDS = {
    "extract": Entry("Make", "Extract features of images into a cache, or resume it"),
    "merge": Entry("Make", "Merge caches that were made with the same settings"),
    "verify": Entry("Make", "Check every row of a cache against its checksum"),
    "inspect": Entry("Look", "Show what a cache holds and how it was made"),
    "search": Entry("Look", "Find the images most similar to query images"),
    "similarity": Entry("Look", "Show how similar images are, by each layer"),
    "duplicates": Entry("Look", "Find pairs and groups of near-duplicate images"),
    "compare": Entry("Look", "Compare layers by how well they retrieve images"),
    "plot": Entry("Look", "Plot feature maps of an image, or a cache"),
    "sheet": Entry("Look", "Draw a contact sheet of the images of a cache"),
    "explore": Entry("Look", "Write a web page to explore a cache by all layers"),
    "fuse": Entry("Derive", "Fuse several layers into one vector per image", "transforms"),
    "reduce": Entry("Derive", "Shorten vectors by PCA, or standardize them", "transforms"),
    "export": Entry("Derive", "Write layers and rows in another tool's format"),
    "zeroshot": Entry("Learn", "Recognize classes without training images"),
    "adapt": Entry("Learn", "Fine-tune layers on images of known classes"),
    "stats": Entry("Learn", "Measure mean and standard deviation of images"),
    "layers": Entry("Know", "List the layers that can be extracted"),
    "presets": Entry("Know", "List the presets of --config"),
    "trace": Entry("Know", "Show shape and memory of every stage of a network"),
    "doctor": Entry("Know", "Check this machine: versions, devices, disk"),
    "bench": Entry("Know", "Measure this machine's speed and what limits it"),
}


class _Loading(Mapping[str, Any]):
    """Click's commands by name, each imported when it is first asked for."""

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._made:
            self._made[name] = _command(name, COMMANDS[name])
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)


class Program(Group):
    """`vggfeat` itself, which shows its commands without importing them."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands: Any = _Loading()

    def panels(self) -> Iterator[Panel]:
        """Yield the panels of the commands."""
        for title in dict.fromkeys(entry.panel for entry in COMMANDS.values()):
            rows = [(name, one.line) for name, one in COMMANDS.items() if one.panel == title]
            yield Panel(title, tuple(rows))


def _command(name: str, entry: Entry) -> Any:
    """Import a command, and return it as Click has it."""
    module = importlib.import_module(f"vggfeat.cli.{entry.module or name}")
    found = getattr(module, name)
    if isinstance(found, typer.Typer):
        return get_command(found)
    single = typer.Typer(add_completion=False, rich_markup_mode=None)
    examples = "\n".join(getattr(module, "EXAMPLES", ()))
    single.command(name, cls=Command, epilog=examples or None, context_settings=HELP_NAMES)(found)
    return get_command(single)
