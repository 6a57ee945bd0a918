"""Read files of word vectors in a stream: word2vec text and binary, GloVe text, also gzipped.

Only the requested words are kept, so that memory does not grow with the file. Text is `word number
number ...`, one word a line; word2vec's first line has the numbers of words and dimensions (Mikolov
et al. 2013), GloVe's files have no such line (Pennington et al. 2014). word2vec's binary form has
the same first line, then for each word its bytes, a space, and its numbers as little-endian
float32. Text is UTF-8, or UTF-16 with a byte order mark; words that are neither, as in some
published files, match no class. gensim is not used because it loads whole files.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import logging
import os
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Literal, cast

import numpy as np

from vggfeat.core import activity
from vggfeat.core.class_names import fold
from vggfeat.core.text import counted
from vggfeat.errors import InputError, UsageError
from vggfeat.storage.foreign_files import open_foreign
from vggfeat.storage.text_files import as_utf8

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from numpy.typing import NDArray
    from typing_extensions import Buffer

    Values = NDArray[np.float32]

Form = Literal["word2vec binary", "word2vec text", "GloVe text"]

_CHUNK = 1 << 20
_LINES = 1 << 16  # bytes that are split into lines at once
_LONGEST_LINE = 1 << 20
_LONGEST_WORD = 1 << 16
_MOST_DIMS = 1 << 16
_UNPACKED_AT_MOST = (1 << 24, 200)  # bytes, and times the bytes that were unpacked on top
_FASTTEXT = b"\xba\x16\x4f\x2f"
_PICKLES = tuple(bytes((0x80, protocol)) for protocol in range(2, 6))
_TAKES_A_WHILE = 100_000_000  # bytes; reading more is logged
_NEITHER = (
    "expected word2vec text or binary, GloVe text, a .csv or .tsv table, .npz, .npy, .mat, or "
    "predicate-matrix-*.txt"
)

log = logging.getLogger("vggfeat")


@dataclass(frozen=True, slots=True, eq=False)
class Words:
    """Words of a table and their vectors.

    Attributes:
        form: of the file.
        vectors: word as written → float32 (dims,), in the order of the file.
        dims: of each vector.
    """

    form: str
    vectors: dict[str, Values]
    dims: int


@dataclass(frozen=True, slots=True)
class _Kind:
    """The form of a file, the numbers in each vector, and the offset of the first word."""

    form: Form
    dims: int
    start: int


def read_words(path: str, wanted: Collection[str]) -> Words:
    """Read the vectors of some words of a file, ignoring case.

    Args:
        path: the file.
        wanted: words as `fold` returns them, also with spaces; "sea_lion" finds "Sea_Lion". Of a
            word that occurs twice the first is read.
    """
    with _opened(path) as file:
        kind = _kind(path, file)
        if os.path.getsize(path) > _TAKES_A_WHILE:
            log.info("looking for %s in %s", counted(len(wanted), "word"), path)
        activity.begins(f"reading {os.path.basename(path)}")
        vectors: dict[str, Values] = {}
        stems = frozenset(word.split(" ")[0] for word in wanted)
        for word, numbers in _entries(path, file, kind, stems):
            if word not in vectors and fold(word) in wanted:
                vectors[word] = numbers()
    return Words(kind.form, vectors, kind.dims)


def similar_words(path: str, words: Collection[str]) -> list[str]:
    """Return words to suggest: of the first letter and nearly the length of one of `words`."""
    beginnings = {(word[:1].casefold(), len(word) + more) for word in words for more in (-1, 0, 1)}
    with _opened(path) as file:
        kind = _kind(path, file)
        entries = _entries(path, file, kind, None)
        return [word for word, _ in entries if (word[:1].casefold(), len(word)) in beginnings]


@contextlib.contextmanager
def _opened(path: str) -> Iterator[BinaryIO]:
    try:
        with open_foreign(path) as plain:
            yield as_utf8(_unpacked(path, plain) if path.endswith(".gz") else plain)
    except UnicodeDecodeError as error:
        raise UsageError(
            f"vectors {path!r} are not UTF-16, as their byte order mark says; save them as UTF-8"
        ) from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"vectors {path!r} are damaged, or not gzipped: {error}") from error
    except InputError:  # an OSError too
        raise
    except OSError as error:
        raise InputError(f"vectors {path!r} cannot be read: {error.strerror}") from error


def _unpacked(path: str, packed: BinaryIO) -> BinaryIO:
    """Return the unpacked bytes of a gzipped file, as far as it is no bomb."""
    return cast("BinaryIO", io.BufferedReader(_Gunzipped(path, packed), _CHUNK))


class _Gunzipped(io.RawIOBase):
    """The unpacked bytes of a gzipped file; reading raises InputError from where it is a bomb."""

    def __init__(self, path: str, packed: BinaryIO) -> None:
        self._path, self._packed = path, packed
        self._file = gzip.GzipFile(fileobj=packed)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def readinto(self, buffer: Buffer) -> int:
        count = self._file.readinto(buffer)
        base, factor = _UNPACKED_AT_MOST
        packed, unpacked = self._packed.tell(), self._file.tell()
        if unpacked > base + factor * packed:
            raise InputError(
                f"vectors {self._path!r} are a bomb: {packed} bytes become {unpacked} and more"
            )
        return count


def _kind(path: str, file: BinaryIO) -> _Kind:
    """Return the form of a file by its first line."""
    first = file.readline(_LONGEST_LINE)
    fields = first.split()
    if first.startswith(_FASTTEXT):
        raise UsageError(f"vectors {path!r} are a fastText model; its .vec file is what is needed")
    if len(fields) == 2 and all(field.isdigit() for field in fields):  # noqa: PLR2004 words, dims
        dims = _dims(path, fields[1])
        if dims:
            text = _numbers(file.readline(_LONGEST_LINE), dims) is not None
            return _Kind("word2vec text" if text else "word2vec binary", dims, len(first))
    if first.startswith(_PICKLES):
        raise UsageError(
            f"vectors {path!r} are a pickle, as gensim's save writes it, and may run any program; "
            "convert it once: from gensim.models import KeyedVectors; "
            f"KeyedVectors.load({path!r}).save_word2vec_format('vectors.bin', binary=True)"
        )
    dims = len(fields) - 1
    if dims < 1 or _numbers(first, dims) is None:
        shown = first[:40].decode(errors="backslashreplace").strip()
        raise UsageError(f"vectors {path!r} begin with {shown!r}; {_NEITHER}")
    return _Kind("GloVe text", dims, 0)


def _dims(path: str, digits: bytes) -> int:
    dims = int(digits[: len(str(_MOST_DIMS)) + 1])  # not of thousands of digits
    if dims > _MOST_DIMS:
        raise UsageError(
            f"vectors {path!r} claim {digits[:20].decode()} dimensions, and at most {_MOST_DIMS} "
            "are read"
        )
    return dims


def _numbers(line: bytes, dims: int) -> Values | None:
    """Return the last `dims` fields of a line, float32 (dims,), if they follow a word."""
    fields = line.split()
    if len(fields) <= dims:
        return None
    try:
        return np.array([float(field) for field in fields[-dims:]], dtype=np.float32)
    except ValueError:
        return None


def _entries(
    path: str, file: BinaryIO, kind: _Kind, stems: frozenset[str] | None
) -> Iterator[tuple[str, Callable[[], Values]]]:
    """Yield words, each with a function that returns its vector and must be called at once.

    A stem is a word up to its first space; words without one of the stems may be skipped.
    """
    file.seek(kind.start)
    if kind.form == "word2vec binary":
        return _binary(path, file, kind.dims)
    return _text(path, file, kind, stems)


def _text(
    path: str, file: BinaryIO, kind: _Kind, stems: frozenset[str] | None
) -> Iterator[tuple[str, Callable[[], Values]]]:
    for number, line in enumerate(_lines(path, file), 2 if kind.start else 1):
        stem = _decoded(line.split(None, 1)[0]) if line and not line.isspace() else ""
        if not stem or (stems is not None and fold(stem) not in stems):
            continue
        fields = line.rstrip().rsplit(None, kind.dims)  # a few words of GloVe's have spaces
        word = _decoded(fields[0]) if len(fields) > kind.dims else stem
        yield (
            word,
            lambda line=line, number=number, word=word: _line(  # type: ignore[misc] # bound now
                path, line, kind.dims, f"line {number}, {word!r}"
            ),
        )


def _lines(path: str, file: BinaryIO) -> Iterator[bytes]:
    """Yield lines without their ends; raise UsageError where a line has none."""
    rest = b""
    while block := file.read(_LINES):
        *lines, rest = (rest + block).split(b"\n")
        yield from lines
        if len(rest) > _LONGEST_LINE:
            raise UsageError(f"vectors {path!r} are no text: a line has no end")
    if rest:
        yield rest


def _line(path: str, line: bytes, dims: int, where: str) -> Values:
    found = _numbers(line, dims)
    if found is None:
        count = len(line.split()) - 1
        raise UsageError(
            f"vectors {path!r}, {where}: expected a word and {counted(dims, 'number')}, as in the "
            f"first line, found {counted(count, 'field')} behind the word"
        )
    return found


def _decoded(word: bytes) -> str:
    return word.decode("utf-8", "surrogateescape")


def _binary(path: str, file: BinaryIO, dims: int) -> Iterator[tuple[str, Callable[[], Values]]]:
    size, data, at = 4 * dims, b"", 0
    while True:
        space = data.find(b" ", at)
        if space < 0 or space + 1 + size > len(data):
            more = file.read(_CHUNK)
            data, at = data[at:] + more, 0
            if not more:
                break
            if space < 0 and len(data) > _LONGEST_WORD + _CHUNK:
                raise UsageError(f"vectors {path!r} are no word2vec binary: a word has no end")
            continue
        start = space + 1
        raw = data[start : start + size]
        yield _decoded(data[at:space].lstrip(b"\n")), lambda raw=raw: np.frombuffer(raw, "<f4")  # type: ignore[misc] # bound now
        at = start + size
    if data.strip():
        raise UsageError(f"vectors {path!r} are cut off in their last word; copy the file again")
