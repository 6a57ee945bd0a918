"""What a host process has set reaches no value, and is as it was afterwards."""

from __future__ import annotations

import decimal
import io
import logging
import random
import signal
import sys
import threading
import warnings
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest
import torch
from PIL import GifImagePlugin, Image, ImageFile, PngImagePlugin, TiffImagePlugin
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import vggfeat
from vggfeat import Extractor, Settings
from vggfeat.core.isolation import isolated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

# torch has no types for what their hooks may return.
module: Any = sys.modules["torch.nn.modules.module"]
optimizer: Any = sys.modules["torch.optim.optimizer"]

LAYERS = "conv1_1,conv2_1.pre:map,conv3_2"
SETTINGS = Settings(
    layers=LAYERS, model="vgg11", weights="random:0", size=64, device="cpu",
    precision="float32", dtype="float32", batch_size=2, workers=0,
)  # fmt: skip
PRECISIONS = [
    (backend, operator)
    for backend, operators in {
        "generic": ["all"],
        "cuda": ["all", "matmul", "conv", "rnn"],
        "mkldnn": ["all", "matmul", "conv", "rnn"],
    }.items()
    for operator in operators
]
has_fp32_precision = pytest.mark.skipif(
    not hasattr(torch._C, "_get_fp32_precision_getter"), reason="this torch knows no fp32_precision"
)


class Halves(TorchFunctionMode):
    """Halves what every function of torch returns, as a careless tool of a host might."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        return found / 2 if isinstance(found, torch.Tensor) and found.is_floating_point() else found


class Grey(ImageFile.PyDecoder):
    """Decodes whatever it is to grey, and is asked before the decoders in C."""

    def decode(self, _buffer: Any) -> tuple[int, int]:
        self.set_as_raw(bytes([128]) * (self.state.xsize * self.state.ysize * 3))
        return -1, 0


class Rounds(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch has no types here
    """Rounds what every operator returns."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        return (
            found.round()
            if isinstance(found, torch.Tensor) and found.is_floating_point()
            else found
        )


@contextmanager
def setting(get: Callable[[], Any], put: Callable[[Any], Any], value: Any) -> Iterator[None]:
    before = get()
    put(value)
    try:
        yield
    finally:
        put(before)


def attribute(place: Any, name: str, value: Any) -> Any:
    return setting(lambda: getattr(place, name), lambda x: setattr(place, name, x), value)


def new_precision(backend: str, operator: str, value: str) -> Any:
    core: Any = torch._C
    return setting(
        lambda: core._get_fp32_precision_getter(backend, operator),
        lambda x: core._set_fp32_precision_setter(backend, operator, x),
        value,
    )


@contextmanager
def contradicting_precisions() -> Iterator[None]:
    """The old settings say one thing and the new ones another; reading an old one then raises."""
    with ExitStack() as stack:
        stack.enter_context(matmul_precision("medium"))
        stack.enter_context(new_precision("cuda", "matmul", "ieee"))
        stack.enter_context(new_precision("mkldnn", "conv", "bf16"))
        with pytest.raises(RuntimeError, match="mix of the legacy and new"):
            _ = torch.backends.cuda.matmul.allow_tf32
        yield


def matmul_precision(value: str) -> Any:
    return setting(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, value)


def old_tf32() -> Any:
    stack = ExitStack()
    stack.enter_context(attribute(torch.backends.cuda.matmul, "allow_tf32", value=True))
    stack.enter_context(attribute(torch.backends.cudnn, "allow_tf32", value=True))
    return stack


@contextmanager
def flushing() -> Iterator[None]:
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@contextmanager
def errors() -> Iterator[None]:
    with warnings.catch_warnings(), np.errstate(all="raise"):
        warnings.simplefilter("error")
        yield


@contextmanager
def low_recursion_limit() -> Iterator[None]:
    """Few calls are left, as in a program that wants to hear of endless recursion early."""
    depth, frame = 0, sys._getframe()
    while frame.f_back is not None:
        depth, frame = depth + 1, frame.f_back
    with setting(sys.getrecursionlimit, sys.setrecursionlimit, depth + 60):
        yield


def halved(x: Any) -> Any:
    return x / 2 if isinstance(x, torch.Tensor) and x.is_floating_point() else x


def raise_it(*what: Any) -> None:
    raise FloatingPointError(what)


@contextmanager
def print_options() -> Iterator[None]:
    printing: Any = torch.set_printoptions  # torch has no types here
    printing(precision=1, sci_mode=True)
    try:
        with np.printoptions(precision=1, floatmode="fixed", legacy="1.13"):
            yield
    finally:
        printing(profile="default")


@contextmanager
def default_device() -> Iterator[None]:
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


HOSTS: dict[str, Callable[[], Any]] = {
    "autocast cpu": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast cuda": lambda: setting(
        lambda: torch.is_autocast_enabled("cuda"),
        lambda x: torch.set_autocast_enabled("cuda", x),
        True,
    ),
    "default dtype bfloat16": lambda: setting(
        torch.get_default_dtype, torch.set_default_dtype, torch.bfloat16
    ),
    "default dtype float64": lambda: setting(
        torch.get_default_dtype, torch.set_default_dtype, torch.float64
    ),
    "default device": default_device,
    "device as context": lambda: torch.device("meta"),
    "matmul precision medium": lambda: matmul_precision("medium"),
    "matmul precision high": lambda: matmul_precision("high"),
    "tf32": old_tf32,
    "cudnn disabled": lambda: attribute(torch.backends.cudnn, "enabled", value=False),
    "cudnn benchmark": lambda: attribute(torch.backends.cudnn, "benchmark", value=True),
    "cudnn deterministic": lambda: attribute(torch.backends.cudnn, "deterministic", value=True),
    "mkldnn disabled": lambda: attribute(torch.backends.mkldnn, "enabled", value=False),
    "mkldnn deterministic": lambda: attribute(torch.backends.mkldnn, "deterministic", value=True),
    "deterministic": lambda: setting(
        torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode, 2
    ),
    "inference mode": torch.inference_mode,
    "no grad": torch.no_grad,
    "anomaly": lambda: torch.autograd.set_detect_anomaly(mode=True),
    "flush denormal": flushing,
    "function mode": Halves,
    "dispatch mode": Rounds,
    "errors": errors,
    "decimal": lambda: decimal.localcontext(decimal.Context(prec=1)),
    "recursion limit": low_recursion_limit,
    "track order": lambda: attribute(h5py.get_config(), "track_order", value=True),
    "truncated images": lambda: attribute(ImageFile, "LOAD_TRUNCATED_IMAGES", value=True),
    "pixel limit": lambda: attribute(Image, "MAX_IMAGE_PIXELS", 16),
    "no formats": lambda: attribute(Image, "ID", []),
    "only some formats": lambda: attribute(Image, "OPEN", {"BMP": Image.OPEN["BMP"]}),
    "gif strategy": lambda: attribute(
        GifImagePlugin, "LOADING_STRATEGY", GifImagePlugin.LoadingStrategy.RGB_ALWAYS
    ),
    "libtiff": lambda: attribute(TiffImagePlugin, "READ_LIBTIFF", value=True),
    "limit of texts": lambda: attribute(PngImagePlugin, "MAX_TEXT_MEMORY", 1),
    "decoder": lambda: attribute(Image, "DECODERS", {**Image.DECODERS, "zip": Grey}),
}
DECODING = list(HOSTS)[-8:]
# No file's reading depends on these: extractors alone are tried under them, which is quick.
OF_MODULES: dict[str, Callable[[], Any]] = {
    "forward hook": lambda: module.register_module_forward_hook(lambda _m, _x, y: halved(y)),
    "forward hook with keywords": lambda: module.register_module_forward_hook(
        lambda _m, _x, _k, y: halved(y), with_kwargs=True, always_call=True
    ),
    "forward pre-hook": lambda: module.register_module_forward_pre_hook(
        lambda _m, x: tuple(map(halved, x))
    ),
    "buffer registration": lambda: module.register_module_buffer_registration_hook(
        lambda _m, _name, x: halved(x)
    ),
    "parameter registration": lambda: module.register_module_parameter_registration_hook(
        lambda _m, _name, x: None if x is None else nn.Parameter(halved(x))
    ),
    "module registration": lambda: module.register_module_module_registration_hook(
        lambda _m, _name, _x: nn.Identity()
    ),
    "backward hook": lambda: module.register_module_full_backward_hook(
        lambda _m, x, _y: tuple(map(halved, x))
    ),
    "backward pre-hook": lambda: module.register_module_full_backward_pre_hook(
        lambda _m, y: tuple(map(halved, y))
    ),
    "optimizer hook": lambda: optimizer.register_optimizer_step_pre_hook(
        lambda o, *_: [x.grad.zero_() for group in o.param_groups for x in group["params"]]
    ),
    "optimizer hook afterwards": lambda: optimizer.register_optimizer_step_post_hook(
        lambda o, *_: [x.data.zero_() for group in o.param_groups for x in group["params"]]
    ),
    "saved tensors": lambda: torch.autograd.graph.saved_tensors_hooks(halved, halved),
    "swapped parameters": lambda: setting(
        torch.__future__.get_swap_module_params_on_conversion,
        torch.__future__.set_swap_module_params_on_conversion,
        True,
    ),
    "overwritten parameters": lambda: setting(
        torch.__future__.get_overwrite_module_params_on_conversion,
        torch.__future__.set_overwrite_module_params_on_conversion,
        True,
    ),
    "print options": print_options,
    "NumPy's error handler": lambda: np.errstate(all="call", call=raise_it),
}
if hasattr(torch._C, "_get_fp32_precision_getter"):
    HOSTS |= {
        f"fp32_precision {backend} {operator}": lambda b=backend, o=operator: new_precision(  # type: ignore[misc] # defaults bind early
            b, o, "tf32"
        )
        for backend, operator in PRECISIONS
    }
    HOSTS |= {
        "bf16 in oneDNN's matmul": lambda: new_precision("mkldnn", "matmul", "bf16"),
        "bf16 in oneDNN's conv": lambda: new_precision("mkldnn", "conv", "bf16"),
        "contradicting precisions": contradicting_precisions,
    }


def matmul_flag(name: str, value: Any) -> Any:
    return lambda: attribute(torch.backends.cuda.matmul, name, value)


def of_torch(get: str, put: str, value: Any) -> Any:
    """A setting that has a public way to set it, and none to set it back."""
    core: Any = torch._C
    return lambda: setting(getattr(core, get), getattr(core, put), value)


REDUCED = [f"allow_{kind}_reduced_precision_reduction" for kind in ("fp16", "bf16")]
# How matrices are multiplied on CUDA. On a CPU they change nothing, and are put aside the same.
OF_CUDA: dict[str, Callable[[], Any]] = {name: matmul_flag(name, value=False) for name in REDUCED}
if isinstance(torch._C._get_cublas_allow_fp16_reduced_precision_reduction(), tuple):
    OF_CUDA |= {f"{name}, no split-k": matmul_flag(name, value=(False, False)) for name in REDUCED}
if hasattr(torch._C, "_get_cublas_allow_fp16_accumulation"):
    OF_CUDA["fp16 accumulation"] = matmul_flag("allow_fp16_accumulation", value=True)
if hasattr(torch._C, "_get_blas_preferred_backend") and torch.version.cuda:
    OF_CUDA["cuBLASLt"] = of_torch(
        "_get_blas_preferred_backend",
        "_set_blas_preferred_backend",
        torch._C._BlasBackend.Cublaslt,
    )
if hasattr(torch._C, "_get_sm_carveout_experimental"):
    OF_CUDA["carveout"] = of_torch(
        "_get_sm_carveout_experimental", "_set_sm_carveout_experimental", 4
    )
if hasattr(torch._C, "_cuda_tunableop_enable"):
    OF_CUDA["tunable operators"] = of_torch(
        "_cuda_tunableop_is_enabled", "_cuda_tunableop_enable", value=True
    )


def flags() -> dict[str, Any]:
    """Switches between algorithms, by the functions that torch's public properties call."""
    core: Any = torch._C
    names = ["_cuda_tunableop_is_enabled"]
    names += [
        f"_get_{name}"
        for name in (
            "cudnn_enabled", "cudnn_benchmark", "cudnn_deterministic", "mkldnn_enabled",
            "mkldnn_deterministic", "nnpack_enabled", "blas_preferred_backend",
            "sm_carveout_experimental", "cublas_allow_fp16_accumulation",
            "cublas_allow_fp16_reduced_precision_reduction",
            "cublas_allow_bf16_reduced_precision_reduction",
            "cpu_allow_fp16_reduced_precision_reduction",
        )
    ]  # fmt: skip
    return {name: getattr(core, name)() for name in names if hasattr(core, name)}


def tried(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except RuntimeError as error:
        return str(error)


def state() -> dict[str, Any]:
    """All that a host may have set, by its public name where it has one."""
    core: Any = torch._C
    found = {
        "autocast": [torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda")],
        "autocast dtype": [torch.get_autocast_dtype(kind) for kind in ("cpu", "cuda")],
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "matmul": tried(torch.get_float32_matmul_precision),
        "cublas": tried(lambda: torch.backends.cuda.matmul.allow_tf32),
        "cudnn tf32": tried(lambda: torch.backends.cudnn.allow_tf32),
        "cudnn": [
            getattr(torch.backends.cudnn, name)
            for name in ("enabled", "benchmark", "deterministic")
        ],
        "mkldnn": [getattr(torch.backends.mkldnn, name) for name in ("enabled", "deterministic")],
        "deterministic": torch.get_deterministic_debug_mode(),
        "grad": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "anomaly": (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
        "denormals": [5e-324][0] * 1.0,
        "modes": (core._len_torch_function_stack(), core._len_torch_dispatch_stack()),
        "hooks": [
            list(hooks)
            for place in (module, optimizer)
            for name, hooks in vars(place).items()
            if name.startswith("_global_") and isinstance(hooks, dict)
        ],
        "saved tensors": core._autograd._top_saved_tensors_default_hooks(True),
        "threads": torch.get_num_threads(),
        "torch random": torch.get_rng_state().tolist(),
        "numpy random": str(np.random.get_state()),  # noqa: NPY002 what a host may use
        "random": random.getstate(),
        "numpy": (np.geterr(), np.geterrcall()),
        "warnings": [str(entry) for entry in warnings.filters],
        "showwarning": warnings.showwarning,
        "decimal": str(decimal.getcontext()),
        "recursion": sys.getrecursionlimit(),
        "signals": [signal.getsignal(number) for number in signal.valid_signals()],
        "h5py": h5py.get_config().track_order,
        "pillow": (
            ImageFile.LOAD_TRUNCATED_IMAGES,
            Image.MAX_IMAGE_PIXELS,
            dict(Image.OPEN),
            list(Image.ID),
            GifImagePlugin.LOADING_STRATEGY,
            TiffImagePlugin.READ_LIBTIFF,
            PngImagePlugin.MAX_TEXT_MEMORY,
            dict(Image.DECODERS),
            logging.getLogger("PIL").propagate,
        ),
    }
    found |= flags()
    if hasattr(core, "_get_fp32_precision_getter"):
        found["fp32"] = [core._get_fp32_precision_getter(*key) for key in PRECISIONS]
    return found


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six files: two PNG, a GIF, a TIFF, and a JPEG whole and cut short."""
    folder = tmp_path_factory.mktemp("isolation") / "images"
    folder.mkdir()
    noise = np.random.default_rng(0)
    pictures = [
        Image.fromarray(noise.integers(0, 256, (90, 80, 3), dtype=np.uint8)) for _ in range(5)
    ]
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Comment", "a photo")
    pictures[0].save(folder / "a.png", pnginfo=texts)
    for number, name in enumerate(("b.png", "c.gif", "d.tif", "e.jpg"), start=1):
        pictures[number].save(folder / name)
    whole = (folder / "e.jpg").read_bytes()
    (folder / "f.jpg").write_bytes(whole[: len(whole) * 2 // 3])
    return folder


def contents(out: Path) -> dict[str, Any]:
    with h5py.File(out) as file:
        names = ["images/path", "images/state", "images/error", "images/checksum"]
        names += [f"features/{spec}" for spec in LAYERS.split(",")]
        found = {name: file[name][()].tobytes() for name in names}
        return {**found, "fingerprint": file.attrs["fingerprint"]}


@pytest.fixture(scope="module")
def expected(images: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """Of a process that nobody has changed anything in: a cache's contents, and an extractor's."""
    out = tmp_path_factory.mktemp("expected") / "f.h5"
    vggfeat.extract(images, out, SETTINGS)
    with h5py.File(out) as file:
        assert file["images/state"][()].tolist() == [1, 1, 1, 1, 1, 2]
    return contents(out), Extractor(SETTINGS)(pixels())


def pixels() -> torch.Tensor:
    noise = np.random.default_rng(1)
    return torch.from_numpy(noise.integers(0, 256, (2, 3, 64, 64), dtype=np.uint8))


@pytest.mark.parametrize(
    ("host", "workers"),
    [*((host, 2) for host in HOSTS), *((host, 0) for host in DECODING), ("errors", 0)],
)
def test_extract_gives_the_same_whatever_the_host_has_set(
    host: str, workers: int, images: Path, expected: Any, tmp_path: Path
) -> None:
    """The rows and states of a cache are those of a fresh process, and the host's state stays."""
    with HOSTS[host]():
        before = state()
        settings = Settings(**{**SETTINGS.as_dict(), "workers": workers})
        vggfeat.extract(images, tmp_path / "f.h5", settings)
        after = state()
    assert after == before
    assert contents(tmp_path / "f.h5") == expected[0]


@pytest.mark.parametrize("host", [*HOSTS, *OF_MODULES, *OF_CUDA])
def test_an_extractor_gives_the_same_whatever_the_host_has_set(host: str, expected: Any) -> None:
    """Made and called under the host's state, it gives the features of a fresh process."""
    batch = pixels()
    with {**HOSTS, **OF_MODULES, **OF_CUDA}[host]():
        before = state()
        found = Extractor(SETTINGS)(batch)
        after = state()
    assert after == before
    for spec, rows in expected[1].items():
        assert not found[spec].is_inference()
        assert found[spec].dtype == torch.float32
        assert torch.equal(found[spec], rows), spec


def trained() -> list[torch.Tensor]:
    """Return the parameters of a small network after two steps."""
    network = nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2))
    for number, parameter in enumerate(network.parameters()):
        nn.init.constant_(parameter, 0.1 * (number + 1))
    steps = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    images = torch.linspace(-1, 2, 96).reshape(2, 3, 4, 4)
    for _ in range(2):
        steps.zero_grad()
        network(images).square().sum().backward()
        steps.step()
    return [x.detach() for x in (*network.parameters(), *network.buffers())]


@pytest.mark.parametrize("host", OF_MODULES)
def test_training_gives_the_same_whatever_the_host_has_set(host: str) -> None:
    """Hooks of modules, optimizers and saved tensors change no gradient and no step."""
    right = trained()
    with OF_MODULES[host](), isolated():
        found = trained()
    assert all(map(torch.equal, found, right))


def test_hooks_registered_meanwhile_stay() -> None:
    """Of another thread, say; and a handle taken before still removes its hook."""
    before = len(module._global_forward_hooks)
    first = module.register_module_forward_hook(lambda *_: None)
    with isolated():
        assert not module._global_forward_hooks
        second = module.register_module_forward_hook(lambda *_: None)
    assert list(module._global_forward_hooks)[before:] == [first.id, second.id]
    first.remove()
    second.remove()
    assert len(module._global_forward_hooks) == before


def test_errors_restore_the_state(tmp_path: Path) -> None:
    """A call that fails gives the host its state back too."""
    (tmp_path / "images").mkdir()
    for host in ("default dtype float64", "errors", "default device", "recursion limit"):
        with HOSTS[host]():
            before = state()
            with pytest.raises(FileNotFoundError):
                vggfeat.extract(tmp_path / "images", tmp_path / "f.h5", SETTINGS)
            assert state() == before


@pytest.mark.parametrize("host", [*OF_CUDA, "cudnn benchmark", "cudnn deterministic"])
def test_algorithms_inside_are_those_of_a_fresh_process(host: str) -> None:
    """While it computes no switch is as the host has set it; an error gives it back too."""
    fresh, inside = flags(), {}

    def fail() -> None:
        inside.update(flags())
        raise ZeroDivisionError

    with {**HOSTS, **OF_CUDA}[host]():
        before = flags()
        assert before != fresh
        with pytest.raises(ZeroDivisionError), isolated():
            fail()
        assert flags() == before
    assert inside == fresh == flags()


@has_fp32_precision
def test_precisions_inside_are_full() -> None:
    """While it computes, no way of rounding float32 is on, on any device."""
    core: Any = torch._C
    for host in [name for name in HOSTS if "precision" in name or "tf32" in name]:
        with HOSTS[host](), isolated():
            assert torch.get_float32_matmul_precision() == "highest"
            assert not torch.backends.cuda.matmul.allow_tf32
            assert not torch.backends.cudnn.allow_tf32
            found = {core._get_fp32_precision_getter(*key) for key in PRECISIONS}
            assert found <= {"ieee", "none"}, host


def test_threads_share_the_state() -> None:
    """The settings of the process come back when the last of several threads is done."""
    inside, leave = threading.Event(), threading.Event()
    seen = []

    def stay() -> None:
        with isolated():
            inside.set()
            leave.wait(300)
            seen.append(torch.get_default_dtype())

    with HOSTS["default dtype float64"]():
        with isolated():
            thread = threading.Thread(target=stay)
            thread.start()
            assert inside.wait(300)
        assert torch.get_default_dtype() == torch.float32  # the other one computes
        leave.set()
        thread.join()
        assert torch.get_default_dtype() == torch.float64
    assert seen == [torch.float32]


def test_the_number_of_threads_hardly_matters() -> None:
    """Features agree to 1e-6 for any number of threads, which stays the caller's."""
    network = Extractor(SETTINGS)
    batch = pixels()
    found = {}
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            found[threads] = network(batch)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    for rows in found.values():
        for spec, right in found[1].items():
            assert float((rows[spec] - right).abs().max() / right.abs().max()) < 1e-6


def test_foreign_plugins_do_not_read_images(tmp_path: Path) -> None:
    """A format that the host has registered makes no row done that the command would fail."""

    def factory(stream: Any, _name: Any) -> Any:
        image: Any = Image.open(io.BytesIO(stream.read()[8:]), formats=["PNG"])
        image.format = "HOUSE"
        return image

    (tmp_path / "images").mkdir()
    Image.new("RGB", (80, 80), "red").save(tmp_path / "images" / "a.png")
    whole = (tmp_path / "images" / "a.png").read_bytes()
    (tmp_path / "images" / "b.png").write_bytes(b"HOUSE\0\0\0" + whole)
    Image.init()
    Image.register_open("HOUSE", factory, lambda prefix: prefix[:5] == b"HOUSE")
    try:
        summary = vggfeat.extract(tmp_path / "images", tmp_path / "f.h5", SETTINGS)
    finally:
        del Image.OPEN["HOUSE"]
        Image.ID.remove("HOUSE")
    assert (summary.done, summary.failed) == (1, 1)


def test_plugins_are_those_of_a_fresh_process() -> None:
    """What is found in the sources of the plugins is what Pillow registers by itself."""
    from vggfeat.images.pillow_state import own_decoders, own_plugins

    Image.init()
    extras = {"HEIF", "JXL"}  # registered when their packages are imported or told to
    assert {name: plugin for name, plugin in own_plugins().items() if name not in extras} == {
        name: plugin for name, plugin in Image.OPEN.items() if name not in extras
    }
    assert extras <= own_plugins().keys()
    assert own_decoders() == Image.DECODERS


def test_a_handler_of_a_c_library_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal that C code catches cannot be given back by Python, so it is not taken."""
    from vggfeat.core.signals import StopFlag

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(signal, "getsignal", lambda _number: None)
    with StopFlag():
        monkeypatch.undo()
        assert signal.getsignal(signal.SIGTERM) == before
