"""What the ending of a file's name says: an image, an archive, another format than HDF5."""

from __future__ import annotations

import os
from types import MappingProxyType
from typing import Final

IMAGE_EXTENSIONS: Final = frozenset(
    b"apng avif avifs bmp dcm dib dicom gif heic heics heif heifs hif ico j2c j2k jfif jp2 jpc jpe "
    b"jpeg jpf jpg jpx jxl mpo pbm pcx pgm png pnm ppm rgb rgba sgi tga tif tiff webp".split()
)
"""Lower-case extensions of pictures that Pillow reads, by itself or with an extra, and of DICOM;
files in folders are chosen by them."""

TAR_SUFFIXES: Final = tuple(
    b"tar tar.gz tgz tar.bz2 tbz2 tbz tar.xz txz tar.zst tzst tar.lz tar.lzma tlz "
    b"tar.z taz tar.lz4 tar.lzo tzo tar.lrz".split()
)
"""Lower-case endings, without the dot, of files that are read as tar archives; those of the second
line are refused by the name of their compression."""

ZIP_SUFFIX: Final = b"zip"
"""Likewise, of those that are read as zip archives."""

MEMBER_MARK: Final = b"!"
"""Between the path of an archive and the name of a member."""

_EXPORTS: Final = MappingProxyType(
    {
        b"npy": "npy",
        b"npz": "npz",
        b"csv": "csv",
        b"tsv": "csv",
        b"parquet": "parquet",
        b"pq": "parquet",
        b"safetensors": "safetensors",
        b"faiss": "faiss",
        b"tar": "webdataset",
    }
)
_DRAWN: Final = MappingProxyType(
    {b"html": "explore", b"png": "plot", b"svg": "plot", b"pdf": "plot"}
)
"""Commands that write a picture or a page of a cache, by the ending of its name."""

_NO_HDF5: Final = frozenset(
    b"7z arrow avi avro bz2 ckpt feather gz html ini ipynb joblib json jsonl lmdb log md mov mp4 "
    b"onnx orc pdf pickle pkl pt pth py sqlite svg tfrecord tgz toml txt xls xlsx xml xz yaml yml "
    b"zarr zip zst".split()
)
"""Lower-case extensions that stand for another format than HDF5, beside pictures and `_EXPORTS`."""


def other_format(out: str) -> str:
    """Say what is wrong with naming a cache so, if the ending is that of another format; else ''.

    Endings that nothing else is known by, such as `.v2`, are fine.
    """
    name = foreign_ending(out)
    if not name:
        return ""
    # Beside a picture, which the user did not mean to name, no cache is suggested.
    cache = "feats.h5" if name in IMAGE_EXTENSIONS else f"{out[: -len(name) - 1]}.h5"
    form = _EXPORTS.get(name, "FORMAT")
    then = f"for another format use `vggfeat export {cache} --to {form} --out PATH` afterwards"
    if name in _DRAWN:
        then = f"use `vggfeat {_DRAWN[name]} {cache} --out {out}` afterwards"
    return (
        f"output {out!r} is named like a file of another format, and a cache is HDF5; name it "
        f"{cache!r}, and {then}"
    )


def foreign_ending(out: str) -> bytes:
    """Return the lower-case ending of a name that stands for another format than HDF5, or b''."""
    stem, dot, ending = os.path.basename(out).rpartition(".")
    name = os.fsencode(ending).lower()
    known = name in _NO_HDF5 | IMAGE_EXTENSIONS | _EXPORTS.keys()
    return name if dot and stem and known else b""


def extension(name: bytes) -> bytes:
    """Lower-case extension without its dot, b'' for none."""
    _, dot, found = name.rpartition(b".")
    return found.lower() if dot else b""


def archive_suffix(name: bytes) -> bytes:
    """Lower-case ending that marks `name` as an archive, without its dot; b'' for none."""
    lower = name.lower()
    for suffix in (*TAR_SUFFIXES, ZIP_SUFFIX):
        if lower.endswith(b"." + suffix):
            return suffix
    return b""
