"""Runs every benchmark of this folder, one after the other; a failure stops none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HELPERS = {"gateway_engine.py", "gateway_relay.py", "parts.py", "results.py", "run_all.py"}


def main() -> int:
    folder = Path(__file__).parent
    failed = []
    for script in sorted(folder.glob("*.py")):
        if script.name not in HELPERS:
            print(f"== {script.name}", flush=True)
            if subprocess.run([sys.executable, str(script)], cwd=folder.parent).returncode:
                failed.append(script.name)
    print(f"failed: {', '.join(failed)}" if failed else "all benchmarks done")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
