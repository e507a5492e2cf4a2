"""What the writer writes, the kernel, the reader and erofs-utils read alike."""

from __future__ import annotations

import io
import os
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from baleen.sandbox.images.erofs import BLOCK, ImageWriter
from baleen.sandbox.images.errors import ImageError
from baleen.sandbox.images.reader import content, read_tree
from baleen.sandbox.images.tree import Node, find, folder, hide, put, walk
from baleen.sandbox.images.unpack import unpack

from .conftest import mounted, needs_root
from .making import add_file, facts

EDGE_SIZES = (0, 1, 100, 4031, 4032, 4033, 4095, 4096, 4097, 8192, (1 << 20) + 1, 3_000_123)


def write(path: Path, root_of: Any) -> str:
    with path.open("w+b") as image:
        writer = ImageWriter(image)
        return writer.finish(root_of(writer))


def odd_tree(writer: ImageWriter) -> Node:
    """Everything that an image can hold, sizes around every boundary included."""
    root = folder(0o755)
    for index, size in enumerate(EDGE_SIZES):
        data = os.urandom(size)
        xattrs = {"user.x": b"v" * index, "trusted.y": b"\1"} if index % 2 else {}
        fields = {"uid": 1000 + index, "gid": 70_000, "mtime_ns": 1_234_567_890_123_456_789}
        add_file(root, b"sizes/%d" % size, data, writer, xattrs=xattrs, **fields)
    known = find(root, b"sizes/4097")
    assert known is not None
    put(root, b"second name", known)
    put(root, b"link", Node(stat.S_IFLNK | 0o777, target=b"sizes/1"))
    put(root, b"long link", Node(stat.S_IFLNK | 0o777, target=b"x/" * 2047))
    put(root, b"null", Node(stat.S_IFCHR | 0o666, rdev=1 << 8 | 3))
    put(root, b"disk", Node(stat.S_IFBLK | 0o660, rdev=254 << 8 | 0x12 | 1 << 20))
    put(root, b"pipe", Node(stat.S_IFIFO | 0o600))
    put(root, b"\xff\xfe/\xc3\xa4 \n", Node(stat.S_IFREG | 0o4755))
    hide(root, b"sizes/gone")
    for index in range(3000):
        put(root, b"many/%s%d" % (b"n" * (index % 200), index), Node(stat.S_IFREG | 0o644))
    return root


@needs_root
def test_the_kernel_shows_the_tree_that_was_written(tmp_path: Path) -> None:
    write(tmp_path / "image", odd_tree)
    (tmp_path / "unpacked").mkdir(mode=0o755)
    unpack(read_tree(tmp_path / "image"), tmp_path / "unpacked", as_root=True)
    with mounted(tmp_path / "image", tmp_path / "at") as at:
        shown = facts(str(at))
        assert shown == facts(str(tmp_path / "unpacked"))
        assert len(shown) == 3000 + len(EDGE_SIZES) + 11
        for size in EDGE_SIZES:
            assert shown[f"sizes/{size}"][3] == size
        assert shown["second name"][6] == 2
        assert os.getxattr(at / "sizes/1", "user.x") == b"v"


@pytest.mark.skipif(shutil.which("fsck.erofs") is None, reason="erofs-utils is not installed")
def test_the_checker_of_erofs_utils_finds_no_fault(tmp_path: Path) -> None:
    write(tmp_path / "image", odd_tree)
    done = subprocess.run(["fsck.erofs", tmp_path / "image"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    image = bytearray((tmp_path / "image").read_bytes())
    image[1024 + 16] ^= 0xFF  # the count of inodes is nobody's business, the magic is
    image[1024] ^= 0xFF
    (tmp_path / "broken").write_bytes(image)
    assert subprocess.run(["fsck.erofs", tmp_path / "broken"], capture_output=True).returncode != 0


def test_the_same_tree_gives_the_same_bytes(tmp_path: Path) -> None:
    def tree(writer: ImageWriter) -> Node:
        root = folder(0o700, 1, 2, 3)
        add_file(root, b"a/b", b"x" * 5000, writer)
        return root

    assert write(tmp_path / "one", tree) == write(tmp_path / "two", tree)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_zeros_take_no_room(tmp_path: Path) -> None:
    size = 1 << 28

    def tree(writer: ImageWriter) -> Node:
        root = folder()
        node = Node(stat.S_IFREG | 0o644)
        writer.add(node, lambda count: bytes(count), size)
        put(root, b"sparse", node)
        return root

    write(tmp_path / "image", tree)
    assert (tmp_path / "image").stat().st_size > size
    assert (tmp_path / "image").stat().st_blocks * 512 < 1 << 20


def test_data_that_ends_early_is_an_error(tmp_path: Path) -> None:
    with (tmp_path / "image").open("w+b") as image, pytest.raises(ImageError, match="3 of 10"):
        ImageWriter(image).add(Node(stat.S_IFREG), io.BytesIO(b"abc").read, 10)


NAMES = st.binary(min_size=1, max_size=255).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..")
)
FILES = st.dictionaries(
    st.lists(NAMES, min_size=1, max_size=4).map(tuple),
    st.tuples(
        st.sampled_from([0, 1, 4000, 4032, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 7]),
        st.integers(0, 0o7777),
        st.integers(0, 2**32 - 1),
        st.dictionaries(
            st.text("abcxyz.", min_size=1, max_size=40).map(lambda x: f"user.{x}"),
            st.binary(max_size=300),
            max_size=3,
        ),
    ),
    max_size=30,
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(FILES)
def test_what_is_read_is_what_was_written(tmp_path: Path, files: dict[Any, Any]) -> None:
    kept: dict[bytes, bytes] = {}

    def tree(writer: ImageWriter) -> Node:
        root = folder()
        for parts, (size, mode, owner, xattrs) in files.items():
            data = os.urandom(size)
            path = b"/".join(parts)
            add_file(root, path, data, writer, mode=mode, uid=owner, gid=owner, xattrs=xattrs)
        for path, node in walk(root):
            if node.is_file:
                kept[path] = b""
        return root

    write(tmp_path / "image", tree)
    shown = {path: node for path, node in walk(read_tree(tmp_path / "image")) if node.is_file}
    assert set(shown) == set(kept)
    for parts, (size, mode, owner, xattrs) in files.items():
        node = shown.get(b"/" + b"/".join(parts))
        if node is None:
            continue  # a later path made it a folder
        if all(other == parts or other[: len(parts)] != parts for other in files):
            assert (node.size, node.mode & 0o7777, node.uid) == (size, mode, owner)
            assert node.xattrs == xattrs
            assert len(content(node)) == size


@pytest.mark.parametrize("size", [0, 100, 1152, 4095, 9000])
def test_a_cut_image_is_an_error_not_a_crash(tmp_path: Path, size: int) -> None:
    write(tmp_path / "image", odd_tree)
    data = (tmp_path / "image").read_bytes()
    (tmp_path / "cut").write_bytes(data[:size])
    with pytest.raises(ImageError):
        read_tree(tmp_path / "cut")


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 255), st.integers(0, 10_000), st.integers(0, 2))
def test_a_damaged_image_never_crashes_the_reader(
    tmp_path: Path, value: int, place: int, where: int
) -> None:
    def tree(writer: ImageWriter) -> Node:
        root = folder()
        for index in range(20):
            add_file(root, b"d%d/f%d" % (index % 3, index), b"x" * index * 300, writer)
        return root

    path = tmp_path / "image"
    write(path, tree)
    data = bytearray(path.read_bytes())
    start = (1024, len(data) - BLOCK, 0)[where]
    data[(start + place % (128 if where == 0 else BLOCK)) % len(data)] = value
    path.write_bytes(data)
    try:
        for _, node in walk(read_tree(path)):
            if node.is_file:
                content(node)
    except ImageError:
        pass
