from __future__ import annotations

import pytest

from vggfeat.core.text import agree, counted, decode_text, printable
from vggfeat.errors import UsageError

TEXT = "größe,1\r\n猫,2\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_is_decoded_by_its_mark(encoding: str) -> None:
    """UTF-8 with and without a mark, and UTF-16 with one, give the same text."""
    assert decode_text(TEXT.encode(encoding), "labels 'x'") == TEXT


def test_big_endian_text_is_decoded() -> None:
    """The byte order is the mark's."""
    assert decode_text(b"\xfe\xff" + TEXT.encode("utf-16-be"), "labels 'x'") == TEXT


@pytest.mark.parametrize("data", [TEXT.encode("latin-1", "replace"), b"\xff\xfea", b"a\0b\0"])
def test_anything_else_is_refused_by_name(data: bytes) -> None:
    """Other encodings, half a character and NULs end in an error that names the file."""
    with pytest.raises(UsageError, match=r"^labels 'x' .*save it as UTF-8$"):
        decode_text(data, "labels 'x'")


@pytest.mark.parametrize(
    ("count", "noun", "expected"),
    [
        (0, "image", "0 images"),
        (1, "image", "1 image"),
        (2, "image", "2 images"),
        (1, "class", "1 class"),
        (3, "class", "3 classes"),
        (2, "batch", "2 batches"),
        (2, "box", "2 boxes"),
        (1, "query", "1 query"),
        (2, "query", "2 queries"),
        (2, "array", "2 arrays"),
        (2, "hidden folder", "2 hidden folders"),
    ],
)
def test_nouns_agree_with_their_count(count: int, noun: str, expected: str) -> None:
    """One thing is singular, none and several are plural."""
    assert counted(count, noun) == expected


@pytest.mark.parametrize(
    ("verb", "several"),
    [("is", "are"), ("was", "were"), ("has", "have"), ("does", "do"), ("holds", "hold"),
     ("matches", "match"), ("takes", "take")],
)  # fmt: skip
def test_verbs_agree_with_their_count(verb: str, several: str) -> None:
    """A verb is given in the singular, and becomes plural for none and for several."""
    assert [agree(count, verb) for count in (0, 1, 2)] == [several, verb, several]


def test_surrogates_of_json_are_shown() -> None:
    """A lone surrogate that stands for no byte, as JSON may have it, is escaped and no error."""
    assert printable("a\ud800b\udcff\x1b") == "a\\ud800b\\udcff\\x1b"
