"""The lab's registry: requests of the OCI distribution specification, and what is refused."""

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx2
import pytest
from starlette.testclient import TestClient

from podidentity_lab.oci import store as stores
from podidentity_lab.oci import uploads
from podidentity_lab.oci.library import REGISTRY_NAMES
from podidentity_lab.oci.registry import application
from podidentity_lab.oci.store import Store
from unit.lab import oci_archives as make

LAYER = make.tar({"file": "content"})
CONFIG = make.configuration([LAYER])
MANIFEST = json.dumps(
    {"schemaVersion": 2, "config": make.descriptor(CONFIG), "layers": [make.descriptor(LAYER)]}
).encode()
NOTHING = make.digest(b"")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """The store of the registry's images."""
    return Store(tmp_path)


@pytest.fixture
def http(store: Store) -> Iterator[TestClient]:
    """A client of the registry."""
    with TestClient(application(store, REGISTRY_NAMES, writable=True), base_url="http://localhost:5000") as client:
        yield client


def push(http: TestClient, content: bytes) -> None:
    """Push a blob in one request."""
    done = http.post("/v2/team/app/blobs/uploads/", params={"digest": make.digest(content)}, content=content)
    assert done.status_code == 201


def code(response: object) -> tuple[int, str]:
    """Return a refusal's status and code."""
    answer = response.json()["errors"][0]  # type: ignore[attr-defined]
    assert answer["message"]
    return response.status_code, answer["code"]  # type: ignore[attr-defined]


def test_an_image_is_pushed_and_pulled(http: TestClient) -> None:
    """A layer is pushed in chunks, a configuration at once, and a manifest under a tag.

    The image is pulled by tag and by digest.
    """
    assert http.get("/v2/").headers["Docker-Distribution-API-Version"] == "registry/2.0"
    assert http.head(f"/v2/team/app/blobs/{make.digest(LAYER)}").status_code == 404
    location = http.post("/v2/team/app/blobs/uploads/").headers["Location"]
    half = len(LAYER) // 2
    chunk = http.patch(location, content=LAYER[:half], headers={"Content-Range": f"0-{half - 1}"})
    assert (chunk.status_code, chunk.headers["Range"]) == (202, f"0-{half - 1}")
    assert http.get(location).headers["Range"] == f"0-{half - 1}"
    chunk = http.patch(location, content=LAYER[half:], headers={"Content-Range": f"{half}-{len(LAYER) - 1}"})
    last = http.put(location, params={"digest": make.digest(LAYER)})
    assert (last.status_code, last.headers["Docker-Content-Digest"]) == (201, make.digest(LAYER))
    push(http, CONFIG)
    for tag in ("1", "2"):
        assert http.put(f"/v2/team/app/manifests/{tag}", content=MANIFEST).status_code == 201
    for reference in ("1", make.digest(MANIFEST)):
        pulled = http.get(f"/v2/team/app/manifests/{reference}")
        assert (pulled.content, pulled.headers["Docker-Content-Digest"]) == (MANIFEST, make.digest(MANIFEST))
        assert pulled.headers["Content-Type"] == "application/vnd.oci.image.manifest.v1+json"
        assert http.head(f"/v2/team/app/manifests/{reference}").headers["Content-Length"] == str(len(MANIFEST))
    assert http.get(f"/v2/team/app/blobs/{make.digest(LAYER)}").content == LAYER
    assert http.get("/v2/team/app/tags/list").json() == {"name": "team/app", "tags": ["1", "2"]}
    page = http.get("/v2/team/app/tags/list", params={"n": "1"})
    assert (page.json()["tags"], page.headers["Link"]) == (["1"], '</v2/team/app/tags/list?n=1&last=1>; rel="next"')


def test_a_blob_that_is_here_is_mounted(http: TestClient) -> None:
    """A blob that the registry has is taken from another repository; any other one must be uploaded."""
    push(http, LAYER)
    query = {"mount": make.digest(LAYER), "from": "team/app"}
    assert http.post("/v2/other/blobs/uploads/", params=query).status_code == 201
    assert http.post("/v2/other/blobs/uploads/", params={**query, "mount": NOTHING}).status_code == 202


def test_what_is_not_what_its_digest_says_is_refused(http: TestClient, store: Store) -> None:
    """A blob or a manifest with another digest is refused, and nothing of it is kept."""
    location = http.post("/v2/app/blobs/uploads/").headers["Location"]
    assert code(http.put(location, params={"digest": NOTHING}, content=LAYER)) == (400, "DIGEST_INVALID")
    assert code(http.put(location, params={"digest": NOTHING})) == (404, "BLOB_UPLOAD_UNKNOWN")
    push(http, LAYER)
    push(http, CONFIG)
    assert code(http.put(f"/v2/app/manifests/{NOTHING}", content=MANIFEST)) == (400, "DIGEST_INVALID")
    assert not store.blob(NOTHING).exists()


def test_a_manifest_without_its_blobs_is_refused(http: TestClient) -> None:
    """A manifest whose blobs are missing is refused, and so is what is no manifest."""
    assert code(http.put("/v2/app/manifests/1", content=MANIFEST)) == (400, "MANIFEST_BLOB_UNKNOWN")
    for content in (b"{", b"[]"):
        assert code(http.put("/v2/app/manifests/1", content=content)) == (400, "MANIFEST_INVALID")
    assert code(http.put("/v2/app/manifests/-", content=b"{}")) == (400, "MANIFEST_INVALID")
    assert code(http.get("/v2/app/manifests/1")) == (404, "MANIFEST_UNKNOWN")
    assert code(http.get("/v2/app/tags/list")) == (404, "NAME_UNKNOWN")


def test_a_chunk_out_of_order_is_refused(http: TestClient) -> None:
    """A chunk out of order is refused with 416; the upload continues to exist until it is deleted."""
    location = http.post("/v2/app/blobs/uploads/").headers["Location"]
    assert code(http.patch(location, content=b"x", headers={"Content-Range": "5-5"})) == (416, "BLOB_UPLOAD_INVALID")
    assert http.delete(location).status_code == 204
    assert code(http.get(location)) == (404, "BLOB_UPLOAD_UNKNOWN")


def test_sizes_and_numbers_are_bounded(http: TestClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Blobs and manifests are bounded in size, and unfinished uploads in number; what is refused leaves no file."""
    monkeypatch.setattr(stores, "BLOB_LIMIT_BYTES", 10)
    location = http.post("/v2/app/blobs/uploads/").headers["Location"]
    assert code(http.patch(location, content=b"x" * 11)) == (413, "SIZE_INVALID")
    assert not list((tmp_path / "blobs").iterdir())
    assert code(http.put("/v2/app/manifests/1", content=b" " * ((4 << 20) + 1))) == (413, "SIZE_INVALID")
    monkeypatch.setattr(uploads, "UPLOAD_LIMIT", 2)
    locations = [http.post("/v2/app/blobs/uploads/").headers["Location"] for _ in range(3)]
    assert [http.get(location).status_code for location in locations] == [404, 204, 204]
    assert len(list((tmp_path / "blobs").iterdir())) == 2


def test_a_web_page_pushes_nothing(http: TestClient) -> None:
    """A request with a web page's Origin, or for another host, is refused.

    A page may resolve a name of its own to loopback.
    """
    response = http.post("/v2/app/blobs/uploads/", headers={"Origin": "http://evil.example"})
    assert code(response) == (403, "DENIED")
    assert http.get("/v2/", headers={"Host": "evil.example"}).status_code == 400


def test_another_user_is_refused(store: Store) -> None:
    """A request of another user, according to the kernel, is refused, as at the lab's gateway."""
    door = application(store, REGISTRY_NAMES, lambda client, server: client == server, writable=True)
    with TestClient(door, base_url="http://localhost") as client:
        assert code(client.get("/v2/")) == (403, "DENIED")
        assert code(client.put("/v2/app/manifests/1", content=b"{}")) == (403, "DENIED")


def test_no_name_is_a_path(http: TestClient, tmp_path: Path) -> None:
    """A repository's name with dots, and a digest with slashes, are refused."""
    assert code(http.put("/v2/a/%2e%2e/b/manifests/1", content=b"{}"))[1] == "NAME_INVALID"
    assert http.get("/v2/app/blobs/..%2f..%2fetc").status_code == 404
    assert not (tmp_path / "pushed").exists()


def test_to_pull_only(store: Store) -> None:
    """The registry that nodes reach accepts no uploads."""
    with TestClient(application(store, REGISTRY_NAMES, writable=False), base_url="http://localhost") as client:
        assert client.post("/v2/app/blobs/uploads/").status_code in {404, 405}
        assert client.put("/v2/app/manifests/1", content=b"{}").status_code == 405


def test_a_name_that_no_file_can_have_is_refused(http: TestClient) -> None:
    """A repository and a tag that are too long together are refused, as each of them is by itself."""
    for content in (LAYER, CONFIG):
        push(http, content)
    path = f"/v2/{'a/' * 60}a/manifests/{'b' * 128}"
    assert code(http.put(path, content=MANIFEST)) == (400, "NAME_INVALID")


async def test_an_upload_that_gives_way_while_it_is_sent_is_unknown(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other uploads may end one between two of its parts; its client hears that it has to begin again."""
    monkeypatch.setattr(uploads, "UPLOAD_LIMIT", 1)
    transport = httpx2.ASGITransport(application(store, REGISTRY_NAMES, writable=True))
    async with httpx2.AsyncClient(transport=transport, base_url="http://localhost:5000") as client:

        async def parts() -> AsyncIterator[bytes]:
            yield LAYER[:100]
            next_upload = await client.post("/v2/team/app/blobs/uploads/")
            yield LAYER[100:]
            await client.delete(next_upload.headers["Location"])

        location = (await client.post("/v2/team/app/blobs/uploads/")).headers["Location"]
        answer = await client.put(location, params={"digest": make.digest(LAYER)}, content=parts())
    assert code(answer) == (404, "BLOB_UPLOAD_UNKNOWN")


@pytest.mark.parametrize("kind", ["a/b\r\nSet-Cookie: x", "a/\N{SNOWMAN}", 5, ["x"], "", "a/" + "b" * 4000])
def test_a_media_type_that_is_none_is_not_repeated(http: TestClient, kind: object) -> None:
    """It would be a header of the answer: a line break would begin another one."""
    manifest = json.dumps({"mediaType": kind}).encode()
    assert http.put("/v2/team/app/manifests/odd", content=manifest).status_code == 201
    pulled = http.get("/v2/team/app/manifests/odd")
    assert (pulled.status_code, pulled.headers["Content-Type"]) == (200, "application/vnd.oci.image.manifest.v1+json")
    assert "Set-Cookie" not in pulled.headers


@pytest.mark.parametrize("number", ["9" * 5000, "-1", "x", "0", "\N{ARABIC-INDIC DIGIT THREE}"])
def test_a_number_of_tags_that_is_none_means_all(http: TestClient, number: str) -> None:
    """Whatever `n` says, there is an answer."""
    manifest = json.dumps({}).encode()
    assert http.put("/v2/team/app/manifests/1", content=manifest).status_code == 201
    tags = http.get("/v2/team/app/tags/list", params={"n": number}).json()["tags"]
    assert tags == ([] if number == "0" else ["1"])


def test_a_mirror_finds_images_of_other_registries(store: Store) -> None:
    """Which registry is meant is in the query, as containerd sends it; what was pushed here is none of theirs."""
    digest = store.write_blob(MANIFEST)
    store.name("pushed", "team/app:1", digest)

    def find(host: str, name: str, tag: str) -> str | None:
        return digest if (host, name, tag) == ("docker.io", "library/app", "2") else None

    mirror = application(store, ("lab",), writable=False, find=find)
    with TestClient(mirror, base_url="http://lab") as client:
        answer = client.get("/v2/library/app/manifests/2", params={"ns": "docker.io"})
        assert (answer.status_code, answer.content) == (200, MANIFEST)
        for path, host in (("library/app/manifests/2", "quay.io"), ("team/app/manifests/1", "docker.io")):
            assert client.get(f"/v2/{path}", params={"ns": host}).status_code == 404
