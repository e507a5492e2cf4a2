"""``baleen sandbox cp``: where docker puts a copy, with the checks of ``box.files``."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path, PurePosixPath

from baleen.errors import UsageError
from baleen.sandbox import BoxFileError, Sandbox


async def copy(box: Sandbox, path: str, here: str, *, is_download: bool) -> None:
    """Copies between ``path`` of the box and ``here`` on the host; a folder takes it within."""
    if not path.startswith("/"):
        raise UsageError(f"{path!r} is not an absolute path of the box")
    if is_download:
        await _to_host(box, path, Path(here))
    else:
        await _to_box(box, Path(here), path)


async def _to_host(box: Sandbox, source: str, target: Path) -> None:
    place = target / PurePosixPath(source).name if target.is_dir() else target
    if place.is_dir():
        raise UsageError(f"{place} exists already", remedy="move it away, or name another place")
    # Beside its place until it is whole: then it replaces a file as one step, never a link's goal.
    beside = Path(tempfile.mkdtemp(prefix=".baleen-", dir=place.parent))
    try:
        await box.files.download(source, beside / "copy")
        (beside / "copy").replace(place)
    finally:
        shutil.rmtree(beside)


async def _to_box(box: Sandbox, source: Path, target: str) -> None:
    into = target
    if target.endswith("/") or await _is_folder(box, target):
        into = f"{target.rstrip('/')}/{source.resolve().name}"
    await box.files.upload(source, into)


async def _is_folder(box: Sandbox, path: str) -> bool:
    try:
        await box.files.list(path)
    except BoxFileError:
        return False
    return True
