from __future__ import annotations

import pytest

from vggfeat.core.text import decode_text
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
