"""Decodes broken images for as long as it is told, and keeps whatever decoding got wrong.

    python scripts/fuzz_decode.py --seconds 3600 [--inputs N] [--seed N] [--processes N]
        [--findings FOLDER] [PHOTOS...]

Input number K of seed N is the same bytes on every machine with the same Pillow and photographs.
Right is an array of the shape the settings ask for, or a `DecodeError` with one printable line of
at most 150 characters. Anything else is a finding, a process that dies or hangs as well: its bytes
are saved, with a text beside them, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import logging
import os
import random
import resource
import struct
import sys
import time
import zlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from vggfeat.core.preprocessing import Crop, Preprocess
from vggfeat.core.settings import Settings
from vggfeat.errors import DecodeError
from vggfeat.images.batch_plan import plan_batches
from vggfeat.images.decode import REASON_LENGTH, decode
from vggfeat.images.worker_pool import decode_batches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from vggfeat import pool

ADDRESS_SPACE = 4 * 2**30
"""Bytes of a decoding process.

An image of as many pixels as the default allows takes 0.7 GB in Pillow, three times that once it is
laid on white; what needs more than this must end in a `DecodeError` and not in swap.
"""

SECONDS_AN_IMAGE = 30.0
REPORT_SECONDS = 30.0
ROUND = 4096
"""Inputs until the processes are started anew, so that one that grows does not for ever."""

BATCH = 64
SIDE = 32
CROPS: tuple[Crop, ...] = ("center", "pad", "none")
SMALL, USUAL = 2**22, Settings(layers="fc7").max_pixels
"""Limits of pixels. The usual one lets headers that lie take memory and time: one in 32 has it."""

WRONG = "WRONG "
"""What reasons begin with that are findings."""

_OF_THE_POOL = ("its decoding process ", "decoding took longer ")


@dataclass(frozen=True, slots=True)
class Trial:
    """One input, and the settings to decode it with."""

    data: bytes
    preprocess: Preprocess
    max_pixels: int
    about: str


@dataclass(slots=True)
class Tally:
    """What came of the inputs so far."""

    started: float = field(default_factory=time.monotonic)
    inputs: int = 0
    decoded: int = 0
    findings: int = 0
    slowest: tuple[float, int] = (0.0, 0)
    """Seconds, and the input that took them."""
    reasons: Counter[str] = field(default_factory=Counter)


def picture(mode: str, width: int = 41, height: int = 29) -> Image.Image:
    """Smooth colours with noise on them."""
    rng = np.random.default_rng([width, height])
    small = Image.fromarray(rng.integers(0, 256, (5, 7, 4), np.uint8))
    smooth = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), np.int16)
    noisy = (smooth + rng.integers(-9, 10, smooth.shape)).clip(0, 255).astype(np.uint8)
    if mode == "I;16":
        return Image.fromarray(noisy[..., 0].astype(np.uint16) * 257)
    image = Image.fromarray(noisy)
    return image.convert("RGB").convert(mode) if mode in ("LAB", "HSV") else image.convert(mode)


MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I;16", "I", "F")
_EXIF = b"Exif\0\0II*\0\x08\0\0\0\x01\0" + struct.pack("<HHII", 0x0112, 3, 1, 6) + bytes(4)
_SEVERAL = {"save_all": True, "append_images": [picture("RGB", 40, 29), picture("RGB", 41, 28)]}
_TIFF = ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "lzma", "zstd", "webp")
VARIANTS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("JPEG", "RGB", {"progressive": True, "exif": _EXIF, "icc_profile": b"junk" * 40}),
    ("JPEG", "RGB", {"subsampling": 0, "restart_marker_blocks": 1, "comment": b"words"}),
    ("JPEG", "CMYK", {"progressive": True}),
    ("PNG", "P", {"transparency": bytes(range(0, 256, 2)), "bits": 8}),
    ("PNG", "RGB", {"transparency": (1, 2, 3), "exif": _EXIF, "icc_profile": b"junk" * 40}),
    ("GIF", "P", {"transparency": 3, "interlace": 0}),
    ("WEBP", "RGBA", {"lossless": True, "exif": _EXIF, "icc_profile": b"junk" * 40}),
    *((kind, "RGB", _SEVERAL) for kind in ("GIF", "PNG", "TIFF", "WEBP", "MPO", "AVIF")),
    *(("TIFF", "RGB", {"compression": name}) for name in _TIFF),
    *(("TIFF", "1", {"compression": name}) for name in ("group3", "group4", "tiff_ccitt")),
    ("TIFF", "I;16", {"compression": "tiff_lzw"}),
    ("TIFF", "F", {"compression": "tiff_adobe_deflate"}),
    ("TIFF", "RGB", {"big_tiff": True}),
    ("TIFF", "YCbCr", {"compression": "jpeg", "tiffinfo": {0x0112: 6}}),
    ("JPEG2000", "RGB", {"irreversible": True, "tile_size": (16, 16)}),
    ("JPEG2000", "L", {"no_jp2": True, "quality_layers": [20, 5]}),
    ("TGA", "RGBA", {"compression": "tga_rle"}),
    ("ICO", "RGBA", {"bitmap_format": "bmp"}),
    *(("DDS", "RGBA", {"pixel_format": name}) for name in ("DXT1", "DXT3", "DXT5", "BC2", "BC5")),
)


def saved(image: Image.Image, kind: str, options: dict[str, Any]) -> bytes:
    """The file that Pillow makes of an image; b'' where it does not, and some never do."""
    stream = io.BytesIO()
    try:
        image.save(stream, kind, **options)
    except Exception:  # noqa: BLE001 each plugin refuses in its own way
        return b""
    return stream.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def interlaced_png() -> bytes:
    """A grey PNG in seven passes, which Pillow reads and does not write."""
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
              (0, 1, 1, 2))  # fmt: skip
    grey = np.asarray(picture("L"))
    rows = [row for x, y, dx, dy in passes for row in grey[y::dy, x::dx] if row.size]
    body = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    head = struct.pack(">IIBBBBB", grey.shape[1], grey.shape[0], 8, 0, 0, 0, 1)
    text = chunk(b"zTXt", b"word\0\0" + zlib.compress(b"word " * 99))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [chunk(b"IHDR", head), text, chunk(b"IDAT", body), chunk(b"IEND", b"")]
    )


def by_hand() -> Iterator[tuple[str, bytes]]:
    """Small files of formats that Pillow reads and does not write."""
    rgb, grey = picture("RGB", 8, 8).tobytes(), picture("L", 8, 8).tobytes()
    yield "interlaced PNG", interlaced_png()
    yield "SUN", struct.pack(">8I", 0x59A66A95, 8, 8, 24, 192, 1, 0, 0) + rgb
    yield "PSD", b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 8, 8, 8, 3) + bytes(14) + rgb
    yield "GBR", struct.pack(">5I4sI", 29, 2, 8, 8, 1, b"GIMP", 1) + b"\0" + grey
    xpm = b'/* XPM */\nstatic char *a[] = {\n"2 1 2 1",\n"a c #ff0000",\n"b c #00ff00",\n"ab"};'
    yield "XPM", xpm
    values = {"SIMPLE": "T", "BITPIX": 8, "NAXIS": 2, "NAXIS1": 8, "NAXIS2": 8}
    cards = "".join(f"{key:8}= {value:>20}".ljust(80) for key, value in values.items())
    yield "FITS", cards.ljust(2800).encode() + b"END".ljust(80) + grey.ljust(2880, b"\0")
    icon = saved(picture("RGBA"), "ICO", {"bitmap_format": "bmp", "sizes": [(16, 16)]})
    yield "CUR", icon[:2] + b"\2" + icon[3:]
    yield "DCX", struct.pack("<III", 0x3ADE68B1, 12, 0) + saved(picture("P"), "PCX", {})
    yield "run-length BMP", run_length_bmp()
    flic = struct.pack("<IHHHHHHHI", 128 + 86, 0xAF11, 1, 8, 8, 8, 3, 0, 70).ljust(128, b"\0")
    chunks = struct.pack("<IHH8xIH", 16 + 6 + 64, 0xF1FA, 1, 70, 16)
    yield "FLI", flic + chunks + grey


def run_length_bmp() -> bytes:
    """Two rows of eight pixels with a palette."""
    rows = b"\5\7\0\3\1\2\3\0\0\0" * 2 + b"\0\1"
    info = struct.pack("<IiiHHIIiiII", 40, 8, 2, 1, 8, 1, len(rows), 0, 0, 256, 0)
    info += bytes(range(256)) * 4
    head = struct.pack("<2sIII", b"BM", 14 + len(info + rows), 0, 14 + len(info))
    return head + info + rows


def make_seeds(photos: list[Path]) -> list[tuple[str, bytes]]:
    """Whole files, each with what it is, of every format that there is a way to make.

    They are written in another process, because some a version of Pillow dies of.
    """
    Image.init()
    plain = [(kind, mode, dict[str, Any]()) for kind in sorted(Image.SAVE) for mode in MODES]
    recipes = (*plain, *VARIANTS)

    def write(number: int) -> tuple[bytes, NDArray[np.uint8]]:
        confine()
        kind, mode, options = recipes[number]
        return b"", np.frombuffer(saved(picture(mode), kind, options), np.uint8)

    plan = plan_batches(np.arange(len(recipes)), 1)
    seeds = []
    for (image,) in decode_batches(
        plan, None, write, workers=1, timeout=SECONDS_AN_IMAGE, goes_on=lambda: True
    ):
        kind, mode, options = recipes[image.row]
        if image.pixels is not None and image.pixels.size:
            seeds.append((f"{kind} {mode} {' '.join(options)}".strip(), image.pixels.tobytes()))
    seeds += by_hand()
    return seeds + [(path.name, path.read_bytes()) for path in photos]


_EXTREMES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000,
             0xFFFFFFFF, 0x100000000, 0x7FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF)  # fmt: skip


def _place(rng: random.Random, data: bytes) -> int:
    """Where to strike: half of the time in the first bytes, where a file says what it is."""
    return rng.randrange(min(len(data), 256) if rng.random() < 0.5 else len(data))


def flip_bits(rng: random.Random, data: bytes, _: bytes) -> bytes:
    """One to sixteen bits are the other way round."""
    changed = bytearray(data)
    for _bit in range(2 ** rng.randrange(5)):
        changed[_place(rng, data)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def cut_off(rng: random.Random, data: bytes, _: bytes) -> bytes:
    """It ends early."""
    return data[: _place(rng, data)]


def splice(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """It goes on as another file."""
    return data[: _place(rng, data)] + other[_place(rng, other) :]


def lie(rng: random.Random, data: bytes, _: bytes) -> bytes:
    """A number somewhere is extreme."""
    size = rng.choice((1, 2, 4, 8))
    value = rng.choice(_EXTREMES) % (1 << 8 * size)
    at = _place(rng, data)
    number = value.to_bytes(size, rng.choice(("big", "little")))
    return data[:at] + number + data[at + size :]


def repeat(rng: random.Random, data: bytes, _: bytes) -> bytes:
    """A piece comes again, up to a thousand times where it is short."""
    at, length = _place(rng, data), 2 ** rng.randrange(12)
    piece = data[at : at + length]
    return data[:at] + piece * rng.choice((2, 3, 2 + 1000 // length)) + data[at + length :]


def repeat_chunk(rng: random.Random, data: bytes, _: bytes) -> bytes:
    """A chunk of a PNG or a segment of a JPEG comes again, or stands elsewhere."""
    starts = _chunks(data)
    if len(starts) < 2:
        return repeat(rng, data, b"")
    at = rng.randrange(len(starts) - 1)
    piece = data[starts[at] : starts[at + 1]]
    to = rng.choice(starts)
    return data[:to] + piece * rng.choice((1, 1, 50)) + data[to:]


def insert(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Bytes that do not belong there stand in it."""
    length, at = 2 ** rng.randrange(10), _place(rng, data)
    start = _place(rng, other)
    foreign = rng.randbytes(length) if rng.random() < 0.5 else other[start : start + length]
    return data[:at] + foreign + data[at:]


def leave_out(rng: random.Random, data: bytes, _: bytes) -> bytes:
    """A piece is missing."""
    at = _place(rng, data)
    return data[:at] + data[at + 2 ** rng.randrange(10) :]


def _chunks(data: bytes) -> list[int]:
    """Where the chunks of a PNG, or the segments of a JPEG, begin and end."""
    png = data.startswith(b"\x89PNG")
    starts, at = [], 8 if png else 2
    while (png or data.startswith(b"\xff\xd8")) and at + 4 <= len(data):
        starts.append(at)
        at += (
            12 + int.from_bytes(data[at : at + 4], "big")
            if png
            else (2 + int.from_bytes(data[at + 2 : at + 4], "big"))
        )
    return starts


def mend_png(data: bytes) -> bytes:
    """The same PNG with the checksums its chunks should have, so that more than these is tested."""
    mended = bytearray(data)
    for start, end in zip(_chunks(data), _chunks(data)[1:], strict=False):
        mended[end - 4 : end] = struct.pack(">I", zlib.crc32(mended[start + 4 : end - 4]))
    return bytes(mended)


MUTATIONS: tuple[Callable[[random.Random, bytes, bytes], bytes], ...] = (
    flip_bits, cut_off, splice, lie, repeat, repeat_chunk, insert, leave_out,
)  # fmt: skip


class Fuzzer:
    """Makes the inputs of one seed, and tells which outcomes are right."""

    def __init__(self, seed: int, seeds: list[tuple[str, bytes]]) -> None:
        self.seed, self.seeds = seed, seeds

    def trial(self, number: int) -> Trial:
        """Input `number`; one in 64 is a seed as it is."""
        rng = random.Random(f"{self.seed} {number}")
        name, data = rng.choice(self.seeds)
        done = [name]
        for _ in range(0 if number % 64 == 0 else rng.choice((1, 1, 2, 3, 4))):
            change = rng.choice(MUTATIONS)
            other = rng.choice(self.seeds)[1]
            data = change(rng, data or b"\0", other)
            done.append(change.__name__)
        if data.startswith(b"\x89PNG") and rng.random() < 0.7:
            data = mend_png(data)
        crop = CROPS[number % len(CROPS)]
        size = 224 if rng.random() < 0.1 else SIDE
        preprocess = Preprocess(
            size=size,
            resize=size * 8 // 7 if crop == "center" else None,
            crop=crop,
            exif="ignore" if rng.random() < 0.2 else "apply",
        )
        return Trial(data, preprocess, USUAL if rng.random() < 1 / 32 else SMALL, ", ".join(done))

    def decode_row(self, number: int) -> tuple[bytes, NDArray[np.uint8]]:
        """What a decoding process does; findings are reasons that begin with `WRONG`.

        In the place of the digest, which nobody needs here, goes the time it took.
        """
        confine()
        trial = self.trial(number)
        started = time.process_time()
        reason = self.judge(trial)
        took = struct.pack("<d", time.process_time() - started)
        if reason:
            error = DecodeError(reason)
            error.digest = took
            raise error
        return took, np.empty((0, 0, 3), np.uint8)

    def judge(self, trial: Trial) -> str:
        """Decodes; '' for pixels as promised, the reason if it fails as it should, or `WRONG`."""
        try:
            pixels = decode(io.BytesIO(trial.data), trial.preprocess, trial.max_pixels)
        except DecodeError as error:
            return str(error) if _is_line(str(error)) else WRONG + ascii(error)
        except BaseException as error:  # noqa: BLE001 that is what is looked for
            return f"{WRONG}{type(error).__name__}: {error}"
        return "" if _is_right(pixels, trial) else f"{WRONG}{pixels.dtype} {pixels.shape}"


@functools.cache
def confine() -> None:
    """Bounds this process, and silences libraries that write to its standard error themselves."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    logging.disable()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _is_line(text: str) -> bool:
    return text.isprintable() and 0 < len(text) <= REASON_LENGTH


def _is_right(pixels: NDArray[np.uint8], trial: Trial) -> bool:
    size = trial.preprocess.size
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or not pixels.flags.c_contiguous:
        return False
    height, width = int(pixels.shape[0]), int(pixels.shape[1])
    if trial.preprocess.crop == "none":
        square = height == width == size
        return min(height, width) == size and (square or height * width <= trial.max_pixels)
    return pixels.shape == (size, size, 3)


def run(fuzzer: Fuzzer, folder: Path, *, seconds: float, inputs: int, processes: int) -> Tally:
    """Decodes for so long or so many, reports now and then, saves findings to `folder`."""
    tally = Tally()
    until, reported = tally.started + seconds, tally.started
    with contextlib.suppress(KeyboardInterrupt):  # the summary comes all the same
        for start in range(0, inputs, ROUND):
            plan = plan_batches(np.arange(start, min(start + ROUND, inputs)), BATCH)
            for images in decode_batches(
                plan, None, fuzzer.decode_row, workers=processes, timeout=SECONDS_AN_IMAGE,
                goes_on=lambda: time.monotonic() < until,
            ):  # fmt: skip
                for image in images:
                    _count(image, fuzzer, folder, tally)
                if time.monotonic() > reported + REPORT_SECONDS:
                    reported = time.monotonic()
                    print(_line(tally), flush=True)
            if time.monotonic() > until:
                break
    return tally


def _count(image: pool.Image, fuzzer: Fuzzer, folder: Path, tally: Tally) -> None:
    tally.inputs += 1
    if image.digest:
        (took,) = struct.unpack("<d", image.digest)
        tally.slowest = max(tally.slowest, (took, image.row))
    if image.pixels is not None:
        tally.decoded += 1
    elif image.reason.startswith((WRONG, *_OF_THE_POOL)):
        tally.findings += 1
        _save(image, fuzzer, folder)
    else:
        tally.reasons[" ".join(image.reason.split()[:3])] += 1


def _save(image: pool.Image, fuzzer: Fuzzer, folder: Path) -> None:
    trial = fuzzer.trial(image.row)
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"seed{fuzzer.seed}-{image.row}"
    stem.with_suffix(".bin").write_bytes(trial.data)
    about = f"{image.reason}\n{trial.about}\n{trial.preprocess}\nmax_pixels {trial.max_pixels}\n"
    stem.with_suffix(".txt").write_text(about, "utf-8", "backslashreplace")
    print(f"FINDING {stem}.bin: {image.reason!a}", flush=True)


def _line(tally: Tally) -> str:
    seconds = time.monotonic() - tally.started
    failed = sum(tally.reasons.values())
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return (
        f"{tally.inputs} inputs, {tally.decoded} decoded, {failed} failed, {tally.findings} "
        f"findings; largest process {peak:.0f} MB; slowest input {tally.slowest[0]:.1f} s "
        f"(number {tally.slowest[1]}); {seconds:.0f} s"
    )


def main(words: list[str] | None = None) -> int:
    """Reads the command line, runs, prints the summary; 1 if there were findings."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("photos", nargs="*", type=Path, metavar="PHOTOS", help="files or folders")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--inputs", type=int, default=sys.maxsize, help="stop after so many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--findings", type=Path, default=Path("fuzz_findings"), metavar="FOLDER")
    options = parser.parse_args(words)
    photos = [
        file
        for path in options.photos
        for file in (sorted(path.iterdir()) if path.is_dir() else [path])
    ]
    fuzzer = Fuzzer(options.seed, make_seeds(photos))
    print(f"seed {options.seed}, {len(fuzzer.seeds)} whole files to begin with", flush=True)
    tally = run(
        fuzzer,
        options.findings,
        seconds=options.seconds,
        inputs=options.inputs,
        processes=options.processes,
    )
    print(f"\n{_line(tally)}")
    for words_of_reason, times in tally.reasons.most_common(15):
        print(f"{times:9}  {words_of_reason}")
    return 1 if tally.findings else 0


if __name__ == "__main__":
    sys.exit(main())
