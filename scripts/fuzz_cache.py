"""Opens damaged and lying caches by every command for as long as it is told, and keeps what fails.

    python scripts/fuzz_cache.py [--seconds 3600] [--seed N] [--inputs N] [--findings FOLDER]
        [CACHES...]

Input number K of seed N is the same bytes each time. Right is exit code 5, or another that says
what is wrong with the words of the command, and one line on standard error; or exit code 0, and
then the rows that were stored, unless `verify` tells that they are not. A signal, "a defect", more
lines, more than a minute, or more memory than a fixed limit is a finding: the file is saved with a
text beside it, and the exit status is 1.

A process that has imported what commands need forks a child for each input.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import hashlib
import importlib
import io
import itertools
import json
import logging
import os
import random
import resource
import select
import shutil
import signal
import struct
import sys
import tempfile
import time
import zlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import typer

import vggfeat
from vggfeat.cache.attributes import stated_identity
from vggfeat.cache.format import DatasetExtent
from vggfeat.cache.index import MAGIC, RECORD_PAGES
from vggfeat.cli import app
from vggfeat.storage.hdf5_metadata.blocks import lookup3

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PROGRAM = typer.main.get_command(app)  # which takes longer to make than most commands to run

SECONDS_AN_INPUT = 60.0
MEMORY = 1 << 29
"""Bytes of address space that commands may take beyond what the warm process has."""

REPORT_SECONDS = 30.0
COMMANDS: tuple[tuple[str, ...], ...] = (
    ("inspect", "IN"), ("inspect", "IN", "--json"), ("verify", "IN"),
    ("search", "IN", "--row", "ROW", "--layer", "LAYER", "--json"),
    ("similarity", "--cache", "IN", "--row", "ROW", "--row", "ROW", "--layers", "LAYER"),
    ("duplicates", "IN", "--layer", "LAYER", "--json"),
    ("export", "IN", "--to", "npz", "--out", "OUT.npz"),
    ("export", "IN", "--to", "csv", "--out", "OUT.csv"),
    ("export", "IN", "--to", "hdf5", "--out", "OUT.x.h5"),
    ("merge", "IN", "IN2", "--out", "OUT.m.h5", "--keep-paths"),
    ("fuse", "IN", "--out", "OUT.f.h5"),
    ("reduce", "IN", "--out", "OUT.r.h5", "--dims", "2"),
    ("fuse", "IN2", "--out", "IN", "--fresh"),
    ("sheet", "IN", "--out", "OUT.html"),
    ("explore", "IN", "--out", "OUT.html"),
)  # fmt: skip
USAGE = 2  # of a layer of maps, or too few rows for what a command does
ALLOWED = (0, USAGE, 3, 5)


@dataclass(slots=True)
class Tally:
    """What came of all inputs so far."""

    started: float = field(default_factory=time.monotonic)
    inputs: int = 0
    runs: int = 0
    findings: int = 0
    codes: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a command ended: exit code or signal, what is wrong, a digest of the rows if exported."""

    command: str
    how: str
    wrong: str
    answer: str = ""


def opened(path: str) -> None:
    """What a program does that reads a cache from Python."""
    with vggfeat.open(path) as cache:
        for layer in cache:
            cache.values(layer)
        _ = cache.names, cache.failures(), cache.done.sum(), cache.digests[:].sum()


# --- damage: each takes random numbers and a file, and returns another file ---


def flip(rng: random.Random, data: bytes) -> bytes:
    """One to four bytes are others."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        changed[_place(rng, data)] ^= rng.choice((1, 2, 4, 8, 16, 32, 64, 128, 255))
    return bytes(changed)


def cut(rng: random.Random, data: bytes) -> bytes:
    """It ends at a multiple of 512, or anywhere."""
    return data[: rng.choice((rng.randrange(len(data)), rng.randrange(len(data)) // 512 * 512))]


_EXTREMES = (0, 1, 2, 3, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 33,
             1 << 60, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)  # fmt: skip


def lie(rng: random.Random, data: bytes) -> bytes:
    """A number somewhere is another; checksums over it are right, so that it is believed."""
    size = rng.choice((1, 2, 4, 8))
    at = min(_place(rng, data), len(data) - size)
    value = rng.choice((*_EXTREMES, at, len(data))) % (1 << 8 * size)
    changed = data[:at] + value.to_bytes(size, "little") + data[at + size :]
    return mend_index(mend_hdf5(changed))


def lie_in_index(rng: random.Random, data: bytes) -> bytes:
    """A value of the index of version 2 is another, its checksum right; else as `lie`."""
    if not data.startswith(MAGIC):
        return lie(rng, data)
    length = int.from_bytes(data[24:32], "little")
    try:
        content = json.loads(data[32 : 32 + length])
    except ValueError:  # damaged already
        return lie(rng, data)
    holders: list[tuple[Any, Any]] = []
    _collect(content, holders)
    holder, key = rng.choice(holders)
    others: list[Any] = [0, 1, -1, 1 << 62, 1 << 64, 1.5, None, "", "\udcff", "x" * 99, [], {}]
    others += [[[]], True, "<f8", "|S9999999999", "O", [0], [1 << 62] * 4, rng.choice(_EXTREMES)]
    holder[key] = rng.choice(others)
    text = json.dumps(content).encode("ascii")
    block = int.from_bytes(data[16:24], "little")
    front = (data[:24] + struct.pack("<Q", len(text)) + text).ljust(block - RECORD_PAGES, b"\0")
    return mend_index(front[: block - RECORD_PAGES] + data[block - RECORD_PAGES :])


def _collect(value: Any, holders: list[tuple[Any, Any]]) -> None:
    """List every place in a JSON value."""
    for key in value if isinstance(value, dict) else range(len(value)):
        holders.append((value, key))
        if isinstance(value[key], dict | list):
            _collect(value[key], holders)


def _place(rng: random.Random, data: bytes) -> int:
    """Where to strike: mostly where something is, for much of a file is zeros."""
    for _ in range(8):
        at = rng.randrange(len(data))
        if data[at] or rng.random() < 0.05:
            break
    return min(at + rng.choice((0, 0, 0, 1, 2, 4)), len(data) - 1)


def mend_index(data: bytes) -> bytes:
    """The same file with the checksums that its index should have."""
    block = int.from_bytes(data[16:24], "little")
    if not data.startswith(MAGIC) or not RECORD_PAGES + 32 <= block <= len(data):
        return data
    front = bytearray(data[: block - RECORD_PAGES])
    front[12:16] = bytes(4)
    front[12:16] = zlib.crc32(front).to_bytes(4, "little")
    return bytes(front) + data[len(front) :]


def mend_hdf5(data: bytes) -> bytes:
    """The same file with right checksums over superblock and object headers."""
    mended = bytearray(data)
    for at, size in _checksummed(data):
        if size and at + size + 4 <= len(data):
            mended[at + size : at + size + 4] = lookup3(bytes(mended[at : at + size])).to_bytes(
                4, "little"
            )
    return bytes(mended)


def _checksummed(data: bytes) -> Iterator[tuple[int, int]]:
    at = data.find(b"\x89HDF\r\n\x1a\n")
    if at >= 0:
        yield at, 44
    at = data.find(b"OHDR")
    while at >= 0:
        flags = data[at + 5] if at + 6 <= len(data) else 0
        width = 1 << (flags & 3)
        start = at + 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0)
        yield at, start - at + width + int.from_bytes(data[start : start + width], "little")
        at = data.find(b"OHDR", at + 1)


def rewritten(rng: random.Random, data: bytes) -> bytes:
    """By h5py: other types, shapes, links and attributes than a cache has."""
    stream = io.BytesIO(data)
    with contextlib.suppress(Exception), h5py.File(stream, "r+") as file:
        names: list[str] = []
        file.visit(names.append)
        for _ in range(rng.choice((1, 1, 2))):
            rng.choice((_other_data, _other_link, _other_attribute))(rng, file, rng.choice(names))
    return stream.getvalue()


def _other_data(rng: random.Random, file: h5py.File, name: str) -> None:
    old = file[name]
    shape = old.shape if isinstance(old, h5py.Dataset) else (3,)
    del file[name]
    kinds = ["<f8", ">f4", "i1", "u1", "<i8", "S5", [("a", "i4")], bool, "c8",
             h5py.string_dtype()]  # fmt: skip
    shapes = [(), (0,), (1,), shape, (*shape, 2), shape[:1], (0, *shape[1:]), (1 << 40, 1 << 20)]
    chosen, kind = rng.choice(shapes), rng.choice([*kinds, "<f4", "<f2"])
    if rng.random() < 0.1:
        file[name] = h5py.Empty("f4")
    elif rng.random() < 0.1:
        file.create_dataset(name, shape, kind, chunks=True, compression="gzip")
    elif np.prod(chosen, dtype=float) < 1e6:
        file[name] = np.zeros(chosen, kind)
    else:
        file.create_dataset(name, chosen, kind)


def _other_link(rng: random.Random, file: h5py.File, name: str) -> None:
    del file[name]
    layout = h5py.VirtualLayout((12, 4), "<f4")
    layout[:] = h5py.VirtualSource("other.h5", "x", (12, 4))
    places: list[Callable[[], object]] = [
        lambda: file.__setitem__(name, h5py.SoftLink(f"/{name}")),
        lambda: file.__setitem__(name, h5py.SoftLink("/images/path")),
        lambda: file.__setitem__(name, h5py.ExternalLink("/dev/zero", "/x")),
        lambda: file.__setitem__(name, file["/"]),
        lambda: file.create_virtual_dataset(name, layout),
        lambda: file.create_dataset(name, (12,), "u1", external=[("/dev/zero", 0, 12)]),
        lambda: file.create_group(name),
        lambda: None,
    ]
    rng.choice(places)()


def _other_attribute(rng: random.Random, file: h5py.File, _: str) -> None:
    name = rng.choice(list(file.attrs))
    old = file.attrs[name]
    texts = [old, old.decode() if isinstance(old, bytes) else old, "", "{}", "[]", "null",
             "[" * 999, '{"a": ' * 500, "1e999", "9" * 5000, '{"size": -1}', "\x1b[2J",
             "vgg99"]  # fmt: skip
    values = [*texts, 7, -1, 1.5, np.arange(4), np.bytes_(b"\xff\xfe"), h5py.Empty("f4"),
              np.array([b"a", b"b"]), np.zeros(2, [("a", "i4")]), np.True_, 2**63]  # fmt: skip
    value = rng.choice(values)
    if isinstance(old, str | bytes) and rng.random() < 0.5:
        with contextlib.suppress(ValueError):  # a JSON object with one field changed
            content = json.loads(old)
            content[rng.choice([*content, "new"])] = rng.choice(
                [None, -1, 0, "", [], {}, 1e99, "x", [1, 2, 3], True]
            )
            value = json.dumps(content)
    file.attrs[name] = value
    if rng.random() < 0.8:  # whoever lies computes the fingerprint again
        with contextlib.suppress(Exception):
            _sign(file)


def _sign(file: h5py.File) -> None:
    """Give the file the fingerprint of its other attributes."""
    runs = {
        f"features/{name}": DatasetExtent(data.dtype.str, data.shape, 0)
        for name, data in file["features"].items()
    }
    identity = stated_identity(dict(file.attrs), runs, {})
    file.attrs["fingerprint"] = identity.fingerprint()


DAMAGE: tuple[Callable[[random.Random, bytes], bytes], ...] = (
    flip, flip, cut, lie, lie, lie_in_index, rewritten, rewritten,
)  # fmt: skip


class Fuzzer:
    """Makes the inputs of one seed, and tells which outcomes are right.

    Args:
        seed: of the random numbers.
        caches: whole files to begin with.
        folder: for what commands write.
    """

    def __init__(self, seed: int, caches: list[Path], folder: Path) -> None:
        self.seed, self.folder = seed, folder
        self.whole = [path.read_bytes() for path in caches]
        self.caches = caches
        self.plain = [self._answers(path) for path in caches]
        self.right: dict[int, str] = {}
        self._warm()
        self.limit = _address_space() + MEMORY

    def _warm(self) -> None:
        """Import here what a child imports when it does all commands on a whole file."""
        reader, writer = os.pipe()
        if os.fork() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.caches[0], self.folder / "in.h5")
            with open(os.devnull, "w", encoding="utf-8") as nowhere:
                self._do(0, self.folder / "in.h5", COMMANDS, nowhere.fileno(), modules=writer)
        os.close(writer)
        with open(reader, encoding="utf-8") as stream:
            for name in stream.read().split():
                with contextlib.suppress(ImportError):
                    importlib.import_module(name)
        os.wait()
        gc.freeze()  # children write to no page of what is here for good

    def input(self, number: int) -> tuple[int, bytes, str]:
        """Return number of the cache, damaged bytes, and what was done; one in 64 is whole."""
        rng = random.Random(f"{self.seed} {number}")
        which = rng.randrange(len(self.whole))
        data, done = self.whole[which], [self.caches[which].name]
        for _ in range(0 if number % 64 == 0 else rng.choice((1, 1, 1, 2))):
            # libhdf5 would crash this process on a file that is damaged already.
            change = rng.choice(DAMAGE if len(done) == 1 else DAMAGE[:-2])
            data = change(rng, data or b"\0" * 64)
            done.append(change.__name__)
        return which, data, ", ".join(done)

    def swept(self) -> Iterator[tuple[int, bytes, str]]:
        """Yield each file with each byte flipped, and cut at each multiple of 512."""
        for which, data in enumerate(self.whole):
            for at in range(0, len(data), 512):
                yield which, data[:at], f"cut at {at}"
            for at in range(len(data)):
                if data[at] or data[at - 1]:
                    damaged = bytearray(data)
                    damaged[at] ^= 1 << at % 8
                    yield which, bytes(damaged), f"byte {at} flipped"

    def unnoticed(self, which: int, outcomes: list[Outcome]) -> list[str]:
        """Return what is wrong if rows differ that `verify` finds right; of version 2 none may."""
        if which not in self.right:
            self.right[which] = list(self.look(which, self.whole[which], COMMANDS))[-1].answer
        verified = next((one.how for one in outcomes if one.command == "verify"), "")
        same = outcomes[-1].answer in ("", self.right[which])
        if not self.whole[which].startswith(MAGIC) or verified != "0" or same:
            return []
        return ["exit 0 and other rows, which verify has not noticed"]

    def _answers(self, path: Path) -> tuple[str, str]:
        """Return a layer of vectors and a row to search with."""
        with vggfeat.open(path) as cache:
            vectors = [layer for layer in cache if cache[layer].ndim == 2]
            return vectors[0], cache.name(int(np.flatnonzero(cache.done)[0]))

    def look(
        self, which: int, data: bytes, commands: tuple[tuple[str, ...], ...]
    ) -> Iterator[Outcome]:
        """Yield the outcome of each command."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        place = self.folder / "in.h5"
        place.write_bytes(data)
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            self._do(which, place, commands, writer)
        os.close(writer)
        yield from _outcomes(child, reader, commands)

    def _do(
        self,
        which: int,
        place: Path,
        commands: tuple[tuple[str, ...], ...],
        writer: int,
        *,
        modules: int | None = None,
    ) -> None:
        """Run all commands in this child, and report each outcome; never return."""
        if modules is None:
            resource.setrlimit(resource.RLIMIT_AS, (self.limit, self.limit))
        layer, row = self.plain[which]
        names = {"IN": place, "IN2": self.caches[which], "LAYER": layer, "ROW": row}
        out = str(self.folder / "out")
        for command in (("open",), *commands):
            words = [str(names.get(word, word)).replace("OUT", out) for word in command]
            if command[-1] == "--fresh":  # replaces the damaged cache, which comes back
                shutil.copy(place, out + ".kept")
            outcome = self._run(words, str(place))
            if command[-1] == "--fresh":
                shutil.copy(out + ".kept", place)
            os.write(writer, json.dumps(outcome).encode() + b"\n")
        if modules is not None:
            os.write(modules, " ".join(name for name in sys.modules if "__" not in name).encode())
        os._exit(0)

    def _run(self, words: list[str], place: str) -> tuple[int, str, str]:
        """Return exit code, what is wrong, and a digest of the rows, once they are exported."""
        said = self.folder / "stderr"
        handle = os.open(said, os.O_CREAT | os.O_TRUNC | os.O_RDWR)
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(handle, 2)
        os.dup2(quiet, 1)
        sys.stderr = open(2, "w", encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
        code: object = 0
        try:
            if words == ["open"]:
                opened(place)
            else:
                PROGRAM(words, prog_name="vggfeat")
        except SystemExit as end:
            code = end.code or 0
        except vggfeat.VggfeatError as error:
            code = error.exit_code
            sys.stderr.write(f"vggfeat: {error}\n")
        except BaseException as error:  # noqa: BLE001 that is what is looked for
            code = 1
            sys.stderr.write(f"vggfeat: a defect, {type(error).__name__}: {error}\n")
        sys.stderr.flush()
        os.close(handle)
        os.close(quiet)
        text = said.read_text("utf-8", "replace")
        table = self.folder / "out.csv"
        answer = hashlib.sha256(table.read_bytes()).hexdigest() if table.exists() else ""
        return int(code) if isinstance(code, int) else 1, _judge(code, text), answer


def _judge(code: object, text: str) -> str:
    lines = [line for line in text.splitlines()
             if not line.startswith(("vggfeat: warning:", "vggfeat: skipped"))]  # fmt: skip
    if "a defect" in text or "Traceback" in text or code not in ALLOWED:
        return f"exit {code}: {text[:600]}"
    if code == USAGE and "Usage:" in text:
        return f"exit 2: {text[:300]}"
    if code and (len(lines) != 1 or not lines[0].isprintable()):
        return f"exit {code}, {len(lines)} lines: {text[:600]}"
    return ""


def _outcomes(child: int, reader: int, commands: tuple[tuple[str, ...], ...]) -> Iterator[Outcome]:
    """Read what the child reports; what it does not report is what killed it, or hangs."""
    until, text = time.monotonic() + SECONDS_AN_INPUT, b""
    while (left := until - time.monotonic()) > 0 and select.select([reader], [], [], left)[0]:
        part = os.read(reader, 1 << 16)
        if not part:
            break
        text += part
    hangs = time.monotonic() >= until
    if hangs:
        os.kill(child, signal.SIGKILL)
    os.close(reader)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    names = [" ".join(words) for words in (("open",), *commands)]
    outcomes = [json.loads(line) for line in text.splitlines()]
    for name, (code, wrong, answer) in zip(names, outcomes, strict=False):
        yield Outcome(name.split()[0], str(code), f"{name}: {wrong}" if wrong else "", answer)
    if len(outcomes) < len(names):
        how = "hangs" if hangs else f"ended with {status}"
        yield Outcome(names[len(outcomes)].split()[0], how, f"{names[len(outcomes)]}: {how}")


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def run(
    fuzzer: Fuzzer, findings: Path, *, seconds: float, inputs: int, sweep: bool = False
) -> Tally:
    """Try so many inputs or for so long, report now and then, save findings to a folder."""
    tally = Tally()
    until, reported = tally.started + seconds, tally.started
    swept = fuzzer.swept() if sweep else iter(())
    drawn = (fuzzer.input(number) for number in itertools.count())
    with contextlib.suppress(KeyboardInterrupt):  # the summary comes all the same
        for number, (which, data, about) in enumerate(itertools.chain(swept, drawn)):
            if number >= inputs or time.monotonic() > until:
                break
            tally.inputs += 1
            outcomes = list(fuzzer.look(which, data, COMMANDS))
            for one in outcomes:
                tally.runs += 1
                tally.codes[f"{one.command} {one.how}"] += 1
            wrong = [one.wrong for one in outcomes if one.wrong]
            if not wrong and about.endswith("flipped"):
                wrong = fuzzer.unnoticed(which, outcomes)
            if wrong:
                told = "\n".join((about, *wrong))
                _save(findings, f"seed{fuzzer.seed}-{number}", data, f"{told}\n")
                tally.findings += 1
            if time.monotonic() > reported + REPORT_SECONDS:
                reported = time.monotonic()
                print(_line(tally), flush=True)
    return tally


def _save(folder: Path, name: str, data: bytes, about: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.h5").write_bytes(data)
    with (folder / f"{name}.txt").open("a", encoding="utf-8", errors="replace") as file:
        file.write(about)
    print(f"FINDING {name}: {about!a:.300}", flush=True)


def _line(tally: Tally) -> str:
    return (
        f"{tally.inputs} inputs, {tally.runs} runs, {tally.findings} findings; "
        f"{time.monotonic() - tally.started:.0f} s"
    )


def main(words: list[str] | None = None) -> int:
    """Read the command line, run, print the summary; 1 if there were findings."""
    data = Path(__file__).parent.parent / "tests" / "data"
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("caches", nargs="*", type=Path, metavar="CACHES", help="whole caches")
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--inputs", type=int, default=sys.maxsize, help="stop after so many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sweep", action="store_true", help="begin with every byte flipped")
    parser.add_argument("--findings", type=Path, default=Path("fuzz_findings"), metavar="FOLDER")
    options = parser.parse_args(words)
    caches = options.caches or sorted(data.glob("version-*.h5"))
    logging.captureWarnings(capture=True)
    memory = "/dev/shm"  # where to sync a file takes no time
    with tempfile.TemporaryDirectory(dir=memory if os.path.isdir(memory) else None) as folder:
        fuzzer = Fuzzer(options.seed, caches, Path(folder) / "work")
        tally = run(
            fuzzer, options.findings,
            seconds=options.seconds, inputs=options.inputs, sweep=options.sweep,
        )  # fmt: skip
    print(f"\n{_line(tally)}")
    for outcome, times in sorted(tally.codes.items()):
        print(f"{times:9}  {outcome}")
    return 1 if tally.findings else 0


if __name__ == "__main__":
    sys.exit(main())
