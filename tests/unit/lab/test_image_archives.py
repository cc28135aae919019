"""`lab load`: what of an archive gets into a store and a root, and what is refused, each with one sentence."""

import gzip
import json
import os
import tarfile
from pathlib import Path

import pytest
import zstandard

from podidentity_lab.oci import archive, config, layers, names, sources
from podidentity_lab.oci.archive import ArchivedImage
from podidentity_lab.oci.errors import ImageError
from podidentity_lab.oci.exporting import export
from podidentity_lab.oci.library import Library
from podidentity_lab.oci.store import Store
from podidentity_lab.sandbox.paths import inside
from unit.lab import oci_archives as make

LAYERS = (make.tar({"app/": "", "app/run": "one", "etc/hosts": ""}), make.tar({"app/run": "two"}))
NAME = "registry.example/team/app:1.2"


def read(path: Path, store: Store) -> tuple[ArchivedImage, ...]:
    """Read an archive's images into a store."""
    with sources.open_source(path) as source:
        return archive.read(source, store)


def unpack(folder: Path, *contents: bytes) -> Path:
    """Unpack layers, each in its own file, and return the root."""
    pairs = []
    for number, content in enumerate(contents):
        blob = folder / f"layer-{number}"
        blob.write_bytes(content)
        pairs.append((blob, make.digest(content)))
    layers.unpack(pairs, folder / "root", as_root=False)
    return folder / "root"


async def test_every_form_of_archive_gives_the_same_root(tmp_path: Path) -> None:
    """Docker's archive, and OCI's as archive and directory, give the same root.

    Upper layers replace files of lower ones.
    """
    docker, layout = make.docker_files(LAYERS, [NAME]), make.layout_files(LAYERS, NAME)
    paths = (
        make.write(tmp_path / "docker.tar", docker),
        make.write(tmp_path / "oci.tar", layout),
        make.write_directory(tmp_path / "oci", layout),
    )
    for number, path in enumerate(paths):
        store = Store(tmp_path / f"store-{number}")
        digests = archive.image_names(read(path, store), "")
        library = Library(store)
        await library.load(digests)
        assert library.find_loaded(names.parse(NAME)) == digests[NAME]
        image = await library.image(digests[NAME])
        assert (image.root / "app/run").read_text() == "two"
        assert (image.root / "etc/hosts").exists()


def test_what_is_exported_is_the_same_image(tmp_path: Path) -> None:
    """An exported archive, made for the containerd of a real cluster's nodes, has the same manifests and names."""
    store, copy = Store(tmp_path / "store"), Store(tmp_path / "copy")
    files = make.docker_files(LAYERS, [NAME, "other:2"])
    digests = archive.image_names(read(make.write(tmp_path / "a.tar", files), store), "")
    export(store, digests, tmp_path / "export.tar")
    assert archive.image_names(read(tmp_path / "export.tar", copy), "") == digests
    with pytest.raises(ImageError, match="it is missing"):
        export(copy, {"gone:1": make.digest(b"")}, tmp_path / "none.tar")


def test_a_compressed_archive_and_shared_layers_are_read(tmp_path: Path) -> None:
    """A compressed archive is read.

    In an archive of an older Docker, a layer may be a link to that of another image.
    """
    files = make.docker_files(LAYERS[:1], ["a:1"])
    layer = next(iter(files))
    manifest = json.loads(files["manifest.json"])
    manifest[0]["Layers"] = ["second/layer.tar"]
    files["manifest.json"] = json.dumps(manifest).encode()
    link = make.member("second/layer.tar", tarfile.SYMTYPE, f"../{layer}")
    path = make.write(tmp_path / "a.tar", {**files, "second/layer.tar": link})
    compressed = tmp_path / "a.tar.gz"
    compressed.write_bytes(gzip.compress(path.read_bytes()))
    assert [image.names for image in read(compressed, Store(tmp_path / "store"))] == [("a:1",)]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("../../evil", b"x", "leads out of the archive"),
        ("/etc/evil", b"x", "leads out of the archive"),
        ("evil", make.member("evil", tarfile.SYMTYPE, "/etc/passwd"), "leads out of the archive"),
        ("evil", make.member("evil", tarfile.SYMTYPE, "../passwd"), "leads out of the archive"),
        ("evil", make.member("evil", tarfile.LNKTYPE, "/etc/passwd"), "leads out of the archive"),
        ("evil", make.member("evil", tarfile.CHRTYPE), "no file, directory or link"),
        ("manifest.json", b"{", "manifest.json: it is no JSON"),
        ("manifest.json", b" " * (5 << 20), "larger than 4 MiB"),
        ("manifest.json", b"[]", "has no image for linux/"),
        ("manifest.json", b'[{"Config": 1}]', "names no configuration"),
        ("manifest.json", b'[{"Config": "c.json", "Layers": ["l.tar"]}]', "c.json: it is missing"),
    ],
)
def test_a_bad_archive_is_refused(tmp_path: Path, name: str, content: bytes | tarfile.TarInfo, sentence: str) -> None:
    """The error is a sentence that says what is wrong."""
    path = make.write(tmp_path / "bad.tar", {**make.docker_files(LAYERS, [NAME]), name: content})
    with pytest.raises(ImageError, match=sentence):
        read(path, Store(tmp_path / "store"))


def test_content_that_is_not_what_its_digest_says_is_refused(tmp_path: Path) -> None:
    """A layer, configuration or manifest with another digest or size, or a missing one, is refused."""
    files = make.layout_files(LAYERS, NAME)
    for number, name in enumerate(name for name in files if name.startswith("blobs/")):
        path = make.write(tmp_path / f"{number}.tar", {**files, name: files[name] + b" "})
        with pytest.raises(ImageError, match="another digest"):
            read(path, Store(tmp_path / f"store-{number}"))
        path = make.write(tmp_path / f"{number}.tar", {key: value for key, value in files.items() if key != name})
        with pytest.raises(ImageError, match="missing in the archive"):
            read(path, Store(tmp_path / f"store-{number}"))
    index = json.loads(files["index.json"])
    index["manifests"][0]["size"] += 1
    path = make.write(tmp_path / "size.tar", {**files, "index.json": json.dumps(index).encode()})
    with pytest.raises(ImageError, match="its size is not"):
        read(path, Store(tmp_path / "store"))


def test_a_huge_member_is_refused_before_it_is_read(tmp_path: Path) -> None:
    """A member is refused by the size in its header, even if the archive ends right there."""
    info = tarfile.TarInfo("layer.tar")
    info.size = 9 << 30
    path = tmp_path / "huge.tar"
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with pytest.raises(ImageError, match=r"layer\.tar: it is larger than 8 GiB"):
        read(path, Store(tmp_path / "store"))


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    """A text file, and a tar file or directory of something else, are refused."""
    (tmp_path / "text").write_text("no archive")
    with pytest.raises(ImageError, match="text: it cannot be read as a tar archive") as error:
        read(tmp_path / "text", Store(tmp_path / "store"))
    assert "\n" not in str(error.value)
    for path in (make.write(tmp_path / "other.tar", {"a": b""}), tmp_path):
        with pytest.raises(ImageError, match=rf"{path}: neither manifest\.json nor index\.json"):
            read(path, Store(tmp_path / "store"))


def test_what_has_no_end_is_not_waited_for(tmp_path: Path) -> None:
    """A pipe into which nobody writes, and a device."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(ImageError, match=f"{path}: it is no file or directory; save the image into a file"):
            read(path, Store(tmp_path / "store"))


def test_an_image_of_several_platforms_is_this_machine_s(tmp_path: Path) -> None:
    """The descriptor for this machine's platform is followed, also in an index within an index."""
    files = make.layout_files(LAYERS, "")
    inner = json.loads(files["index.json"])["manifests"][0]
    other = {**make.descriptor(b"missing"), "platform": {"os": "linux", "architecture": "other"}}
    mine = {**inner, "platform": {"os": "linux", "architecture": archive.architecture()}}
    index = json.dumps({"manifests": [other, mine]}).encode()
    outer = {"manifests": [{**make.descriptor(index), "mediaType": archive.INDEX}]}
    files |= {f"blobs/sha256/{make.digest(index)[7:]}": index, "index.json": json.dumps(outer).encode()}
    images = read(make.write(tmp_path / "a.tar", files), Store(tmp_path / "store"))
    assert [image.digest for image in images] == [inner["digest"]]
    with pytest.raises(ImageError, match="name it with --image"):
        archive.image_names(images, "")
    assert archive.image_names(images, "app") == {"docker.io/library/app:latest": inner["digest"]}


async def test_an_image_for_another_machine_is_refused(tmp_path: Path) -> None:
    """The error names the other platform: the image's programs could not start."""
    text = json.dumps({"os": "linux", "architecture": "s390x", "rootfs": {"diff_ids": []}}).encode()
    manifest = json.dumps([{"Config": "c.json", "RepoTags": [NAME], "Layers": []}]).encode()
    store = Store(tmp_path / "store")
    images = read(make.write(tmp_path / "a.tar", {"c.json": text, "manifest.json": manifest}), store)
    library = Library(store)
    with pytest.raises(ImageError, match="is for linux/s390x"):
        await library.load(archive.image_names(images, ""))
    assert library.find_loaded(names.parse(NAME)) is None


def test_layers_are_compressed_in_three_ways(tmp_path: Path) -> None:
    """Layers may be plain, or compressed with gzip or zstd; the digest is that of the uncompressed layer."""
    plain = make.tar({"file": "content"})
    for number, content in enumerate((plain, gzip.compress(plain), zstandard.compress(plain))):
        blob = tmp_path / str(number)
        blob.write_bytes(content)
        layers.unpack([(blob, make.digest(plain))], tmp_path / f"root-{number}", as_root=False)
        assert (tmp_path / f"root-{number}/file").read_text() == "content"
        with pytest.raises(ImageError, match="another digest"):
            layers.unpack([(blob, make.digest(b""))], tmp_path / f"wrong-{number}", as_root=False)
        blob.write_bytes(content[:-20])
        with pytest.raises(ImageError, match=r"cannot be unpacked|another digest"):
            layers.unpack([(blob, make.digest(plain))], tmp_path / f"short-{number}", as_root=False)


def test_whiteouts_remove_what_is_below(tmp_path: Path) -> None:
    """A whiteout removes a file or directory of lower layers.

    An opaque directory keeps only what its own layer puts there, in any order.
    """
    lower = make.tar({"a/file": "", "a/stays": "", "b/sub/file": "", "c/old": "", "c/sub/old": ""})
    upper = make.tar({"a/.wh.file": "", ".wh.b": "", "c/new": "", "c/sub/new": "", "c/.wh..wh..opq": ""})
    root = unpack(tmp_path, lower, upper)
    files = sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
    assert files == ["a/stays", "c/new", "c/sub/new"]


def test_no_name_and_no_link_leads_out_of_the_root(tmp_path: Path) -> None:
    """A link is followed within the root, as in a container; names with `..` are refused."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "victim").write_text("as it was")
    links = make.tar(
        {
            "absolute": make.member("absolute", tarfile.SYMTYPE, str(outside)),
            "upwards": make.member("upwards", tarfile.SYMTYPE, "../../outside"),
        }
    )
    root = unpack(tmp_path, links, make.tar({"absolute/victim": "x", "upwards/victim": "x", "absolute/.wh.other": ""}))
    assert (outside / "victim").read_text() == "as it was"
    assert sorted(path.name for path in outside.iterdir()) == ["victim"]
    assert (root / "outside/victim").read_text() == "x"
    for number, evil in enumerate(
        (make.tar({"../victim": ""}), make.tar({"a": make.member("a", tarfile.LNKTYPE, "../outside/victim")}))
    ):
        folder = tmp_path / f"evil-{number}"
        folder.mkdir()
        with pytest.raises(ImageError, match=r"leads out of the image|which is missing"):
            unpack(folder, evil)


def test_links_directories_and_modes_are_kept(tmp_path: Path) -> None:
    """Hard links and modes are kept, devices are left out, and a file may replace a link."""
    lower = make.tar(
        {
            "bin/tool": "x",
            "bin/same": make.member("bin/same", tarfile.LNKTYPE, "bin/tool"),
            "etc/where": make.member("etc/where", tarfile.SYMTYPE, "/nowhere"),
            "dev/null": make.member("dev/null", tarfile.CHRTYPE),
            "pipe": make.member("pipe", tarfile.FIFOTYPE),
        }
    )
    root = unpack(tmp_path, lower, make.tar({"etc/where": "a file now"}))
    assert (root / "bin/tool").stat().st_nlink == 2
    assert (root / "bin/tool").stat().st_mode & 0o777 == 0o755
    assert (root / "etc/where").read_text() == "a file now"
    assert not (root / "dev/null").exists()
    assert (root / "pipe").is_fifo()


def test_a_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The unpacked size and the number of files are bounded."""
    monkeypatch.setattr(layers, "ROOT_LIMIT_BYTES", 1 << 20)
    plain = make.tar({"zeros": "\0" * (2 << 20)})
    with pytest.raises(ImageError, match="unpacked; make it smaller"):
        unpack(tmp_path, plain)
    monkeypatch.setattr(layers, "FILE_LIMIT", 1)
    folder = tmp_path / "files"
    folder.mkdir()
    with pytest.raises(ImageError, match="more than 1 files"):
        unpack(folder, make.tar({"a": "", "b": ""}))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("app", "docker.io/library/app:latest"),
        ("team/app:1", "docker.io/team/app:1"),
        ("localhost/app:1", "localhost/app:1"),
        ("localhost:5000/team/app", "localhost:5000/team/app:latest"),
        ("registry.example/app@sha256:" + "0" * 64, "registry.example/app@sha256:" + "0" * 64),
        ("registry.example/app:1@sha256:" + "0" * 64, "registry.example/app@sha256:" + "0" * 64),
    ],
)
def test_names_are_read_as_kubernetes_reads_them(text: str, name: str) -> None:
    """Without them, a name's registry is docker.io and its tag latest."""
    assert str(names.parse(text)) == name


@pytest.mark.parametrize("text", ["", "App", "app:", "app@sha256:0", "a//b", "../a", "host:x/a", "a" * 201, "a:b:c"])
def test_what_is_no_name_is_refused(text: str) -> None:
    """A malformed name is refused, since names become paths."""
    with pytest.raises(ImageError, match="no name of an image"):
        names.parse(text)


PASSWD = "root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\nbroken\n"
GROUP = "root:x:0:\ndata:x:50:app,other\n"


@pytest.mark.parametrize(
    ("text", "user"),
    [
        ("", config.User(0, 0, (), "/root")),
        ("app", config.User(1000, 1001, (50,), "/home/app")),
        ("1000", config.User(1000, 1001, (50,), "/home/app")),
        ("app:data", config.User(1000, 50, (), "/home/app")),
        ("7:8", config.User(7, 8)),
        ("7", config.User(7, 0)),
    ],
)
def test_a_user_is_looked_up_in_the_image(text: str, user: config.User) -> None:
    """A user is found by name or number, with its group, other groups and home."""
    assert config.user_of(text, PASSWD, GROUP) == user


def test_a_user_or_group_that_the_image_lacks_is_refused() -> None:
    """An unknown user or group is refused, as by a container runtime."""
    for text in ("ghost", "app:ghosts"):
        with pytest.raises(ImageError, match="has no such"):
            config.user_of(text, PASSWD, GROUP)


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    """Links that form a circle are the kernel's error."""
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("/a")
    with pytest.raises(OSError, match="levels of symbolic links"):
        inside(str(tmp_path), "a/file")
