"""The Triton forms run here through Triton's interpreter, to be chosen before the import."""

from __future__ import annotations

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
os.environ["TRITON_DEFAULT_FP_FUSION"] = "1"  # unset, it warns that its default will change
