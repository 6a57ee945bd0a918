from __future__ import annotations

import ast
import subprocess
import sys
from typing import TYPE_CHECKING

import h5py
import pytest
from places import REPOSITORY

from vggfeat.cache.format import Provenance, lay_out
from vggfeat.cache.identity import Identity
from vggfeat.core.preprocessing import Preprocess

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PACKAGE = REPOSITORY / "vggfeat"

# A module imports only what stands before it; the order of the table in the design.
ORDER = (
    "_version",
    "errors",
    "core",
    "exhaustion",
    "isolation",
    "forked",
    "layers",
    "specs",
    "recipes",
    "tones",
    "preprocess",
    "quantisation",
    "identity",
    "storage",
    "tensorheader",
    "containers",
    "dialects",
    "checkpoints",
    "firstlayer",
    "caffe",
    "parameters",
    "fit",
    "cgroups",
    "machine",
    "digests",
    "carried",
    "checks",
    "config",
    "records",
    "runs",
    "marked_files",
    "schema",
    "names",
    "foreign_objects",
    "listing",
    "remote",
    "objects",
    "opening",
    "folders",
    "tars",
    "archives",
    "sources",
    "plan",
    "alterations",
    "clahe",
    "levels",
    "geometry",
    "pillow_state",
    "loading",
    "dicom",
    "rasters",
    "decode",
    "child_processes",
    "workers",
    "batches",
    "units",
    "lock",
    "transfer",
    "mirror",
    "download",
    "weights",
    "device",
    "pooling",
    "normalising",
    "input_checks",
    "network",
    "int8",
    "extractor",
    "calibration",
    "replicas",
    "writer",
    "sink",
    "signals",
    "reader",
    "splitting",
    "shardlist",
    "rowarray",
    "shardreader",
    "reports",
    "tensors",
    "copying",
    "update",
    "request",
    "job",
    "description",
    "tally",
    "vanishing",
    "run",
    "shardfolder",
    "shardplan",
    "extraction",
    "offsite",
    "slots",
    "cluster",
    "actors",
    "ray_pool",
    "dealing",
    "engines",
    "summary",
    "verification",
    "components",
    "reduction",
    "shardmerge",
    "merging",
    "labels",
    "metrics",
    "tensorwrite",
    "adapting",
    "retrieval",
    "comparison",
    "chart",
    "loss",
    "transforms",
    "deriving",
    "fitted",
    "fusion",
    "learning",
    "fusing",
    "reducing",
    "blas",
    "blocks",
    "scoring",
    "scan",
    "near",
    "indexfile",
    "indexing",
    "ways",
    "querying",
    "answers",
    "tracing",
    "browsing",
    "exporting",
    "zeroshot",
    "pictures",
    "maps",
    "views",
    "drawing",
    "scatter",
    "tiles",
    "pages",
    "sheets",
    "histogram",
    "measuring",
    "diagnosis",
    "benchmark",
    "cli",
    "__main__",
)

TORCH_FREE = (
    "vggfeat",
    "vggfeat.cache.reader",
    "vggfeat.cache.sharded",
    "vggfeat.cache.summary",
    "vggfeat.core.settings",
    "vggfeat.images.batch_plan",
    "vggfeat.images.sources",
    "vggfeat.storage.object_store",
    "vggfeat.storage.local_copies",
    "vggfeat.extraction.remote_output",
    "vggfeat.images.decode",
    "vggfeat.cache.writer",
    "vggfeat.extraction.update",
    "vggfeat.cache.shard_merge",
    "vggfeat.finetuning",
    "vggfeat.finetuning.adapt",
    "vggfeat.images.statistics",
    "vggfeat.cache.merge",
    "vggfeat.cache.labels",
    "vggfeat.core.ranking_metrics",
    "vggfeat.retrieval.compare",
    "vggfeat.visualization.plot_comparison",
    "vggfeat.cache.verify",
    "vggfeat.transforms.pca",
    "vggfeat.extraction.report",
    "vggfeat.retrieval.quantization_loss",
    "vggfeat.transforms.derive",
    "vggfeat.transforms.fuse",
    "vggfeat.transforms.reduce",
    "vggfeat.visualization.projections",
    "vggfeat.visualization.plot_cache",
    "vggfeat.visualization.contact_sheet",
    "vggfeat.extraction.trace",
    "vggfeat.cache.rows",
    "vggfeat.exporters",
    "vggfeat.zeroshot",
    "vggfeat.retrieval.exact_search",
    "vggfeat.retrieval.duplicates",
    "vggfeat.retrieval.faiss_index",
    "vggfeat.retrieval.search",
    "vggfeat.cli",
)


def modules() -> Iterator[tuple[str, Path, ast.Module]]:
    """Each module's place in the order, its file and its syntax; those of a package share one."""
    for path in sorted(PACKAGE.rglob("*.py")):
        place = path.relative_to(PACKAGE).with_suffix("").parts[0]
        if place != "__init__":  # the facade names everything and is imported by nothing
            yield place, path, ast.parse(path.read_text(encoding="utf-8"))


def imports(tree: ast.AST) -> Iterator[str]:
    """Our own modules imported anywhere in `tree`, but not those for the type checker alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from imports(ast.Module(node.orelse, []))
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            yield from (
                [f"vggfeat.{name.name}" for name in node.names]
                if (module == "vggfeat")
                else [module]
            )
        else:
            yield from imports(node)


def own(tree: ast.AST) -> set[str]:
    return {name.split(".")[1] for name in imports(tree) if name.startswith("vggfeat.")}


def test_imports_are_seen() -> None:
    """The reading of imports sees those in functions and not those for the type checker."""
    code = (
        "import os\nimport vggfeat.images.batch_plan\nfrom vggfeat import lock\nfrom vggfeat.cli.x import y\n"
        "if TYPE_CHECKING:\n    from vggfeat.extraction.pipeline import z\nelse:\n    import vggfeat.cache.background_writer\n"
        "def f():\n    try:\n        from vggfeat.network.device import w\n    finally:\n        pass\n"
    )
    assert own(ast.parse(code)) == {"plan", "lock", "cli", "device", "sink"}


def test_every_module_has_its_place() -> None:
    """The order names every module and no other."""
    assert sorted({place for place, _, _ in modules()}) == sorted(ORDER)


def test_imports_go_upward() -> None:
    """A module imports only modules that stand before it in the order."""
    wrong = [
        f"{path.relative_to(REPOSITORY)} imports {name}"
        for place, path, tree in modules()
        for name in own(tree)
        if name != place and ORDER.index(name) > ORDER.index(place)
    ]
    assert not wrong


def test_nothing_imports_the_command_line() -> None:
    """Only `python -m vggfeat` imports the command line."""
    users = {place for place, _, tree in modules() if "cli" in own(tree)}
    assert users == {"cli", "__main__"}


def test_the_facade_imports_nothing() -> None:
    """`import vggfeat` loads no module of ours but the version."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    assert own(tree) == {"_version"}


def test_modules_are_short() -> None:
    """No module has more than 400 lines."""
    lines = {
        str(path.relative_to(REPOSITORY)): len(path.read_text(encoding="utf-8").splitlines())
        for path in PACKAGE.rglob("*.py")
    }
    assert {path: count for path, count in lines.items() if count > 400} == {}


def test_functions_are_short() -> None:
    """No function has more than 50 lines without its docstring, but the signatures of commands."""
    long = {
        f"{path.relative_to(REPOSITORY)}:{node.lineno} {node.name}": length(node)
        for place, path, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and length(node, signature=place != "cli") > 50
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


def python(*arguments: str, cwd: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, check=True, capture_output=True, text=True
    )


def test_modules_without_torch() -> None:
    """Importing what reads a cache or parses options loads neither torch nor torchvision."""
    code = f"""
import importlib, sys
for name in {TORCH_FREE!r}:
    importlib.import_module(name)
    print(name, *sorted({{"torch", "torchvision"}} & set(sys.modules)))
"""
    assert python("-c", code).stdout.split("\n")[:-1] == list(TORCH_FREE)


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


@pytest.mark.parametrize("command", [["--help"], ["layers"], ["inspect", "FILE"]])
def test_commands_without_torch(cache: str, command: list[str]) -> None:
    """Commands that compute nothing do not import torch."""
    arguments = [cache if word == "FILE" else word for word in command]
    done = python("-X", "importtime", "-m", "vggfeat", *arguments)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "vggfeat.cli" in imported
    assert not {"torch", "torchvision"} & imported
    assert {"--help": "Usage", "layers": "conv5_4", "inspect": "fc7"}[command[0]] in done.stdout


def test_no_module_hides_a_public_name() -> None:
    """Importing a module of ours sets its name on the package, where a function must not be."""
    import vggfeat

    names = {path.stem for path in PACKAGE.glob("*.py")} | {"cli"}
    assert not names & set(vggfeat.__all__)
