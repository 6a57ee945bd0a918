"""How an extra is installed, by how the package was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("direct", "expected"),
    [
        (None, "pip install 'vggfeat[plot]'"),
        (
            {"url": "file://FOLDER/a%20b", "dir_info": {"editable": True}},
            "pip install 'FOLDER/a b[plot]'",
        ),
        ({"url": "file://FOLDER/a%20b", "dir_info": {}}, "pip install 'FOLDER/a b[plot]'"),
        ({"url": "file://FOLDER/gone", "dir_info": {}}, "pip install 'vggfeat[plot]'"),
        (
            {"url": "https://x.org/v", "vcs_info": {"vcs": "git", "commit_id": "0"}},
            "pip install 'vggfeat[plot] @ git+https://x.org/v'",
        ),
        ({"url": "https://x.org/v.whl", "archive_info": {}}, "pip install 'vggfeat[plot]'"),
        ("no JSON", "pip install 'vggfeat[plot]'"),
    ],
)
def test_an_extra_comes_from_where_the_package_came_from(
    tmp_path: Path, direct: object, expected: str
) -> None:
    """From a folder or a repository by its address (PEP 610), else from the registry."""
    (tmp_path / "a b").mkdir()
    record = tmp_path / "vggfeat-9.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: vggfeat\nVersion: 9\n")
    if direct is not None:
        text = direct if isinstance(direct, str) else json.dumps(direct)
        (record / "direct_url.json").write_text(text.replace("FOLDER", str(tmp_path)))
    code = "from vggfeat.core.optional import install_command; print(install_command('plot'))"
    paths = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)}, cwd=tmp_path,
    )  # fmt: skip
    assert done.stdout.strip() == expected.replace("FOLDER", str(tmp_path)), done.stderr
