"""``box.files``: whole contents, and no way out of the box or into the host by links and names."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from baleen.errors import UsageError
from baleen.sandbox import BoxFileError, FileInfo, Sandbox
from baleen.sandbox.files import CHUNK_BYTES, MAX_READ_BYTES
from baleen.sandbox.home import Home


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, 2 * CHUNK_BYTES + 5])
async def test_what_is_written_is_read_back(box: Sandbox, size: int) -> None:
    data = bytes(i * 31 % 256 for i in range(size))
    await box.files.write("/srv/deep/file", data, mode=0o640)
    assert await box.files.read("/srv/deep/file") == data
    assert (await box.run(["stat", "-c", "%a %s", "/srv/deep/file"])).text == f"640 {size}\n"
    assert [entry.name for entry in await box.files.list("/srv/deep")] == ["file"]


async def test_a_shorter_write_replaces_the_whole_file(box: Sandbox) -> None:
    await box.files.write("/tmp/f", "long content")
    await box.files.write("/tmp/f", "x")
    assert await box.files.read("/tmp/f") == b"x"


async def test_listing_shows_kinds_without_following_links(box: Sandbox) -> None:
    await box.shell("cd /srv; mkdir d; echo 1 > f; ln -s /etc l; mkfifo p")
    kinds = {entry.name: entry.kind for entry in await box.files.list("/srv")}
    assert kinds == {"d": "directory", "f": "file", "l": "link", "p": "other"}
    await box.files.remove("/srv/d")
    await box.files.remove("/srv/l")
    assert (await box.run(["ls", "/srv"])).text.split() == ["f", "p"]
    assert (await box.run(["ls", "/etc/passwd"])).exit_code == 0


async def test_failures_are_typed_and_carry_the_errno(box: Sandbox) -> None:
    await box.run(["mkfifo", "/tmp/pipe"])
    for path, number in (("/no/such", errno.ENOENT), ("/etc", errno.EISDIR), ("/tmp/pipe", 0)):
        with pytest.raises(BoxFileError) as caught:
            await box.files.read(path)
        assert caught.value.errno == number
        assert path in str(caught.value)
    with pytest.raises(OSError, match="longer than"):
        await box.files.read("/bin/ls", max_bytes=100)
    with pytest.raises(BoxFileError):
        await box.files.write("/proc/version", "x")
    with pytest.raises(UsageError, match="absolute"):
        await box.files.read("etc/passwd")


async def test_links_in_the_box_lead_to_the_boxs_files_only(box: Sandbox, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("of the host")
    await box.shell(
        f"ln -s {secret} /tmp/link; ln -s ../../../../../..{secret} /tmp/up; "
        f"ln -s /proc/1/root{secret} /tmp/proc"
    )
    for name in ("link", "up", "proc"):
        with pytest.raises(BoxFileError):
            await box.files.read(f"/tmp/{name}")
        with pytest.raises(BoxFileError):
            await box.files.download(f"/tmp/{name}", tmp_path / name)
    assert secret.read_text() == "of the host"


async def test_a_folder_goes_up_and_comes_down_the_same(box: Sandbox, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "run.sh").write_text("#!/bin/sh\necho ran\n")
    (source / "run.sh").chmod(0o755)
    (source / "sub" / "data").write_bytes(bytes(range(256)))
    outside = tmp_path / "outside"
    outside.write_text("not yours")
    (source / "leak").symlink_to(outside)
    await box.files.upload(source, "/srv/up")
    assert (await box.run(["/srv/up/run.sh"])).text == "ran\n"
    assert (await box.run(["ls", "/srv/up"])).text.split() == ["run.sh", "sub"]
    await box.shell(
        "ln -s /etc/passwd /srv/up/link; ln -s /etc /srv/up/folder; mkfifo /srv/up/pipe"
    )
    await box.files.download("/srv/up", tmp_path / "down")
    down = tmp_path / "down"
    assert sorted(p.relative_to(down).as_posix() for p in down.rglob("*")) == [
        "run.sh",
        "sub",
        "sub/data",
    ]
    assert (down / "sub" / "data").read_bytes() == bytes(range(256))
    assert (down / "run.sh").stat().st_mode & 0o777 == 0o755


async def test_a_download_never_replaces_or_follows_what_is_on_the_host(
    box: Sandbox, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "link").symlink_to(victim)
    await box.files.write("/tmp/f", "evil")
    for target in ("victim", "link"):
        with pytest.raises(FileExistsError):
            await box.files.download("/tmp/f", tmp_path / target)
    assert victim.read_text() == "precious"


async def test_setuid_bits_do_not_reach_the_host(box: Sandbox, tmp_path: Path) -> None:
    await box.shell("cp /bin/true /tmp/s; chmod 6755 /tmp/s")
    await box.files.download("/tmp/s", tmp_path / "s")
    assert (tmp_path / "s").stat().st_mode & 0o7777 == 0o755


async def test_names_that_are_no_text_travel_both_ways(box: Sandbox, tmp_path: Path) -> None:
    names = [b"a\xff", b"sp ace", b"new\nline", b"-dash", "\u00e4".encode()]
    source = tmp_path / "source"
    source.mkdir()
    for name in names:
        Path(os.fsdecode(bytes(source) + b"/" + name)).write_bytes(name)
    await box.files.upload(source, "/srv/odd")
    listed = [os.fsencode(entry.name) for entry in await box.files.list("/srv/odd")]
    assert sorted(listed) == sorted(names)
    assert await box.files.read("/srv/odd/a\udcff") == names[0]
    await box.files.download("/srv/odd", tmp_path / "down")
    down = {path.name: path.read_bytes() for path in (tmp_path / "down").iterdir()}
    assert down == {os.fsdecode(name): name for name in names}
    await box.files.remove(Path("/srv/odd/a\udcff"))
    assert len(await box.files.list(Path("/srv/odd"))) == 4


async def test_a_long_file_is_copied_in_pieces_beyond_what_read_takes(
    host: Home, tmp_path: Path
) -> None:
    size = MAX_READ_BYTES + 3
    async with await Sandbox.create(memory_mb=512) as box:
        await box.run(["sh", "-c", f"head -c {size} /dev/zero > /srv/long; echo end >> /srv/long"])
        with pytest.raises(BoxFileError, match="download"):
            await box.files.read("/srv/long")
        await box.files.download("/srv/long", tmp_path / "long")
        assert (tmp_path / "long").stat().st_size == size + 4
        assert (tmp_path / "long").read_bytes()[-5:] == b"\0end\n"
        await box.files.upload(tmp_path / "long", "/srv/again")
        assert (await box.run(["cmp", "/srv/long", "/srv/again"])).exit_code == 0


async def test_a_sparse_file_takes_no_more_of_the_host_than_the_copy_may(
    box: Sandbox, tmp_path: Path
) -> None:
    await box.shell("mkdir /srv/d; truncate -s 3M /srv/d/a; truncate -s 1T /srv/d/b")
    with pytest.raises(BoxFileError, match="max_bytes"):
        await box.files.download("/srv/d", tmp_path / "d", max_bytes=8 << 20)
    assert [path.name for path in (tmp_path / "d").iterdir()] == ["a"]
    await box.files.download("/srv/d/a", tmp_path / "alone", max_bytes=3 << 20)
    with pytest.raises(BoxFileError, match="max_bytes"):
        await box.files.download("/srv/d/a", tmp_path / "less", max_bytes=(3 << 20) - 1)
    assert not (tmp_path / "less").exists()


async def test_folders_without_end_are_refused(box: Sandbox, tmp_path: Path) -> None:
    await box.shell("cd /srv; for n in $(seq 200); do mkdir d && cd d; done")
    with pytest.raises(BoxFileError, match="deeper"):
        await box.files.download("/srv/d", tmp_path / "d")
    assert (await box.run(["true"])).exit_code == 0


async def test_hard_links_come_down_as_files_of_their_own(box: Sandbox, tmp_path: Path) -> None:
    await box.shell("mkdir /srv/d; cd /srv/d; echo x > a; ln a b; ln -s /etc/shadow c")
    await box.files.download("/srv/d", tmp_path / "d")
    a, b = tmp_path / "d/a", tmp_path / "d/b"
    assert sorted(path.name for path in (tmp_path / "d").iterdir()) == ["a", "b"]
    assert (a.read_text(), b.read_text()) == ("x\n", "x\n")
    assert a.stat().st_ino != b.stat().st_ino


async def test_a_folder_that_turns_into_a_link_during_an_upload_leads_nowhere(
    box: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Swapped between the look at its names and the reading of its files."""
    sub, elsewhere = tmp_path / "source/sub", tmp_path / "elsewhere"
    for folder in (sub, elsewhere):
        folder.mkdir(parents=True)
        (folder / "file").write_text(folder.name)
    ask = box.files._ask

    async def ask_and_swap(op: str, path: str, **arguments: Any) -> Any:
        if (op, path) == ("mkdir", "/srv/up/sub"):
            sub.rename(tmp_path / "moved")
            sub.symlink_to(elsewhere)
        return await ask(op, path, **arguments)

    monkeypatch.setattr(box.files, "_ask", ask_and_swap)
    await box.files.upload(tmp_path / "source", "/srv/up")
    assert (sub / "file").read_text() == "elsewhere"  # this is what its name leads to now
    assert await box.files.list("/srv/up/sub") == []


async def test_what_is_made_on_the_host_hangs_on_the_folder_made_before(
    box: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder of the copy is swapped for a link between its making and what goes into it."""
    await box.shell("mkdir -p /srv/d/sub; echo evil > /srv/d/sub/file")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    whole_list = box.files.list

    async def list_and_swap(path: str) -> list[FileInfo]:
        entries = await whole_list(path)
        if path == "/srv/d/sub":
            (tmp_path / "down/sub").rename(tmp_path / "moved")
            (tmp_path / "down/sub").symlink_to(elsewhere)
        return entries

    monkeypatch.setattr(box.files, "list", list_and_swap)
    await box.files.download("/srv/d", tmp_path / "down")
    assert list(elsewhere.iterdir()) == []
    assert (tmp_path / "moved/file").read_text() == "evil\n"
