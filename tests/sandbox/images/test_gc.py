"""Garbage goes, and nothing else: not what is named, used, being made, or just being looked up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from baleen.sandbox.home import Home
from baleen.sandbox.images.base import Image, LayerRef
from baleen.sandbox.images.errors import ImageNotFoundError
from baleen.sandbox.images.gc import collect
from baleen.sandbox.images.resolve import taken
from baleen.sandbox.images.store import Store
from baleen.sandbox.images.usage import usage

from .making import layer_of


def make(store: Store, name: str, *contents: str) -> list[str]:
    layers = [store.add_layer(layer_of({text: text.encode() * 5000})) for text in contents]
    store.add_image(Image(tuple(LayerRef(digest) for digest in layers)), name)
    return layers


def note_box(home: Home, box_id: str, layers: list[str]) -> Path:
    folder = home.boxes / box_id
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "box.json"
    path.write_text(json.dumps({"version": 1, "layers": layers}))
    return path


def test_an_unnamed_image_goes_and_a_shared_layer_stays(home: Home, store: Store) -> None:
    base, only_a = make(store, "a", "base", "a")
    _, only_b = make(store, "b", "base", "b")
    assert collect(home).layers == []
    store.untag("a")
    plan = collect(home, dry_run=True)
    assert plan.layers == [only_a]
    assert store.layer_path(only_a).exists()
    found = collect(home)
    assert found.layers == [only_a]
    assert found.freed_bytes > 5000
    assert store.layer_path(base).exists()
    assert store.layer_path(only_b).exists()


def test_what_a_box_stands_on_stays_until_the_box_has_ended(home: Home, store: Store) -> None:
    layers = make(store, "a", "one", "two")
    note = note_box(home, "b1", layers)
    store.untag("a")
    assert collect(home).layers == []
    note.unlink()
    assert sorted(collect(home).layers) == sorted(layers)


def test_what_a_living_writer_added_or_found_stays(home: Home, store: Store) -> None:
    (old,) = make(store, "old", "old")
    store.untag("old")
    with store.writing():
        digest = store.add_layer(layer_of({"x": b"x"}))
        assert store.has_layer(old)  # found again: the writer counts on it
        assert collect(home).layers == []
        store.add_image(Image((LayerRef(old), LayerRef(digest))), "new")
    assert collect(home).layers == []
    store.untag("new")
    assert len(collect(home).layers) == 2


def test_what_a_killed_writer_left_goes(home: Home, store: Store) -> None:
    program = (
        "import sys, time; from pathlib import Path;"
        "from baleen.sandbox.images.store import Store;"
        "store = Store(Path(sys.argv[1])); lease = store.writing(); lease.__enter__();"
        "store.new_partial().write_bytes(b'half'); print('ready', flush=True); time.sleep(60)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", program, str(store.root)],
        stdout=subprocess.PIPE,
        env=environment,
    ) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        collect(home)
        assert len(list((store.root / "partial").iterdir())) == 1
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    collect(home)
    assert list((store.root / "partial").iterdir()) == []
    assert list((store.root / "leases").iterdir()) == []


def test_creates_beside_collections_have_their_layers_or_fail_before(
    home: Home, store: Store
) -> None:
    """Names come and go, boxes take layers, garbage is collected: a noted layer is never gone."""
    until = time.monotonic() + 4
    lost: list[str] = []
    taken_count = [0]
    errors: list[BaseException] = []

    def name_and_forget(number: int) -> None:
        while time.monotonic() < until:
            with store.writing():
                make(store, f"n{number}", f"layer{number}", "common")
            time.sleep(0.002)
            store.untag(f"n{number}")

    def take(number: int) -> None:
        count = 0
        while time.monotonic() < until:
            count += 1
            box = f"b{number}-{count}"
            try:
                with taken(f"n{number % 2}", home) as rootfs:
                    path = note_box(home, box, list(rootfs.digests))
            except ImageNotFoundError:
                continue
            for _ in range(3):
                lost.extend(x for x in rootfs.digests if not store.layer_path(x).exists())
                time.sleep(0.002)
            taken_count[0] += 1
            path.unlink()

    def clean() -> None:
        while time.monotonic() < until:
            collect(home)

    def guarded(work: object, *arguments: int) -> None:
        try:
            work(*arguments)  # type: ignore[operator]
        except BaseException as error:
            errors.append(error)

    jobs = [(name_and_forget, 0), (name_and_forget, 1), (take, 0), (take, 1), (clean,), (clean,)]
    threads = [threading.Thread(target=guarded, args=job) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert lost == []
    assert taken_count[0] > 20


def test_a_collection_killed_at_any_point_leaves_a_store_that_works(
    home: Home, store: Store
) -> None:
    program = (
        "import sys, time; from pathlib import Path;"
        "from baleen.sandbox.home import Home; from baleen.sandbox.images.gc import collect;"
        "print('go', flush=True); collect(Home(Path(sys.argv[1])))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for attempt in range(3):
        kept = make(store, "kept", "kept", "base")
        for number in range(15):
            make(store, f"g{number}", f"garbage{attempt}-{number}", "base")
            store.untag(f"g{number}")
        with subprocess.Popen(
            [sys.executable, "-c", program, str(home.root)],
            stdout=subprocess.PIPE,
            env=environment,
        ) as collector:
            assert collector.stdout is not None
            collector.stdout.readline()
            time.sleep(0.002 * attempt)
            collector.kill()
        assert all(store.layer_path(digest).exists() for digest in kept)
        assert store.image(store.lookup("kept"))
    collect(home)
    assert sorted(p.name for p in (store.root / "layers").iterdir()) == sorted(
        f"{digest}.erofs" for digest in kept
    )


def test_shared_and_unique_bytes_are_told_apart(store: Store) -> None:
    base, only_a = make(store, "a", "base", "a")
    make(store, "b", "base")
    shown = {row.name: row for row in usage(store)}
    assert shown["b:latest"].unique_bytes == 0
    assert shown["b:latest"].shared_bytes == shown["b:latest"].bytes > 0
    assert shown["a:latest"].bytes > shown["a:latest"].unique_bytes > 0
    assert shown["a:latest"].shared_bytes == shown["b:latest"].bytes
    assert base != only_a


def test_a_store_of_another_version_is_refused(home: Home, store: Store) -> None:
    (store.root / "version").write_text("99\n")
    with pytest.raises(Exception, match="version 99"):
        Store(home.images)
