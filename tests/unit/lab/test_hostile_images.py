"""Images that are made to harm: they end in a sentence, and fill neither the disk nor the memory."""

import gzip
import io
import json
import os
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from podidentity_lab.images import Image
from podidentity_lab.kubelet import users
from podidentity_lab.oci import archive, layers, names, sources
from podidentity_lab.oci.errors import ImageError
from podidentity_lab.oci.exporting import export
from podidentity_lab.oci.library import Library
from podidentity_lab.oci.store import Store
from unit.lab import oci_archives as make

NAME = "registry.example/team/app:1.2"
LAYER = make.tar({"app/run": "one"})


def unpack(folder: Path, content: bytes) -> Path:
    """Unpack one layer and return the root."""
    blob = folder / "layer"
    blob.write_bytes(content)
    layers.unpack([(blob, make.digest(content))], folder / "root", as_root=False)
    return folder / "root"


def hole(size: int) -> bytes:
    """Return a layer with one file that is a single hole of `size` bytes: it takes one block of the layer."""
    info = tarfile.TarInfo("hole")
    info.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[483:495] = b"\x80" + size.to_bytes(11, "big")  # the size with its holes, as GNU tar writes large numbers
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    return bytes(header) + bytes(1024)


def extended(count: int = 1, **headers: str) -> bytes:
    """Return a layer with one empty file that has these extended headers `count` times."""
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w", format=tarfile.PAX_FORMAT) as file:
        info = tarfile.TarInfo("file")
        info.pax_headers = headers
        file.addfile(info)
        size = output.tell() - tarfile.BLOCKSIZE
    content = output.getvalue()
    return content[:size] * count + content[size:]


@pytest.mark.parametrize(
    ("layer", "sentence"),
    [
        (hole(1 << 44), "larger than 16 GiB unpacked"),
        (make.tar({"a/" * 1_200 + "file": ""}), "more than 128 directories deep"),
        (extended(comment="x" * (20 << 20)), "more than 16 MiB of headers"),
        (extended(count=2_000, comment="x"), "cannot be unpacked"),
        (extended(mtime="inf"), "cannot be unpacked"),
        (extended(mtime="1e30"), "cannot be unpacked"),
    ],
    ids=["hole", "depth", "long header", "many headers", "no time", "late time"],
)
def test_a_layer_that_is_made_to_harm_is_refused(tmp_path: Path, layer: bytes, sentence: str) -> None:
    """It is refused before it has filled the disk or the memory, and what it left can be removed."""
    with pytest.raises(ImageError, match=sentence):
        unpack(tmp_path, layer)
    shutil.rmtree(tmp_path / "root")


def test_a_layer_whose_compression_is_damaged_is_refused(tmp_path: Path) -> None:
    """Bytes in the middle that deflate cannot have are an error of the image, as is an early end."""
    plain = make.tar({"file": os.urandom(4_000).hex()})
    content = bytearray(gzip.compress(plain))
    content[20:60] = bytes(40)
    with pytest.raises(zlib.error):
        gzip.decompress(bytes(content))
    with pytest.raises(ImageError, match="cannot be unpacked"):
        unpack(tmp_path, bytes(content))


def test_holes_and_long_contents_are_no_harm(tmp_path: Path) -> None:
    """A sparse file is what it says, and a file may be longer than headers may."""
    assert (unpack(tmp_path, hole(3 << 20)) / "hole").read_bytes() == bytes(3 << 20)
    shutil.rmtree(tmp_path / "root")
    size = layers.HEADER_LIMIT_BYTES + 1
    root = unpack(tmp_path, make.tar({"long": "x" * size, "next": "y", "last": "z" * size}))
    assert [(root / name).stat().st_size for name in ("long", "next", "last")] == [size, 1, size]


def test_directories_that_no_layer_names_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A short name can make many directories: each of them counts as a file."""
    monkeypatch.setattr(layers, "FILE_LIMIT", 50)
    with pytest.raises(ImageError, match="more than 50 files"):
        unpack(tmp_path, make.tar({"a/" * 60 + "file": ""}))


def test_a_pipe_in_the_place_of_the_users_is_not_waited_for(tmp_path: Path) -> None:
    """An image's /etc/passwd that is a pipe has no writer: who opens it waits for ever."""
    root = unpack(tmp_path, make.tar({"etc/passwd": make.member("etc/passwd", tarfile.FIFOTYPE)}))
    assert users.user_of(Image(root=root, user="7"), {}).uid == 7


def variants(value: Any) -> Iterator[Any]:
    """Yield a JSON value with each of its parts replaced by something of another type, one at a time."""
    yield from (None, 5, "x", [], ["x"], [[1]], {}, {"a": 1}, [{}], True)
    if isinstance(value, dict):
        for key in value:
            for variant in variants(value[key]):
                yield {**value, key: variant}
    if isinstance(value, list):
        for number, item in enumerate(value):
            for variant in variants(item):
                yield [*value[:number], variant, *value[number + 1 :]]


def documents() -> Iterator[dict[str, bytes]]:
    """Yield the files of archives of both forms, one part of one of their documents of another type."""
    files = make.docker_files([LAYER], [NAME], Env=["A=1"], Cmd=["x"])
    for variant in variants(json.loads(files["manifest.json"])):
        yield {**files, "manifest.json": json.dumps(variant).encode()}
    layer, configuration, _ = files
    manifest = json.dumps([{"Config": "c.json", "RepoTags": [NAME], "Layers": [layer]}]).encode()
    for variant in variants(json.loads(files[configuration])):
        yield {**files, "c.json": json.dumps(variant).encode(), "manifest.json": manifest}
    files = make.layout_files([LAYER], NAME)
    index = json.loads(files["index.json"])
    for variant in variants(index):
        yield {**files, "index.json": json.dumps(variant).encode()}
    digest = index["manifests"][0]["digest"]
    for variant in variants(json.loads(files[f"blobs/sha256/{digest[7:]}"])):
        text = json.dumps(variant).encode()
        index["manifests"] = [{**make.descriptor(text), "annotations": {"org.opencontainers.image.ref.name": NAME}}]
        yield {**files, f"blobs/sha256/{make.digest(text)[7:]}": text, "index.json": json.dumps(index).encode()}


async def test_a_document_with_a_value_of_another_type_is_refused_or_read(tmp_path: Path) -> None:
    """Whatever stands in an archive's documents, reading, loading and exporting end well or in a sentence."""
    results = {"read": 0, "refused": 0}
    for number, files in enumerate(documents()):
        folder = make.write_directory(tmp_path / str(number), files)
        store = Store(folder / "store")
        try:
            with sources.open_source(folder) as source:
                digests = archive.image_names(archive.read(source, store), "")
            await Library(store).load(digests)
            export(store, digests, folder / "export.tar")
            results["read"] += 1
        except ImageError:
            results["refused"] += 1
        shutil.rmtree(folder)
    assert min(results.values()) > 50, results


async def test_a_digest_in_an_index_is_no_path(tmp_path: Path) -> None:
    """A blob may be anything: an index that was pushed as one does not lead out of the store."""
    store = Store(tmp_path / "store")
    (tmp_path / "outside.json").write_text(json.dumps({"config": make.descriptor(b"")}))
    index = {"manifests": [{"digest": "sha256:../../outside.json"}]}
    with pytest.raises(ImageError, match="no SHA-256 digest"):
        await Library(store).image(store.write_blob(json.dumps(index).encode()))


def test_a_directory_s_files_are_those_in_it(tmp_path: Path) -> None:
    """Neither a name nor a link of a layout leads out of its directory, and a pipe in it is not waited for."""
    (tmp_path / "secret").write_text("outside")
    layout = tmp_path / "layout"
    layout.mkdir()
    (layout / "link").symlink_to("../secret")
    (layout / "circle").symlink_to("circle")
    os.mkfifo(layout / "pipe")
    with sources.open_source(layout) as source:
        for name in ("../secret", str(tmp_path / "secret"), "link", "circle", "pipe", "a" * 300, "\0"):
            assert not source.has(name)
            with pytest.raises(ImageError, match="it is missing"):
                source.open(name)


def test_a_name_that_no_file_can_have_is_refused() -> None:
    """Names become names of files, in which a slash takes three characters."""
    assert names.parse("a/" * 50 + "a:1").tag == "1"
    with pytest.raises(ImageError, match="write a shorter one"):
        names.parse("a/" * 90 + "a:1")


async def test_json_within_json_within_json_is_refused(tmp_path: Path) -> None:
    """A document that is nested too deeply to be read is an error of the image."""
    deep = b'{"config":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    store = Store(tmp_path / "store")
    with pytest.raises(ImageError, match="no JSON"):
        await Library(store).image(store.write_blob(deep))
    path = make.write(tmp_path / "a.tar", {"manifest.json": deep})
    with pytest.raises(ImageError, match="no JSON"), sources.open_source(path) as source:
        archive.read(source, store)
