"""Archives: everything that real layers hold is kept, nothing leads out."""

from __future__ import annotations

import gzip
import io
import os
import stat
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from baleen.sandbox.images.errors import ImageError, UnsafeImageError
from baleen.sandbox.images.importing import import_image
from baleen.sandbox.images.limits import Limits
from baleen.sandbox.images.reader import content, read_tree
from baleen.sandbox.images.store import Store
from baleen.sandbox.images.tree import Node, find, walk
from baleen.sandbox.images.unpack import unpack

from .conftest import needs_root
from .making import entry, facts, file, packed, tar


def imported(store: Store, data: bytes, **options: object) -> Node:
    path = store.new_partial()
    path.write_bytes(data)
    digest = import_image(store, path, "t", **options)  # type: ignore[arg-type]
    return read_tree(store.layer_path(store.image(digest).layers[0].digest))


def text(root: Node, path: bytes) -> bytes:
    node = find(root, path)
    assert node is not None, path
    return content(node)


@needs_root
def test_a_layer_is_what_tar_unpacks(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep/er").mkdir(parents=True)
    (source / "deep/er/file").write_bytes(os.urandom(70_000))
    (source / "hard").hardlink_to(source / "deep/er/file")
    (source / "link").symlink_to("deep/er")
    (source / "umläut \n name").write_text("x")
    (source / ("long" * 60)).write_text("y")
    os.mkfifo(source / "pipe")
    os.mknod(source / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    (source / "deep").chmod(0o2751)
    os.chown(source / "hard", 1234, 70_000)
    (source / "setuid").touch(mode=0o4755)
    (source / "setuid").chmod(0o4755)
    for kind in ("gnu", "pax", "ustar"):
        archive = tmp_path / f"{kind}.tar"
        extra = ["--exclude=long*", "--owner=0:0", "--group=0:0"] if kind == "ustar" else []
        command = ["tar", f"--format={kind}", *extra, "-C", str(source), "-cf", str(archive), "."]
        subprocess.run(command, check=True)
        theirs, ours = tmp_path / f"theirs-{kind}", tmp_path / f"ours-{kind}"
        theirs.mkdir()
        ours.mkdir()
        subprocess.run(["tar", "-C", theirs, "-xpf", archive, "--numeric-owner"], check=True)
        unpack(imported(store, archive.read_bytes()), ours, as_root=True)
        assert facts(str(ours)) == facts(str(theirs)), kind


@pytest.mark.parametrize("how", ["none", "gzip", "xz", "zstd"])
def test_packed_archives_give_the_same_layer(store: Store, how: str) -> None:
    data = tar(entry("etc", tarfile.DIRTYPE), file("etc/hosts", b"127.0.0.1 x\n" * 1000))
    assert text(imported(store, packed(data, how)), b"etc/hosts") == b"127.0.0.1 x\n" * 1000


def test_whiteouts_hide_what_is_below_and_not_what_the_layer_itself_brings(store: Store) -> None:
    root = imported(
        store,
        tar(
            file(".wh.gone"),
            file("again", b"new"),
            file(".wh.again"),
            file("d/.wh..wh..opq"),
            file("d/kept", b"1"),
            file(".wh.e"),
            file("e/inside", b"2"),
            file(".wh..wh.plnk/55.77", b""),
        ),
    )
    assert root.children[b"gone"].is_whiteout
    assert text(root, b"again") == b"new"
    assert root.children[b"d"].is_opaque
    assert text(root, b"d/kept") == b"1"
    assert root.children[b"e"].is_opaque
    assert text(root, b"e/inside") == b"2"


@pytest.mark.parametrize(
    "attempt",
    [
        file("../escape"),
        file("a/../../escape"),
        file("a/../b"),
        entry("l", tarfile.LNKTYPE, linkname="../../etc/passwd"),
        file("x" * 300),
        entry("a/..", tarfile.DIRTYPE),
    ],
)
def test_paths_that_climb_are_refused(store: Store, attempt: object) -> None:
    with pytest.raises(UnsafeImageError):
        imported(store, tar(file("a/ok"), attempt))  # type: ignore[arg-type]
    assert store.names() == {}
    assert list((store.root / "layers").iterdir()) == []


def test_links_lead_only_into_the_image(store: Store, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    data = tar(
        entry("out", tarfile.SYMTYPE, linkname=str(outside)),
        file("out/planted", b"x"),
        entry("up", tarfile.SYMTYPE, linkname="../../../../../.."),
        file("up/too", b"y"),
        file("/absolute", b"z"),
    )
    root = imported(store, data)
    assert list(outside.iterdir()) == []
    assert not (Path("/") / "too").exists()
    assert text(root, b"too") == b"y"
    assert text(root, b"absolute") == b"z"
    assert find(root, b"out/planted") is not None
    # The control: the attempt works where somebody follows the link.
    (tmp_path / "naive").mkdir()
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        archive.extractall(tmp_path / "naive", filter="fully_trusted", members=list(archive)[:2])
    assert (outside / "planted").read_bytes() == b"x"


def test_a_hard_link_to_what_is_absent_is_an_error(store: Store) -> None:
    with pytest.raises(ImageError, match="absent"):
        imported(store, tar(entry("l", tarfile.LNKTYPE, linkname="nowhere")))
    with pytest.raises(UnsafeImageError, match="folder"):
        imported(
            store,
            tar(entry("d", tarfile.DIRTYPE), entry("l", tarfile.LNKTYPE, linkname="d")),
        )


def test_links_in_a_circle_end(store: Store) -> None:
    root = imported(
        store,
        tar(
            entry("a", tarfile.SYMTYPE, linkname="b"),
            entry("b", tarfile.SYMTYPE, linkname="a"),
            file("a/x", b"1"),
        ),
    )
    assert text(root, b"b/x") == b"1"  # the folder has replaced the link that led nowhere


def test_attributes_that_mean_something_are_kept_and_overlay_marks_are_not(store: Store) -> None:
    info, data = file("f", b"x")
    info.pax_headers = {
        "SCHILY.xattr.user.note": "h\u00e4",
        "SCHILY.xattr.trusted.overlay.opaque": "y",
        "SCHILY.xattr.security.selinux": "s",
        "SCHILY.xattr.user.overlay.opaque": "y",
    }
    node = find(imported(store, tar((info, data))), b"f")
    assert node is not None
    assert node.xattrs["user.note"] == "h\u00e4".encode()
    assert "trusted.overlay.opaque" not in node.xattrs
    assert "security.selinux" not in node.xattrs


def test_a_bomb_is_refused_by_its_ratio(store: Store) -> None:
    limits = Limits(free_bytes=1 << 20)
    bomb = gzip.compress(tar(file("zeros", bytes(32 << 20))))
    with pytest.raises(UnsafeImageError, match="times its size"):
        imported(store, bomb, limits=limits)
    imported(store, tar(file("zeros", bytes(32 << 20))), limits=limits)  # unpacked it is no bomb


def test_counts_and_sizes_are_capped(store: Store) -> None:
    many = tar(*(file(f"f{index}") for index in range(50)))
    with pytest.raises(UnsafeImageError, match="49 entries"):
        imported(store, many, limits=Limits(max_entries=49))
    with pytest.raises(UnsafeImageError, match="1000 are allowed"):
        imported(store, tar(file("f", bytes(1001))), limits=Limits(max_bytes=1000))
    with pytest.raises(UnsafeImageError, match="more than 1000 bytes"):
        imported(
            store, tar(file("f", bytes(600)), file("g", bytes(600))), limits=Limits(max_bytes=1000)
        )


def test_a_sparse_file_keeps_its_size_and_takes_no_room(store: Store, tmp_path: Path) -> None:
    huge = tmp_path / "huge"
    with huge.open("wb") as out:
        out.truncate(256 << 20)
        out.seek(128 << 20)
        out.write(b"middle")
    archive = tmp_path / "a.tar"
    subprocess.run(["tar", "-S", "-C", tmp_path, "-cf", archive, "huge"], check=True)
    root = imported(store, archive.read_bytes())
    node = root.children[b"huge"]
    assert node.size == 256 << 20
    layer = next((store.root / "layers").iterdir())
    assert layer.stat().st_blocks * 512 < 8 << 20


@pytest.mark.parametrize("keep", [0.3, 0.7, 0.95])
@pytest.mark.parametrize("how", ["none", "gzip", "xz", "zstd"])
def test_a_cut_archive_is_an_error(store: Store, how: str, keep: float) -> None:
    data = packed(tar(file("a", os.urandom(100_000)), file("b", os.urandom(50_000))), how)
    with pytest.raises(ImageError):
        imported(store, data[: int(len(data) * keep)])
    assert list((store.root / "layers").iterdir()) == []
    assert len(list((store.root / "partial").iterdir())) == 1  # the archive itself


def test_what_fills_up_the_last_block_may_be_missing_and_nothing_else(store: Store) -> None:
    """Writers that forget it exist (umoci), and Docker reads what they write."""
    whole = tar(file("a", b"first"), file("b", b"x" * 700))
    end = whole.rindex(b"x") + 1
    for length in (end, end + 1, end + 323, end + 324, len(whole)):
        assert text(imported(store, whole[:length]), b"b") == b"x" * 700, length
    for length in (end - 1, end - 650, end - 800, end - 1211):
        with pytest.raises(ImageError, match="damaged"):
            imported(store, whole[:length])


def test_a_header_that_is_damaged_is_not_taken_for_the_end(store: Store) -> None:
    whole = bytearray(tar(file("a", b"first"), file("b", b"second"), file("c", b"third")))
    assert text(imported(store, bytes(whole)), b"c") == b"third"
    whole[1024 + 150] ^= 0xFF  # in the checksum of the second header
    with pytest.raises(ImageError, match="damaged"):
        imported(store, bytes(whole))


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=40), st.integers(0, 5000), st.sampled_from(["none", "gzip", "zstd"]))
def test_no_archive_crashes_the_importer(store: Store, noise: bytes, place: int, how: str) -> None:
    data = tar(
        file("a", b"x" * 700),
        entry("l", tarfile.LNKTYPE, linkname="a"),
        entry("s", tarfile.SYMTYPE, linkname="a"),
        file(".wh.b"),
    )
    at = place % len(data)
    damaged = data[:at] + noise + data[at + len(noise) :]
    try:
        for _, node in walk(imported(store, packed(damaged, how))):
            if node.is_file:
                content(node)
    except (ImageError, UnsafeImageError):
        pass
