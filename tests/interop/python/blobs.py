"""Azure's blob client for Python, unmodified: puts, reads, lists and deletes blobs, small and block by block.

Signs in with the environment's service principal and prints what it saw as one line of JSON. STORAGE_ACCOUNT names the
account; the principal of USER_CLIENT_ID and USER_CLIENT_SECRET has Storage Blob Data Reader there.
"""

import json
import os
from importlib.metadata import version

from azure.core import MatchConditions
from azure.core.exceptions import HttpResponseError
from azure.identity import ClientSecretCredential, EnvironmentCredential
from azure.storage.blob import BlobServiceClient, ContainerClient, ContentSettings

URL = f"https://{os.environ['STORAGE_ACCOUNT']}.blob.core.windows.net"
LARGE = bytes(range(256)) * 4096  # 1 MiB: eight blocks, and eight ranges


def main() -> None:
    """Run all steps once, and print what the client returned."""
    seen: dict[str, object] = {"versions": {"azure-storage-blob": version("azure-storage-blob")}}
    small_pieces = {"max_single_put_size": 128 * 1024, "max_block_size": 128 * 1024}
    ranges = {"max_single_get_size": 128 * 1024, "max_chunk_get_size": 128 * 1024}
    with BlobServiceClient(URL, EnvironmentCredential(), retry_total=0, **small_pieces, **ranges) as service:
        container = service.create_container("box", metadata={"kind": "test"})
        seen["containers"] = [item.name for item in service.list_containers(include_metadata=True)]
        settings = ContentSettings(content_type="text/plain")
        container.upload_blob("texts/a b", b"text", content_settings=settings, metadata={"kind": "small"})
        container.upload_blob("empty", b"")
        container.upload_blob("large", LARGE, max_concurrency=2)
        seen["read"] = container.download_blob("texts/a b").readall().decode()
        seen["same"] = [
            container.download_blob("large", max_concurrency=2).readall() == LARGE,
            container.download_blob("large", offset=1000, length=200_000).readall() == LARGE[1000:201_000],
            container.download_blob("empty").readall() == b"",
        ]
        properties = container.get_blob_client("texts/a b").get_blob_properties()
        seen["properties"] = [properties.size, properties.content_settings.content_type, properties.metadata]
        seen["exists"] = [container.get_blob_client(name).exists() for name in ("large", "missing")]
        seen["names"] = [item.name for item in container.list_blobs(results_per_page=1)]
        seen["folders"] = [item.name for item in container.walk_blobs()]
        seen["blocks"] = len(container.get_blob_client("large").get_block_list()[0])
        seen["refusals"] = refusals(container)
        container.delete_blob("large")
        seen["left"] = list(container.list_blob_names())
        service.delete_container("box")
        seen["gone"] = container.exists()
    print(json.dumps(seen))


def name_of(error: HttpResponseError) -> str:
    """Return an error's type, status and code; codes that the SDK knows are members of an enumeration."""
    code = getattr(error, "error_code", None)
    return f"{type(error).__name__} {error.status_code} {getattr(code, 'value', code)}"


def refusals(container: ContainerClient) -> list[str]:
    """Return the errors for an existing blob, a changed one, a reader's write, a key and a missing blob."""
    user = ClientSecretCredential(
        os.environ["AZURE_TENANT_ID"], os.environ["USER_CLIENT_ID"], os.environ["USER_CLIENT_SECRET"]
    )
    reader = ContainerClient(URL, "box", user, retry_total=0)
    assert reader.download_blob("texts/a b").readall() == b"text"
    stale = {"etag": '"0x1"', "match_condition": MatchConditions.IfNotModified}
    by_key = ContainerClient(URL, "box", "a2V5", retry_total=0)
    errors = []
    for client, name, options in (
        (container, "empty", {}),
        (container, "empty", {"overwrite": True, **stale}),
        (reader, "new", {}),
        (by_key, "new", {}),
    ):
        try:
            client.upload_blob(name, b"x", **options)
        except HttpResponseError as error:
            errors.append(name_of(error))
    try:
        container.download_blob("missing")
    except HttpResponseError as error:
        errors.append(name_of(error))
    return errors


if __name__ == "__main__":
    main()
