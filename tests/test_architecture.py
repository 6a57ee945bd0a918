"""The rooms of the package: their order, what each may know, and what stands in them."""

from __future__ import annotations

import ast
import collections
import subprocess
import sys
from typing import TYPE_CHECKING

import h5py
import pytest
from PIL import Image
from places import REPOSITORY, TESTS

from vggfeat.cache.format import Provenance
from vggfeat.cache.identity import Identity
from vggfeat.cache.layout import lay_out
from vggfeat.core.preprocessing import Preprocess

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PACKAGE = REPOSITORY / "vggfeat"

ROOMS = (
    "_version",
    "errors",
    "core",
    "storage",
    "images",
    "network",
    "cache",
    "config",
    "extraction",
    "transforms",
    "retrieval",
    "exporters",
    "visualization",
    "finetuning",
    "zeroshot",
    "cli",
    "__main__",
)
"""A room imports only rooms that stand before it."""

STRANGERS = {"images", "network", "cache"}
"""Files to pixels, pixels to features, features to disk: none of them knows another."""

# `Settings.for_weights` looks into the weight file, which only rooms below the vocabulary can read.
EXCEPTIONS = {("core/settings.py", "config")}

WITH_TORCH = {
    "cache.torch_dataset",
    "extraction.benchmark",
    "extraction.calibration",
    "extraction.extractor",
    "extraction.rates",
    "finetuning.linear_probe",
    "finetuning.model",
    "finetuning.trainer",
    "images.dataset",
    "images.loader",
    "images.page_locks",
    "images.device_jpeg",
    "images.tensor_resize",
    "images.torchvision_jpeg",
    "network.batch_norm",
    "network.calibration",
    "network.device",
    "network.device_rows",
    "network.extractor",
    "network.fused_epilogue",
    "network.input_checks",
    "network.int8",
    "network.multi_device",
    "network.onednn",
    "network.pass_size",
    "network.pooling",
    "network.storage_dtype",
    "network.vgg",
    "transforms.layer_weights",
    "visualization.feature_maps",
    "zeroshot.devise",
    "zeroshot.torch_model",
}
"""Modules that import torch; all others load without it."""


def modules() -> Iterator[tuple[str, Path, ast.Module]]:
    """Each module's room, file and syntax; the facade, which names everything, is none."""
    for path in sorted(PACKAGE.rglob("*.py")):
        room = path.relative_to(PACKAGE).with_suffix("").parts[0]
        if room != "__init__":
            yield room, path, ast.parse(path.read_text(encoding="utf-8"))


def imports(tree: ast.AST) -> Iterator[str]:
    """Modules that `tree` imports, in functions and for the type checker too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            inside = module == "vggfeat"
            yield from (f"vggfeat.{name.name}" for name in node.names) if inside else (module,)


def rooms_of(tree: ast.AST) -> set[str]:
    """Rooms of ours that `tree` imports from."""
    return {name.split(".")[1] for name in imports(tree) if name.startswith("vggfeat.")}


def wrong_imports(room: str, tree: ast.AST) -> list[str]:
    """Rooms that `tree`, in `room`, imports from and must not know."""
    return sorted(
        other
        for other in rooms_of(tree) - {room}
        if ROOMS.index(other) > ROOMS.index(room) or {room, other} <= STRANGERS
    )


@pytest.mark.parametrize(
    ("room", "code", "wrong"),
    [
        ("cache", "from vggfeat.core.records import Failure\nimport vggfeat.storage.locks", []),
        ("cache", "import vggfeat.extraction.pipeline", ["extraction"]),
        ("core", "def f():\n  try:\n    from vggfeat import images\n  finally: ...", ["images"]),
        ("network", "if TYPE_CHECKING:\n    from vggfeat.images.sources import X", ["images"]),
        ("extraction", "from vggfeat.network import vgg\nfrom vggfeat.cache import writer", []),
    ],
)
def test_wrong_imports_are_seen(room: str, code: str, wrong: list[str]) -> None:
    """The reading of imports sees those in functions and those for the type checker."""
    assert wrong_imports(room, ast.parse(code)) == wrong


def test_every_room_has_its_place() -> None:
    """The order names every room and no other."""
    assert sorted({room for room, _, _ in modules()}) == sorted(ROOMS)


def test_rooms_import_rooms_above_them() -> None:
    """A room imports only rooms before it; images, network and cache do not know each other."""
    wrong = [
        f"{path.relative_to(REPOSITORY)} imports {other}"
        for room, path, tree in modules()
        for other in wrong_imports(room, tree)
        if (path.relative_to(PACKAGE).as_posix(), other) not in EXCEPTIONS
    ]
    assert not wrong


def test_nothing_imports_the_command_line() -> None:
    """Only `python -m vggfeat` imports the command line."""
    users = {room for room, _, tree in modules() if "cli" in rooms_of(tree)}
    assert users == {"cli", "__main__"}


def test_the_package_shows_its_rooms() -> None:
    """`ls vggfeat/` shows at most eight plain files; every room says what it is for."""
    plain = [path.name for path in PACKAGE.iterdir() if path.is_file()]
    assert len(plain) <= 8, sorted(plain)
    for path in PACKAGE.rglob("__init__.py"):
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        room = path.parent.relative_to(PACKAGE)
        assert path.parent.parent != PACKAGE or "Begin with" in text, room
        assert text, room


def test_tests_mirror_the_rooms() -> None:
    """A folder of tests bears the name of a room, or has tests of the whole command or of GPUs."""
    folders = {path.parent.relative_to(TESTS).as_posix() for path in TESTS.rglob("test_*.py")}
    assert folders - {".", "system", "gpu"} <= set(ROOMS)


SHARED_NAMES = {"log", "T"}
"""Names that mean the same wherever they stand: the logger, and a type of any kind."""


def test_a_name_means_one_thing() -> None:
    """No public name is defined in two modules, but a command and the function it calls."""
    homes = collections.defaultdict(set)
    for room, path, tree in modules():
        for name in defined(tree):
            if not name.startswith("_") and room != "cli":
                homes[name].add(path.relative_to(PACKAGE).as_posix())
    twice = {name: sorted(where) for name, where in homes.items() if len(where) > 1}
    assert {name: where for name, where in twice.items() if name not in SHARED_NAMES} == {}


def defined(tree: ast.Module) -> Iterator[str]:
    """Names that a module defines at its top level."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id


def test_functions_take_few_parameters() -> None:
    """No function has more than twelve parameters, but commands."""
    many = {
        f"{path.relative_to(REPOSITORY)} {node.name}": count
        for room, path, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and room != "cli"
        for count in [len([*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs])]
        if count > 12
    }
    assert many == {}


def test_modules_are_short() -> None:
    """No module has more than 600 lines."""
    lines = {
        str(path.relative_to(REPOSITORY)): len(path.read_text(encoding="utf-8").splitlines())
        for path in PACKAGE.rglob("*.py")
    }
    assert {path: count for path, count in lines.items() if count > 600} == {}


def test_functions_are_short() -> None:
    """No function has more than 50 lines without its docstring, but the signatures of commands."""
    long = {
        f"{path.relative_to(REPOSITORY)}:{node.lineno} {node.name}": length(node)
        for room, path, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and length(node, signature=room != "cli") > 50
    }
    assert long == {}


def length(node: ast.FunctionDef | ast.AsyncFunctionDef, *, signature: bool = True) -> int:
    """Lines of a function without its docstring, and without its signature if so asked."""
    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    if not body:
        return 0
    last = body[-1].end_lineno
    assert last is not None
    lines = last - body[0].lineno + 1
    return lines + (node.body[0].lineno - node.lineno if signature else 0)


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=REPOSITORY, check=True, capture_output=True, text=True
    )


def test_modules_without_torch() -> None:
    """Importing what reads a cache or parses options loads neither torch nor torchvision."""
    names = [
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        for room, path, _ in modules()
        if room != "__main__"
    ]
    code = f"""
import importlib, sys
sys.modules["torch"] = sys.modules["torchvision"] = None  # importing either is an ImportError
for name in {names!r}:
    try:
        importlib.import_module(f"vggfeat.{{name}}")
    except ImportError:
        print(name)
"""
    assert set(python("-c", code).stdout.split()) == WITH_TORCH


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    out = str(tmp_path_factory.mktemp("architecture") / "f.h5")
    identity = Identity("vgg16", "w", "00" * 32, "float32", "float16", Preprocess(), ("fc7",))
    provenance = Provenance(b"/", {"batch_size": 1}, "2026-01-02T03:04:05+00:00", "1", {})
    lay_out(out, 3, 5, shapes={"fc7": (4096,)}, identity=identity, provenance=provenance)
    with h5py.File(out, "r+") as file:
        file["images/path"][:] = [b"a.jpg", b"b.jpg", b"c.jpg"]
        file["images/state"][:] = [1, 0, 2]
        file["features/fc7"][:] = 1
    return out


@pytest.mark.parametrize(
    "command", [["--help"], ["layers"], ["inspect", "FILE"], ["stats", "IMAGE"]]
)
def test_commands_without_torch(cache: str, command: list[str], tmp_path: Path) -> None:
    """Commands without a network do not import torch; a help page loads no NumPy either."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    places = {"FILE": cache, "IMAGE": str(tmp_path)}
    arguments = [places.get(word, word) for word in command]
    done = python("-X", "importtime", "-m", "vggfeat", *arguments)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "vggfeat.cli" in imported
    heavy = {"torch", "torchvision"} | ({"numpy", "h5py"} if command == ["--help"] else set())
    assert not heavy & imported
    shown = {"--help": "Usage", "layers": "conv5_4", "inspect": "fc7", "stats": "mean"}
    assert shown[command[0]] in done.stdout


def test_the_facade_imports_nothing() -> None:
    """`import vggfeat` loads no module of ours but the version."""
    assert rooms_of_run("import vggfeat") == {"_version"}


def rooms_of_run(code: str) -> set[str]:
    """Rooms that are loaded after `code` has run."""
    shown = f"import sys\n{code}\nprint(*[name for name in sys.modules if name[:8] == 'vggfeat.'])"
    return {name.split(".")[1] for name in python("-c", shown).stdout.split()}


def test_no_room_hides_a_public_name() -> None:
    """Importing a room sets its name on the package, where a function must not be."""
    import vggfeat

    names = {path.stem for path in PACKAGE.iterdir()}
    assert not names & set(vggfeat.__all__)


def test_public_names_exist() -> None:
    """What the package says is public is what the type checker sees, and can be imported."""
    import vggfeat

    assert all(hasattr(vggfeat, name) for name in vggfeat.__all__)
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {alias.asname for node in block.body if isinstance(node, ast.ImportFrom)
            for alias in node.names}  # fmt: skip
    assert (seen - {None}) | {"open", "__version__"} == set(vggfeat.__all__)


@pytest.mark.parametrize(("old", "new"), [("Wish", "UpdatePolicy"), ("Findings", "SearchResult")])
def test_old_names_warn(old: str, new: str) -> None:
    """A renamed record can be had under its old name, with a warning."""
    import vggfeat

    with pytest.warns(DeprecationWarning, match=f"vggfeat.{old} is now vggfeat.{new}"):
        assert getattr(vggfeat, old) is getattr(vggfeat, new)
