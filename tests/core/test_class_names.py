"""The rule by which names of classes are matched."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vggfeat.core.class_names import ClassNames, class_key, clean, unify

SAME = ["sea lion", " Sea_Lion", "SEA-LION\t", "sea  lion", "sea_lion\n", "sea__lion"]


@pytest.mark.parametrize("name", SAME)
def test_spellings_of_one_class_have_one_key(name: str) -> None:
    """White space, case and joints between words do not count."""
    assert class_key(name) == "sea lion"


def test_composed_and_decomposed_letters_are_the_same() -> None:
    """A name typed and the same name from a Mac's file system are one."""
    typed = "Löwenäffchen"
    assert unicodedata.normalize("NFD", typed) != typed
    assert class_key(unicodedata.normalize("NFD", typed)) == class_key(typed)
    assert clean(unicodedata.normalize("NFD", typed)) == typed


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("-1", "1"), ("a", "A"), ("x -1", "x 1"), ("class_-1", "class_1"), ("+", "-"), ("_", "-"),
        ("zebra", "zebras"), ("sealion", "sea lion"), ("n02391049_zebra", "zebra"), ("C", "C++"),
        ("1.5", "15"), ("1-2", "12"),
    ],
)  # fmt: skip
def test_other_names_stay_apart(one: str, other: str) -> None:
    """Signs, letters that are classes, identifiers and endings count."""
    assert class_key(one) != class_key(other)


@given(st.text())
def test_a_key_is_its_own_key(text: str) -> None:
    """The rule applied twice is the rule applied once; only white space has no name."""
    key = class_key(text)
    assert class_key(key) == key
    assert bool(key) == bool(text.strip())


def test_a_name_as_written_is_found_before_others() -> None:
    """Of several spellings the exact one, else the first."""
    names = ClassNames(["Zebra", "zebra", "Sea_Lion"])
    assert [names.find(name) for name in ("zebra", "Zebra", "ZEBRA", "sea lion", "lion")] == [
        "zebra", "Zebra", "Zebra", "Sea_Lion", None,
    ]  # fmt: skip
    assert "sea-lion" in names
    assert 1 not in names


def test_the_most_frequent_spelling_names_the_class() -> None:
    """Of equally frequent ones the first by alphabet; what was joined is said."""
    found = unify(["c1", "C1 ", "C1", "C1", "dog", "dog ", "", "  "])
    assert found.names == {
        "c1": "C1", "C1 ": "C1", "C1": "C1", "dog": "dog", "dog ": "dog", "": "", "  ": "",
    }  # fmt: skip
    assert found.merged == {"C1": ("C1", "c1")}  # white space alone is no other spelling
    assert str(found) == "'C1', 'c1' as 'C1'"
