"""Where files are kept when the environment names no home, or an odd one."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from typing import TYPE_CHECKING

import pytest

from vggfeat.core.resources import user_cache
from vggfeat.errors import UsageError
from vggfeat.network.weights import find_weights, weights_folder

if TYPE_CHECKING:
    from pathlib import Path

HOMES = ("HOME", "XDG_CACHE_HOME", "TORCH_HOME")
DATABASE = pwd.getpwuid(os.getuid()).pw_dir


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in HOMES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("given", "cache", "weights"),
    [
        ({}, f"{DATABASE}/.cache", f"{DATABASE}/.cache/torch"),
        ({"HOME": "/h"}, "/h/.cache", "/h/.cache/torch"),
        ({"HOME": ""}, f"{DATABASE}/.cache", f"{DATABASE}/.cache/torch"),
        ({"HOME": "h"}, f"{DATABASE}/.cache", f"{DATABASE}/.cache/torch"),
        ({"HOME": "/h", "XDG_CACHE_HOME": ""}, "/h/.cache", "/h/.cache/torch"),
        ({"HOME": "/h", "XDG_CACHE_HOME": "c"}, "/h/.cache", "/h/.cache/torch"),
        (
            {"HOME": "/h", "XDG_CACHE_HOME": "~nobody-of-that-name/c"},
            "/h/.cache",
            "/h/.cache/torch",
        ),
        ({"HOME": "/h", "XDG_CACHE_HOME": "~/c"}, "/h/c", "/h/c/torch"),
        ({"HOME": "/h", "XDG_CACHE_HOME": "/c"}, "/c", "/c/torch"),
        ({"HOME": "/h", "TORCH_HOME": ""}, "/h/.cache", "/h/.cache/torch"),
        ({"HOME": "/h", "TORCH_HOME": "/t"}, "/h/.cache", "/t"),
        ({"HOME": "/h", "TORCH_HOME": "~/t"}, "/h/.cache", "/h/t"),
    ],
)
def test_places(
    given: dict[str, str], cache: str, weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Empty is unset, a relative XDG_CACHE_HOME is ignored, and a home may be the database's."""
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert user_cache() == cache
    assert weights_folder() == f"{weights}/hub/checkpoints"


def test_a_home_that_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """A `~` that stands for nobody's home is an error that names the variable."""
    monkeypatch.setenv("TORCH_HOME", "~nobody-of-that-name/t")
    with pytest.raises(UsageError, match="TORCH_HOME is '~nobody-of-that-name/t'"):
        weights_folder()


def test_an_empty_mirror_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty VGGFEAT_WEIGHTS_URL is as if it were not set."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("VGGFEAT_WEIGHTS_URL", "")
    monkeypatch.setenv("VGGFEAT_OFFLINE", "1")
    with pytest.raises(Exception, match=r"https://download\.pytorch\.org/"):
        find_weights("imagenet", "vgg11")


# Whom the user database does not know.
NOBODY = ["setpriv", "--reuid", "54321", "--regid", "54321", "--clear-groups"]
STRANGER = """
import os, sys
from vggfeat.storage.digests import file_digests
from vggfeat.core.resources import user_cache
from vggfeat.cli import main
print(len(file_digests(sys.argv[1]).sha256))
sys.argv[1:] = ["doctor"]
try:
    user_cache()
except ValueError as error:
    print(error)
main()
"""


@pytest.mark.skipif(os.getuid() != 0 or not shutil.which("setpriv"), reason="becomes another user")
def test_a_user_without_any_home() -> None:
    """A container's nameless user is told what to set, and gets no folder of the name `~`."""
    environment = {name: value for name, value in os.environ.items() if name not in HOMES}
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        with open(f"{folder}/w.pth", "wb") as file:
            file.write(b"weights")
        done = subprocess.run(
            [*NOBODY, sys.executable, "-c", STRANGER, "w.pth"],
            cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=600,
        )  # fmt: skip
        if "ModuleNotFoundError" in done.stderr or "Permission denied" in done.stderr:
            pytest.skip("another user cannot read this installation")
        assert "64\n" in done.stdout, done.stderr
        assert "HOME is not set, and neither is XDG_CACHE_HOME" in done.stdout
        assert "set HOME, XDG_CACHE_HOME or TORCH_HOME" in done.stdout
        assert os.listdir(folder) == ["w.pth"]
