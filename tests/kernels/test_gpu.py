"""What a GPU's form needs beyond right results: a compiler's consent, and a device to run on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from baleen.errors import ConfigError
from baleen.kernels import Backend, product, using
from baleen.kernels.backend import on_gpu

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "kernels_gpu.py"


@pytest.mark.slow
def test_every_kernel_compiles_for_a_gpu_that_is_not_here(tmp_path: Path) -> None:
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), "--compile"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("machine code") == 5


def test_asking_for_triton_where_it_cannot_run_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    monkeypatch.delenv("TRITON_INTERPRET")
    codes, scales = torch.zeros(4, 16, dtype=torch.int8), torch.ones(4, 1)
    with using(Backend.TRITON), pytest.raises(ConfigError, match="TRITON_INTERPRET=1"):
        product(torch.ones(1, 32), codes, scales.to(torch.float8_e8m0fnu))


def test_tensors_of_the_cpu_never_go_there_unasked() -> None:
    assert not on_gpu(torch.ones(1))
