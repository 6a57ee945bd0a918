"""The encodings of text that users give: labels, class lists, tables, trees, settings, vectors."""

from __future__ import annotations

import codecs
import gzip
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from command_line import SMALL, assert_one_line, vggfeat, write_images

from vggfeat.cache.labels import labels_of_paths, read_labels
from vggfeat.cache.shard_manifest import read_manifest
from vggfeat.config import load_config
from vggfeat.errors import CacheError, UsageError
from vggfeat.zeroshot.attribute_files import read_table
from vggfeat.zeroshot.class_split import read_class_list
from vggfeat.zeroshot.class_tree import read_tree
from vggfeat.zeroshot.class_vectors import class_vectors
from vggfeat.zeroshot.word_vectors import read_words

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

READERS: dict[str, tuple[str, str, Callable[[str], Any], Any]] = {
    "labels": ("l.csv", "größe.jpg,Bär\r\n", read_labels, {"größe.jpg".encode(): "Bär"}),
    "class tree": ("t.csv", "Bär,Tier\r\n", lambda p: read_tree(p).parents, {"Bär": "Tier"}),
    "classes": ("c.txt", "Bär\r\nKuh\r\n", read_class_list, ("Bär", "Kuh")),
    "config": ("c.toml", '# größe\r\nmodel = "vgg11"\r\n', load_config, {"model": "vgg11"}),
    "vectors": ("v.csv", "Bär,1,2\r\n", lambda p: list(read_table(p).vectors), ["Bär"]),
    "vectors with tabs": ("v.tsv", "Bär\t1\t2\r\n", lambda p: list(read_table(p).vectors), ["Bär"]),
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "big endian"])
@pytest.mark.parametrize("what", READERS)
def test_text_is_read_by_its_mark(what: str, encoding: str, tmp_path: Path) -> None:
    """UTF-8 with or without a mark, and UTF-16 of either order, give the same."""
    name, text, read, expected = READERS[what]
    big = encoding == "big endian"
    data = codecs.BOM_UTF16_BE + text.encode("utf-16-be") if big else text.encode(encoding)
    (tmp_path / name).write_bytes(data)
    assert read(str(tmp_path / name)) == expected


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16-le"])
@pytest.mark.parametrize("what", READERS)
def test_other_encodings_are_refused_by_name(what: str, encoding: str, tmp_path: Path) -> None:
    """Latin-1, and UTF-16 without its mark, are refused by the name of the file."""
    name, text, read, _ = READERS[what]
    (tmp_path / name).write_bytes(text.encode(encoding))
    with pytest.raises(
        UsageError, match=rf"^{what.partition(' with')[0]} '.*{name}'.*save .* as UTF-8"
    ):
        read(str(tmp_path / name))


def test_the_command_refuses_labels_in_latin_1(tmp_path: Path) -> None:
    """`compare --labels` with a Latin-1 file ends with exit 2 and one line."""
    write_images(tmp_path / "images", 3)
    done = vggfeat("extract", "images", *SMALL, "--out", "a.h5", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (tmp_path / "l.csv").write_bytes("00.png,Bär\n01.png,Bär\n02.png,Kuh\n".encode("latin-1"))
    done = vggfeat("compare", "a.h5", "--labels", "l.csv", cwd=tmp_path)
    assert_one_line(done, 2, "labels 'l.csv'", "line 1", "is not UTF-8")


def test_paths_of_labels_may_be_any_bytes(tmp_path: Path) -> None:
    """A path that is no UTF-8 finds its image; if no image has one, the file is of another kind."""
    path = tmp_path / "l.csv"
    path.write_bytes(b"\xe4.jpg,cat\nb.jpg,dog\n")
    found = labels_of_paths([b"\xe4.jpg", b"b.jpg"], "cache", path)
    assert [found.names[number] for number in found.classes] == ["cat", "dog"]
    with pytest.raises(UsageError, match=r"labels '.*' are not UTF-8: no image has the path"):
        labels_of_paths(["ä.jpg".encode(), b"b.jpg"], "cache", path)


def test_names_of_an_npz_in_latin_1_are_refused(tmp_path: Path) -> None:
    """Names kept as bytes are UTF-8."""
    path = str(tmp_path / "v.npz")
    np.savez(path, names=np.array(["Bär".encode()]), vectors=np.ones((1, 2)))
    assert list(read_table(path).vectors) == ["Bär"]
    np.savez(path, names=np.array(["Bär".encode("latin-1")]), vectors=np.ones((1, 2)))
    with pytest.raises(UsageError, match=r"a name in vectors '.*' is not UTF-8"):
        read_table(path)


@pytest.mark.parametrize("ending", [".txt", ".txt.gz"])
@pytest.mark.parametrize("form", ["word2vec text", "GloVe text"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "big endian"])
def test_word_vectors_are_read_by_their_mark(
    encoding: str, form: str, ending: str, tmp_path: Path
) -> None:
    """Text vectors of several blocks are found whatever the mark, to the last word."""
    words = ["Bär", *(f"wort{number}ß" for number in range(20_000)), "Kuh"]
    lines = [f"{word} {number} {-number}.5" for number, word in enumerate(words, 1)]
    head = [f"{len(words)} 2"] if form == "word2vec text" else []
    text = "\n".join([*head, *lines]) + "\n"
    big = encoding == "big endian"
    data = codecs.BOM_UTF16_BE + text.encode("utf-16-be") if big else text.encode(encoding)
    path = str(tmp_path / f"v{ending}")
    with open(path, "wb") as file:
        file.write(gzip.compress(data, 1) if ending.endswith("gz") else data)
    found = read_words(path, {"bär", "wort7777ss", "kuh"})
    assert found.form == form
    assert {word: vector.tolist() for word, vector in found.vectors.items()} == {
        "Bär": [1, -1.5],
        "wort7777ß": [7779, -7779.5],
        "Kuh": [20_002, -20_002.5],
    }


def test_word_vectors_with_broken_utf16_are_refused(tmp_path: Path) -> None:
    """A mark of UTF-16 before something else is an error that names the file."""
    path = tmp_path / "v.txt"
    path.write_bytes(codecs.BOM_UTF16_LE + "a 1 2\n".encode("utf-16-le") + b"\x00\xdc")
    with pytest.raises(UsageError, match=r"vectors '.*v.txt' are not UTF-16"):
        read_words(str(path), {"b"})


def test_words_that_are_no_text_harm_no_others(tmp_path: Path) -> None:
    """Published vectors hold words of broken UTF-8; those of other words are found."""
    path = tmp_path / "v.txt"
    path.write_bytes("b\ufffd 1 2\nBär 3 4\n".encode().replace("\ufffd".encode(), b"\xe4\xff"))
    assert class_vectors(path, ["Bär"]).vectors.tolist() == [[3, 4]]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "latin-1"])
def test_a_shard_manifest_that_an_editor_saved(encoding: str, tmp_path: Path) -> None:
    """A byte order mark harms no manifest; Latin-1 in it is damage, exit 5."""
    write_images(tmp_path / "images", 2)
    words = ["extract", "images", *SMALL, "--out", "feats/", "--shards", "1"]
    assert vggfeat(*words, cwd=tmp_path).returncode == 0
    path = tmp_path / "feats" / "manifest.json"
    text = path.read_text(encoding="utf-8")
    if encoding == "latin-1":
        path.write_bytes(text.replace("images", "bär").encode(encoding))
        with pytest.raises(CacheError, match="is no JSON"):
            read_manifest(os.fspath(path.parent))
        return
    path.write_bytes(text.encode(encoding))
    assert len(read_manifest(os.fspath(path.parent)).shards) == 1
