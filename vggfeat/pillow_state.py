"""Pillow as in a fresh process, whatever the host process has made of it."""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import operator
import re
from typing import TYPE_CHECKING, Any

import PIL
from PIL import GifImagePlugin, Image, ImageFile, TiffImagePlugin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Plugin = tuple[Callable[..., Any], Callable[..., Any] | None]

# Those that Pillow asks first; of all others the order is its own.
_FIRST = ("BmpImagePlugin", "GifImagePlugin", "JpegImagePlugin", "PpmImagePlugin", "PngImagePlugin")
_REGISTRATION = re.compile(r"^Image\.register_open\(([^()]*)\)", re.MULTILINE)

# Without a handler of its own, Python would print what does not propagate.
_LOGGER = logging.getLogger("PIL")
_LOGGER.addHandler(logging.NullHandler())

_FRESH: tuple[tuple[Any, str, Any], ...] = (
    # Would make a whole image of a file that was cut short, with grey where pixels are missing.
    (ImageFile, "LOAD_TRUNCATED_IMAGES", False),
    # The first frame of a GIF has a palette or is RGB by it.
    (GifImagePlugin, "LOADING_STRATEGY", GifImagePlugin.LoadingStrategy.RGB_AFTER_FIRST),
    # Decodes uncompressed TIFFs by libtiff too, whose conversions are others.
    (TiffImagePlugin, "READ_LIBTIFF", False),
    (Image, "WARN_POSSIBLE_FORMATS", False),
    # Its complaints name no file; what fails says why, and the rest is no matter.
    (_LOGGER, "propagate", False),
)


@contextlib.contextmanager
def pillow_as_installed() -> Iterator[None]:
    """Give Pillow its own plugins, all of them and no others, and its own ways to read files.

    What the host process has registered, unregistered or switched on is put aside for a while: it
    must not decide which images of a cache are done.
    """
    plugins = own_plugins()
    state: Any = Image
    fresh = [
        *_FRESH,
        (state, "OPEN", dict(plugins)),
        (state, "ID", list(plugins)),
        (state, "_initialized", 2),  # nothing is left to load
    ]
    fresh = [entry for entry in fresh if hasattr(*entry[:2])]  # versions of Pillow differ
    before = [(place, name, getattr(place, name)) for place, name, _ in fresh]
    try:
        for place, name, value in fresh:
            setattr(place, name, value)
        yield
    finally:
        for place, name, value in before:
            setattr(place, name, value)


@functools.cache
def own_plugins() -> dict[str, Plugin]:
    """Format → what Pillow itself registers for it, in the order in which it asks them.

    Taken from the sources of its plugins: their modules register when they are imported, once, and
    the host process may have changed the registry since. The first call takes a tenth of a second.
    """
    Image.init()  # for the plugins' decoders and file extensions
    found: dict[str, Plugin] = {}
    for name in (*_FIRST, *PIL._plugins):  # noqa: SLF001 the only list of them
        with contextlib.suppress(ImportError):
            module = importlib.import_module(f"PIL.{name}")
            for format_, factory, *accept in _registrations(module):
                found.setdefault(format_.upper(), (factory, accept[0] if accept else None))
    return found


def _registrations(module: Any) -> Iterator[list[Any]]:
    """Arguments of each `Image.register_open(…)` in a module, looked up there."""
    source = module.__loader__.get_source(module.__name__) or ""
    for arguments in _REGISTRATION.findall(source):
        names = [name.strip() for name in arguments.split(",") if name.strip()]
        yield [operator.attrgetter(name)(module) for name in names]
