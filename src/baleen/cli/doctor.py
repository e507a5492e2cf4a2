"""`baleen doctor`: what this machine can do, what will be used, what to install for the rest."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import shutil
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import click

from baleen.agent.config import NANO

_SANDBOX_NEEDED = ("linux", "will use")
_MODEL_PACKAGES = ("torch", "tokenizers", "safetensors", "numpy")


class Check(NamedTuple):
    """One line of the report."""

    name: str
    ok: bool
    detail: str
    remedy: str = ""
    needed: bool = False
    """The demo cannot run without it."""


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(as_json: bool) -> int:
    """Check what this machine can do. Exit code 0 when the demo can run, else 1."""
    checks = [*_machine(), *_model(), *_sandbox()]
    able = all(check.ok for check in checks if check.needed)
    if as_json:
        rows = [check._asdict() for check in checks]
        click.echo(json.dumps({"able": able, "checks": rows}, ensure_ascii=False))
        return 0 if able else 1
    for check in checks:
        click.echo(_line(check))
        if not check.ok and check.remedy:
            click.echo(f"{'':30}{check.remedy}")
    click.echo("the demo can run here" if able else "the demo cannot run here; see above")
    return 0 if able else 1


def _line(check: Check) -> str:
    if check.ok:
        mark = click.style("ok", fg="green")
    else:
        mark = click.style("NO", fg="red") if check.needed else click.style("--", fg="yellow")
    return f"{mark}  {check.name:24}  {check.detail}"


def _machine() -> list[Check]:
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    free = shutil.disk_usage(Path.cwd()).free
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return [
        Check("python", True, f"{platform.python_version()} on {platform.platform()}"),
        Check("processor", True, f"{cores} cores, {pages / 2**30:.1f} GiB of memory"),
        Check("free disk", free > 1 << 30, f"{free / 2**30:.1f} GiB here", "free a gigabyte"),
    ]


def _model() -> list[Check]:
    missing = [name for name in _MODEL_PACKAGES if importlib.util.find_spec(name) is None]
    weights = resources.files("baleen") / "assets" / NANO / "config.json"
    gpu = Path("/dev/nvidia0").exists()
    base_url = os.environ.get("OPENAI_BASE_URL")
    return [
        Check(
            "model packages",
            not missing,
            f"missing: {', '.join(missing)}" if missing else "torch and what goes with it",
            "pip install 'baleen[model]'",
            needed=True,
        ),
        Check(
            "bundled checkpoint",
            weights.is_file(),
            "nano is here" if weights.is_file() else "nano is not in this installation",
            "install a released wheel, or train it with: baleen train recipe nano",
            needed=True,
        ),
        Check(
            "accelerator",
            gpu,
            "an NVIDIA device" if gpu else "none; models run on the processor",
        ),
        Check(
            "model endpoint",
            base_url is not None,
            f"OPENAI_BASE_URL is {base_url}" if base_url else "OPENAI_BASE_URL is not set",
            "only for models behind HTTP; --model URL does the same",
        ),
    ]


def _sandbox() -> list[Check]:
    from baleen.sandbox.doctor import checks

    return [
        Check(f"sandbox {check.name}", check.ok, check.detail, check.remedy or "", needed)
        for check in checks()
        for needed in [check.name in _SANDBOX_NEEDED]
    ]
