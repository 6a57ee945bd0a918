"""Files that others hand over are read within limits or refused in one line, never waited for."""

from __future__ import annotations

import contextlib
import io
import json
import os
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest

from vggfeat.cache.labels import read_labels
from vggfeat.cache.reader import FeatureCache
from vggfeat.cache.shard_manifest import read_manifest
from vggfeat.config import load_config
from vggfeat.errors import CacheError, DecodeError, InputError, UsageError, VggfeatError
from vggfeat.images.sources import discover
from vggfeat.images.streams import open_file
from vggfeat.network.checkpoint_reader import open_checkpoint
from vggfeat.retrieval.faiss_index_file import read_record
from vggfeat.storage.digests import file_digests
from vggfeat.storage.foreign_files import DEEPEST, MOST_BYTES, parse_json, read_foreign
from vggfeat.transforms.model_file import load_fitted
from vggfeat.zeroshot.attribute_files import read_mat, read_table
from vggfeat.zeroshot.class_split import read_class_list
from vggfeat.zeroshot.class_tree import read_tree
from vggfeat.zeroshot.word_vectors import read_words

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


def _image(path: str) -> None:
    with open_file(os.fsencode(path)):
        pass


def _weights(path: str) -> None:
    with open_checkpoint(path):
        pass


READERS: dict[str, Callable[[str], Any]] = {
    "c.toml": load_config,
    "labels.csv": read_labels,
    "tree.csv": read_tree,
    "classes": read_class_list,
    "v.csv": read_table,
    "v.npz": read_table,
    "v.mat": read_mat,
    "v.txt": lambda path: read_words(path, {"a"}),
    "v.txt.gz": lambda path: read_words(path, {"a"}),
    "model.h5": lambda path: load_fitted(path, "reduce"),
    "cache.h5": FeatureCache,
    "manifest.json": lambda path: read_manifest(os.path.dirname(path)),
    "w.safetensors": _weights,
    "w.pth": file_digests,
    "index": read_record,
    "image.jpg": _image,
}


@contextlib.contextmanager
def not_waited_for(fifo: Path) -> Iterator[None]:
    """Ends the wait of a reader of a FIFO after a minute: a fault fails and does not hang."""

    def write_nothing() -> None:
        with contextlib.suppress(OSError):
            os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))

    guard = threading.Timer(60, write_nothing)
    guard.start()
    try:
        yield
        assert guard.is_alive(), "a FIFO was waited for"
    finally:
        guard.cancel()


@pytest.mark.parametrize("name", READERS)
def test_what_is_no_regular_file_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A FIFO, a socket, a device without end and a folder are one line of one of our errors."""
    path = tmp_path / name
    os.mkfifo(path)
    with not_waited_for(path), pytest.raises(VggfeatError, match=r"FIFO|not a regular file"):
        READERS[name](str(path))
    path.unlink()
    with socket.socket(socket.AF_UNIX) as listening:
        monkeypatch.chdir(tmp_path)  # the whole path may be too long for a socket's address
        listening.bind(name)
        with pytest.raises(VggfeatError, match=r"a socket|not a regular file"):
            READERS[name](str(path))
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(VggfeatError, match=r"a device|not a regular file"):
        READERS[name](str(path))
    path.unlink()
    path.mkdir()
    with pytest.raises(VggfeatError, match=r"[Ii]s a directory|not a regular file|is damaged"):
        READERS[name](str(path))


@pytest.mark.parametrize("name", ["c.toml", "tree.csv", "classes", "labels.csv", "v.csv"])
def test_a_file_too_large_for_its_kind_is_refused_unread(name: str, tmp_path: Path) -> None:
    """A hole of 5 GB as settings, tree, classes, labels or table takes no memory and no time."""
    path = tmp_path / name
    with open(path, "wb") as file:
        file.truncate(5_000_000_000)
    with pytest.raises(VggfeatError, match=r"it has 5\.0 GB or more, and at most .*B are read"):
        READERS[name](str(path))
    (tmp_path / "manifest.json").symlink_to(name)
    with pytest.raises(CacheError, match=r"at most 67\.1 MB are read"):
        read_manifest(str(tmp_path))


def through_a_pipe(data: bytes, read: Callable[[str], Any]) -> Any:
    """Hands data over as a shell does with `<(…)`."""
    source, sink = os.pipe()
    try:
        with open(sink, "wb") as stream:
            stream.write(data)
        return read(f"/dev/fd/{source}")
    finally:
        os.close(source)


def test_what_a_shell_pipes_is_read() -> None:
    """`--labels <(…)`, `--config /dev/fd/N`, `--tree /dev/fd/N` are read; a model file is not."""
    assert through_a_pipe(b"a.jpg,cat\n", read_labels) == {b"a.jpg": "cat"}
    assert through_a_pipe(b'model = "vgg11"\n', load_config) == {"model": "vgg11"}
    assert through_a_pipe(b"cat,animal\n", read_tree).parents == {"cat": "animal"}
    assert load_config("/dev/null") == {}
    with pytest.raises(CacheError, match="it is a FIFO, expected a regular file"):
        through_a_pipe(b"", lambda path: load_fitted(path, "reduce"))


def test_pipes_are_bounded(tmp_path: Path) -> None:
    """What a pipe gives beyond the limit of its kind is refused, as a file of that size is."""
    with pytest.raises(OSError, match=r"it has 11 B or more, and at most 10 B are read"):
        through_a_pipe(b"12345678901", lambda path: read_foreign(path, 10, pipes="shell"))
    assert through_a_pipe(b"1234567890", lambda path: read_foreign(path, 10, pipes="shell"))
    (tmp_path / "f").write_bytes(b"12345678901")
    with pytest.raises(OSError, match=r"at most 10 B are read"):
        read_foreign(str(tmp_path / "f"), 10)


class Endless(io.RawIOBase):
    """A stream such as `cat /dev/zero` writes; reading all of it is a failure of the test."""

    def __init__(self) -> None:
        self.taken = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self.taken += len(buffer)
        assert self.taken < 2**22, "read without end"
        buffer[:] = bytes(len(buffer))
        return len(buffer)


def test_an_endless_list_is_refused_by_its_beginning() -> None:
    """`cat /dev/zero | vggfeat extract -` ends at once."""
    with pytest.raises(UsageError, match="the list on standard input is binary data"):
        discover(["-"], stdin=io.BufferedReader(Endless()))


def test_a_list_on_standard_input_begins_where_it_stands(tmp_path: Path) -> None:
    """After `read line`, a shell's standard input is no longer at the beginning of its file."""
    stream = io.BytesIO(b"first line\n" + os.fsencode(tmp_path / "a.jpg"))
    stream.readline()
    assert list(discover(["-"], stdin=stream).paths) == [b"a.jpg"]


NESTED = ("c.toml", "manifest.json")


@pytest.mark.parametrize("name", NESTED)
@pytest.mark.parametrize("depth", [DEEPEST + 1, 100_000])
def test_what_nests_too_deep_is_refused(name: str, depth: int, tmp_path: Path) -> None:
    """A RecursionError of settings or a manifest is one line."""
    text = ("a = " if name == "c.toml" else "") + "[" * depth + "]" * depth
    (tmp_path / name).write_text(text)
    with pytest.raises((UsageError, CacheError), match=r"it nests (too deeply|deeper than 64)"):
        READERS[name](str(tmp_path / name))


@pytest.mark.parametrize("name", NESTED)
def test_numbers_of_too_many_digits_are_refused(name: str, tmp_path: Path) -> None:
    """An integer of 5,000 digits, which Python does not convert, is one line."""
    text = "size = " if name == "c.toml" else ""
    (tmp_path / name).write_text(text + "9" * 5000)
    with pytest.raises((UsageError, CacheError), match="digits"):
        READERS[name](str(tmp_path / name))


def test_the_depth_of_json_is_bounded() -> None:
    """The deepest that is read is read whole, whatever else is in it; one more level is refused."""
    deepest = "[" * DEEPEST + "]" * DEEPEST
    assert parse_json(deepest) == json.loads(deepest)
    with pytest.raises(ValueError, match="deeper than 64 levels"):
        parse_json('{"a": [1, 2], "b": ' + deepest + "}")


@pytest.mark.parametrize("field", ["batch_size", "path_bytes", "rows", "first_row", "name"])
@pytest.mark.parametrize(
    "value", ["1e400", "NaN", "null", "[]", '"a\\u0000b"', "99999999999999999999"]
)
def test_manifests_that_lie(field: str, value: str, tmp_path: Path) -> None:
    """Infinity, NaN, NUL and huge numbers in a manifest are damage, never another error."""
    fields: dict[str, Any] = {
        "format": "vggfeat-shards", "format_version": 1, "created_utc": "", "tool_version": "",
        "fingerprint": "f", "batch_size": 4, "root": "/", "sources": [], "rows": 1,
        "path_bytes": 9, "shards": [{"name": "a.h5", "first_row": 0, "rows": 1}],
    }  # fmt: skip
    place = fields["shards"][0] if field in fields["shards"][0] else fields
    place[field] = "HERE"
    text = json.dumps(fields).replace('"HERE"', value)
    (tmp_path / "manifest.json").write_text(text)
    with contextlib.suppress(CacheError):
        read_manifest(str(tmp_path))


def test_the_limits_are_documented() -> None:
    """Every kind has a limit of some megabytes at least, and none has no limit."""
    assert min(MOST_BYTES.values()) >= 1 << 20
    assert max(MOST_BYTES.values()) <= 1 << 32


@pytest.mark.parametrize("error", [InputError, DecodeError])
def test_a_missing_file_is_told_as_before(error: type[VggfeatError], tmp_path: Path) -> None:
    """The checks change nothing for a file that does not exist."""
    with pytest.raises(error, match=r"[Nn]o such file"):
        (read_labels if error is InputError else _image)(str(tmp_path / "nothing"))
