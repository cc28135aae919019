"""`podidentity lab open` with a lab and a real browser."""

import contextlib
import http.client
import json
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from podidentity_lab import control
from podidentity_lab.directory import Directory
from system.lab.running import NOBODY, Lab, lab, pod
from system.page.browser import Browser, browser
from waiting import until

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]
HOSTILE = "<img src=x onerror=document.title=1>"
ASKING = (
    "curl -sS -H Metadata:true -G 'http://169.254.169.254/metadata/identity/oauth2/token?api-version=2018-02-01' "
    f"--data-urlencode 'resource={HOSTILE}'"
)


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A lab of one node, without podidentity."""
    home = tmp_path_factory.mktemp("labs")
    home.chmod(0o700)
    with lab(home, "shown", "--nodes", "1") as one:
        yield one


@contextlib.contextmanager
def page(up: Lab) -> Iterator[str]:
    """Start the page of a lab and yield its URL; Ctrl-C must end it with status 0, and without any other word."""
    command = ["setpriv", "--pdeathsig=KILL", "--", *up.user.command("open", "--name", up.name, "--no-browser")]
    process = subprocess.Popen(command, env=up.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            assert re.fullmatch(r"http://127\.0\.0\.1:\d+/[\w-]{22}/\?token=[\w-]{43}", url), process.poll()
            yield url
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=60)
            assert (process.returncode, errors) == (0, "Ctrl-C closes the page; the lab stays.\n")
        finally:
            process.kill()


@pytest.fixture(scope="module")
def url(up: Lab) -> Iterator[str]:
    """The URL of the lab's page."""
    with page(up) as address:
        yield address


@pytest.fixture
def shown(url: str, tmp_path: Path) -> Iterator[Browser]:
    """A browser with the page open; at the end it must not have reported any problem."""
    with browser(tmp_path) as window:
        window.open(url)
        until(
            lambda: window.value("document.getElementById('connection').textContent") == "Live", "the page to be live"
        )
        yield window
        assert window.problems() == []


def faults(up: Lab) -> dict[str, Any]:
    """Return what `podidentity lab fault` prints."""
    current: dict[str, Any] = control.ask(Directory(up.directory), "GET", "/azure/faults")
    return current


def text(window: Browser, element: str) -> str:
    """Return what an element says."""
    return str(window.value(f"document.getElementById({json.dumps(element)}).textContent"))


def test_a_request_of_a_pod_appears_and_its_pod_is_text(up: Lab, shown: Browser) -> None:
    """The page shows a request made after it was loaded; a pod's hostile text is not run as HTML.

    The address bar has no secret.
    """
    up.create(pod("asker", ASKING))
    until(lambda: "default/asker" in text(shown, "trails"), "the pod's request on the page")
    until(lambda: "default/asker" in text(shown, "group-pods"), "the pod on the page")
    assert HOSTILE in text(shown, "trails")
    assert shown.value("document.querySelectorAll('img').length") == 0
    assert shown.value("document.title").startswith("Lab shown")
    assert "token" not in shown.value("location.href")


def test_the_keyboard_turns_a_switch(up: Lab, shown: Browser) -> None:
    """Tab reaches a switch, which shows the focus and keeps it; Space turns it on, Enter off."""
    for _ in range(60):
        shown.press("Tab")
        if shown.value("document.activeElement.id") == "switch-imds-fails":
            break
    assert shown.value("document.activeElement.id") == "switch-imds-fails"
    assert shown.value("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    for key, value in ((" ", 1.0), ("Enter", 0.0)):
        shown.press(key)
        until(lambda value=value: faults(up)["imds_fails"] == value, f"the fault to be {value}")  # type: ignore[misc]
        pressed = "true" if value else "false"
        until(
            lambda pressed=pressed: shown.value("document.activeElement.getAttribute('aria-pressed')") == pressed,  # type: ignore[misc]
            "the switch to say so",
        )
    assert shown.value("document.activeElement.id") == "switch-imds-fails"


def test_what_the_command_sets_the_page_shows(up: Lab, shown: Browser) -> None:
    """Faults that `lab fault set` sets appear on the page, and its button clears them all."""
    assert up.run("fault", "set", "--name", up.name, "entra_seconds=5.0", "imds_seconds=0.1").returncode == 0
    until(lambda: "imds_seconds=0.1" in text(shown, "other-faults"), "the fault on the page")
    assert shown.value("document.getElementById('switch-entra-slow').getAttribute('aria-pressed')") == "true"
    shown.value("document.querySelector('form[action=\"faults/clear\"] button').click()")
    until(lambda: faults(up)["entra_seconds"] == 0.0, "the faults to be cleared")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_telephone_and_can_be_read(shown: Browser, scheme: str) -> None:
    """At 360 pixels nothing scrolls sideways, not even the rows, and texts have the contrast of WCAG's AA (4.5).

    The window was wide before: rows remember their sizes.
    """
    shown.resize(1440, 740, scheme)
    assert shown.value("document.getElementById('trails').getBoundingClientRect().width") > 800
    shown.resize(360, 740, scheme)
    assert shown.value("document.documentElement.scrollWidth") <= 360
    assert (
        shown.value("(({scrollWidth, clientWidth}) => scrollWidth - clientWidth)(document.getElementById('trails'))")
        == 0
    )
    assert shown.value(CONTRASTS) == []


def test_what_was_there_when_the_page_was_opened_is_joined(up: Lab, tmp_path: Path) -> None:
    """A page that is opened later shows the same rows, and counts none of them as new."""
    port = Directory(up.directory).facts()["identity_port"]  # type: ignore[index]
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port)) as connection:
        connection.request("GET", "/msi/token", headers={"Metadata": "true"})
        connection.getresponse().read()
    with page(up) as later, browser(tmp_path) as window:
        window.open(later)
        assert "GET /msi/token" in text(window, "trails")
        until(lambda: text(window, "figures").startswith("0 since this page was opened"), "the figures")


def test_a_thousand_requests_a_second(up: Lab, shown: Browser) -> None:
    """Four thousand requests in a row are all counted, at most 200 are listed, and a switch works meanwhile."""
    port = Directory(up.directory).facts()["identity_port"]  # type: ignore[index]
    requests = 4_000
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port)) as connection:
        for number in range(requests):
            connection.request("GET", "/msi/token", headers={"Metadata": "true"})
            connection.getresponse().read()
            if number == requests // 2:
                shown.value("document.getElementById('switch-arm-slow').click()")
    until(lambda: int(text(shown, "figures").split()[0]) >= requests, "the page to count all requests")
    assert shown.value("document.getElementById('trails').childElementCount") <= 200
    assert shown.value("document.querySelectorAll('*').length") < 10_000
    until(lambda: faults(up)["patch_seconds"] == 30.0, "the switch to be turned")


def test_whom_it_lets_in(url: str) -> None:
    """Requests without the secret, from another origin or for another host get 403.

    With the secret they get a strict policy.
    """
    base, _, secret = url.partition("?token=")
    origin = base.rpartition("/")[0].rpartition("/")[0]
    with httpx2.Client(base_url=base, trust_env=False) as client:
        for path in (f"{origin}/", "", "?token=wrong", f"events?token={secret}", "log.jsonl", "static/page.js"):
            assert client.get(path).status_code == 403
        foreign = {"Host": "lab.example"}
        assert client.get(f"?token={secret}", headers=foreign).status_code == 403
        answer = client.get(f"?token={secret}")
        assert answer.status_code == 200
        assert "HttpOnly; SameSite=Strict" in answer.headers["set-cookie"]
        assert answer.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
        assert client.get("", headers=foreign).status_code == 403
        assert client.post("faults/imds-fails", headers={"Origin": "http://127.0.0.1:1"}).status_code == 403
        assert client.post("faults/none", headers={"Origin": origin}).status_code == 404
        lines = client.get("log.jsonl").text.splitlines()
    assert all("station" in json.loads(line) for line in lines)


def test_another_user_of_the_machine_is_refused_even_with_the_url(url: str) -> None:
    """While a browser starts, the URL stands in its command line, which every user can read."""
    command = ["curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", url]
    statuses = [
        subprocess.run([*other, *command], capture_output=True, text=True, check=True, timeout=60).stdout
        for other in ((), ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--"))
    ]
    assert statuses == ["200", "403"]


def test_without_a_lab_it_says_what_to_do(tmp_path: Path) -> None:
    """Without a lab the command prints one sentence that says how to start one."""
    home = tmp_path / "none"
    home.mkdir(mode=0o700)
    finished = Lab(home, "none").run("open", "--name", "none")
    assert (finished.returncode, finished.stdout) == (1, "")
    expected = "error: lab 'none': no lab is up; start it with `podidentity lab up --name none`\n"
    assert finished.stderr == expected


CONTRASTS = """
(() => {
  const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => {
    const [r, g, b] = channels(colour).slice(0, 3).map((value) => {
      const share = value / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (element) => {
    for (let node = element; node; node = node.parentElement) {
      const colour = getComputedStyle(node).backgroundColor;
      if (channels(colour)[3] !== 0) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const texts = [...document.querySelectorAll("body *")].filter((element) =>
    [...element.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.data.trim()));
  const poor = texts.filter((element) => {
    const lights = [light(getComputedStyle(element).color), light(ground(element))].sort((a, b) => b - a);
    return (lights[0] + 0.05) / (lights[1] + 0.05) < 4.5;
  });
  return poor.map((element) => element.outerHTML.slice(0, 80));
})()
"""
