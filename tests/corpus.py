"""Files to be fed to a run over a folder: broken, strange and awkward ones, and sound ones between.

    python tests/corpus.py FOLDER

writes them for trying by hand. Each time they are the same bytes, but where Pillow or a library
below it writes other ones in another version.
"""

from __future__ import annotations

import io
import os
import stat
import struct
import sys
import warnings
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]

State = Literal["done", "failed", "skipped"]

WIDTH, HEIGHT = 64, 48
WHITE = 255
DOT: Pixels = np.array([[[9, 200, 7]]], np.uint8)

NO_IMAGE = r"not an image Pillow can read$"
TRUNCATED = r"truncated: "
BOMB = r"decompression bomb: .*at most 178956970 allowed \(--max-pixels\)$"
ANY = r"."
GONE = r"no such file \(gone since it was listed\)$"


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """One file, and what must become of it.

    Attributes:
        name: below the folder, the file system's own bytes.
        data: what is in it; None for what is no file of its own.
        state: of its row; `skipped` has none.
        reason: of a failed one, as a regular expression that begins where the reason does.
        picture: uint8 RGB (h, w, 3): a sound image, and the same crop comes of it as of the file.
    """

    name: bytes
    data: bytes | None
    state: State
    reason: str = ""
    picture: Pixels | None = None


def done(name: str | bytes, data: bytes, picture: Pixels) -> Item:
    return Item(os.fsencode(name), data, "done", picture=picture)


def failed(name: str | bytes, data: bytes, reason: str) -> Item:
    return Item(os.fsencode(name), data, "failed", reason)


def passed_over(name: str | bytes, data: bytes) -> Item:
    return Item(os.fsencode(name), data, "skipped")


def as_pillow_has_it(name: str | bytes, data: bytes) -> Item:
    """Done, with what plain Pillow shows; or failed, if it raises."""
    try:
        picture = shown(data)
    except Exception:  # noqa: BLE001 plugins raise nearly anything
        return failed(name, data, ANY)
    return done(name, data, picture)


def shown(data: bytes) -> Pixels:
    """The picture as Pillow alone decodes it."""
    with warnings.catch_warnings():  # Pillow's own, of what is broken in them
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("RGB"))


def photo(name: str, width: int = WIDTH, height: int = HEIGHT) -> Pixels:
    """Smooth colours with noise on them, of each name others."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    small = Image.fromarray(rng.integers(0, 256, (5, 7, 3), np.uint8))
    smooth = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), np.int16)
    noisy: Pixels = (smooth + rng.integers(-9, 10, smooth.shape)).clip(0, WHITE).astype(np.uint8)
    return noisy


def grey(name: str) -> Pixels:
    """Likewise in one channel, (h, w)."""
    return np.ascontiguousarray(photo(name)[..., 0])


def thrice(values: NDArray[Any]) -> Pixels:
    return np.repeat(values.astype(np.uint8)[..., None], 3, axis=2)


def on_white(colours: NDArray[Any], alpha: NDArray[Any]) -> Pixels:
    share = alpha.astype(float)[..., None] / WHITE
    return np.rint(colours * share + WHITE * (1 - share)).astype(np.uint8)


def saved(picture: Pixels | Image.Image, kind: str, **options: Any) -> bytes:
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(
    width: int,
    height: int,
    depth: int,
    colour: int,
    rows: list[bytes],
    *more: bytes,
    laced: int = 0,
) -> bytes:
    """A PNG of unfiltered rows; `more` are chunks in front of the pixels."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, laced))
    body = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + body + chunk(b"IEND", b"")


def tiff(tags: dict[int, tuple[int, int, int]], pixels: bytes, order: str = "<") -> bytes:
    """A TIFF with its pixels at byte 8; of each tag type, count and value."""
    directory = struct.pack(f"{order}H", len(tags))
    for tag, (kind, count, value) in sorted(tags.items()):
        short = kind == 3 and count == 1
        packed = struct.pack(f"{order}HH" if short else f"{order}I", *([value, 0][: 1 + short]))
        directory += struct.pack(f"{order}HHI", tag, kind, count) + packed
    start = struct.pack(f"{order}HI", 42, 8 + len(pixels))
    return (b"II" if order == "<" else b"MM") + start + pixels + directory + bytes(4)


def tiff_tags(
    width: int, height: int, channels: int, bits: int, size: int
) -> dict[int, tuple[int, int, int]]:
    """Tags of an uncompressed TIFF in one strip; the bits of several channels lie behind it."""
    depth = (3, 1, bits) if channels == 1 else (3, channels, 8 + size)
    return {
        256: (4, 1, width), 257: (4, 1, height), 258: depth, 259: (3, 1, 1),
        262: (3, 1, 1 if channels == 1 else 2), 273: (4, 1, 8), 277: (3, 1, channels),
        278: (4, 1, height), 279: (4, 1, size),
    }  # fmt: skip


Options = dict[str, Any]

Image.init()
HAS_AVIF = "AVIF" in Image.SAVE

LOSSLESS: dict[str, tuple[str, Options]] = {
    "png": ("PNG", {}), "bmp": ("BMP", {}), "dib": ("DIB", {}), "tif": ("TIFF", {}),
    "ppm": ("PPM", {}), "tga": ("TGA", {}), "webp": ("WEBP", {"lossless": True}),
    "jp2": ("JPEG2000", {}), "j2k": ("JPEG2000", {"no_jp2": True}), "pcx": ("PCX", {}),
    "rgb": ("SGI", {}), "ico": ("ICO", {"sizes": [(WIDTH, HEIGHT)]}),
    "lzw.tiff": ("TIFF", {"compression": "tiff_lzw"}),
    "deflate.tiff": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    "packbits.tiff": ("TIFF", {"compression": "packbits"}),
    "rle.tga": ("TGA", {"compression": "tga_rle"}),
}  # fmt: skip
LOSSY: dict[str, tuple[str, Options]] = {
    "jpg": ("JPEG", {}), "progressive.jpg": ("JPEG", {"progressive": True}),
    "444.jpeg": ("JPEG", {"subsampling": 0, "quality": 100}),
    "worst.jpe": ("JPEG", {"quality": 1}),
    "restarts.jfif": ("JPEG", {"restart_marker_blocks": 1}), "mpo": ("MPO", {}),
    "webp": ("WEBP", {}), "jpeg.tif": ("TIFF", {"compression": "jpeg"}),
    "jp2": ("JPEG2000", {"irreversible": True, "quality_layers": [20]}),
    **({"avif": ("AVIF", {})} if HAS_AVIF else {}),
}  # fmt: skip


def sound() -> Iterator[Item]:
    """Plain pictures in each format, as they are between the broken ones."""
    for ending, (kind, options) in LOSSLESS.items():
        picture = photo(ending)
        yield done(f"sound/lossless.{ending}", saved(picture, kind, **options), picture)
    for ending, (kind, options) in LOSSY.items():
        data = saved(photo(ending), kind, **options)
        yield done(f"sound/lossy.{ending}", data, shown(data))


def modes() -> Iterator[Item]:
    """Every way to say a colour that is not three bytes."""
    level, alpha, colours = grey("level"), grey("alpha"), photo("colours")
    for ending, kind in (("png", "PNG"), ("tif", "TIFF"), ("gif", "GIF")):
        yield done(f"modes/grey.{ending}", saved(level, kind), thrice(level))
    data = saved(level, "JPEG")
    yield done("modes/grey.jpg", data, shown(data))
    bits = Image.fromarray(level).point([0] * 128 + [WHITE] * 128, "1")
    black_or_white = thrice((level > 127) * WHITE)
    for ending, kind in (("png", "PNG"), ("bmp", "BMP"), ("pbm", "PPM")):
        yield done(f"modes/bilevel.{ending}", saved(bits, kind), black_or_white)
    yield done("modes/fax.tif", saved(bits, "TIFF", compression="group4"), black_or_white)
    both = Image.merge("LA", [Image.fromarray(level), Image.fromarray(alpha)])
    yield done("modes/la.png", saved(both, "PNG"), on_white(thrice(level), alpha))
    layer, laid = np.dstack([colours, alpha]), on_white(colours, alpha)
    yield done("modes/rgba.png", saved(layer, "PNG"), laid)
    yield done("modes/rgba.tif", saved(layer, "TIFF"), laid)
    yield done("modes/rgba.webp", saved(layer, "WEBP", lossless=True, exact=True), laid)


def palettes() -> Iterator[Item]:
    """Colours looked up in a table, of which one may be a hole."""
    index = grey("index") % 16
    colours = photo("palette", 16, 1)[0]  # (16, 3)
    image = Image.fromarray(index)
    image.putpalette(colours.tobytes())
    for kind in ("PNG", "GIF", "BMP"):
        yield done(f"modes/palette.{kind.lower()}", saved(image, kind), colours[index])
    holes = np.where((index == 5)[..., None], np.uint8(WHITE), colours[index])
    for kind in ("PNG", "GIF"):
        data = saved(image, kind, transparency=5)
        yield done(f"modes/transparent-index.{kind.lower()}", data, holes)


def deep_greys() -> Iterator[Item]:
    """Grey of more than eight bits keeps its range."""
    ramp = np.linspace(0, 65535, WIDTH * HEIGHT).round().astype(np.uint16).reshape(HEIGHT, WIDTH)
    swapped = ramp.astype(">u2")
    picture = thrice(np.rint(ramp / 257))
    rows = [row.tobytes() for row in swapped]
    yield done("modes/grey16.png", png(WIDTH, HEIGHT, 16, 0, rows), picture)
    yield done("modes/grey16.tif", saved(Image.fromarray(ramp), "TIFF"), picture)
    big = saved(Image.frombytes("I;16B", (WIDTH, HEIGHT), swapped.tobytes()), "TIFF")
    yield done("modes/grey16-big-endian.tif", big, picture)
    pgm = b"P5 %d %d 65535\n" % (WIDTH, HEIGHT) + swapped.tobytes()
    yield done("modes/grey16.pgm", pgm, picture)
    unit = (ramp / 65535).astype(np.float32)
    stretched = thrice(np.rint(unit.astype(np.float64) * WHITE))
    yield done("modes/float.tif", saved(Image.fromarray(unit), "TIFF"), stretched)
    yield done("modes/int32.tif", saved(Image.fromarray(ramp.astype(np.int32)), "TIFF"), picture)


def deep_colours() -> Iterator[Item]:
    """Of colours in sixteen bits the upper byte is kept, as Pillow does."""
    upper, alpha = photo("upper byte"), grey("alpha of sixteen bits")
    wide = upper.astype(np.uint16) * 256 + 77
    rows = [row.tobytes() for row in wide.astype(">u2").reshape(HEIGHT, -1)]
    yield done("modes/rgb16.png", png(WIDTH, HEIGHT, 16, 2, rows), upper)
    flat = wide.astype("<u2").tobytes()
    tags = tiff_tags(WIDTH, HEIGHT, 3, 16, len(flat))
    yield done("modes/rgb16.tif", tiff(tags, flat + struct.pack("<4H", 16, 16, 16, 0)), upper)
    wide = np.dstack([wide, alpha.astype(np.uint16) * 257])
    rows = [row.tobytes() for row in wide.astype(">u2").reshape(HEIGHT, -1)]
    yield done("modes/rgba16.png", png(WIDTH, HEIGHT, 16, 6, rows), on_white(upper, alpha))


def inks() -> Iterator[Item]:
    """Four inks, by Adobe's custom of inverting them in a JPEG, told or not; and seven passes."""
    four = Image.fromarray(photo("inks")).convert("CMYK")
    data = saved(four, "JPEG", quality=95)
    yield done("modes/cmyk-adobe.jpg", data, shown(data))
    at = data.index(b"\xff\xee")
    plain = data[:at] + data[at + 2 + int.from_bytes(data[at + 2 : at + 4], "big") :]
    yield done("modes/cmyk-plain.jpg", plain, shown(plain))
    yield done("modes/cmyk.tif", saved(four, "TIFF"), np.asarray(four.convert("RGB")))
    level = grey("interlaced")
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
              (0, 1, 1, 2))  # fmt: skip
    rows = [row.tobytes() for x, y, dx, dy in passes for row in level[y::dy, x::dx]]
    yield done("modes/interlaced.png", png(WIDTH, HEIGHT, 8, 0, rows, laced=1), thrice(level))


def frames() -> Iterator[Item]:
    """Of several frames, pages or views the first counts; behind it, only WebP must be whole."""
    first = photo("first")
    others = [Image.fromarray(photo(f"frame {number}")) for number in range(8)]
    several: Options = {"save_all": True, "append_images": others}
    pair: Options = {"save_all": True, "append_images": others[:1]}
    for kind, ending in (("PNG", "apng"), ("TIFF", "tif"), ("GIF", "gif"), ("MPO", "mpo")):
        data = saved(first, kind, **(pair if kind == "MPO" else several))
        picture = shown(data) if kind in ("GIF", "MPO") else first
        yield done(f"frames/first.{ending}", data, picture)
        if kind != "TIFF":  # its pages are listed one behind another
            yield done(f"frames/others-cut.{ending}", data[: len(data) * 3 // 4], picture)
    data = saved(first, "WEBP", lossless=True, **several)
    yield done("frames/first.webp", data, first)
    yield failed("frames/others-cut.webp", data[: len(data) * 3 // 4], ANY)


def exif_of(orientation: tuple[int, int, int]) -> bytes:
    """EXIF with one entry: type, count and value."""
    return b"Exif\0\0II*\0\x08\0\0\0\x01\0" + struct.pack("<HHII", 0x0112, *orientation) + bytes(4)


BROKEN_EXIF = {
    "garbage": b"Exif\0\0garbage", "empty": b"Exif\0\0", "cut": exif_of((3, 1, 6))[:-12],
    "far": b"Exif\0\0II*\0\xff\xff\xff\xff", "count": b"Exif\0\0II*\0\x08\0\0\0\xff\xff",
    "zero": exif_of((3, 1, 0)), "nine": exif_of((3, 1, 9)), "text": exif_of((2, 4, 0x36363636)),
    "type": exif_of((99, 1, 6)), "fraction": exif_of((5, 1, 0xFFFF)),
    "itself": b"Exif\0\0II*\0\x08\0\0\0\x01\0" + struct.pack("<HHIII", 0x8769, 4, 1, 8, 8),
    "large": b"Exif\0\0" + b"\xa5" * 65000,
}  # fmt: skip
BROKEN_SEGMENTS = {
    "xmp": b"\xff\xe1\0\x30http://ns.adobe.com/xap/1.0/\0<x:xmpmeta <<<",
    "photoshop": b"\xff\xed\0\x20Photoshop 3.0\x008BIM\4\4\0\0\xff\xff\xff\xff",
    "mpf": b"\xff\xe2\0\x10MPF\0II*\0\xff\xff\xff\xff\0\0",
}


def metadata() -> Iterator[Item]:
    """What is said about a picture turns it if it makes sense, and else does nothing to it."""
    picture = photo("with metadata")
    jpeg = saved(picture, "JPEG")
    plain = shown(jpeg)
    turned = {1: plain, 3: plain[::-1, ::-1], 6: np.rot90(plain, -1), 8: np.rot90(plain, 1)}
    for orientation, upright in turned.items():
        data = saved(picture, "JPEG", exif=exif_of((3, 1, orientation)))
        yield done(f"metadata/orientation-{orientation}.jpg", data, np.ascontiguousarray(upright))
    for name, exif in BROKEN_EXIF.items():
        yield done(f"metadata/exif-{name}.jpg", saved(picture, "JPEG", exif=exif), plain)
        yield done(f"metadata/exif-{name}.png", saved(picture, "PNG", exif=exif), picture)
    yield done("metadata/icc.jpg", saved(picture, "JPEG", icc_profile=b"junk" * 50_000), plain)
    rows = [row.tobytes() for row in picture]
    for name, body in (("icc", b"x\0\0not zlib"), ("icc-empty", b""), ("icc-method", b"x\0\7a")):
        data = png(WIDTH, HEIGHT, 8, 2, rows, chunk(b"iCCP", body))
        yield as_pillow_has_it(f"metadata/{name}.png", data)
    for name, segment in BROKEN_SEGMENTS.items():
        full = segment.ljust(2 + int.from_bytes(segment[2:4], "big"), b"\0")
        yield done(f"metadata/broken-{name}.jpg", jpeg[:2] + full + jpeg[2:], plain)


def shapes() -> Iterator[Item]:
    """Sides as small and as large as they come."""
    for kind, ending in (("PNG", "png"), ("GIF", "gif"), ("BMP", "bmp"), ("TIFF", "tif")):
        yield done(f"shapes/1x1.{ending}", saved(DOT, kind), DOT)
    data = saved(DOT, "JPEG")
    yield done("shapes/1x1.jpg", data, shown(data))
    # Resized whole, a line would be two million pixels long; the crop shows its middle alone.
    line = np.zeros((60_000, 1, 3), np.uint8)
    line[29_990:30_010] = DOT
    yield done("shapes/1x60000.png", saved(line, "PNG"), DOT)
    lying = np.ascontiguousarray(line.transpose(1, 0, 2))
    yield done("shapes/60000x1.png", saved(lying, "PNG"), DOT)
    for width, height in ((65_500, 16), (16, 65_500)):
        data = saved(photo("long", width, height), "JPEG")
        middle = slice(32_750 - 64, 32_750 + 64)
        cut = (slice(None), middle) if width > height else middle
        yield done(f"shapes/{width}x{height}.jpg", data, shown(data)[cut])
    for width, height in ((2, 3), (31, 33), (32, 32), (37, 37), (500, 3), (3, 500), (999, 998)):
        picture = photo("size", width, height)
        yield done(f"shapes/{width}x{height}.png", saved(picture, "PNG"), picture)


def nothing_to_show() -> Iterator[Item]:
    """Pictures without a pixel, and PNGs of forms that there are not."""
    bitmap = saved(DOT, "BMP")
    yield failed("shapes/0x1.png", png(0, 1, 8, 2, [b""]), ANY)
    yield failed("shapes/0x0.gif", b"GIF89a" + bytes(7) + b";", ANY)
    yield failed("shapes/0x0.bmp", bitmap[:18] + bytes(8) + bitmap[26:], ANY)
    yield failed("shapes/0x0.pgm", b"P5 0 0 255\n", ANY)
    for depth, colour in ((3, 0), (8, 1), (8, 5), (0, 2), (16, 3), (255, 255)):
        data = png(4, 4, depth, colour, [bytes(64)] * 4)
        yield failed(f"chunks/depth-{depth}-colour-{colour}.png", data, ANY)
    picture = photo("chunks")
    data = png(WIDTH, HEIGHT, 8, 2, [row.tobytes() for row in picture])
    pixels, end = data.index(b"IDAT") - 4, len(data) - 12
    yield failed("chunks/no-pixels.png", data[:pixels] + data[end:], ANY)
    yield failed("chunks/no-header.png", data[:8] + data[pixels:], ANY)
    yield failed("chunks/wrong-checksum.png", data[:29] + b"\0\0\0\0" + data[33:], ANY)
    # Pixels have a checksum of their own inside, which stands.
    yield done("chunks/wrong-outer-checksum.png", data[: end - 4] + bytes(4) + data[end:], picture)
    yield done("chunks/length.png", data[:pixels] + b"\xff" * 4 + data[pixels + 4 :], picture)
    yield done("chunks/no-end.png", data[:end], picture)


CUT: dict[str, tuple[str, Options]] = {
    "baseline.jpg": ("JPEG", {"quality": 95}),
    "progressive.jpg": ("JPEG", {"quality": 95, "progressive": True}),
    **{f"x.{ending}": how for ending, how in LOSSLESS.items()},
    "lossy.webp": ("WEBP", {}),
    **({"x.avif": ("AVIF", {})} if HAS_AVIF else {}),
}
SAY_SO = ("JPEG", "PNG", "BMP", "PPM")
"""Formats in which every cut is called one; in others what is left may be no image at all."""


def truncated() -> Iterator[Item]:
    """Every format, ended at each tenth."""
    for name, (kind, options) in CUT.items():
        data = saved(photo(f"cut {name}"), kind, **options)
        for tenth in range(1, 10):
            cut = data[: len(data) * tenth // 10]
            yield failed(f"truncated/{tenth}-{name}", cut, TRUNCATED if kind in SAY_SO else ANY)
    jpeg = saved(photo("no end"), "JPEG")
    yield failed("truncated/no-end.jpg", jpeg[:-2], TRUNCATED)
    yield failed("truncated/half-an-end.jpg", jpeg[:-1], TRUNCATED)


FLIPPED = ("baseline.jpg", "progressive.jpg", "x.png", "x.gif", "x.bmp", "x.deflate.tiff", "x.jp2",
           "lossy.webp")  # fmt: skip


def flipped() -> Iterator[Item]:
    """One bit in each tenth the other way round: found where a format has checksums, as PNG has."""
    for name in FLIPPED:
        kind, options = CUT[name] if name != "x.gif" else ("GIF", {})
        data = saved(photo(f"flipped {name}"), kind, **options)
        for tenth in range(10):
            changed = bytearray(data)
            changed[len(data) * tenth // 10 + 5] ^= 1 << (tenth % 8)
            whole = f"flipped/{tenth}-{name}", bytes(changed)
            yield failed(*whole, ANY) if kind == "PNG" else as_pillow_has_it(*whole)


NOISE = np.random.default_rng(0).bytes(5000)
SOMETHING_ELSE = {
    "zeros": bytes(4096), "noise": NOISE, "text": b"plain text\n" * 50, "newline": b"\n",
    "html": b"<!DOCTYPE html>\n<html><body><h1>404 Not Found</h1></body></html>\n",
    "json": b'{"error": "no such image"}', "utf16": "text".encode("utf-16"),
    "svg": b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>',
    "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "pdf": b"%PDF-1.4\n%%EOF\n", "elf": b"\x7fELF\2\1\1" + bytes(60),
    "gzip": b"\x1f\x8b\x08" + NOISE, "zip": b"PK\3\4" + NOISE,
    "mp4": b"\0\0\0\x18ftypmp42" + NOISE,
}  # fmt: skip
STARTS = {
    "jpg": b"\xff\xd8", "png": b"\x89PNG\r\n\x1a\n", "gif": b"GIF89a", "bmp": b"BM", "ppm": b"P6",
    "tif": b"II*\0", "webp": b"RIFF\x10\0\0\0WEBPVP8 ", "ico": b"\0\0\1\0",
    "jp2": b"\0\0\0\x0cjP  \r\n\x87\n",
}  # fmt: skip


def no_images() -> Iterator[Item]:
    """Files that are something else, or nothing, under the name of an image."""
    for number, (name, data) in enumerate(SOMETHING_ELSE.items()):
        ending = ("jpg", "png", "gif", "tif", "webp")[number % 5]
        yield failed(f"no-images/{name}.{ending}", data, NO_IMAGE)
    for ending, start in STARTS.items():
        yield failed(f"no-images/empty.{ending}", b"", r"empty file$")
        yield failed(f"no-images/start-alone.{ending}", start, ANY)
        yield failed(f"no-images/start-and-noise.{ending}", start + NOISE, ANY)
    program = saved(photo("eps"), "EPS")
    reason = r"EPS, a program for Ghostscript; it is not run$"
    yield failed("no-images/program.png", program, reason)
    yield failed("no-images/hdf5.tif", b"\x89HDF\r\n\x1a\n" + bytes(500), ANY)
    yield failed("no-images/metafile.bmp", b"\xd7\xcd\xc6\x9a" + bytes(500), ANY)


PASSED_OVER = (
    "x", "png", "x.txt", "x.png.txt", "x.png~", "x.mp4", "x.zip", "x.tar.gz", "x.pdf", "x.",
    "x.png.part", ".hidden.png", "._x.png", ".hidden/x.png", "x.p\xf1g",
)  # fmt: skip


def extensions() -> Iterator[Item]:
    """The content decides what a file is, and the extension whether it is looked at."""
    picture = photo("extension")
    jpeg, lossless = saved(picture, "JPEG"), saved(picture, "PNG")
    plain = shown(jpeg)
    yield done("extensions/is-png.jpg", lossless, picture)
    yield done("extensions/is-jpeg.png", jpeg, plain)
    yield done("extensions/is-gif.webp", saved(grey("gif"), "GIF"), thrice(grey("gif")))
    yield done("extensions/UPPER.PNG", lossless, picture)
    yield done("extensions/Mixed.JpEg", jpeg, plain)
    yield done("extensions/two.tar.png", lossless, picture)
    for name in PASSED_OVER:
        yield passed_over(f"extensions/passed/{name}", lossless)
    for name, tail in (("newline", b"\r\n"), ("zeros", bytes(70_000)), ("picture", jpeg)):
        yield done(f"extensions/{name}-behind.png", lossless + tail, picture)
        yield done(f"extensions/{name}-behind.jpg", jpeg + tail, plain)
    for ending, data in (("png", lossless), ("jpg", jpeg)):
        yield failed(f"extensions/newline-in-front.{ending}", b"\r\n" + data, NO_IMAGE)
        text = data.decode("latin-1").encode("utf-8")
        yield failed(f"extensions/sent-as-text.{ending}", text, NO_IMAGE)


def liars() -> Iterator[Item]:
    """Headers that claim more pixels than are there, beyond what is allowed and just below."""
    bitmap = saved(np.zeros((8, 8, 3), np.uint8), "BMP")
    gif = saved(np.zeros((8, 8), np.uint8), "GIF")
    block = gif.index(b",", 13 + 3) + 5
    for side, reason in ((65_500, BOMB), (13_000, ANY)):
        little, half = struct.pack("<HH", side, side), struct.pack("<ii", side, side)
        yield failed(f"liars/{side}.png", png(side, side, 8, 2, [bytes(100)]), reason)
        whole = gif[:6] + little + gif[10:block] + little + gif[block + 4 :]
        yield failed(f"liars/{side}.gif", whole, reason)
        yield failed(f"liars/{side}.bmp", bitmap[:18] + half + bitmap[26:], reason)
        tags = tiff_tags(side, side, 1, 8, side * side)
        yield failed(f"liars/{side}.tif", tiff(tags, bytes(100)), reason)
        yield failed(f"liars/{side}.ppm", b"P6 %d %d 255\n" % (side, side) + bytes(100), reason)
        targa = struct.pack("<BBBHHBHHHHBB", 0, 0, 2, 0, 0, 0, 0, 0, side, side, 24, 0)
        yield failed(f"liars/{side}.tga", targa + bytes(100), reason)
        sgi = struct.pack(">HBBHHHH", 474, 0, 1, 3, side, side, 3).ljust(512, b"\0")
        yield failed(f"liars/{side}.sgi", sgi + bytes(100), reason)
        pcx = struct.pack("<BBBBHHHH", 10, 5, 1, 8, 0, 0, side - 1, side - 1).ljust(65, b"\0")
        row = struct.pack("<BH", 3, side).ljust(63, b"\0")
        yield failed(f"liars/{side}.pcx", pcx + row, reason)


def greater_liars() -> Iterator[Item]:
    """Numbers as large as their fields hold."""
    most = 2**31 - 1
    bitmap = saved(np.zeros((8, 8, 3), np.uint8), "BMP")
    yield failed("liars/most.png", png(most, most, 8, 2, [bytes(100)]), BOMB)
    yield failed("liars/most.bmp", bitmap[:18] + struct.pack("<ii", most, most) + bitmap[26:], BOMB)
    yield failed("liars/top-down.bmp", bitmap[:22] + struct.pack("<i", -most) + bitmap[26:], ANY)
    yield failed("liars/colours.bmp", bitmap[:28] + b"\x08\0" + bitmap[30:46] + b"\xff" * 8, ANY)
    tags = tiff_tags(2**32 - 1, 2**32 - 1, 1, 8, 100)
    yield failed("liars/most.tif", tiff(tags, bytes(100)), ANY)
    tags = tiff_tags(8, 8, 1, 8, 64)
    yield failed("liars/offset.tif", tiff({**tags, 273: (4, 1, 2**31)}, bytes(64)), ANY)
    yield failed("liars/strips.tif", tiff({**tags, 273: (4, 2**30, 8)}, bytes(64)), ANY)
    yield failed("liars/samples.tif", tiff({**tags, 277: (3, 1, 4100)}, bytes(64)), ANY)
    yield failed("liars/most.ppm", b"P6 99999999999 99999999999 255\n", ANY)
    yield failed("liars/maximum.pgm", b"P5 4 4 99999999999\n" + bytes(32), ANY)
    xpm = b'/* XPM */\nstatic char *x[] = {\n"%s 1 1 1",\n"a c #ff0000",\n"a"};' % (b"9" * 200)
    yield failed("liars/digits.png", xpm, r"decompression bomb: ")
    vp8x = b"WEBPVP8X" + struct.pack("<II", 10, 0) + b"\xff" * 6
    yield failed("liars/most.webp", b"RIFF" + struct.pack("<I", len(vp8x)) + vp8x, ANY)
    stream = bytearray(saved(np.zeros((8, 8, 3), np.uint8), "JPEG2000", no_jp2=True))
    stream[8:16] = b"\xff" * 8
    yield failed("liars/most.j2k", bytes(stream), ANY)
    inner = png(20_000, 20_000, 8, 2, [bytes(100)])
    entry = struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(inner), 22)
    yield failed("liars/inside.ico", struct.pack("<HHH", 0, 1, 1) + entry + inner, BOMB)
    yield failed("liars/entries.ico", b"\0\0\1\0\xff\xff" + entry * 3, ANY)


def lying_jpegs() -> Iterator[Item]:
    """Likewise; what is missing before a JPEG says that it ends is filled up by its library."""
    jpeg = saved(np.zeros((8, 8, 3), np.uint8), "JPEG")
    sides = jpeg.index(b"\xff\xc0") + 5

    def claiming(height: int, width: int) -> bytes:
        return jpeg[:sides] + struct.pack(">HH", height, width) + jpeg[sides + 4 :]

    yield failed("liars/65500.jpg", claiming(65_500, 65_500), BOMB)
    yield failed("liars/most.jpg", claiming(65_535, 65_535), BOMB)
    yield failed("liars/long.jpg", claiming(8, 65_535), ANY)
    yield as_pillow_has_it("liars/500.jpg", claiming(500, 500))
    yield failed("liars/segment.jpg", jpeg[:2] + b"\xff\xe1\xff\xff" + jpeg[2:], ANY)


def bombs() -> Iterator[Item]:
    """Small files that unpack to much, within the picture and beside it."""
    zeros = zlib.compress(bytes(2**26))
    picture = photo("bomb")
    rows = [row.tobytes() for row in picture]
    for kind, start in (
        (b"zTXt", b"word\0\0"),
        (b"iTXt", b"word\0\1\0\0\0"),
        (b"iCCP", b"name\0\0"),
    ):
        data = png(WIDTH, HEIGHT, 8, 2, rows, chunk(kind, start + zeros))
        yield failed(
            f"bombs/{kind.decode()}.png", data, r"(?i)ValueError: decompressed data too large"
        )
    for kind, start in ((b"zTXt", b"word\0\0"), (b"iTXt", b"word\0\1\0\0\0")):
        words = chunk(kind, start + zlib.compress(bytes(2**22), 9))  # as editors do put there
        yield done(
            f"bombs/long_{kind.decode()}.png", png(WIDTH, HEIGHT, 8, 2, rows, words), picture
        )
    text = chunk(b"zTXt", b"word\0\0" + zlib.compress(bytes(2**20), 9))
    data = png(WIDTH, HEIGHT, 8, 2, rows, *([text] * 80))
    yield failed("bombs/texts.png", data, r"(?i)ValueError: too much memory used in text chunks")
    many = png(WIDTH, HEIGHT, 8, 2, rows, *([chunk(b"abCd", b"")] * 50_000))
    yield done("bombs/chunks.png", many, picture)
    rest = [bytes(2**20)] * 128  # behind the only pixel
    yield done("bombs/pixels.png", png(1, 1, 8, 2, [DOT.tobytes(), *rest]), DOT)
    real = png(20_000, 20_000, 1, 0, [bytes(2500)] * 20_000)
    yield failed("bombs/real.png", real, r"decompression bomb: 20000 x 20000 pixels")
    large = png(6_000, 6_000, 1, 0, [b"\xff" * 750] * 6_000)
    yield done("bombs/allowed.png", large, np.full((1, 1, 3), WHITE, np.uint8))
    jpeg = saved(photo("scans"), "JPEG", progressive=True)
    scan = jpeg.rindex(b"\xff\xda")
    yield as_pillow_has_it("bombs/scans.jpg", jpeg[:scan] + jpeg[scan:-2] * 500 + jpeg[-2:])
    yield passed_over("bombs/deep.zip", deep_zip())


def deep_zip(depth: int = 6) -> bytes:
    """A zip of ten zips of ten zips and so on, at the bottom 16 MiB of zeros: in all, 16 TB."""
    data = bytes(2**24)
    for level in range(depth):
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
            for number in range(10 if level else 1):
                name = zipfile.ZipInfo(f"{number}.{'zip' if level else 'png'}")
                archive.writestr(name, data, zipfile.ZIP_DEFLATED)
        data = stream.getvalue()
    return data


ODD_NAMES: tuple[str | bytes, ...] = (
    b"\xff\xfe.png", b"latin-\xe9.png", "new\nline.png", "carriage\rreturn.png", "tab\t.png",
    "\x1b[31mred.png", "bell\a.png", " .png", "  two  .png", "a, \"b\" 'c'.png", "%s%n{0}.png",
    "-rf.png", "@list.png", "a!b.png", "x.zip!y.png", "back\\slash.png", "$HOME `id`.png",
    "*?[a].png", "#.png", "~.png", "\u202egnp.png", "e\u0301.png", "\xe9.png", "\u65e5\u672c.png",
    "\U0001f600.png", "x.png.png", "x.h5.png", "a" * 246 + ".png", "b" * 251 + ".png",
)  # fmt: skip


def names() -> Iterator[Item]:
    """Sound pictures under every name that a file system takes."""
    for name in (*ODD_NAMES, b"deeper/" * 60 + b"x.png", b"\xff/\n/x.png"):
        picture = photo(repr(name))
        yield done(b"names/" + os.fsencode(name), saved(picture, "PNG"), picture)
    yield failed(b'names/no, "image"\n\xff.png', b"text", NO_IMAGE)


FAMILIES = (
    sound, modes, palettes, deep_greys, deep_colours, inks, frames, metadata, shapes,
    nothing_to_show, truncated, flipped, no_images, extensions, liars, greater_liars, lying_jpegs,
    bombs, names,
)  # fmt: skip


def special(folder: bytes) -> Iterator[Item]:
    """Makes what is no plain file: pipes, links, folders named like images, a file nobody may read.

    Whoever runs as root reads that one all the same, unless the right to is given up.
    """
    picture = photo("special")
    data = saved(picture, "PNG")
    for name, mode in (("pipe.jpg", stat.S_IFIFO), ("socket.jpg", stat.S_IFSOCK)):
        os.mknod(os.path.join(folder, os.fsencode(name)), mode | 0o600)
        yield Item(os.fsencode(name), None, "skipped")
    links: tuple[tuple[str, str, State, str], ...] = (
        ("broken-link.png", "nowhere.png", "failed", "a symbolic link to 'nowhere.png'"),
        ("loop-1.png", "loop-2.png", "failed", r"Too many levels of symbolic links$"),
        ("loop-2.png", "loop-1.png", "failed", r"Too many levels of symbolic links$"),
        ("link-to-itself.png", "link-to-itself.png", "failed", r"Too many levels of symbolic"),
        ("link-to-pipe.png", "pipe.jpg", "skipped", ""),
        ("link-to-device.png", "/dev/zero", "skipped", ""),
        ("link-to-folder.png", ".", "skipped", ""),
        ("folder-loop", "..", "skipped", ""),
    )
    for name, target, state, reason in links:
        os.symlink(target, os.path.join(folder, os.fsencode(name)))
        yield Item(os.fsencode(name), None, state, reason)
    yield _written(folder, done("folder.jpg/inside.png", data, picture))
    os.mkdir(os.path.join(folder, b"empty-folder.jpg"))
    yield Item(b"empty-folder.jpg", None, "skipped")
    os.symlink("folder.jpg/inside.png", os.path.join(folder, b"link.png"))
    os.link(os.path.join(folder, b"folder.jpg/inside.png"), os.path.join(folder, b"hard-link.png"))
    for name in ("link.png", "hard-link.png"):
        yield Item(os.fsencode(name), None, "done", picture=picture)
    yield _written(folder, failed("unreadable.png", data, r"permission denied$"))
    os.chmod(os.path.join(folder, b"unreadable.png"), 0)


def _written(folder: bytes, item: Item) -> Item:
    path = os.path.join(folder, item.name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "xb") as stream:
        stream.write(item.data or b"")
    return item


def write_corpus(folder: Path) -> tuple[Item, ...]:
    """Writes everything into `folder`, which need not exist, and says what must become of it."""
    root = os.fsencode(folder)
    os.makedirs(root, exist_ok=True)
    plain = [_written(root, item) for family in FAMILIES for item in family()]
    os.mkdir(os.path.join(root, b"special"))
    below = [
        Item(b"special/" + item.name, item.data, item.state, item.reason, item.picture)
        for item in special(os.path.join(root, b"special"))
    ]
    return (*plain, *below)


if __name__ == "__main__":
    items = write_corpus(Path(sys.argv[1]))
    for word in ("done", "failed", "skipped"):
        print(f"{sum(item.state == word for item in items)} {word}")  # noqa: T201 its purpose
