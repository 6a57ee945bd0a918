"""Rows of a cache by the paths of a list."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vggfeat.cache.rows import match_paths

# A file name's bytes: anything but NUL, and few letters so that names collide.
NAMES = st.sets(
    st.one_of(
        st.text("ab/", max_size=4).map(str.encode),
        st.binary(min_size=1, max_size=6).map(lambda name: name.replace(b"\0", b"\xff")),
    ),
    max_size=30,
).map(lambda names: sorted(names - {b""}))


@given(cached=NAMES, listed=NAMES)
def test_matching_equals_a_dictionary(cached: list[bytes], listed: list[bytes]) -> None:
    """Matching finds what a dictionary from path to row finds."""
    match = match_paths(np.array(cached, dtype=np.bytes_), tuple(listed))
    row_of = {path: row for row, path in enumerate(cached)}
    both = [(row_of[path], at) for at, path in enumerate(listed) if path in row_of]
    assert list(zip(match.rows.tolist(), match.listed.tolist(), strict=True)) == both
    assert match.rows.tolist() == sorted(match.rows.tolist())
    assert match.unknown.tolist() == [at for at, path in enumerate(listed) if path not in row_of]
    wanted = set(listed)
    assert match.unlisted.tolist() == [row for row, path in enumerate(cached) if path not in wanted]
    for array in (match.rows, match.listed, match.unknown, match.unlisted):
        assert array.dtype == np.int64


def test_a_longer_path_is_another_path() -> None:
    """A path longer than any cached one is not cut to match its beginning."""
    match = match_paths(np.array([b"aa", b"b"]), (b"a", b"aaa", b"b"))
    assert match.rows.tolist() == [1]
    assert match.listed.tolist() == [2]
    assert match.unknown.tolist() == [0, 1]
    assert match.unlisted.tolist() == [0]


def test_matching_with_nothing() -> None:
    """Either side may be empty."""
    nothing = np.array([], dtype="|S4")
    some = np.array([b"a", b"b"])
    assert match_paths(nothing, ()).rows.tolist() == []
    assert match_paths(nothing, (b"a",)).unknown.tolist() == [0]
    assert match_paths(some, ()).unlisted.tolist() == [0, 1]
