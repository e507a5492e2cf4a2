"""Building: every instruction has its effect in a real box."""

from __future__ import annotations

import hashlib
import http.server
import io
import tarfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from baleen.errors import UsageError
from baleen.sandbox import Sandbox
from baleen.sandbox.home import Home
from baleen.sandbox.images.dockerfile.builder import Options, build
from baleen.sandbox.images.errors import BuildError
from baleen.sandbox.images.gc import collect
from baleen.sandbox.images.importing import import_image
from baleen.sandbox.images.store import Store

from ...conftest import needs_privilege
from ..making import file, small_rootfs, tar


@pytest.fixture
def context(tmp_path: Path) -> Path:
    folder = tmp_path / "context"
    folder.mkdir()
    return folder


@pytest.fixture
def make(host: Home, context: Path) -> Callable[..., Any]:
    """Builds a Dockerfile's text under the name ``t`` and returns what it said."""

    async def work(text: str, **options: Any) -> list[str]:
        (context / "Dockerfile").write_text(text)
        said: list[str] = []
        await build(host, context, "t", options=Options(**options), progress=said.append)
        return said

    return work


async def shown(line: str, **options: Any) -> str:
    async with await Sandbox.create(image="t") as box:
        result = await box.shell(line, **options)
        assert result.exit_code == 0, result
        return result.text


@needs_privilege
async def test_steps_see_each_other_and_the_config(make: Any) -> None:
    await make(
        "FROM host\n"
        "ARG WHO=nobody\n"
        "ARG DEFAULT=d\n"
        'ENV A=1 B="two words" PATH=/opt/bin:$PATH\n'
        "ENV OLD style value\n"
        "WORKDIR /srv/app\n"
        "WORKDIR sub\n"
        "RUN pwd > /srv/where && echo $WHO $DEFAULT $A > ./who\n"
        "RUN rm /usr/bin/awk && echo changed > /etc/shells\n"
        "USER user\n"
        "RUN id -un > /tmp/who\n",
        build_args={"WHO": "me"},
    )
    text = await shown("pwd; id -un; cat /srv/where who /tmp/who; echo $A $B $OLD; echo $WHO end")
    assert text.split("\n")[:7] == [
        "/srv/app/sub",
        "user",
        "/srv/app/sub",
        "me d 1",
        "user",
        "1 two words style value",
        "end",
    ]
    assert (await shown("cat /etc/shells; ls /usr/bin/awk || true")).strip() == "changed"


@needs_privilege
async def test_copy_follows_dockers_rules_of_targets(make: Any, context: Path) -> None:
    (context / "d/e").mkdir(parents=True)
    for name in ("a.txt", "b.txt", "d/c.txt", "d/e/f.txt", "d/skip.log", "odd [name].txt"):
        (context / name).write_text(name)
    (context / "d/link").symlink_to("c.txt")
    (context / "d/run.sh").write_text("#!/bin/sh\necho ran\n")
    (context / "d/run.sh").chmod(0o755)
    (context / ".dockerignore").write_text("**/*.log\n")
    await make(
        "FROM host\n"
        "WORKDIR /w\n"
        "COPY a.txt new-name\n"
        "COPY a.txt into/\n"
        "COPY *.txt many/\n"
        "COPY d content\n"
        "COPY d /w/content/deeper/\n"
        'COPY ["odd [name].txt", "/w/json name"]\n'
        "COPY --chown=user:1000 --chmod=640 a.txt /usr/local/owned\n"
        "COPY a.txt /bin/through-a-link\n"
    )
    text = await shown(
        "find . | sort; cat content/link; content/run.sh; stat -c '%u %g %a' /usr/local/owned;"
        "cat /usr/bin/through-a-link; cat 'json name'"
    )
    assert text.splitlines() == [
        ".",
        "./content",
        "./content/c.txt",
        "./content/deeper",
        "./content/deeper/c.txt",
        "./content/deeper/e",
        "./content/deeper/e/f.txt",
        "./content/deeper/link",
        "./content/deeper/run.sh",
        "./content/e",
        "./content/e/f.txt",
        "./content/link",
        "./content/run.sh",
        "./into",
        "./into/a.txt",
        "./json name",
        "./many",
        "./many/a.txt",
        "./many/b.txt",
        "./many/odd [name].txt",
        "./new-name",
        "d/c.txtran",
        "1000 1000 640",
        "a.txtodd [name].txt",
    ]


@needs_privilege
async def test_a_copied_folder_keeps_the_modes_of_the_folders_it_joins(
    make: Any, context: Path
) -> None:
    (context / "d").mkdir(mode=0o700)
    (context / "d/x").write_text("x")
    await make(
        "FROM host\nRUN mkdir -m 1770 /shared && chown user /shared\n"
        "COPY d /shared\nCOPY d/x /shared/sub/y\n"
    )
    assert await shown("stat -c '%a %u' /shared /shared/sub; ls /shared") == (
        "1770 1000\n755 0\nsub\nx\n"
    )


async def test_add_unpacks_archives_and_fetches_urls(make: Any, context: Path) -> None:
    data = tar(file("inner/x", b"from tar"), file(".wh.plain", b"kept as it is"))
    (context / "a.tar").write_bytes(data)
    with tarfile.open(context / "b.tar.gz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("zipped"), io.BytesIO())
    (context / "plain.txt").write_text("plain")
    (context / "served").mkdir()
    (context / "served/file.bin").write_bytes(b"over http")
    digest = hashlib.sha256(b"over http").hexdigest()
    with serving(context / "served") as url:
        await make(
            f"FROM host\nADD a.tar b.tar.gz /un/\nADD plain.txt /un/\nCOPY a.tar /un/kept.tar\n"
            f"ADD --checksum=sha256:{digest} {url}/file.bin /un/\n"
        )
        text = await shown("cd /un; find . -type f | sort; cat inner/x file.bin")
        assert text.split() == [
            "./.wh.plain",
            "./file.bin",
            "./inner/x",
            "./kept.tar",
            "./plain.txt",
            "./zipped",
            "from",
            "tarover",
            "http",
        ]
        with pytest.raises(BuildError, match=f"has digest sha256:{digest}"):
            await make(f"FROM host\nADD --checksum=sha256:{'0' * 64} {url}/file.bin /x\n")
        with pytest.raises(BuildError, match="404"):
            await make(f"FROM host\nADD {url}/absent /x\n")


class serving:
    """A web server on loopback for a folder."""

    def __init__(self, folder: Path) -> None:
        class Quiet(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

        handler = partial(Quiet, directory=str(folder))
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    def __enter__(self) -> str:
        self._thread.start()
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


async def test_stages_hand_over_files_and_unneeded_ones_are_not_built(
    make: Any, context: Path
) -> None:
    said = await make(
        "ARG NUMBER=7\n"
        "FROM host AS tools\nRUN mkdir -p /out/d && echo made > /out/d/x && ln -s d/x /out/l\n"
        "FROM host AS broken\nRUN exit 3\n"
        "FROM tools AS more\nARG NUMBER\nRUN echo $NUMBER > /out/number && rm /out/d/x\n"
        "FROM host\nCOPY --from=more /out /taken\nCOPY --from=tools /out/d/* /taken/other/\n"
        "COPY --from=0 /usr/bin/env /taken/env\nCOPY --from=0 /etc/shells /taken/\n"
    )
    assert not any("exit 3" in line for line in said)
    text = await shown("cd /taken; find . | sort; cat number other/x; ./env echo runs; cat shells")
    assert text.split("\n")[:12] == [
        ".",
        "./d",
        "./env",
        "./l",
        "./number",
        "./other",
        "./other/x",
        "./shells",
        "7",
        "made",
        "runs",
        "/bin/sh",
    ]
    await make("FROM host AS a\nRUN echo a > /x\nFROM a AS b\nRUN echo b > /x\n", target="a")
    assert await shown("cat /x") == "a\n"
    with pytest.raises(UsageError, match="there are: a, b"):
        await make("FROM host AS a\nFROM a AS b\n", target="c")


async def test_from_scratch_and_from_an_imported_image(
    make: Any, host: Home, context: Path, tmp_path: Path
) -> None:
    import_image(Store(host.images), small_rootfs(tmp_path / "root"), "small:1", only_root=True)
    await make('FROM small:1\nRUN rm /etc/group && echo x > /root/x\nCMD ["cat", "/root/x"]\n')
    assert await shown("cat /root/x; ls /etc; ls /usr/bin 2>/dev/null || true") == "x\npasswd\n"
    (context / "static").write_bytes(b"\x7fELF")
    await make('FROM scratch\nCOPY static /bin/app\nENTRYPOINT ["/bin/app"]\nCMD a b\n')
    image = Store(host.images).image(Store(host.images).lookup("t"))
    assert image.config.entrypoint == ("/bin/app",)
    assert image.config.cmd == ("/bin/sh", "-c", "a b")
    with pytest.raises(BuildError, match=r"Dockerfile:2: FROM: no image 'absent:9'"):
        await make("FROM host AS x\nFROM absent:9\n", may_pull=False)


async def test_here_documents_run_and_become_files(make: Any) -> None:
    await make(
        "FROM host\nENV NAME=world\n"
        "RUN <<SCRIPT\nset -e\nX=inner\necho $X > /one\nSCRIPT\n"
        "RUN cat > /two <<A && cat >> /two <<B\nfirst\nA\nsecond\nB\n"
        "COPY <<a.txt <<'b.txt' /files/\nhello $NAME\na.txt\nhello $NAME\nb.txt\n"
        'SHELL ["/bin/bash", "-o", "pipefail", "-c"]\n'
        "RUN [[ -n $BASH_VERSION ]] && echo bash > /three\n"
        'RUN ["/bin/sh", "-c", "echo exec > /four"]\n'
    )
    assert await shown("cat /one /two /files/a.txt /files/b.txt /three /four") == (
        "inner\nfirst\nsecond\nhello world\nhello $NAME\nbash\nexec\n"
    )


async def test_a_here_document_with_an_interpreter_is_a_program(make: Any) -> None:
    text = "FROM host\nRUN <<EOF\n#!/usr/bin/python3\nprint({}, file=open('/srv/o', 'w'))\nEOF\n"
    for number in (1, 2):
        await make(text.format(number))
        assert await shown("cat /srv/o; ls /dev/shm") == f"{number}\n"
    with pytest.raises(BuildError, match=r"Dockerfile:2: RUN: exit code 3"):
        await make("FROM host\nRUN <<EOF\n#!/usr/bin/python3\nraise SystemExit(3)\nEOF\n")


async def test_several_sources_need_a_folder_as_docker_says(make: Any, context: Path) -> None:
    for name in ("a", "b"):
        (context / name).write_text(name)
    for target in ("/srv/x", "x"):
        with pytest.raises(BuildError, match=r"Dockerfile:2: COPY: 2 sources.*end it with /"):
            await make(f"FROM host\nCOPY a b {target}\n")
    await make("\ufeffFROM host\nWORKDIR /w\nCOPY a b .\nCOPY a b /srv/x/\n")
    assert await shown("ls /w /srv/x") == "/srv/x:\na\nb\n\n/w:\na\nb\n"


async def test_config_instructions_are_kept(make: Any, host: Home) -> None:
    await make(
        "FROM host\nLABEL a=1 b='x y'\nEXPOSE 80 53/udp\nVOLUME /data /more\nSTOPSIGNAL 9\n"
        'HEALTHCHECK --interval=1m30s --retries=2 CMD ["true"]\nCMD sleep 1\n'
        'ENTRYPOINT ["e"]\nMAINTAINER me <m@x>\nONBUILD RUN echo triggered > /t\n'
    )
    config = Store(host.images).image(Store(host.images).lookup("t")).config
    assert config.labels == {"a": "1", "b": "x y", "maintainer": "me <m@x>"}
    assert config.exposed == ("80/tcp", "53/udp")
    assert config.volumes == ("/data", "/more")
    assert config.healthcheck == {
        "Test": ["CMD", "true"],
        "Interval": 90_000_000_000,
        "Retries": 2,
    }
    assert (config.cmd, config.entrypoint) == (("/bin/sh", "-c", "sleep 1"), ("e",))
    store = Store(host.images)
    store.add_image(store.image(store.lookup("t")), "parent")
    await make("FROM parent\nRUN cat /t\nHEALTHCHECK NONE\n")
    assert await shown("cat /t") == "triggered\n"
    config = store.image(store.lookup("t")).config
    assert config.on_build == ()
    assert config.healthcheck == {"Test": ["NONE"]}


async def test_unchanged_steps_come_from_the_cache_and_changed_ones_do_not(
    make: Any, host: Home, context: Path
) -> None:
    (context / "in").write_text("1")
    text = "FROM host\nRUN date +%N > /stamp\nCOPY in /in\nRUN date +%N > /late\n"
    await make(text)
    first = await shown("cat /stamp /late")
    assert sum("cache" in line for line in await make(text)) == 3
    assert await shown("cat /stamp /late") == first
    (context / "in").write_text("2")
    said = await make(text)
    assert sum("cache" in line for line in said) == 1
    assert (await shown("cat /stamp")) == first.split("\n")[0] + "\n"
    assert (await shown("cat /stamp /late")) != first
    await make(text, use_cache=False)
    assert await shown("cat /stamp") != first.split("\n")[0] + "\n"
    Store(host.images).untag("t")
    collect(host, cache_days=-1)
    assert sum("cache" in line for line in await make(text)) == 0


async def test_build_arguments_change_what_is_cached(make: Any) -> None:
    text = "FROM host\nARG X\nRUN echo $X > /x\n"
    await make(text, build_args={"X": "1"})
    await make(text, build_args={"X": "2"})
    assert await shown("cat /x") == "2\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("FROM host\n\nRUN echo before; exit 7\n", r"Dockerfile:3: RUN: exit code 7(.|\n)*before"),
        ("FROM host\nCOPY absent /x\n", r"Dockerfile:2: COPY: 'absent' is not in the context"),
        ("FROM host\nCOPY x\n", r"Dockerfile:2: COPY: a source and a target are needed"),
        ("FROM host\nRUN --mount=type=cache x\n", r"Dockerfile:2: RUN: --mount is not supported"),
        ("FROM host\nENV a\n", r"Dockerfile:2: ENV: 'a' has no value"),
        ("FROM host\nCOPY --from=later /x /\nFROM host AS later\n", r"Dockerfile:2: COPY"),
        ("FROM host\nCOPY --chown=nobody9 x /\n", r"Dockerfile:2: COPY: user 'nobody9'"),
        ("FROM ${NONE}\n", r"Dockerfile:1: FROM: the image's name is empty"),
        ("FROM host\nWORKDIR /etc/passwd\n", r"Dockerfile:2: WORKDIR: /etc/passwd is a file"),
        ("FROM host\nEXPOSE x\n", r"Dockerfile:2: EXPOSE: 'x' is not PORT"),
        ("FROM host\nENV A=${B\n", r"Dockerfile:2: ENV: a \$\{ is not closed"),
    ],
)
async def test_errors_name_file_and_line(make: Any, context: Path, text: str, message: str) -> None:
    (context / "x").write_text("x")
    with pytest.raises(BuildError, match=message) as caught:
        await make(text, may_pull=False, **({"target": "0"} if "later" in text else {}))
    assert caught.value.line > 0


async def test_a_step_that_runs_out_of_time_is_named(make: Any) -> None:
    with pytest.raises(BuildError, match=r"Dockerfile:2: RUN: ran out of time"):
        await make("FROM host\nRUN sleep 60\n", step_timeout_s=0.3)


async def test_links_of_the_context_do_not_lead_out(
    make: Any, context: Path, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("secret")
    (context / "out").symlink_to(tmp_path / "secret")
    (context / "folder").symlink_to(tmp_path)
    for source in ("out", "folder/secret"):
        with pytest.raises(BuildError, match="leads out of the context"):
            await make(f"FROM host\nCOPY {source} /x\n")
    (context / "d").mkdir()
    (context / "d/out").symlink_to(tmp_path / "secret")
    await make("FROM host\nCOPY d /d\n")
    assert (await shown("readlink /d/out; cat /d/out || true")).strip() == str(tmp_path / "secret")


@pytest.fixture(autouse=True)
def fresh_names(host: Home) -> Iterator[None]:
    yield
    store = Store(host.images)
    for name in store.names():
        store.untag(name)


@pytest.mark.ordinary_user
async def test_an_ordinary_users_build_gives_everything_to_root(make: Any, context: Path) -> None:
    """His boxes have one user, so owners are left out and USER is kept for others' edges."""
    (context / "a").write_text("a")
    await make(
        "FROM host\n"
        "COPY --chown=1000:1000 --chmod=640 a /srv/a\n"
        "USER 1000\n"
        "RUN id -u > /srv/who && echo b > /srv/b && rm /etc/shells\n"
    )
    text = await shown("cat /srv/who; stat -c '%u %g %a' /srv/a /srv/b; ls /etc/shells || true")
    assert text.split("\n") == ["0", "0 0 640", "0 0 644", ""]
    async with await Sandbox.create(image="t") as box:
        assert box.config.user == "1000"
