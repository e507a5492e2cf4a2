"""Boxes on images: every way of mounting layers shows the same, and nothing stays behind."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
from pathlib import Path

import pytest

from baleen.sandbox import Sandbox, UnsupportedError
from baleen.sandbox.backends import probe
from baleen.sandbox.home import Home
from baleen.sandbox.images.base import Config, Image, LayerRef
from baleen.sandbox.images.erofs import ImageWriter
from baleen.sandbox.images.errors import ImageError, ImageNotFoundError
from baleen.sandbox.images.gc import collect
from baleen.sandbox.images.importing import import_image
from baleen.sandbox.images.reader import read_tree
from baleen.sandbox.images.store import Store
from baleen.sandbox.images.tree import OPAQUE, Node, find, folder, hide, put

from ..conftest import edge_pid, kill_edge, needs_privilege, stop_edge, wait_until
from .making import add_file, layer_of, small_rootfs, tar_of

WAYS = ["file", "loop", "directory"]


def offered(way: str) -> bool:
    return way == "directory" or probe().get(f"erofs_{way}") == "ok"


@pytest.fixture
def mount_by(
    request: pytest.FixtureRequest, own_edge: None, monkeypatch: pytest.MonkeyPatch
) -> str:
    """Forces a way of mounting layers on an edge of its own."""
    way: str = request.param
    if not offered(way):
        pytest.skip(f"layers cannot be mounted by {way} here")
    monkeypatch.setenv("BALEEN_IMAGES_MOUNT", way)
    return way


def upper(writer: ImageWriter) -> Node:
    """Hides, replaces and adds, and has what only overlays and image files can have."""
    root = folder()
    hide(root, b"etc/group")
    replaced = folder(0o750, 1000, 1000)
    replaced.xattrs[OPAQUE] = b"y"
    put(root, b"root", replaced)
    add_file(root, b"root/new", b"new", writer)
    add_file(root, b"opt/setuid", b"x" * 5000, writer, mode=0o4755)
    known = find(root, b"opt/setuid")
    assert known is not None
    put(root, b"opt/second", known)
    put(root, b"opt/pipe", Node(stat.S_IFIFO | 0o600))
    put(root, b"opt/\xff odd \n", Node(stat.S_IFLNK | 0o777, target=b"/root/new"))
    return root


def stacked(store: Store, tmp_path: Path, name: str) -> None:
    rootfs = small_rootfs(tmp_path / "rootfs")
    (rootfs / "root/old").write_text("old")
    import_image(store, rootfs, "base", only_root=True)
    base = store.image(store.lookup("base"))
    layers = (*base.layers, LayerRef(store.add_layer(upper)))
    store.add_image(Image(layers, config=Config(env={"X": "y"}, workdir="/opt")), name)


LOOK = (
    "pwd; echo $X; ls /etc /root; stat -c '%a %u' /root /opt/setuid; stat -c %h /opt/second;"
    "cat /root/new; cat /opt/*odd*; test -p pipe && echo pipe;"
    "rm /etc/passwd && echo w > /etc/passwd && touch /root/mine && cat /etc/passwd"
)
SEEN = "/opt\ny\n/etc:\npasswd\n\n/root:\nnew\n750 1000\n4755 0\n2\nnewnewpipe\nw\n"


@needs_privilege
@pytest.mark.parametrize("mount_by", WAYS, indirect=True)
async def test_boxes_see_the_stacked_layers(host: Home, mount_by: str, tmp_path: Path) -> None:
    stacked(Store(host.images), tmp_path, "stacked")
    for _ in range(2):  # what one box writes, the next does not see
        async with await Sandbox.create(image="stacked") as box:
            result = await box.shell(LOOK)
            assert (result.text, result.stderr) == (SEEN, b"")
    loops = subprocess.run(["losetup", "-a"], capture_output=True, text=True).stdout
    assert (str(host.images) in loops) == (mount_by == "loop")
    stop_edge(host.root)
    wait_until(
        lambda: (
            str(host.images)
            not in subprocess.run(["losetup", "-a"], capture_output=True, text=True).stdout
        )
    )


async def test_a_layer_of_other_bytes_is_never_mounted_and_can_be_brought_again(
    host: Home, own_edge: None
) -> None:
    """A lost byte, a cut end, and an image of somebody else's making under a known name."""
    store = Store(host.images)
    foreign = store.layer_path(store.add_layer(layer_of({"/srv/f": b"foreign"}))).read_bytes()

    def make() -> Path:
        digest = store.add_layer(layer_of({"/srv/f": b"own"}))
        store.add_image(Image((LayerRef(digest),), base="host"), "checked")
        return store.layer_path(digest)

    whole = make().read_bytes()
    flipped = bytearray(whole)
    flipped[1024 + 20] ^= 1  # in the superblock, which the kernel parses first
    for number, content in enumerate((bytes(flipped), whole[:-4096], foreign, b"")):
        path = make()
        path.unlink()
        path.write_bytes(content)
        with pytest.raises(ImageError, match="damaged"):
            await Sandbox.create(image="checked")
        assert not path.exists()
        with pytest.raises(ImageError, match="pull or build"):
            await Sandbox.create(image="checked")
        make()
        async with await Sandbox.create(image="checked", labels={"n": str(number)}) as box:
            assert (await box.run(["cat", "/srv/f"])).text == "own"
        stop_edge(host.root)


@needs_privilege
async def test_a_way_that_does_not_exist_is_refused(
    host: Home, own_edge: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BALEEN_IMAGES_MOUNT", "magic")
    stacked(Store(host.images), tmp_path, "stacked")
    with pytest.raises(UnsupportedError, match="one of auto, file, loop, directory"):
        await Sandbox.create(image="stacked")


@needs_privilege
async def test_workspace_and_toolkits_lie_on_the_base(host: Home) -> None:
    store = Store(host.images)
    for name, files, config in (
        ("ws", {"/srv/repo/a": b"ws", "/srv/repo/b": b"ws"}, Config(env={"A": "ws", "B": "ws"})),
        ("tool1", {"/opt/t/x": b"1", "/srv/repo/b": b"1"}, Config(env={"A": "1"})),
        ("tool2", {"/opt/t/x": b"2"}, Config()),
    ):
        digest = store.add_layer(layer_of(files))
        store.add_image(Image((LayerRef(digest),), config=config), name)
    box = await Sandbox.create(image="host", workspace="ws", toolkits=["tool1", "tool2"])
    async with box:
        result = await box.shell("cd /srv/repo; cat a b /opt/t/x; echo $A $B")
        assert result.text == "ws121 ws\n"
    with pytest.raises(ImageNotFoundError, match="'absent'"):
        await Sandbox.create(workspace="absent")
    store.add_image(Image(base="host"), "based")
    with pytest.raises(ImageError, match="cannot be stacked"):
        await Sandbox.create(toolkits=["based"])


async def test_a_workspace_that_brings_its_base_again_is_laid_on_it(host: Home) -> None:
    """A layer that comes twice counts where it lies highest."""
    store = Store(host.images)

    def layer(text: str) -> LayerRef:
        return LayerRef(store.add_layer(layer_of({"/srv/f": text.encode(), f"/srv/{text}": b""})))

    one, two, three = map(layer, ("one", "two", "three"))
    store.add_image(Image((one, two), base="host"), "base")
    store.add_image(Image((one, two, three)), "workspace")
    store.add_image(Image((one,)), "again")
    for toolkits, top in ((), "three"), (("again",), "one"), (("again", "again"), "one"):
        async with await Sandbox.create(
            image="base", workspace="workspace", toolkits=toolkits
        ) as box:
            assert (await box.shell("cat /srv/f; ls /srv")).text == f"{top}f\none\nthree\ntwo\n"


@needs_privilege
async def test_many_layers_stand_on_each_other(host: Home) -> None:
    store = Store(host.images)
    layers = [
        store.add_layer(layer_of({f"/srv/{n}": b"x", "/srv/top": b"%d" % n})) for n in range(64)
    ]
    store.add_image(Image(tuple(map(LayerRef, layers)), base="host"), "many")
    async with await Sandbox.create(image="many") as box:
        assert (await box.shell("ls /srv | wc -l; cat /srv/top")).text == "65\n63"


@needs_privilege
async def test_boxes_share_one_mount_of_a_layer(host: Home) -> None:
    """The page cache is one: what the first box has read, the second need not."""
    store = Store(host.images)
    digest = store.add_layer(layer_of({"/srv/big": os.urandom(1 << 20)}))
    store.add_image(Image((LayerRef(digest),), base="host"), "big")
    devices = set()
    boxes = [await Sandbox.create(image="big") for _ in range(3)]
    for box in boxes:
        devices.add((await box.run(["stat", "-c", "%i %s", "/srv/big"])).text)
    assert len(devices) == 1
    for box in boxes:
        await box.close()


@needs_privilege
async def test_layers_in_use_survive_collections_and_the_death_of_the_edge(host: Home) -> None:
    store = Store(host.images)
    digest = store.add_layer(layer_of({"/srv/f": b"alive"}))
    store.add_image(Image((LayerRef(digest),), base="host"), "used")
    box = await Sandbox.create(image="used")
    store.untag("used")
    collect(host)
    assert store.layer_path(digest).exists()
    kill_edge(host.root)
    collect(host)
    assert store.layer_path(digest).exists()
    assert (await box.run(["cat", "/srv/f"])).text == "alive"
    await box.close()
    stop_edge(host.root)  # with the spares that it kept ready
    assert digest in collect(host).layers
    assert not store.layer_path(digest).exists()
    with pytest.raises(ImageNotFoundError):
        await Sandbox.create(image="used")


@needs_privilege
async def test_concurrent_creates_beside_collections_all_work(host: Home) -> None:
    store = Store(host.images)

    async def one(number: int) -> str:
        with store.writing():
            digest = store.add_layer(layer_of({"/srv/f": b"%d" % number}))
            store.add_image(Image((LayerRef(digest),), base="host"), f"c{number}")
        async with await Sandbox.create(image=f"c{number}") as box:
            store.untag(f"c{number}")
            await asyncio.to_thread(collect, host)
            return (await box.run(["cat", "/srv/f"])).text

    for start in range(0, 24, 8):
        texts = await asyncio.gather(*(one(number) for number in range(start, start + 8)))
        assert texts == [str(number) for number in range(start, start + 8)]


@needs_privilege
async def test_a_committed_box_comes_back_as_it_was(host: Home, tmp_path: Path) -> None:
    store = Store(host.images)
    import_image(store, small_rootfs(tmp_path / "r"), "base", only_root=True)
    make = (
        "mkdir -m 2750 /made && chown 1000:1000 /made && echo hi > /made/f && ln /made/f /made/g;"
        "ln -s f /made/l; chmod 4711 /made/f; rm /etc/group; rm -r /root && mkdir /root;"
        "touch /tmp/t; chown 123:456 /etc/passwd"
    )
    look = (
        "stat -c '%n %a %u:%g' /made /made/f /etc/passwd; stat -c %h /made/f; cat /made/l;"
        "ls /etc /root /tmp"
    )
    async with await Sandbox.create(image="base") as box:
        assert (await box.shell(make)).exit_code == 0
        before = (await box.shell(look)).text
        digest = await box.snapshot("made:1")
        assert (await box.shell(look)).text == before
        assert await box.snapshot() == digest
    assert store.lookup("made:1") == digest
    async with await Sandbox.create(image="made:1") as box:
        assert (await box.shell(look)).text == before
        await box.shell("echo again > /made/h")
        again = await box.snapshot("made:2")
    assert len(store.image(again).layers) == 3
    tree = read_tree(store.layer_path(store.image(digest).layers[1].digest))
    assert {b"proc", b"sys", b"dev", b"run"} & set(tree.children) == set()


@needs_privilege
async def test_a_committed_host_box_keeps_changes_of_every_overlay(host: Home) -> None:
    async with await Sandbox.create() as box:
        await box.shell("echo 1 > /usr/bin/mine; rm /usr/bin/awk; echo 2 > /root/x")
        await box.snapshot("changed")
    async with await Sandbox.create(image="changed") as box:
        result = await box.shell("cat /usr/bin/mine /root/x; test -e /usr/bin/awk || echo gone")
        assert result.text == "1\n2\ngone\n"
        await box.shell("echo 3 >> /usr/bin/mine")
        kill_edge(host.root)
        await box.snapshot("changed")
    async with await Sandbox.create(image="changed") as box:
        assert (await box.run(["cat", "/usr/bin/mine"])).text == "1\n3\n"


@needs_privilege
async def test_a_box_stands_still_while_it_is_committed_and_runs_on(host: Home) -> None:
    store = Store(host.images)
    async with await Sandbox.create() as box:
        writer = "while :; do echo x >> /root/a; echo x >> /root/b; done"
        await box.shell(f"({writer}) >/dev/null 2>&1 &")
        for _ in range(5):
            image = store.image(await box.snapshot("moving"))
            tree = read_tree(store.layer_path(image.layers[0].digest))
            sizes = [find(tree, path) for path in (b"root/a", b"root/b")]
            first, second = (node.size if node is not None else 0 for node in sizes)
            assert first - second in (0, 2)  # a moment of it, not a stretch
            assert first > 0
        before = len(await box.files.read("/root/a"))
        await asyncio.sleep(0.2)
        assert len(await box.files.read("/root/a")) > before


def test_an_ordinary_user_has_images_as_folders(host: Home, tmp_path: Path) -> None:
    """The same store and names; layers are unpacked, everything belongs to the one user."""
    from ..test_ordinary_user import UID, _as_user, _python

    python = _python()
    home = Path("/tmp", f"baleen-images-{os.getpid()}")
    home.mkdir(mode=0o755)
    archive = home / "rootfs.tar"
    archive.write_bytes(tar_of(small_rootfs(tmp_path / "r")))
    program = (
        "import os, sys; from baleen.sandbox.home import Home;"
        "from baleen.sandbox.images.store import Store; import baleen.sandbox.sync as s;"
        "from baleen.sandbox.images.importing import import_image;"
        "from baleen.sandbox.images.base import *; from baleen.sandbox.images.tree import *;"
        "home = Home.default(); home.prepare(); store = Store(home.images);"
        "import_image(store, sys.argv[1], 'base'); base = store.image(store.lookup('base'));\n"
        "def fill(w):\n r = folder(); hide(r, b'etc/group'); d = folder();"
        " d.xattrs[OPAQUE] = b'y'; put(r, b'root', d); return r\n"
        "top = store.add_layer(fill);"
        "store.add_image(Image((*base.layers, LayerRef(top))), 'two');"
        "box = s.Sandbox.create(image='two');"
        "print(box.shell('ls /etc /root; id -u; echo x > /etc/passwd; cat /etc/passwd').text);"
        "box.close()"
    )
    from baleen.sandbox.binary import box_binary

    binary = home / "baleen-box"
    binary.write_bytes(box_binary().read_bytes())
    binary.chmod(0o755)
    for path in (home, binary, archive):
        os.chown(path, UID, UID)
    import sys

    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "BALEEN_SANDBOX_BINARY": str(binary),
        "BALEEN_SANDBOX_IDLE_EXIT_S": "0.2",
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    variables = [f"{key}={value}" for key, value in environment.items()]
    try:
        done = subprocess.run(
            [*_as_user(), "-i", *variables, python, "-c", program, str(archive)],
            capture_output=True,
            text=True,
            cwd=home,
            timeout=60,
            check=False,
        )
        wait_until(lambda: edge_pid(home / ".local/share/baleen") is None)
    finally:
        subprocess.run(["rm", "-rf", home], check=False)
    assert done.stdout == "/etc:\npasswd\n\n/root:\n0\nx\n\n", done.stderr[-2000:]


@pytest.fixture(autouse=True)
def fresh_names(host: Home) -> object:
    yield
    store = Store(host.images)
    for name in store.names():
        store.untag(name)
