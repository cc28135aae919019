"""Storage accounts in ARM, and their blobs by requests as SDKs send them: rights, conditions, blocks, restoring."""

from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree as ET

import httpx2
import pytest
from starlette.testclient import TestClient

from daemons.lab_azure.vaults import ARM, Send, SignIn, Vault
from podidentity_lab.azure import Azure

HOST = "https://store1.blob.core.windows.net"
BLOCK_BLOB = {"x-ms-blob-type": "BlockBlob"}


class Store(Vault):
    """One account, its owner's tokens and those of a principal without a role."""

    def __init__(self, azure: Azure, send: Send, sign_in: SignIn) -> None:
        super().__init__(azure, send, sign_in)
        self.path = f"{self.group}/providers/Microsoft.Storage/storageAccounts/store1"
        self.reader = sign_in("https://storage.azure.com/.default")
        self.stranger = sign_in("https://storage.azure.com/.default", azure.settings.cluster)
        send("PUT", f"{self.group}{self.api}", self.manager, json={"location": "eastus"})
        body = {"location": "eastus", "sku": {"name": "Standard_LRS"}, "kind": "StorageV2"}
        self.account = self.manage("PUT", json=body).json()

    def manage(self, method: str, path: str = "", **options: Any) -> httpx2.Response:
        """Ask ARM for the account, or for something below it."""
        return self.send(method, f"{self.path}{path}{self.api}", self.manager, **options)

    def blob(self, method: str, path: str, token: str | None = None, **options: Any) -> httpx2.Response:
        """Send a request to the account."""
        headers = {"x-ms-version": "2025-01-05", **options.pop("headers", {})}
        bearer = self.reader if token is None else token
        return self.send(method, f"{HOST}{path}", bearer, headers=headers, **options)

    def become(self, role: str, principal: str = "") -> None:
        """Give the owner, or another principal, a role on the account."""
        self.give(principal or self.azure.settings.owner.object_id, role, self.path)

    def put(self, path: str, content: bytes, **headers: str) -> httpx2.Response:
        """Put a blob in one piece."""
        more = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.blob("PUT", path, content=content, headers={**BLOCK_BLOB, **more})


@pytest.fixture
def store(azure: Azure, send: Callable[..., httpx2.Response], sign_in: Callable[..., str]) -> Store:
    """An account with a container, whose owner may do everything."""
    store = Store(azure, send, sign_in)
    store.become("Storage Blob Data Contributor")
    assert store.blob("PUT", "/box?restype=container").status_code == 201
    return store


def code(response: httpx2.Response) -> tuple[int, str]:
    """Return a refusal's status and code; header and body have the same one."""
    title = response.headers["x-ms-error-code"]
    assert not response.content or ET.fromstring(response.content).findtext("Code") == title  # noqa: S314
    return response.status_code, title


def test_only_tokens_for_storage_are_taken(store: Store) -> None:
    """No token gets a challenge; another service's token, a key or a signature gets a code and sentence of its own."""
    refusal = store.blob("GET", "/box/a", token="")
    assert code(refusal) == (401, "NoAuthenticationInformation")
    tenant = store.azure.settings.tenant_id
    assert refusal.headers["WWW-Authenticate"] == (
        f"Bearer authorization_uri=https://login.microsoftonline.com/{tenant}/oauth2/authorize "
        "resource_id=https://storage.azure.com"
    )
    assert code(store.blob("GET", "/box/a", token=store.manager)) == (401, "InvalidAuthenticationInfo")
    key = {"Authorization": "SharedKey store1:c2lnbmF0dXJl"}
    for refusal in (store.blob("GET", "/box/a", token="", headers=key), store.blob("GET", "/box/a?sig=x", token="")):
        assert code(refusal) == (403, "KeyBasedAuthenticationNotPermitted")
        assert "use a token of Entra ID" in refusal.text
    elsewhere = store.send("GET", "https://nobody.blob.core.windows.net/box/a", store.reader)
    assert code(elsewhere) == (404, "ResourceNotFound")


def test_roles_say_who_reads_and_who_writes(store: Store) -> None:
    """A reader reads and lists in its container only; the subscription's owner creates containers but reads no blob."""
    store.put("/box/a", b"text")
    cluster = store.azure.settings.cluster.object_id
    assert code(store.blob("GET", "/box/a", token=store.stranger)) == (403, "AuthorizationPermissionMismatch")
    box = f"{store.path.removeprefix(ARM)}/blobServices/default/containers/box"
    store.give(cluster, "Storage Blob Data Reader", f"{ARM}{box}")
    assert store.blob("GET", "/box/a", token=store.stranger).content == b"text"
    assert store.blob("GET", "/box?restype=container&comp=list", token=store.stranger).status_code == 200
    for method, path in (
        ("DELETE", "/box/a"),
        ("PUT", "/box?restype=container"),
        ("GET", "/other/a"),
        ("GET", "/?comp=list"),
    ):
        refusal = store.blob(method, path, token=store.stranger)
        assert code(refusal) == (403, "AuthorizationPermissionMismatch"), (method, path)
    for path in list(store.azure.state.roles):
        if store.azure.state.roles[path].scope.endswith("store1"):
            del store.azure.state.roles[path]
    assert store.blob("PUT", "/second?restype=container").status_code == 201
    assert code(store.blob("GET", "/box/a")) == (403, "AuthorizationPermissionMismatch")


def test_a_blob_is_read_as_it_was_put(store: Store) -> None:
    """A blob keeps content, type and metadata; ranges, HEAD and lists show the same."""
    answer = store.put("/box/a/b%20c", b"0123456789", x_ms_blob_content_type="text/plain", x_ms_meta_kind="digits")
    assert answer.headers["ETag"]
    read = store.blob("GET", "/box/a/b%20c")
    assert (read.content, read.headers["Content-Type"]) == (b"0123456789", "text/plain")
    assert (read.headers["x-ms-meta-kind"], read.headers["ETag"]) == ("digits", answer.headers["ETag"])
    head = store.blob("HEAD", "/box/a/b%20c")
    assert (head.headers["Content-Length"], head.content) == ("10", b"")
    ask = {"x-ms-range": "bytes=2-4", "x-ms-range-get-content-md5": "true"}
    part = store.blob("GET", "/box/a/b%20c", headers=ask)
    assert (part.status_code, part.content, part.headers["Content-Range"]) == (206, b"234", "bytes 2-4/10")
    assert part.headers["x-ms-blob-content-md5"] == read.headers["Content-MD5"] != part.headers["Content-MD5"]
    assert code(store.blob("GET", "/box/a/b%20c", headers={"Range": "bytes=10-"})) == (416, "InvalidRange")
    text = store.blob("GET", "/box?restype=container&comp=list&include=metadata&prefix=a/").text
    root = ET.fromstring(text)  # noqa: S314
    assert [item.findtext("Name") for item in root.iter("Blob")] == ["a/b c"]
    assert root.findtext(".//Metadata/kind") == "digits"
    assert root.findtext(".//Properties/Content-Length") == "10"
    assert ET.fromstring(store.blob("GET", "/?comp=list").content).findtext(".//Container/Name") == "box"  # noqa: S314


def test_a_condition_protects_what_another_wrote(store: Store) -> None:
    """A write with If-Match or If-None-Match that does not hold is refused, and the blob stays as it was."""
    etag = store.put("/box/a", b"one").headers["ETag"]
    assert code(store.put("/box/a", b"two", if_none_match="*")) == (409, "BlobAlreadyExists")
    assert store.blob("GET", "/box/a", headers={"If-None-Match": etag}).status_code == 304
    assert store.put("/box/a", b"two", if_match=etag).status_code == 201
    assert code(store.put("/box/a", b"three", if_match=etag)) == (412, "ConditionNotMet")
    assert code(store.blob("DELETE", "/box/a", headers={"If-Match": etag})) == (412, "ConditionNotMet")
    assert code(store.put("/box/a", b"four", content_md5="AAAA")) == (400, "Md5Mismatch")
    assert store.blob("GET", "/box/a").content == b"two"
    change = store.blob("PUT", "/box/a?comp=metadata", headers={"x-ms-meta-by": "me"})
    assert store.blob("HEAD", "/box/a").headers["ETag"] == change.headers["ETag"] != etag
    store.blob("PUT", "/box/a?comp=properties", headers={"x-ms-blob-cache-control": "no-store"})
    assert store.blob("HEAD", "/box/a").headers["Cache-Control"] == "no-store"


def test_blocks_become_a_blob_when_they_are_listed(store: Store) -> None:
    """Blocks are no blob before they are listed; those that the list leaves out are discarded."""
    for block_id, content in (("b25l", b"one"), ("dHdv", b"two"), ("bGVmdA==", b"left")):
        assert store.blob("PUT", f"/box/big?comp=block&blockid={block_id}", content=content).status_code == 201
    assert code(store.blob("GET", "/box/big")) == (404, "BlobNotFound")
    waiting = store.blob("GET", "/box/big?comp=blocklist&blocklisttype=all").content
    assert [item.text for item in ET.fromstring(waiting).iterfind("UncommittedBlocks/Block/Size")] == ["3", "3", "4"]  # noqa: S314
    body = "<?xml version='1.0'?><BlockList><Latest>dHdv</Latest><Uncommitted>b25l</Uncommitted></BlockList>"
    answer = store.blob("PUT", "/box/big?comp=blocklist", content=body, headers={"x-ms-blob-content-type": "a/b"})
    assert answer.status_code == 201
    read = store.blob("GET", "/box/big")
    assert (read.content, read.headers["Content-Type"]) == (b"twoone", "a/b")
    refusal = store.blob("PUT", "/box/big?comp=blocklist", content=body.replace("b25l", "bGVmdA=="))
    assert code(refusal) == (400, "InvalidBlockList")
    assert code(store.blob("PUT", "/box/big?comp=blocklist", content="<")) == (400, "InvalidXmlDocument")
    entity = '<!DOCTYPE a [<!ENTITY b "MQ==">]><BlockList><Latest>&b;</Latest></BlockList>'
    assert code(store.blob("PUT", "/box/big?comp=blocklist", content=entity)) == (400, "InvalidXmlDocument")


def test_what_the_lab_does_not_have_is_refused(store: Store) -> None:
    """Other kinds of blobs, copies, leases, snapshots and bad names are refused with Azure's codes."""
    asks: tuple[tuple[str, str, dict[str, str], tuple[int, str]], ...] = (
        ("PUT", "/box/a", {"x-ms-blob-type": "PageBlob"}, (400, "InvalidHeaderValue")),
        ("PUT", "/box/a", {"x-ms-copy-source": "https://x/y"}, (400, "UnsupportedHeader")),
        ("PUT", "/box/a?comp=lease", {}, (400, "InvalidQueryParameterValue")),
        ("GET", "/box/a?snapshot=x", {}, (400, "InvalidQueryParameterValue")),
        ("GET", "/?restype=service&comp=properties", {}, (400, "InvalidQueryParameterValue")),
        ("PUT", "/box?restype=container&comp=acl", {}, (400, "InvalidQueryParameterValue")),
        ("PUT", "/Box?restype=container", {}, (400, "InvalidResourceName")),
        ("PUT", "/box?restype=container", {}, (409, "ContainerAlreadyExists")),
        ("GET", "/no-box/a", {}, (404, "ContainerNotFound")),
        ("HEAD", "/box/a", {}, (404, "BlobNotFound")),
    )
    for method, path, headers, expected in asks:
        assert code(store.blob(method, path, headers=headers)) == expected, (method, path, headers)
    assert store.blob("DELETE", "/box?restype=container").status_code == 202
    assert code(store.blob("GET", "/box?restype=container")) == (404, "ContainerNotFound")


def test_arm_has_accounts_and_containers(store: Store) -> None:
    """ARM creates, lists, tags and deletes both; an account has no keys, and its name is unique."""
    assert store.account["properties"]["primaryEndpoints"]["blob"] == f"{HOST}/"
    provider = f"{store.path.partition('/resourceGroups')[0]}/providers/Microsoft.Storage"
    for url in (f"{provider}/storageAccounts", store.path.rpartition("/")[0]):
        accounts = store.send("GET", f"{url}{store.api}", store.manager).json()["value"]
        assert [account["name"] for account in accounts] == ["store1"]
    assert store.manage("PATCH", json={"tags": {"a": "b"}}).json()["tags"] == {"a": "b"}
    assert store.manage("POST", "/listKeys").json()["error"]["code"] == "KeyBasedAuthenticationNotPermitted"
    for name, reason in (("store1", "AlreadyExists"), ("No", "AccountNameInvalid"), ("store2", None)):
        url = f"{provider}/checkNameAvailability{store.api}"
        assert store.send("POST", url, store.manager, json={"name": name}).json().get("reason") == reason
    containers = "/blobServices/default/containers"
    assert store.manage("PUT", f"{containers}/second", json={}).status_code == 201
    assert store.manage("PUT", f"{containers}/No", json={}).json()["error"]["code"] == "InvalidResourceName"
    assert [item["name"] for item in store.manage("GET", containers).json()["value"]] == ["box", "second"]
    assert store.manage("DELETE", f"{containers}/second").status_code == 200
    assert store.manage("GET", f"{containers}/second").json()["error"]["code"] == "ContainerNotFound"
    assert store.manage("GET", "/blobServices/default").status_code == 200
    assert store.manage("GET", "/fileServices/default/shares").status_code == 404
    invalid = store.path.replace("store1", "Store-1")
    body = {"location": "eastus"}
    assert store.send("PUT", f"{invalid}{store.api}", store.manager, json=body).status_code == 400
    assert store.manage("PUT", json=body).json()["tags"] == {"a": "b"}
    assert store.manage("DELETE").status_code == 200
    assert store.azure.state.containers == {}
    assert [store.manage(method).status_code for method in ("GET", "DELETE")] == [404, 204]


def test_a_name_is_taken_for_all_groups_and_free_with_its_group(store: Store) -> None:
    """A second account of the name is refused until the first one's group is deleted."""
    other = store.group.replace("/rg", "/other")
    store.send("PUT", f"{other}{store.api}", store.manager, json={"location": "eastus"})
    path = store.path.replace(store.group, other)
    again = [store.send("PUT", f"{path}{store.api}", store.manager, json={"location": "x"})]
    store.send("DELETE", f"{store.group}{store.api}", store.manager)
    again.append(store.send("PUT", f"{path}{store.api}", store.manager, json={"location": "x"}))
    assert [answer.status_code for answer in again] == [409, 200]
    assert store.azure.state.containers == {}


def test_blobs_survive_the_lab(store: Store) -> None:
    """A restored Azure has accounts, containers and blobs of any bytes, and blocks that are not listed yet."""
    store.put("/box/a", bytes(range(256)))
    store.blob("PUT", "/box/b?comp=block&blockid=b25l", content=b"later")
    text = store.azure.save()
    later = Azure.restore(text)
    assert later.save() == text
    client = TestClient(later.app, base_url=HOST, headers={"Authorization": f"Bearer {store.reader}"})
    assert client.get("/box/a").content == bytes(range(256))
    body = "<BlockList><Uncommitted>b25l</Uncommitted></BlockList>"
    assert client.put("/box/b", params={"comp": "blocklist"}, content=body).status_code == 201
    assert client.get("/box/b").content == b"later"


def test_a_fault_and_a_refusal_are_in_the_log(store: Store) -> None:
    """The log has them in Blob storage's words and with who asked, and no content of a blob."""
    store.azure.faults.blob_statuses = [503]
    assert code(store.blob("GET", "/box/a")) == (503, "ServerBusy")
    store.put("/box/a", b"what nobody logs")
    store.blob("GET", "/box/missing")
    fault, put, missing = list(store.azure.log.entries)[-3:]
    assert fault.reason == "ServerBusy: The lab was told to answer this."
    assert (put.service, put.host, put.target) == ("blob", "store1.blob.core.windows.net", "/box/a")
    assert put.client_id == store.azure.settings.owner.client_id
    assert missing.reason == "BlobNotFound: The specified blob does not exist."
    assert "nobody logs" not in str(list(store.azure.log.entries))
