"""The lab's page while 1,000 answers a second are logged: its server, and a headless Chromium that shows it.

The lab is a stand-in that has logs only: a whole lab would make fewer, and take the cores that the page is measured on.
A request leaves two lines, NMI's and Key Vault's; the page has to put each pair into one row. Frames are those of the
browser's main thread: while one lasts, the page does not react.
"""

import asyncio
import contextlib
import json
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from daemons.lab_page.small_lab import SmallLab
from interop.clients import MissingToolError
from processes import cpu_seconds, tree
from results import loop_seconds, percentile
from system.page.browser import PROGRAMS, Browser, browser
from waiting import until

RATE, ANSWERS = 1_000, 2
"""Answers a second, and answers of a request."""
TURN_SECONDS = 0.01
PODS = 50
ARRIVAL_SECONDS = 60.0
FRAMES = """
(() => {
  const frames = window.frames_ms = [];
  let last = performance.now();
  const step = (now) => {
    if (window.frames_ms !== frames) return;
    frames.push(now - last);
    last = now;
    requestAnimationFrame(step);
  };
  requestAnimationFrame(step);
})()
"""


class Lab:
    """A stand-in for a lab, in a thread of its own."""

    def __init__(self, small_lab: SmallLab, loop: asyncio.AbstractEventLoop, end: asyncio.Event) -> None:
        self.home = small_lab.directory.path.parent
        self._small_lab = small_lab
        self._loop = loop
        self._end = end

    def produce(self, seconds: float) -> Future[int]:
        """Log `RATE` answers a second from now on; the result is how many requests they were of."""
        return asyncio.run_coroutine_threadsafe(self._produce(seconds), self._loop)

    def end(self) -> None:
        """End the stand-in."""
        self._loop.call_soon_threadsafe(self._end.set)

    async def _produce(self, seconds: float) -> int:
        start, total = self._loop.time(), 0
        while total < seconds * RATE / ANSWERS:
            elapsed = min(self._loop.time() - start, seconds)
            for number in range(total, int(elapsed * RATE / ANSWERS)):
                self._small_lab.request(number % PODS, time.time(), status=200 if number % 20 else 403, cached=True)
                total = number + 1
            await asyncio.sleep(TURN_SECONDS)
        return total


@contextlib.contextmanager
def stand_in(folder: Path) -> Iterator[Lab]:
    """Run a stand-in for a lab below `folder`."""
    future: Future[Lab] = Future()

    async def run() -> None:
        end = asyncio.Event()
        async with SmallLab.running(folder / "labs") as small_lab:
            future.set_result(Lab(small_lab, asyncio.get_running_loop(), end))
            await end.wait()

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    lab = future.result(ARRIVAL_SECONDS)
    try:
        yield lab
    finally:
        lab.end()
        thread.join()


@contextlib.contextmanager
def page(lab: Lab) -> Iterator[tuple[int, str]]:
    """Serve the lab's page; yield the process ID of its server, and the URL."""
    command = [sys.executable, "-m", "podidentity", "lab", "open", "--no-browser"]
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig=KILL", "--", *command],
        env={"PATH": "/usr/bin:/bin", "HOME": "/", "PODIDENTITY_LAB_HOME": str(lab.home)},
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stdout is not None
            yield process.pid, process.stdout.readline().strip()
        finally:
            process.terminate()


def measure(folder: Path, seconds: float) -> dict[str, Any]:
    """Return what the page and the browser took, and what arrived.

    Raises `AssertionError` when nothing arrives, and `MissingToolError`.

    `cpu_over_loop`: the loops of `results.loop_seconds` for which 1,000 answers keep the page's server busy;
    `browser_over_loop`: likewise all processes of the browser.
    """
    if not any(map(shutil.which, PROGRAMS)):
        raise MissingToolError(f"no {' or '.join(PROGRAMS)}; install Debian's {PROGRAMS[0]}")
    with stand_in(folder) as lab, page(lab) as (pid, url), browser(folder) as window:
        window.open(url)
        until(lambda: _text(window, "connection") == "Live", "the page to be live")
        quiet_ms = _frames(window, lambda: time.sleep(seconds / 5))
        loop = sorted(loop_seconds() for _ in range(5))[2]
        cpu, browser_cpu = cpu_seconds(pid), _tree_seconds(window.pid)
        future = lab.produce(seconds)
        busy_ms = _frames(window, lambda: future.result(seconds + ARRIVAL_SECONDS))
        requests = future.result()
        until(lambda: _counts(window)["requests"] >= requests, "the page to count all", ARRIVAL_SECONDS)
        cpu, browser_cpu = cpu_seconds(pid) - cpu, _tree_seconds(window.pid) - browser_cpu
        counts = _counts(window)
        rows = int(window.value("document.getElementById('trails').childElementCount"))
        elements = int(window.value("document.querySelectorAll('*').length"))
    thousands = requests * ANSWERS / 1_000
    return {
        "answers": requests * ANSWERS,
        "seconds": seconds,
        "uncounted": abs(counts["requests"] - requests) + counts["unread"],
        "without_row": counts["missed"],
        "rows": rows,
        "elements": elements,
        "cpu_share": round(cpu / seconds, 3),
        "cpu_over_loop": round(cpu / loop / thousands, 1),
        "browser_cpu_share": round(browser_cpu / seconds, 3),
        "browser_over_loop": round(browser_cpu / loop / thousands, 1),
        "frame_p99_ms": round(percentile(busy_ms, 99), 1),
        "frame_longest_ms": round(max(busy_ms), 1),
        "frame_p99_over_quiet": round(percentile(busy_ms, 99) / percentile(quiet_ms, 99), 2),
    }


def _frames(window: Browser, wait: Callable[[], object]) -> list[float]:
    """Return the milliseconds of each frame while `wait` runs."""
    window.value(FRAMES)
    wait()
    frames: list[float] = json.loads(window.value("JSON.stringify(frames_ms)"))
    return frames


def _tree_seconds(pid: int) -> float:
    return sum(cpu_seconds(child) for child in tree(pid))


def _text(window: Browser, element: str) -> str:
    return str(window.value(f"document.getElementById({json.dumps(element)}).textContent"))


def _counts(window: Browser) -> dict[str, int]:
    """Return the figures above the rows."""
    text = _text(window, "figures")
    patterns = {
        "requests": r"^(\d+) since",
        "missed": r"(\d+) not shown",
        "unread": r"(\d+) answers more",
    }
    matches = {name: re.search(pattern, text) for name, pattern in patterns.items()}
    return {name: int(match[1]) if match else 0 for name, match in matches.items()}
