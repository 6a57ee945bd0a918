"""What a file is by its first bytes, for messages about a file of another kind than expected."""

from __future__ import annotations

OF_CACHES = (b"\x89HDF\r\n\x1a\n", b"\x89VGG\r\n\x1a\n")
"""How HDF5 files begin, and those of vggfeat, whose HDF5 follows their index."""

KIND_BYTES = 16

MODEL_FORMAT = "vggfeat-model"
"""Attribute `format` of files with what fuse, reduce or zeroshot has fitted."""

_KINDS = (
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"\x89PNG\r\n", "a PNG image"),
    (b"GIF8", "a GIF image"),
    (b"II*\0", "a TIFF image"),
    (b"MM\0*", "a TIFF image"),
    (b"\x93NUMPY", "an array of NumPy"),
    (OF_CACHES[0], "an HDF5 file"),
    (OF_CACHES[1], "a cache of vggfeat"),
)


def file_kind(head: bytes) -> str:
    """Return what a file is that begins so, `a JPEG image`; empty if that is not known.

    Args:
        head: the first `KIND_BYTES` bytes, or fewer of a shorter file.
    """
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "a WebP image"
    if head[8:10] == b'{"' and int.from_bytes(head[:8], "little") < 1 << 32:
        return "a safetensors file"
    return next((kind for magic, kind in _KINDS if head.startswith(magic)), "")
