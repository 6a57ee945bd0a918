"""On other systems than Linux the program says so, where it would end in an AttributeError."""

from __future__ import annotations

import subprocess
import sys

PROBLEM = "runs on Linux, and this is darwin; its files are HDF5, which h5py reads anywhere"
PROGRAM = f"""
import sys
sys.platform = "darwin"
import vggfeat
try:
    vggfeat.Settings
except ImportError as error:
    assert str(error) == "vggfeat {PROBLEM}", error
from vggfeat.__main__ import main
main()
"""


def test_another_system_is_one_line_and_exit_2() -> None:
    """The command refuses to begin; the library refuses at the first name that is used."""
    words = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=600)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"vggfeat: {PROBLEM}\n"
