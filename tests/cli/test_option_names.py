"""One word for one thing: `--layers`, `--weights` of the network, `--layer-weights`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from caches_to_search import cache_of, noise
from typer.main import get_command
from typer.testing import CliRunner

import vggfeat
from vggfeat.cli import app
from vggfeat.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve rows of two layers."""
    path = tmp_path_factory.mktemp("names") / "feats.h5"
    cache_of(path, {"conv1_1": noise(12, 6), "conv2_1": noise(12, 9, seed=1)})
    return path


def run(*words: object) -> Any:
    """What a command in this process did."""
    return CliRunner().invoke(app, [*map(str, words)])


def options() -> Iterator[tuple[str, Any]]:
    """Every option of every command, beside the command's name."""
    group: Any = get_command(app)
    for name, command in group.commands.items():
        for under in getattr(command, "commands", {name: command}).values():
            yield from ((name, one) for one in under.params if one.param_type_name == "option")


def test_options_of_one_thing_have_one_name() -> None:
    """No command has --layer or --model-weights as the name, and older spellings are taken."""
    first = [(name, option.opts[0], option.opts[1:]) for name, option in options()]
    assert not [one for one in first if one[1] in ("--layer", "--model-weights", "--in-channels")]
    older = {(name, spelling, old) for name, spelling, rest in first for old in rest}
    layered = {name for name, spelling, _ in first if spelling == "--layers"}
    assert {name for name, _, old in older if old == "--layer"} == layered
    assert layered >= {"extract", "search", "duplicates", "fuse", "adapt", "zeroshot", "export"}
    assert ("fuse", "--layer-weights", "--weights") in older
    assert ("search", "--weights", "--model-weights") in older


SEARCHES = [
    ("--layers", "conv1_1,conv2_1", "--layer-weights", "3,1"),
    ("--layers", "conv1_1", "--layers", "conv2_1", "--layer-weights", "3,1"),
    ("--layer", "conv1_1", "--layer", "conv2_1", "--weights", "3,1"),
]


@pytest.mark.parametrize("words", SEARCHES)
def test_old_spellings_of_search_mean_what_they_meant(cache: Path, words: tuple[str, ...]) -> None:
    """Numbers of --weights are those of layers; the answer is the library's."""
    done = run("search", cache, "--row", "000003.png", *words, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    expected = vggfeat.search(
        cache, rows="000003.png", layers=["conv1_1", "conv2_1"], layer_weights=(3, 1)
    )
    assert found["weights"] == [0.75, 0.25]
    assert [hit["path"] for hit in found["answers"][0]["hits"]] == [
        hit.path for hit in expected.answers[0].hits
    ]


def test_search_from_python_takes_the_older_names(cache: Path) -> None:
    """`weights` with numbers are `layer_weights`; both at once are refused."""
    layers = ["conv1_1", "conv2_1"]
    new, old = (
        vggfeat.search(cache, rows=3, layers=layers, **one)  # type: ignore[arg-type] # of either name
        for one in ({"layer_weights": (3, 1)}, {"weights": (3, 1)})
    )
    assert new.answers == old.answers
    with pytest.raises(UsageError, match="both have weights of layers"):
        vggfeat.search(cache, rows=3, layers=layers, layer_weights=(3, 1), weights=(3, 1))


def test_weights_of_search_are_the_networks(cache: Path, tmp_path: Path) -> None:
    """What is no list of numbers names a file of the network, by the new name and the older."""
    query = tmp_path / "q.png"
    query.write_bytes(b"no image")
    for name in ("--weights", "--model-weights"):
        done = run("search", cache, query, "--layers", "conv1_1", name, tmp_path / "none.pth")
        assert done.exit_code == 3, done.output
        assert "none.pth' not found" in done.stderr


@pytest.mark.parametrize("option", ["--layer-weights", "--weights"])
def test_weights_of_fuse_are_those_of_layers(cache: Path, tmp_path: Path, option: str) -> None:
    """The older name stays accepted, and an error says the new one."""
    out = tmp_path / "fused.h5"
    done = run("fuse", cache, "--method", "weighted", option, "2,1", "--out", out)
    assert done.exit_code == 0, done.output
    assert vggfeat.open(out).header.identity.steps[0].record["weights"] == [2, 1]
    done = run("fuse", cache, option, "2,1", "--use", "m.h5", "--out", tmp_path / "other.h5")
    assert done.exit_code == 2
    assert "give it without --layer-weights" in done.stderr


@pytest.mark.parametrize("option", ["--layers", "--layer"])
@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["duplicates", "CACHE"], "duplicates compares by one layer, found 2: conv1_1, conv2_1"),
        (["adapt", "folder", "--out", "w.safetensors"], "adapt ends the network at one layer"),
    ],
    ids=["duplicates", "adapt"],
)
def test_several_layers_where_one_is_taken(
    cache: Path, words: list[str], what: str, option: str
) -> None:
    """The message names them, and no other fault is searched for before."""
    named = [str(cache) if word == "CACHE" else word for word in words]
    done = run(*named, option, "conv1_1,conv2_1")
    assert done.exit_code == 2, done.output
    assert what in done.stderr
