"""What the package carries: the bundled checkpoint."""

from pathlib import Path

ROOT = Path(__file__).parent


def nano_dir() -> Path:
    """The model folder of the bundled checkpoint."""
    return ROOT / "nano"
