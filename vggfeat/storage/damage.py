"""What reading a damaged file of someone else raises, whichever library reads it."""

from __future__ import annotations

import lzma
import struct
import tokenize
import zipfile
import zlib
from typing import Final

DAMAGE: Final = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    RuntimeError,  # and so RecursionError
    TypeError,
    ValueError,
    lzma.LZMAError,
    struct.error,
    tokenize.TokenError,  # of the headers of NumPy's arrays
    zipfile.BadZipFile,
    zlib.error,
)
"""What readers of zip, pickle, JSON and arrays raise on damaged bytes, besides OSError; a damaged
size may request absurd amounts of memory."""
