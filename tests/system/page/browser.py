"""A headless Chromium, controlled by the DevTools protocol over its pipe, without a driver or a library.

https://chromedevtools.github.io/devtools-protocol/; with --remote-debugging-pipe messages are JSON with a NUL behind
each, read from descriptor 3 and written to descriptor 4.
"""

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from system.lab.running import missing
from waiting import until

Json = dict[str, Any]
PROGRAMS = ("chromium-headless-shell", "chromium")
ANSWER_SECONDS = 60.0
_KEYS = {"Tab": 9, "Enter": 13, " ": 32}
_NAVIGATION = "Inspected target navigated or closed"


class NavigationError(Exception):
    """The page gave way to another while a command was carried out in it."""


class Browser:
    """One page of a browser."""

    def __init__(self, process: subprocess.Popen[bytes], requests: int, answers: int) -> None:
        self._process = process
        self.pid = process.pid
        self._requests = requests
        self._answers = answers
        self._buffer = b""
        self._number = 0
        self._session = ""
        self.messages: list[Json] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> Json:
        """Send a command and return its result; events that the browser sends meanwhile are in `messages`."""
        self._number += 1
        command = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            command["sessionId"] = self._session
        os.write(self._requests, json.dumps(command).encode() + b"\0")
        deadline = time.monotonic() + ANSWER_SECONDS
        while True:
            message = self._read(deadline)
            if message.get("id") == self._number:
                error = message.get("error", {})
                if _NAVIGATION in error.get("message", ""):
                    raise NavigationError(method)
                assert not error, f"{method}: {error}"
                result: Json = message["result"]
                return result
            self.messages.append(message)

    def open(self, url: str) -> None:
        """Load a page and wait until its script has run."""
        assert "errorText" not in self.call("Page.navigate", url=url)
        until(lambda: self._glance("document.readyState") == "complete", f"{url} to be loaded")

    def value(self, expression: str) -> Any:
        """Return the value of an expression of JavaScript in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def text(self) -> str:
        """Return the page's text; nothing while it gives way to another."""
        return self._glance("document.body?.textContent") or ""

    def press(self, key: str) -> None:
        """Press and release a key."""
        facts = {"key": key, "windowsVirtualKeyCode": _KEYS[key]}
        text = {"text": "\r" if key == "Enter" else key} if key != "Tab" else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", **facts, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **facts)

    def resize(self, width: int, height: int, scheme: str = "light") -> None:
        """Set the window's size in pixels, and a light or dark scheme."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def screenshot(self, file: Path) -> None:
        """Write what is visible to a PNG."""
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]))

    def problems(self) -> list[str]:
        """Return what the browser complained of: errors of scripts, refusals of the policy, failed requests."""
        self.value("0")
        return [
            json.dumps(message["params"])
            for message in self.messages
            if message.get("method") == "Runtime.exceptionThrown"
            or (message.get("method") == "Log.entryAdded" and message["params"]["entry"]["level"] == "error")
        ]

    def _glance(self, expression: str) -> Any:
        """Return the value of an expression; None while the page gives way to another."""
        try:
            return self.value(expression)
        except NavigationError:
            return None

    def _read(self, deadline: float) -> Json:
        while b"\0" not in self._buffer:
            readable, _, _ = select.select([self._answers], [], [], max(0.0, deadline - time.monotonic()))
            chunk = os.read(self._answers, 1 << 20) if readable else b""
            assert chunk, f"the browser does not answer; its status is {self._process.poll()}"
            self._buffer += chunk
        text, _, self._buffer = self._buffer.partition(b"\0")
        message: Json = json.loads(text)
        return message


@contextlib.contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """Start a browser with a profile below `folder`; it ends with the block, and with this process."""
    program = next(filter(None, map(shutil.which, PROGRAMS)), None) or missing(
        "there is no Chromium; install Debian's chromium-headless-shell"
    )
    command_read, command_write = os.pipe()
    answer_read, answer_write = os.pipe()
    # The browser wants its ends as 3 and 4; the shell moves them there, wherever ours are.
    script = f'exec 8<&{command_read} 9>&{answer_write}; exec "$@" 3<&8 4>&9'
    flags = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe", "--no-first-run"]
    flags += ["--headless", f"--user-data-dir={folder / 'profile'}", "--disable-background-networking"]
    with (folder / "chromium.log").open("wb") as log:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig=KILL", "--", "bash", "-c", script, "bash", program, *flags],
            pass_fds=(command_read, answer_write),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, "HOME": str(folder)},
        )
    os.close(command_read)
    os.close(answer_write)
    try:
        yield Browser(process, command_write, answer_read)
    finally:
        process.kill()
        process.wait()
        os.close(command_write)
        os.close(answer_read)
