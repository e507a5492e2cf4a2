"""Where a model is: a folder, or a Hub id whose files are fetched first."""

from __future__ import annotations

from pathlib import Path

from baleen.errors import CheckpointError, MissingExtraError

PATTERNS = [
    "*.json",
    "*.safetensors",
    "*.jinja",
    "encoding/*",
]
"""What is fetched: not the same weights once more in another framework's format."""


def resolve(source: str | Path, revision: str | None = None) -> Path:
    """The folder that `source` names: itself, or the local snapshot of a Hub id `owner/name`.

    huggingface-hub does the fetching, with its own variables: `HF_HOME`, `HF_ENDPOINT`, `HF_TOKEN`,
    `HF_HUB_OFFLINE`. Files that are there already are not fetched again.

    Raises:
        CheckpointError: it is neither a folder nor an id that could be fetched.
        MissingExtraError: an id is given and huggingface-hub is not installed.
    """
    folder = Path(source)
    if folder.is_dir() or isinstance(source, Path):
        return folder
    if not _looks_like_an_id(source):
        raise CheckpointError(
            f"{source} is no folder", remedy="name a model folder or a Hub id owner/name"
        )
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError as error:
        raise MissingExtraError(
            f"{source} is a Hub id, and huggingface-hub is not installed",
            remedy="pip install 'baleen[model]'",
        ) from error
    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=PATTERNS))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"{source} is no folder here and cannot be fetched: {reason}",
            remedy="check the name, the network and HF_TOKEN, or name a model folder",
        ) from error


def _looks_like_an_id(source: str) -> bool:
    owner, slash, name = source.partition("/")
    return bool(owner and slash and name) and "/" not in name and owner not in (".", "..", "~")
