"""Weights: which file, whether it is whole, and what is in it, against the writers of the files."""

from __future__ import annotations

import collections
import contextlib
import hashlib
import http.server
import io
import json
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from weight_files import read_checkpoint

from vggfeat.core.layer_spec import parse_specs
from vggfeat.core.preprocessing import NORMALISATIONS
from vggfeat.core.settings import Settings
from vggfeat.core.vgg_layers import VARIANTS, VGG, layer_table, parameter_shapes
from vggfeat.errors import UsageError, WeightsError
from vggfeat.network import download as download_module
from vggfeat.network import weights as weights_module
from vggfeat.network.vgg import needed_layers
from vggfeat.network.weights import (
    Weights,
    find_weights,
    load_tensors,
    published_file,
    weights_folder,
    weights_name,
)
from vggfeat.storage.digests import file_digests

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import Tensor

    from vggfeat.core.vgg_layers import Layer

    Tensors = dict[str, Tensor]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("VGGFEAT_WEIGHTS_URL", raising=False)


def layers_for(text: str, model: str = "vgg11") -> tuple[Layer, ...]:
    return needed_layers(parse_specs(text, model), model)


# --- which weights


def test_random_weights_have_a_seed_and_a_warning() -> None:
    """`random` is `random:0`; the seed and the model, and nothing else, decide on the digest."""
    found = find_weights("random:12", "vgg16")
    assert (found.name, found.seed, found.path) == ("random:12", 12, None)
    assert found.warning is not None
    assert "RANDOM WEIGHTS (seed 12)" in found.warning
    assert find_weights("random", "vgg16") == find_weights("random:0", "vgg16")
    digests = {find_weights(f"random:{n}", model).sha256 for n in (0, 1) for model in VARIANTS}
    assert len(digests) == 2 * len(VARIANTS)


def test_a_file_is_found_with_its_digest(tmp_path: Path) -> None:
    """A file's weights carry its name without the folder, its path and its SHA-256."""
    path = tmp_path / "mine.pth"
    path.write_bytes(b"some weights")
    found = find_weights(str(path), "vgg19")
    assert found == Weights("mine.pth", sha256(b"some weights"), path=str(path))
    assert found.warning is None
    assert weights_name(str(path), "vgg19") == "mine.pth"


@pytest.mark.parametrize("name", ["gone.pth", "gone.pt", "folder/gone.safetensors"])
def test_a_missing_file_is_named(name: str) -> None:
    """A weight file that is not there is an error that names it."""
    with pytest.raises(WeightsError, match=f"weights file '{name}' not found"):
        find_weights(name, "vgg19")


@pytest.mark.parametrize("name", ["imagnet", "random:x", "random:", "features", "weights.onnx"])
def test_unknown_weights_are_named(name: str) -> None:
    """A name that is none of the known ones is refused with what there is."""
    message = f"unknown weights '{name}'; expected imagenet, features"
    with pytest.raises(UsageError, match=message):
        find_weights(name, "vgg19")


def test_the_digest_is_remembered(tmp_path: Path) -> None:
    """A file is read for its digest once, and again when it has changed."""
    path = tmp_path / "big.pth"
    path.write_bytes(bytes(range(256)) * 40_000)
    assert file_digests(str(path)).sha256 == sha256(path.read_bytes())
    memory = tmp_path / "cache" / "vggfeat" / "digests.json"
    known = json.loads(memory.read_text(encoding="utf-8"))
    known[str(path.resolve())]["sha256"] = "remembered"
    memory.write_text(json.dumps(known), encoding="utf-8")
    assert file_digests(str(path)).sha256 == "remembered"
    path.write_bytes(b"changed")
    assert file_digests(str(path)).sha256 == sha256(b"changed")
    assert [item.name for item in memory.parent.iterdir()] == ["digests.json"]


def test_a_change_of_time_alone_has_the_file_read_again(tmp_path: Path) -> None:
    """Bytes that changed while the size did not are seen by the time of change."""
    path = tmp_path / "w.pth"
    path.write_bytes(b"one")
    before = file_digests(str(path)).sha256
    status = path.stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert before == sha256(b"one")
    assert file_digests(str(path)).sha256 == sha256(b"two")


def test_a_file_that_cannot_be_read_is_an_error_of_ours(tmp_path: Path) -> None:
    """A file that goes away or is closed to us is a WeightsError that names it and says why."""
    path = tmp_path / "gone.pth"
    with pytest.raises(WeightsError, match=r"gone\.pth' cannot be read: No such file"):
        file_digests(str(path))


def test_the_digest_that_an_earlier_version_remembered(tmp_path: Path) -> None:
    """A memory whose pieces have other checksums than today's is not used, and is replaced."""
    path = tmp_path / "w.pth"
    path.write_bytes(b"one")
    first = file_digests(str(path))
    assert first.pieces == (zlib.crc32(b"one"),)
    memory = tmp_path / "cache" / "vggfeat" / "digests.json"
    known = json.loads(memory.read_text(encoding="utf-8"))
    stamp = known[str(path.resolve())]["stamp"]
    known[str(path.resolve())] = [*stamp, [sha256(b"one")[:32]], "remembered"]
    memory.write_text(json.dumps(known), encoding="utf-8")
    assert file_digests(str(path)) == first


@pytest.mark.parametrize(
    "content",
    ["", "not JSON", "[1, 2]", '{"PATH": 3}', '{"PATH": ["x"]}', '{"PATH": {"stamp": 1}}'],
)
def test_a_spoilt_memory_of_digests_only_costs_time(tmp_path: Path, content: str) -> None:
    """A memory of digests that cannot be used is as good as none."""
    path = tmp_path / "w.pth"
    path.write_bytes(b"one")
    memory = tmp_path / "cache" / "vggfeat" / "digests.json"
    memory.parent.mkdir(parents=True)
    memory.write_text(content.replace("PATH", str(path.resolve())), encoding="utf-8")
    assert file_digests(str(path)).sha256 == sha256(b"one")


# --- torchvision's own


def published_enums() -> dict[tuple[str, str], Any]:
    enums = {}
    for model in VARIANTS:
        for item in torchvision.models.get_model_weights(model):
            kind = {"IMAGENET1K_V1": "imagenet", "IMAGENET1K_FEATURES": "features"}[item.name]
            enums[kind, model] = item
    return enums


def test_published_names_are_torchvisions() -> None:
    """Files and digests are those that torchvision itself downloads, all of them and no others."""
    files = {key: item.url.rpartition("/")[2] for key, item in published_enums().items()}
    assert files == VGG.published
    addresses = {item.url.rpartition("/")[0] for item in published_enums().values()}
    assert addresses == {weights_module.BASE_URL}
    assert published_file("features", "vgg19") is None


def test_normalisations_are_torchvisions() -> None:
    """Mean, deviation and sizes of each kind of weights are those of its torchvision transform."""
    for (kind, _), item in published_enums().items():
        transform, own = item.transforms(), NORMALISATIONS[kind]
        assert list(own.mean) == transform.mean
        assert list(own.std) == transform.std
        assert [own.size] == transform.crop_size
        assert [own.resize] == transform.resize_size
    preprocess = Settings(layers="conv1_1", model="vgg16", weights="features").preprocess()
    assert preprocess.mean == NORMALISATIONS["features"].mean


@pytest.mark.parametrize("variable", ["TORCH_HOME", "XDG_CACHE_HOME", None])
def test_the_folder_is_that_of_torch_hub(
    variable: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights are kept where torch.hub, and so torchvision, keeps them."""
    monkeypatch.delenv("TORCH_HOME")
    monkeypatch.delenv("XDG_CACHE_HOME")
    if variable is not None:
        monkeypatch.setenv(variable, "~/somewhere")
    assert weights_folder() == os.path.join(torch.hub.get_dir(), "checkpoints")


# --- download


class Server(http.server.ThreadingHTTPServer):
    """Sends `content` under any name but `/gone`, in the way that `manner` says."""

    content = b"weights " * 100_000
    manner = "whole"
    requests = 0


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.requests += 1
        content, manner = self.server.content, self.server.manner
        self.close_connection = True
        if manner == "missing":
            self.send_error(404)
            return
        self.send_response(200)
        if manner == "chunks break off":
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"%x\r\n" % len(content) + content[:1000])
            return
        if manner != "no length":
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if manner == "slow":
            time.sleep(0.5)
        half = len(content) // 2
        self.wfile.write(content[:half] if manner == "breaks off" else content)

    def log_message(self, *_: Any) -> None:
        pass


FILE_NAME = f"vgg11-{sha256(Server.content)[:8]}.pth"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setitem(VGG.published, ("imagenet", "vgg11"), FILE_NAME)
    with Server(("127.0.0.1", 0), Handler) as server:
        monkeypatch.setenv("VGGFEAT_WEIGHTS_URL", f"http://127.0.0.1:{server.server_port}/models/")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("manner", ["whole", "no length"])
def test_weights_are_fetched_once(server: Server, manner: str) -> None:
    """Published weights land in torch's own folder under their name and are not fetched again."""
    server.manner = manner
    path = Path(weights_folder()) / FILE_NAME
    expected = Weights(FILE_NAME, sha256(server.content), path=str(path))
    assert find_weights("imagenet", "vgg11") == expected
    assert path.read_bytes() == server.content
    assert find_weights("imagenet", "vgg11") == expected
    assert server.requests == 1
    assert {item.name for item in path.parent.iterdir()} == {FILE_NAME}
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.parametrize(
    ("manner", "message"),
    [
        ("other bytes", r"has SHA-256 [0-9a-f]{8}…, expected [0-9a-f]{8}…; it was not kept"),
        ("breaks off", r"broke off after 400000 of 800000 bytes; try again"),
        ("chunks break off", r"cannot be fetched: .*IncompleteRead"),
        ("missing", r"cannot be fetched: Not Found"),
    ],
)
def test_a_download_that_fails_leaves_nothing(server: Server, manner: str, message: str) -> None:
    """Whatever comes instead of the file is reported, and nothing is left."""
    server.manner = manner
    if manner == "other bytes":
        server.content = b"x" * 1000
    with pytest.raises(WeightsError, match=message):
        find_weights("imagenet", "vgg11")
    assert list(Path(weights_folder()).iterdir()) == []


def test_a_damaged_file_in_the_folder_is_not_used(server: Server) -> None:
    """A file there that is not the one published is an error and is not silently replaced."""
    path = Path(weights_folder()) / FILE_NAME
    path.parent.mkdir(parents=True)
    path.write_bytes(server.content[:-1])
    with pytest.raises(WeightsError, match=r"expected [0-9a-f]{8}…; it is damaged: delete it"):
        find_weights("imagenet", "vgg11")
    assert server.requests == 0


def test_offline_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of reach, the error names file, place, address and the ways out."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
        monkeypatch.setenv("VGGFEAT_WEIGHTS_URL", address)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        with pytest.raises(WeightsError) as caught:
            find_weights("imagenet", "vgg19")
    message = str(caught.value)
    path = os.path.join(weights_folder(), "vgg19-dcbb9e9d.pth")
    found = f"not found at {path}"
    for part in (found, address, "VGGFEAT_WEIGHTS_URL", "--weights FILE", "refused"):
        assert part in message
    assert caught.value.exit_code == 3
    assert not Path(weights_folder()).exists()


def test_a_network_that_stays_silent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where packets are dropped the error comes after seconds, not after the system's minutes."""
    monkeypatch.setattr(download_module, "_CONNECT_SECONDS", 0.2)
    with socket.socket() as full, contextlib.ExitStack() as queue:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(3):  # nobody accepts: once the queue is full, the kernel drops what comes
            waiting = queue.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        monkeypatch.setenv("VGGFEAT_WEIGHTS_URL", f"http://127.0.0.1:{full.getsockname()[1]}")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        with pytest.raises(WeightsError, match=r"(no answer within 0\.2 s|timed out)"):
            find_weights("imagenet", "vgg19")


@pytest.mark.parametrize(("value", "requests"), [("1", 0), ("0", 1), ("", 1)])
def test_offline_by_request(
    server: Server, monkeypatch: pytest.MonkeyPatch, value: str, requests: int
) -> None:
    """With VGGFEAT_OFFLINE nothing is asked of the network, and the error says why."""
    monkeypatch.setenv("VGGFEAT_OFFLINE", value)
    expected = pytest.raises(WeightsError, match="is not fetched: VGGFEAT_OFFLINE is set")
    with contextlib.nullcontext() if requests else expected:
        find_weights("imagenet", "vgg11")
    assert server.requests == requests


def test_the_proxy_is_what_must_be_reached(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a proxy the name need not be known here: the proxy is asked."""
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("VGGFEAT_WEIGHTS_URL", "http://weights.invalid")
    monkeypatch.setattr(urllib.request, "_opener", None)  # it knows the proxies of its first use
    assert find_weights("imagenet", "vgg11").name == FILE_NAME


def test_several_runs_fetch_once(server: Server) -> None:
    """Runs that begin at the same time make one request; a dead run's beginning is no matter."""
    server.manner = "slow"
    path = Path(weights_folder()) / FILE_NAME
    path.parent.mkdir(parents=True)
    path.with_name(FILE_NAME + ".vggfeat.tmp").write_bytes(b"killed here")
    code = (
        "import sys, vggfeat.network.weights as weights\n"
        "from vggfeat.core.vgg_layers import VGG\n"
        "VGG.published['imagenet', 'vgg11'] = sys.argv[1]\n"
        "print(weights.find_weights('imagenet', 'vgg11').sha256)"
    )
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", code, FILE_NAME], stdout=subprocess.PIPE, text=True, umask=0o027
        )
        for _ in range(3)
    ]
    digests = [run.communicate(timeout=600)[0].strip() for run in runs]
    assert digests == [sha256(server.content)] * 3
    assert server.requests == 1
    assert path.read_bytes() == server.content
    assert path.stat().st_mode & 0o777 == 0o640
    assert {entry.name for entry in path.parent.iterdir()} == {FILE_NAME}


@pytest.mark.parametrize("address", ["no address", "http://[", "ftp//x", "http://a b/c"])
def test_a_mirror_that_is_no_address_is_an_error(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mirror that makes no sense is reported like one out of reach."""
    monkeypatch.setenv("VGGFEAT_WEIGHTS_URL", address)
    with pytest.raises(WeightsError, match="VGGFEAT_WEIGHTS_URL"):
        find_weights("imagenet", "vgg19")
    kept = Path(weights_folder())
    assert not kept.exists() or list(kept.iterdir()) == []


# --- files of tensors


def some_tensors(dtype: torch.dtype = torch.float32) -> Tensors:
    generator = torch.Generator().manual_seed(3)
    shapes = {"a.weight": (8, 3, 3, 3), "a.bias": (8,), "b.weight": (5, 7), "scalar": ()}
    tensors = {
        name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()
    }
    return {**tensors, "count": torch.tensor(12), "empty": torch.zeros((0, 4), dtype=dtype)}


def assert_equal(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES)
def test_safetensors_are_read_as_its_library_does(tmp_path: Path, dtype: torch.dtype) -> None:
    """A file that the safetensors library wrote reads as that library reads it."""
    path = str(tmp_path / "w.safetensors")
    safetensors.torch.save_file(some_tensors(dtype), path, metadata={"format": "pt"})
    expected = safetensors.torch.load_file(path)
    found = read_checkpoint(path)
    assert_equal({name: found[name] for name in expected}, expected)
    assert set(found) == set(expected)


def unaligned() -> bytes:
    """A file whose float32 values begin at an odd address, as the format allows."""
    header = {"x": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}}
    text = json.dumps(header).encode()
    text += b" " * (8 - len(text) % 8 + 3)
    return len(text).to_bytes(8, "little") + text + np.arange(3, dtype="<f4").tobytes()


def test_unaligned_values_are_read(tmp_path: Path) -> None:
    """Values that begin at an odd address are read as the library reads them."""
    path = tmp_path / "w.safetensors"
    path.write_bytes(unaligned())
    assert_equal(read_checkpoint(str(path)), safetensors.torch.load(unaligned()))
    assert read_checkpoint(str(path))["x"].tolist() == [0, 1, 2]


def contiguous(tensors: Tensors) -> Any:
    return tensors


def parameters(tensors: Tensors) -> Any:
    return collections.OrderedDict(
        (name, torch.nn.Parameter(t) if t.is_floating_point() else t) for name, t in tensors.items()
    )


def prefixed(tensors: Tensors) -> Any:
    return {f"module.{name}": tensor for name, tensor in tensors.items()}


def nested(tensors: Tensors) -> Any:
    momentum = {"w": torch.ones(1000), "lists": [torch.ones(7), (torch.ones(9), 3)], **tensors}
    return {"epoch": 3, "arch": "vgg", "optimizer": momentum, "state_dict": prefixed(tensors)}


def sharing(tensors: Tensors) -> Any:
    """Transposed, strided, expanded and overlapping views of storages that are saved once."""
    whole = torch.arange(60, dtype=torch.float32).reshape(5, 12)
    views = {"t": whole.t(), "part": whole[1:4, 2:9:3], "row": whole[2], "whole": whole}
    lasting = tensors["a.weight"].to(memory_format=torch.channels_last)
    return {**tensors, **views, "again": tensors["b.weight"], "last": lasting}


WRITERS = [contiguous, parameters, prefixed, nested, sharing]


def own_names(loaded: Any) -> Tensors:
    loaded = loaded.get("state_dict", loaded)
    return {name.removeprefix("module."): tensor for name, tensor in loaded.items()}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("writer", WRITERS)
def test_torch_files_are_read_as_torch_does(
    tmp_path: Path, writer: Callable[[Tensors], Any], zipped: bool, dtype: torch.dtype
) -> None:
    """Either format of torch.save reads as torch.load reads it, wrappings and prefix taken off."""
    path = str(tmp_path / "w.pth")
    torch.save(writer(some_tensors(dtype)), path, _use_new_zipfile_serialization=zipped)
    expected = own_names(torch.load(path, weights_only=True))
    assert_equal(read_checkpoint(path), expected)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_changing_what_was_read_never_reaches_the_file(
    tmp_path: Path, zipped: bool, suffix: str
) -> None:
    """Tensors read are a private map: writing to them leaves the file as it is."""
    path = tmp_path / f"w.{suffix}"
    if suffix == "pth":
        torch.save(some_tensors(), path, _use_new_zipfile_serialization=zipped)
    else:
        safetensors.torch.save_file(some_tensors(), path)
    before = path.read_bytes()
    for tensor in read_checkpoint(str(path)).values():
        tensor.zero_()
    assert path.read_bytes() == before


class Malice:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path: Path, zipped: bool) -> None:
    """A pickle that would run something is refused with the reason, and nothing has run."""
    path, proof = tmp_path / "w.pth", tmp_path / "proof"
    tensors = {**some_tensors(), "evil": Malice(proof)}
    torch.save(tensors, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match="hold more than tensors and were refused"):
        read_checkpoint(str(path))
    assert not proof.exists()
    torch.load(path, weights_only=False)
    assert proof.is_dir()


@pytest.mark.parametrize("place", range(5))
def test_code_in_any_part_of_a_legacy_file_is_refused(tmp_path: Path, place: int) -> None:
    """None of the five pickles of a legacy file may run anything."""
    path, proof = tmp_path / "w.pth", tmp_path / "proof"
    whole = io.BytesIO()
    torch.save({}, whole, _use_new_zipfile_serialization=False)
    whole.seek(0)
    parts: list[Any] = [pickle.load(whole) for _ in range(5)]
    head = pickle.dumps(parts[0], protocol=2)
    parts[place] = Malice(proof)
    begin = head if place == 0 else b""  # or the file would not even pass for a legacy one
    path.write_bytes(begin + b"".join(pickle.dumps(part, protocol=2) for part in parts))
    with pytest.raises(WeightsError, match="refused"):
        read_checkpoint(str(path))
    assert not proof.exists()


@pytest.mark.parametrize("value", [torch.nn.Linear(2, 3), [torch.ones(2)], torch.ones(3), "text"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_what_is_no_state_dict_is_refused(tmp_path: Path, value: Any, zipped: bool) -> None:
    """A whole module, a list, a lone tensor and a text are no names to tensors."""
    path = str(tmp_path / "w.pth")
    torch.save(value, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match=r"refused|expected a state_dict"):
        read_checkpoint(path)


def file_bytes(kind: str) -> bytes:
    if kind == "safetensors":
        return safetensors.torch.save(some_tensors())
    stream = io.BytesIO()
    torch.save(some_tensors(), stream, _use_new_zipfile_serialization=kind == "zip")
    return stream.getvalue()


KINDS = ["safetensors", "zip", "legacy"]


def written(folder: Path, kind: str, data: bytes) -> str:
    path = folder / ("w.safetensors" if kind == "safetensors" else "w.pth")
    path.write_bytes(data)
    return str(path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0, 0.001, 0.02, 0.1, 0.3, 0.5, 0.9, 0.999])
def test_files_cut_short_are_errors(tmp_path: Path, kind: str, share: float) -> None:
    """A file that ends early is reported as such wherever the cut is."""
    data = file_bytes(kind)
    path = written(tmp_path, kind, data[: int(share * len(data))])
    message = "damaged or cut short|in no known format" if share < 0.01 else "damaged or cut short"
    with pytest.raises(WeightsError, match=message):
        read_checkpoint(path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")  # torch's word on a changed byte
@pytest.mark.parametrize("kind", KINDS)
@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_damaged_files_are_errors_or_tensors(
    tmp_path: Path, kind: str, data: st.DataObject
) -> None:
    """Bytes changed at random make an error of ours or tensors, and nothing else."""
    content = bytearray(file_bytes(kind))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, min(len(content), 1500) - 1))] = data.draw(
            st.integers(0, 255)
        )
    path = written(tmp_path, kind, bytes(content))
    with contextlib.suppress(WeightsError):
        assert all(isinstance(t, torch.Tensor) for t in read_checkpoint(path).values())


def lying(header: Any, values: int = 24, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + bytes(values)


def entry(begin: Any, end: Any, shape: Any, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


LIES: dict[str, bytes] = {
    "overlap": lying({"a": entry(0, 16, [4]), "b": entry(8, 24, [4])}),
    "same bytes": lying({"a": entry(0, 24, [6]), "b": entry(0, 24, [6])}),
    "hole": lying({"a": entry(0, 8, [2]), "b": entry(16, 24, [2])}),
    "rest": lying({"a": entry(0, 16, [4])}),
    "late": lying({"a": entry(8, 24, [4])}),
    "beyond": lying({"a": entry(0, 2400, [600])}),
    "backwards": lying({"a": entry(24, 0, [6])}),
    "negative": lying({"a": entry(-24, 0, [6])}),
    "shape too large": lying({"a": entry(0, 24, [7])}),
    "shape too small": lying({"a": entry(0, 24, [5])}),
    "shape of minuses": lying({"a": entry(0, 24, [-2, -3])}),
    "shape beyond int64": lying({"a": entry(0, 0, [0, 2**70])}, 0),
    "shape of a fraction": lying({"a": entry(0, 24, [1.5, 4])}),
    "shape of texts": lying({"a": entry(0, 24, ["6"])}),
    "shape a number": lying({"a": entry(0, 24, 6)}),
    "offsets of texts": lying({"a": entry("0", "24", [6])}),
    "three offsets": lying({"a": {"dtype": "F32", "shape": [6], "data_offsets": [0, 12, 24]}}),
    "no dtype": lying({"a": {"shape": [6], "data_offsets": [0, 24]}}),
    "unknown dtype": lying({"a": entry(0, 24, [6], "F4")}),
    "dtype a list": lying({"a": entry(0, 24, [6], ["F32"])}),
    "entry a number": lying({"a": 3}),
    "header a list": lying([entry(0, 24, [6])]),
    "header a text": lying("text"),
    "header a number": lying(3),
    "header no JSON": lying(b"{'a': 1}"),
    "header no UTF-8": lying(b'{"\xff": 1}'),
    "header deeply nested": lying(b"[" * 100_000),
    "length zero": lying({"a": entry(0, 24, [6])}, length=0),
    "length huge": lying({"a": entry(0, 24, [6])}, length=2**63),
    "length beyond the file": lying({"a": entry(0, 24, [6])}, length=500),
    "length alone": (10).to_bytes(8, "little"),
    "four bytes": b"\x01\0\0\0",
}


@pytest.mark.parametrize("lie", LIES)
def test_lying_safetensors_are_errors(tmp_path: Path, lie: str) -> None:
    """What the safetensors library refuses is refused here, as one line that names the file."""
    with pytest.raises(Exception):  # noqa: B017, PT011 Rust's errors have no common root
        safetensors.torch.load(LIES[lie])
    path = written(tmp_path, "safetensors", LIES[lie])
    with pytest.raises(WeightsError, match=r"w\.safetensors' are damaged or cut short: .+;") as e:
        read_checkpoint(path)
    assert "\n" not in str(e.value)


def test_other_files_are_no_weights(tmp_path: Path) -> None:
    """A picture, a folder and a file that is not there are errors that name them."""
    (tmp_path / "w.pth").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    with pytest.raises(WeightsError, match=r"w\.pth' are in no known format; expected safetensors"):
        read_checkpoint(str(tmp_path / "w.pth"))
    for name in ("", "gone.pth", "gone.safetensors"):
        with pytest.raises(WeightsError, match=r"cannot be read: (Is a directory|No such file)"):
            read_checkpoint(str(tmp_path / name))


# --- tensors of a network


def narrow_state(model: str, text: str = "pool5") -> Tensors:
    """Zeros of the right names and shapes, each a view of one element."""
    shapes = parameter_shapes(layers_for(text, model), 10)
    return {name: torch.zeros(1).expand(shape) for name, shape in shapes.items()}


def saved(folder: Path, tensors: Mapping[str, Tensor], name: str = "w.pth") -> Weights:
    torch.save(dict(tensors), folder / name)
    return find_weights(str(folder / name), "vgg11")


@pytest.mark.parametrize("model", VARIANTS)
def test_parameter_names_and_shapes_are_torchvisions(model: str) -> None:
    """The whole network needs exactly the tensors of torchvision's own state dict."""
    with torch.device("meta"):
        network = torchvision.models.get_model(model, weights=None, init_weights=False)
    expected = {
        name: tuple(tensor.shape)
        for name, tensor in network.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    assert parameter_shapes(layer_table(model), 1000) == expected


def test_tensors_come_as_float32_and_only_those_needed(tmp_path: Path) -> None:
    """What the layers need comes in float32 whatever the file's dtype; the rest does not."""
    generator = torch.Generator().manual_seed(1)
    wanted = parameter_shapes(layers_for("conv2_1"), 0)
    state = {n: torch.randn(s, generator=generator).half() for n, s in wanted.items()}
    weights = saved(tmp_path, {**state, "features.6.weight": torch.ones(3), "other": torch.ones(2)})
    found = load_tensors(weights, "vgg11", layers_for("conv2_1"))
    assert_equal(found, {name: tensor.float() for name, tensor in state.items()})


def test_float32_tensors_are_memory_of_our_own(tmp_path: Path) -> None:
    """Tensors of a float32 file are its values, and writing over the file leaves them alone."""
    state = {n: torch.randn(t.shape) for n, t in narrow_state("vgg11").items()}
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    weights = find_weights(str(tmp_path / "w.safetensors"), "vgg11")
    found = load_tensors(weights, "vgg11", layers_for("pool5"))
    with (tmp_path / "w.safetensors").open("r+b") as file:
        file.write(bytes((tmp_path / "w.safetensors").stat().st_size))
    assert set(found) == set(state)
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


def test_missing_tensors_are_listed_with_the_variant(tmp_path: Path) -> None:
    """Weights of another variant are refused, with what is missing and the variant they fit."""
    weights = saved(tmp_path, narrow_state("vgg16_bn"))
    with pytest.raises(WeightsError) as caught:
        load_tensors(weights, "vgg19", layers_for("conv5_4", "vgg19"))
    message = str(caught.value)
    assert "weights w.pth do not fit vgg19: " in message
    assert " of 32 tensors are missing, features.2.weight, features.2.bias, " in message
    assert " more; found 78 tensors" in message
    assert message.endswith("the file looks like vgg16_bn: try --model vgg16_bn")


def test_wrong_shapes_are_all_listed(tmp_path: Path) -> None:
    """Every tensor of another shape is named with the shape expected and the one found."""
    state = narrow_state("vgg11")
    state["features.0.weight"] = torch.zeros(32, 3, 3, 3)
    state["features.8.bias"] = torch.zeros(3)
    with pytest.raises(WeightsError) as caught:
        load_tensors(saved(tmp_path, state), "vgg11", layers_for("pool5"))
    assert str(caught.value) == (
        "weights w.pth do not fit vgg11: features.0.weight expected [64, 3, 3, 3], found "
        "[32, 3, 3, 3]; features.8.bias expected [256], found [3]; use a file whose convolutions "
        "have torchvision's names and shapes; save the state_dict of the whole model"
    )


def test_a_classifier_for_other_maps_is_explained(tmp_path: Path) -> None:
    """An fc6 for a map other than 7 x 7 is refused with that reason."""
    state = narrow_state("vgg11", "fc8")
    state["classifier.0.weight"] = torch.zeros(1).expand(4096, 512)
    with pytest.raises(WeightsError, match=r"found \[4096, 512\]; fc6 takes a 7 x 7 x 512 map"):
        load_tensors(saved(tmp_path, state), "vgg11", layers_for("fc6"))


def test_convolutions_alone_do_not_suggest_their_own_variant(tmp_path: Path) -> None:
    """A file without classifier is not said to fit the very variant that was asked for."""
    with pytest.raises(WeightsError, match=r"4 of 20 tensors are missing, .*found 16") as caught:
        load_tensors(saved(tmp_path, narrow_state("vgg11")), "vgg11", layers_for("fc7"))
    assert "try --model" not in str(caught.value)
    assert "--layers conv5_2; for fc6 and deeper use --weights imagenet" in str(caught.value)


def test_other_numbers_of_classes_are_taken_from_the_file(tmp_path: Path) -> None:
    """A fine-tuned classifier of ten classes fits."""
    state = narrow_state("vgg11", "fc8")
    found = load_tensors(saved(tmp_path, state), "vgg11", layers_for("prob"))
    assert tuple(found["classifier.6.weight"].shape) == (10, 4096)


def test_published_convolutions_have_no_fully_connected_layers() -> None:
    """`features` weights refuse fc7 before their file, whose classifier is empty, is read."""
    weights = Weights("f.pth", "", path="nowhere", convolutions_only=True)
    with pytest.raises(WeightsError, match=r"hold convolutions only, and fc7 lies behind them"):
        load_tensors(weights, "vgg16", layers_for("conv5_3,fc7", "vgg16"))


def test_a_truncated_random_network_equals_the_whole() -> None:
    """Random weights of a layer do not depend on which other layers are there."""
    weights = find_weights("random:5", "vgg13_bn")
    whole = load_tensors(weights, "vgg13_bn", layers_for("pool5", "vgg13_bn"))
    part = load_tensors(weights, "vgg13_bn", layers_for("conv3_1", "vgg13_bn"))
    assert 0 < len(part) < len(whole)
    assert_equal(part, {name: whole[name] for name in part})


def test_random_weights_differ_by_seed() -> None:
    """Seeds differ in every convolution, and a seed gives the same tensors each time."""
    layers = layers_for("pool3")
    drawn = [load_tensors(find_weights(f"random:{n}", "vgg11"), "vgg11", layers) for n in (0, 1, 0)]
    assert_equal(drawn[2], drawn[0])
    for name in drawn[0]:
        if name.endswith("weight"):
            assert not bool((drawn[0][name] == drawn[1][name]).any())


def test_random_weights_are_drawn_as_torchvision_draws() -> None:
    """Convolutions have He's deviation over the fan out; biases are 0, batch norm is neutral."""
    layers = layers_for("pool5", "vgg16_bn")
    found = load_tensors(find_weights("random:0", "vgg16_bn"), "vgg16_bn", layers)
    for name, tensor in found.items():
        if tensor.dim() > 1:
            reference = torch.nn.init.kaiming_normal_(
                torch.empty_like(tensor), mode="fan_out", nonlinearity="relu"
            )
            within = 5 / np.sqrt(2 * tensor.numel())  # five deviations of an estimated deviation
            assert float(tensor.std() / reference.std()) == pytest.approx(1, abs=2 * within)
            assert abs(float(tensor.mean() / tensor.std())) < 5 / np.sqrt(tensor.numel())
        else:
            neutral = 1.0 if name.endswith(("running_var", "weight")) else 0.0
            assert bool((tensor == neutral).all()), name
