"""Models by Hub id, against a hub that this test serves on loopback."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from baleen.errors import CheckpointError
from baleen.model import Transformer

pytest.importorskip("huggingface_hub")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
Make = Callable[..., Transformer]


class Hub:
    """Serves one folder as `baleen/tiny`; counts what is asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fetched: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                if path.startswith("/api/models/baleen/tiny"):
                    answer = outer.tree() if "/tree/" in path else outer.summary()
                    self.answer(json.dumps(answer).encode(), "application/json", {})
                    return
                name = path.removeprefix("/baleen/tiny/resolve/").partition("/")[2]
                file = outer.folder / name
                if not path.startswith("/baleen/tiny/resolve/") or not file.is_file():
                    self.send_error(404)
                    return
                data = file.read_bytes()
                etag = hashlib.sha256(data).hexdigest()
                if self.command == "GET":
                    outer.fetched.append(name)
                headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}
                self.answer(data, "application/octet-stream", headers)

            def answer(self, data: bytes, kind: str, headers: dict[str, str]) -> None:
                self.send_response(200)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(data)))
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(data)

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def summary(self) -> dict[str, object]:
        siblings = [{"rfilename": path.name} for path in sorted(self.folder.iterdir())]
        return {"id": "baleen/tiny", "sha": COMMIT, "siblings": siblings}

    def tree(self) -> list[dict[str, object]]:
        return [
            {"type": "file", "path": path.name, "size": path.stat().st_size, "oid": "0" * 40}
            for path in sorted(self.folder.iterdir())
        ]


LOAD_TWICE = """
import sys, torch
from baleen.model import Transformer
for _ in range(2):
    model = Transformer.from_pretrained("baleen/tiny")
torch.save(model.state_dict(), sys.argv[1])
"""
LOAD_ANOTHER = """
from baleen.errors import CheckpointError
from baleen.model import Transformer
try:
    Transformer.from_pretrained("baleen/other")
except CheckpointError as error:
    print(error)
"""


@pytest.fixture
def served(make_model: Make, tmp_path: Path) -> Iterator[tuple[Hub, Transformer]]:
    folder = tmp_path / "served"
    model = make_model(seed=5)
    model.save_pretrained(folder, format="fp32", max_shard_bytes=900_000)
    (folder / "pytorch_model.bin").write_bytes(b"the same weights once more")
    found = Hub(folder)
    thread = threading.Thread(target=found.server.serve_forever)
    thread.start()
    yield found, model
    found.server.shutdown()
    thread.join()
    found.server.server_close()


def run(program: str, home: Path, *arguments: str, **variables: str) -> str:
    """In a process of its own: the hub's library reads its variables when it is imported."""
    environment = {**os.environ, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", **variables}
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, text=True, check=True
    ).stdout


def test_an_id_is_fetched_once_into_the_hubs_cache_and_loads_offline_from_then_on(
    served: tuple[Hub, Transformer], tmp_path: Path
) -> None:
    found, model = served
    home, saved = tmp_path / "home", tmp_path / "saved"
    run(LOAD_TWICE, home, str(saved), HF_ENDPOINT=found.url)
    expected = model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in torch.load(saved).items())
    names = {path.name for path in found.folder.iterdir()} - {"pytorch_model.bin"}
    assert sorted(found.fetched) == sorted(names)
    assert (home / "hub" / "models--baleen--tiny" / "snapshots" / COMMIT).is_dir()
    saved.unlink()
    run(LOAD_TWICE, home, str(saved), HF_HUB_OFFLINE="1")
    assert torch.load(saved).keys() == expected.keys()
    assert sorted(found.fetched) == sorted(names)


def test_an_id_that_is_nowhere_is_one_clear_error(
    served: tuple[Hub, Transformer], tmp_path: Path
) -> None:
    found, _ = served
    said = run(LOAD_ANOTHER, tmp_path / "home", HF_ENDPOINT=found.url)
    assert said.startswith("baleen/other is no folder here and cannot be fetched: ")


def test_a_path_that_is_no_folder_is_not_looked_up(served: tuple[Hub, Transformer]) -> None:
    found, _ = served
    with pytest.raises(CheckpointError, match=r"\./no/such/folder is no folder"):
        Transformer.from_pretrained("./no/such/folder")
    assert found.fetched == []
