"""The network and its weights. Needs the extra ``model`` (torch, safetensors), all but
`ModelConfig` and what a configuration can tell.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from baleen.model.config import LayerKind, ModelConfig
    from baleen.model.init import initialize
    from baleen.model.trace import Trace
    from baleen.model.transformer import Transformer

__all__ = ["LayerKind", "ModelConfig", "Trace", "Transformer", "initialize"]
_HOMES = {
    "LayerKind": "config",
    "ModelConfig": "config",
    "Trace": "trace",
    "Transformer": "transformer",
    "initialize": "init",
}


def __getattr__(name: str) -> Any:
    """A public name from its module, which is imported when the name is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
