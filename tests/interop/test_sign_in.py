"""The real azure-cli signs a user in by a device code and with a browser, on the host as users have it."""

import re
import subprocess
import sys
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

from interop.stage import Record, Stage
from interop.test_az import VERSION
from waiting import until

pytestmark = pytest.mark.timeout(900)
PASSWORD = "not-a-real-one"
LOGIN = "login --allow-no-subscriptions -o json"
SECONDS = 300


@dataclass
class Person:
    """A user of the directory with a password, and azure-cli with nobody signed in."""

    stage: Stage
    name: str
    az: list[str]

    def signed_in(self) -> str:
        """Return as whom Graph knows the user who is signed in."""
        command = [*self.az, "ad", "signed-in-user", "show", "--query", "userPrincipalName", "-o", "tsv"]
        done = subprocess.run(
            command, env=self.stage.lab.variables, capture_output=True, text=True, timeout=SECONDS, check=True
        )
        return done.stdout.strip()


@pytest.fixture
def person(stage: Stage, client: Callable[[str], Path], tmp_path: Path) -> Person:
    """A user whom nobody else uses."""
    variables, name = stage.lab.variables, f"grace-{uuid.uuid4().hex}@lab.test"
    command = ["env", f"PATH={client('az')}/bin:{variables['PATH']}", f"HOME={tmp_path}"]
    command += [f"AZURE_CONFIG_DIR={tmp_path / 'az'}", "AZURE_CORE_COLLECT_TELEMETRY=0", "az"]
    owner = f"-u {variables['LAB_OWNER_CLIENT_ID']} -p {variables['LAB_OWNER_CLIENT_SECRET']}"
    words = " ".join(command)
    user = f"ad user create --display-name Grace --user-principal-name {name} --password {PASSWORD}"
    script = f"{words} login --service-principal {owner} --tenant {variables['LAB_TENANT_ID']} && {words} {user}"
    done = stage.on_host(f"{script} && {words} logout")
    assert done.status == 0, done.err
    return Person(stage, name, command)


def test_by_a_device_code(stage: Stage, person: Person, tmp_path: Path, record: Record) -> None:
    """`az login --use-device-code` names a page that the host's browser reaches; then the user is signed in."""
    record("azure-cli, on the host", VERSION, "login --use-device-code as a user of the directory")
    said = tmp_path / "said"
    with said.open("w") as file:
        process = subprocess.Popen(
            [*person.az, *LOGIN.split(), "--use-device-code"],
            env=stage.lab.variables,
            stdout=subprocess.DEVNULL,
            stderr=file,
        )
    with process:
        try:
            until(lambda: "enter the code" in said.read_text() or process.poll() is not None, "the code", SECONDS)
            found = re.search(r"open the page (\S+) and enter the code (\w+)", said.read_text())
            assert found is not None, said.read_text()
            assert found[1].startswith(stage.lab.variables["LAB_SIGN_IN"])
            form = {"user_code": found[2], "username": person.name, "password": PASSWORD}
            with httpx2.Client(trust_env=False) as browser:
                assert "You have signed in" in browser.post(found[1], data=form).text
            assert process.wait(SECONDS) == 0, said.read_text()
        finally:
            process.kill()
    assert person.signed_in() == person.name


def test_with_a_browser(stage: Stage, person: Person, tmp_path: Path, record: Record) -> None:
    """`az login` opens the browser that BROWSER names: here a script that fills in the page on loopback."""
    record("azure-cli, on the host", VERSION, "login with a browser as a user of the directory")
    script = tmp_path / "browser"
    script.write_text(f"#!{sys.executable}\nNAME = {person.name!r}\n{BROWSER}")
    script.chmod(0o700)
    variables = {**stage.lab.variables, "BROWSER": f"{script} %s &", "DISPLAY": ":1", **stage.lab.environment()}
    done = subprocess.run(
        [*person.az, *LOGIN.split()],
        env={**variables, "PATH": stage.lab.variables["PATH"]},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert person.signed_in() == person.name


BROWSER = f"""
import html, re, subprocess, sys, urllib.parse, urllib.request
opener = urllib.request.build_opener(urllib.request.ProxyHandler({{}}))
command = [sys.executable, "-m", "podidentity", "lab", "browse", "--no-browser", sys.argv[1]]
page = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
form = {{"username": NAME, "password": {PASSWORD!r}, "answer": "sign-in"}}
answer = opener.open(page, urllib.parse.urlencode(form).encode()).read().decode()
fields = {{name: html.unescape(value) for name, value in re.findall(r'name="([^"]*)" value="([^"]*)"', answer)}}
action = html.unescape(re.findall(r'action="([^"]*)"', answer)[0])
opener.open(action, urllib.parse.urlencode(fields).encode()).read()
"""
