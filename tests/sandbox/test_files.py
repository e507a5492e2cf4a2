"""``box.files``: whole contents, and no way out of the box or into the host by links and names."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from baleen.errors import UsageError
from baleen.sandbox import BoxFileError, Sandbox
from baleen.sandbox.files import CHUNK_BYTES


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
