"""What the host process has set must not reach a value: its state is put aside while we compute.

A program that calls us may run under autocast, with another default dtype, with TF32 switched on,
with NumPy raising and warnings as errors. The features would be other ones under the same
fingerprint. So every public function that computes runs as in a fresh process, and gives the state
back as it was, whatever happens.

Settings of the process as a whole, such as the default dtype, are put aside by the first call that
begins and given back by the last one that ends, so that threads may call us at the same time. What
belongs to a thread, such as autocast, is put aside by each call.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import sys
import threading
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from vggfeat.core.exhaustion import exhaustion_of
from vggfeat.core.lost_device import lost_device

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

log = logging.getLogger("vggfeat")

_RECURSION_LIMIT = 1000  # Python's own; importing torch takes some hundred
_AUTOCAST = ("cpu", "cuda", "mps", "xpu")
_SMALLEST = [5e-324]  # in a list, so that no compiler multiplies it beforehand

# Above the operators stand the backends, and above these `generic`; one that is "none" inherits.
_FP32_PRECISIONS = (
    ("generic", "all"),
    ("cuda", "all"),
    ("cuda", "matmul"),
    ("cuda", "conv"),
    ("cuda", "rnn"),
    ("mkldnn", "all"),
    ("mkldnn", "matmul"),
    ("mkldnn", "conv"),
    ("mkldnn", "rnn"),
)


@contextlib.contextmanager
def isolated() -> Iterator[None]:
    """Run the block, or a function it decorates, as in a fresh process; restore the state after.

    Covers torch (autocast, default dtype and device, modes, gradients, TF32 by the old and the new
    settings, cuDNN, cuBLAS, oneDNN, deterministic algorithms, anomaly detection, denormals, global
    hooks of modules and optimizers, hooks on saved tensors), NumPy's error handling, warnings as
    errors, the recursion limit and h5py's configuration. Without torch loaded nobody has set
    anything of it. The number of threads is the caller's to choose and is kept. A block that runs
    out of memory, processes, threads or open files raises ResourceError, and one whose device is
    lost DeviceError.
    """
    torch: Any = sys.modules.get("torch")
    with contextlib.ExitStack() as stack:
        stack.enter_context(_failures_told())
        stack.enter_context(_PROCESS)
        stack.enter_context(np.errstate(divide="warn", over="warn", under="ignore", invalid="warn"))
        if torch is not None and hasattr(torch, "autograd"):  # else its import is still under way
            stack.enter_context(_TORCH_PROCESS)
            _set_thread_of_torch(torch, stack)
        yield


@contextlib.contextmanager
def _failures_told() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        found = exhaustion_of(error) or lost_device(error)
        if found is None or found is error:
            raise
        raise found from error


class _Shared:
    """State of the whole process, put aside while at least one block of any thread runs."""

    def __init__(self, set_aside: Callable[[], AbstractContextManager[None]]) -> None:
        self._set_aside = set_aside
        self._lock = threading.Lock()
        self._users = 0
        self._state: AbstractContextManager[None] | None = None

    def __enter__(self) -> None:
        with self._lock:
            if not self._users:
                self._state = self._set_aside()
                self._state.__enter__()
            self._users += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            if not self._users and self._state is not None:
                self._state.__exit__(None, None, None)
                self._state = None


@contextlib.contextmanager
def _process() -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        # A library's advice is no reason to fail; the caller still sees it.
        kept: list[Any] = list(warnings.filters)
        if any(action == "error" for action, *_ in kept):
            warnings.resetwarnings()
            filters: Any = warnings.filters  # the stubs call it a Sequence; it is a list
            filters.extend(("default" if one[0] == "error" else one[0], *one[1:]) for one in kept)
        limit = sys.getrecursionlimit()
        if limit < _RECURSION_LIMIT:
            sys.setrecursionlimit(_RECURSION_LIMIT)
            stack.callback(_lower_recursion_limit, limit)
        h5py: Any = sys.modules.get("h5py")
        if h5py is not None and hasattr(h5py, "get_config"):
            config = h5py.get_config()
            stack.callback(setattr, config, "track_order", config.track_order)
            config.track_order = False
        yield


def _lower_recursion_limit(limit: int) -> None:
    with contextlib.suppress(RecursionError):  # another thread, or the caller, is deeper by now
        sys.setrecursionlimit(limit)


@contextlib.contextmanager
def _torch_process() -> Iterator[None]:
    torch: Any = sys.modules["torch"]
    with contextlib.ExitStack() as stack:
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(torch.float32)
        stack.callback(torch.set_deterministic_debug_mode, torch.get_deterministic_debug_mode())
        torch.set_deterministic_debug_mode("default")
        anomaly = torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()
        stack.callback(torch.autograd.set_detect_anomaly, *anomaly)
        torch.autograd.set_detect_anomaly(False)
        _set_flags(torch._C, stack)  # noqa: SLF001 the public properties refuse after `disable_global_flags`
        _set_float32(torch, stack)
        _remove_global_hooks(stack)
        yield


def _remove_global_hooks(stack: contextlib.ExitStack) -> None:
    """Take off the hooks that every module and optimizer calls; they may change what passes.

    Their dicts stay the same objects, for handles refer to them. What another thread registers
    meanwhile stays registered.
    """
    for module in ("torch.nn.modules.module", "torch.optim.optimizer"):
        for name, hooks in vars(sys.modules[module]).items():
            if name.startswith("_global_") and isinstance(hooks, dict) and hooks:
                stack.callback(_put_back, hooks, dict(hooks))
                hooks.clear()


def _put_back(hooks: dict[int, Any], kept: dict[int, Any]) -> None:
    registered_meanwhile = dict(hooks)
    hooks.clear()
    hooks.update({**kept, **registered_meanwhile})


def _set_flags(core: Any, stack: contextlib.ExitStack) -> None:
    """Set switches that choose between algorithms to what they are in a fresh process."""
    fresh = {
        "cudnn_enabled": True,
        "cudnn_benchmark": False,
        "cudnn_deterministic": False,
        "cublas_allow_fp16_reduced_precision_reduction": True,
        "cublas_allow_bf16_reduced_precision_reduction": True,
        "cublas_allow_fp16_accumulation": False,
        "cpu_allow_fp16_reduced_precision_reduction": False,
        "mkldnn_enabled": True,
        "mkldnn_deterministic": False,
        "nnpack_enabled": True,
    }
    for name, value in fresh.items():
        get, put = getattr(core, f"_get_{name}", None), getattr(core, f"_set_{name}", None)
        if get is None or put is None:  # of another version of torch
            continue
        before = get()
        before = before if isinstance(before, tuple) else (before,)
        stack.callback(put, *before)
        put(*[value] * len(before))  # from torch 2.10 a sum may be reduced, and split, in float16
    _set_matmuls(core, stack)


def _set_matmuls(core: Any, stack: contextlib.ExitStack) -> None:
    """Choose library and kernels of matrix products on CUDA as a fresh process does.

    Nothing is set that is so already, since each of these warns of being an experiment.
    """
    backends = getattr(core, "_BlasBackend", None)
    if backends is not None and hasattr(core, "_get_blas_preferred_backend"):
        usual = getattr(core, "_get_blas_default_backend", lambda: backends.Cublas)()
        before = core._get_blas_preferred_backend()  # noqa: SLF001 the public ways warn
        if before != usual:
            stack.callback(core._set_blas_preferred_backend, before)  # noqa: SLF001
            # By itself torch may prefer another one: only before 2.7 it has no word for that.
            core._set_blas_preferred_backend(getattr(backends, "Default", usual))  # noqa: SLF001
    if getattr(core, "_get_sm_carveout_experimental", lambda: None)() is not None:
        before = core._get_sm_carveout_experimental()  # noqa: SLF001
        stack.callback(core._set_sm_carveout_experimental, before)  # noqa: SLF001
        core._set_sm_carveout_experimental(None)  # noqa: SLF001
    if getattr(core, "_cuda_tunableop_is_enabled", lambda: False)():
        stack.callback(core._cuda_tunableop_enable, True)  # noqa: SLF001
        core._cuda_tunableop_enable(False)  # noqa: SLF001


def _set_float32(torch: Any, stack: contextlib.ExitStack) -> None:
    """Keep float32 exact, by torch's old and its new settings, which contradict each other.

    Once a program has used both, reading an old one raises. So the new ones are read first, from
    the most general one down, each switched off before the next, which else would inherit from it;
    and the old ones beside new ones that agree with them.
    """
    core = torch._C  # noqa: SLF001 there is no public way to these
    if not _has(core, "_get_cudnn_allow_tf32", "_set_cudnn_allow_tf32"):
        return
    if not hasattr(core, "_get_fp32_precision_getter"):  # before torch 2.9
        stack.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
        stack.callback(core._set_cudnn_allow_tf32, core._get_cudnn_allow_tf32())  # noqa: SLF001
        torch.set_float32_matmul_precision("highest")
        core._set_cudnn_allow_tf32(False)  # noqa: SLF001
        return
    if not _has(core, "_set_fp32_precision_setter"):
        return
    get, put = core._get_fp32_precision_getter, core._set_fp32_precision_setter  # noqa: SLF001
    before = {}
    for key in _FP32_PRECISIONS:
        before[key] = get(*key)
        put(*key, "none")
    matmul = _old_matmul_precision(torch, put)
    convolutions = _old_allow_tf32(core, put)

    def restore() -> None:
        torch.set_float32_matmul_precision(matmul)
        core._set_cudnn_allow_tf32(convolutions)  # noqa: SLF001
        for key, value in before.items():
            put(*key, value)

    stack.callback(restore)
    torch.set_float32_matmul_precision("highest")
    core._set_cudnn_allow_tf32(False)  # noqa: SLF001
    for backend, operator in _FP32_PRECISIONS[1:]:
        put(backend, operator, "none" if operator == "all" else "ieee")


def _has(place: Any, *names: str) -> bool:
    """Return whether torch has all of these private names; warn once of each that it lacks."""
    missing = [name for name in names if not hasattr(place, name)]
    for name in missing:
        _warn_of_missing(name)
    return not missing


@functools.cache
def _warn_of_missing(name: str) -> None:
    log.warning(
        "torch %s has no %s: what the calling program has set there is not put aside; features "
        "are those of a fresh process only where it has set nothing",
        sys.modules["torch"].__version__,
        name,
    )


def _old_matmul_precision(torch: Any, put: Callable[[str, str, str], None]) -> str:
    """Return what `torch.set_float32_matmul_precision` was given last."""
    for cuda, mkldnn in (("ieee", "ieee"), ("tf32", "tf32"), ("tf32", "bf16")):
        put("cuda", "matmul", cuda)
        put("mkldnn", "matmul", mkldnn)
        with contextlib.suppress(RuntimeError):  # it does not agree with these
            return str(torch.get_float32_matmul_precision())
    return "highest"


def _old_allow_tf32(core: Any, put: Callable[[str, str, str], None]) -> bool:
    """Return what `torch.backends.cudnn.allow_tf32` was set to last."""
    for precision in ("tf32", "none"):
        put("cuda", "conv", precision)
        put("cuda", "rnn", precision)
        with contextlib.suppress(RuntimeError):
            return bool(core._get_cudnn_allow_tf32())  # noqa: SLF001
    return True


def _set_thread_of_torch(torch: Any, stack: contextlib.ExitStack) -> None:
    for kind in _AUTOCAST:
        if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
            stack.enter_context(torch.autocast(kind, enabled=False))
    # Default devices are such modes too. Those that see every operator come off their stack.
    core = torch._C  # noqa: SLF001 there is no public way to these
    if _has(core, "DisableTorchFunction"):
        stack.enter_context(core.DisableTorchFunction())
    if _has(core, "_len_torch_dispatch_stack") and core._len_torch_dispatch_stack():  # noqa: SLF001
        from torch.utils import _python_dispatch

        if _has(_python_dispatch, "_disable_current_modes"):
            stack.enter_context(_python_dispatch._disable_current_modes())  # noqa: SLF001
    _remove_saved_tensor_hooks(getattr(core, "_autograd", None), stack)
    stack.enter_context(torch.inference_mode(mode=False))
    stack.enter_context(torch.enable_grad())
    if _SMALLEST[0] * 1.0 == 0.0:
        stack.callback(torch.set_flush_denormal, True)
        torch.set_flush_denormal(False)


def _remove_saved_tensor_hooks(core: Any, stack: contextlib.ExitStack) -> None:
    """Take off what packs and unpacks the tensors that backward needs, in this thread."""
    top = getattr(core, "_top_saved_tensors_default_hooks", lambda _: None)  # versions differ
    while (hooks := top(True)) is not None:
        core._pop_saved_tensors_default_hooks()  # noqa: SLF001
        stack.callback(core._push_saved_tensors_default_hooks, *hooks)  # noqa: SLF001


_PROCESS = _Shared(_process)
_TORCH_PROCESS = _Shared(_torch_process)
