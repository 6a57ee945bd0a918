"""CSV in which no text of a file's is a formula to the spreadsheet that opens it.

Excel, LibreOffice and Google Sheets compute a cell that begins with one of a few characters, quoted
or not, and a formula may read other cells, fetch addresses and run programs. Names of images, and
reasons that quote what was found in them, are strangers' words.
"""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_BEGIN_FORMULA = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")  # the last four are wide forms


def path_cell(path: str) -> str:
    """Return a relative path as a cell: `./` before one that would begin a formula.

    It names the same file as before.
    """
    return f"./{path}" if path.startswith(_BEGIN_FORMULA) else path


def text_cell(text: str) -> str:
    """Return words as a cell: `'` before what would begin a formula, as OWASP advises."""
    return f"'{text}" if text.startswith(_BEGIN_FORMULA) else text


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    r"""Return rows as CSV (RFC 4180); bytes of names that are not UTF-8 as `\xNN`.

    Args:
        rows: their cells; names and words by `path_cell` and `text_cell`.
    """
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue().encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
