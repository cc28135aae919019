"""Every client that applications use reads the secret from a pod with a binding, and is refused in one without.

The clients are unmodified, from their own registries, and go through the real redirect and NMI. A refusal is the error
that each library's users handle already.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from interop.stage import VALUE, Pod, Record, Stage

HERE = Path(__file__).parent
Find = Callable[[str], Path]


@dataclass(frozen=True)
class Reader:
    """A program that reads the secret: how to start it below its directory, and the error that its users know."""

    title: str
    client: str
    start: Callable[[Path], str]
    refusal: str
    versions: str = ""


def python(argument: str) -> Callable[[Path], str]:
    """Return a function that gives the command for the Python program, as text: containers do not see the tests."""
    return lambda directory: (
        f"{directory}/bin/python - {argument} <<'EOF'\n{(HERE / 'python/reader.py').read_text()}\nEOF"
    )


def javascript(directory: Path) -> str:
    """Return the command for the JavaScript program, in the directory of its packages."""
    program = (HERE / "javascript/reader.mjs").read_text()
    return f"cd {directory} && node --input-type=module <<'EOF'\n{program}\nEOF"


def java(directory: Path) -> str:
    """Return the command for the Java program, with the pod's certificates in Java's own form."""
    store = "-keystore /tmp/trust.p12 -storepass changeit"
    trust = "-Djavax.net.ssl.trustStore=/tmp/trust.p12 -Djavax.net.ssl.trustStorePassword=changeit"
    return (
        f"[ -e /tmp/trust.p12 ] || keytool -importcert -noprompt -alias lab -file $SSL_CERT_FILE {store} >&2\n"
        f"java -XX:TieredStopAtLevel=1 {trust} -cp '{directory}/build/target/interop-1.jar:{directory}/libs/*' Reader"
    )


READERS = (
    Reader("Python azure-identity", "python", python("sync"), "CredentialUnavailableError", "azure-identity"),
    Reader(
        "Python azure-identity, DefaultAzureCredential",
        "python",
        python("default"),
        "ClientAuthenticationError",
        "azure-identity",
    ),
    Reader("Python azure-identity.aio", "python", python("aio"), "CredentialUnavailableError", "azure-identity"),
    Reader("Python msal", "python", python("msal"), "LookupError", "msal"),
    Reader("JavaScript @azure/identity", "javascript", javascript, "CredentialUnavailableError", "@azure/identity"),
    Reader(
        "Go azidentity",
        "go",
        lambda directory: f"{directory}/reader",
        "azidentity.credentialUnavailableError",
        "github.com/Azure/azure-sdk-for-go/sdk/azidentity",
    ),
    Reader(
        "Go go-autorest, NewAuthorizerFromEnvironment",
        "go-autorest",
        lambda directory: f"{directory}/run -once",
        "adal.tokenRefreshError",
        "github.com/Azure/go-autorest/autorest/azure/auth",
    ),
    Reader("Java azure-identity", "java", java, "com.azure.core.exception.ClientAuthenticationException"),
)


def version_of(reader: Reader, read: dict[str, Any]) -> str:
    """Return the version that the program prints; for Java, which prints none, the version in its pom."""
    if reader.versions:
        return str(read["versions"][reader.versions])
    pom = ET.parse(HERE / "java/pom.xml").getroot()  # noqa: S314  # our own file
    space = {"m": "http://maven.apache.org/POM/4.0.0"}
    named = pom.findall("m:dependencies/m:dependency", space)
    return next(
        one.findtext("m:version", "", space)
        for one in named
        if one.findtext("m:artifactId", "", space) == "azure-identity"
    )


def said(pod: Pod, reader: Reader, directory: Path) -> dict[str, Any]:
    """Run a reader in a pod; return its line of output, decoded."""
    variables = "export AZURE_KEYVAULT_NAME=interopvault AZURE_KEYVAULT_SECRET_NAME=mySecret\n"
    done = pod.run(variables + reader.start(directory))
    assert done.status == 0, f"{done.out}\n{done.err}"
    line: dict[str, Any] = json.loads(done.out.strip().splitlines()[-1])
    return line


@pytest.mark.timeout(900)
@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.title.replace(" ", "-"))
def test_a_client_reads_the_secret_where_it_may_and_nowhere_else(
    stage: Stage, client: Find, record: Record, reader: Reader
) -> None:
    """The pod with the binding gets the value; the pod without gets the library's own kind of error."""
    directory = client(reader.client)
    read = said(stage.bound, reader, directory)
    error = reader.refusal.rsplit(".", 1)[-1]
    record(reader.title, version_of(reader, read), f"reads the secret; without a binding its error is `{error}`")
    assert (read["ok"], read.get("secret")) == (True, VALUE), read
    refused = said(stage.unbound, reader, directory)
    assert refused["ok"] is False, refused
    assert reader.refusal in refused["type"], refused
