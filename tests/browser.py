"""A real browser without a window, told what to do over a pipe: the DevTools protocol, no driver.

https://chromedevtools.github.io/devtools-protocol/
"""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_SECONDS = 300
_SECONDS_TO_INSTALL = 600

# It reads commands from descriptor 3 and writes to 4.
_LAUNCH = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(word), fcntl.F_DUPFD, 20) for word in sys.argv[1:3]]
for end, wanted in zip(ends, (3, 4)):
    os.dup2(end, wanted)
os.execv(sys.argv[3], sys.argv[3:])
"""

_KEYS = {
    "Tab": 9, "Enter": 13, "Escape": 27, "End": 35, "Home": 36,
    "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40,
}  # fmt: skip


def find_browser() -> str:
    """Path of a Chromium; skips the test where there is none.

    Where `.ci/run` installs one meanwhile, waits until that has ended, well or not: one that was
    installed and does not start is none.
    """
    tried = os.environ.get("VGGFEAT_TEST_BROWSER_TRIED", "")
    end = time.monotonic() + _SECONDS_TO_INSTALL
    while tried and not os.path.exists(tried) and time.monotonic() < end:
        time.sleep(0.5)
    if tried and not (os.path.exists(tried) and Path(tried).read_text() == "works\n"):
        pytest.skip("a browser could not be installed and started")
    found = next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        pytest.skip(f"none of {', '.join(_NAMES)} is installed")
    return found


class Browser:
    """One page of a browser that this process has started."""

    def __init__(self, profile: Path) -> None:
        words = [
            find_browser(), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
            "--disable-dev-shm-usage", "--remote-debugging-pipe", f"--user-data-dir={profile}",
            "about:blank",
        ]  # fmt: skip
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-c", _LAUNCH, str(theirs_in), str(theirs_out), *words],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._rest = b""
        self._number = 0
        self._session: dict[str, str] = {}
        self.requests: list[str] = []
        """URL of all that a page has asked for since it was opened."""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Runtime", "Network"):
            self.send(f"{domain}.enable")
        self.send("Emulation.setDeviceMetricsOverride", width=1000, height=800,
                  deviceScaleFactor=1, mobile=False)  # fmt: skip

    def close(self) -> None:
        """Ends the browser."""
        self._session = {}
        self.send("Browser.close")
        self._process.wait(_SECONDS)
        os.close(self._in)
        os.close(self._out)

    def send(self, method: str, **parameters: Any) -> Any:
        """What the browser answers to a command."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters, **self._session}
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("method") == "Network.requestWillBeSent":
                self.requests.append(answer["params"]["request"]["url"])
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def _receive(self) -> Any:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._in], [], [], _SECONDS)
            block = os.read(self._in, 1 << 16) if ready else b""
            assert block, "the browser is gone, or says nothing"
            self._rest += block
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def open(self, url: str) -> None:
        """Goes to a page and waits until all of it is there."""
        self.requests.clear()
        self.send("Page.navigate", url=url)
        self.wait(f"document.readyState === 'complete' && location.href === {json.dumps(url)}")

    def wait(self, condition: str) -> None:
        """Waits until an expression is true."""
        end = time.monotonic() + _SECONDS
        while not self.value(condition):
            assert time.monotonic() < end, condition
            time.sleep(0.05)

    def value(self, expression: str) -> Any:
        """What a JavaScript expression gives in the page."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, key: str) -> None:
        """A key, as from a keyboard."""
        code = {"key": key, "code": key, "windowsVirtualKeyCode": _KEYS[key]}
        text = {"text": "\r"} if key == "Enter" else {}
        self.send("Input.dispatchKeyEvent", type="keyDown", **code, **text)
        self.send("Input.dispatchKeyEvent", type="keyUp", **code)

    def check_schemes_and_width(self) -> None:
        """The page is dark on light or light on dark as the reader has it, and fits a telephone."""
        seen = {}
        for scheme in ("light", "dark"):
            self.send(
                "Emulation.setEmulatedMedia",
                features=[{"name": "prefers-color-scheme", "value": scheme}],
            )
            for name in ("backgroundColor", "color"):
                text = self.value(f"getComputedStyle(document.body).{name}")
                seen[scheme, name] = sum(map(int, re.findall(r"\d+", text)[:3])) / 765
        assert seen["light", "backgroundColor"] - seen["light", "color"] > 0.7
        assert seen["dark", "color"] - seen["dark", "backgroundColor"] > 0.7
        self.send("Emulation.setEmulatedMedia", features=[])
        metrics = {"height": 800, "deviceScaleFactor": 1, "mobile": False}
        self.send("Emulation.setDeviceMetricsOverride", width=320, **metrics)
        assert self.value("document.documentElement.scrollWidth") <= 320
        self.send("Emulation.setDeviceMetricsOverride", width=1000, **metrics)
