"""`podidentity issuer publish|verify` and `podidentity jwks`: what a cluster's issuer publishes for Entra ID."""

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from podidentity.azure.key_sets import key_set_of
from podidentity.cli import broker_facts, report
from podidentity.cli.cluster_options import ClusterOptions, cluster_options
from podidentity.core.report import issuers
from podidentity.core.report.findings import Finding
from podidentity.core.report.issuers import CONFIGURATION_PATH, KEYS_PATH, IssuerDocuments
from podidentity.errors import ConfigurationError, UsageError
from podidentity.kube.api import Api
from podidentity.kube.connection import open_client
from podidentity.kube.issuer import read_issuer

_KEYS = click.option(
    "--public-keys",
    "paths",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="PEM files with public keys, such as kube-apiserver's --service-account-key-file; may be given again.",
)


@click.group(short_help="What Entra ID must find at the cluster's issuer.")
def issuer() -> None:
    """Write and check the two documents by which Entra ID verifies a cluster's service account tokens."""


@issuer.command("publish")
@click.option("--output-dir", "-d", required=True, type=click.Path(path_type=Path), help="Where the two files go.")
@click.option("--issuer", "address", default="", help="Address to publish at; empty: the cluster's own issuer.")
@_KEYS
@report.OUTPUT
@cluster_options
def publish(output_dir: Path, address: str, paths: tuple[Path, ...], output: str, cluster: ClusterOptions) -> None:
    """Write openid-configuration and key set, ready to be uploaded, and say how.

    The keys are the API server's, or those in --public-keys; then no cluster is asked, and --issuer is needed.

    Example: podidentity issuer publish --issuer https://cluster.z1.web.core.windows.net --output-dir public
    """
    documents = IssuerDocuments(keys=key_set_of(paths)) if paths else asyncio.run(_read_cluster(cluster))
    signer = str((documents.configuration or {}).get("issuer", ""))
    target = address or signer
    if not target:
        raise UsageError("--issuer: with --public-keys the issuer is not known; give its address")
    refusal = issuers.refuse_address(target)
    if refusal:
        raise UsageError(f"--issuer: {refusal}; give an https address at which you can publish two files")
    _write(output_dir, issuers.configuration_of(target), documents.keys or {})
    if output in {"json", "yaml"}:
        files = [f"{output_dir}{CONFIGURATION_PATH}", f"{output_dir}{KEYS_PATH}"]
        content = {"apiVersion": report.API_VERSION, "kind": "IssuerFiles", "issuer": target, "files": files}
        report.show_document(content, output)
    else:
        click.echo(_advice(output_dir, target, signer))


@issuer.command("verify")
@click.argument("address", metavar="[URL]", default="")
@report.OUTPUT
@cluster_options
def verify(address: str, output: str, cluster: ClusterOptions) -> int:
    """Fetch what an issuer publishes, as Entra ID does, and compare it with the cluster. URL: else the cluster's own.

    Exit status 0: Entra ID can verify the cluster's tokens; 1: it cannot.

    Example: podidentity issuer verify
    """
    findings = asyncio.run(_verify(address, cluster))
    if output in {"json", "yaml"}:
        report.show_document(report.document("IssuerVerification", findings), output)
    else:
        report.show(findings, output)
    return report.status_of([report.outcome_of(findings)])


@click.command(short_help="The key set of public keys, as Entra ID reads it.")
@_KEYS
@click.option("--output-file", "-f", type=click.Path(path_type=Path), help="Else it is printed.")
def jwks(paths: tuple[Path, ...], output_file: Path | None) -> None:
    """Print the JSON Web Key Set of public keys; key IDs are kube-apiserver's.

    Example: podidentity jwks --public-keys sa.pub --output-file jwks.json
    """
    if not paths:
        raise UsageError("--public-keys is missing; name files with public keys in PEM")
    text = _render(key_set_of(paths))
    if output_file is None:
        click.echo(text, nl=False)
    else:
        _save(output_file, text)


async def _read_cluster(cluster: ClusterOptions) -> IssuerDocuments:
    async with open_client(cluster.find()) as http:
        return await read_issuer(Api(http))


async def _verify(address: str, cluster: ClusterOptions) -> tuple[Finding, ...]:
    documents = await _read_cluster(cluster)
    signer = str((documents.configuration or {}).get("issuer", ""))
    target = address or signer
    findings: tuple[Finding, ...] = (issuers.judge_address(target),)
    if address and address != signer and issuers.refuse_address(address):
        return findings  # nothing is there, and no API server can be told to sign with it
    if target.startswith("https://"):
        findings += issuers.judge(target, await broker_facts.fetch_issuer(target), documents)
    if target == signer:
        return findings
    return (*findings, issuers.judge_signer(target, signer))


def _write(folder: Path, configuration: Mapping[str, Any], keys: Mapping[str, Any]) -> None:
    for path, document in ((CONFIGURATION_PATH, configuration), (KEYS_PATH, keys)):
        _save(folder / path.lstrip("/"), _render(document))


def _render(document: Mapping[str, Any]) -> str:
    return json.dumps(document, indent=2) + "\n"


def _save(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    except OSError as error:
        raise ConfigurationError(f"{path}: it cannot be written: {error.strerror}; choose another place") from None


def _advice(folder: Path, target: str, signer: str) -> str:
    lines = [
        f"wrote {folder}{CONFIGURATION_PATH} and {folder}{KEYS_PATH}",
        f"Upload both, so that they are found at {target.rstrip('/')}{CONFIGURATION_PATH} and {KEYS_PATH}.",
        "To the static website of a storage account:",
        f"  az storage blob upload-batch --source {folder} --destination '$web' --overwrite --account-name ACCOUNT \\",
        "    --content-type application/json",
    ]
    if target != signer:
        lines += [
            f"Then let the API server sign with that issuer: --service-account-issuer={target}",
            "before the one that it has now, which stays as a second flag of that name until its tokens have expired.",
        ]
    return "\n".join([*lines, f"Last: podidentity issuer verify {target}"])
