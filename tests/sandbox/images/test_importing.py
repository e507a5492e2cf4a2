"""Folders and OCI layouts become images; what does not have its digest does not."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import tarfile
from pathlib import Path

import pytest

from baleen.sandbox.images.base import Config
from baleen.sandbox.images.errors import ImageError, ImageNotFoundError
from baleen.sandbox.images.importing import import_image
from baleen.sandbox.images.reader import content, read_tree
from baleen.sandbox.images.store import Store
from baleen.sandbox.images.tree import Node, find, merge

from .making import Blobs, entry, file, layout, packed, tar


def tree_of(store: Store, name: str) -> Node:
    """The tree that all layers of an image show together."""
    layers = store.image(store.lookup(name)).layers
    trees = [read_tree(store.layer_path(layer.digest)) for layer in layers]
    shown = trees[0]
    for tree in trees[1:]:
        shown = merge(shown, tree)
    return shown


def text(root: Node, path: bytes) -> bytes:
    node = find(root, path)
    assert node is not None, path
    return content(node)


def test_a_folder_becomes_an_image_at_a_place(store: Store, tmp_path: Path) -> None:
    (tmp_path / "repo/.git").mkdir(parents=True)
    (tmp_path / "repo/main.py").write_text("print(1)")
    os.chown(tmp_path / "repo/main.py", os.geteuid(), os.getegid())
    import_image(store, tmp_path / "repo", "work:1", at="/home/me/repo", only_root=True)
    root = tree_of(store, "work:1")
    assert text(root, b"home/me/repo/main.py") == b"print(1)"
    node = find(root, b"home/me/repo/main.py")
    assert node is not None
    assert node.uid == 0


def test_the_same_content_is_kept_once(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "f").write_text("x")
    first = import_image(store, source, "a")
    assert import_image(store, source, "b") == first
    assert set(store.names()) == {"a:latest", "b:latest"}
    assert len(list((store.root / "layers").iterdir())) == 1


@pytest.mark.parametrize("how", ["gzip", "zstd", "none"])
def test_a_layout_is_imported_with_its_config(store: Store, tmp_path: Path, how: str) -> None:
    config = {
        "Env": ["PATH=/bin", "A=b=c"],
        "User": "bob",
        "WorkingDir": "/w",
        "Entrypoint": ["/bin/sh"],
        "Cmd": ["-l"],
        "Labels": {"k": "v"},
        "ExposedPorts": {"80/tcp": {}},
    }
    layers = [tar(file("a", b"1"), file("b", b"2")), tar(file(".wh.a"), file("c", b"3"))]
    import_image(store, layout(tmp_path / "l", Blobs(layers, how=how, config=config)), "i")
    image = store.image(store.lookup("i"))
    assert image.config == Config(
        env={"PATH": "/bin", "A": "b=c"},
        user="bob",
        workdir="/w",
        entrypoint=("/bin/sh",),
        cmd=("-l",),
        labels={"k": "v"},
        exposed=("80/tcp",),
    )
    root = tree_of(store, "i")
    assert set(root.children) == {b"b", b"c"}
    with tarfile.open(tmp_path / "l.tar", "w") as archive:
        archive.add(tmp_path / "l", ".")
    assert import_image(store, tmp_path / "l", "again") == image.digest


def test_a_layout_in_a_tarball_is_a_layout(store: Store, tmp_path: Path) -> None:
    folder = layout(tmp_path / "l", Blobs([tar(file("a", b"1"))]))
    with tarfile.open(tmp_path / "l.tar", "w") as archive:
        for path in sorted(folder.rglob("*")):
            archive.add(path, path.relative_to(folder).as_posix(), recursive=False)
    import_image(store, tmp_path / "l.tar", "i")
    assert text(tree_of(store, "i"), b"a") == b"1"


@pytest.mark.parametrize("how", ["", "gz", "xz"])
def test_a_layout_that_tar_has_packed_from_within_is_a_layout(
    store: Store, tmp_path: Path, how: str
) -> None:
    folder = layout(tmp_path / "l", Blobs([tar(file("a", b"1"))]))
    with tarfile.open(tmp_path / "l.tar", f"w:{how}") as archive:
        archive.add(folder, ".")
    import_image(store, tmp_path / "l.tar", "i")
    assert text(tree_of(store, "i"), b"a") == b"1"


def saved(target: Path, image: Blobs, *tags: str, how: str = "") -> Path:
    """What ``docker save`` wrote before it wrote layouts: layers unpacked, shared ones as links."""
    manifest = json.loads(image.manifest)
    config = image.blobs[manifest["config"]["digest"]]
    diff_ids = json.loads(config)["rootfs"]["diff_ids"]
    parts: list[tuple[tarfile.TarInfo, bytes] | tarfile.TarInfo] = []
    first = {}
    for number, (described, diff) in enumerate(zip(manifest["layers"], diff_ids, strict=True)):
        place = f"{number:064x}"
        parts.append(entry(place, tarfile.DIRTYPE))
        parts.append(file(f"{place}/VERSION", b"1.0"))
        if diff in first:
            link = f"../{first[diff]}/layer.tar"
            parts.append(entry(f"{place}/layer.tar", tarfile.SYMTYPE, linkname=link))
        else:
            parts.append(
                file(f"{place}/layer.tar", gzip.decompress(image.blobs[described["digest"]]))
            )
            first[diff] = place
    name = hashlib.sha256(config).hexdigest() + ".json"
    layers = [f"{number:064x}/layer.tar" for number in range(len(diff_ids))]
    listed = [{"Config": name, "RepoTags": list(tags) or None, "Layers": layers}]
    parts += [file(name, config), file("manifest.json", json.dumps(listed).encode())]
    target.write_bytes(packed(tar(*parts), how or "none"))
    return target


@pytest.mark.parametrize("how", ["", "gzip"])
def test_what_docker_save_writes_is_an_image(store: Store, tmp_path: Path, how: str) -> None:
    layers = [tar(file("a", b"1")), tar(file("b", b"2")), tar(file("a", b"1"))]
    image = Blobs(layers, config={"Cmd": ["true"], "Env": ["A=b"]})
    path = saved(tmp_path / "i.tar", image, "app:1", how=how)
    for ref in (None, "app:1"):
        made = store.image(import_image(store, path, "i", ref=ref))
        assert (made.config.cmd, made.config.env["A"], len(made.layers)) == (("true",), "b", 3)
        assert text(tree_of(store, "i"), b"a") == b"1"
    with pytest.raises(ImageError, match="app:1"):
        import_image(store, path, "j", ref="app:2")
    data = path.read_bytes() if not how else gzip.decompress(path.read_bytes())
    path.write_bytes(data.replace(b'"A=b"', b'"A=c"'))
    with pytest.raises(ImageError, match="does not have the digest"):
        import_image(store, path, "j")
    path.write_bytes(data.replace(b"2" + bytes(511), b"3" + bytes(511)))
    with pytest.raises(ImageError, match="announced was"):
        import_image(Store(tmp_path / "fresh"), path, "j")


def test_a_saved_image_cannot_name_files_of_the_host(store: Store, tmp_path: Path) -> None:
    listed = [{"Config": "../../etc/passwd", "RepoTags": None, "Layers": []}]
    path = tmp_path / "i.tar"
    path.write_bytes(tar(file("manifest.json", json.dumps(listed).encode())))
    with pytest.raises(ImageError, match="is not in the archive"):
        import_image(store, path, "i")


def test_the_image_of_this_architecture_and_of_the_asked_name_is_taken(
    store: Store, tmp_path: Path
) -> None:
    arm = Blobs([tar(file("arm"))], architecture="arm64")
    amd = Blobs([tar(file("amd"))])
    import_image(store, layout(tmp_path / "l", arm, amd), "i", architecture="amd64")
    assert set(tree_of(store, "i").children) == {b"amd"}
    import_image(store, tmp_path / "l", "i", architecture="arm64")
    assert set(tree_of(store, "i").children) == {b"arm"}
    with pytest.raises(ImageError, match=r"riscv64, only linux/arm64, linux/amd64"):
        import_image(store, tmp_path / "l", "i", architecture="riscv64")
    named = layout(tmp_path / "n", arm, amd, names=("one", "two"))
    import_image(store, named, "i", ref="two")
    assert set(tree_of(store, "i").children) == {b"amd"}
    with pytest.raises(ImageError, match="no image 'three'"):
        import_image(store, named, "i", ref="three")


def test_a_blob_of_other_bytes_is_refused(store: Store, tmp_path: Path) -> None:
    folder = layout(tmp_path / "l", Blobs([tar(file("a", b"1" * 5000))], how="none"))
    largest = max((folder / "blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
    data = largest.read_bytes()
    largest.write_bytes(data.replace(b"1111", b"1112", 1))
    with pytest.raises(ImageError, match="does not have its digest"):
        import_image(store, folder, "i")
    largest.unlink()
    with pytest.raises((ImageError, FileNotFoundError)):
        import_image(store, folder, "i")
    assert store.names() == {}


def test_a_layer_whose_content_is_not_the_announced_one_is_refused(
    store: Store, tmp_path: Path
) -> None:
    """The blob's digest fits, the diff id of the config does not."""
    image = Blobs([tar(file("a", b"1"))])
    manifest = json.loads(image.manifest)
    config = json.loads(image.blobs[manifest["config"]["digest"]])
    config["rootfs"]["diff_ids"] = ["sha256:" + "0" * 64]
    manifest["config"] = image._add(json.dumps(config).encode(), "c")
    image.manifest = json.dumps(manifest).encode()
    with pytest.raises(ImageError, match="announced was"):
        import_image(store, layout(tmp_path / "l", image), "i")


def test_what_is_none_of_these_is_named(store: Store, tmp_path: Path) -> None:
    (tmp_path / "noise").write_bytes(b"not an archive" * 100)
    with pytest.raises(ImageError, match="damaged"):
        import_image(store, tmp_path / "noise", "i")
    with pytest.raises(ImageError, match="does not exist"):
        import_image(store, tmp_path / "absent", "i")
    with pytest.raises(ImageNotFoundError, match="there are: none"):
        store.lookup("i")
