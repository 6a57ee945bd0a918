"""What several test modules share: real weights and photographs, and a cache folder for tests.

Nothing is imported here that a machine with a GPU may lack: see `tests/accelerator.py`.
"""

from __future__ import annotations

import importlib.metadata
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from places import REPOSITORY, TESTS

if TYPE_CHECKING:
    from collections.abc import Iterator


_LONGEST = (
    "system/test_docs.py",
    "extraction/test_ray.py",
    "extraction/test_update.py",
    "system/test_kill.py",
    "system/test_gpu_machine.py",
    "finetuning/test_adapt.py",
    "system/test_faults.py",
    "system/test_cluster_docs.py",
    "storage/test_object_store.py",
    "transforms/test_fuse.py",
    "system/test_powercut.py",
    "retrieval/test_search.py",
    "images/test_worker_pool.py",
)


def pytest_configure(config: pytest.Config) -> None:
    """Hide GPUs, unless `tests/gpu` is asked for: elsewhere what is expected is a CPU's.

    Many tests choose no device, as users do, and processes that they start inherit this.
    """
    asked = [Path(argument.partition("::")[0]).resolve() for argument in config.args]
    if not any((TESTS / "gpu") in (path, *path.parents) for path in asked):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take minutes: at the end, one process would be alone with them."""
    places = {name: place for place, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: places.get("/".join(item.path.parts[-2:]), len(_LONGEST)))
    _mark_for_the_gpu([item for item in items if item.path.is_relative_to(TESTS / "gpu")])


def _mark_for_the_gpu(items: list[pytest.Item]) -> None:
    """Skip them where their device is missing, and on a stand-in what it cannot show."""
    if not items:
        return
    from accelerator import ON_CUDA, missing

    reason = missing()
    for item in items:
        item.add_marker("gpu")
        if reason or (item.get_closest_marker("cuda_only") and not ON_CUDA):
            item.add_marker(pytest.mark.skip(reason=reason or "only a CUDA device can show it"))


@pytest.fixture(scope="session", autouse=True)
def _processes_find_the_package() -> Iterator[None]:
    """Name the checkout to processes that tests start, where the package is not installed."""
    with pytest.MonkeyPatch.context() as patch:
        if not any(importlib.metadata.distributions(name="vggfeat")):
            patch.setenv("PYTHONPATH", str(REPOSITORY), prepend=os.pathsep)
        yield


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Folder with `weights/` and `photos/`: $VGGFEAT_TEST_DATA, or `shared` beside the checkout."""
    beside = REPOSITORY.parent / "shared"
    folder = Path(os.environ.get("VGGFEAT_TEST_DATA", beside))
    if not (folder / "weights").is_dir() or not (folder / "photos").is_dir():
        pytest.skip(f"no weights/ and photos/ in {folder}; VGGFEAT_TEST_DATA names another folder")
    return folder


@pytest.fixture(scope="session", autouse=True)
def _own_cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Digests that tests have remembered never reach the user's own cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _warnings_are_errors(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """What our functions warn of ends a test too, though to a host's filters they do not.

    Not on a GPU, where libraries warn of what no other machine has shown; pytest lists it.
    """
    if request.node.get_closest_marker("gpu"):
        return

    def fail(message: Warning | str, *_: object, **__: object) -> None:
        raise message if isinstance(message, Warning) else UserWarning(message)

    monkeypatch.setattr(warnings, "showwarning", fail)
