"""Which build of the compiled library runs, and what is said where one cannot."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from baleen.kernels.isa import Isa, available, current, path_of, using_isa


def run(isa: str) -> subprocess.CompletedProcess[str]:
    """The library's name in a process that is told which form to take."""
    program = "from baleen.kernels.native import library; print(library()._name)"
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "BALEEN_KERNELS_ISA": isa},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("form", available())
def test_the_variable_chooses_a_form(form: Isa) -> None:
    assert run(form).stdout.strip() == str(path_of(form))


def test_a_form_that_does_not_run_here_is_refused_with_those_that_do() -> None:
    told = run("sse9").stderr
    assert "BALEEN_KERNELS_ISA = 'sse9'" in told
    assert ", ".join(available()) in told


def test_the_innermost_block_decides(isa: Isa) -> None:
    assert current() is isa
    for form in available():
        with using_isa(form):
            assert current() is form
    assert current() is isa
