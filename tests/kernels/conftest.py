"""The Triton forms run here through Triton's interpreter, to be chosen before the import; the
compiled ones in each build that this processor can run.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from baleen.kernels import Backend
from baleen.kernels.isa import Isa, available, using_isa

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
os.environ["TRITON_DEFAULT_FP_FUSION"] = "1"  # unset, it warns that its default will change


@pytest.fixture(scope="module", autouse=True, params=available() or [None])
def isa(request: pytest.FixtureRequest) -> Iterator[Isa | None]:
    """The build of the library that the module's tests run with."""
    if request.param is None:
        yield None
        return
    with using_isa(request.param):
        yield request.param


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leaves out what would only repeat itself: other backends do not depend on the build."""
    items[:] = [item for item in items if not _is_repetition(item)]


def _is_repetition(item: pytest.Item) -> bool:
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    backend = parameters.get("backend", Backend.NATIVE)
    depends = backend is Backend.NATIVE and item.path.stem not in ("test_gpu", "test_isa")
    return not depends and parameters.get("isa") not in (None, *available()[:1])
