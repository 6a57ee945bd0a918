"""Read the metadata of a cache by its HDF5 objects, without libhdf5."""

from __future__ import annotations

import contextlib
import itertools
from typing import TYPE_CHECKING

import numpy as np

from vggfeat.cache.attributes import attribute_text, read_attributes
from vggfeat.cache.format import (
    ATTRIBUTES,
    FEATURES,
    FORMAT,
    IMAGES,
    OFFSETS,
    READ_VERSIONS,
    SCALES,
    VIEW_FORMAT,
    DatasetExtent,
    Header,
    image_fields,
)
from vggfeat.core.file_kinds import KIND_BYTES, MODEL_FORMAT, OF_CACHES, file_kind
from vggfeat.core.quantization import Scales
from vggfeat.core.settings import DTYPES
from vggfeat.core.text import counted, printable
from vggfeat.errors import CacheError, MissingFileError
from vggfeat.storage.hdf5_metadata.blocks import MetadataError, NotHdf5Error
from vggfeat.storage.hdf5_metadata.reader import Dataset, Group, open_metadata

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from vggfeat.storage.hdf5_metadata.reader import Hdf5File

_OPTIONAL = ("digest",)  # the first files had none
_NDIMS = range(2, 5)  # (N, D) to (N, C, H, W)


def read_hdf5_header(file_name: str) -> Header:
    """Read and check the metadata of a cache by its HDF5 objects; no index is looked at.

    Raises:
        CacheError: it does not exist, is not a cache of ours, or is damaged; nothing else is
            raised, whatever the file holds.
    """
    with _told(file_name), open_metadata(file_name) as file:
        return _read(file_name, file)


def text_charset(file_name: str) -> str:
    """Return the character set that a cache declares for its paths, `ascii` or `utf-8`.

    Raises:
        CacheError: see `read_hdf5_header`.
    """
    with _told(file_name), open_metadata(file_name) as file:
        images = file.root.get(IMAGES)
        paths = images.get("path") if isinstance(images, Group) else None
        found = paths.datatype.charset if isinstance(paths, Dataset) else None
        if found is None:
            raise MetadataError(f"/{IMAGES}/path is missing, or holds no texts")
        return found


@contextlib.contextmanager
def _told(file_name: str) -> Iterator[None]:
    """Make every error of reading a file a `CacheError` that names it."""
    try:
        yield
    except CacheError:
        raise
    except FileNotFoundError:
        raise MissingFileError(f"cache {file_name!r} does not exist") from None
    except NotHdf5Error as error:
        if kind := _other_kind(file_name):
            raise CacheError(
                f"cache {file_name!r} is {kind}, and no cache: `vggfeat extract IMAGES --layers "
                "LAYERS --out feats.h5` makes one of images"
            ) from error
        raise CacheError(
            f"cache {file_name!r} is not an HDF5 file, or was cut short: {error}"
        ) from error
    except MetadataError as error:
        raise CacheError(f"cache {file_name!r} is damaged: {printable(str(error))}") from error
    except (OSError, ValueError) as error:  # a name with a NUL byte is a ValueError
        reason = getattr(error, "strerror", None) or error
        raise CacheError(f"cache {file_name!r} cannot be read: {reason}") from error


def _other_kind(file_name: str) -> str:
    with contextlib.suppress(OSError), open(file_name, "rb") as file:
        head = file.read(KIND_BYTES)
        return "" if head.startswith(OF_CACHES) else file_kind(head)  # one that was cut short
    return ""


def _read(file_name: str, file: Hdf5File) -> Header:
    attributes = {name: _value(file, name) for name in ATTRIBUTES if name in file.root.attributes}
    version = _check_format(file_name, attributes)
    groups = {name: file.root.get(name) for name in (IMAGES, FEATURES, SCALES, OFFSETS)}
    members = {
        name: {one: group.get(one) for one in group.links}
        for name, group in groups.items()
        if isinstance(group, Group)
    }
    linked = list(_elsewhere(file.root, groups, members))
    if linked:
        raise CacheError(
            f"cache {file_name!r} does not hold its own data: {'; '.join(linked)}; name the file "
            "that holds them, or copy them into one (h5py: copy with expand_external=True)"
        )
    wrong: list[str] = []
    runs = dict(_runs(members, wrong))
    if version > 1 and "digest" not in members.get(IMAGES, {}):
        wrong.append(f"/{IMAGES}/digest is missing")
    rows = runs[f"{IMAGES}/state"].shape[0] if f"{IMAGES}/state" in runs else -1
    wrong += [
        f"/{name} has {counted(run.shape[0], 'row')}, /{IMAGES}/state {rows}"
        for name, run in runs.items()
        if rows >= 0 and run.shape[0] != rows
    ]
    wrong += _overlaps(runs)
    scales = dict(_scales(members, runs, wrong))
    found = read_attributes(attributes, runs, scales, wrong)
    if wrong or found is None:
        raise CacheError(f"cache {file_name!r} is damaged: {'; '.join(wrong)}")
    return Header(*found, rows, runs, scales, version, file.user_block if version > 1 else 0)


def _value(file: Hdf5File, name: str) -> object:
    """Return an attribute of `/` that is a text or a whole number; anything else in words."""
    return file.root.attributes[name].value()


def _check_format(file_name: str, attributes: Mapping[str, object]) -> int:
    """Return the version of the format; refuse what is no cache, or of another version."""
    value = attributes.get("format")
    found = attribute_text(value)
    if found == VIEW_FORMAT:
        raise CacheError(
            f"{file_name!r} is a view of shards for other tools; name the folder of the shards"
        )
    if found == MODEL_FORMAT:
        raise CacheError(
            f"{file_name!r} is a model that vggfeat fuse, reduce or zeroshot has fitted, and no "
            "cache; name the cache of the images"
        )
    if found != FORMAT:
        shown = repr(value if found is None else found)
        raise CacheError(
            f"{file_name!r} is an HDF5 file but no cache of ours: attribute format is {shown}, "
            f"expected {FORMAT!r}"
        )
    version = attributes.get("format_version")
    if not isinstance(version, int) or version not in READ_VERSIONS:
        newer = isinstance(version, int) and version > max(READ_VERSIONS)
        known = " and ".join(map(str, READ_VERSIONS))
        raise CacheError(
            f"cache {file_name!r} has format version {version!r:.40}, this vggfeat reads {known}; "
            f"{'upgrade it' if newer else 'it is damaged'}"
        )
    return version


_Members = dict[str, dict[str, "Group | Dataset | None"]]


def _runs(members: _Members, wrong: list[str]) -> Iterator[tuple[str, DatasetExtent]]:
    """Yield the extent of each dataset; append what is missing or cannot be mapped to `wrong`."""
    images = members.get(IMAGES, {})
    for column, (type_name, shape) in image_fields(1).items():
        name, dataset, expected = f"{IMAGES}/{column}", images.get(column), np.dtype(type_name)
        if column in _OPTIONAL and column not in images:
            continue
        if not isinstance(dataset, Dataset) or not dataset.shape or dataset.shape[1:] != shape:
            values = counted(shape[0], "value") if shape else "one value"
            wrong.append(f"/{name} is missing or not {values} a row")
        elif (found := dataset.datatype.numpy) is None or (
            found.kind != "S" if expected.kind == "S" else found != expected
        ):
            wrong.append(f"/{name} has type {dataset.datatype.words}, expected {expected}")
        else:
            yield from _mappable(name, dataset, wrong)
    features = members.get(FEATURES)
    if not features:
        wrong.append(f"/{FEATURES} holds no layer")
        return
    for spec, dataset in features.items():
        name = f"{FEATURES}/{spec}"
        if not spec.isprintable() or "/" in spec:
            wrong.append(f"{name!r} is no name of a layer")
        elif not isinstance(dataset, Dataset) or len(dataset.shape or ()) not in _NDIMS:
            wrong.append(f"/{name} is no array of rows")
        elif dataset.datatype.words not in DTYPES:
            wrong.append(
                f"/{name} has type {dataset.datatype.words}, expected {' or '.join(DTYPES)}"
            )
        else:
            yield from _mappable(name, dataset, wrong)


def _scales(
    members: _Members, runs: Mapping[str, DatasetExtent], wrong: list[str]
) -> Iterator[tuple[str, Scales]]:
    """Scale and offset of each layer of codes; what is missing or of another shape is wrong."""
    for name, run in runs.items():
        group, _, spec = name.partition("/")
        if group != FEATURES or np.dtype(run.dtype) != np.int8:
            continue
        found = [
            one
            for kind in (SCALES, OFFSETS)
            if isinstance(one := members.get(kind, {}).get(spec), Dataset)
            and one.shape == run.shape[1:2]
            and one.datatype.words == "float32"
        ]
        if len(found) != 2:  # noqa: PLR2004 scale and offset
            wrong.append(
                f"/{SCALES}/{spec} or /{OFFSETS}/{spec} is missing, or not float32 of shape "
                f"{run.shape[1:2]}"
            )
            continue
        yield spec, Scales(*(one.read() for one in found))


def _elsewhere(
    root: Group, groups: Mapping[str, Group | Dataset | None], members: _Members
) -> Iterator[str]:
    """Name each link, virtual dataset and dataset in a raw file in some groups below `/`.

    The offsets of what they refer to mean nothing in this file.
    """
    for group in groups:
        link = root.links.get(group)
        if link is not None and link.address is None:
            yield f"/{group} is {link.words}"
        found = groups[group]
        for name, one in members.get(group, {}).items():
            path = printable(f"/{group}/{name}")
            if isinstance(found, Group) and found.links[name].address is None:
                yield f"{path} is {found.links[name].words}"
            elif isinstance(one, Dataset) and one.elsewhere:
                yield f"{path} {one.elsewhere}"


def _mappable(name: str, dataset: Dataset, wrong: list[str]) -> Iterator[tuple[str, DatasetExtent]]:
    """Yield the name and extent of a dataset, or append to `wrong` why it cannot be mapped."""
    shape = dataset.shape or ()
    if not all(shape):
        wrong.append(f"/{name} is empty: its shape is {shape}")
        return
    try:
        offset = dataset.offset()
    except MetadataError as error:
        wrong.append(str(error).removeprefix("dataset "))
        return
    if offset is None:
        wrong.append(
            f"/{name} does not lie in one run (compressed or repacked?), so it cannot be memory "
            "mapped; `h5repack -f NONE -l CONTI` makes it so"
        )
        return
    # Little-endian in the file, whatever this machine is.
    dtype = np.dtype(dataset.datatype.numpy).newbyteorder("<").str
    yield name, DatasetExtent(dtype, shape, offset)


def _overlaps(runs: Mapping[str, DatasetExtent]) -> Iterator[str]:
    """Name datasets whose bytes are also those of another, which a run would write over."""
    ordered = sorted(runs.items(), key=lambda item: (item[1].offset, item[0]))
    for (first, one), (second, other) in itertools.pairwise(ordered):
        if one.offset + one.row_bytes * one.shape[0] > other.offset:
            yield f"/{second} begins inside /{first}"
