"""Values that must be one of a few: the check, and the one error of all that are not."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from vggfeat.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

T = TypeVar("T")


def choose(what: str, known: Iterable[T], value: object) -> T:
    """Return the one of `known` that equals `value`; raise UsageError if none does."""
    known = tuple(known)
    for one in known:
        if one == value:
            return one
    raise UsageError(unknown_value(what, map(str, known), value))


def unknown_value(what: str, known: Iterable[str], *values: object) -> str:
    """Return the error `unknown norm 'l3'; expected one of none, l2, ssr (did you mean l2?)`.

    Args:
        what: the values are to the user.
        known: all values that are allowed.
        values: that are not among them.
    """
    known = tuple(known)
    given = ", ".join(map(repr, values))
    return f"unknown {what} {given}; expected one of {', '.join(known)}" + did_you_mean(
        map(str, values), known
    )


def unknown_choices(record: object, known: Mapping[str, Iterable[str]]) -> list[str]:
    """Return the error of each field of a record that has none of the values known for it."""
    values = {name: getattr(record, name) for name in known}
    return [
        unknown_value(name, known[name], value)
        for name, value in values.items()
        if value not in known[name]
    ]


def did_you_mean(words: Iterable[str], known: Iterable[str], *, most: int = 1) -> str:
    """Return ` (did you mean conv5_4?)` with up to `most` near names a word, or ''."""
    import difflib  # only where something is wrong: it would slow down every start

    names = tuple(known)
    near = [name for word in words for name in difflib.get_close_matches(word, names, most)]
    return f" (did you mean {', '.join(dict.fromkeys(near))}?)" if near else ""
