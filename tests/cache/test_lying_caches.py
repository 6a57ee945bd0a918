"""Caches that lie: shapes, places, types and attributes that no run can have written."""

from __future__ import annotations

import json
import re
import resource
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest
from hostile_caches import attributes, write_version_1
from places import REPOSITORY
from typer.testing import CliRunner

import vggfeat
from vggfeat.cache.attributes import read_attributes, stated_identity
from vggfeat.cache.format import DatasetExtent
from vggfeat.cache.header import read_header
from vggfeat.cli import app
from vggfeat.errors import CacheError
from vggfeat.storage.hdf5_metadata.blocks import lookup3

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

RUNS = {"features/fc7": DatasetExtent("<f4", (2, 4), 0)}


def preprocess(**lie: Any) -> dict[str, str]:
    return {"preprocess": json.dumps({**json.loads(attributes(("fc7",))["preprocess"]), **lie})}


LIES: dict[str, tuple[dict[str, Any], str]] = {
    "model": ({"model": "vgg99"}, "model is 'vgg99', expected one of vgg11, "),
    "precision": ({"precision": "\x1b[2J"}, r"precision is '\\x1b"),
    "digest": ({"weights_sha256": "00"}, "weights_sha256 is '00', expected 64"),
    "first layer": ({"first_layer": "sum"}, "first_layer is 'sum', expected one of kaiming"),
    "size 0": (preprocess(size=0), "preprocess.size is 0"),
    "size of a billion": (preprocess(size=10**9), "preprocess.size is 1000000000"),
    "size in words": (preprocess(size="224"), "preprocess.size is '224'"),
    "size true": (preprocess(size=True), "preprocess.size is True"),
    "crop": (preprocess(crop="all"), "preprocess.crop is 'all'"),
    "one mean for three": (preprocess(mean=[0.5]), r"preprocess.mean is \(0.5,\)"),
    "std 0": (preprocess(std=[0, 1, 1]), r"preprocess.std is \(0, 1, 1\)"),
    "infinite mean": (preprocess(mean=[1e999, 0, 0]), r"preprocess.mean is \(inf, 0, 0\)"),
    "a thousand channels": (preprocess(channels=1000), "preprocess.channels is 1000"),
    "augment": (preprocess(augment=["melt"]), r"preprocess.augment is \('melt',\)"),
    "window": (preprocess(window=[1]), r"preprocess.window is \(1,\)"),
    "activations": ({"activations": '{"conv1_1": "x"}'}, "activations are not all numbers"),
    "step": ({"derived": '[{"step": "fuse"}]'}, "expected step and layers"),
    "layers": ({"derived": '[{"step": "fuse", "layers": 7}]'}, "expected step and layers"),
    "sources": ({"sources": "[7]"}, "sources are not all objects of texts"),
    "versions": ({"versions": '{"torch": []}'}, "versions are not all texts"),
    "no batch": ({"config": '{"batch_size": 0}'}, "config has batch_size 0"),
    "vast pass": (
        {"config": '{"batch_size": 4, "pass_images": 5}'},
        "config has pass_images 5",
    ),
    "no pixels": (
        {"config": '{"batch_size": 4, "pass_images": 4, "pass_pixels": "9"}'},
        "config has pass_pixels '9'",
    ),
    "vast batch": ({"config": json.dumps({"batch_size": 1 << 99})}, "config has batch_size 633825"),
}


@pytest.mark.parametrize("lie", LIES)
def test_attributes_with_a_fingerprint_that_fits(lie: str) -> None:
    """Whoever lies computes the fingerprint anew; each value is checked by itself."""
    changed, message = LIES[lie]
    stated = {**attributes(("fc7",)), **changed}
    stated["fingerprint"] = stated_identity(stated, RUNS, {}).fingerprint()
    wrong: list[str] = []
    read_attributes(stated, RUNS, {}, wrong)
    assert re.search(message, "; ".join(wrong))


def test_the_truth_passes() -> None:
    """What a run writes has nothing wrong."""
    wrong: list[str] = []
    assert read_attributes(attributes(("fc7",)), RUNS, {}, wrong) is not None
    assert not wrong


def replace(name: str, values: Any = None, **how: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[name]
        file.create_dataset(name, data=values, **how)

    return change


def attribute(name: str, value: Any) -> Callable[[h5py.File], None]:
    return lambda file: file.attrs.__setitem__(name, value)


def overlap(file: h5py.File) -> None:
    """One dataset by two names: a run would write each over the other."""
    del file["features/fc6"]
    file["features/fc6"] = file["features/fc7"]


DATASETS: dict[str, tuple[Callable[[h5py.File], None], str]] = {
    "no rows": (replace("features/fc7", np.zeros((0, 24), "f4")), "/features/fc7 is empty"),
    "no columns": (replace("features/fc7", np.zeros((12, 0), "f4")), "/features/fc7 is empty"),
    "scalar": (replace("features/fc7", 1.5), "/features/fc7 is no array of rows"),
    "null": (replace("images/state", h5py.Empty("u1")), "/images/state is missing or not one"),
    "five axes": (replace("features/fc7", np.zeros((12, 1, 1, 1, 1), "f4")), "no array of rows"),
    "huge": (replace("features/fc7", shape=(12, 1 << 58), dtype="f4"), "not lie in one run"),
    "compound": (replace("images/size", np.zeros(12, [("a", "i4")])), "a compound of fields"),
    "booleans": (replace("images/state", np.zeros(12, bool)), "type bool, expected uint8"),
    "twice": (overlap, "/features/fc7 begins inside /features/fc6"),
    "array": (attribute("model", np.arange(9)), "model is .* expected text"),
    "enumeration": (attribute("model", np.True_), "model is .* expected text"),
    "nothing": (attribute("model", h5py.Empty("f4")), "model is .* expected text"),
    "bad UTF-8": (attribute("fingerprint", np.bytes_(b"\xff\xfe")), "fingerprint does not"),
    "deep JSON": (attribute("config", "[" * 99999), "too many levels|cannot be read"),
    "escaped version": (attribute("format_version", "\x1b[2J"), r"format version '.x1b\[2J', this"),
    "escaped field": (
        attribute("preprocess", '{"\\u001b[2J": 1}'),
        r"unexpected keyword argument '.x1b",
    ),
    "escaped link": (
        lambda file: file.__setitem__("features/\x1b[2J", h5py.SoftLink("/x")),
        r"/features/.x1b\[2J is a soft link to '/x'",
    ),
    "escape": (lambda file: file.copy("features/fc7", "features/\x1b[2J"), r"no name of a layer"),
}


@pytest.mark.parametrize("lie", DATASETS)
def test_datasets_and_attributes_that_no_cache_has(tmp_path: Path, lie: str) -> None:
    """Each is refused in one line that names it, before anything is mapped or allocated."""
    change, message = DATASETS[lie]
    path = write_version_1(tmp_path / "f.h5")
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(CacheError, match=message) as caught:
        vggfeat.open(path)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


def test_an_extent_beyond_the_file(tmp_path: Path) -> None:
    """A dataset that claims an exabyte, checksum and all, is refused with both sizes."""
    path = write_version_1(tmp_path / "f.h5")
    data = path.read_bytes()
    shape = (12).to_bytes(8, "little") + (24).to_bytes(8, "little")
    assert data.count(shape) >= 1
    vast = (12).to_bytes(8, "little") + (1 << 58).to_bytes(8, "little")
    lying = bytearray(data.replace(shape, vast))
    at = lying.find(b"OHDR")
    while at >= 0:  # with the checksums that these headers should have
        width = 1 << (lying[at + 5] & 3)
        start = at + 6 + (16 if lying[at + 5] & 0x20 else 0) + (4 if lying[at + 5] & 0x10 else 0)
        end = start + width + int.from_bytes(lying[start : start + width], "little")
        lying[end : end + 4] = lookup3(bytes(lying[at:end])).to_bytes(4, "little")
        at = lying.find(b"OHDR", at + 1)
    path.write_bytes(lying)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CacheError, match=r"fc7 .* reaches byte \d{19,} of a file of \d+ bytes"):
        vggfeat.open(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 16


@pytest.mark.parametrize("damage", ["length", "number", "size"])
def test_the_global_heap_has_no_checksum(tmp_path: Path, damage: str) -> None:
    """Lengths in it that lie, on which libhdf5 runs for ever, are refused."""
    path = write_version_1(tmp_path / "f.h5")
    whole = path.read_bytes()
    at = whole.index(b"GCOL")
    offset, values = {"length": (24, (0, 1 << 62)), "number": (16, (0, 99)), "size": (8, (0, 17))}[
        damage
    ]
    for value in values:
        field = value.to_bytes(2 if damage == "number" else 8, "little")
        damaged = whole[: at + offset] + field + whole[at + offset + len(field) :]
        (tmp_path / "damaged.h5").write_bytes(damaged)
        with pytest.raises(CacheError, match="damaged"):
            vggfeat.open(tmp_path / "damaged.h5")


@pytest.mark.parametrize("version", [1, 2])
def test_a_state_that_there_is_not(tmp_path: Path, version: int) -> None:
    """Every command says which row has it, and `verify --repair` sets the row to pending."""
    place = tmp_path / "f.h5"
    place.write_bytes((REPOSITORY / f"tests/data/version-{version}.h5").read_bytes())
    states = read_header(str(place)).runs["images/state"]
    with place.open("r+b") as file:
        file.seek(states.offset + 1)
        file.write(b"\x6a")
    layer = "conv1_1"
    for words in (
        ("inspect",), ("search", "--row", "0", "--layer", layer), ("duplicates", "--layer", layer),
        ("export", "--to", "npz", "--out", "o"), ("sheet", "--out", "o.html"),
        ("explore", "--out", "o.html"),
        ("merge", str(place), "--out", "o.h5"), ("fuse", "--out", "o.h5"),
        ("reduce", "--layers", layer, "--dims", "1", "--out", "o.h5"),
    ):  # fmt: skip
        done = CliRunner().invoke(app, [words[0], str(place), *words[1:]])
        assert done.exit_code == 5, (words, done.output)
        assert "row 1 has state 106, expected 0 to 3; `vggfeat verify --repair`" in done.output
    with pytest.raises(CacheError, match="row 1 has state 106"):
        _ = vggfeat.open(place).done
    found = vggfeat.verify(place, repair=True)
    assert found.repaired == 1
    assert vggfeat.open(place).state[1] == 0
