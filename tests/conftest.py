"""What several test modules share: real weights and photographs, and a cache folder of our own."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from places import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Iterator


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
def _warnings_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    """What our functions warn of ends a test too, though to a host's filters they do not."""

    def fail(message: Warning | str, *_: object, **__: object) -> None:
        raise message if isinstance(message, Warning) else UserWarning(message)

    monkeypatch.setattr(warnings, "showwarning", fail)
