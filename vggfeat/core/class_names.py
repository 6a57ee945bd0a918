"""The one rule by which names of classes are matched, wherever two of them meet.

Labels, class lists, attribute tables, class trees and models all name classes, and are written by
different people. What differs between two spellings of one class is ignored: white space around a
name, the Unicode form, case, and whether words are joined by a blank, `_` or `-`. Everything else
counts.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vggfeat.core.text import first_few

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# A minus sign is no joint: labels such as -1 and 1, or "x -1" and "x 1", are two classes.
_JOINT = re.compile(r"[\s_]+|(?<=[^\W_])-(?=[^\W_])")


def fold(text: str) -> str:
    """Return a text in NFC without case: two texts that differ only in these are equal then."""
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


def clean(name: str) -> str:
    """Return a name as it is shown: in NFC, without white space around it."""
    return unicodedata.normalize("NFC", name.strip())


def class_key(name: str) -> str:
    """Return what two spellings of one class have in common.

    `"Sea_Lion "`, `"sea-lion"` and `"sea lion"` have the same key. A name of one character keeps
    its case: where letters are the classes, `a` and `A` are two.
    """
    name = clean(name)
    if len(name) == 1:
        return name
    return _JOINT.sub(" ", fold(name)).strip() or name


class ClassNames:
    """Finds classes by name: as written before any other spelling by the rule.

    Args:
        names: of the classes; of two that the rule takes for one the first is found.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._exact = tuple(names)
        self._known = frozenset(self._exact)
        self._by_key: dict[str, str] = {}
        for name in self._exact:
            self._by_key.setdefault(class_key(name), name)

    def find(self, name: str) -> str | None:
        """Return the class that is meant by `name`, as it is written here; None without one."""
        return name if name in self._known else self._by_key.get(class_key(name))

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.find(name) is not None


@dataclass(frozen=True, slots=True)
class Spellings:
    """Names of which some are the same class.

    Attributes:
        names: every name as given → the name of its class.
        merged: classes that are spelled in several ways, each with these, sorted.
    """

    names: Mapping[str, str]
    merged: Mapping[str, tuple[str, ...]]

    def __str__(self) -> str:
        """Say which spellings were taken for one class, the first few of many."""
        merged = self.merged.items()
        return first_few(
            (f"{', '.join(map(repr, some))} as {name!r}" for name, some in merged), "; "
        )


def unify(names: Iterable[str]) -> Spellings:
    """Take names that the rule does not tell apart for one class.

    The class gets the spelling that most of the names have, of equally many the first by
    alphabet, cleaned. A name that is all white space is none and becomes `""`.

    Args:
        names: one for each image, or one for each class.
    """
    counts = Counter(names)
    by_key: dict[str, list[str]] = {}
    for name in sorted(counts, key=lambda name: (-counts[name], name)):
        by_key.setdefault(class_key(name), []).append(name)
    chosen = {name: clean(some[0]) for some in by_key.values() for name in some}
    merged = {
        clean(some[0]): tuple(sorted({clean(name) for name in some}))
        for some in by_key.values()
        if len({clean(name) for name in some}) > 1
    }
    return Spellings(chosen, dict(sorted(merged.items())))
