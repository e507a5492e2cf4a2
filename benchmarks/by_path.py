"""Modules of this repository that are in no package."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]


def load_module(path: str | Path) -> ModuleType:
    """Load a module by its path, whole or from the repository's root."""
    whole_path = ROOT / path
    spec = importlib.util.spec_from_file_location(whole_path.stem, whole_path)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(whole_path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
