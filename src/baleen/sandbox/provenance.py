"""What besides its image a command's result may depend on."""

from __future__ import annotations

import platform

from baleen import __version__


def provenance(limits: str) -> dict[str, str]:
    """Versions and limits, as the first record of a log keeps them."""
    return {"baleen": __version__, "kernel": platform.release(), "limits": limits}
