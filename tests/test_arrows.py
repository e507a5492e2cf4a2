"""Imports run one way, and heavy libraries stay out of the packages that promise to be light."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import baleen

ROOT = Path(baleen.__file__).parent
ALLOWED = {
    "protocol": set(),
    "sandbox": set(),
    "assets": set(),
    "kernels": set(),
    "cache": {"kernels"},
    "model": {"cache", "kernels", "assets"},
    "engine": {"model", "cache", "assets", "protocol"},
    "agent": {"engine", "protocol", "sandbox", "assets"},
    "rl": {"agent", "engine", "model", "cache", "kernels", "protocol", "sandbox", "assets"},
    "server": {"engine", "protocol", "assets", "sandbox"},
    "cli": {"server", "agent", "rl", "engine", "model", "protocol", "sandbox", "assets", "cache"},
}
"""Which of our packages a package may import, besides itself and `baleen.errors`."""

SERVER_ROOMS = {
    "upstreams": set(),
    "store": set(),
    "observing": set(),
    "wire": set(),
    "requests": {"observing"},
    "answers": {"requests", "store"},
    "doors": {"requests", "answers", "wire", "gateway"},
}
"""Which rooms of the server a room may import at import time, besides itself."""

SERVER_COMMON = {"base", "config", "errors", "prefix", "room", "vocabulary"}
"""Files of the server that every room may import."""

HEAVY = {"aiohttp", "torch", "numpy", "safetensors", "tokenizers", "transformers", "matplotlib"}
LIGHT = {"protocol", "sandbox", "cli", "agent", "assets"}
"""Packages that must import with nothing heavy installed."""


def imports(path: Path, *, top_level: bool) -> set[str]:
    """Absolute names of the modules that a file imports; only those at import time if asked."""
    tree = ast.parse(path.read_text("utf-8"))
    package = ("baleen", *path.relative_to(ROOT).parts[:-1])
    nodes = _import_time(tree) if top_level else ast.walk(tree)
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            names.add(".".join((*base, *((node.module or "").split(".") if node.module else ()))))
    return names


def _import_time(tree: ast.Module) -> list[ast.stmt]:
    """Statements that run on import, `if TYPE_CHECKING` and function bodies left out."""
    found: list[ast.stmt] = []
    pending = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        found.append(node)
        pending += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]
    return found


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def test_every_package_has_its_arrows_written_down() -> None:
    packages = {path.name for path in ROOT.iterdir() if (path / "__init__.py").exists()}
    assert packages == set(ALLOWED)


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_a_package_imports_only_what_lies_below_it(package: str) -> None:
    for path in sources(package):
        for name in imports(path, top_level=False):
            parts = name.split(".")
            if parts[0] == "baleen" and len(parts) > 1 and parts[1] != "errors":
                assert parts[1] == package or parts[1] in ALLOWED[package], (path, name)


@pytest.mark.parametrize("package", sorted(LIGHT))
def test_light_packages_import_nothing_heavy(package: str) -> None:
    for path in sources(package):
        for name in imports(path, top_level=True):
            assert name.split(".")[0] not in HEAVY, (path, name)


def test_every_room_of_the_server_has_its_arrows_written_down() -> None:
    assert {path.parent.name for path in (ROOT / "server").glob("*/__init__.py")} == set(
        SERVER_ROOMS
    )


@pytest.mark.parametrize("room", sorted(SERVER_ROOMS))
def test_a_room_of_the_server_imports_only_what_lies_below_it(room: str) -> None:
    allowed = SERVER_ROOMS[room] | SERVER_COMMON | {room}
    for path in sources(f"server/{room}"):
        for name in imports(path, top_level=True):
            if name.startswith("baleen.server."):
                assert name.split(".")[2] in allowed, (path, name)
