"""The package's surface."""

import subprocess
import sys

import baleen.protocol


def test_all_names_exist_and_are_public() -> None:
    for name in baleen.protocol.__all__:
        assert not name.startswith("_")
        assert hasattr(baleen.protocol, name)
    exported = {name for name in vars(baleen.protocol) if not name.startswith("_")}
    modules = {name for name in exported if f"baleen.protocol.{name}" in sys.modules}
    assert exported - modules == set(baleen.protocol.__all__)


def test_import_needs_nothing_but_python_and_our_errors() -> None:
    script = (
        "import sys; before = set(sys.modules); import baleen.protocol;"
        "print(*sorted(set(sys.modules) - before))"
    )
    output = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout.split()
    foreign = {m for m in output if m.partition(".")[0] not in sys.stdlib_module_names}
    ours = {m for m in foreign if m.startswith("baleen")}
    assert foreign == ours
    assert {m for m in ours if not m.startswith("baleen.protocol")} == {"baleen", "baleen.errors"}
