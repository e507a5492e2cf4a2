"""Pulling from a registry that asks for logins, fails, cuts lines and lies."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from baleen.sandbox.images import registry as client
from baleen.sandbox.images.errors import ImageError, PullError
from baleen.sandbox.images.oci import own_architecture
from baleen.sandbox.images.pulling import pull
from baleen.sandbox.images.reference import DOCKER_HUB, Reference
from baleen.sandbox.images.store import Store

from .loopback_registry import PASSWORD, TOKEN, USER, LoopbackRegistry, serving
from .making import Blobs, digest, entry, file, tar
from .test_importing import text, tree_of

BIG = os.urandom(700_000)


@pytest.fixture
def loopback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LoopbackRegistry]:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.setattr(client, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(client, "MAX_PAUSE_S", 0.05)
    with serving(LoopbackRegistry()) as registry:
        image = Blobs(
            [tar(file("base", b"0")), tar(file("big", BIG)), tar(file(".wh.base"))],
            config={"Env": ["A=1"]},
            architecture=own_architecture(),
        )
        registry.add("team/app", "v1", image)
        yield registry


def log_in(tmp_path: Path, host: str) -> None:
    (tmp_path / "docker").mkdir()
    auth = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    (tmp_path / "docker/config.json").write_text(json.dumps({"auths": {host: {"auth": auth}}}))


def assert_whole(store: Store, name: str) -> None:
    root = tree_of(store, name)
    assert set(root.children) == {b"big"}
    assert text(root, b"big") == BIG
    assert [p.name for p in (store.root / "partial").iterdir()] == []


def test_an_image_is_pulled_with_layers_and_config(
    store: Store, loopback: LoopbackRegistry
) -> None:
    seen: list[tuple[str, int, int]] = []
    name = loopback.name("team/app:v1")
    pull(store, name, progress=lambda *about: seen.append(about))
    assert_whole(store, name)
    assert store.image(store.lookup(name)).config.env == {"A": "1"}
    assert max(here for _, here, _ in seen) == max(size for _, _, size in seen) > 700_000
    asked = len(loopback.asked)
    pull(store, name, alias="short:1")
    assert loopback.count("/blobs/") == 4 + 1  # the config again, no layer
    assert len(loopback.asked) == asked + 2
    assert store.lookup("short:1") == store.lookup(name)


@pytest.mark.parametrize("auth", ["basic", "bearer"])
def test_a_login_is_taken_from_dockers_config(
    store: Store, loopback: LoopbackRegistry, tmp_path: Path, auth: str
) -> None:
    loopback.auth = auth
    name = loopback.name("team/app:v1")
    with pytest.raises(PullError, match=r"docker login|DENIED"):
        pull(store, name)
    log_in(tmp_path, f"127.0.0.1:{loopback.port}")
    pull(store, name)
    assert_whole(store, name)


def test_a_registry_that_gives_tokens_to_anybody_needs_no_login(
    store: Store, loopback: LoopbackRegistry
) -> None:
    loopback.auth, loopback.anonymous_tokens = "bearer", True
    pull(store, loopback.name("team/app:v1"), alias="i")
    assert_whole(store, "i")
    assert loopback.count("/token") == 1


def test_a_cut_line_goes_on_where_it_was_cut(store: Store, loopback: LoopbackRegistry) -> None:
    loopback.cut_after = [100_000] * 5
    pull(store, loopback.name("team/app:v1"), alias="i")
    assert_whole(store, "i")
    ranges = [wanted for _, wanted, _ in loopback.asked if wanted]
    assert ranges == [f"bytes={100_000 * (index + 1)}-" for index in range(5)]


def test_without_ranges_the_blob_is_fetched_anew(store: Store, loopback: LoopbackRegistry) -> None:
    loopback.cut_after, loopback.ranges = [500_000], False
    pull(store, loopback.name("team/app:v1"), alias="i")
    assert_whole(store, "i")


def test_a_later_pull_goes_on_from_the_partial_file(
    store: Store, loopback: LoopbackRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "ATTEMPTS", 1)
    loopback.cut_after = [300_000]
    with pytest.raises(PullError, match="goes on there"):
        pull(store, loopback.name("team/app:v1"), alias="i")
    assert store.names() == {}
    pull(store, loopback.name("team/app:v1"), alias="i")
    assert_whole(store, "i")
    assert ("bytes=300000-") in [wanted for _, wanted, _ in loopback.asked]


def test_failures_that_pass_are_waited_for(store: Store, loopback: LoopbackRegistry) -> None:
    loopback.failures = [503, 429, 0, 500, 502, 0, 504]
    pull(store, loopback.name("team/app:v1"), alias="i")
    assert_whole(store, "i")


def test_failures_that_stay_end_it(store: Store, loopback: LoopbackRegistry) -> None:
    loopback.failures = [503] * 50
    with pytest.raises(PullError, match="failed 6 times"):
        pull(store, loopback.name("team/app:v1"))
    assert len(loopback.asked) == client.ATTEMPTS


def test_bytes_of_another_digest_are_refused(store: Store, loopback: LoopbackRegistry) -> None:
    big = max(loopback.blobs, key=lambda name: len(loopback.blobs[name]))
    loopback.corrupt = {big}
    with pytest.raises(PullError, match="other bytes"):
        pull(store, loopback.name("team/app:v1"))
    assert store.names() == {}
    loopback.corrupt = {"manifest"}
    wanted = next(key for key in loopback.manifests if "sha256" in key).partition(":")[2]
    with pytest.raises(PullError, match="another manifest"):
        pull(store, loopback.name(f"team/app@{wanted}"))


def test_a_config_of_another_digest_is_refused(store: Store, loopback: LoopbackRegistry) -> None:
    manifest = json.loads(loopback.manifests["team/app:v1"][1])
    loopback.corrupt = {manifest["config"]["digest"]}
    with pytest.raises(PullError, match="another config"):
        pull(store, loopback.name("team/app:v1"))


def test_of_an_index_the_own_architecture_is_taken(
    store: Store, loopback: LoopbackRegistry
) -> None:
    images = [Blobs([tar(file(name))], architecture=name) for name in ("s390x", "amd64", "arm64")]
    loopback.add("team/many", "1", *images)
    for name in ("amd64", "arm64"):
        pull(store, loopback.name("team/many:1"), alias="i", architecture=name)
        assert set(tree_of(store, "i").children) == {name.encode()}
    with pytest.raises(ImageError, match="linux/s390x, linux/amd64, linux/arm64"):
        pull(store, loopback.name("team/many:1"), architecture="riscv64")


def test_a_login_does_not_follow_a_redirect_to_another_host(
    store: Store, loopback: LoopbackRegistry, tmp_path: Path
) -> None:
    log_in(tmp_path, f"127.0.0.1:{loopback.port}")
    loopback.auth = "bearer"
    with serving(LoopbackRegistry()) as storage:
        storage.blobs = loopback.blobs
        loopback.redirect = f"http://localhost:{storage.port}"
        pull(store, loopback.name("team/app:v1"), alias="i")
    assert_whole(store, "i")
    assert {authorization for _, _, authorization in storage.asked} == {None}
    assert f"Bearer {TOKEN}" in {authorization for _, _, authorization in loopback.asked}


def test_what_is_not_there_is_said_with_the_registrys_words(
    store: Store, loopback: LoopbackRegistry
) -> None:
    with pytest.raises(PullError, match=r"404 MANIFEST_UNKNOWN.*check name and tag"):
        pull(store, loopback.name("team/app:v9"))
    with pytest.raises(PullError, match="404"):
        pull(store, loopback.name("nobody/nothing"))


def test_nobody_there_is_a_pull_error(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FIRST_PAUSE_S", 0.01)
    with pytest.raises(PullError, match="failed 6 times"):
        pull(store, "127.0.0.1:1/team/app:v1")


def test_a_layer_that_climbs_is_refused_and_leaves_nothing(
    store: Store, loopback: LoopbackRegistry
) -> None:
    evil = Blobs([tar(entry("../x"))], architecture=own_architecture())
    loopback.add("evil", "1", evil)
    with pytest.raises(Exception, match="leaves its root"):
        pull(store, loopback.name("evil:1"))
    assert store.names() == {}


@pytest.mark.parametrize(
    ("text", "host", "repository", "wanted"),
    [
        ("debian", DOCKER_HUB, "library/debian", "latest"),
        ("docker.io/library/debian:12", DOCKER_HUB, "library/debian", "12"),
        ("team/app:v1", DOCKER_HUB, "team/app", "v1"),
        ("registry.example.org/a/b/c:x.y-z", "registry.example.org", "a/b/c", "x.y-z"),
        ("localhost/a", "localhost", "a", "latest"),
        ("h:5000/a@sha256:" + "a" * 64, "h:5000", "a", "sha256:" + "a" * 64),
    ],
)
def test_names_are_read_as_docker_reads_them(
    text: str, host: str, repository: str, wanted: str
) -> None:
    found = Reference.parse(text)
    assert (found.host, found.repository, found.wanted) == (host, repository, wanted)


@pytest.mark.parametrize("text", ["", "UPPER", "a b", "a:", "a@sha256:12", "../x", "h.io/", "a//b"])
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(ImageError):
        Reference.parse(text)


def test_digests_are_checked_before_they_become_paths() -> None:
    from baleen.sandbox.images.oci import plain_digest

    assert plain_digest(digest(b"x"))
    for wrong in ("sha256:../../x", "md5:" + "a" * 64, "a" * 64, "sha256:" + "A" * 64):
        with pytest.raises(ImageError):
            plain_digest(wrong)
