"""Match class names with the words of a table: `sea_lion`, `SeaLion`, `n02077923-sea-lion`."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vggfeat.core.class_names import class_key, fold

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

SMALL_WORDS = frozenset({"a", "an", "and", "in", "of", "on", "the", "to", "with"})
"""Words of a class name that may lack a vector: the original word2vec vectors have none of some."""

_IDENTIFIER = re.compile(r"(?:n\d{8}|\d+)[-_. ]+(?=\D)")  # of WordNet; or a number, as in CUB-200
_HUMP = re.compile(r"(?<=[^\W\d_A-Z])(?=[A-Z])")
_BETWEEN = re.compile(r"[\s_.+/-]+")
_JOINTS = ("_", "-", " ", "")
_SUGGESTIONS = 3


@dataclass(frozen=True, slots=True)
class Spelling:
    """The spellings of one name of a class.

    Attributes:
        whole: in the order in which they are looked up.
        words: parts of the name, whose mean is the last resort.
    """

    whole: tuple[str, ...]
    words: tuple[str, ...]


def spellings(name: str) -> tuple[Spelling, ...]:
    """Return the names of a class: one, or those between commas, as in ImageNet.

    An identifier in front is dropped (`n02077923-sea-lion`, `001.Black_footed_Albatross`), but the
    name as it is comes first.
    """
    bare = _IDENTIFIER.sub("", name, count=1) if _IDENTIFIER.match(name) else name
    parts = [part.strip() for part in bare.split(",")]
    found = [_spelling(part) for part in parts if part] or [Spelling((), ())]
    first = Spelling(_unique([name, *found[0].whole]), found[0].words)
    return (first, *found[1:])


def _spelling(text: str) -> Spelling:
    flat = _HUMP.sub(" ", text)
    if flat != text:
        flat = flat.lower()  # the capitals were there to join the words
    words = tuple(word for word in _BETWEEN.split(flat) if word)
    return Spelling(_unique([text, *(joint.join(words) for joint in _JOINTS)]), words)


def _unique(items: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(item for item in items if item))


def identifier(name: str) -> str:
    """Return the identifier in front of a name, such as `n02077923`; '' if there is none."""
    match = _IDENTIFIER.match(name)
    return re.sub(r"\W+$|_+$", "", match[0].strip()) if match else ""


def all_words(names: Iterable[str]) -> frozenset[str]:
    """Return every word that may be looked up for these classes, case-folded."""
    every = (form for name in names for one in spellings(name) for form in (*one.whole, *one.words))
    return frozenset(map(fold, every))


class ClassIndex:
    """Looks up words ignoring case: as written, then in lower case, then the first of the others.

    An identifier may stand in front of the class, of the word, or of neither.

    Args:
        words: in the order of the table, each once.
    """

    def __init__(self, words: Iterable[str]) -> None:
        self._exact: set[str] = set()
        self._folded: dict[str, str] = {}
        self._bare: dict[str, list[str]] = {}
        for word in words:
            self._exact.add(word)
            if identifier(word):
                forms = (form for one in spellings(word) for form in one.whole if form != word)
                for key in dict.fromkeys(map(class_key, forms)):
                    self._bare.setdefault(key, []).append(word)
            folded = fold(word)
            if folded == word or folded not in self._folded:
                self._folded[folded] = word

    def find(self, form: str) -> str | None:
        """Return the word of the table that matches `form`, or None."""
        return form if form in self._exact else self._folded.get(fold(form))

    def find_whole(self, name: str) -> str | None:
        """Return the word of a whole class name; None also if several match by `find_bare`."""
        forms = (form for one in spellings(name) for form in one.whole)
        found = next((word for word in map(self.find, forms) if word is not None), None)
        alike = () if found is not None else self.find_bare(name)
        return alike[0] if len(alike) == 1 else found

    def find_bare(self, name: str) -> tuple[str, ...]:
        """Return words that equal a class name except for an identifier in front of them.

        A name with an identifier of its own matches none: two identifiers are two classes.
        """
        if identifier(name):
            return ()
        keys = dict.fromkeys(class_key(form) for one in spellings(name) for form in one.whole)
        return next((tuple(self._bare[key]) for key in keys if key in self._bare), ())

    def find_parts(self, name: str) -> tuple[str, ...]:
        """Return the words of a class name; () unless all but small ones are found."""
        for one in spellings(name):
            found = {word: self.find(word) for word in one.words}
            lacking = [word for word, hit in found.items() if hit is None]
            hits = tuple(hit for hit in found.values() if hit is not None)
            if hits and all(word.casefold() in SMALL_WORDS for word in lacking):
                return hits
        return ()


def nearest_names(name: str, known: Iterable[str]) -> tuple[str, ...]:
    """Return up to three names of a table that resemble `name`."""
    folded = {fold(word): word for word in known}
    forms = [fold(form) for one in spellings(name) for form in (*one.whole, *one.words)]
    close = (near for form in forms for near in difflib.get_close_matches(form, folded, n=3))
    return tuple(folded[near] for near in dict.fromkeys(close))[:_SUGGESTIONS]


def listed(missing: Iterable[str], suggestions: Mapping[str, tuple[str, ...]]) -> str:
    """Format missing names with suggestions: `'se lion' (near: sea, lion), 'yak'`."""
    return ", ".join(
        f"{name!r} (near: {', '.join(suggestions[name])})" if suggestions.get(name) else repr(name)
        for name in missing
    )
