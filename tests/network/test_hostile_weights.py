"""Weight files of strangers: none crashes, hangs, fills the memory or runs anything."""

from __future__ import annotations

import io
import json
import pickle
import struct
import tracemalloc
import zipfile
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from vggfeat.errors import WeightsError
from vggfeat.network.checkpoint_reader import open_checkpoint, read_tensors
from vggfeat.network.containers.torch_legacy import LEGACY_HEAD
from vggfeat.storage.checked_file import digest_file

if TYPE_CHECKING:
    from pathlib import Path


def archive(pickled: bytes, method: int = zipfile.ZIP_STORED) -> bytes:
    """What torch.save would write with this pickle, and a storage of 32 bytes."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as file:
        file.writestr("a/data.pkl", pickled)
        file.writestr("a/data/0", b"1234" * 8)
    return stream.getvalue()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def plain(value: Any) -> bytes:
    return pickle.dumps(value, 2)[2:-1]


def tensor(offset: Any, shape: Any, stride: Any, key: str = "0") -> bytes:
    """The opcodes of a tensor, of whatever values."""
    storage = text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu") + b"K\x04"
    return (b"ctorch._utils\n_rebuild_tensor_v2\n((" + storage + b"tQ"
            + plain(offset) + plain(shape) + plain(stride) + b"\x89}tR")  # fmt: skip


def state(offset: Any, shape: Any, stride: Any, key: str = "0") -> bytes:
    found = tensor(offset, shape, stride, key)
    return b"\x80\x02}" + text("features.0.weight") + found + b"s."


def safetensors(header: Any, data: bytes = b"1234", length: int | None = None) -> bytes:
    packed = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(packed) if length is None else length) + packed + data


def entry(shape: Any = (1,), offsets: Any = (0, 4), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


TABLES = b"".join(  # each holds the one before twice: 2**40 ways down
    b"0}(K\x01h" + bytes([one]) + b"K\x02h" + bytes([one]) + b"uq" + bytes([one + 1])
    for one in range(40)
)
FILES = {
    "a key of deep tuples": archive(b"\x80\x02})" + b"\x85" * 300_000 + b"K\x01s."),
    "a set of deep tuples": archive(b"\x80\x04()" + b"\x85" * 300_000 + b"\x91."),
    "deep tables": archive(b"\x80\x02" + b"}K\x01" * 10_000 + b"}" + b"s" * 10_000 + b"."),
    "tables without end": archive(b"\x80\x02}q\x00" + TABLES + b"."),
    "a table in itself": archive(b"\x80\x02}q\x00" + text("model") + b"h\x00s."),
    "zip bomb": archive(b"\x80\x02" + b"N0" * 2**21 + b"}.", zipfile.ZIP_DEFLATED),
    "bytes of 1 TiB": archive(b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"."),
    "a float shape": archive(state(0, (1.5, 2), (1, 1))),
    "a negative shape": archive(state(0, (-1, 2), (1, 1))),
    "a shape of text": archive(state(0, "abc", (1, 1))),
    "a huge shape": archive(state(0, (2**62, 2**62), (1, 1))),
    "a shape of 32 GiB": archive(state(0, (2**33, 1), (1, 1))),
    "a short stride": archive(state(0, (2, 2), (1,))),
    "a negative stride": archive(state(0, (2, 2), (-1, 1))),
    "an offset of text": archive(state("x", (2, 2), (2, 1))),
    "no such storage": archive(state(0, (2, 2), (2, 1), key="7")),
    "no key": archive(b"\x80\x02}]K\x01s."),
    "too many digits": archive(b"L" + b"9" * 6000 + b"L\n."),
    "no pickle": archive(b""),
    "a legacy file of numbers": LEGACY_HEAD + b"\x80\x02K\x01." * 5,
    "a legacy storage of 2**64 values": LEGACY_HEAD + b"\x80\x02K\x01." + b"\x80\x02}."
    + state(0, (2, 2), (2, 1)) + b"\x80\x02](" + text("0") + b"e." + b"\xff" * 8,
    "safetensors of 2**63 bytes": safetensors({}, length=2**63),
    "safetensors of 2**64 - 1 bytes": safetensors({}, length=2**64 - 1),
    "nested safetensors": safetensors(b'{"a":' * 100_000),
    "digits in safetensors": safetensors(b'{"a":{"data_offsets":[0,' + b"9" * 5000 + b"]}}"),
    "infinity in safetensors": safetensors(b'{"a":{"data_offsets":[NaN,1e400]}}'),
    "overlapping safetensors": safetensors({"a": entry(), "b": entry()}),
    "safetensors beyond the end": safetensors({"a": entry(offsets=(0, 400))}),
    "safetensors of floats": safetensors({"a": entry((1.0,), (0.0, 4.0))}),
    "safetensors of truth": safetensors({"a": entry((True,), (False, 4))}),
    "safetensors of a list": safetensors({"a": entry(dtype=["F32"])}),
    "safetensors of numbers": safetensors({"a": 7}),
    "safetensors of offsets of text": safetensors({"a": entry(offsets=("x", 4)), "b": entry()}),
}  # fmt: skip


@pytest.mark.parametrize("kind", FILES)
def test_weights_that_lie_are_refused(kind: str, tmp_path: Path) -> None:
    """Whatever is wrong with a weight file is one of our errors, and takes little memory."""
    path = tmp_path / ("w.safetensors" if "safetensors" in kind else "w.pth")
    path.write_bytes(FILES[kind])
    tracemalloc.start()
    with pytest.raises(WeightsError, match=r"are damaged or cut short|were refused") as found:
        read_tensors(str(path), digest_file(str(path)))
    assert tracemalloc.get_traced_memory()[1] < 2**27
    tracemalloc.stop()
    assert "\n" not in str(found.value)


def test_a_place_in_the_memo_takes_no_memory(tmp_path: Path) -> None:
    """Ten bytes that ask for place 2**31 of the memo took 32 GiB."""
    (tmp_path / "w.pth").write_bytes(archive(b"\x80\x02}r\xff\xff\xff\x7f."))
    tracemalloc.start()
    with open_checkpoint(str(tmp_path / "w.pth")) as file:
        assert not file.shapes
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_a_pickle_changes_nothing_of_ours(tmp_path: Path) -> None:
    """State that a pickle gives to our classes and functions is dropped."""
    changed = b"\x80\x02cargparse\nNamespace\nN}" + text("append") + b"K\x07s\x86b0}."
    (tmp_path / "w.pth").write_bytes(archive(changed))
    with open_checkpoint(str(tmp_path / "w.pth")) as file:
        assert not file.shapes
    from vggfeat.network.containers.tensor_pickle import Inert

    assert callable(Inert.append)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_refused_model_says_what_to_do(zipped: bool, tmp_path: Path) -> None:
    """Of a whole model the remedy is its state_dict, and no way to load it unsafely is quoted."""
    torch.save(nn.Sequential(nn.Linear(2, 3)), tmp_path / "w.pth",
               _use_new_zipfile_serialization=zipped)  # fmt: skip
    with pytest.raises(WeightsError, match=r"torch\.save\(model\.state_dict\(\)") as found:
        read_tensors(str(tmp_path / "w.pth"), digest_file(str(tmp_path / "w.pth")))
    for words in ("weights_only", "unsafe", "safe_globals", "allow_pickle"):
        assert words not in str(found.value)
