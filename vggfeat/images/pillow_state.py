"""Use Pillow as in a fresh process, whatever the host process has changed in it."""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import operator
import pkgutil
import re
from typing import TYPE_CHECKING, Any

import PIL
from PIL import GifImagePlugin, Image, ImageFile, PngImagePlugin, TiffImagePlugin

from vggfeat.images.optional_formats import PLUGINS, thread_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Plugin = tuple[Callable[..., Any], Callable[..., Any] | None]

# Pillow tries these first; all others follow in its own order.
_FIRST = ("BmpImagePlugin", "GifImagePlugin", "JpegImagePlugin", "PpmImagePlugin", "PngImagePlugin")
_REGISTRATION = re.compile(r"^ *Image\.register_(open|decoder)\(([^()]*)\)", re.MULTILINE)

# Python prints warnings that neither propagate nor have a handler.
_LOGGER = logging.getLogger("PIL")
_LOGGER.addHandler(logging.NullHandler())

_FRESH: tuple[tuple[Any, str, Any], ...] = (
    # If set, a truncated file becomes a whole image, grey where pixels are missing.
    (ImageFile, "LOAD_TRUNCATED_IMAGES", False),
    # It decides whether the first frame of a GIF has a palette or is RGB.
    (GifImagePlugin, "LOADING_STRATEGY", GifImagePlugin.LoadingStrategy.RGB_AFTER_FIRST),
    # If set, libtiff decodes uncompressed TIFFs too, and its conversions differ.
    (TiffImagePlugin, "READ_LIBTIFF", False),
    # A PNG with more text fails, however good its pixels.
    (PngImagePlugin, "MAX_TEXT_MEMORY", 64 * 1024 * 1024),
    (Image, "WARN_POSSIBLE_FORMATS", False),
    # Its warnings name no file, and a failed image has its reason anyway.
    (_LOGGER, "propagate", False),
)


@contextlib.contextmanager
def pillow_as_installed() -> Iterator[None]:
    """Give Pillow its own plugins and those of our extras, no others, and its own defaults.

    For this time, whatever the host process has registered, unregistered or switched on has no
    effect: it must not decide which images of a cache are done.
    """
    plugins = own_plugins()
    state: Any = Image
    fresh = [
        *_FRESH,
        *thread_settings(),
        (state, "OPEN", dict(plugins)),
        (state, "ID", list(plugins)),
        # Pillow tries a decoder registered by the host before its own in C of the same name.
        (state, "DECODERS", dict(own_decoders())),
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
    """Return the plugins of Pillow and of our extras, by format, in the order Pillow tries them.

    They are read from the source code of Pillow's plugins: modules register when they are first
    imported, and the host process may have changed the registry since. The first call takes a tenth
    of a second.
    """
    found: dict[str, Plugin] = {}
    for kind, (format_, factory, *accept) in _own_registrations():
        if kind == "open":
            found.setdefault(format_.upper(), (factory, accept[0] if accept else None))
    return found


@functools.cache
def own_decoders() -> dict[str, Any]:
    """Return the decoder classes in Python that Pillow itself registers, by name."""
    return {
        name: decoder for kind, (name, decoder, *_) in _own_registrations() if kind == "decoder"
    }


def _plugin_names() -> list[str]:
    """Return the modules of Pillow's plugins, in the order of its private list if it has one."""
    modules = (module.name for module in pkgutil.iter_modules(PIL.__path__))
    return list(getattr(PIL, "_plugins", ())) or [
        name for name in modules if name.endswith("ImagePlugin")
    ]


@functools.cache
def _own_registrations() -> list[tuple[str, list[Any]]]:
    """Return each `Image.register_open(…)` and `register_decoder(…)`: its kind and arguments."""
    Image.init()  # for the plugins' file extensions
    found = []
    own = (*_FIRST, *(name for name in _plugin_names() if name not in _FIRST))
    for name in (*(f"PIL.{name}" for name in own), *PLUGINS):
        with contextlib.suppress(ImportError, OSError):  # not installed, or without its C library
            module: Any = importlib.import_module(name)
            source = module.__loader__.get_source(module.__name__) or ""
            for kind, arguments in _REGISTRATION.findall(source):
                names = [name.strip() for name in arguments.split(",") if name.strip()]
                values = [
                    name.strip('"') if name[0] == '"' else operator.attrgetter(name)(module)
                    for name in names
                ]
                found.append((kind, values))
    return found
